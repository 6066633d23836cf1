"""Verbs in several threads, and interrupted at any instant."""

from __future__ import annotations

import contextlib
import copy
import random
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateur as sc
from attacks import process_state
from secateur.adapters import _fresh
from secateur.core.atomic_files import atomic_path
from secateur.errors import MissingExtraError, ModelInUseError, OptionError, SecateurError


class Small(nn.Module):
    """Convolutions, batch norm, dropout and a frozen tensor: all that a verb may disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.next, self.drop, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.next(F.relu(self.norm(self.conv(x)))))
        return self.head(self.drop(x.mean((2, 3))))


def small(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    model = Small().train()
    model.norm.eval()
    model.head.bias.requires_grad_(False)
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    return model


IMAGES = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(8) % 3
DATA = [(IMAGES[:4], LABELS[:4]), (IMAGES[4:], LABELS[4:])]


def prune(model, folder):
    return sc.prune(model, "l2", "channel", 0.5, skip="head", example=IMAGES[:1])


def taylor(model, folder):
    return sc.prune(model, "taylor", "filter", 0.5, data=DATA, loss=F.cross_entropy)


def scan(model, folder):
    found = sc.scan(model, DATA, levels=[0.5])
    return [found.dense, str(found.values)] if hasattr(found, "values") else found.dense


def measure(model, folder):
    return [row.value for row in sc.measure(model, IMAGES[:1], DATA, what=["macs", "params", "accuracy"])]


def share(model, folder):
    return sc.share(model, 2).model.state_dict()


def compensate(model, folder):
    masks = sc.prune(copy.deepcopy(model), "l2", "channel", 0.5, skip="head", example=IMAGES[:1])
    return sc.compensate(model, masks, DATA, tune=1).model.state_dict()


def shrink(model, folder):
    masks = sc.prune(copy.deepcopy(model), "l2", "channel", 0.5, skip="head", example=IMAGES[:1])
    return sc.shrink(model, masks, IMAGES[:1]).model.state_dict()


def explain(model, folder):
    return str(sc.explain(model, IMAGES[:1]))


def save_and_load(model, folder):
    file = Path(folder) / f"{threading.get_ident()}-{random.SystemRandom().random()}.sct"
    sc.save(model, file)
    return sc.load(file)


def hold(model, folder):
    masks = sc.Masks({"next.weight": torch.ones(4, 4, 3, 3, dtype=torch.bool)})
    with sc.hold(model, masks):
        return len(masks)


def factorise(model, folder):
    return sc.factorise(model, 0.5, IMAGES[:1]).model.state_dict()


def allocate(model, folder):
    options = sc.AllocateOptions(skip="head")
    return str(sc.allocate(model, DATA, "knapsack", keep=0.7, example=IMAGES[:1], options=options))


def reestimate(model, folder):
    return sc.reestimate_batch_norm(model, [IMAGES]).state_dict()


def check_connected(model, folder):
    return sc.check_connected(model, sc.Masks({"next.weight": torch.ones(4, 4, 3, 3, dtype=torch.bool)}))


def compare(model, folder):
    return sc.compare(small(), model, IMAGES[:1], repetitions=2)


def why(model, folder):
    return sc.why(model, small(), IMAGES[:1], repetitions=2)


def export(model, folder):
    return sc.export(model, Path(folder) / "m.pt2", IMAGES[:1])


def two_of_four(model, folder):
    return sc.two_of_four(model, IMAGES[:1], repetitions=2)


class Block(nn.Module):
    """A block with a shortcut, which can be removed whole."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.out(torch.tanh(self.fc(x)))


class Blocks(nn.Module):
    """A few of them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(3)), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def bypassed(model, folder):
    gone = {name: p for name, p in model.named_parameters() if name.startswith("blocks.1.")}
    masks = sc.Masks({name: torch.zeros_like(p, dtype=torch.bool) for name, p in gone.items()})
    return sc.bypassed(model, masks, torch.ones(2, 4)).state_dict()


def load_shrunk(model, folder):
    file = Path(folder) / "shrunk.safetensors"
    if not file.exists():
        with torch.random.fork_rng(devices=[]):
            made = small(9)
        masks = sc.prune(made, "l2", "channel", 0.5, skip="head", example=IMAGES[:1])
        with atomic_path(file) as scratch:
            sc.shrink(made, masks, IMAGES[:1]).save(scratch)
    return sc.load_shrunk(file, model).state_dict()


def zero_dead_neurons(model, folder):
    masks = sc.zero_dead_neurons(model, [IMAGES])
    return {**dict(masks.items()), **model.state_dict()}


def save_yolo(model, folder):
    """As far as it comes without ultralytics, or with a model that is none of its."""
    with contextlib.suppress(MissingExtraError, OptionError):
        sc.save_yolo(model, Path(folder) / "m.pt")


def gpt2(seed: int = 0) -> nn.Module:
    _fresh._declare_torchvision()  # whose own may not fit torch
    import transformers

    torch.manual_seed(seed)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 20, "n_positions": 8}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=1))


def save_pretrained(model, folder):
    place = Path(folder) / f"{threading.get_ident()}-{random.SystemRandom().random()}"
    options = sc.HuggingFaceOptions(check=False, generate=0)
    sc.save_pretrained(model, place, {"input_ids": torch.arange(6)[None]}, options=options)
    return {each.name: each.read_bytes() for each in sorted(place.glob("*.safetensors"))}


def blocks(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Blocks()


MADE = {bypassed: blocks, save_pretrained: gpt2}  # of other models than `small`
IN_PLACE = [bypassed, load_shrunk, zero_dead_neurons]  # or slow to interrupt at thirty instants
MORE = [
    save_yolo,
    save_pretrained,
    reestimate,
    check_connected,
    compare,
    why,
    export,
    two_of_four,
]  # slower, or their results are times
VERBS = [
    prune,
    taylor,
    scan,
    measure,
    share,
    compensate,
    shrink,
    explain,
    save_and_load,
    hold,
    factorise,
    allocate,
]


def bytes_of(value: object) -> bytes:
    if isinstance(value, dict) or hasattr(value, "items"):
        return b"".join(f"{name}".encode() + bytes_of(part) for name, part in value.items())
    if isinstance(value, bytes):
        return value
    return (
        value.detach().contiguous().numpy().tobytes()
        if isinstance(value, torch.Tensor)
        else repr(value).encode()
    )


def state_of(model: nn.Module) -> dict[str, object]:
    """Everything of a model that a verb may disturb."""
    return {
        "values": {name: bytes_of(tensor) for name, tensor in model.state_dict().items()},
        "objects": [id(tensor) for tensor in [*model.parameters(), *model.buffers()]],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [None if p.grad is None else (id(p.grad), bytes_of(p.grad)) for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "classes": [type(module) for module in model.modules()],
        "held": [
            (sorted(vars(m)), {k: list(v) for k, v in vars(m).items() if isinstance(v, dict)})
            for m in model.modules()
        ],
    }


# -- threads


def test_separate_models_in_several_threads_give_the_same_as_one_after_another(tmp_path):
    jobs = [(verb, seed) for seed in range(3) for verb in [*VERBS, *IN_PLACE, save_pretrained]]
    models = [MADE.get(verb, small)(seed) for verb, seed in jobs]
    expected = [bytes_of(verb(copy.deepcopy(model), tmp_path)) for (verb, _), model in zip(jobs, models)]
    found: dict[int, object] = {}

    def work(numbers: list[int]) -> None:
        for number in numbers:
            try:
                found[number] = bytes_of(jobs[number][0](models[number], tmp_path))
            except Exception as error:
                found[number] = error

    order = list(range(len(jobs)))
    random.Random(0).shuffle(order)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(order[k::4],)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
    finally:
        sys.setswitchinterval(interval)
    wrong = [(jobs[n][0].__name__, found.get(n)) for n in order if found.get(n) != expected[n]]
    assert not wrong, [
        (name, value if isinstance(value, Exception) else "other bytes") for name, value in wrong
    ]


@pytest.mark.parametrize("verb", [*VERBS, *IN_PLACE, *MORE], ids=lambda verb: verb.__name__)
def test_one_model_in_two_threads_is_refused_and_unharmed(verb, tmp_path):
    if verb in (compensate, shrink):  # their first call is of a copy
        prune(small(), tmp_path)
    elif verb is load_shrunk:
        verb(small(), tmp_path)  # writes the file
    model = MADE.get(verb, small)()
    before = state_of(model)
    entered, leave = threading.Event(), threading.Event()
    first: list[object] = []

    def evaluate(given: nn.Module) -> float:
        entered.set()
        leave.wait(20)
        return 0.5

    thread = threading.Thread(target=lambda: first.append(sc.scan(model, evaluate, levels=[0.5])))
    thread.start()
    assert entered.wait(20)
    refused: list[str] = []
    try:
        with pytest.raises(ModelInUseError) as caught:
            verb_on(verb, model, tmp_path)
        refused.append(str(caught.value))
    finally:
        leave.set()
        thread.join(30)
    word = {"taylor": "prune", "save_and_load": "save", "reestimate": "reestimate_batch_norm"}.get(
        verb.__name__, verb.__name__
    )
    assert refused == [
        f"{word}: expected a model that no other thread is working on, got {type(model).__name__}, on which scan "
        "is running in another thread; wait for it, or give each thread a copy (copy.deepcopy(model))"
    ]
    assert first
    assert state_of(model) == before
    verb(model, tmp_path)  # free again


def verb_on(verb, model, folder):
    """The verb, without the calls that prepare it: those would wait for their turn."""
    masks = sc.Masks(
        {"next.weight": torch.ones(4, 4, 3, 3, dtype=torch.bool).index_fill_(0, torch.tensor([0]), False)}
    )
    if verb is compensate:
        return sc.compensate(model, masks, DATA)
    if verb is shrink:
        return sc.shrink(model, masks, IMAGES[:1])
    return verb(model, folder)


def test_a_part_of_a_model_in_use_is_refused_too_and_a_thread_may_call_verbs_within_verbs():
    model = small()
    found: list[object] = []

    def evaluate(given: nn.Module) -> float:
        if not found:
            found.append(sc.measure(given, what="params"))

            def other() -> None:
                try:
                    sc.measure(model.conv, what="params")
                except SecateurError as error:
                    found.append(error)

            thread = threading.Thread(target=other)
            thread.start()
            thread.join(20)
        return 0.5

    sc.scan(model, evaluate, levels=[0.5])
    assert isinstance(found[1], ModelInUseError)
    assert str(found[1]).startswith(
        "measure: expected a model that no other thread is working on, got Conv2d"
    )


# -- interrupts


def interrupted(verb, model, folder, at: int | None, files: str = "/secateur/") -> tuple[int, bool]:
    """(lines that ran, whether it was interrupted)."""
    count = 0

    def local(frame, event, argument):
        nonlocal count
        if event == "line":
            count += 1
            if count == at:
                handler = signal.getsignal(signal.SIGINT)
                assert callable(handler)
                handler(signal.SIGINT, frame)  # as if it came there, and not in this trace function
        return local

    def trace(frame, event, argument):
        name = frame.f_code.co_filename
        return local if files in name or name.endswith("contextlib.py") else None

    sys.settrace(trace)
    try:
        verb(model, folder)
        end = time.monotonic() + 5
        while at is not None and count >= at and time.monotonic() < end:
            time.sleep(0.01)  # a signal that was deferred to the end comes now
    except KeyboardInterrupt:
        return count, True
    finally:
        sys.settrace(None)
    return count, False


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_interrupted_at_any_instant_the_model_and_the_process_are_as_before(verb, tmp_path):
    verb(small(), tmp_path)  # what is imported and made once
    lines, _ = interrupted(verb, small(), tmp_path, None)
    chance = random.Random(0)
    kinds = [Small, nn.Module, nn.Conv2d, nn.Linear, nn.BatchNorm2d]
    hits, wrong = 0, []
    for _ in range(30):
        at = chance.randrange(1, lines + 1)
        model = small()  # a model's structure is remembered: a second call would have fewer lines
        before = state_of(model)
        process = process_state.snapshot((), kinds)
        hit = interrupted(verb, model, tmp_path, at)[1]
        hits += hit
        after = state_of(model)
        changed = [key for key in before if before[key] != after[key]]
        changed += process_state.changes(process, process_state.snapshot((), kinds)) if hit else []
        if changed:
            wrong.append((at, changed))
    assert not wrong
    assert hits >= 25
    assert not list(tmp_path.glob(".secateur-*"))


def test_interrupted_at_any_instant_statistics_of_batch_norm_are_the_old_ones_or_the_new():
    def run(model, folder):
        reestimate(model, folder)

    done = small()
    lines, _ = interrupted(run, done, None, None)
    assert state_of(done)["values"] != state_of(small())["values"]
    hits, names = 0, ("values", "flags", "modes", "classes", "held")
    for at in range(1, lines + 1, max(1, lines // 25)):
        model = small()
        before = state_of(model)
        hits += interrupted(run, model, None, at)[1]
        after = state_of(model)
        assert any(all(after[name] == whole[name] for name in names) for whole in (before, state_of(done))), (
            at
        )
    assert hits >= 20


def failing(model, folder):
    """A verb that fails after it has changed what it was given."""

    def evaluate(given: nn.Module) -> float:
        given.eval()
        given.norm.running_mean.zero_()
        given.conv.weight.requires_grad_(False)
        given.register_forward_hook(lambda *_: None)
        del given.head
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        sc.measure(model, evaluate=evaluate, what="accuracy")


def test_a_signal_while_a_verb_puts_back_waits_until_all_is_back(tmp_path):
    failing(small(), tmp_path)
    lines, _ = interrupted(failing, small(), tmp_path, None, "execution/verb.py")
    assert lines > 60
    wrong = []
    handler = signal.getsignal(signal.SIGINT)
    for at in range(1, lines + 1, 7):
        model = small()
        model.norm.running_mean.fill_(2.0)
        before = state_of(model)
        interrupted(failing, model, tmp_path, at, "execution/verb.py")
        after = state_of(model)
        free: list[object] = []
        thread = threading.Thread(
            target=lambda model=model, free=free: free.append(sc.measure(model, what="params"))
        )
        thread.start()
        thread.join(5)
        if after != before or not free or signal.getsignal(signal.SIGINT) is not handler:
            wrong.append((at, [key for key in before if before[key] != after[key]], bool(free)))
            break
    assert not wrong


def test_a_signal_while_close_takes_a_hold_off_waits_until_it_is_off(tmp_path):
    files = "pruning/hold.py"
    handler = signal.getsignal(signal.SIGINT)

    def hooks(model) -> int:
        return len(model._forward_pre_hooks) + sum(len(p._backward_hooks or ()) for p in model.parameters())

    def held():
        model = small()
        return model, sc.hold(model, sc.prune(model, budget=0.5))

    def closing(guard, folder):
        guard.close()

    lines, _ = interrupted(closing, held()[1], tmp_path, None, files)
    assert lines > 15
    hits = 0
    for at in range(1, lines + 1):
        model, guard = held()
        before = hooks(model)
        hits += interrupted(closing, guard, tmp_path, at, files)[1]
        assert (hooks(model), guard._open) in ((before, True), (0, False)), f"line {at}: taken off half way"
        assert (model.conv.weight == 0).sum() >= model.conv.weight.numel() // 2
        assert signal.getsignal(signal.SIGINT) is handler
        guard.close()
        assert hooks(model) == 0
    assert hits == lines


def test_a_signal_between_hold_and_its_block_waits_for_the_block(tmp_path):
    model = small()
    before, handler = state_of(model), signal.getsignal(signal.SIGINT)
    came = []

    def trace(frame, event, argument):
        code = frame.f_code
        if event == "call" and code.co_name == "__enter__" and code.co_filename.endswith("pruning/hold.py"):
            came.append(code.co_name)
            found = signal.getsignal(signal.SIGINT)
            assert callable(found)
            found(signal.SIGINT, frame)

    def held_and_waited():
        hold(model, tmp_path)
        time.sleep(5)

    sys.settrace(trace)
    try:
        with pytest.raises(KeyboardInterrupt):
            held_and_waited()
    finally:
        sys.settrace(None)
    assert came == ["__enter__"]
    assert state_of(model) == before
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_handler_that_is_set_while_masks_are_held_stays():
    model = small()
    handler = signal.getsignal(signal.SIGINT)

    def other(number, frame):
        raise KeyboardInterrupt

    try:
        with sc.hold(model, sc.Masks({"next.weight": torch.ones(4, 4, 3, 3, dtype=torch.bool)})):
            signal.signal(signal.SIGINT, other)
        assert signal.getsignal(signal.SIGINT) is other
    finally:
        signal.signal(signal.SIGINT, handler)


def test_a_hold_of_the_main_thread_can_be_closed_in_another():
    handler = signal.getsignal(signal.SIGINT)
    guard = sc.hold(small(), sc.Masks({"next.weight": torch.ones(4, 4, 3, 3, dtype=torch.bool)}))
    thread = threading.Thread(target=guard.close)
    try:
        thread.start()
        thread.join(20)
        assert not guard._open
        guard.close()  # and in this one: nothing is left but to put the handlers back
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, handler)


def test_an_argument_that_is_one_of_the_options_says_so():
    model = nn.Linear(4, 4)
    with pytest.raises(
        TypeError, match=r"'only'; it is one of the options: pass options=sc.PruneOptions\(only=...\)"
    ):
        sc.prune(model, only="0")
    with pytest.raises(TypeError, match="'criterions'; did you mean 'criterion'"):
        sc.prune(model, criterions="l2")

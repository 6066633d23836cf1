"""`smallest`: the smallest real file at most so much accuracy below the dense model, and the front on the way there.

    found = smallest(Recipe.read("recipe.toml"), Store("runs"), lost=0.005)
    print(found)            # every try, the front of accuracy against bytes, and the best one on the test images

The recipe says how the dense model comes about. Every try prunes it while training (weights whose place is dear to
write go first), distils from it, shares what is left among few values, lets weights change their value at a price,
trains the values, and writes the file. How many weights stay, how many bits each layer's values have, and what a bit
costs are chosen by the bytes of that file and by its accuracy on the validation images. The test images are looked at
once, at the end. Every step goes through the recipe engine: a stopped search goes on where it stood.

>>> SizeSettings(keep=0.02, bits={"fc1": 2, "fc2": 3}, rate=0.02).text()
'2 % of the weights, bits fc1 2, fc2 3, rate 0.02'
>>> tried = ((0.5, 900, 0.98), (0.2, 500, 0.97), (0.3, 600, 0.96))
>>> front([SizeAttempt(SizeSettings(keep), size, accuracy) for keep, size, accuracy in tried])
(1, 0)
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from secateur.core.measurement import Measurement, Measurements
from secateur.core.targets import select
from secateur.errors import BudgetNotMetError, CollapseError, NothingToDoError, OptionError
from secateur.lab.display.progress import Progress
from secateur.lab.engine import Ran, final_state, run
from secateur.lab.plan import data_of
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store

__all__ = ["SizeAttempt", "SizeSettings", "SmallestResult", "front", "smallest", "steps_of"]

_DENSE, _TEST, _TRIED, _RESULT = (
    "smallest_dense",
    "smallest_dense_test",
    "smallest_tried",
    "smallest_result",
)
_TRAIN: dict[str, Any] = {"epochs": 20, "lr": 0.002, "optimizer": "adam", "schedule": "cosine", "warmup": 1}
_SPREAD = 0.05  # shares this near to each other are not worth a try between them
FILE = "smallest.sct"


@dataclass(frozen=True)
class SizeSettings:
    """What a try is made of: the share of weights that stay, bits of values (by layer, or of all), price of a bit."""

    keep: float
    bits: int | Mapping[str, int] = 3
    rate: float = 0.01

    def text(self) -> str:
        """The settings in a phrase."""
        bits = (
            f"bits {', '.join(f'{name} {bits}' for name, bits in self.bits.items())}"
            if isinstance(self.bits, Mapping)
            else f"{self.bits} bits"
        )
        return f"{100 * self.keep:.3g} % of the weights, {bits}, rate {self.rate:g}"


@dataclass(frozen=True)
class SizeAttempt:
    """One try: its settings, the bytes of its file (None where there was none), its accuracy on validation images."""

    settings: SizeSettings
    size: int | None
    accuracy: float | None
    why: str = field(default="", compare=False)

    def holds(self, limit: float) -> bool:
        """Whether there is a file, and its accuracy is at least the limit."""
        return self.size is not None and self.accuracy is not None and self.accuracy >= limit


def front(tries: Sequence[SizeAttempt]) -> tuple[int, ...]:
    """The numbers of the tries that no other beats in both bytes and accuracy, from the smallest file on."""
    there = [
        (one.size, -one.accuracy, at) for at, one in enumerate(tries) if one.size is not None and one.accuracy
    ]
    best, found = 1.0, []
    for _, missed, at in sorted(there):
        if missed < best:
            best = missed
            found.append(at)
    return tuple(found)


@dataclass(frozen=True)
class SmallestResult:
    """What `smallest` came to. `best` is the smallest try that holds; `ran` made it again with the test images."""

    dense: float
    limit: float
    tries: tuple[SizeAttempt, ...]
    best: SizeAttempt
    ran: Ran

    @property
    def front(self) -> tuple[SizeAttempt, ...]:
        """The tries that no other beats in both bytes and accuracy, the smallest file first."""
        return tuple(self.tries[at] for at in front(self.tries))

    @property
    def final(self) -> Measurements:
        """The dense model and the one from the file, on the test images, and what the file measures."""
        wanted = ("file_bytes", "original_bytes", "file_ratio")
        rows = (
            m
            for m in self.ran.measurements
            if m.context.get("variant") in (_TEST, _RESULT) or m.name in wanted
        )
        return Measurements(rows)

    def value(self, name: str, variant: str | None = None) -> float:
        """One measured number of the result, or of the step of that label."""
        rows = [m for m in self.final if m.name == name and variant in (None, m.context.get("variant"))]
        return float(rows[-1].value)

    def __str__(self) -> str:
        lines = [f"dense {self.dense:.4f} on the validation images; at least {self.limit:.4f} must hold"]
        lines += [f"  {one.why}" for one in self.tries]
        lines.append("front of accuracy against bytes:")
        lines += [f"  {one.size:>10,} bytes  {one.accuracy:.4f}  {one.settings.text()}" for one in self.front]
        tested, dense = self.value("accuracy", _RESULT), self.value("accuracy", _TEST)
        lines.append(
            f"smallest: {self.value('file_bytes'):,.0f} bytes, {self.value('file_ratio'):.1f} times smaller; on the "
            f"test images {tested:.4f} from the file, {dense:.4f} dense"
        )
        lost, allowed = dense - tested, self.dense - self.limit
        if lost > allowed + 1e-12:
            lines.append(
                f"on the test images, which no decision looked at, it loses {lost:.4f} instead of at most {allowed:g}: "
                "hold out more validation images, ask for less loss, or train longer"
            )
        return "\n".join(lines)


def smallest(
    recipe: Recipe,
    store: Store,
    *,
    lost: float = 0.01,
    tries: int = 10,
    keep: float = 0.1,
    bits: int = 3,
    rate: float = 0.01,
    train: dict[str, Any] | None = None,
    progress: Progress | None = None,
    told: Callable[[str], None] | None = None,
) -> SmallestResult:
    """Search for the smallest file of the recipe's model that loses at most `lost` on the validation images.

    `keep`, `bits` and `rate` are where the search begins. First the share of weights that stay is halved while it holds
    and brought half way back where it does not; then the price of a bit and the bits of each layer are changed, one
    after the other, and a change stays where the file is smaller and holds. `train` are the options of the pruning
    training; the training of the values takes a third of its epochs, twice. `told(line)` is called with the why of
    every try. No try that holds within `tries` is a `BudgetNotMetError`.
    """
    if not 0.0 <= lost < 1.0:
        raise OptionError(
            f"lost is a share of the accuracy: expected 0 <= lost < 1, got {lost!r}; for 1 % write 0.01"
        )
    if tries < 1:
        raise OptionError(f"tries: expected at least 1, got {tries}")
    if not 0.0 < keep < 1.0:
        raise OptionError(f"keep is the share of weights that stay: expected 0 < keep < 1, got {keep!r}")
    if isinstance(bits, bool) or not 1 <= bits <= 8:
        raise OptionError(f"bits: expected a whole number from 1 to 8, got {bits!r}")
    recipe.refuse(
        ("share", "refine"),
        "smallest goes on from the model before its weights were shared, and shares them itself; leave the step out",
    )
    say = told or (lambda line: None)
    base = recipe.plain()
    base["grid"] = {}
    teacher = base["step"][-1]["label"]
    base["step"] = [*base["step"], _measure(_DENSE, "validation")]
    ran = run(Recipe.of(base), store, progress=progress)
    model = final_state(ran.plan.trials[0], store).model
    dense = _accuracy(ran.measurements, _DENSE)
    limit = dense - lost
    say(
        f"dense: {dense:.4f} on {len(data_of(recipe).validation):,} validation images, so at least {limit:.4f}"
    )
    training = {**_TRAIN, **(train or {})}

    def attempt(settings: SizeSettings) -> SizeAttempt:
        steps = steps_of(settings, model, teacher, training)
        whole = {**base, "step": [*base["step"], *steps, _measure(_TRIED, "validation")]}
        what = settings.text()
        try:
            found = run(Recipe.of(whole), store, progress=progress).measurements
        except (BudgetNotMetError, CollapseError, NothingToDoError) as error:
            return SizeAttempt(settings, None, None, f"{what}: cannot be had ({error})")
        accuracy = _accuracy(found, _TRIED)
        size = int(next(m.value for m in reversed(list(found)) if m.name == "file_bytes"))
        verdict = "holds" if accuracy >= limit else f"is {limit - accuracy:.4f} short"
        return SizeAttempt(settings, size, accuracy, f"{what}: {size:,} bytes, {accuracy:.4f} {verdict}")

    done: list[SizeAttempt] = []
    search = _searched(SizeSettings(keep, bits, rate), model, limit)
    wanted: SizeSettings | None = next(search)
    while wanted is not None and len(done) < tries:
        done.append(attempt(wanted))
        say(done[-1].why)
        try:
            wanted = search.send(done[-1])
        except StopIteration:
            wanted = None
    holding = [one for one in done if one.holds(limit)]
    if not holding:
        near = max((one.accuracy for one in done if one.accuracy is not None), default=float("nan"))
        raise BudgetNotMetError(
            f"smallest: none of {len(done)} tries held {limit:.4f} (dense {dense:.4f}, at most {lost:g} lost); the "
            f"nearest came to {near:.4f}. Allow more loss, train longer (epochs), begin with more weights (keep), or "
            "try more often (tries)"
        )
    best = min(holding, key=lambda one: one.size or 0)
    last = [*steps_of(best.settings, model, teacher, training), _measure(_TRIED, "validation")]
    whole = {**base, "step": [*base["step"], _measure(_TEST, "test"), *last, _measure(_RESULT, "test")]}
    return SmallestResult(dense, limit, tuple(done), best, run(Recipe.of(whole), store, progress=progress))


def _searched(
    start: SizeSettings, model: nn.Module, limit: float
) -> Generator[SizeSettings, SizeAttempt, None]:
    """Which settings to try next; each attempt is sent back. First the share of weights, then one setting at a time."""
    best: SizeAttempt | None = None
    holds, fails, keep = 0.0, 0.0, start.keep
    while not fails or (not holds and keep < 0.9) or (holds and holds / fails > 1 + 4 * _SPREAD):
        one: SizeAttempt = yield replace(start, keep=keep)
        if one.holds(limit):
            best, holds = one, keep
        else:
            fails = keep
        if holds and fails:
            keep = (holds * fails) ** 0.5
        else:
            keep = keep / 2 if holds else min(0.9, keep * 2)
    if best is None:
        return
    layers = [target.layer for target in select(model)]
    moves: list[tuple[str, float]] = [("rate", 3.0), ("rate", 1 / 3), *((layer, -1) for layer in layers)]
    settled = best.settings
    for what, change in moves:
        while True:
            if what == "rate":
                tried = replace(settled, rate=round(settled.rate * change, 9))
            else:
                bits = _by_layer(settled.bits, layers)
                if bits[what] <= 1:
                    break
                tried = replace(settled, bits={**bits, what: bits[what] + int(change)})
            one = yield tried
            if not (one.holds(limit) and (one.size or 0) < (best.size or 0)):
                break
            best, settled = one, tried


def _by_layer(bits: int | Mapping[str, int], layers: Sequence[str]) -> dict[str, int]:
    return dict(bits) if isinstance(bits, Mapping) else dict.fromkeys(layers, bits)


def _measure(label: str, split: str) -> dict[str, Any]:
    return {"kind": "measure", "label": label, "what": ["accuracy", "params"], "split": split}


def _accuracy(measured: Sequence[Measurement] | Measurements, label: str) -> float:
    rows = [m for m in measured if m.name == "accuracy" and m.context.get("variant") == label]
    if not rows:
        raise OptionError("smallest: the recipe's data has no accuracy to hold; it works with classifiers")
    return float(rows[-1].value)


def steps_of(
    settings: SizeSettings, model: nn.Module, teacher: str, train: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The steps of one try, after those of the dense model: also a recipe to go on with by hand."""
    distilled = {"teacher": teacher, "distill_alpha": 0.7, "distill_temperature": 3.0, **train}
    refined = {
        **distilled,
        "epochs": max(1, distilled["epochs"] // 3),
        "lr": distilled["lr"] / 4,
        "warmup": 0,
    }
    steps: list[dict[str, Any]] = [
        {
            "kind": "gradual",
            "label": "smallest_prune",
            "criterion": "rate_distortion",
            "sparsity": 1 - settings.keep,
            "until": 0.6,
            "every": 20,
            **distilled,
        },
        {"kind": "zero_dead_neurons", "label": "smallest_zero_dead_neurons"},
    ]
    if isinstance(settings.bits, Mapping):
        for bits in sorted(set(settings.bits.values())):
            only = [layer for layer, own in settings.bits.items() if own == bits]
            steps.append({"kind": "share", "label": f"smallest_share{bits}", "bits": bits, "only": only})
    else:
        steps.append({"kind": "share", "label": "smallest_share", "bits": settings.bits})
    remade = {
        "label": "smallest_remake",
        "remake_every": 20,
        "rate": settings.rate,
        "latent": "smallest_zero_dead_neurons",
    }
    steps += [
        {"kind": "refine", **refined, **remade},
        {"kind": "refine", "label": "smallest_refine", **refined},
    ]
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    layers = {f"{target.layer}.bias" for target in select(model)}
    biased = any(name in layers for name, _ in model.named_parameters())
    pack = {"kind": "pack", "label": "smallest_pack", "file": FILE, "names": "model", "coder": "strong"}
    rounded = {
        "codebook_bits": 6,
        **({"batch_norm": 6} if normed else {}),
        **({"biases": 5} if biased else {}),
    }
    return [*steps, {**pack, **rounded}]

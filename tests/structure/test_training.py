"""What a forward does in training alone is followed, repaired or left whole, and checked by the proof."""

from __future__ import annotations

import copy
import functools
import gc
import math
import random
import warnings
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import DataError, NothingToDoError, OptionError, ProofError
from secateur.structure.cutting import cut
from secateur.structure.groups import couplings
from secateur.structure.groups.couplings import analyse
from secateur.structure.proof import ProofOptions
from secateur.structure.proof_runs import run
from secateur.structure.proving import DenseRun, prove
from secateur.structure.trace.in_training import reads_training, training_run
from secateur.structure.trace.trace import trace

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions with something between them that runs in training alone."""

    def __init__(self, extra: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1)
        self.extra = extra

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.a(x))
        if self.training:
            y = self.extra(y)
        return self.out(torch.relu(self.b(y)))


def fixed_view(y: torch.Tensor) -> torch.Tensor:
    return y.view(y.shape[0], 16, -1).flip(-1).view(y.shape[0], 16, *y.shape[2:])


def fixed_noise(y: torch.Tensor) -> torch.Tensor:
    return y + 0.01 * torch.randn(1, 16, 1, 1)


def swapped(y: torch.Tensor) -> torch.Tensor:
    return torch.cat([y[:, 8:], y[:, :8]], 1)


def chosen(y: torch.Tensor) -> torch.Tensor:
    return y[:, torch.tensor([0, 3, 5, 7] * 4)]


def plain_noise(y: torch.Tensor) -> torch.Tensor:
    return y * torch.rand(y.shape[0], 1, 1, 1)


@pytest.mark.parametrize(
    ("extra", "left"), [(fixed_view, 16), (fixed_noise, 16), (swapped, 16), (chosen, 16), (plain_noise, 8)]
)
def test_a_shrunk_model_computes_in_training_what_the_masked_one_does(
    extra: Callable[[torch.Tensor], torch.Tensor], left: int
) -> None:
    torch.manual_seed(0)
    model = Net(extra)
    promised = sc.explain(model, X, budget=0.5).removed_parameters
    masks = sc.prune(model, "l2", "channel", 0.5, example=X)
    small = sc.shrink(model, masks, X)
    assert small.model.a.out_channels == left
    before, after = (sum(p.numel() for p in each.parameters()) for each in (model, small.model))
    assert before - after == promised
    assert ("training", "train") in {(case.what, case.mode) for case in small.proof.cases}
    masks.apply_(model)
    outputs = []
    for each in (model.train(), small.model.train()):
        torch.manual_seed(1)
        outputs.append(each(X))
    torch.testing.assert_close(*outputs)
    outputs[1].sum().backward()
    assert all(p.grad is not None for p in small.model.parameters())


def test_a_width_in_a_forward_of_training_is_repaired() -> None:
    class Fixed(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.a(x))
            if self.training:
                b, _, h, w = y.shape
                y = y.view(b, 16, h * w).flip(-1).view(b, 16, h, w)
            return self.out(torch.relu(self.b(y)))

    torch.manual_seed(0)
    model = Fixed(plain_noise)
    masks = sc.prune(model, "l2", "channel", 0.5, example=X)
    small = sc.shrink(model, masks, X)
    assert (small.model.a.out_channels, small.locked) == (8, ())
    masks.apply_(model)
    other = torch.randn(3, 3, 6, 10)
    torch.testing.assert_close(model.train()(other), small.model.train()(other))
    torch.testing.assert_close(model.eval()(other), small.model.eval()(other))


def test_norms_and_heads_of_training_alone_are_cut_with_the_rest() -> None:
    """Evaluation runs a folded norm; training the norm itself, and heads on fixed parts of the output."""

    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.out = (
                nn.Conv2d(3, 16, 3, padding=1),
                nn.BatchNorm2d(16),
                nn.Conv2d(16, 4, 1),
            )
            self.scale, self.shift = nn.Parameter(torch.ones(16)), nn.Parameter(torch.zeros(16))
            self.heads = nn.ModuleList([nn.Conv2d(2, 3, 1) for _ in range(2)])
            self.aux = nn.Linear(16 * 4, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            y = self.a(x)
            if not self.training:
                return (self.out(torch.relu(y * self.scale[:, None, None] + self.shift[:, None, None])),)
            y = torch.relu(self.norm(y))
            aux = self.aux(nn.functional.adaptive_avg_pool2d(y, 2).view(-1, 16 * 4))
            return (aux, *(head(part) for head, part in zip(self.heads, self.out(y).split(2, 1))))

    torch.manual_seed(0)
    model = Folded().eval()
    masks = sc.prune(model, "l2", "channel", 0.5, example=X)
    small = sc.shrink(model, masks, X).model
    assert (small.norm.num_features, small.aux.in_features) == (8, 32)
    masks.apply_(model)
    for want, got in zip(model.train()(X), small.train()(X), strict=True):
        torch.testing.assert_close(got, want)


def test_a_lock_of_training_names_its_operator() -> None:
    locks = [lock for lock in sc.explain(Net(chosen), X).locks if lock.reason.startswith("in training")]
    assert [(lock.reason, lock.operator) for lock in locks] == [("in training: indexed by a tensor", "index")]


def test_a_buffer_that_only_training_reads_is_cut() -> None:
    class Scaled(Net):
        def __init__(self) -> None:
            super().__init__(lambda y: y * self.scale[None, :, None, None])
            self.register_buffer("scale", torch.arange(16.0))

    torch.manual_seed(0)
    model = Scaled()
    # the class's function reads self, so the copy of the model needs one of its own
    del model.extra
    Scaled.extra = lambda self, y: y * self.scale[None, :, None, None]  # type: ignore[assignment]
    small = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=X), X)
    assert small.model.scale.shape == (8,)
    assert small.model.train()(X).shape == (2, 4, 8, 8)


class Wrong(Net):
    """Right in evaluation mode only, once it is narrower."""

    def __init__(self, how: str) -> None:
        super().__init__(lambda y: y)
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        if not self.training or self.a.weight.shape[0] == 16:
            return y
        if self.how == "raises":
            raise RuntimeError("wide layers only")
        return {
            "shape": y[:, :2],
            "value": y + 1,
            "gradient": y.detach()
            + 0
            * self.out(
                self.b.bias[None, :16, None, None].expand(1, -1, 1, 1)[:, : self.out.weight.shape[1]]
            ).sum(),
        }[self.how]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", r"does not run on \(2, 3, 8, 8\) \[train\].*wide layers only"),
        ("shape", r"gives outputs of shapes \[\(2, 2, 8, 8\)\].*\[train\]"),
        ("value", r"does not compute what the masked one does on .* \[train\]"),
        ("gradient", r"gets no gradient at 'a.bias', 'a.weight', 'b.weight' on .* \[train\]"),
    ],
)
def test_what_fails_in_training_is_a_failed_proof(how: str, message: str) -> None:
    torch.manual_seed(0)
    model = Wrong(how).eval()
    masks = sc.prune(model, "l2", "channel", 0.5, example=X)
    done = cut(model, masks, X)
    with pytest.raises(ProofError, match=message) as caught:
        prove(model, done.model, done.masks, X, ProofOptions(every=True), plan=done.plan)
    assert "proof=sc.ProofOptions(training=False)" in str(caught.value)
    assert sc.shrink(model, masks, X, proof=ProofOptions(training=False)).model.a.out_channels == 8


def test_what_only_the_proof_finds_in_training_stays_whole_and_says_so() -> None:
    torch.manual_seed(0)
    model = Wrong("value").eval()
    masks = sc.prune(model, "l2", "channel", 0.5, example=X)
    small = sc.shrink(model, masks, X)
    assert (small.model.a.out_channels, small.model.b.out_channels) == (16, 8)
    assert "its positions mean something else in training: the shrunk Wrong" in small.locked[-1].reason
    only = sc.prune(model, "l2", "channel", 0.5, skip=["b"], example=X)
    with pytest.raises(NothingToDoError, match=r"training=False\) cuts and proves for evaluation mode alone"):
        sc.shrink(model, only, X)


def test_a_large_model_is_recorded_in_training_and_not_run() -> None:
    torch.manual_seed(0)
    model = Net(plain_noise).eval()
    done = cut(model, sc.prune(model, "l2", "channel", 0.5, example=X), X)
    proof = prove(model, done.model, done.masks, X, ProofOptions())
    assert "train" not in {case.mode for case in proof.cases}


def wide_noise(y: torch.Tensor) -> torch.Tensor:
    return y + torch.randn_like(y)


def test_equal_random_numbers_leave_values_to_compare() -> None:
    torch.manual_seed(0)
    model = Net(plain_noise).eval()
    proof = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=X), X).proof
    error = next(case.error for case in proof.cases if case.mode == "train")
    assert (proof.shapes_only, error < 1e-9) == (False, True)


def test_random_numbers_leave_shapes_and_gradients_to_compare() -> None:
    torch.manual_seed(0)
    model = Net(wide_noise).eval()
    masks = sc.prune(model, "l2", "channel", 0.5, example=X)
    state = torch.get_rng_state()
    proof = sc.shrink(model, masks, X).proof
    assert torch.equal(state, torch.get_rng_state())
    assert proof.shapes_only
    assert r"in training by shapes and gradients alone (random numbers" in str(proof)
    assert proof.holds
    assert not sc.shrink(Net(fixed_view), masks, X).proof.shapes_only


class Skipping(nn.Module):
    """Layers that training skips at random, after noise that draws as many numbers as there are channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(4, 16), nn.Linear(16, 2)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        for layer in self.layers:
            y = nn.functional.dropout(y, 0.1, self.training)
            skipped = torch.rand([]) < 0.5
            if not (self.training and skipped):
                y = y + layer(y).relu()
        return self.out(y)


def test_layers_skipped_at_random_are_no_difference() -> None:
    torch.manual_seed(0)
    model, x = Skipping().eval(), torch.randn(2, 4)
    names = ["a", *(f"layers.{index}" for index in range(6))]
    kept = {f"{name}.weight": torch.arange(16)[:, None] < 8 for name in names}
    masks = sc.Masks({name: rows.expand_as(model.get_parameter(name)) for name, rows in kept.items()})
    small = sc.shrink(model, masks, x)
    assert (small.model.a.out_features, small.proof.shapes_only) == (8, True)
    assert ("training", "train") in {(case.what, case.mode) for case in small.proof.cases}


@pytest.mark.parametrize("how", ["raises", "shape", "gradient"])
def test_what_fails_with_every_seed_is_a_failed_proof(how: str) -> None:
    class Noisy(Wrong):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            return y * torch.rand([]) if self.training else y

    torch.manual_seed(0)
    model = Noisy(how).eval()
    done = cut(model, sc.prune(model, "l2", "channel", 0.5, example=X), X)
    with pytest.raises(ProofError, match="train"):
        prove(model, done.model, done.masks, X, ProofOptions(every=True), plan=done.plan)


def test_shapes_that_random_numbers_decide_are_no_difference() -> None:
    class Fewer(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            return y[:, :, : int(torch.randint(1, 8, []))] if self.training else y

    torch.manual_seed(0)
    model = Fewer(lambda y: y + torch.randn_like(y)).eval()
    done = cut(model, sc.prune(model, "l2", "channel", 0.5, example=X), X)
    assert prove(model, done.model, done.masks, X, ProofOptions(every=True), plan=done.plan).shapes_only


def test_a_model_that_is_never_trained_is_cut_where_training_locks() -> None:
    torch.manual_seed(0)
    model = Net(lambda y: torch.fft.fft(y, dim=1).real).eval()
    rows = (torch.arange(16) < 8)[:, None, None, None]
    masks = sc.Masks({"a.weight": rows.expand_as(model.a.weight)})
    with pytest.raises(NothingToDoError, match=r"in training: .*proof=sc.ProofOptions\(training=False\)"):
        sc.shrink(model, masks, X)
    assert sc.shrink(model, masks, X, proof=ProofOptions(training=False)).model.a.out_channels == 8


def test_rounding_errors_that_grow_leave_shapes_and_gradients_to_compare() -> None:
    class Chaotic(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            return (
                y + torch.sin(1e13 * (self.a.weight.square().sum() + 1e-15 * self.a.out_channels))
                if self.training
                else y
            )

    torch.manual_seed(0)
    model = Chaotic(lambda y: y).eval()
    masks = sc.prune(model, "l2", "channel", 0.5, example=X)
    proof = sc.shrink(model, masks, X).proof
    assert proof.shapes_only
    assert math.isnan(next(case.error for case in proof.cases if case.mode == "train"))
    assert proof.holds


def test_dropout_and_batch_norm_are_left_as_they_were() -> None:
    class Dropped(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * (2 if self.training else 1)

    torch.manual_seed(0)
    model = Dropped(
        nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout2d(0.5), nn.Conv2d(16, 4, 1)
    ).eval()
    before = copy.deepcopy(model.state_dict())
    small = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=X), X)
    assert not small.proof.shapes_only
    assert ("training", "train") in {(case.what, case.mode) for case in small.proof.cases}
    assert model[3].p == small.model[3].p == 0.5
    assert not model.training
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert int(small.model[1].num_batches_tracked) == 0


def test_one_image_is_two_in_training_where_batch_norm_asks_for_that() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.out = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.norm(self.a(x)))
            return self.out(y.view(-1, 16).flip(0) if self.training else y)

    torch.manual_seed(0)
    x = torch.randn(1, 6)
    model = Head().eval()
    small = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=x), x)
    assert [case.shapes for case in small.proof.cases if case.mode == "train"] == [((2, 6),)]
    assert small.model.train()(torch.randn(3, 6)).shape == (3, 4)


class Averaging(Net):
    """Training keeps an average in a parameter, and draws numbers; the forward looks at values."""

    def __init__(self) -> None:
        super().__init__(plain_noise)
        self.mean = nn.Parameter(torch.zeros(4, 1, 1), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum().item() > 1e9:
            x = x * 2
        y = super().forward(x)
        if self.training:
            random.random(), np.random.rand()
            self.mean.data.mul_(0.9).add_(y.detach().mean((0, 2, 3))[:, None, None] * 0.1)
        return y + self.mean


@pytest.mark.parametrize("verb", ["explain", "shrink"])
def test_what_training_writes_into_weights_stays_out_of_the_model(verb: str) -> None:
    torch.manual_seed(0)
    model = Averaging().eval()
    masks = sc.prune(model, "l2", "channel", 0.5, example=X)
    before = copy.deepcopy(model.state_dict())
    states = random.getstate(), repr(np.random.get_state(legacy=False)), torch.get_rng_state().tolist()
    if verb == "shrink":
        small = sc.shrink(model, masks, X)
        assert ("training", "train") in {(case.what, case.mode) for case in small.proof.cases}
        assert not small.model.mean.any()
    else:
        sc.explain(model, X)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    after = random.getstate(), repr(np.random.get_state(legacy=False)), torch.get_rng_state().tolist()
    assert after == states


class Normed(Net):
    """Batch norms whose statistics training changes; a larger image takes another branch."""

    def __init__(self, extra: Callable[[torch.Tensor], torch.Tensor], rows: bool) -> None:
        super().__init__(extra)
        self.norm, self.last = nn.BatchNorm2d(16), nn.BatchNorm1d(4) if rows else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.extra(self.a(x)) if self.training else self.a(x)
        y = torch.relu(self.norm(y))
        if x.shape[-1] >= 24:
            y = torch.tanh(y)
        return self.last(self.out(torch.relu(self.b(y))).mean((2, 3)))


@pytest.mark.parametrize(("rows", "modes"), [(False, None), (True, None), (False, ["train", "no_grad"])])
def test_statistics_of_training_are_not_seen_by_later_runs(rows: bool, modes: list[str] | None) -> None:
    torch.manual_seed(0)
    model = Normed(lambda y: y + torch.randn_like(y), rows).eval()
    x = X[:1] if rows else X  # one row: the last norm refuses it, after the first has seen it
    proof = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=x), x, proof=modes).proof
    assert "train" in {case.mode for case in proof.cases}
    assert any(max(case.shapes[0]) > 24 for case in proof.cases) or modes


def test_weights_and_buffers_are_put_back_after_a_run_in_training() -> None:
    class Given(Normed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            if self.training:
                self.out.weight.data.mul_(2)
                self.norm.running_var = self.norm.running_var * 2
                return self.norm.running_mean
            return y

    model = Given(plain_noise, False).eval()
    before = copy.deepcopy(model.state_dict())
    [mean] = run(model, X, "train", torch.float32).outputs
    assert mean.any()  # an output that is a buffer keeps the values of training
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert not any(module.training for module in model.modules())


def test_a_model_that_needs_targets_in_training_is_proved_in_evaluation_mode() -> None:
    class Targets(Net):
        def forward(self, x: torch.Tensor, targets: object = None) -> torch.Tensor:
            if self.training and targets is None:
                raise ValueError("targets, please")
            return super().forward(x)

    torch.manual_seed(0)
    model = Targets(plain_noise).eval()
    masks = sc.prune(model, "l2", "channel", 0.5, example=X)
    proof = sc.shrink(model, masks, X).proof
    assert proof.holds
    assert "train" not in {case.mode for case in proof.cases}
    message = (
        r"masked Targets runs in none of the modes 'train' .*targets, please.*'no_grad' or 'eager' as well$"
    )
    with pytest.raises(ProofError, match=message):
        sc.shrink(model, masks, X, proof=["train"])
    said = "; not in training: the dense model does not run there on these inputs"
    assert said in str(proof)
    done = cut(model, masks, X)
    recorded = DenseRun(recording=done.recording)
    proof = prove(model, done.model, done.masks, X, ProofOptions(), plan=done.plan, how=recorded)
    assert "; not in training: the dense model cannot be recorded there without values" in str(proof)
    assert said not in str(sc.shrink(model, masks, X, proof=ProofOptions(training=False)).proof)


class Losses(Net):
    """Gives outputs in evaluation mode and takes targets in training, for which it gives losses, as detectors do."""

    def forward(self, x: torch.Tensor, targets: dict[str, torch.Tensor] | None = None) -> object:
        got = super().forward(x)
        if not self.training:
            return got
        if targets is None:
            raise ValueError("targets, please")
        return {"loss": (got.mean((2, 3)) - targets["wanted"]).square().mean()}


TARGETS = (X, {"wanted": torch.ones(2, 4)})


@pytest.mark.parametrize(
    ("extra", "left"), [(fixed_view, 16), (swapped, 16), (plain_noise, 8), (lambda y: y, 8)]
)
def test_a_call_of_its_own_proves_the_training_of_a_model_that_needs_targets(
    extra: Callable[[torch.Tensor], torch.Tensor], left: int
) -> None:
    torch.manual_seed(0)
    model = Losses(extra).eval()
    promised = sc.explain(model, X, budget=0.5, training=TARGETS).removed_parameters
    masks = sc.prune(model, "l2", "channel", 0.5, example=X, options=sc.PruneOptions(training=TARGETS))
    small = sc.shrink(model, masks, X, proof=ProofOptions(training=TARGETS))
    before, after = (sum(p.numel() for p in each.parameters()) for each in (model, small.model))
    assert (small.model.a.out_channels, before - after) == (left, promised)
    assert (small.proof.untrained, small.proof.shapes_only) == ("", False)
    case = next(case for case in small.proof.cases if case.mode == "train")
    assert (case.what, case.error < 1e-9) == ("training", True)
    masks.apply_(model)
    losses = []
    for each in (model.train(), small.model.train()):
        torch.manual_seed(1)
        losses.append(each(*TARGETS)["loss"])
    torch.testing.assert_close(*losses)
    losses[1].backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in small.model.parameters())


def test_targets_are_left_out_where_they_are_not_given() -> None:
    torch.manual_seed(0)
    model = Losses(fixed_view).eval()
    small = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=X), X)
    assert small.model.a.out_channels == 8
    said = (
        "the dense model does not run there on these inputs; give targets by proof=sc.ProofOptions(training="
    )
    assert said in str(small.proof)


def test_what_a_call_of_its_own_finds_wrong_stays_whole() -> None:
    class WrongLoss(Wrong):
        def forward(self, x: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
            if self.training and targets is None:
                raise ValueError("targets, please")
            got = super().forward(x)
            return got if targets is None else (got - targets).square().mean()

    torch.manual_seed(0)
    model = WrongLoss("value").eval()
    masks = sc.prune(model, "l2", "channel", 0.5, example=X)
    small = sc.shrink(model, masks, X, proof=ProofOptions(training=(X, torch.tensor(0.0))))
    assert (small.model.a.out_channels, small.model.b.out_channels) == (16, 8)
    assert "its positions mean something else in training" in small.locked[-1].reason


def test_a_call_that_the_model_does_not_take_in_training_is_said() -> None:
    model = Losses(plain_noise).eval()
    masks = sc.prune(model, "l2", "channel", 0.5, example=X)
    wrong = (X, {"wished": torch.ones(2, 4)})
    expected = r"^training: expected what Losses is called with in training, but .*KeyError: 'wanted'"
    with pytest.raises(DataError, match=expected):
        sc.explain(model, X, training=wrong)
    with pytest.raises(DataError, match=expected):
        sc.prune(model, "l2", "channel", 0.5, example=X, options=sc.PruneOptions(training=wrong))
    with pytest.raises(DataError, match=expected):
        sc.shrink(model, masks, X, proof=ProofOptions(training=wrong))
    for make in (sc.PruneOptions, sc.ProofOptions, lambda training: sc.explain(model, X, training=training)):
        with pytest.raises(OptionError, match=r"training: expected True .*\(images, targets\), got None"):
            make(training=None)


def test_what_is_never_trained_is_promised_chosen_and_cut_alike() -> None:
    torch.manual_seed(0)
    model = Net(swapped).eval()
    never = sc.PruneOptions(training=False)
    promised = [sc.explain(model, X, budget=0.5, training=each).removed_parameters for each in (True, False)]
    masks = sc.prune(model, "l2", "channel", 0.5, example=X, options=never)
    small = sc.shrink(model, masks, X, proof=ProofOptions(training=False))
    before, after = (sum(p.numel() for p in each.parameters()) for each in (model, small.model))
    assert promised[0] < promised[1] == before - after
    assert small.model.a.out_channels == 8


def noise_for(module: nn.Module, y: torch.Tensor) -> torch.Tensor:
    return y * 2 if module.training else y


def test_who_reads_the_mode() -> None:
    class Deep(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return noise_for(self, x)

    class Plain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    usual = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Dropout(), Plain())
    assert not reads_training(usual)
    assert reads_training(nn.Sequential(usual, Deep()))
    usual[3].register_forward_hook(lambda module, args, output: output * 2)
    assert reads_training(usual)


class Unloaded:
    """Loads a package, which is not there, when anything is asked of it."""

    def __getattribute__(self, name: str) -> object:
        raise ImportError("a package that is not installed")


unloaded: object = None


def circular(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x


@functools.lru_cache(maxsize=1)
def remembered(module: nn.Module) -> bool:
    return module.training


def test_objects_beside_a_forward_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Beside(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return unloaded.go(x) if x.dim() > 9 else circular(self, x)  # type: ignore[attr-defined]

    class Remembering(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * remembered(self)

    class Named(nn.Module):
        @property
        def noise(self) -> bool:
            return self.training

    monkeypatch.setitem(globals(), "unloaded", Unloaded())
    monkeypatch.setattr(circular, "__wrapped__", circular, raising=False)
    assert not reads_training(Beside())
    assert reads_training(Remembering())
    assert reads_training(Named())


def test_functions_of_one_text_are_told_apart_and_not_kept() -> None:
    def made(inner: Callable[..., torch.Tensor]) -> type[nn.Module]:
        def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
            return inner(self, x)

        return type("Made", (nn.Module,), {"forward": forward})

    plain, reading = made(lambda module, x: x), made(noise_for)
    assert not reads_training(plain())
    assert reads_training(reading())
    left = weakref.ref(plain), weakref.ref(plain.forward)
    del plain
    gc.collect()
    assert [each() for each in left] == [None, None]


def test_dropout_of_rows_is_nothing_extra() -> None:
    class Path(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training:
                return x
            return x * torch.empty(x.shape[0], 1, 1, 1).bernoulli_(0.9).div_(0.9)

    model = nn.Sequential(nn.Conv2d(3, 8, 1), Path(), nn.Conv2d(8, 2, 1))
    found = training_run(trace(model, X), model, X)
    assert found is not None
    assert not found.extra
    assert training_run(analyse(Net(fixed_noise), X).trace, Net(fixed_noise), X).extra  # type: ignore[union-attr]


def test_what_training_alone_gives_may_have_fewer_channels() -> None:
    """An auto-encoder gives the means and variances of its code in training, for the loss, and no others."""
    model, x = sc.models.build("vae"), torch.rand(2, 1, 28, 28)
    small = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=x), x)
    assert small.model.fc21.weight.shape == (10, 200)
    assert small.proof.shapes_only
    assert not small.locked
    small.model.train()
    assert [tuple(out.shape) for out in small.model(x)] == [(2, 784), (2, 10), (2, 10)]


def test_a_loss_without_a_form_in_float64_is_proved_in_float32() -> None:
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            y = self.b(self.a(x).relu())
            if not self.training:
                return y
            assert labels is not None
            return nn.functional.binary_cross_entropy(y.sigmoid(), labels.float())

    torch.manual_seed(0)
    model, x = Labelled().eval(), torch.randn(4, 6)
    given = (x, torch.randint(0, 2, (4, 3)))
    masks = sc.prune(model, "l2", "channel", 0.5, example=x, options=sc.PruneOptions(training=given))
    proof = sc.shrink(model, masks, x, proof=ProofOptions(training=given)).proof
    assert (proof.dtype, proof.untrained, proof.holds) == ("float32", "", True)
    assert [case.what for case in proof.cases if case.mode == "train"] == ["training"]


def test_float32_proves_a_small_model_that_alone_has_no_form_in_float64() -> None:
    class Narrow(Losses):
        def forward(self, x: torch.Tensor, targets: dict[str, torch.Tensor] | None = None) -> object:
            if self.training and x.dtype == torch.float64:
                raise NotImplementedError("not implemented for 'Double'")
            return super().forward(x, targets)

    torch.manual_seed(0)
    model, small = Losses(lambda y: y).eval(), Narrow(lambda y: y).eval()
    small.load_state_dict(model.state_dict())
    proof = prove(model, small, {}, X, ProofOptions(training=TARGETS))
    assert (proof.dtype, proof.holds) == ("float32", True)


class Counting(nn.Module):
    """Whether a head runs in training depends on the values of the targets."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        h = self.a(x).relu()
        y = self.b(h)
        if not self.training:
            return y
        assert targets is not None
        count = int(targets.sum())
        return (y * count).mean() + (self.head(h).mean() if count > 3 else 0)


def test_values_of_one_call_decide_nothing_about_the_next() -> None:
    torch.manual_seed(0)
    model, x = Counting().eval(), torch.randn(4, 6)
    masks = sc.prune(model, "l2", "channel", 0.5, example=x)
    few, many = ((x, torch.tensor(values)) for values in ([1.0, 0.0], [9.0, 9.0]))
    analyse(model, x, training=few)
    assert analyse(model, x, training=many).untouched == ()
    assert analyse(model, x, training=few).untouched == ("head.bias", "head.weight")
    for call, unreached in ((many, ()), (few, ("head.bias", "head.weight"))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(couplings, "_RECENT", weakref.WeakKeyDictionary())
            alone = sc.explain(model, x, budget=0.5, training=call).removed_parameters
        assert sc.explain(model, x, budget=0.5, training=call).removed_parameters == alone
        small = sc.shrink(model, masks, x, proof=ProofOptions(training=call))
        assert (small.model.a.out_features, small.proof.unreached) == (8, unreached)
    assert analyse(model, x) is analyse(model, x)  # what depends on shapes alone is kept


def test_what_is_never_trained_is_not_said_to_be_proved_in_training() -> None:
    class Helped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 5)

        def forward(self, x: torch.Tensor) -> object:
            h = self.a(x).relu()
            return (self.b(h), self.head(h)) if self.training else self.b(h)

    torch.manual_seed(0)
    model, x = Helped().eval(), torch.randn(4, 6)
    masks = sc.prune(model, "l2", "channel", 0.5, example=x, options=sc.PruneOptions(training=False))
    head = ("head.bias", "head.weight")
    for options, unreached in (
        (ProofOptions(), ()),
        (ProofOptions(training=False), head),
        (ProofOptions(("eager", "train"), training=False), ()),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the head is cut with the layer that it reads
            proof = sc.shrink(model, masks, x, proof=options).proof
        assert (proof.unreached, proof.untrained) == (unreached, "")


@pytest.mark.parametrize("options", [sc.PruneOptions, ProofOptions])
def test_options_that_hold_a_call_are_compared(options: type) -> None:
    one = options(training=TARGETS)
    again = options(training=(X.clone(), {"wanted": torch.ones(2, 4)}))
    assert one == again
    assert hash(one) == hash(again)
    for other in (options(), options(training=(X, {"wanted": torch.zeros(2, 4)})), options(training=X), 1):
        assert one != other
    assert options() == options() != options(training=False)
    assert options(training=X) == options(training=X.clone()) != options(training=X[:1])
    assert options(training=X) != options(training=X.double())

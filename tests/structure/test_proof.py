"""The proof holds where it says: other batches, sizes and lengths, with gradients, without, compiled, exported."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import NothingToDoError, OptionError, PlanError, ProofError
from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.cutting import CutOptions, cut
from secateur.structure.proof import ProofDomain, as_proof_options
from secateur.structure.proof_inputs import ProofInput, affordable
from secateur.structure.proving import DenseRun, ShapeProofError, prove
from secateur.structure.shrunk_files import load_shrunk
from secateur.structure.trace.flags import flipped, ways
from secateur.structure.trace.other_shapes import other_shapes, shapes_of
from secateur.structure.trace.trace import trace


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Linear(8, 4),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


class Wrong(Net):
    """Right on the shape it was cut on only, once it is narrower."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        if self.a.weight.shape[0] == 8:
            return y
        if self.how == "size" and x.shape[-1] != 16:
            return y + 1
        if self.how == "batch" and x.shape[0] != 2:
            raise RuntimeError("two images at a time")
        if self.how == "no_grad" and not torch.is_grad_enabled():
            return y[:, :2]
        if self.how == "compile" and torch.compiler.is_compiling():
            return y * 2
        if self.how == "graphs":
            torch._dynamo.graph_break()
            return y * 1.0
        if self.how == "export" and torch.compiler.is_exporting():
            return y - 1
        return y


X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def shrunk(model: nn.Module, x: object = X, **options: object) -> sc.structure.shrink.Shrunk:  # type: ignore[name-defined]
    model.eval()
    return sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=x), x, **options)  # type: ignore[arg-type]


def test_by_default_other_shapes_are_proved_in_both_modes() -> None:
    proof = shrunk(Net()).proof
    cases = {(case.what, case.shapes, case.mode) for case in proof.cases}
    for mode in ("eager", "no_grad"):
        assert ("example", ((2, 3, 16, 16),), mode) in cases
        assert ("batch", ((1, 3, 12, 8),), mode) in cases
        assert ("size", ((2, 3, 8, 12),), mode) in cases
    assert proof.holds
    assert all(case.error <= proof.error for case in proof.cases)
    assert "(2, 3, 16, 16) [eager, no_grad]" in str(proof)
    assert "(1, 3, 12, 8) [eager, no_grad]" in str(proof)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("size", r"does not compute what the masked one does on \(1, 3, 12, 8\) \[eager\]"),
        (
            "batch",
            r"does not run on \(1, 3, 12, 8\) .*the dense one does \(RuntimeError: two images at a time\)",
        ),
        ("no_grad", r"outputs of shapes \[\(\d, 2\)\], the masked one \[\(\d, 4\)\], on \(\d, .*\[no_grad\]"),
        ("compile", r"does not compute what the masked one does on .* \[compile\]"),
        ("graphs", r"compiles into 2 graphs on .* \[compile\], the dense one into 1"),
        ("export", r"does not compute what the masked one does on .* \[export\]"),
    ],
)
def test_what_fails_elsewhere_is_a_failed_proof(how: str, message: str) -> None:
    torch.manual_seed(0)
    model = Wrong(how).eval()
    mode = {"size": "eager", "batch": "eager", "graphs": "compile"}.get(how, how)
    done = cut(model, sc.prune(model, "l2", "channel", 0.5, example=X), X)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ProofError, match=message) as caught:
        prove(model, done.model, done.masks, X, as_proof_options([mode]))
    assert "the model is unchanged" in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert shrunk(model, proof=sc.ProofOptions(("eager",), other_shapes=False)).proof.holds


@pytest.mark.parametrize("how", ["size", "batch"])
def test_what_fails_at_another_shape_only_stays_whole_and_says_so(how: str) -> None:
    small = shrunk(Wrong(how))
    assert small.model.a.out_channels == 8
    assert small.model.b.out_channels == 4
    assert small.locked[-1].path == "a"
    assert "depends on the shape of the input: the shrunk Wrong does not" in small.locked[-1].reason
    assert small.proof.holds


def test_what_fails_at_the_examples_shape_is_an_error_of_shrink() -> None:
    with pytest.raises(ProofError, match=r"\[no_grad\].*Cut alone, group 'a' breaks it"):
        shrunk(Wrong("no_grad"))


def test_every_mode_can_be_asked_for() -> None:
    proof = shrunk(Net(), proof=["eager", "no_grad", "compile", "export"]).proof
    assert {case.mode for case in proof.cases} == {"eager", "no_grad", "compile", "export"}
    assert len(proof.cases) == 4 * len({case.shapes for case in proof.cases})


def test_the_words_of_modes_are_checked() -> None:
    with pytest.raises(OptionError, match=r"expected modes among 'eager', .* got \['quick'\]"):
        as_proof_options(["quick"])
    with pytest.raises(OptionError, match="tolerance: expected a positive number, got 0"):
        sc.ProofOptions(tolerance=0)
    assert as_proof_options("compile").modes == ("compile",)


def test_encoder_layers_do_without_gradients_what_they_do_with_them() -> None:
    """torch's fast path reads the weights of attention as if no head had left."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    x = torch.randn(2, 5, 32)
    small = shrunk(layer, x)
    assert small.model.self_attn.num_heads == 2
    assert {case.mode for case in small.proof.cases if case.what != "example"} == {"eager", "no_grad"}
    stack = nn.TransformerEncoder(layer, 2)
    deep = shrunk(stack, x, proof=["eager", "no_grad"])
    with torch.no_grad():
        fast = deep.model.eval()(x)
    torch.testing.assert_close(fast, deep.model(x))


def test_padding_masks_do_not_fail_the_proof_of_a_fast_path() -> None:
    torch.manual_seed(0)
    stack = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 3:] = True
    example = {"src": torch.randn(2, 5, 32), "src_key_padding_mask": mask}
    assert shrunk(stack, example).proof.holds


def test_the_domain_travels_in_the_plan(tmp_path) -> None:
    small = shrunk(Net())
    plan = ShrinkPlan.from_json(small.plan.to_json())
    assert plan == small.plan
    assert plan.proof == small.proof.domain
    assert "error" not in json.dumps(plan.proof.to_dict())
    small.save(tmp_path / "small.safetensors")
    load_shrunk(tmp_path / "small.safetensors", into=Net())
    sc.save(small.model, tmp_path / "small.sct", plan=small.plan)
    sc.load(tmp_path / "small.sct", into=Net())
    old = {key: value for key, value in small.plan.to_dict().items() if key != "proof"}
    assert ShrinkPlan.from_dict(old).proof is None


@pytest.mark.parametrize(
    "change",
    [
        {"cases": [[[[2, -3]], ["eager"]]]},
        {"cases": [[[[2, 3]], ["rm -rf"]]]},
        {"cases": 3},
        {"tolerance": "nan"},
        {"tolerance": -1},
        {"dtype": "object"},
    ],
)
def test_a_damaged_domain_is_refused(change: dict) -> None:
    good = ProofDomain("float64", 1e-9, ((((2, 3),), ("eager",)),))
    assert ProofDomain.from_dict(good.to_dict()) == good
    with pytest.raises(PlanError, match="a damaged plan"):
        ShrinkPlan.from_dict({**ShrinkPlan({}).to_dict(), "proof": {**good.to_dict(), **change}})


class PositionAttention(nn.Module):
    """As in segmentation models: a reshape of (pixels, channels) makes of a channel what the image's size says."""

    def __init__(self, width: int, pixels: int) -> None:
        super().__init__()
        self.top, self.center = nn.Conv2d(width, pixels, 1), nn.Conv2d(width, pixels, 1)
        self.bottom, self.out = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, _, h, w = x.shape
        top, center = self.top(x).flatten(2), self.center(x).flatten(2).transpose(1, 2)
        bottom = self.bottom(x).flatten(2).transpose(1, 2)
        weights = torch.softmax((center @ top).view(b, -1), 1).view(b, h * w, h * w)
        return self.out(x + (weights @ bottom).reshape(b, -1, h, w))


def test_a_group_that_means_something_else_at_another_size_stays() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), PositionAttention(32, 16), nn.Conv2d(32, 4, 1)
    ).eval()
    x, other = torch.randn(1, 3, 4, 4), torch.randn(2, 3, 8, 8)
    small = shrunk(model, x)
    assert any("depends on the shape of the input" in lock.reason for lock in small.locked)
    assert sum(p.numel() for p in small.model.parameters()) < sum(p.numel() for p in model.parameters())
    masks = sc.prune(model, "l2", "channel", 0.5, example=x)
    done = sc.shrink(model, masks, x, proof=sc.ProofOptions(other_shapes=False))
    with pytest.raises(
        ShapeProofError, match=r"leave them out with proof=sc.ProofOptions\(other_shapes=False\)"
    ):
        prove(model, done.model, masks, x)
    names = {lock.path for lock in small.locked if lock.operator == "proof"}
    only = {group.name for group in sc.explain(model, x).groups} - names
    again = cut(model, masks, x, CutOptions(only=only))
    again.masks.apply_(model)
    torch.testing.assert_close(small.model(other), model(other))


class Folding(nn.Module):
    """Flattens with -1 for the batch: an image twice as large becomes several rows, which mean nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.pool, self.out = nn.Conv2d(3, 16, 3, padding=1), nn.MaxPool2d(2), nn.Linear(16 * 64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.pool(torch.relu(self.a(x))).view(-1, 16 * 64))


@pytest.mark.parametrize("rows", [1, 3])
def test_a_size_that_parts_one_input_into_several_rows_is_not_accepted(rows: int) -> None:
    x = torch.randn(rows, 3, 16, 16)
    model = Folding().eval()
    assert model(torch.randn(rows, 3, 32, 32)).shape == (4 * rows, 10)
    assert {other.what for other in other_shapes(model, x)} == {"batch"}
    small = shrunk(model, x)
    assert (small.model.a.out_channels, small.locked) == (8, ())
    assert small.proof.holds


def test_several_rows_for_each_input_are_accepted_where_the_example_has_them() -> None:
    """Pixels as rows: 256 for the example, 1,024 for an image twice as large."""

    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = nn.Conv2d(3, 8, 1), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.a(x).permute(0, 2, 3, 1).reshape(-1, 8))

    assert "size" in {other.what for other in other_shapes(Pixels(), torch.randn(1, 3, 16, 16))}


def test_where_every_group_depends_on_the_shape_the_error_says_so_and_what_to_do() -> None:
    """Only layer a is pruned, whose cut is wrong at another size."""
    model = Wrong("size").eval()
    masks = sc.prune(model, "l2", "channel", 0.5, skip=["b"], example=X)
    with pytest.raises(
        NothingToDoError, match="removed: a: the meaning of its positions depends on the shape"
    ) as caught:
        sc.shrink(model, masks, X)
    assert str(caught.value).endswith(
        "proof=sc.ProofOptions(other_shapes=False) cuts and proves for the shape and flags of the example alone"
    )
    alone = sc.ProofOptions(other_shapes=False)
    assert sc.shrink(model, masks, X, proof=alone).model.a.out_channels == 4


def test_shapes_are_found_by_trying() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places, self.out = nn.Embedding(50, 8), nn.Embedding(10, 8), nn.Linear(8, 3)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
            return self.out((x * mask[..., None]).sum(1))

    ids, mask = torch.randint(0, 50, (2, 10)), torch.ones(2, 10)
    found = [(other.what, shapes_of(other.example)[0]) for other in other_shapes(Tokens(), (ids, mask))]
    assert found == [
        ("batch", (1, 5)),
        ("size", (2, 5)),
        ("size", (2, 15)),
    ]  # the table's end shows when it runs
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    assert [other.what for other in other_shapes(fixed, torch.zeros(2, 3, 4, 4))] == ["batch"]
    proof = shrunk(Tokens(), (ids, mask)).proof
    assert {case.shapes for case in proof.cases} == {((2, 10), (2, 10)), ((1, 5), (1, 5)), ((2, 5), (2, 5))}


@pytest.mark.parametrize("size", [32, 63, 64, 84, 96, 128])
def test_square_images_of_every_size_are_proved_wider_and_taller(size: int) -> None:
    """Height and width that a cut mixes up are the same number on square images."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    found = other_shapes(model, torch.zeros(1, 3, size, size))
    assert any(shapes_of(other.example)[0][2] < shapes_of(other.example)[0][3] for other in found)
    assert any(shapes_of(other.example)[0][2] > shapes_of(other.example)[0][3] for other in found)


def test_the_dense_model_decides_what_is_accepted() -> None:
    """A table of positions is not looked at on meta tensors; the dense model itself refuses, and nothing is claimed."""

    class Short(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not x.is_meta and x.shape[-1] != 16:
                raise RuntimeError("16 pixels, please")
            return super().forward(x)

    proof = shrunk(Short()).proof
    assert {case.shapes for case in proof.cases} == {((2, 3, 16, 16),)}


def test_large_inputs_are_run_in_one_mode_and_cost_little_more_than_the_example() -> None:
    x = torch.zeros(1, 3, 32, 32)
    modes = ("eager", "no_grad")

    def chosen(*others: torch.Tensor) -> list[tuple[int, tuple[str, ...]]]:
        inputs = [ProofInput("example", x, modes), *(ProofInput("size", other, modes) for other in others)]
        return [(each.example.shape[0], each.modes) for each in affordable(inputs)]

    assert chosen(x[:, :, :8]) == [(1, modes), (1, modes)]
    assert chosen(torch.cat([x, x])) == [(1, ("eager",)), (2, ("no_grad",))]
    assert chosen(torch.cat([x, x]), x) == [(1, ("eager",)), (2, ("no_grad",))]
    assert chosen(torch.cat([x, x, x])) == [(1, modes)]


class Anchored(Net):
    """Keeps a grid for the last input, as detectors do; making one reads values, which meta tensors do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.strides, self.shape = torch.tensor([8.0]), None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b(torch.relu(self.a(x)))
        if self.shape != y.shape[-2:]:
            self.shape, self.grid = y.shape[-2:], torch.full(y.shape[-2:], self.strides[0].item())
        return self.fc((torch.relu(y) * self.grid).mean((2, 3)))


def test_what_a_forward_keeps_for_the_last_input_decides_nothing() -> None:
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    used = Anchored()
    with torch.no_grad():
        used(x)
    fresh = shrunk(Anchored(), x).proof
    assert [case.shapes for case in fresh.cases if case.what == "size"]
    assert {case.shapes for case in shrunk(used, x).proof.cases} == {case.shapes for case in fresh.cases}
    assert fresh.refused == ()


def test_a_model_that_keeps_its_first_shape_is_proved_as_a_fresh_one() -> None:
    class Once(Net):
        grid = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.grid is None:
                self.grid = torch.ones(x.shape[-2:], device=x.device)
            return super().forward(x * self.grid)

    proof = shrunk(Once()).proof
    assert len({case.shapes for case in proof.cases}) > 1


def test_the_proof_says_which_shapes_were_refused_and_why() -> None:
    class Short(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[-1] != 16:
                raise RuntimeError("16 pixels, please")
            return super().forward(x)

    small = shrunk(Short())
    assert small.proof.refused
    assert all(each.why == "RuntimeError: 16 pixels, please" for each in small.proof.refused)
    (first, *_) = small.proof.refused[0].shapes
    assert f"; not on {first}" in str(small.proof)
    assert "which the dense model refuses" in str(small.proof)
    assert f"refused by the dense model: {first} (RuntimeError: 16 pixels, please)" in str(small)
    assert "refuses" not in str(shrunk(Net()).proof)


class Choosing(nn.Module):
    """A flag decides which of two layers runs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.out = nn.Linear(8, 2)
        self.spare = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor, deep: object) -> torch.Tensor:
        y = self.a(x).relu()
        return self.out((self.b(y) if deep else self.c(y)).relu())


@pytest.mark.parametrize("flag", [True, False, torch.tensor(True)])
def test_both_ways_of_a_flag_are_cut_and_proved(flag: object) -> None:
    torch.manual_seed(0)
    model, x = Choosing().eval(), torch.randn(3, 4)
    masks = sc.prune(model, "l2", "channel", 0.5, example=(x, flag))
    small = sc.shrink(model, masks, (x, flag))
    assert [small.model.get_submodule(name).in_features for name in "bc"] == [8, 8]
    assert {case.what for case in small.proof.cases} >= {"example", "flag"}
    assert small.proof.unreached == ("spare.bias", "spare.weight")
    masks.apply_(model)
    for each in (True, False):
        torch.testing.assert_close(small.model(x, each), model(x, each))


class Branches(nn.Module):
    """A name decides which branch reads the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 16)
        self.branches = nn.ModuleDict({"left": nn.Linear(16, 8), "right": nn.Linear(16, 8)})
        self.out = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, scale: float = 1.0, branch: str = "left") -> torch.Tensor:
        return self.out(self.branches[branch](self.a(x).relu()).relu()) * scale


class NamedOnly(Branches):
    def forward(self, x: torch.Tensor, *, branch: str = "left") -> torch.Tensor:
        return super().forward(x, branch=branch)


@pytest.mark.parametrize(
    ("kind", "example"),
    [
        (Branches, lambda x: x),
        (Branches, lambda x: (x, 2.0)),
        (Branches, lambda x: (x, 1.0, "right")),
        (Branches, lambda x: {"x": x}),
        (Branches, lambda x: {"x": x, "branch": "right"}),
        (NamedOnly, lambda x: x),
        (NamedOnly, lambda x: {"x": x}),
    ],
)
def test_every_branch_that_a_name_chooses_is_cut_and_proved(kind, example) -> None:
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(3, 4)
    masks = sc.prune(model, "l2", "channel", 0.5, example=example(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = sc.shrink(model, masks, example(x))
    assert [each.in_features for each in small.model.branches.values()] == [8, 8]
    assert small.proof.unreached == ()
    masks.apply_(model)
    for branch in ("left", "right"):
        torch.testing.assert_close(small.model(x, branch=branch), model(x, branch=branch))


def test_defaults_without_names_are_left_alone() -> None:
    class Positional(nn.Module):
        def forward(self, x: torch.Tensor, deep: bool = False, /, wide: bool = True) -> torch.Tensor: ...

    class Any(nn.Module):
        def forward(self, *x: torch.Tensor, deep: bool = False) -> torch.Tensor: ...

    assert flipped((1,), Positional()) == flipped((1,), Any()) == []
    assert flipped((1, True), Positional()) == [(1, False)]


def test_a_cut_past_layers_that_no_input_reaches_is_said() -> None:
    torch.manual_seed(0)
    model, x = Choosing().eval(), (torch.randn(3, 4), 1)  # no other number can be guessed
    masks = sc.prune(model, "l2", "channel", 0.5, example=x)
    with pytest.warns(UserWarning, match=r"c, spare: not reached by the example.*skip= in prune"):
        sc.shrink(model, masks, x)


def test_layers_that_no_input_reaches_are_named() -> None:
    torch.manual_seed(0)
    model, x = Choosing().eval(), (torch.randn(3, 4), 1)
    proof = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=x), x).proof
    assert proof.unreached == ("c.bias", "c.weight", "spare.bias", "spare.weight")
    assert "; not of c, spare, which these inputs do not reach" in str(proof)


def test_a_flag_that_no_case_turns_round_reaches_nothing() -> None:
    torch.manual_seed(0)
    model, x = Choosing().eval(), (torch.randn(3, 4), True)
    masks = sc.prune(model, "l2", "channel", 0.5, example=x)
    proof = sc.shrink(model, masks, x, proof=sc.ProofOptions(other_shapes=False)).proof
    assert "flag" not in {case.what for case in proof.cases}
    assert proof.unreached == ("c.bias", "c.weight", "spare.bias", "spare.weight")


def test_a_layer_that_a_flag_alone_keeps_whole_is_said_to_depend_on_the_flag() -> None:
    class Counting(nn.Module):
        """With the flag, another layer answers, and the number of channels decides what."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 16), nn.Linear(16, 2), nn.Linear(16, 2)

        def forward(self, x: torch.Tensor, scaled: bool) -> torch.Tensor:
            y = self.a(x).relu()
            return self.c(y) * (2.0 if self.a.weight.shape[0] < 16 else 1.0) if scaled else self.b(y)

    torch.manual_seed(0)
    model, x = Counting().eval(), (torch.randn(3, 4), False)
    masks = sc.prune(model, "l2", "channel", 0.5, example=x)
    with pytest.raises(
        NothingToDoError,
        match=r"flag is turned round: .* on \(3, 4\) with scaled=True \[.*other_shapes=False\) cuts",
    ):
        sc.shrink(model, masks, x)
    small = sc.shrink(model, masks, x, proof=sc.ProofOptions(other_shapes=False))
    assert small.model.a.out_features == 8


@pytest.mark.parametrize("say", [lambda x: x, lambda x: (x, False), lambda x: {"x": x, "ranked": False}])
def test_a_lock_that_a_flag_alone_meets_names_the_flag(say) -> None:
    class Ranked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 16), nn.Linear(16, 2), nn.Linear(16, 2)

        def forward(self, x: torch.Tensor, ranked: bool = False) -> torch.Tensor:
            y = self.a(x).relu()
            return self.c(y.cumsum(-1)) if ranked else self.b(y)

    model, x = Ranked().eval(), say(torch.randn(3, 4))
    found = {lock.reason: lock.axes for lock in sc.explain(model, x).locks}
    assert ("a.weight", 0) in found["cumsum along the axis, with ranked=True"]
    assert not any("with ranked" in reason for reason, axes in found.items() if ("b.weight", 0) in axes)
    with pytest.raises(NothingToDoError, match="cumsum along the axis, with ranked=True"):
        sc.prune(model, "l2", "channel", 0.5, example=x)


@pytest.mark.parametrize("other_shapes", [True, False])
def test_a_buffer_that_a_flag_alone_reads_is_cut_with_the_rest(other_shapes: bool) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 2)
            self.register_buffer("scale", torch.rand(16))

        def forward(self, x: torch.Tensor, scaled: bool = False) -> torch.Tensor:
            y = self.a(x).relu()
            return self.b(y * self.scale if scaled else y)

    model, x = Scaled().eval(), torch.randn(3, 4)
    masks = sc.prune(model, "l2", "channel", 0.5, example=x)
    small = sc.shrink(model, masks, x, proof=sc.ProofOptions(other_shapes=other_shapes)).model
    assert small.scale.shape == (8,)
    masks.apply_(model)
    torch.testing.assert_close(small(x, scaled=True), model(x, scaled=True))


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ((torch.zeros(2), {"deep": (True, 1)}), ["options['deep'][0]=False", "wide=True"]),
        ({"x": torch.zeros(2), "options": [False]}, ["options[0]=True", "wide=True"]),
        ([torch.zeros(2), True], ["x[1]=False", "wide=True"]),
        ((torch.zeros(2), None, torch.tensor(False)), ["wide=tensor(True)"]),
    ],
)
def test_a_flag_is_said_by_the_name_of_its_argument_and_its_place_in_it(example, said) -> None:
    class Takes(nn.Module):
        def forward(self, x, options=None, wide=False): ...

    assert [text for _, text in ways(example, Takes())] == said


def test_a_proof_that_fails_with_a_flag_says_which_and_what_to_do() -> None:
    model, x = Choosing().eval(), (torch.randn(3, 4), False)
    wrong = copy.deepcopy(model)
    wrong.b = nn.Linear(15, 8)
    how = DenseRun("meta", (), trace(model, x))
    with pytest.raises(ShapeProofError) as caught:
        prove(model, wrong, {}, x, sc.ProofOptions(), how=how)
    assert str(caught.value) == (
        "the shrunk Choosing does not run on (3, 4) with deep=True [eager], which the dense one does (RuntimeError: "
        "mat1 and mat2 shapes cannot be multiplied (3x16 and 15x8)); the model is unchanged. If it is never called "
        "with deep=True, leave that out with proof=sc.ProofOptions(other_shapes=False)."
    )


def test_a_flag_that_the_dense_model_refuses_is_named() -> None:
    class Rows(nn.Module):
        """Without the flag, numbers are looked up in a table that does not hold them."""

        def __init__(self) -> None:
            super().__init__()
            self.words, self.few = nn.Embedding(10, 16), nn.Embedding(4, 16)
            self.a, self.b = nn.Linear(16, 8), nn.Linear(16, 8)

        def forward(self, ids: torch.Tensor, deep: bool) -> torch.Tensor:
            y = self.words(ids)
            return self.a(y) if deep else self.b(y + self.few(ids))

    torch.manual_seed(0)
    model, x = Rows().eval(), (torch.tensor([[1, 2, 9, 0, 3]]), True)
    proof = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=x), x).proof
    assert proof.unreached == ("b.bias", "b.weight", "few.weight")
    [refused] = [each for each in proof.refused if each.flag]
    assert refused.why == "IndexError: index out of range in self"
    assert "; not on (1, 5) with deep=False, which the dense model refuses" in str(proof)
    assert str(refused).startswith("(1, 5) with deep=False (IndexError")

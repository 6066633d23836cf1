"""`share(data=...)`: hand-worked moves, and errors of outputs that fall."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import OptionError
from secateur.quantize import Kmeans, Quantizer, Uniform
from secateur.quantize.calibrated import Quadratic, descended
from secateur.quantize.rates import entropy_bits
from secateur.quantize.share import ShareOptions
from secateur.quantize.tables import table_codebook
from secateur.quantize.tuned_values import LearntAssignments, SharedWeight

share_module = importlib.import_module("secateur.quantize.share")
calibrated_module = importlib.import_module("secateur.quantize.calibrated")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, groups=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(torch.relu(self.deep(x)).mean((2, 3)))


def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, 3, 8, 8, generator=generator) for _ in range(3)]


def error(one: nn.Module, two: nn.Module, data: list[torch.Tensor]) -> float:
    with torch.no_grad():
        return sum(float((one(x) - two(x)).square().mean()) for x in data)


def test_two_alike_inputs_share_one_value() -> None:
    # Two inputs that agree, weights 0.5 and 0.5, values 0 and 1: one weight takes it all.
    hessian = torch.tensor([[[1.0, 1.0], [1.0, 1.0]]], dtype=torch.float64)
    goal = hessian @ torch.full((1, 2, 1), 0.5, dtype=torch.float64)
    free = torch.ones(1, 2, 1, dtype=torch.bool)
    values = torch.tensor([0.0, 1.0], dtype=torch.float64)
    found = descended(Quadratic(hessian, goal), torch.ones(1, 2, 1, dtype=torch.long), values, free, None)
    assert found.flatten().tolist() == [0, 1]


def test_a_dear_value_must_earn_its_bits() -> None:
    hessian = torch.ones(1, 1, 1, dtype=torch.float64)
    goal = torch.full((1, 1, 1), 0.6, dtype=torch.float64)
    free, start = torch.ones(1, 1, 1, dtype=torch.bool), torch.zeros(1, 1, 1, dtype=torch.long)
    values = torch.tensor([0.0, 1.0], dtype=torch.float64)
    # Errors 0.36 and 0.16: the second is better by 0.2.
    for price, expected in ((0.19, 1), (0.21, 0)):
        prices = torch.tensor([0.0, price], dtype=torch.float64)
        assert int(descended(Quadratic(hessian, goal), start, values, free, prices)) == expected


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_outputs_are_nearer_than_without_data(bits: int) -> None:
    torch.manual_seed(0)
    model = Net().eval()
    plain, found = sc.share(model, bits=bits), sc.share(model, bits=bits, data=images())
    assert error(found.model, model, images()) < (0.6 if bits < 8 else 1.05) * error(
        plain.model, model, images()
    )
    for name, book in found.codebooks.items():
        weight = found.model.get_parameter(name)
        assert torch.equal(weight, book.tensor())
        assert len(weight.unique()) <= 2**bits
        assert bool((book.values[1:] > book.values[:-1]).all())


def test_learnt_assignments_move_weights_to_other_values_and_come_nearer(tmp_path) -> None:
    torch.manual_seed(0)
    model, data = Net().eval(), images()
    masks = sc.prune(model, budget=0.3)
    sparse = masks.apply(model)
    tune = sc.Tuning(passes=20, lr=0.05)
    plain = sc.share(sparse, 2, masks, data=data, options=ShareOptions(dense=model))
    fixed = sc.share(sparse, 2, masks, data=data, options=ShareOptions(dense=model, tune=tune))
    options = ShareOptions(dense=model, tune=tune, assignments="learnt")
    learnt = sc.share(sparse, 2, masks, data=data, options=options)
    assert error(model, learnt.model, data) < error(model, plain.model, data)
    for name, book in learnt.codebooks.items():
        weight = learnt.model.get_parameter(name).detach()
        assert torch.equal(weight, book.tensor())
        assert not bool(weight[~masks[name]].any())
        assert len(torch.unique(weight[masks[name]])) <= 4
    assert any(
        not torch.equal(book.indices, plain.codebooks[name].indices)
        for name, book in learnt.codebooks.items()
    )
    assert all(torch.equal(fixed.codebooks[n].indices, book.indices) for n, book in plain.codebooks.items())
    sc.save(learnt.model, tmp_path / "learnt.sct")
    again = sc.load(tmp_path / "learnt.sct", into=Net())
    assert torch.equal(again.eval()(data[0]), learnt.model(data[0]))


def test_zeros_stay_and_the_file_gives_the_same_model(tmp_path) -> None:
    torch.manual_seed(0)
    dense = Net().eval()
    masks = sc.prune(dense, budget=0.6)
    sparse = sc.compensate(dense, masks, images()).model
    shared = sc.share(sparse, bits=3, data=images(), options=ShareOptions(dense=dense, tune=2))
    for name, mask in masks.items():
        weight = shared.model.get_parameter(name)
        assert not bool(weight[~mask].any())
        assert len(weight.unique()) <= 9
        assert torch.equal(weight, shared.codebooks[name].tensor())
    again = sc.share(sparse, bits=3, data=images(), options=ShareOptions(dense=dense))
    assert error(shared.model, dense, images()) < error(again.model, dense, images())
    sc.save(shared.model, tmp_path / "small.sct")
    loaded = sc.load(tmp_path / "small.sct", into=Net()).eval()
    assert torch.equal(loaded(images()[0]), shared.model(images()[0]))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("assignments", ["fixed", "learnt"])
def test_a_codebook_for_each_channel_comes_nearer_and_is_tuned(
    masked: bool, assignments: Any, tmp_path
) -> None:
    torch.manual_seed(0)
    dense, data = Net().eval(), images()
    masks = sc.prune(dense, budget=0.4)
    model = masks.apply(dense) if masked else dense
    plain = sc.share(model, 2, per="channel")
    tensor = sc.share(model, 2, data=data, options=ShareOptions(dense=dense))
    found = sc.share(model, 2, data=data, per="channel", options=ShareOptions(dense=dense))
    assert error(found.model, dense, data) < 0.7 * error(plain.model, dense, data)
    assert error(found.model, dense, data) < error(tensor.model, dense, data)
    options = ShareOptions(dense=dense, tune=sc.Tuning(passes=10, lr=0.02), assignments=assignments)
    tuned = sc.share(model, 2, data=data, per="channel", options=options)
    assert error(tuned.model, dense, data) < error(found.model, dense, data)
    for shared in (found, tuned):
        for name, book in shared.codebooks.items():
            weight = shared.model.get_parameter(name)
            assert torch.equal(weight, book.tensor())
            assert book.axis == 0
            for channel, row in enumerate(weight):
                low, high = book.offsets[channel : channel + 2]
                assert set(book.indices[channel].flatten().tolist()) <= set(range(low, high))
                assert len(row[row != 0].unique()) <= 4
            assert not masked or not bool(weight[~masks[name]].any())
    sc.save(tuned.model, tmp_path / "channels.sct")
    again = sc.load(tmp_path / "channels.sct", into=Net()).eval()
    assert torch.equal(again(data[0]), tuned.model(data[0]))


def test_layers_of_one_group_keep_one_list_of_values() -> None:
    torch.manual_seed(0)
    model, data = Net().eval(), images()
    groups = [["conv", "deep"]]
    plain = sc.share(model, 3, per=groups)
    found = sc.share(model, 3, per=groups, data=data, options=ShareOptions(tune=3))
    assert error(found.model, model, data) < 0.7 * error(plain.model, model, data)
    one, two = (found.codebooks[f"{name}.weight"] for name in ("conv", "deep"))
    assert one.group == two.group == "conv+deep"
    assert torch.equal(one.values, plain.codebooks["conv.weight"].values)
    assert torch.equal(one.values, two.values)
    table = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 4))
    both = sc.share(table, 2, per="model", data=[torch.arange(30)[None]])
    weights = [both.model.get_parameter(name).flatten() for name in both.codebooks]
    assert len(torch.cat(weights).unique()) <= 4


@pytest.mark.parametrize("method", [Kmeans(3), Uniform(step=0.05)], ids=["kmeans", "uniform"])
def test_members_not_called_or_all_masked_keep_their_groups_values(method: Quantizer, tmp_path) -> None:
    torch.manual_seed(0)
    model = Net().eval()
    model.spare = nn.Linear(6, 4)  # the forward does not call it
    model.deep.weight.data.zero_()
    groups = [["conv", "deep", "spare"]]
    found = sc.share(model, method=method, per=groups, data=images())
    books = [found.codebooks[f"{name}.weight"] for name in ("conv", "deep", "spare")]
    assert {book.group for book in books} == {"conv+deep+spare"}
    assert all(torch.equal(book.values, books[0].values) for book in books)
    assert not found.model.deep.weight.any()
    assert torch.equal(found.model.spare.weight, books[2].tensor())
    sc.save(found.model, tmp_path / "small.sct")
    loaded = sc.load(tmp_path / "small.sct", into=copy.deepcopy(model))
    assert all(map(torch.equal, loaded.state_dict().values(), found.model.state_dict().values()))


def test_a_layer_without_weights_left_has_one_value_which_is_zero() -> None:
    model = Net().eval()
    model.deep.weight.data.zero_()
    book = sc.share(model, 3, data=images()).codebooks["deep.weight"]
    assert book.values.tolist() == [0.0]
    assert book.reserved
    assert not bool(book.indices.any())


def test_masked_members_of_a_group_come_nearer_on_data_than_without() -> None:
    """The values begin with the 0.0 of masked weights: every index counts from there."""
    torch.manual_seed(0)
    dense, data = Net().eval(), images()
    sparse = sc.prune(dense, budget=0.4).apply(dense)
    plain = sc.share(sparse, 3, per=[["conv", "deep"]])
    found = sc.share(sparse, 3, per=[["conv", "deep"]], data=data)
    assert error(found.model, sparse, data) < error(plain.model, sparse, data)
    zero = sparse.conv.weight == 0
    assert bool(zero.any())
    assert not bool(found.model.conv.weight[zero].any())


def test_values_that_would_not_ascend_stay_as_they_are() -> None:
    """Each of two inputs asks for the other's value."""
    hessian = torch.eye(2, dtype=torch.float64)[None]
    values = torch.tensor([0.0, 1.0], dtype=torch.float64)
    places, free = torch.tensor([[[0], [1]]]), torch.ones(1, 2, 1, dtype=torch.bool)

    def solved(one: float, two: float) -> list[float]:
        goal = torch.tensor([[[one], [two]]], dtype=torch.float64)
        return calibrated_module.solved_values(Quadratic(hessian, goal), places, values, free).tolist()

    assert solved(1.0, 0.0) == [0.0, 1.0]
    assert solved(0.25, 2.0) == pytest.approx([0.25, 2.0])


@pytest.mark.parametrize(("most", "moved"), [(3, False), (4, True)])
def test_values_are_solved_up_to_a_number_of_them(
    most: int, moved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = Net().eval()
    monkeypatch.setattr(calibrated_module, "SOLVED_VALUES", most)
    plain = sc.share(model, 2).codebooks["conv.weight"].values
    found = sc.share(model, 2, data=images()).codebooks["conv.weight"].values
    assert torch.allclose(plain, found, atol=1e-5) is not moved


def test_channels_of_transposed_convolutions_lie_along_their_second_axis() -> None:
    torch.manual_seed(0)
    model = nn.ConvTranspose2d(4, 6, 3)
    data = [torch.randn(8, 4, 5, 5)]
    found = sc.share(model, 1, per="channel", data=data)
    assert found.codebooks["weight"].axis == 1
    assert all(len(found.model.weight[:, channel].unique()) <= 2 for channel in range(6))
    with pytest.raises(OptionError, match="grouped transposed convolutions"):
        sc.share(nn.ConvTranspose2d(4, 6, 3, groups=2), 1, per="channel", data=data)


def test_steps_of_coded_bits_are_nearer_than_a_codebook_of_as_many_bits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96))
    nn.init.normal_(model[0].weight)
    inputs = [torch.randn(600, 64)]
    steps = sc.share(model, method="uniform", coded_bits=2.8, data=inputs)
    values = sc.share(model, bits=3, data=inputs)

    def bits(shared: sc.Shared) -> float:
        counts = torch.bincount(shared.codebooks["0.weight"].indices.flatten().long()).numpy()
        return float(entropy_bits(counts)) / (64 * 96)

    assert 2.75 < bits(steps) < bits(values)
    assert error(steps.model, model, inputs) < 0.95 * error(values.model, model, inputs)


def test_uniform_steps_stay_uniform() -> None:
    torch.manual_seed(0)
    model = Net().eval()
    plain = sc.share(model, method="uniform", step=0.1)
    found = sc.share(model, method="uniform", step=0.1, data=images(), options=ShareOptions(tune=1))
    assert error(found.model, model, images()) < error(plain.model, model, images())
    for name, book in found.codebooks.items():
        assert book.step == plain.codebooks[name].step
        steps = torch.arange(book.low, book.low + len(book.values), dtype=torch.float64)
        assert torch.equal(book.values, (steps * book.step).float())
        assert torch.equal(found.model.get_parameter(name), book.tensor())


def test_a_price_lowers_the_entropy() -> None:
    torch.manual_seed(0)
    model = Net().eval()
    free, dear = (sc.share(model, bits=4, data=images(), rate=rate) for rate in (0.0, 0.1))
    assert dear.entropy < free.entropy - 0.3


def test_a_price_makes_zeros_of_a_pruned_model_and_a_smaller_file(tmp_path) -> None:
    torch.manual_seed(0)
    dense = Net().eval()
    masks = sc.prune(dense, budget=0.4)
    sparse = sc.compensate(dense, masks, images()).model
    options = ShareOptions(dense=dense, tune=2)
    free, dear = (sc.share(sparse, 3, masks, data=images(), rate=r, options=options) for r in (0.0, 0.2))
    assert {name: mask.tolist() for name, mask in free.masks.items()} == {
        n: m.tolist() for n, m in masks.items()
    }
    for name, mask in dear.masks.items():
        weight = dear.model.get_parameter(name)
        assert not bool(mask[~masks[name]].any())  # what was masked stays so
        assert torch.equal(weight != 0, mask)
        assert int(mask.sum()) > 0
    left = [sum(int(mask.sum()) for mask in found.values()) for found in (masks, dear.masks)]
    assert left[1] < 0.8 * left[0]
    sizes = [sc.save(one.model, tmp_path / name).size for one, name in ((free, "free"), (dear, "dear"))]
    assert sizes[1] < 0.95 * sizes[0]
    plain = sc.share(sparse, 3, dear.masks)  # the same zeros, without the data
    assert error(dear.model, dense, images()) < error(plain.model, dense, images())


def test_a_table_is_rounded_by_the_error_of_the_outputs() -> None:
    """Only the sum of a row matters: 0.4 and 0.4 become 0 and 1, where the nearest values are 0 and 0."""
    model = nn.Sequential(nn.Embedding(2, 2), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.4, 0.4], [0.0, 1.0]]))
        model[1].weight.fill_(1.0)
    options = ShareOptions(only="0")
    plain = sc.share(model, method="uniform", step=1.0, options=options)
    found = sc.share(model, method="uniform", step=1.0, data=[torch.tensor([[0, 1]])], options=options)
    assert plain.model[0].weight[0].tolist() == [0.0, 0.0]
    assert sorted(found.model[0].weight[0].tolist()) == [0.0, 1.0]
    assert found.model[0].weight[1].tolist() == [0.0, 1.0]


def test_rows_of_a_table_that_were_not_seen_follow_the_same_curvature_and_the_model_stays() -> None:
    torch.manual_seed(0)
    mixing = nn.Linear(8, 8, bias=False)
    mixing.weight.data.copy_(torch.randn(8, 2) @ torch.randn(2, 8))  # two directions matter
    model = nn.Sequential(nn.Embedding(200, 8), mixing)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    options = ShareOptions(only="0")
    seen, unseen = torch.arange(50)[None], torch.arange(50, 200)[None]
    plain = sc.share(model, bits=2, options=options).model
    found = sc.share(model, bits=2, data=[seen], options=options).model
    assert error(found, model, [seen]) < 0.5 * error(plain, model, [seen])
    assert error(found, model, [unseen]) < 0.5 * error(plain, model, [unseen])
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_a_masked_table_keeps_its_zeros_and_one_without_influence_is_shared_plainly() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 4))
    mask = torch.rand(30, 8) > 0.5
    found = sc.share(model, 2, {"0.weight": mask}, data=[torch.arange(30)[None]])
    assert bool((found.model[0].weight[~mask] == 0).all())
    assert len(torch.unique(found.model[0].weight[mask])) <= 4
    with torch.no_grad():
        model[1].weight.zero_()
    options = ShareOptions(only="0")
    plain, found = (
        sc.share(model, bits=2, data=data, options=options) for data in (None, [torch.arange(30)])
    )
    assert torch.equal(found.model[0].weight, plain.model[0].weight)


def test_what_is_refused() -> None:
    model = Net().eval()
    for wrong in (
        {"per": "channel", "rate": 0.1},
        {"per": "channel", "method": "uniform", "step": 0.1},
        {"method": "exact"},
    ):
        with pytest.raises(OptionError, match="share: "):
            sc.share(model, data=images(), **wrong)
    with pytest.raises(OptionError, match="dense and tune need data="):
        sc.share(model, options=ShareOptions(tune=3))
    with pytest.raises(OptionError, match="assignments='learnt' of ShareOptions is for tune="):
        ShareOptions(assignments="learnt")
    with pytest.raises(
        OptionError, match="assignments of ShareOptions: expected 'fixed' or 'learnt', got 'free'"
    ):
        ShareOptions(tune=2, assignments="free")  # type: ignore[arg-type]


@pytest.mark.parametrize("masked", [False, True])
def test_learnt_values_move_together_by_ten_mean_gradients(masked: bool) -> None:
    # Values 1 (gradients 1 and 3, mean 2) and 3 (gradient 5): each weight has its own, and ten means more.
    weight = nn.Parameter(torch.tensor([1.0, 1.0, 3.0, 0.0]) if masked else torch.tensor([1.0, 1.0, 3.0]))
    mask = torch.tensor([True, True, True, False]) if masked else None
    rounding = LearntAssignments([SharedWeight(weight, torch.tensor([0, 0, 1, 0])[: len(weight)], mask)])
    weight.grad = torch.tensor([1.0, 3.0, 5.0, 7.0])[: len(weight)]
    rounding.before_step()
    assert weight.grad.tolist() == [21.0, 23.0, 55.0, 0.0][: len(weight)]


def test_a_layers_typical_size_and_the_seed_reach_the_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}
    solver, setting = share_module.CodebookSolver, calibrated_module.Setting

    def watched(finder, masks, rate, typical, *more):
        seen["typical"] = typical
        return solver(finder, masks, rate, typical, *more)

    def set_up(*args, **kwargs):
        seen["seed"] = kwargs.get("seed")
        return setting(*args, **kwargs)

    monkeypatch.setattr(share_module, "CodebookSolver", watched)
    monkeypatch.setattr(calibrated_module, "Setting", set_up)
    model = nn.Sequential(nn.Linear(4, 6)).eval()
    sc.share(model, bits=2, data=[torch.randn(32, 4)], options=ShareOptions(seed=7))
    assert seen == {"typical": 24.0, "seed": 7}


@pytest.mark.parametrize(("damping", "low", "high"), [(0.0, 1.0, 9.0), (1.0, 1.75, 8.25)])
def test_a_tables_values_follow_the_feature_that_matters(damping: float, low: float, high: float) -> None:
    # Two values for 4 and 1, and for 6 and 9. Only the second feature has curvature, 1: the values are its own. Damped
    # by 1, the mean curvature of a half is added to both: (0.5 x 4 + 1.5 x 1) / 2, and likewise.
    weight = torch.tensor([[4.0, 1.0], [6.0, 9.0], [4.0, 1.0], [6.0, 9.0]])
    curvature = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    book = table_codebook(Kmeans(bits=1), "table", weight, None, curvature, damping=damping)
    assert book.tensor()[:2, 1].tolist() == pytest.approx([low, high], abs=0.01)

"""The masks of the criteria and budgets against the implementations the studies used, element by element.

What each of them computes is written out here once more, in the plainest way: one loop, one definition. Where
they cut by a threshold, all that equals it goes; where they count, they cut the fraction off. Ours counts
exactly, rounded once. The tests say where that makes a difference, and that it makes no other.
"""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateur as sc
from secateur import models
from secateur.budget import Overall, Percentile, PerTensor, StdDev
from secateur.core.context import Context
from secateur.core.schedule import Exponential, Iterative
from secateur.core.targets import select
from secateur.criteria.grasp import Grasp
from secateur.criteria.snip import Snip
from secateur.criteria.synflow import Synflow

DENSITIES = [10**-a for a in (0.05, 0.1, 0.2, 0.5, 1, 2)]
"""The densities of the study of pruning at initialisation."""

Named = dict[str, torch.Tensor]


# -- the definitions, as the synaptic-flow paper's code has them: the whole network competes ------------------


def best_of_all(scores: Named, density: float) -> Named:
    """True for what scores above the k-th lowest of all, k = (1 - density) * N with its fraction cut off."""
    threshold = line_of(scores, density)
    return {name: score > threshold for name, score in scores.items()}


def line_of(scores: Named, density: float) -> float:
    """The k-th lowest score; nothing lies at or under it where k is 0."""
    everything = torch.cat([score.flatten() for score in scores.values()])
    k = int((1 - density) * everything.numel())
    return float(torch.kthvalue(everything, k).values) if k else -math.inf


def competitors(model: nn.Module, bias: bool) -> Named:
    """The parameters of the convolutions and Linear layers that compete: weights, with `bias` biases too."""
    found = {}
    for layer, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            for leaf, parameter in module.named_parameters(recurse=False):
                if leaf == "weight" or bias:
                    found[f"{layer}.{leaf}"] = parameter
    return found


def magnitude(model: nn.Module, batches, bias: bool) -> Named:
    return {name: p.detach().abs() for name, p in competitors(model, bias).items()}


def snip(model: nn.Module, batches, bias: bool) -> Named:
    """|dL/dc| of a mask c multiplied onto every weight; the gradients of the batches' mean losses add up."""
    twin = copy.deepcopy(model)
    total: Named = {}
    for images, labels in batches:
        held = competitors(twin, bias)
        cuts = {name: torch.ones_like(p, requires_grad=True) for name, p in held.items()}
        state = {name: p.detach() * cuts[name] for name, p in held.items()}
        loss = F.cross_entropy(torch.func.functional_call(twin, state, (images,)), labels)
        for name, slope in zip(cuts, torch.autograd.grad(loss, list(cuts.values())), strict=True):
            total[name] = total.get(name, 0) + slope
    norm = sum(float(slope.abs().sum()) for slope in total.values())
    return {name: slope.abs() / norm for name, slope in total.items()}


def grasp(model: nn.Module, batches, bias: bool) -> Named:
    """theta * H g at temperature 200, over |its sum|: first g with no graph, then the gradient of g . grad L."""
    twin = copy.deepcopy(model)
    held = competitors(twin, bias)
    weights = list(held.values())

    def slopes(images, labels, graph):
        loss = F.cross_entropy(twin(images) / 200, labels)
        grads = torch.autograd.grad(loss, weights, create_graph=graph)
        return torch.cat([g.reshape(-1) for g in grads])

    stopped = sum(slopes(*batch, graph=False) for batch in batches)
    products = [torch.zeros_like(weight) for weight in weights]
    for batch in batches:
        flow = (stopped * slopes(*batch, graph=True)).sum()
        for product, part in zip(products, torch.autograd.grad(flow, weights), strict=True):
            product += part
    scores = {name: (w * p).detach() for (name, w), p in zip(held.items(), products, strict=True)}
    norm = abs(sum(float(score.sum()) for score in scores.values())) + 1e-10
    return {name: score / norm for name, score in scores.items()}


def synflow(model: nn.Module, batches, bias: bool) -> Named:
    """|w * dR/dw| with |.| of all of the state, an input of ones, the model in eval mode."""
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            tensor.abs_()
    twin(torch.ones_like(batches[0][0][:1])).sum().backward()
    return {name: (p.grad * p).detach().abs() for name, p in competitors(twin, bias).items()}


# -- ours against them --------------------------------------------------------------------------------------


def six_layers(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(3)
    return models.build("fc", width=24).to(dtype).eval()


def convolutions(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(),
        nn.AvgPool2d(4), nn.Flatten(), nn.Linear(8 * 36, 10),
    )  # fmt: skip
    model[1].running_mean.uniform_(-0.2, 0.2)
    model[1].running_var.uniform_(0.5, 2)
    return model.to(dtype).eval()


def images(batches: int = 1, dtype: torch.dtype = torch.float64):
    """Ten of each class, as the studies score on, in so many equal batches."""
    generator = torch.Generator().manual_seed(5)
    pixels = torch.rand(100, 1, 28, 28, generator=generator).to(dtype)
    labels = torch.arange(10).repeat(10)
    return list(zip(pixels.chunk(batches), labels.chunk(batches)))


def counted(model: nn.Module, density: float, bias: bool = False) -> tuple[int, int]:
    """How many they remove, and of how many."""
    total = sum(p.numel() for p in competitors(model, bias).values())
    return int((1 - density) * total), total


def ours(model: nn.Module, criterion, budget, batches, bias: bool = False, **options) -> Named:
    names = [name for name in competitors(model, True) if name.endswith("bias")]
    masks = sc.prune(
        model, criterion, "element", budget, data=batches, loss=F.cross_entropy, example=batches[0][0][:1],
        options=sc.PruneOptions(parameters=names if bias else None, allow_collapse=True, **options),
    )  # fmt: skip
    return dict(masks)


def same(one: Named, other: Named) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def tied(scores: Named, density: float) -> int:
    """How many more than k the threshold takes, because they equal it."""
    line = line_of(scores, density)
    total = sum(score.numel() for score in scores.values())
    return sum(int((score <= line).sum()) for score in scores.values()) - int((1 - density) * total)


def differing(one: Named, other: Named) -> int:
    return sum(int((one[name] != other[name]).sum()) for name in one)


CRITERIA = [
    ("magnitude", magnitude),
    (Snip(), snip),
    (Grasp(), grasp),
    (Synflow(biases="abs"), synflow),
]


@pytest.mark.parametrize("bias", [False, True], ids=["weights", "weights and biases"])
@pytest.mark.parametrize("make", [six_layers, convolutions])
@pytest.mark.parametrize(("criterion", "published"), CRITERIA, ids=["magnitude", "snip", "grasp", "synflow"])
def test_masks_are_those_of_the_synaptic_flow_papers_code(criterion, published, make, bias) -> None:
    model, batches = make(), images()
    scores = published(model, batches, bias)
    without_ties = 0
    for density in DENSITIES:
        removed, total = counted(model, density, bias)
        want, line, more = best_of_all(scores, density), line_of(scores, density), tied(scores, density)
        got = ours(model, criterion, Overall(removed / total), batches, bias)
        without_ties += more == 0
        # Weights that no gradient reaches score 0 alike: a threshold takes them all, a count as many as it needs.
        assert more == 0 or line == 0.0
        assert differing(got, want) == more, density
        for name, score in scores.items():
            assert (score[got[name] != want[name]] == line).all(), (density, name)
        # Asked for by its density, ours rounds where they cut off: the same mask but for one weight.
        plain = ours(model, criterion, Overall(1 - density), batches, bias)
        assert differing(plain, got) == abs(round((1 - density) * total) - removed) <= 1
    assert without_ties >= 4


@pytest.mark.parametrize(("criterion", "published"), CRITERIA[1:3], ids=["snip", "grasp"])
def test_several_equal_batches_add_up_to_the_same_mask(criterion, published) -> None:
    model, batches = convolutions(), images(batches=4)
    removed, total = counted(model, 0.1)
    want = best_of_all(published(model, batches, False), 0.1)
    assert same(ours(model, criterion, Overall(removed / total), batches), want)
    assert same(ours(model, criterion, Overall(removed / total), images()), want)


def test_grasps_temperature_and_sign_are_the_published_ones_and_change_the_mask() -> None:
    model, batches = convolutions(), images()
    removed, total = counted(model, 0.1)
    budget = Overall(removed / total)
    want = ours(model, Grasp(temperature=200), budget, batches)
    assert differing(ours(model, Grasp(temperature=1), budget, batches), want) > 100
    # Removing the lowest theta * Hg keeps the gradient flow; removing the highest keeps none of the same weights.
    upside_down = best_of_all({n: -s for n, s in grasp(model, batches, False).items()}, 0.1)
    assert differing(upside_down, want) == 2 * (total - removed)


def test_synflow_in_a_hundred_rounds_is_the_published_schedule() -> None:
    model, batches, density, rounds = six_layers(), images(), 0.01, 100
    total = counted(model, density)[1]
    masked, levels, want = copy.deepcopy(model), [], {}
    for k in range(1, rounds + 1):
        left = density ** (k / rounds)
        want = best_of_all(synflow(masked, batches, False), left)
        levels.append(int((1 - left) * total) / total)
        with torch.no_grad():
            for name, keep in want.items():
                masked.get_parameter(name).mul_(keep)
    criterion = Synflow(biases="abs")
    got = ours(model, criterion, Overall(levels[-1]), batches, schedule=Iterative(tuple(levels)))
    assert same(got, want)
    # By its own name the schedule rounds every round's count. One weight more or less in an early round leads to
    # other weights in the end, as many and as well connected: a table may depend on it, so the levels can be given.
    named = ours(model, criterion, Overall(1 - density), batches, schedule=Exponential(rounds))
    assert sum(int(keep.sum()) for keep in named.values()) == total - round((1 - density) * total)
    assert not same(named, want)
    assert all(int(keep.sum()) > 0 for masks in (named, want) for keep in masks.values())
    # One round at the same density empties the first layer: the published 11.35.
    once = best_of_all(synflow(model, batches, False), density)
    assert not once["fc1.weight"].any()
    assert want["fc1.weight"].any()


def test_random_keeps_the_best_of_independent_draws() -> None:
    model, batches = six_layers(), images()
    drawn = sc.criteria.Random().scores(model, select(model), Context(seed=11))
    for density in DENSITIES:
        removed, total = counted(model, density)
        masks = ours(model, "random", Overall(removed / total), batches, seed=11)
        assert same(masks, best_of_all(drawn, density))
        for mask in masks.values():  # every layer keeps the density, within chance
            spread = math.sqrt(density * (1 - density) / mask.numel())
            assert abs(float(mask.float().mean()) - density) < 4.5 * spread + 1 / mask.numel()


@pytest.mark.parametrize(("criterion", "published"), CRITERIA, ids=["magnitude", "snip", "grasp", "synflow"])
def test_in_single_precision_only_near_ties_at_the_threshold_differ(criterion, published) -> None:
    model, batches = convolutions(torch.float32), images(dtype=torch.float32)
    scores = published(model, batches, False)
    for density in DENSITIES:
        removed, total = counted(model, density)
        want = best_of_all(scores, density)
        got = ours(model, criterion, Overall(removed / total), batches)
        line = max(float(scores[n][~want[n]].max()) for n in want if not want[n].all())
        scale = max(float(s.abs().max()) for s in scores.values())
        for name in want:
            apart = scores[name][got[name] != want[name]]
            assert ((apart - line).abs() <= 1e-5 * scale).all(), (density, name)
        assert differing(got, want) <= 4


# -- NNI: every layer by itself -------------------------------------------------------------------------------


def lowest_of_each(model: nn.Module, metric, sparsity: float) -> Named:
    """True for what is greater than the n-th lowest of its layer, n = sparsity * count with its fraction cut off."""
    masks = {}
    for name, weight in competitors(model, False).items():
        worth = metric(weight.detach())
        gone = int(sparsity * worth.numel())
        keep = torch.ones_like(worth, dtype=torch.bool)
        if gone:
            keep = worth > torch.topk(worth.flatten(), gone, largest=False).values.max()
        masks[name] = keep.reshape(keep.shape + (1,) * (weight.dim() - keep.dim())).expand_as(weight)
    return masks


def all_distances(weight: torch.Tensor) -> torch.Tensor:
    rows = weight.flatten(1)
    return torch.stack([torch.norm(rows - row, p=2, dim=1).sum() for row in rows])


METRICS = {
    "level": ("element", torch.abs),
    "l1": ("filter", lambda weight: torch.norm(weight.flatten(1), p=1, dim=1)),
    "l2": ("filter", lambda weight: torch.norm(weight.flatten(1), p=2, dim=1)),
    "fpgm": ("filter", all_distances),
}


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("make", [six_layers, convolutions, lambda: models.build("vae").double()])
@pytest.mark.parametrize("word", METRICS)
def test_masks_are_those_of_nni(word: str, make, sparsity: float) -> None:
    torch.manual_seed(9)
    model = make()
    granularity, metric = METRICS[word]
    want = lowest_of_each(model, metric, sparsity)
    for name, weight in competitors(model, False).items():
        units = weight.numel() if granularity == "element" else weight.shape[0]
        exact = PerTensor(int(sparsity * units) / units)
        if int(sparsity * units) == 0:
            continue
        layer = name.rpartition(".")[0]
        got = sc.prune(
            model, word, granularity, exact, options=sc.PruneOptions(only=[layer], allow_collapse=True)
        )
        assert torch.equal(got[name], want[name]), name
        rounded = sc.prune(
            model, word, granularity, sparsity, options=sc.PruneOptions(only=[layer], allow_collapse=True)
        )
        pieces = (rounded[name] != want[name]).sum() / (weight.numel() / units)
        assert pieces == abs(round(sparsity * units) - int(sparsity * units)) <= 1


def test_equal_filters_all_go_in_nni_and_by_position_here() -> None:
    layer = nn.Linear(3, 4, bias=False)
    layer.weight.data.copy_(torch.tensor([[1.0, 1, 1], [5, 5, 5], [1, 1, 1], [1, 1, 1]]))
    model = nn.Sequential(layer)
    theirs = lowest_of_each(model, METRICS["l1"][1], 0.5)["0.weight"][:, 0]
    here = sc.prune(model, "l1", "filter", 0.5)["0.weight"][:, 0]
    assert theirs.tolist() == [False, True, False, False]
    assert here.tolist() == [False, True, False, True]


# -- the deep-compression study: by standard deviation and by percentile ----------------------------------------


@pytest.fixture(scope="module")
def resnet20() -> nn.Module:
    torch.manual_seed(0)
    return models.build("resnet20")


@pytest.mark.parametrize("sensitivity", [0.25, 0.5, 1.0])
def test_by_standard_deviation_as_study_5(resnet20: nn.Module, sensitivity: float) -> None:
    masks = sc.prune(resnet20, "magnitude", "element", StdDev(sensitivity))
    assert len(masks) == 20
    for name, mask in masks.items():
        weight = resnet20.get_parameter(name).detach().numpy()
        assert np.array_equal(mask.numpy(), ~(np.abs(weight) < np.std(weight) * sensitivity)), name


@pytest.mark.parametrize("scope", ["tensor", "network"])
def test_by_percentile_of_what_is_left_as_study_5(resnet20: nn.Module, scope: str) -> None:
    model = copy.deepcopy(resnet20)
    masks = None
    for share in (0.5, 0.2, 0.1):  # 0.5, then 0.2 of the rest, then 0.1 of that: 0.5, 0.6, 0.64
        values = {n: np.abs(w.detach().numpy()) for n, w in competitors(model, False).items()}
        alive = np.concatenate([v[v != 0] for v in values.values()])
        lines = {
            n: np.percentile(alive if scope == "network" else v[v != 0], 100 * share)
            for n, v in values.items()
        }
        masks = sc.prune(
            model,
            "magnitude",
            "element",
            Percentile(share, scope, of="nonzero"),
            options=sc.PruneOptions(masks=masks),
        )
        for name, value in values.items():
            assert np.array_equal(masks[name].numpy(), value >= lines[name]), (share, name)
        masks.apply_(model)
    assert masks is not None
    assert masks.sparsity == pytest.approx(0.64, abs=2e-4)

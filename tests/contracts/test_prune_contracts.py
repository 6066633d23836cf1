"""What holds for every criterion x granularity x budget there is, on a net full of equal weights.

The plug-ins are read from their registries, so a new file is covered without touching this one.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from secateur.core.context import Context
from secateur.core.targets import select
from secateur.errors import BudgetNotMetError, NothingToDoError, OptionError
from secateur.pruning.scoring import unit_scores

CRITERIA = sc.criteria.registry.names()
GRANULARITIES = sc.granularity.registry.names()
BUDGETS = [name for name in sc.budget.registry.names() if not sc.budget.registry.get(name).measured]


class Net(nn.Module):
    """Convolutions plain, grouped, depthwise and transposed, then two linear layers and attention of four heads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.up = nn.ConvTranspose2d(6, 4, 2, groups=2)
        self.query, self.key, self.value = (nn.Linear(4, 16) for _ in range(3))
        self.out = nn.Linear(16, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.conv(inputs)).relu()
        hidden = self.depthwise(self.grouped(hidden).relu()).relu()
        tokens = self.up(hidden).flatten(2).transpose(1, 2)
        query, key, value = (
            layer(tokens).unflatten(-1, (4, 4)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.head(self.out(mixed.transpose(1, 2).flatten(2)).relu().mean(1))


class Block(nn.Module):
    """Two convolutions whose output is added to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + self.second(self.norm(self.first(inputs)).relu())


def blocks() -> nn.Module:
    """Five blocks that can leave whole, between a layer and another one."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3),
        *(Block() for _ in range(5)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def setting(granularity: str = "") -> tuple[nn.Module, list[Any], torch.Tensor]:
    """A net whose weights take six values only (of blocks, for the granularity that cuts them), batches, one input."""
    return made(granularity == "layer")


@functools.cache
def made(of_blocks: bool) -> tuple[nn.Module, list[Any], torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    model = blocks() if of_blocks else Net()
    for parameter in model.parameters():
        steps = torch.randint(1, 4, parameter.shape, generator=generator) * 0.125
        signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
        parameter.data.copy_(steps * signs)
    batches = [
        (torch.randn(4, 2, 4, 4, generator=generator), torch.randint(0, 3, (4,), generator=generator))
        for _ in range(2)
    ]
    return model, batches, torch.randn(1, 2, 4, 4, generator=generator)


def cut(criterion: str, granularity: str, budget: Any, **options: Any) -> sc.Masks:
    model, batches, example = setting(granularity)
    return sc.prune(
        model,
        criterion,
        granularity,
        budget,
        data=batches,
        loss=nn.CrossEntropyLoss(),
        example=example,
        options=sc.PruneOptions(allow_collapse=True, **options),
    )


@functools.cache
def pieces(granularity: str) -> Any:
    model, _, example = setting(granularity)
    return sc.granularity.registry.make(granularity).units(model, select(model), Context(example=example))


@functools.cache
def worth(criterion: str, granularity: str) -> dict[str, np.ndarray]:
    """The worth of every unit by the long way: scores, gathered, reduced."""
    model, batches, example = setting(granularity)
    rule = sc.criteria.registry.make(criterion)
    context = Context(data=batches, loss=nn.CrossEntropyLoss(), example=example)
    scores = rule.scores(model, select(model), context)
    found = {}
    for units in pieces(granularity):
        if granularity == "layer":  # units own whole tensors; how these are scored has its own test
            return {
                key: value.numpy()
                for key, value in unit_scores(
                    rule, model, select(model), pieces(granularity), context
                ).items()
            }
        rows = [m.gather(scores[m.name]) for m in units.members if m.scored and m.name in scores]
        found[units.name] = rule.reduce(torch.cat(rows, dim=1)).detach().numpy()
    return found


def lowest(values: np.ndarray, count: int) -> set[int]:
    """The positions of the `count` lowest, the earliest of equals first, by Python's own stable sort."""
    return set(sorted(range(len(values)), key=lambda place: values[place])[:count])


def expected(budget: str, share: float, worths: dict[str, np.ndarray]) -> dict[str, set[int]] | None:
    """Which units go, worked out plainly, for the budgets that count; None for the others."""
    if budget in ("per_tensor", "per_layer"):
        return {name: lowest(values, round(share * len(values))) for name, values in worths.items()}
    if budget == "overall":
        whole = np.concatenate(list(worths.values()))
        gone, start, found = lowest(whole, round(share * len(whole))), 0, {}
        for name, values in worths.items():
            found[name] = {place - start for place in gone if start <= place < start + len(values)}
            start += len(values)
        return found
    return None


def kept(small: sc.Masks, large: sc.Masks) -> bool:
    """Whether everything `small` keeps is kept by `large`."""
    return all(bool((~small[name] | large[name]).all()) for name in small)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_combination_keeps_the_contract(criterion: str, granularity: str, budget: str) -> None:
    model, _, _ = setting(granularity)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    make = sc.budget.registry.get(budget).at
    try:
        masks = cut(criterion, granularity, make(0.6))
    except NothingToDoError as error:
        pytest.skip(f"removes nothing here: {error}")
    except BudgetNotMetError as error:
        assert budget in ("macs", "params")  # on what remains of the whole model, of which pieces are a part
        pytest.skip(f"cannot be met here: {error}")
    except OptionError as error:
        # which score none but the one layer here that is followed by a norm, and none outside of blocks
        if criterion not in ("bn_scale", "block_influence"):
            raise
        pytest.skip(f"not scored here: {error}")

    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "the model changed"
    assert all(parameter.grad is None for parameter in model.parameters())
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        assert mask.dtype == torch.bool
        assert mask.shape == parameters[name].shape
    assert masks.kept < masks.numel
    # A threshold in the weights' unit may lie above every score of another unit.
    assert masks.kept > 0 or budget == "std_dev"
    assert cut(criterion, granularity, make(0.6)).digest() == masks.digest(), "not deterministic"

    wanted = expected(budget, 0.6, worth(criterion, granularity))
    alone = [m.name for units in pieces(granularity) for m in units.members]
    if wanted is not None and len(set(alone)) == len(alone):
        for units in pieces(granularity):
            keep = torch.ones(units.count, dtype=torch.bool)
            keep[list(wanted[units.name])] = False
            for member in units.members:
                assert torch.equal(masks[member.name], member.scatter(keep, parameters[member.name].shape))

    try:
        fewer = cut(criterion, granularity, make(0.3))
    except NothingToDoError:
        return
    assert kept(masks, fewer), "a larger share brought weights back"


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_masks_of_before_only_grow(granularity: str, budget: str) -> None:
    before = cut("magnitude", granularity, 0.2)
    try:
        grown = cut("magnitude", granularity, sc.budget.registry.get(budget).at(0.6), masks=before)
    except BudgetNotMetError as error:
        assert budget in ("macs", "params")
        pytest.skip(f"cannot be met here: {error}")
    assert kept(grown, before)
    # A threshold may lie below all that is left, and a line drawn through four heads may find the next two equal.
    line = budget == "std_dev" or (budget, granularity[:4]) == ("percentile", "head")
    assert grown.kept < before.kept or line


@pytest.mark.parametrize(
    "granularity", [name for name in GRANULARITIES if name[:4] not in ("chan", "head", "laye")]
)
def test_gather_and_scatter_agree_on_which_weight_is_whose(granularity: str) -> None:
    model, _, _ = setting()
    for units in pieces(granularity):
        (member,) = units.members
        shape = model.get_parameter(member.name).shape
        numbered = torch.arange(1.0, shape.numel() + 1).reshape(shape)
        rows = member.gather(numbered)
        assert rows.shape[0] == units.count
        assert sorted(rows[rows > 0].tolist()) == numbered.flatten().tolist(), "each weight in one unit"
        for unit in {0, 1, units.count // 2, units.count - 1}:
            keep = torch.ones(units.count, dtype=torch.bool)
            keep[unit] = False
            gone = numbered[~member.scatter(keep, shape)]
            assert sorted(gone.tolist()) == sorted(rows[unit][rows[unit] > 0].tolist())


def test_shortcuts_past_the_scores_give_the_same_worth() -> None:
    rows = torch.randn(37, 18, generator=torch.Generator().manual_seed(0))
    weights = {"w": rows}
    seen = 0
    for name in CRITERIA:
        rule = sc.criteria.registry.make(name)
        direct = rule.of_weights(rows)
        if direct is None:
            continue
        seen += 1
        layer = nn.Linear(18, 37, bias=False)
        layer.weight.data.copy_(weights["w"])
        scores = rule.scores(layer, select(layer), Context())["weight"]
        assert torch.equal(direct, rule.reduce(scores)), name
        assert torch.equal(rule.of_weights(rows.reshape(-1, 1)), rule.reduce(scores.reshape(-1, 1))), name
    assert seen >= 3

"""Shuffled: the layer-wise counts of another criterion or mask, at places drawn at random."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.criteria.shuffled import Shuffled
from secateur.errors import MaskMismatchError, OptionError, UnknownNameError


def model() -> nn.Sequential:
    torch.manual_seed(1)
    made = nn.Sequential(nn.Conv2d(2, 8, 3), nn.Flatten(), nn.Linear(32, 6))
    made[0].weight.data.mul_(0.3)
    return made


def counts(masks: sc.Masks) -> list[int]:
    return [row.kept for row in masks.summary()]


@pytest.mark.parametrize("granularity", ["element", "filter"])
def test_counts_stay_and_places_change(granularity):
    budget = sc.budget.Overall(0.5)
    plain = sc.prune(model(), "magnitude", granularity, budget)
    one = sc.prune(model(), Shuffled("magnitude"), granularity, budget)
    two = sc.prune(model(), Shuffled("magnitude", seed=1), granularity, budget)
    assert counts(one) == counts(two) == counts(plain)
    assert len({masks.digest() for masks in (plain, one, two)}) == 3
    assert sc.prune(model(), Shuffled("magnitude"), granularity, budget) == one


def test_masks_of_a_schedule_are_shuffled_themselves():
    net, example = model(), torch.ones(1, 2, 4, 4)
    rounds = sc.PruneOptions(schedule=sc.Exponential(10))
    plain = sc.prune(net, "synflow", "element", sc.budget.Overall(0.9), example=example, options=rounds)
    mixed = sc.prune(net, Shuffled(plain), "element", sc.budget.Overall(0.9))
    assert counts(mixed) == counts(plain)
    assert mixed != plain


def test_what_a_criterion_needs_is_passed_on():
    assert Shuffled("snip").needs_data
    assert Shuffled("synflow").needs_example
    assert not Shuffled("l1").needs_data
    assert Shuffled("snip").needs_loss
    assert not Shuffled("wanda").needs_loss
    with pytest.raises(sc.errors.DataError, match="scores on data"):
        sc.prune(model(), Shuffled("snip"))


def test_errors_say_what_was_expected():
    with pytest.raises(OptionError, match="shuffled: of is shuffled itself"):
        Shuffled(Shuffled("l1"))
    with pytest.raises(UnknownNameError, match="unknown criterion 'magnitud'"):
        Shuffled("magnitud")
    masks = sc.prune(model(), skip="2")
    with pytest.raises(MaskMismatchError, match=r"the masks have no tensor '2\.weight'"):
        sc.prune(model(), Shuffled(masks))

"""The published ranking of channels: each layer's own filters or rows, summed over the layers of a group."""

from __future__ import annotations

import pytest
import torch

import secateur as sc
from secateur import studies
from secateur.granularity import registry
from secateur.lab.steps import make
from secateur.lab.steps.prune import PruneStep


def granularities(name: str) -> dict[str, set[object]]:
    """What the prune steps of a study's parts are given, by the ranking that its tables say."""
    found: dict[str, set[object]] = {}
    for part, recipe in studies.read(name).recipes("full"):
        for settings, trial in recipe.trials():
            said = str({**part.context, **settings}.get("ranking", settings.get("coupling", "")))
            for step in trial.steps:
                if isinstance(step, PruneStep) and part.name != "printout":
                    found.setdefault(said, set()).add(str(make(registry, step.granularity)))
    return found


OWN = str(sc.granularity.Channel(scored="out", combine="mean"))
WHOLE = str(sc.granularity.Channel())


@pytest.mark.parametrize("name", ["cnn", "resnet101"])
def test_structured_parts_rank_as_published_and_ours_says_so(name: str) -> None:
    found = granularities(name)
    assert {said: grains for said, grains in found.items() if said} == {
        "published": {OWN},
        "with readers": {WHOLE},
    }


def test_coupled_rows_of_the_auto_encoder_rank_as_published() -> None:
    found = granularities("vae")
    assert {said for said, grains in found.items() if grains == {OWN}} == {
        "coupled", "coupled, 40 epochs", "coupled, 8 latent, 40 epochs",
    }  # fmt: skip
    assert found["coupled, with readers"] == {WHOLE}


@pytest.mark.parametrize("scale", ["short", "day", "full"])
def test_a_retraining_of_deep_compression_that_hurts_keeps_the_better_weights(scale: str) -> None:
    kept = {
        (step.label, step.keep, trial.data.validation > 0)
        for _, recipe in studies.read("deep-compression").recipes(scale)
        for _, trial in recipe.trials()
        for step in trial.steps
        if step.kind() == "retrain"
    }
    labels = ("retrain", "retrain50", "retrain60", "retrain64")
    assert kept == {
        (label, "best", True) for label in labels
    }  # without a validation split nothing is compared


@pytest.mark.parametrize(("criterion", "order"), [("l1", 1), ("l2", 2)])
def test_coupled_rows_are_those_of_the_lowest_sum_of_their_layers_norms(criterion: str, order: int) -> None:
    """NNI's dependency-aware mode: the norms of the layers of a group are added, and the lowest sums go."""
    torch.manual_seed(0)
    model, example = sc.models.build("vae").eval(), torch.rand(1, 1, 28, 28)
    with torch.no_grad():
        model.fc22.weight.mul_(3)  # one layer of the group weighs more
        model.fc3.weight.mul_(torch.rand(20) * 30)  # what reads the units would choose others
    grain = sc.granularity.Channel(scored="out", combine="mean")
    options = {"example": example, "skip": "fc4"}
    masks = sc.prune(model, criterion, grain, 0.5, **options)
    total = model.fc21.weight.norm(order, dim=1) + model.fc22.weight.norm(order, dim=1)
    lowest = sorted(total.argsort()[:10].tolist())
    gone = (~masks["fc21.weight"].any(dim=1)).nonzero().flatten().tolist()
    assert gone == lowest
    own = sorted(model.fc1.weight.norm(order, dim=1).argsort()[:200].tolist())
    assert (~masks["fc1.weight"].any(dim=1)).nonzero().flatten().tolist() == own
    ours = sc.prune(model, criterion, "channel", 0.5, **options)
    assert (~ours["fc21.weight"].any(dim=1)).nonzero().flatten().tolist() != lowest


def test_a_part_like_another_keeps_its_steps_but_not_its_ranking() -> None:
    parts = {part.name: recipe for part, recipe in studies.read("cnn").recipes("full")}
    assert len(parts["readers"].trials()) == 6
    assert len(parts["structured"].trials()) == 18

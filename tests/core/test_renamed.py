"""Arguments that have another name now work under the old one, and say so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import RecipeError
from secateur.lab.recipe import Recipe
from secateur.lab.steps import make

X = torch.zeros(1, 2)


def net() -> nn.Module:
    return nn.Linear(2, 2)


CALLS = {
    "measure": lambda **n: len(sc.measure(net(), X, what="latency", **n)["latency"].trials),
    "compare": lambda **n: len(sc.compare(net(), net(), X, **n)["speedup"].trials),
    "why": lambda **n: len(sc.why(net(), net(), X, **n).speedup.trials),
    "Latency": lambda **n: sc.budget.Latency(keep=0.5, **n).repetitions,
    "ScanOptions": lambda **n: sc.ScanOptions(**n).repetitions,
}


@pytest.mark.parametrize("name", CALLS)
def test_trials_are_repetitions(name: str) -> None:
    assert CALLS[name](repetitions=3) == 3
    with pytest.warns(DeprecationWarning, match=f"{name}: .*'trials' is called 'repetitions' now") as told:
        assert CALLS[name](trials=3) == 3
    assert told[0].filename == __file__
    with pytest.raises(
        TypeError, match="'trials' is the old name of 'repetitions'; give 'repetitions' alone"
    ):
        CALLS[name](trials=3, repetitions=3)


def test_an_option_is_read_by_its_old_name() -> None:
    with pytest.warns(DeprecationWarning, match="ScanOptions: the attribute 'trials'"):
        assert sc.ScanOptions(repetitions=4).trials == 4  # type: ignore[attr-defined]


def recipe(**options: object) -> Recipe:
    step = {"kind": "measure", **options}
    return Recipe.of({"data": {"name": "digits"}, "model": {"name": "lenet-5"}, "step": [step]})


def test_a_recipe_with_the_old_word_means_the_same_outcomes() -> None:
    with pytest.warns(DeprecationWarning, match="step 'measure': 'trials' is called 'repetitions' now"):
        old = recipe(trials=3)
    new = recipe(repetitions=3)
    assert old.steps[0].chosen() == new.steps[0].chosen()
    assert new.steps[0].chosen()["trials"] == 3  # stored outcomes keep their addresses
    with pytest.raises(RecipeError, match="'trials' is the old name of 'repetitions'"):
        recipe(trials=3, repetitions=3)


def test_a_budget_in_a_recipe_takes_the_old_word() -> None:
    with pytest.warns(DeprecationWarning, match="Latency: the argument 'trials'"):
        assert make(sc.budget.registry, {"name": "latency", "keep": 0.5, "trials": 3}).repetitions == 3

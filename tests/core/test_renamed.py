"""Arguments that have another name now work under the old one, and say so."""

from __future__ import annotations

import dataclasses
from typing import Any

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
    if name in ("Latency", "ScanOptions"):  # `dataclasses.replace` gives both
        return
    with pytest.raises(
        TypeError, match="'trials' is the old name of 'repetitions'; give 'repetitions' alone"
    ):
        CALLS[name](trials=3, repetitions=3)


@pytest.mark.parametrize("options", [sc.ScanOptions(), sc.budget.Latency(keep=0.5)])
def test_an_option_is_replaced_by_its_old_name(options: Any) -> None:
    with pytest.warns(DeprecationWarning, match="'trials' is called 'repetitions' now"):
        assert dataclasses.replace(options, trials=5).repetitions == 5


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


OLD = {
    "data": {"name": "digits"},
    "model": {"name": "lenet-5"},
    "step": [{"kind": "measure", "trials": 3}],
}


@pytest.mark.filterwarnings("ignore:.*'trials' is called:DeprecationWarning")
@pytest.mark.parametrize("word", ["trials", "repetitions"])
def test_settings_and_grids_take_both_words(word: str) -> None:
    new = {**OLD, "step": [{"kind": "measure", "repetitions": 3}]}
    key = f"measure.{word}"
    for raw in (OLD, new):
        assert Recipe.of(raw, [f"{key}=5"]).steps[0].repetitions == 5
        assert Recipe.of(raw).with_settings({key: 6}).steps[0].repetitions == 6
        found = Recipe.of(
            {**raw, "grid": {"measure": {word: [1, 2]}}}, grid=["lab.seed=1,2 when " + key + "=2"]
        )
        assert [one["measure.repetitions"] for one, _ in found.trials()] == [1, 2, 2]
        assert [each.steps[0].repetitions for _, each in found.trials()] == [1, 2, 2]
        assert Recipe.of({**raw, "grid": {key: [1, 2]}}, [f"{key}=4"]).grid == {"measure.repetitions": (4,)}
        assert Recipe.of(raw, grid=[f"{key}=1,2"]).grid == {"measure.repetitions": (1, 2)}
        depends = {"grid": {key: [1, 2], "lab.seed": [1, 2]}, "when": {"lab.seed": {key: 2}}}
        assert Recipe.of({**raw, **depends}).when == {"lab.seed": {"measure.repetitions": (2,)}}
        chosen = Recipe.of({**raw, "choice": {"how": {"short": {key: 1}, "long": {key: 9}}}})
        assert [each.steps[0].repetitions for _, each in chosen.trials()] == [1, 9]


@pytest.mark.filterwarnings("ignore:.*'trials' is called:DeprecationWarning")
def test_a_grid_with_both_words_is_refused() -> None:
    axes = {"measure.trials": [1], "measure.repetitions": [2]}
    with pytest.raises(RecipeError, match=r"'measure\.trials' is the old name of 'measure\.repetitions'"):
        Recipe.of({**OLD, "grid": axes})


def test_a_budget_in_a_recipe_takes_the_old_word() -> None:
    both = {"name": "latency", "keep": 0.5, "trials": 3, "repetitions": 5}
    with pytest.raises(
        RecipeError, match="'trials' is the old name of 'repetitions'; give 'repetitions' alone"
    ):
        make(sc.budget.registry, both)
    with pytest.warns(DeprecationWarning, match="Latency: the argument 'trials'"):
        assert make(sc.budget.registry, {"name": "latency", "keep": 0.5, "trials": 3}).repetitions == 3

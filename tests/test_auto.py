"""auto: steps down while it holds, half way back when it does not, and goes on where it stood."""

from __future__ import annotations

import importlib

import pytest

from secateur.errors import BudgetNotMetError, OptionError
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store

auto_module = importlib.import_module("secateur.auto")  # `secateur.auto` itself is the verb

RECIPE = """
[data]
name = "digits"
size = 8
limit = 300
[model]
name = "resnet20"
[lab]
threads = 1
[[step]]
kind = "train"
epochs = 1
lr = 0.05
batch_size = 64
"""


@pytest.fixture
def recipe():
    return Recipe.parse(RECIPE, name="tiny")


def test_the_search_halves_while_it_holds_and_comes_half_way_back(recipe, tmp_path, monkeypatch):
    asked = []

    def tried(recipe, base, store, model, found, keep, limit, *rest):
        asked.append(keep)
        accuracy = 0.9 if keep >= 0.2 else 0.1
        return auto_module.Try(keep, accuracy, keep >= 0.2, f"{keep}")

    monkeypatch.setattr(auto_module, "_tried", tried)
    monkeypatch.setattr(auto_module, "run", lambda *a, **k: Fake())
    monkeypatch.setattr(auto_module, "final_state", lambda *a: Fake())
    found = auto_module.auto(recipe, Store(tmp_path / "runs"), tries=5, allocation="uniform")
    assert asked == pytest.approx(
        [0.5, 0.25, 0.125, (0.25 * 0.125) ** 0.5, (0.25 * 0.25**0.5 * 0.125**0.5) ** 0.5]
    )
    assert found.best.keep == min(keep for keep in asked if keep >= 0.2)
    monkeypatch.setattr(auto_module, "_tried", lambda *a: auto_module.Try(a[5], 0.3, False, "no"))
    with pytest.raises(
        BudgetNotMetError, match=r"none of 2 tries held 0\.8900 .* nearest came to 0\.3000"
    ) as error:
        auto_module.auto(recipe, Store(tmp_path / "runs"), tries=2, allocation="uniform")
    assert error.value.exit_code == 3


class Fake:
    """A run whose dense accuracy is 0.9."""

    model = None

    @property
    def plan(self):
        return type("Plan", (), {"trials": [None]})

    @property
    def measurements(self):
        from secateur.core.measurement import Measurement, Measurements

        return Measurements([Measurement("accuracy", 0.9, context={"variant": "auto_dense"})])


@pytest.mark.parametrize("goal", ["fast", "small"])
def test_a_real_search_holds_its_limit_and_is_not_done_twice(recipe, tmp_path, goal):
    store, lines = Store(tmp_path / "runs"), []
    options = {"lost": 0.9, "goal": goal, "tries": 1, "retrain": {"epochs": 1}}
    found = auto_module.auto(recipe, store, told=lines.append, **options)
    assert found.best.keep == 0.5
    final = {(m.context["variant"], m.name): m.value for m in found.final}
    if goal == "fast":
        assert final["result", "macs"] <= 0.5 * final["dense", "macs"]
        assert lines[1].startswith("scan: ")
        assert list((tmp_path / "runs" / "auto").iterdir())
    else:
        assert final["result", "nonzeros"] <= 0.5 * final["dense", "nonzeros"]
    assert "holds, so less is tried" in lines[-1]
    assert found.ran.computed == 1  # only the last measure: the try itself was kept
    again = auto_module.auto(recipe, store, **options)
    assert again.ran.computed == 0
    assert again.tries == found.tries


def test_options_are_checked(recipe, tmp_path):
    for wrong in ({"goal": "cheap"}, {"lost": 1.5}, {"tries": 0}, {"allocation": "greedy"}):
        with pytest.raises(OptionError):
            auto_module.auto(recipe, Store(tmp_path / "runs"), **wrong)

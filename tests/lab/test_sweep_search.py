"""Search with Optuna: the front is the front, what is hopeless is given up, and a search goes on where it stopped."""

from __future__ import annotations

import pytest
from attacks.tiny_recipe import tiny

from secateur.errors import OptionError, RecipeError
from secateur.lab.recipe import Recipe
from secateur.lab.searching import SearchOptions, pareto, search
from secateur.lab.store import Store

pytest.importorskip("optuna", reason="OPTUNA IS NOT INSTALLED: the search is not tested here")
pytestmark = pytest.mark.ray

TEXT = tiny(
    """
device = "cpu"
[[step]]
kind = "idle"
[[step]]
kind = "prune"
[[step]]
kind = "measure"
what = ["sparsity", "params"]
""",
    limit=50,
)


@pytest.mark.slow
def test_a_search_finds_its_front_gives_up_what_is_hopeless_and_goes_on(tmp_path):
    store, recipe = Store(tmp_path), Recipe.parse(TEXT)
    over = {"idle.note": "0:9", "prune.budget": "0.1:0.9"}
    ask = {"maximize": ["sparsity"], "minimize": ["note"]}
    first = search(recipe, store, over, options=SearchOptions(3, jobs=2, floors={"note": 3}), **ask)
    assert len(first.tried) == 3
    again = search(recipe, store, over, options=SearchOptions(6, jobs=2, floors={"note": 3}), **ask)
    assert len(again.tried) == 6
    assert again.tried[:3] == first.tried
    for one in again.tried:
        assert bool(one.values) == (one.settings["idle.note"] >= 3)
        assert one.values or one.why.startswith("stopped: note")
    assert [one.number for one in again.front] == [
        one.number for one in pareto(again.tried, {"sparsity": 1, "note": -1})
    ]
    # A trial given up has no prune: that was the point.
    prunes = store.rows("SELECT COUNT(*) FROM steps WHERE kind = 'prune'")[0][0]
    assert prunes == sum(1 for one in again.tried if one.values)
    before = store.rows("SELECT COUNT(*) FROM runs")[0][0]
    assert search(recipe, store, over, options=SearchOptions(6, jobs=2, floors={"note": 3}), **ask) == again
    assert store.rows("SELECT COUNT(*) FROM runs")[0][0] == before


@pytest.mark.parametrize(
    ("over", "maximize", "error", "words"),
    [
        ({}, ["sparsity"], OptionError, "nothing to search over"),
        ({"prune.budget": "0.1:0.9"}, [], OptionError, "expected at least one objective"),
        ({"prune.budget": "0.9:0.1"}, ["sparsity"], RecipeError, "expected first < last"),
        ({"prnue.budget": "0.1:0.9"}, ["sparsity"], RecipeError, "did you mean 'prune'"),
    ],
)
def test_what_cannot_be_searched_is_refused(tmp_path, over, maximize, error, words):
    with pytest.raises(error, match=words):
        search(Recipe.parse(TEXT), Store(tmp_path), over, maximize=maximize)

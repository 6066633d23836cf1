"""A recipe whose weights are a .sct file of a cut model: what `pack` writes loads into a freshly built network."""

from __future__ import annotations

import pytest
import torch

import secateur as sc
from secateur.lab.engine import final_state, run
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store

CUTS = ({"kind": "prune", "criterion": "l2", "granularity": "channel", "budget": 0.5}, {"kind": "shrink"})


@pytest.mark.parametrize("cuts", [(), CUTS], ids=["as it is", "cut again"])
def test_the_plan_of_the_weights_comes_first(tmp_path, cuts):
    torch.manual_seed(0)
    model, example = sc.models.build("lenet-300-100"), torch.randn(2, 1, 28, 28)
    small = sc.shrink(model, sc.prune(model, "l2", "channel", 0.33, example=example), example)
    sc.save(small, tmp_path / "cut.sct")
    recipe = {
        "data": {"name": "digits", "size": 28, "limit": 100},
        "model": {"name": "lenet-300-100", "weights": str(tmp_path / "cut.sct")},
        "step": [*cuts, {"kind": "pack"}],
    }
    store = Store(tmp_path / "runs")
    found = run(Recipe.of(recipe), store)
    state = final_state(found.plan.trials[0], store)
    (tmp_path / "again.sct").write_bytes(state.files["model.sct"])
    again = sc.load(tmp_path / "again.sct", into=sc.models.build("lenet-300-100"))
    assert [p.shape[0] for p in again.parameters()][::2] == ([101, 33, 10] if cuts else [201, 67, 10])
    for name, value in state.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)

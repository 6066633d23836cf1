"""`.plot()` of results: a chart of Altair with the numbers it was asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import NothingToDoError
from secateur.report import notebook
from secateur.search.frame import SearchResult


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10)).eval()


def numbers(chart, name: str = "") -> list[float]:
    """Every number of a field in a chart, or of all fields."""
    spec = chart.to_dict()
    json.dumps(spec, allow_nan=False)
    found: list[float] = []

    def walk(value):
        if isinstance(value, dict):
            found.extend(v for k, v in value.items() if name in ("", k) and isinstance(v, (int, float)))
            for each in value.values():
                walk(each)
        elif isinstance(value, list):
            for each in value:
                walk(each)

    walk(spec)
    return found


def test_measurements_show_the_charts_they_allow():
    net, x = model(), torch.randn(1, 3, 4, 4)
    chart = sc.measure(net, x, what=["macs", "params"]).plot()
    assert {8 * 27 * 4, 320} <= set(numbers(chart, "value"))
    several = sc.measure(net, x, what=["macs", "weight_histogram"]).plot().to_dict()
    assert len(several["vconcat"]) >= 2
    with pytest.raises(NothingToDoError, match=r"no chart shows size alone; compare variants"):
        sc.measure(net, x, what=["size"]).plot()


def test_shared_weights_show_the_values_of_each_layer():
    shared = sc.share(model(), bits=2)
    rows = shared.plot().to_dict()["vconcat"][0]["data"]["values"]
    weight = shared.model[3].weight
    drawn = next(row for row in rows if row["l"].startswith("3"))
    assert sum(drawn["n"]) == 2 * weight.numel()  # each bar has two corners
    for value in weight.unique().tolist():
        assert min(abs(x - value) for x in drawn["x"]) < 0.01


def test_a_search_shows_its_attempts_and_the_limit():
    attempts = [
        SimpleNamespace(accuracy=0.93, holds=True, why="half"),
        SimpleNamespace(accuracy=0.85, holds=False, why="a quarter"),
        SimpleNamespace(accuracy=None, holds=False, why="failed"),
    ]
    found = SimpleNamespace(dense=0.95, limit=0.92, attempts=attempts)
    assert sorted(numbers(SearchResult.plot(found), "accuracy")) == [0.85, 0.92, 0.93, 0.95]
    assert notebook.attempts(found).to_dict()["layer"]


def test_results_import_no_drawing_library_before_they_draw():
    code = "import secateur as sc, sys; sc.Measurements(); sc.Shared; assert 'altair' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

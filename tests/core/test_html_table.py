"""Results show themselves as escaped HTML tables in notebooks."""

from __future__ import annotations

import json

import torch
from torch import nn

import secateur as sc


def test_measurements_are_a_table_and_names_are_escaped():
    rows = sc.Measurements(
        [sc.Measurement("params", 1234, "", "count <of> all", notes=("a & b",)), sc.Measurement("macs", 7)]
    )
    text = rows._repr_html_()
    assert text.startswith("<table><thead><tr><th>measure</th><th>value</th><th>definition</th></tr></thead>")
    assert "<tr><td>params</td><td>1,234</td><td>count &lt;of&gt; all</td></tr>" in text
    assert text.endswith("<p>params: a &amp; b</p>")


def test_a_shared_model_is_a_table_with_a_row_for_each_tensor():
    torch.manual_seed(0)
    shared = sc.share(nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 8)), bits=2)
    text = shared._repr_html_()
    assert text.count("<tr>") == 3
    assert "<td>0.weight</td><td>512</td><td>512</td><td>4</td>" in text


def test_explanation_proof_and_scan_are_tables():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    x = torch.randn(3, 4)
    text = sc.explain(model, x)._repr_html_()
    assert "<tr><td>0</td><td>8</td><td>56</td>" in text
    assert "<th>locked because</th>" in text
    assert "2.weight[0]" in text
    assert "goes" not in text
    text = sc.explain(model, x, budget=0.5)._repr_html_()
    assert "<th>goes</th>" in text
    assert "<tr><td>0</td><td>8</td><td>56</td><td>144</td><td>4</td></tr>" in text
    assert "<p>a budget of 0.5 for each group removes 28 parameters" in text
    proof = sc.shrink(model, sc.prune(model, "l1", "channel", 0.5, example=x), x).proof
    text = proof._repr_html_()
    assert "<td>example</td><td>(3, 4)</td><td>eager</td>" in text
    assert "<p>holds: equal to the masked model: largest difference" in text
    scan = sc.scan(model, lambda net: 0.75, levels=[0.5], example=x, criterion="l1", granularity="element")
    assert "<th>layer</th><th>0</th><th>0.5</th>" in scan._repr_html_()
    assert "<td>0.7500</td>" in scan._repr_html_()
    drawn = scan.plot().to_dict()
    text = json.dumps(drawn)
    assert '"0.weight"' in text
    assert '"2.weight"' in text
    assert "0.75" in text

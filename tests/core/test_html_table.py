"""Results show themselves as escaped HTML tables in notebooks."""

from __future__ import annotations

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

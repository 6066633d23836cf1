"""Every chart as it was last looked at: marks, axes, titles, formats, colours, and the numbers that it draws.

`charts_as_drawn.json` holds each chart's specification; numbers are held as a digest of them, rounded. After a change
that is wanted: look at the pictures, then `python tests/report/test_charts_as_drawn.py` writes the file anew.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from secateur.core.measurement import Measurement as M
from secateur.core.measurement import Measurements
from secateur.report import charts
from secateur.report.figure import Figure
from secateur.report.theme import THEMES, vega_config

altair = pytest.importorskip("altair")
VERSION = altair.__version__.split(".")[0]
KEPT = Path(__file__).with_name("charts_as_drawn.json")
_SPEC = importlib.util.spec_from_file_location(
    "report_samples", Path(__file__).with_name("report_samples.py")
)
assert _SPEC is not None
assert _SPEC.loader is not None
samples = sys.modules.setdefault("report_samples", importlib.util.module_from_spec(_SPEC))
if not hasattr(samples, "sweep"):
    _SPEC.loader.exec_module(samples)


def rounded(value: object) -> object:
    """The same with numbers of five digits: what another machine computes as well."""
    if isinstance(value, dict):
        return {str(key): rounded(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def digest(value: object) -> str:
    text = json.dumps(rounded(value), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def without_numbers(spec: Any) -> Any:
    """A specification whose data are a digest; the names that altair gives to data sets are digests of them already."""
    if isinstance(spec, list):
        return [without_numbers(one) for one in spec]
    if not isinstance(spec, dict):
        return rounded(spec)
    found = {
        key: without_numbers(one) for key, one in spec.items() if key not in ("$schema", "datasets", "name")
    }
    if "values" in spec:
        found["values"] = digest(spec["values"])
    return found


def as_drawn(figure: Figure) -> dict[str, Any]:
    drawn: dict[str, Any] = {
        "title": figure.title, "alt": figure.alt, "each": figure.each, "head": list(figure.table.head),
        "rows": digest(figure.table.rows),
    }  # fmt: skip
    if figure.is_drawing:
        return drawn | {"drawing": digest([figure.chart, figure.narrow])}
    spec = figure.chart.to_dict()
    return drawn | {
        "spec": without_numbers(spec),
        "datasets": digest(sorted(map(digest, spec.get("datasets", {}).values()))),
    }


@functools.cache
def sources() -> dict[str, Measurements]:
    timed = [M("speedup", 2.0 + t, "x", context={"trial": t, "sparsity": 0.5 + t / 5}) for t in range(2)]
    both = [M(what, 0.9, context={"method": m}) for m in ("l2", "random") for what in ("accuracy", "macs")]
    return {
        "full": samples.everything(), "sweep": samples.sweep(72).measurements, "timed": Measurements(timed),
        "methods": Measurements(both),
    }  # fmt: skip


def drawn(name: str) -> dict[str, Any]:
    """One chart from every source that it draws something of."""
    return {
        f"{source}/{name}/{index}": as_drawn(figure)
        for source, measurements in sources().items()
        for index, figure in enumerate(charts.chart(name, measurements))
    }


@pytest.mark.parametrize("name", charts.names())
def test_a_chart_is_drawn_as_it_was_last_looked_at(name: str) -> None:
    kept = json.loads(KEPT.read_text())
    found = drawn(name)
    specs = {key: spec for key, spec in kept["charts"].items() if key.split("/")[1] == name}
    assert sorted(found) == sorted(specs)
    if kept["altair"] != VERSION:
        pytest.skip(f"the specifications are those of altair {kept['altair']}")
    for key, spec in specs.items():
        assert found[key] == spec, f"{key}: look at it, then run python {Path(__file__).name}"


def themes() -> dict[str, Any]:
    """What all charts have in common, in each theme: sizes of letters, distances, colours."""
    return {name: vega_config(name) for name in THEMES}


def test_the_themes_are_as_they_were_last_looked_at() -> None:
    assert json.loads(json.dumps(themes())) == json.loads(KEPT.read_text())["themes"]


if __name__ == "__main__":
    EVERY = {key: one for name in charts.names() for key, one in drawn(name).items()}
    KEPT.write_text(
        json.dumps({"altair": VERSION, "charts": EVERY, "themes": themes()}, indent=1, sort_keys=True) + "\n"
    )

"""Published figures beside ours, with the difference; figures that cannot be right are marked as inconsistent.

>>> rows = beside(Measurements([
...     Measurement("macs", 651200, "MAC", context={"variant": "dense"}),
...     Measurement("macs", 651200, "MAC", context={"variant": "dense", "published": "the report"}),
...     Measurement("macs", 329152, "MAC", context={"variant": "0.5", "published": "the report",
...                 "inconsistent": "784-200-18 gives 324,400"})]))
>>> [(row.name, row.variant, row.published, row.ours, row.difference, row.verdict) for row in rows]
[('macs', 'dense', '651,200', '651,200', '0', 'the same'), ('macs', '0.5', '329,152', '', '', 'reference inconsistent')]
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from secateur.core.measurement import Measurement, Measurements
from secateur.report.forms import is_plain
from secateur.report.reading import as_text, finite, is_share
from secateur.report.summary import number

__all__ = ["PublishedComparison", "beside"]

_NOT_COMPARED = {"published", "inconsistent", "run", "trial", "trial_number", "step", "seed", "metric"}


@dataclass(frozen=True)
class PublishedComparison:
    """A published figure, ours, and how they differ; `note` says why a reference is inconsistent."""

    name: str
    variant: str
    published: str
    ours: str
    difference: str
    verdict: str
    source: str
    note: str
    relative: float | None


def _settings(item: Measurement) -> dict[str, object]:
    return {key: value for key, value in item.context.items() if key not in _NOT_COMPARED}


def beside(measurements: Measurements) -> list[PublishedComparison]:
    """One row for every published figure; ours is the mean over the seeds."""
    ours = [item for item in measurements if is_plain(item) and finite(item.value) is not None]
    rows = []
    for item in measurements:
        if "published" not in item.context or finite(item.value) is None:
            continue
        wanted = _settings(item)
        match = [
            one
            for one in ours
            if one.name == item.name and all(one.context.get(k) == v for k, v in wanted.items())
        ]
        rows.append(_row(item, match))
    return rows


def _row(item: Measurement, match: list[Measurement]) -> PublishedComparison:
    settings = _settings(item)
    variant = str(settings.pop("variant", ""))
    more = ", ".join(f"{key} {as_text(value)}" for key, value in settings.items())
    why = item.context.get("inconsistent")
    name = item.name.replace("_", " ")
    labels = " · ".join(part for part in (variant, more) if part)
    shown = number(item.value, item.name, item.unit)
    source = str(item.context["published"])
    if not match:
        verdict = "reference inconsistent" if why else "not measured here"
        return PublishedComparison(name, labels, shown, "", "", verdict, source, str(why or ""), None)
    values = [one.value for one in match]
    value = values[0] if len(set(values)) == 1 else fmean(values)
    change = value - item.value
    sign = "+" if change > 0 else "−" if change < 0 else ""
    if is_share(item.name):
        text = f"{sign}{abs(change) * 100:.2f} points"
    else:
        text = f"{sign}{number(abs(change), item.name)}"
        if change and item.value:
            text += f" ({sign}{abs(change / item.value):.2%})".replace("%", " %")
    verdict = "reference inconsistent" if why else "the same" if not change else "differs"
    relative = change / item.value if item.value else None
    ours = number(value, item.name, item.unit) + (f" (mean of {len(match)})" if len(set(values)) > 1 else "")
    return PublishedComparison(name, labels, shown, ours, text, verdict, source, str(why or ""), relative)

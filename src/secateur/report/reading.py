"""Measurements, sorted for charts: their rows, what distinguishes them, and their labels.

>>> found = Measurements([
...     Measurement("accuracy", 0.9, context={"trial": 0, "variant": "dense"}),
...     Measurement("accuracy", 0.8, context={"trial": 0, "variant": "pruned", "sparsity": 0.5})])
>>> [(row.variant, row.label, row.values["accuracy"].value) for row in rows_of(found)]
[('dense', 'dense', 0.9), ('pruned', 'pruned', 0.8)]
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import altair as alt

from secateur.core.measurement import Measurement, Measurements
from secateur.report.forms import FORMS, is_plain

__all__ = [
    "LOWER",
    "QUALITIES",
    "VariantRow",
    "apart",
    "as_text",
    "before_and_after",
    "colour",
    "dashes",
    "finite",
    "fitting_legend",
    "legend_selection",
    "quality_of",
    "rows_of",
    "series_of",
    "settings_of",
    "variants_of",
    "whole_ticks",
]

QUALITIES = ("accuracy", "top1", "validation_accuracy", "loss", "total_loss")
"""Measures of a model's quality, the preferred first."""
LOWER = frozenset({"loss", "total_loss"})
"""Those of which lower is better."""

_NO_SETTING = {
    "run",
    "trial",
    "variant",
    "step",
    "seed",
    "metric",
    "published",
    "inconsistent",
    "epoch",
    "layer",
    "batch",
    "part",
}


def _is_seed(key: str) -> bool:
    return key.rpartition(".")[2] == "seed"


def _is_sparsity(key: str) -> bool:
    return key.rpartition(".")[2] in ("sparsity", "budget")


@dataclass
class VariantRow:
    """One variant of one trial of one run, and all that was measured of it."""

    run: str
    trial: int
    variant: str
    seed: Any = 0
    settings: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Measurement] = field(default_factory=dict)
    label: str = ""
    removed: float | None = None
    """The sparsity asked for if a setting gives it, else the share of the dense model's parameters gone."""

    def number(self, name: str) -> float | None:
        """A measured value, None where there is none or it diverged."""
        item = self.values.get(name)
        return finite(item.value) if item is not None else None

    @property
    def bytes(self) -> float | None:
        """Bytes on disk: of the coded file if there is one, else of the state dict as torch saves it."""
        return self.number("file_bytes") or self.number("size")


def finite(value: object) -> float | None:
    """A number a chart can place, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def as_text(value: object) -> str:
    """A setting as text for people.

    >>> as_text({"name": "overall", "sparsity": 0.9}), as_text(0.5), as_text("l1")
    ('overall 0.9', '0.5', 'l1')
    """
    if isinstance(value, Mapping):
        rest = [as_text(item) for key, item in value.items() if key != "name"]
        return " ".join([str(value.get("name", "")), *rest]).strip()
    return value if isinstance(value, str) else json.dumps(value)


def _place(item: Measurement) -> tuple[str, int, str]:
    context = item.context
    return (
        str(context.get("run", "")),
        int(context.get("trial", 0)),
        str(context.get("variant", "model")),
    )


def rows_of(measurements: Iterable[Measurement]) -> list[VariantRow]:
    """One row per run, trial and variant. What a step that only prunes or packs measured belongs to the next
    variant measured."""
    found: dict[tuple[str, int, str], VariantRow] = {}
    waiting: dict[tuple[str, int], dict[str, Measurement]] = {}
    last: dict[tuple[str, int], VariantRow] = {}
    for item in measurements:
        if not is_plain(item):
            continue
        run, trial, variant = _place(item)
        step = item.context.get("step")
        if step not in (None, "measure"):
            waiting.setdefault((run, trial), {})[item.name] = item
            continue
        row = found.get((run, trial, variant))
        if row is None:
            row = found[run, trial, variant] = VariantRow(run, trial, variant, item.context.get("seed", 0))
            row.values.update(waiting.pop((run, trial), {}))
            last[run, trial] = row
        _set_settings(row, item)
        row.values[item.name] = item
    for (run, trial), values in waiting.items():  # packed, but not measured again
        if (run, trial) in last:
            row = last[run, trial]
            row.values.update({name: item for name, item in values.items() if name not in row.values})
        else:
            final = list(values.values())[-1]
            row = found[run, trial, ""] = VariantRow(run, trial, _place(final)[2], values=values)
            for item in values.values():
                _set_settings(row, item)
    _same_moment(found.values())
    rows = list(found.values())
    _name(rows)
    _share_removed(rows)
    return rows


def _set_settings(row: VariantRow, item: Measurement) -> None:
    """Take a row's settings and its seed from what a measurement was made under."""
    row.settings.update({k: v for k, v in item.context.items() if k not in _NO_SETTING})
    seeds = [value for key, value in item.context.items() if _is_seed(key) and key != "seed"]
    row.seed = seeds[0] if seeds else item.context.get("seed", row.seed)


def _same_moment(rows: Iterable[VariantRow]) -> None:
    """Times are only comparable within one interleaved measurement: keep those of a trial's last one."""
    by_trial: dict[tuple[str, int], list[VariantRow]] = {}
    for row in rows:
        by_trial.setdefault((row.run, row.trial), []).append(row)
    for trial in by_trial.values():
        paired = [row for row in trial if "speedup" in row.values]
        for row in paired[:-1]:
            row.values.pop("latency", None)


def _name(rows: list[VariantRow]) -> None:
    """Give every row a label that distinguishes it: run, settings that vary, variant."""
    runs = {row.run for row in rows}
    keys = dict.fromkeys(key for row in rows for key in row.settings if not _is_seed(key))
    differing = [
        key for key in keys if len({as_text(row.settings.get(key, "")) for row in rows if row.settings}) > 1
    ]
    trials = {(row.run, row.trial) for row in rows}
    for row in rows:
        parts = [row.run] if len(runs) > 1 else []
        if len(trials) > len(runs):
            parts += [as_text(row.settings[key]) for key in differing if key in row.settings]
        row.label = " · ".join([*(part for part in parts if part), row.variant])


def settings_of(rows: Iterable[VariantRow]) -> dict[str, str]:
    """The settings that differ between rows, seeds left out, each with its heading: the shortest name that is unique.

    Args:
        rows: The rows.

    Returns:
        Heading by setting.

    >>> rows = [VariantRow("", k, "pruned", settings={"prune.budget": k, "prune.criterion": "l1"}) for k in (1, 2)]
    >>> settings_of(rows)
    {'prune.budget': 'budget'}
    """
    own = [row for row in rows if row.settings]
    keys = dict.fromkeys(key for row in own for key in row.settings if not _is_seed(key))
    differing = [key for key in keys if len({as_text(row.settings.get(key, "")) for row in own}) > 1]
    last = [key.rpartition(".")[2] for key in differing]
    return {key: short if last.count(short) == 1 else key for key, short in zip(differing, last)}


def _share_removed(rows: list[VariantRow]) -> None:
    dense: dict[tuple[str, int], float] = {}
    for row in rows:
        total = row.number("params")
        if total is not None:
            dense[row.run, row.trial] = max(total, dense.get((row.run, row.trial), 0))
    for row in rows:
        asked = [finite(value) for key, value in row.settings.items() if _is_sparsity(key)]
        asked += [
            finite(value.get("sparsity"))
            for key, value in row.settings.items()
            if _is_sparsity(key) and isinstance(value, Mapping)
        ]
        given = [value for value in asked if value is not None and 0 <= value < 1]
        nonzeros, total = row.number("nonzeros"), dense.get((row.run, row.trial))
        if row.variant == "dense":
            row.removed = 0.0
        elif given:
            row.removed = given[0]
        elif nonzeros is not None and total:
            row.removed = 1 - nonzeros / total
        else:
            row.removed = row.number("sparsity") or row.number("mask_sparsity")


def series_of(row: VariantRow, rows: Iterable[VariantRow]) -> str:
    """The label of a line in a chart over sparsity: all that distinguishes the row, except sparsity and seed."""
    others = list(rows)
    keys = [key for key in row.settings if not _is_sparsity(key) and not _is_seed(key)]
    differing = [
        key for key in keys if len({as_text(one.settings.get(key, "")) for one in others if one.settings}) > 1
    ]
    runs = {one.run for one in others}
    parts = [row.run] if len(runs) > 1 else []
    return " · ".join([*parts, *(as_text(row.settings[key]) for key in differing), row.variant])


def before_and_after(items: Iterable[Measurement]) -> tuple[Measurement, Measurement] | None:
    """The model before and after in one trial, from what one measure found; the first trial that changed anything.

    Before is the trial's dense variant, else the dense variant of its run, else the first variant of the trial; after
    is the last variant of the trial that differs. Models of different trials are never compared, because they may
    differ for other reasons. Where no trial changed anything, both are the first model; None where there is none.

    >>> def width(value, trial, variant):
    ...     return Measurement("widths", value, context={"trial": trial, "variant": variant})
    >>> found = [width(16, 0, "dense"), width(11, 1, "pruned"), width(6, 2, "pruned")]
    >>> [item.value for item in before_and_after(found)]
    [16, 11]
    """
    found = list(items)
    if not found:
        return None
    trials: dict[tuple[str, int], list[Measurement]] = {}
    dense: dict[str, Measurement] = {}
    for item in found:
        run, trial, variant = _place(item)
        trials.setdefault((run, trial), []).append(item)
        if variant == "dense":
            dense.setdefault(run, item)
    for (run, _), group in trials.items():
        own = next((item for item in group if _place(item)[2] == "dense"), None)
        before = own or dense.get(run, group[0])
        changed = [item for item in group if _form(item) != _form(before)]
        if changed:
            return before, changed[-1]
    return found[0], found[0]


def _form(item: Measurement) -> tuple[float, dict[str, float], object]:
    """What two models are compared by: the number, its parts, and the layers."""
    return item.value, dict(item.per_layer), item.context.get("layers")


def quality_of(rows: Iterable[VariantRow]) -> str | None:
    """The measured number that gives a model's quality."""
    there = {name for row in rows for name in row.values}
    return next((name for name in QUALITIES if name in there), None)


def variants_of(measurements: Measurements) -> list[str]:
    """The variants, each once, in the order measured, which gives each the same colour in every chart."""
    names = dict.fromkeys(row.variant for row in rows_of(measurements))
    more = dict.fromkeys(
        str(item.context["variant"])
        for item in measurements
        if item.name in FORMS and "variant" in item.context
    )
    drawn = [name for name in more if name not in names]
    return [*names, *drawn]


def colour(field_name: str, known: list[str], used: Iterable[str], legend: bool = True) -> alt.Color:
    """The colour of a variant: the same in every chart, because all variants are in the scale; the legend has those
    used."""
    own = list(dict.fromkeys(used))
    domain = [*known, *(name for name in own if name not in known)]
    shown = fitting_legend(own) if legend else None
    return alt.Color(field_name, type="nominal", scale=alt.Scale(domain=domain), legend=shown)


_LEGEND_PIXELS, _LETTER, _SYMBOL = 840, 7, 32


def fitting_legend(labels: Iterable[str]) -> alt.Legend:
    """A legend of as many columns as fit a page, so that it is never wider than its chart.

    >>> fitting_legend(["l1", "l2"]).columns, fitting_legend(["unstructured · magnitude · retrained"] * 9).columns
    (2, 2)
    """
    own = list(labels)
    widest = min(260, _LETTER * max((len(label) for label in own), default=1)) + _SYMBOL
    return alt.Legend(title=None, values=own, columns=max(1, min(len(own), _LEGEND_PIXELS // widest)))


def dashes(domain: list[str]) -> alt.StrokeDash:
    """A different dash for each series, so that lines on top of each other are both seen.

    Args:
        domain: The series, in the order of their colours.
    """
    forms = [[1, 0], [7, 4], [2, 3], [10, 3, 2, 3], [14, 5], [5, 2, 1, 2]]
    scale = alt.Scale(domain=domain, range=[forms[index % len(forms)] for index in range(len(domain))])
    return alt.StrokeDash("series:N", scale=scale, legend=None)


def whole_ticks(first: int, last: int, most: int = 12) -> list[int]:
    """Whole numbers for an axis that counts. Vega's own repeat a number where counts are few.

    Args:
        first: The smallest count.
        last: The largest.
        most: At most so many ticks.

    >>> whole_ticks(1, 3), whole_ticks(1, 30), whole_ticks(0, 100)
    ([1, 2, 3], [5, 10, 15, 20, 25, 30], [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100])
    """
    sizes = (factor * 10**power for power in range(12) for factor in (1, 2, 5))
    step = next(size for size in sizes if (last - first) // size < most)
    return list(range(-(-first // step) * step, last + 1, step))


def apart(items: Iterable[Measurement]) -> list[str]:
    """A label that distinguishes each measurement: its run and the settings that differ between them, such as "l1 ·
    0.3".

    >>> found = [Measurement("speedup", 1.0, context={"criterion": c, "sparsity": s, "epochs": 3})
    ...          for c in ("l1", "l2") for s in (0.3, 0.6)]
    >>> apart(found)
    ['l1 · 0.3', 'l1 · 0.6', 'l2 · 0.3', 'l2 · 0.6']
    """
    found = list(items)
    texts = [
        {key: as_text(value) for key, value in item.context.items() if key == "run" or key not in _NO_SETTING}
        for item in found
    ]
    keys = dict.fromkeys(key for said in texts for key in said)
    differing = [key for key in keys if len({said.get(key, "") for said in texts}) > 1]
    return [" · ".join(said[key] for key in differing if said.get(key)) for said in texts]


def legend_selection(name: str, field_name: str) -> alt.Parameter:
    """A selection: clicking an entry of the legend (shift for several) highlights it."""
    return alt.selection_point(name=name, fields=[field_name], bind="legend")

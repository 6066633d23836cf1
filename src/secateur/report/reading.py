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

from secateur.core.measurement import Measurement, Measurements
from secateur.core.over_seeds import is_seed, is_share, seed_of
from secateur.report.forms import FORMS, is_plain

__all__ = [
    "LOWER",
    "QUALITIES",
    "VariantRow",
    "apart",
    "as_text",
    "before_and_after",
    "finite",
    "is_share",
    "quality_of",
    "result_of",
    "rows_of",
    "series_of",
    "settings_of",
    "trial_of",
    "variants_of",
]

QUALITIES = ("accuracy", "top1", "validation_accuracy", "score", "loss", "total_loss")
"""Measures of a model's quality, the preferred first."""
LOWER = frozenset({"loss", "total_loss"})
"""Those of which lower is better."""

_NO_SETTING = {
    "run",
    "trial",
    "trial_number",
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


def _is_sparsity(key: str) -> bool:
    return key.rpartition(".")[2] in ("sparsity", "budget")


@dataclass
class VariantRow:
    """One variant of one trial of one run, and all that was measured of it; or the mean of trials that differ only by
    their seed (`variants.over_seeds`)."""

    run: str
    trial: int
    variant: str
    seed: Any = 0
    settings: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Measurement] = field(default_factory=dict)
    label: str = ""
    name: str = ""
    """The label without the seed."""
    removed: float | None = None
    """The sparsity asked for if a setting gives it, else the share of the dense model's parameters gone; None where the
    parameters of the model before anything was cut out of it were not measured."""
    timed_with: str = ""
    """The variant that it was timed in turns with."""
    timed_only: bool = False
    """Whether nothing is known of it but its time, because another variant was timed in turns with it."""
    cut: bool = False
    """Whether something was cut out of it before, so that what is missing cannot be counted in the model itself."""
    whole: Measurement | None = field(default=None, repr=False, compare=False)
    """The parameters before anything was cut out, where they were measured."""
    reference: VariantRow | None = field(default=None, repr=False, compare=False)
    """What it is compared with, never itself: the dense variant of its trial, else that of its run with the same seed
    or, where the dense variant has one seed only, that; else the first variant of its trial. None where there is no
    other, as for the dense variant."""
    members: tuple[VariantRow, ...] = field(default=(), repr=False, compare=False)
    """The trials that it is the mean of; empty for one trial."""
    of_seeds: int = 1
    """How many seeds its run has, of which some may be missing here."""

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
    items = [item for item in measurements if is_plain(item)]
    beside, timed_with = _timed_in_turns(items)
    found: dict[tuple[str, int, str], VariantRow] = {}
    waiting: dict[tuple[str, int], dict[str, Measurement]] = {}
    last: dict[tuple[str, int], VariantRow] = {}
    measured: set[tuple[str, int, str]] = set()
    for item in items:
        place = run, trial, variant = _place(item)
        if _step(item) is not None:
            waiting.setdefault((run, trial), {})[item.name] = item
            continue
        row = found.get(place)
        if row is None:
            row = found[place] = VariantRow(run, trial, variant, item.context.get("seed", 0))
        if place not in measured and id(item) not in beside:
            measured.add(place)
            row.values.update(waiting.pop((run, trial), {}))
            last[run, trial] = row
        _set_settings(row, item)
        row.values[item.name] = item
    for place, row in found.items():
        row.timed_with = timed_with.get(place, "")
        row.timed_only = place not in measured
    for (run, trial), values in waiting.items():  # packed, but not measured again
        if (run, trial) in last and _same_model(last[run, trial], values.values()):
            row = last[run, trial]
            row.values.update({name: item for name, item in values.items() if name not in row.values})
        else:
            final = list(values.values())[-1]
            row = found[run, trial, ""] = VariantRow(run, trial, _place(final)[2], values=values)
            for item in values.values():
                _set_settings(row, item)
    _same_moment(found.values())
    rows = _partners_first(list(found.values()))
    _name(rows)
    _refer(rows)
    _share_removed(rows)
    return rows


def _step(item: Measurement) -> str | None:
    """The kind of the step that measured it, None for a `measure` step and for what was measured without a recipe."""
    step = item.context.get("step")
    return None if step in (None, "measure") else str(step)


def _same_model(row: VariantRow, later: Iterable[Measurement]) -> bool:
    """Whether what was found after a variant was measured is of the same model: packed, and not changed before."""
    return row.variant != "dense" and all(_step(item) == "pack" for item in later)


def _timed_in_turns(items: Iterable[Measurement]) -> tuple[set[int], dict[tuple[str, int, str], str]]:
    """The times (by `id`) that were taken of a variant only for another to be compared with it, and, for each variant
    timed in turns with one, that one's name. The two times before a `speedup` are those of its pair."""
    times: dict[tuple[str, int], list[Measurement]] = {}
    beside: set[int] = set()
    names: dict[tuple[str, int, str], str] = {}
    for item in items:
        run, trial, variant = _place(item)
        if item.name == "latency":
            times.setdefault((run, trial), []).append(item)
        elif item.name == "speedup":
            for other in times.pop((run, trial), [])[-2:]:
                if _place(other)[2] != variant:
                    beside.add(id(other))
                    names[run, trial, variant] = _place(other)[2]
    return beside, names


def _partners_first(rows: list[VariantRow]) -> list[VariantRow]:
    """The same rows, each variant of which only the time is known before the one that was timed in turns with it: it is
    the model of an earlier step."""
    only = {(row.run, row.trial, row.variant): row for row in rows if row.timed_only}
    ordered: list[VariantRow] = []
    for row in rows:
        if not row.timed_only:
            partner = only.pop((row.run, row.trial, row.timed_with), None)
            ordered += [row] if partner is None else [partner, row]
    return [*ordered, *only.values()]


def _by_trial(rows: Iterable[VariantRow]) -> dict[tuple[str, int], list[VariantRow]]:
    found: dict[tuple[str, int], list[VariantRow]] = {}
    for row in rows:
        found.setdefault((row.run, row.trial), []).append(row)
    return found


def _refer(rows: list[VariantRow]) -> None:
    """Set what every variant is compared with."""
    of_run: dict[str, dict[str, VariantRow]] = {}
    for row in rows:
        if row.variant == "dense":
            of_run.setdefault(row.run, {}).setdefault(str(row.seed), row)
    for (run, _), trial in _by_trial(rows).items():
        others = of_run.get(run, {})
        alone = next(iter(others.values())) if len(others) == 1 else None
        own = (row for row in trial if row.variant == "dense")
        dense = next(own, others.get(str(trial[0].seed), alone))
        for row in trial:
            base = dense or trial[0]
            row.reference = None if row.variant == "dense" or base is row else base


def result_of(rows: Iterable[VariantRow]) -> VariantRow:
    """The variant that says what came out of a trial: the last of those with a reference whose quality was measured;
    where none was, the last one.

    >>> def row(variant, name, **more):
    ...     return VariantRow("", 0, variant, values={name: Measurement(name, 0.5)}, **more)
    >>> dense = row("dense", "accuracy")
    >>> result_of([dense, row("small", "accuracy", reference=dense), row("file", "size", reference=dense)]).variant
    'small'
    """
    every = list(rows)
    own = [row for row in every if not row.timed_only] or every
    later = [row for row in own if row.reference is not None] or own
    judged = [row for row in later if any(name in row.values for name in QUALITIES)]
    return (judged or later)[-1]


def _set_settings(row: VariantRow, item: Measurement) -> None:
    """Take a row's settings and its seed from what a measurement was made under."""
    row.settings.update({k: v for k, v in item.context.items() if k not in _NO_SETTING})
    row.seed = seed_of({"seed": row.seed, **item.context})


def _same_moment(rows: Iterable[VariantRow]) -> None:
    """Times are only comparable within one interleaved measurement: keep those of a trial's last one."""
    for trial in _by_trial(rows).values():
        paired = [row for row in trial if "speedup" in row.values]
        for row in paired[:-1]:
            row.values.pop("latency", None)


def _name(rows: list[VariantRow]) -> None:
    """Give every row a label that distinguishes it: run, settings that vary, variant, and its seed where seeds vary."""
    runs = {row.run for row in rows}
    keys = dict.fromkeys(key for row in rows for key in row.settings if not is_seed(key))
    differing = [
        key for key in keys if len({as_text(row.settings.get(key, "")) for row in rows if row.settings}) > 1
    ]
    trials = {(row.run, row.trial) for row in rows}
    seeds = _seeds_of_runs(rows)
    for row in rows:
        parts = [row.run] if len(runs) > 1 else []
        if len(trials) > len(runs):
            parts += [as_text(row.settings[key]) for key in differing if key in row.settings]
        row.name = row.label = " · ".join([*(part for part in parts if part), row.variant])
        if len(seeds[row.run]) > 1:
            row.label += f" · seed {row.seed}"


def _seeds_of_runs(rows: Iterable[VariantRow]) -> dict[str, set[str]]:
    """The seeds of each run."""
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row.run, set()).add(str(row.seed))
    return found


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
    keys = dict.fromkeys(key for row in own for key in row.settings if not is_seed(key))
    differing = [key for key in keys if len({as_text(row.settings.get(key, "")) for row in own}) > 1]
    last = [key.rpartition(".")[2] for key in differing]
    return {key: short if last.count(short) == 1 else key for key, short in zip(differing, last)}


def _share_removed(rows: list[VariantRow]) -> None:
    """Set how much was removed of every variant, and the parameters that this is a share of."""
    for trial in _by_trial(rows).values():
        whole, cut = _whole(trial), next((k for k, row in enumerate(trial) if _is_cut(row)), len(trial))
        pruned = next((k for k, row in enumerate(trial) if "mask_sparsity" in row.values), cut)
        before = pruned if pruned < len(trial) else 0
        for index, row in enumerate(trial):
            row.whole, row.cut = whole, index >= cut
            asked = [] if index < before or row.timed_only else _sparsities(row)
            if row.variant == "dense":
                row.removed = 0.0
            elif asked:
                row.removed = asked[0]
            else:
                row.removed = _removed(row, len(trial) == 1)


def _is_cut(row: VariantRow) -> bool:
    """Whether the step before it made the model smaller."""
    return "proof_error" in row.values


def _whole(trial: list[VariantRow]) -> Measurement | None:
    """The parameters of the model before anything was cut out: the dense variant's, else the most of the variants that
    were measured before a step cut something out."""
    dense = [row for row in trial if row.variant == "dense"]
    dense += [
        row.reference for row in trial if row.reference is not None and row.reference.variant == "dense"
    ]
    cut = next((k for k, row in enumerate(trial) if _is_cut(row)), len(trial))
    for rows in (dense, trial[:cut]):
        found = [row.values["params"] for row in rows if row.number("params")]
        if found:
            return max(found, key=lambda item: item.value)
    return None


def _sparsities(row: VariantRow) -> list[float]:
    """The sparsities that a row's settings ask for."""
    asked = [finite(value) for key, value in row.settings.items() if _is_sparsity(key)]
    asked += [
        finite(value.get("sparsity"))
        for key, value in row.settings.items()
        if _is_sparsity(key) and isinstance(value, Mapping)
    ]
    return [value for value in asked if value is not None and 0 <= value < 1]


def _removed(row: VariantRow, alone: bool) -> float | None:
    """The share of the parameters that is gone or zero, as measured; None where that cannot be known."""
    nonzeros, total = row.number("nonzeros"), None if row.whole is None else finite(row.whole.value)
    if nonzeros is not None and total:
        share = 1 - nonzeros / total
        # Nothing zero, and nothing else measured: this is the dense model, or one that something was cut out of.
        return None if alone and share == 0 and row.whole is row.values.get("params") else share
    if row.cut:  # its zeros are a share of the smaller model
        return None
    return row.number("sparsity") or row.number("mask_sparsity")


def series_of(row: VariantRow, rows: Iterable[VariantRow]) -> str:
    """The label of a line in a chart over sparsity: all that distinguishes the row, except sparsity and seed."""
    others = list(rows)
    keys = [key for key in row.settings if not _is_sparsity(key) and not is_seed(key)]
    differing = [
        key for key in keys if len({as_text(one.settings.get(key, "")) for one in others if one.settings}) > 1
    ]
    runs = {one.run for one in others}
    parts = [row.run] if len(runs) > 1 else []
    return " · ".join([*parts, *(as_text(row.settings[key]) for key in differing), row.variant])


def before_and_after(
    items: Iterable[Measurement], wanted: Iterable[tuple[str, int]] = ()
) -> tuple[Measurement, Measurement] | None:
    """The model before and after in one trial, from what one measure found; the first trial that changed anything.

    Args:
        items: What was found.
        wanted: (run, trial) of the trials that come before the others.

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
    first = set(wanted)
    for (run, _), group in sorted(trials.items(), key=lambda trial: trial[0] not in first):
        own = next((item for item in group if _place(item)[2] == "dense"), None)
        before = own or dense.get(run, group[0])
        changed = [item for item in group if _form(item) != _form(before)]
        if changed:
            return before, changed[-1]
    return found[0], found[0]


def trial_of(measurements: Iterable[Measurement], item: Measurement) -> str:
    """Of which trial a measurement is, as " of trial 2 (random)", in words for a title; empty in a run of one trial."""
    run, trial, _ = _place(item)
    rows = [row for row in rows_of(measurements) if row.run == run]
    if len({row.trial for row in rows}) < 2:
        return ""
    own = next((row for row in rows if row.trial == trial and row.settings), None)
    keys = settings_of(rows)
    said = " · ".join(as_text(own.settings[key]) for key in keys if key in own.settings) if own else ""
    own = own or next((row for row in rows if row.trial == trial), None)
    if own is not None and len({str(row.seed) for row in rows}) > 1:
        said = ", ".join(filter(None, (said, f"seed {own.seed}")))
    return f" of trial {trial + 1}" + (f" ({said})" if said else "")


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

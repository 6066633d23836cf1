"""The variants of a sweep, judged: trials that differ only by their seed are one variant, and count by their mean.

>>> found = [
...     Measurement(name, value, context={"trial": seed, "seed": seed, "variant": variant})
...     for seed, (dense, small) in enumerate([(0.90, 0.89), (0.80, 0.81)])
...     for variant, good, cost in (("dense", dense, 100), ("small", small, 50))
...     for name, value in (("accuracy", good), ("macs", cost))]
>>> [(row.label, seeds_of(row), round(row.number("accuracy"), 3)) for row in over_seeds(rows_of(found))]
[('dense', 2, 0.85), ('small', 2, 0.85)]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from secateur.core.measurement import Measurement
from secateur.core.over_seeds import SeedMean, interval_of, is_seed, mean_over_seeds, paired
from secateur.report.reading import (
    LOWER,
    VariantRow,
    as_text,
    quality_of,
    result_of,
    rows_of,
)

__all__ = [
    "change_of",
    "comparable",
    "cost_of",
    "is_paired",
    "of_one_trial",
    "over_seeds",
    "result_trials",
    "seeds_of",
    "settled",
    "smallest_near",
]


def seeds_of(row: VariantRow) -> int:
    """Over how many seeds a row is the mean; 1 for that of one trial."""
    return max(1, len(row.members))


def over_seeds(rows: Sequence[VariantRow]) -> list[VariantRow]:
    """One row for all trials that differ only by their seed: the means, with their 95 % intervals.

    The dense models of settings that change nothing before they are measured are one too. A row of a single trial stays
    as it is. What a row is compared with is the mean of what its own trials are compared with, seed by seed.

    Args:
        rows: One for each variant of each trial, as `rows_of` gives them.
    """
    groups = _groups(rows)
    if all(len(group) == 1 for group in groups):
        return list(rows)
    seeds: dict[str, set[str]] = {}
    for row in rows:
        seeds.setdefault(row.run, set()).add(str(row.seed))
    found: list[VariantRow] = []
    known: dict[tuple[int, ...], VariantRow] = {}
    alike: dict[object, VariantRow] = {}
    for group in groups:
        row = _mean_row(group)
        row.of_seeds = len(seeds[row.run])
        if row.variant == "dense":
            row = alike.setdefault((row.run, _numbers(group)), row)
        known[tuple(id(member) for member in group)] = row
        if not any(row is one for one in found):
            found.append(row)
    several = len({row.run for row in found}) > 1
    for run in {row.run for row in found}:
        dense = [row for row in found if row.variant == "dense" and row.run == run]
        if len(dense) == 1 and dense[0].members:
            dense[0].label = dense[0].name = f"{run} · dense" if several and run else "dense"
    for group in groups:
        references = list({id(row.reference): row.reference for row in group if row.reference}.values())
        key = tuple(id(one) for one in references)
        row = known[tuple(id(member) for member in group)]
        if references and row.variant != "dense":
            row.reference = known[key] if key in known else _mean_row(references)
    return found


def _groups(rows: Sequence[VariantRow]) -> list[list[VariantRow]]:
    """Rows that differ only by their seed, together; of one seed twice, the second is of another group."""
    found: dict[object, list[VariantRow]] = {}
    times: dict[object, int] = {}
    for row in rows:
        settings = tuple(
            sorted((key, as_text(row.settings[key])) for key in row.settings if not is_seed(key))
        )
        key = (row.run, row.variant, settings)
        times[key, str(row.seed)] = times.get((key, str(row.seed)), 0) + 1
        found.setdefault((key, times[key, str(row.seed)]), []).append(row)
    return list(found.values())


def _numbers(group: Sequence[VariantRow]) -> object:
    """What was measured of each seed but times, by which dense models are known to be the same."""
    return tuple(
        (
            str(row.seed),
            tuple(sorted((name, str(one.value)) for name, one in row.values.items() if name != "latency")),
        )
        for row in group
    )


def _mean_row(group: Sequence[VariantRow]) -> VariantRow:
    """The mean of trials; of one trial, a copy."""
    first = group[0]
    if len(group) == 1:
        return replace(first)
    names = dict.fromkeys(name for row in group for name in row.values)
    removed = [row.removed for row in group if row.removed is not None]
    return replace(
        first,
        seed=", ".join(str(row.seed) for row in group),
        settings={key: value for key, value in first.settings.items() if not is_seed(key)},
        values={name: _mean([row.values[name] for row in group if name in row.values]) for name in names},
        label=first.name,
        removed=mean_over_seeds(removed).mean if len(removed) == len(group) else first.removed,
        timed_only=all(row.timed_only for row in group),
        members=tuple(group),
    )


def _mean(items: Sequence[Measurement]) -> Measurement:
    """The mean of one measure, with its interval; as it is where every seed gives the same."""
    first, over = items[0], mean_over_seeds([float(item.value) for item in items])
    context = {key: value for key, value in first.context.items() if not is_seed(key) and key != "trial"}
    if len(set(over.values)) == 1:
        return replace(first, context=context, trials=over.values, spread={}, per_layer={})
    spread, notes = {}, first.notes
    if math.isnan(over.mean):
        lost = [str(item.context.get("seed", "")) for item in items if math.isnan(item.value)]
        notes = (*notes, f"diverged with {len(lost)} of {len(items)} seeds")
    else:
        spread = dict(zip(("low", "high"), interval_of(over, first.name, first.unit)))
    text = f"mean over {len(items)} seeds, with the 95 % interval of Student's t"
    return Measurement(
        first.name,
        over.mean,
        first.unit,
        f"{first.definition}; {text}" if first.definition else text,
        trials=over.values,
        notes=notes,
        context=context,
        spread=spread,
    )


def change_of(row: VariantRow, name: str) -> SeedMean | None:
    """How much a measure differs from that of what the row is compared with: the mean of the differences seed by seed.

    Args:
        row: A row of `over_seeds`.
        name: The measure.

    Returns:
        The mean difference, without an interval where what a row is compared with is of another seed; None where either
        was not measured, or diverged.
    """
    ours, theirs = {}, {}
    for member in row.members or (row,):
        value = member.number(name)
        base = None if member.reference is None else member.reference.number(name)
        if value is None:
            return None
        ours[str(member.seed)] = value
        if base is not None:
            theirs[str(member.seed)] = base
    pairs = paired(ours, theirs)
    if not pairs:
        return None
    over = mean_over_seeds([value - base for value, base in pairs])
    return over if is_paired(row) else replace(over, half=math.nan)


def is_paired(row: VariantRow) -> bool:
    """Whether each trial of a row is compared with one of its own seed.

    Args:
        row: A row of `over_seeds`.
    """
    references = [(member.seed, member.reference) for member in row.members or (row,)]
    return all(other is None or str(other.seed) == str(seed) for seed, other in references)


def settled(rows: Sequence[VariantRow]) -> list[VariantRow]:
    """The rows of more than half as many seeds as the most of their run have, and the dense ones.

    One lucky trial, the others of which failed or have not run yet, is not judged beside means.
    """
    most: dict[str, int] = {}
    for row in rows:
        most[row.run] = max(most.get(row.run, 1), seeds_of(row))
    return [row for row in rows if row.variant == "dense" or 2 * seeds_of(row) > most[row.run]]


def cost_of(row: VariantRow) -> float | None:
    """What a variant costs: the bytes of its file, else its multiply-accumulates, non-zero parameters or size."""
    return (
        row.bytes
        if "file_bytes" in row.values
        else row.number("macs_nonzero") or row.number("nonzeros") or row.bytes or row.number("macs")
    )


def comparable(rows: Iterable[VariantRow], quality: str) -> list[VariantRow]:
    """The variants with a cost of which the quality is known, and that of what they are compared with."""
    return [
        row
        for row in rows
        if row.reference is not None
        and row.reference.number(quality) is not None
        and row.number(quality) is not None
        and cost_of(row)
    ]


def smallest_near(rows: Sequence[VariantRow]) -> VariantRow | None:
    """The cheapest variant at most one point of accuracy, or one per cent of loss, worse than what it is compared with.

    Args:
        rows: Rows of `over_seeds`; each counts by its mean.
    """
    quality = quality_of(rows)
    if quality is None:
        return None
    sign = -1 if quality in LOWER else 1
    near = []
    for row in comparable(settled(rows), quality):
        base = row.reference.number(quality) if row.reference is not None else None
        change = change_of(row, quality)
        if base is not None and change is not None:
            slack = 0.01 if quality not in LOWER else 0.01 * abs(base)
            near += [row] if change.mean * sign >= -slack else []
    return min(near, key=lambda row: cost_of(row) or math.inf, default=None)


def result_trials(measurements: Iterable[Measurement]) -> list[tuple[str, int]]:
    """The trial that each run's headline is about, as (run, trial); of a mean over seeds the first seed's.

    Args:
        measurements: Those of the runs.
    """
    every = rows_of(measurements)
    found = []
    for run in dict.fromkeys(row.run for row in every):
        rows = over_seeds([row for row in every if row.run == run])
        best = smallest_near(rows) if len({row.trial for row in rows}) > 1 else result_of(rows)
        if best is not None:
            found.append((run, best.trial))
    return found


def of_one_trial(found: Sequence[Measurement], measurements: Iterable[Measurement]) -> list[Measurement]:
    """Of a picture's data those of one trial of each run: the headline's where it has them, else the first that has.

    Args:
        found: The picture's data.
        measurements: All that was measured.
    """
    places = [(str(item.context.get("run", "")), int(item.context.get("trial", 0))) for item in found]
    first: dict[str, int] = {}
    for run, trial in places:
        first.setdefault(run, trial)
    if len(set(places)) > len(first):
        first |= {run: trial for run, trial in result_trials(measurements) if (run, trial) in set(places)}
    return [item for item, (run, trial) in zip(found, places) if first[run] == trial]

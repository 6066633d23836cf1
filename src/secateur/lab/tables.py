"""The measurements of a run as a table for people, and as files for other programs.

>>> from secateur.core.measurement import Measurement, Measurements
>>> found = Measurements([
...     Measurement("macs", 100, "MAC", context={"trial": 0, "variant": "dense", "step": "measure"}),
...     Measurement("macs", 50, "MAC", context={"trial": 0, "variant": "small", "step": "measure"})])
>>> summary(found)
(['variant', 'macs'], [['dense', '100 MAC'], ['small', '50 MAC']])
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from secateur.core.json_text import finite
from secateur.core.measurement import Measurement, Measurements
from secateur.core.over_seeds import interval_of, mean_over_seeds
from secateur.errors import NothingToDoError, StoreError
from secateur.lab.objects import atomic_write
from secateur.lab.outcomes import Outcome, Table
from secateur.lab.table_files import cell, write_table

if TYPE_CHECKING:
    from secateur.lab.engine import Ran
    from secateur.lab.store import Store

__all__ = [
    "as_json",
    "definitions",
    "has_seeds",
    "numbered",
    "summary",
    "variants",
    "write_measurements",
    "write_outcome",
    "write_results",
]


def variants(measurements: Iterable[Measurement]) -> dict[tuple[int, str], dict[str, Measurement]]:
    """The measurements of `measure` and `pack` steps, by trial and variant.

    Args:
        measurements: Those of a run.

    Returns:
        Per (trial, variant) its measurements by name.
    """
    found: dict[tuple[int, str], dict[str, Measurement]] = {}
    for item in measurements:
        context = item.context
        if context.get("step") in ("measure", "pack") and "epoch" not in context:
            found.setdefault((context["trial"], context["variant"]), {}).setdefault(item.name, item)
    return found


def summary(
    measurements: Measurements, grid: Mapping[str, Any] | None = None
) -> tuple[list[str], list[list[str]]]:
    """A table: one row per trial and variant, one column per axis of the grid and per measured name.

    Trials that differ by the seed alone are one row: the means, with the 95 % interval of Student's t, and the number
    of seeds, as "2 of 3" where some failed or are not done.

    Args:
        measurements: Those of a run.
        grid: The recipe's grid.

    Returns:
        The head, and the rows.
    """
    found = variants(measurements)
    names = list(dict.fromkeys(name for row in found.values() for name in row))
    seeded = has_seeds(grid)
    axes = [axis for axis in grid or {} if not (seeded and axis == "lab.seed")]
    groups: _Groups = {}
    for (trial, variant), row in found.items():
        context = next(iter(row.values())).context
        settings = [_short(context.get(axis, "")) for axis in axes]
        groups.setdefault((*settings, variant, "" if seeded else str(trial)), []).append(row)
    asked = len((grid or {}).get("lab.seed", ()))
    rows = []
    for (*settings, variant, _), several in (_dense_once(groups) if seeded else groups).items():
        own = {name: [row[name] for row in several if name in row] for name in names}
        cells = [_mean(items).text() if items else "" for items in own.values()]
        seeds = str(len(several)) if len(several) >= asked else f"{len(several)} of {asked}"
        rows.append([*settings, variant, *([seeds] if seeded else []), *cells])
    return [*axes, "variant", *(["seeds"] if seeded else []), *names], rows


def has_seeds(grid: Mapping[str, Any] | None) -> bool:
    """Whether a grid repeats its trials with several seeds, over which `summary` gives the means.

    Args:
        grid: The recipe's grid.

    >>> has_seeds({"lab.seed": (0, 1)}), has_seeds({"prune.budget": (0.5, 0.9)})
    (True, False)
    """
    return len((grid or {}).get("lab.seed", ())) > 1


def _mean(items: Sequence[Measurement]) -> Measurement:
    """One measurement of several that differ by the seed alone: the mean, with its 95 % interval."""
    if len({float(item.value) for item in items}) == 1:
        return items[0]
    over = mean_over_seeds([float(item.value) for item in items])
    low, high = interval_of(over, items[0].name, items[0].unit)
    spread = {} if math.isnan(over.half) else {"low": low, "high": high}
    return replace(items[0], value=over.mean, spread=spread, per_layer={}, trials=over.values)


_Groups: TypeAlias = dict[tuple[str, ...], list[dict[str, Measurement]]]


def _dense_once(groups: _Groups) -> _Groups:
    """The dense model in one row without settings, where no axis changes it: all numbers but times are the same.

    Another variant stays, whatever its numbers: two criteria may well leave as many multiply-accumulates.
    """
    numbers = [
        [
            {name: str(item.value) for name, item in row.items() if item.unit not in ("s", "ms")}
            for row in rows
        ]
        for (*_, variant, _), rows in groups.items()
        if variant == "dense"
    ]
    if len(numbers) < 2 or any(own != numbers[0] for own in numbers):
        return groups
    found: _Groups = {}
    for (*settings, variant, trial), rows in groups.items():
        blank = ("",) * len(settings)
        found.setdefault((*(blank if variant == "dense" else settings), variant, trial), rows)
    return found


def definitions(measurements: Iterable[Measurement]) -> list[str]:
    """What the columns of `summary` say, a line each; of one that needs no words, none.

    Args:
        measurements: Those of a run.

    >>> at = {"trial": 0, "variant": "pack", "step": "pack"}
    >>> definitions([Measurement("file_ratio", 4.0, "x", "original_bytes over file_bytes", context=at)])
    ['  file_ratio: original_bytes over file_bytes']
    """
    found: dict[str, dict[str, list[str]]] = {}  # by name and definition the variants that have it
    for (_, variant), row in variants(measurements).items():
        for name, item in row.items():
            found.setdefault(name, {}).setdefault(item.definition, []).append(variant)
    lines = []
    for name, texts in found.items():
        for text, having in texts.items():
            of = "" if len(texts) == 1 else f" ({', '.join(dict.fromkeys(having))})"
            lines += [f"  {name}{of}: {text}"] if text else []
    return lines


def _short(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def numbered(measurements: Iterable[Measurement]) -> list[Table]:
    """Measurements as plain data: `trial` in the context counts from 0, `trial_number` from 1, as people see it.

    Args:
        measurements: Those of a run.

    >>> numbered([Measurement("macs", 50, context={"trial": 48})])[0]["context"]
    {'trial': 48, 'trial_number': 49}
    """
    found = []
    for item in measurements:
        plain, trial = item.to_dict(), item.context.get("trial")
        if isinstance(trial, int):
            plain["context"] = {
                name: value
                for key, own in item.context.items()
                for name, value in ((key, own), *([("trial_number", trial + 1)] if key == "trial" else []))
            }
        found.append(plain)
    return found


def as_json(ran: Ran) -> Table:
    """A run as plain data."""
    return {
        "run": ran.run,
        "recipe": ran.plan.recipe.plain(),
        "computed": ran.computed,
        "cached": ran.cached,
        "seconds": round(ran.seconds, 3),
        "failures": [
            {"trial": trial, "trial_number": trial + 1, "error": error} for trial, error in ran.failures
        ],
        "measurements": numbered(ran.measurements),
    }


def _flat(measurements: Measurements) -> tuple[list[str], list[Table]]:
    """Columns, and rows: one per Measurement and one more per layer that it is split into."""
    columns = ["name", "layer", "value", "unit", "definition", "notes", "trials"]
    measurements = Measurements(Measurement.from_dict(item) for item in numbered(measurements))
    keys = list(dict.fromkeys(key for item in measurements for key in item.context))
    rows = []
    for item in measurements:
        context = {key: cell(item.context[key]) for key in keys if key in item.context}
        base = {"name": item.name, "unit": item.unit, "definition": item.definition, **context}
        whole = {
            "notes": "; ".join(item.notes),
            "trials": json.dumps(finite(item.trials)) if item.trials else "",
        }
        rows.append({**base, **whole, "layer": "", "value": float(item.value)})
        rows += [{**base, "layer": layer, "value": float(value)} for layer, value in item.per_layer.items()]
    return [*columns, *(key for key in keys if key not in columns)], rows


def write_measurements(measurements: Measurements, path: Path) -> int:
    """Write the measurements to a file.

    `trial` counts from 0, as the store does; `trial_number` from 1, as the terminal and the folders of `--out` do; the
    rest as in `write_table`.

    Args:
        measurements: What to write.
        path: A name that ends in .csv, .parquet or .json.

    Returns:
        How many rows were written.

    Raises:
        NothingToDoError: There are no measurements.
        OptionError: The name has another ending.
    """
    if not measurements:
        raise NothingToDoError(
            "this run measured nothing, so there is nothing to export; add a `measure` step"
        )
    if path.suffix == ".json":
        atomic_write(path, json.dumps(finite(numbered(measurements)), indent=2).encode())
        return sum(1 + len(item.per_layer) for item in measurements)
    columns, rows = _flat(measurements)
    write_table(columns, rows, path)
    return len(rows)


def write_outcome(outcome: Outcome, store: Store, folder: Path) -> list[Path]:
    """Write the weights, the masks, the plan and the files of a step's outcome into a folder.

    Args:
        outcome: What the step left.
        store: The store that holds it.
        folder: The folder.

    Returns:
        The files written.

    Raises:
        StoreError: The store names a file that would not lie in the folder.
    """
    state = outcome.state
    parts = {
        "model.safetensors": state.get("weights"),
        "masks.safetensors": state.get("masks"),
        "plan.json": state.get("plan"),
        **dict(state.get("files", {})),
    }
    written = []
    for name, place in parts.items():
        if place is None:
            continue
        if Path(name).name != name or name.startswith(".") or name in ("", ".."):
            raise StoreError(
                f"a file of a step: expected a plain file name in the store, got {name!r}; the store is "
                "damaged or was changed; restore it from a copy, or name another folder with --store"
            )
        atomic_write(folder / name, store.objects.get(place.removeprefix("object:")))
        written.append(folder / name)
    return written


def write_results(ran: Ran, store: Store, out: Path) -> list[Path]:
    """Write the final weights, masks and files of every trial, and all Measurements, into a folder.

    Args:
        ran: The run.
        store: Its store.
        out: The folder.

    Returns:
        The files written.

    Raises:
        StoreError: The store names a file that would not lie in the folder.
    """
    written = []
    for trial in ran.plan.trials:
        outcome = store.outcome(trial.steps[-1].key)
        if outcome is not None:  # the trial did not fail
            folder = out if len(ran.plan.trials) == 1 else out / f"trial-{trial.index + 1}"
            written += write_outcome(outcome, store, folder)
    if ran.measurements:
        write_measurements(ran.measurements, out / "measurements.json")
        written.append(out / "measurements.json")
    return written

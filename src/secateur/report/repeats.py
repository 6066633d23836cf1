"""Runs of one recipe with other seeds, which a report judges together: as trials of one run.

>>> def run(name, seed, value):
...     rows = [Measurement("accuracy", value, context={"variant": "small", "seed": seed})]
...     return Run(name, Measurements(rows), provenance={"recipe": {"name": "r", "lab": {"seed": seed}}})
>>> found = joined([run("r #1", 0, 0.9), run("r #2", 1, 0.8)])
>>> [(item.context["run"], item.context["trial"], item.context["seed"]) for item in found]
[('r #1, r #2', 0, 0), ('r #1, r #2', 1, 1)]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from secateur.core.measurement import Measurement, Measurements
from secateur.core.over_seeds import seed_of
from secateur.report.forms import is_plain
from secateur.report.run import Run

__all__ = ["joined"]


def joined(runs: Sequence[Run]) -> Measurements:
    """What the runs measured; of those that differ in `lab.seed` alone as of one, with trials numbered on.

    Runs on another device, on other hardware, or with another version of secateur or torch stay apart: their times and
    numbers are no seeds of each other.

    Args:
        runs: The runs of a report, each of a name of its own.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_conditions(run), []).append(run)
    found: list[Measurement] = []
    for group in groups.values():
        together = len(group) > 1 and _other_seeds(group)
        found += _one(group) if together else [item for run in group for item in run.measurements]
    return Measurements(found)


def _conditions(run: Run) -> str:
    """A run's recipe without its seed, with its device, hardware and versions; of a run without a recipe its name,
    which no other has."""
    recipe = run.provenance.get("recipe")
    if not isinstance(recipe, dict):
        return run.name
    lab = {key: value for key, value in (recipe.get("lab") or {}).items() if key != "seed"}
    hardware, versions = (dict(run.provenance.get(key) or {}) for key in ("hardware", "versions"))
    hardware.pop("visible_gpus", None)  # which of the machine's it was told to use
    own = [run.provenance.get("device"), hardware, versions.get("secateur"), versions.get("torch")]
    return json.dumps([{**recipe, "lab": lab}, *own], sort_keys=True, default=str)


def _other_seeds(group: Sequence[Run]) -> bool:
    """Whether no two runs measured with the same seed: else they are the same runs again."""
    seeds = [
        {str(seed_of(item.context)) for item in run.measurements if "seed" in item.context} for run in group
    ]
    return all(seeds) and len(set().union(*seeds)) == sum(map(len, seeds))


def _one(group: Sequence[Run]) -> list[Measurement]:
    """The measurements of runs as of one; what belongs to no trial, as the usage of the machine, stays its run's."""
    name = ", ".join(run.name for run in group)
    found: list[Measurement] = []
    first = 0
    for run in group:
        last = 0
        for item in run.measurements:
            if "trial" in item.context or is_plain(item):
                trial = int(item.context.get("trial", 0))
                last = max(last, trial)
                item = replace(item, context={**item.context, "run": name, "trial": first + trial})
            found.append(item)
        first += last + 1
    return found

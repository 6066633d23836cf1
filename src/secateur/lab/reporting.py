"""A run of a store as a report shows it: its Measurements, what its models look like, and where it came from.

Weights, masks and files lie in the store, so histograms, widths and drawings are made from there: no run has to have
been made with a report in mind.

>>> import tempfile
>>> from secateur.lab.store import Store
>>> about({"model": {"name": "resnet20"}, "data": {"name": "digits"}, "step": [{"kind": "train"}, {"kind": "prune"}]})
'resnet20 on digits: train, prune.'
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from secateur.core.measurement import Measurement, Measurements
from secateur.errors import SecateurError
from secateur.execution.example import Example
from secateur.lab.planning import builder, data_of
from secateur.lab.recipe import Recipe
from secateur.lab.state import State, revive
from secateur.lab.store import RunRow, Store
from secateur.metrics import measure
from secateur.report.run import Run

__all__ = ["about", "gather", "pictures_of", "provenance"]

_PICTURED = ("train", "prune", "retrain", "shrink", "share", "pack", "measure")
_MOST = 7  # variants whose weights are drawn side by side
_ELEMENTS = (
    120_000_000  # weights looked at for one run's histograms, so that a report stays a matter of seconds
)


Table = Mapping[str, Any]
"""A table of a recipe, or a step of a trial, as the store gives it."""


def gather(store: Store, which: int | str = "last", *, pictures: bool = True) -> Run:
    """Everything a report says of one run. Without `pictures` the stored weights are not looked at."""
    row = store.run(which)
    trials = store.trials(row.id)
    found = store.measurements(row.id)
    undrawn: list[str] = []
    if pictures:
        found = found + _pictures(store, row, trials, undrawn)
    failures = tuple(
        f"trial {t['trial'] + 1}: {t['error'] or 'failed'}".strip() for t in trials if t["status"] == "failed"
    )
    told = provenance(store, row.id) | ({"not drawn": "; ".join(undrawn)} if undrawn else {})
    return Run(f"{row.name} #{row.id}", found, about(row.recipe), told, failures)


def about(recipe: Table) -> str:
    """What was done, to what, in one sentence."""
    steps = [str(step.get("label") or step["kind"]) for step in recipe.get("step", [])]
    grid = recipe.get("grid") or {}
    over = (
        f" Once for every combination of {', '.join(f'{k} ({len(v)})' for k, v in grid.items())}."
        if grid
        else ""
    )
    return f"{recipe['model']['name']} on {recipe['data']['name']}: {', '.join(steps)}.{over}"


def provenance(store: Store, which: int | str = "last") -> dict[str, Any]:
    """Where a run's numbers come from: command, seed, device, hardware, versions, the whole recipe."""
    row = store.run(which)
    trials = store.trials(row.id)
    steps = {step["key"]: step for trial in trials for step in trial["steps"]}
    spent = sum(step["seconds"] or 0.0 for step in steps.values())
    return {
        "run": f"{row.name} #{row.id}, {row.status}",
        "command": row.command,
        "started": row.started[:19].replace("T", " ") + " UTC",
        "time spent": f"{row.seconds or 0:.1f} s in this run; its {len(steps)} steps took {spent:.1f} s when computed",
        "trials": f"{row.trials}, {row.failed} failed",
        "seed": row.seed,
        "device": row.device,
        "hardware": dict(row.hardware),
        "versions": dict(row.versions),
        "recipe": dict(row.recipe),
    }


def _pictures(store: Store, row: RunRow, trials: list[dict[str, Any]], undrawn: list[str]) -> Measurements:
    """Histograms, widths, drawings and file accounts of the first trial that is done."""
    trial = next((trial for trial in trials if trial["status"] == "done"), None)
    if trial is None:
        return Measurements()
    found = pictures_of(store, row.recipe, _worth_showing(trial["steps"]), undrawn)
    return found.within({"run": row.id, "trial": 0})


def pictures_of(store: Store, recipe: Table, steps: Iterable[Table], undrawn: list[str]) -> Measurements:
    """Histograms, widths, drawings and file accounts of the states after these steps (`label` and `key` of each).

    A model's code may have changed since the run, or not be there any more. The numbers stay what they were, so the
    report is made all the same; what cannot be drawn, and why, goes to `undrawn`.
    """
    try:
        whole = Recipe.of(dict(recipe))
        build = builder(whole)
        example = _example(whole, build)
    except Exception as error:  # the user's own code may raise anything
        undrawn.append(f"the models: {error}")
        return Measurements()
    found: list[Measurement] = []
    for step in steps:
        outcome = store.outcome(step["key"])
        if outcome is None:
            continue
        try:
            state = revive(outcome.state, store.objects, build)
        except Exception as error:
            undrawn.append(f"{step['label']}: {error}")
            continue
        first = not found
        for draw in (_structure, _weights, _activations, _bytes):
            try:
                found += draw(state, example, first).within({"variant": step["label"]})
            except Exception as error:
                undrawn.append(f"{draw.__name__.strip('_')} of {step['label']}: {error}")
    return Measurements(found)


def _structure(state: State, example: Example, first: bool) -> Measurements:
    """Layers and widths. Couplings are traced once, on the model as it was first."""
    found = measure(state.model, example if first else None, what=["architecture"])
    if first or state.plan is not None:
        return found
    return Measurements(item for item in found if item.name == "widths")


def _weights(state: State, example: Example, first: bool) -> Measurements:
    weighed = sum(parameter.numel() for parameter in state.model.parameters())
    if weighed * _MOST > _ELEMENTS:
        return Measurements()
    return measure(state.model, what=["weight_histogram", "filter_sums"])


def _activations(state: State, example: Example, first: bool) -> Measurements:
    return Measurements() if example is None else measure(state.model, example, what=["activation_histogram"])


def _bytes(state: State, example: Example, first: bool) -> Measurements:
    return _account(list(state.files.values())[-1]) if state.files else Measurements()


def _worth_showing(steps: Iterable[Table]) -> list[Table]:
    """The steps after which the weights are others than before, and measured variants by their own name."""
    kept: list[Table] = []
    changed = True
    for step in steps:
        if step["kind"] == "measure":
            if changed and kept:
                kept[-1] = {**step, "kind": kept[-1]["kind"], "key": kept[-1]["key"]}
            changed = False
        elif step["kind"] in _PICTURED:
            kept.append(step)
            changed = True
    return [kept[0], *kept[1:][-(_MOST - 1) :]] if kept else []


def _example(recipe: Recipe, build: Callable[[], nn.Module]) -> Example:
    """The first test image; noise of its shape where the data are gone and the model says what it takes."""
    import torch

    from secateur import models

    try:
        return data_of(recipe).example
    except (SecateurError, OSError):
        pass
    model = build()
    shape = models.input_shape(model)
    if shape is None:
        return None
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


def _account(data: bytes) -> Measurements:
    """Where the bytes of a .sct file go."""
    from secateur.container.inspection import inspect

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.sct"
        path.write_bytes(data)
        report = inspect(path)
    parts = {
        row.name: {**row.parts, "name and frame": row.size - sum(row.parts.values())} for row in report.rows
    }
    of_tensors = sum(size for own in parts.values() for size in own.values())
    parts["(not of one tensor)"] = {"head and checksums": report.size - of_tensors}
    text = "bytes of the .sct file on disk, by tensor and part; what belongs to no single tensor has a bar of its own"
    return Measurements(
        [
            Measurement(
                "tensor_bytes_in_file",
                report.size,
                "bytes",
                text,
                per_layer={name: sum(own.values()) for name, own in parts.items()},
                context={"parts": parts},
            )
        ]
    )

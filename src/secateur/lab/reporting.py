"""`gather`: a run of a store as a report shows it: its Measurements, pictures of its models, and its provenance.

Weights, masks and files are in the store, so histograms, widths and drawings can be made of every run.

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

import torch
from torch import nn

from secateur.core.measurement import Measurement, Measurements
from secateur.core.over_seeds import seeds_text
from secateur.errors import SecateurError
from secateur.lab.outcomes import Table
from secateur.lab.planning import builder, data_of, reshaping
from secateur.lab.recipe import Recipe
from secateur.lab.state import State, revive
from secateur.lab.store import Store
from secateur.lab.trust import AllowCode, refuse_code
from secateur.metrics import measure
from secateur.report.run import Run
from secateur.report.variants import result_trials

__all__ = ["about", "gather", "pictures_of", "provenance"]

_PICTURED = ("train", "prune", "retrain", "shrink", "share", "pack", "measure")
_MOST = 7  # variants whose weights are drawn
_ELEMENTS = 120_000_000  # most weights drawn of one run, so that a report takes seconds


def gather(
    store: Store, which: int | str = "last", *, pictures: bool = True, allow_code: AllowCode = False
) -> Run:
    """Everything that a report shows of one run.

    Args:
        store: The store.
        which: A run's number, or `last`.
        pictures: Also draw the stored weights and models: those of the trial that the headline is about, where there is
            one, else of the first that is done.
        allow_code: Whether models and data that the store names as `package.module:function` may be imported and
            called; where they may not, nothing is drawn.

    Returns:
        The run.
    """
    row = store.run(which)
    trials = store.trials(row.id)
    found = store.measurements(row.id)
    found = found + store.usage(row.id)
    undrawn: list[str] = []
    if pictures:
        about_trials = {trial for _, trial in result_trials(found)}
        done = [trial for trial in trials if trial["status"] == "done"]
        first = next((trial for trial in done if trial["trial"] in about_trials), next(iter(done), None))
        steps = _worth_showing(first["steps"]) if first is not None else []
        set_ = first["settings"] if first is not None else {}
        drawn = pictures_of(store, row.recipe, steps, undrawn, allow_code, set_) if steps else Measurements()
        found = found + drawn.within({"run": row.id, "trial": first["trial"] if first is not None else 0})
    failures = tuple(
        f"trial {t['trial'] + 1}: {t['error'] or 'failed'}".strip() for t in trials if t["status"] == "failed"
    )
    origin = provenance(store, row.id) | ({"not drawn": "; ".join(undrawn)} if undrawn else {})
    said = " ".join(
        [about(row.recipe), *(f"{line}." for line in (_reshaped(row.recipe, allow_code) if pictures else []))]
    )
    return Run(f"{row.name} #{row.id}", found, said, origin, failures)


def _reshaped(recipe: Mapping[str, Any], allow_code: AllowCode) -> list[str]:
    """What the recipe's data was made of to fit the model; nothing where it is not here, or may not be loaded."""
    try:
        return reshaping(one for _, one in Recipe.of(dict(recipe), allow_code=allow_code).trials())
    except Exception:  # as for the pictures: the user's own code may raise anything
        return []


def about(recipe: Mapping[str, Any]) -> str:
    """The recipe in one sentence: model, data, steps."""
    steps = [str(step.get("label") or step["kind"]) for step in recipe.get("step", [])]
    grid = recipe.get("grid") or {}
    over = (
        f" Once for every combination of {', '.join(f'{k} ({len(v)})' for k, v in grid.items())}."
        if grid
        else ""
    )
    return f"{recipe['model']['name']} on {recipe['data']['name']}: {', '.join(steps)}.{over}"


def provenance(store: Store, which: int | str = "last") -> Table:
    """Where a run's numbers come from: command, seed, device, hardware, versions and recipe."""
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
        "seed": seeds_text([trial["settings"] for trial in trials], row.seed),
        "device": row.device,
        "hardware": dict(row.hardware),
        "versions": dict(row.versions),
        "recipe": dict(row.recipe),
    }


def pictures_of(
    store: Store,
    recipe: Mapping[str, Any],
    steps: Iterable[Mapping[str, Any]],
    undrawn: list[str],
    allow_code: AllowCode = False,
    settings: Mapping[str, Any] | None = None,
) -> Measurements:
    """Histograms, widths, drawings and file accounts of the states after some steps.

    A model's code may have changed since the run, or be gone, or may not be run. The stored numbers are shown anyway.

    Args:
        store: The store.
        recipe: The run's recipe as plain data.
        steps: `label` and `key` of each step.
        undrawn: What cannot be drawn, and why, is added here.
        allow_code: As in `gather`.
        settings: What the grid sets in the trial that the steps are of; its model may be another than the recipe's.

    Returns:
        The measurements.
    """
    try:
        whole = _of_trial(recipe, settings or {}, allow_code)
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


def _of_trial(recipe: Mapping[str, Any], settings: Mapping[str, Any], allow_code: AllowCode) -> Recipe:
    """The recipe of one trial. The store names its settings, so they may name code only where that is allowed."""
    whole = Recipe.of(dict(recipe), allow_code=allow_code)
    if not settings:
        return whole
    tried = {**recipe, "grid": {key: [value] for key, value in settings.items()}}
    refuse_code(tried, allow_code is True or frozenset(allow_code or ()), whole.name)
    return whole.with_settings(settings)


def _structure(state: State, example: torch.Tensor | None, first: bool) -> Measurements:
    """Layers and widths; couplings only of the first model."""
    found = measure(state.model, example if first else None, what=["architecture"])
    if first or state.plan is not None:
        return found
    return Measurements(item for item in found if item.name == "widths")


def _weights(state: State, example: torch.Tensor | None, first: bool) -> Measurements:
    weighed = sum(parameter.numel() for parameter in state.model.parameters())
    if weighed * _MOST > _ELEMENTS:
        return Measurements()
    return measure(state.model, what=["weight_histogram", "filter_sums"])


def _activations(state: State, example: torch.Tensor | None, first: bool) -> Measurements:
    return Measurements() if example is None else measure(state.model, example, what=["activation_histogram"])


def _bytes(state: State, example: torch.Tensor | None, first: bool) -> Measurements:
    return _account(list(state.files.values())[-1]) if state.files else Measurements()


def _worth_showing(steps: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The steps that change the weights; a `measure` step after one gives it its label."""
    kept: list[Mapping[str, Any]] = []
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


def _example(recipe: Recipe, build: Callable[[], nn.Module]) -> torch.Tensor | None:
    """The first test image; without the data, noise in the model's input shape, where it has one."""
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
    """The bytes of a .sct file by tensor and part."""
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

"""`plan`: a recipe resolved, before any work: every trial, every step, and the address of every outcome.

The address of a step's outcome is a hash of the address before it, the step's kind, version and options, the
data's fingerprint, and the seed. Trials that begin alike therefore share addresses, and so the work. Where it is
computed is no part of it, so that what was trained on one device goes on on another; only what is measured in
time belongs to its device and machine, and what comes after such a step does not.

>>> first = address("start", "prune", 1, {"budget": 0.5}, data="d", seed=0)
>>> first == address("start", "prune", 1, {"budget": 0.5}, data="d", seed=0), len(first)
(True, 64)
>>> first == address("start", "prune", 1, {"budget": 0.6}, data="d", seed=0)
False
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur.data
import secateur.models
from secateur.data import Data
from secateur.errors import DataError, OptionError, RecipeError
from secateur.execution.devices import device_word
from secateur.lab.provenance import fingerprint
from secateur.lab.recipe import ModelSpec, Recipe
from secateur.lab.steps import Step
from secateur.lab.store import Store, canonical

__all__ = [
    "PlannedStep",
    "PlannedTrial",
    "RunPlan",
    "address",
    "builder",
    "data_of",
    "plan",
    "plan_trial",
]


def address(parent: str, kind: str, version: int, options: dict[str, Any], **surroundings: Any) -> str:
    """Where the outcome of a step is kept."""
    text = canonical({"parent": parent, "kind": kind, "version": version, "options": options, **surroundings})
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class PlannedStep:
    """A step, and where its outcome is or will be."""

    label: str
    step: Step
    key: str
    parent: str


@dataclass(frozen=True)
class PlannedTrial:
    """One combination of a grid's values, as a recipe of its own with its steps resolved."""

    index: int
    settings: dict[str, Any]
    recipe: Recipe
    steps: tuple[PlannedStep, ...]


@dataclass(frozen=True)
class RunPlan:
    """All trials of a recipe."""

    recipe: Recipe
    device: str
    trials: tuple[PlannedTrial, ...]

    def keys(self) -> list[str]:
        """Every distinct outcome, in the order of work."""
        return list(dict.fromkeys(step.key for trial in self.trials for step in trial.steps))

    def rows(self, store: Store | None) -> Iterator[tuple[str, str, str, str]]:
        """(trial, label, options that differ from the defaults, what will happen) of every step."""
        seen: set[str] = set()
        for trial in self.trials:
            for planned in trial.steps:
                if store is not None and store.has(planned.key):
                    what = "cached"
                else:
                    what = "shared" if planned.key in seen else "run"
                seen.add(planned.key)
                yield str(trial.index + 1), planned.label, options_text(planned.step), what


def options_text(step: Step) -> str:
    """The options that were given, as a person reads them."""
    given = step.model_dump(mode="json", exclude={"label"}, exclude_defaults=True)
    return ", ".join(f"{key}={value}" for key, value in given.items())


def builder(recipe: Recipe, spec: ModelSpec | None = None) -> Callable[[], nn.Module]:
    """What makes the recipe's model as it stands before the first step: same seed, same bytes, each time.

    With `spec`, another network than the recipe's `[model]`: its teacher.
    """
    spec = spec or recipe.model

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.lab.seed)
            model = secateur.models.build(spec.name, **spec.options)
        if spec.weights is not None:
            from secateur.lab.weights import load_weights

            load_weights(model, spec.weights)
        return model

    return build


@lru_cache(maxsize=4)
def _data(name: str, arguments: str, model: str, options: str) -> Data:
    import json

    known = json.loads(arguments)
    with torch.random.fork_rng(devices=[]):
        network = secateur.models.build(model, **json.loads(options))
    if isinstance(known.get("normalise"), list):
        known["normalise"] = tuple(tuple(part) for part in known["normalise"])
    if isinstance(known.get("size"), list):
        known["size"] = tuple(known["size"])
    return secateur.data.load_for(network, name, **known)


def data_of(recipe: Recipe) -> Data:
    """The recipe's data, loaded once per process."""
    return _data(
        recipe.data.name,
        canonical(recipe.data.arguments()),
        recipe.model.name,
        canonical(recipe.model.options),
    )


def _root(spec: ModelSpec, seed: int) -> str:
    """The address of a network as it is made: the model before the first step, or the teacher."""
    model: dict[str, Any] = {"name": spec.name, "options": spec.options, "seed": seed}
    if spec.weights is not None:
        from secateur.lab.weights import find_weights

        model["weights"] = hashlib.sha256(find_weights(spec.weights).read_bytes()).hexdigest()
    module, colon, _ = spec.name.partition(":")
    if colon:
        # A model of the user's own: its file is part of what the outcomes depend on.
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            found = None
        if found is not None and found.origin and Path(found.origin).is_file():
            model["source"] = hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()
    return hashlib.sha256(canonical(model).encode()).hexdigest()


def _teacher(recipe: Recipe, spec: ModelSpec, model: nn.Module, data: Data) -> nn.Module:
    """The recipe's teacher, built; one that nobody learns from, or that answers otherwise, is an error."""
    if not any("teacher" in step.refers() for step in recipe.steps):
        raise RecipeError(
            f"{recipe.name}: no step learns from the [teacher] ({spec.name}); write teacher = 'teacher' and "
            "distill_alpha in the steps that train, or leave the table out"
        )
    teacher = builder(recipe, spec)()
    images = next(iter(data.test.batches(1)))[0]
    answers = []
    for name, network in ((spec.name, teacher), (recipe.model.name, model)):
        training = network.training
        try:
            with torch.no_grad():
                answer = network.eval()(images)
                answers.append(tuple(getattr(answer, "logits", answer).shape))
        except (RuntimeError, AttributeError) as error:
            raise RecipeError(
                f"{recipe.name}: {name} does not take an image of {data.name} "
                f"({'x'.join(str(side) for side in images.shape[1:])}): {str(error).splitlines()[0]}"
            ) from error
        finally:
            network.train(training)
    if answers[0] != answers[1]:
        raise RecipeError(
            f"{recipe.name}: the teacher {spec.name} answers an image with {answers[0][1:]} numbers, expected "
            f"{answers[1][1:]} as of {recipe.model.name}; teach with a network of the same classes"
        )
    return teacher


def plan_trial(
    recipe: Recipe,
    index: int = 0,
    settings: dict[str, Any] | None = None,
    *,
    device: str | None = None,
    built: dict[str, nn.Module] | None = None,
) -> PlannedTrial:
    """One trial resolved and checked: its data found, its patterns matched, its addresses known.

    `device` is where it will be computed, when that is not this process; `built` keeps models between trials.
    """
    device = device or device_word(recipe.lab.device)
    data = data_of(recipe)
    if len(data.train) == 0 or len(data.test) == 0:
        raise DataError(f"data {recipe.data.name!r}: expected training and test images, got none")
    # The checks ask for names and shapes only, which the seed does not change.
    built, what = {} if built is None else built, canonical(recipe.model.model_dump(mode="json"))
    if what not in built:
        built.clear()
        built[what] = builder(recipe)()
    model = built[what]
    parent = _root(recipe.model, recipe.lab.seed)
    # What a label stands for: the teacher's own address, or that of a step's outcome.
    keys: dict[str, str] = {}
    if recipe.teacher is not None:
        pair = canonical([what, recipe.teacher.model_dump(mode="json")])
        if pair not in built:
            built[pair] = _teacher(recipe, recipe.teacher, model, data)
        keys["teacher"] = _root(recipe.teacher, recipe.lab.seed)
    steps: list[PlannedStep] = []
    for step in recipe.steps:
        try:
            step.check(model, list(keys))
        except (OptionError, LookupError) as error:
            if isinstance(error, RecipeError) or not hasattr(error, "exit_code"):
                raise
            raise type(error)(f"{recipe.name}: step {step.label!r}: {error}") from error
        surroundings = {"data": data.fingerprint, "seed": recipe.lab.seed}
        if step.timed:
            surroundings |= {"device": device.partition(":")[0], "machine": fingerprint()}
        if step.refers():
            surroundings["refers"] = [keys[label] for label in step.refers()]
        key = address(parent, step.kind(), step.version, step.chosen(), **surroundings)
        steps.append(PlannedStep(step.label, step, key, parent))
        keys[step.label] = key
        if not step.timed:  # it leaves the state as it was, so what follows does not depend on it
            parent = key
    return PlannedTrial(index, settings or {}, recipe, tuple(steps))


def plan(recipe: Recipe, device: str | None = None) -> RunPlan:
    """The whole recipe resolved. Nothing is trained, pruned or written."""
    built: dict[str, nn.Module] = {}
    trials = tuple(
        plan_trial(one, index, settings, device=device, built=built)
        for index, (settings, one) in enumerate(recipe.trials())
    )
    return RunPlan(recipe, device or device_word(recipe.lab.device), trials)

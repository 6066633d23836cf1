"""`plan`: resolve a recipe before any work: every trial, every step, and the address of every outcome.

The address of an outcome is a hash of the address before it, the step's kind, version and options, the data's
fingerprint, the seed, and the files of the user's own code that is named. Trials that begin with the same steps
therefore share addresses, and so the work. The device is no part of it, so that a training begun on one device
continues on another; only steps that measure time depend on device and machine, and the steps after them do not.

>>> first = address("start", "prune", 1, {"budget": 0.5}, data="d", seed=0)
>>> first == address("start", "prune", 1, {"budget": 0.5}, data="d", seed=0), len(first)
(True, 64)
>>> first == address("start", "prune", 1, {"budget": 0.6}, data="d", seed=0)
False
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

import secateur.data
import secateur.models
from secateur.adapters import functions
from secateur.data import Data
from secateur.errors import DataError, OptionError, RecipeError, SecateurError, StructureError
from secateur.execution.devices import device_word
from secateur.lab.outcomes import Table, canonical
from secateur.lab.provenance import fingerprint
from secateur.lab.recipe import ModelSpec, Recipe
from secateur.lab.requirements import Requirement, check_limits
from secateur.lab.steps import Step
from secateur.lab.store import Store

if TYPE_CHECKING:
    from secateur.structure.cut.plan import ShrinkPlan

_LARGE = 4096  # numbers up to this cannot make a model larger than memory

__all__ = [
    "PlannedStep",
    "PlannedTrial",
    "RunPlan",
    "address",
    "builder",
    "data_of",
    "plan",
    "plan_trial",
    "reshaping",
]


def address(parent: str, kind: str, version: int, options: Table, **surroundings: object) -> str:
    """The address of a step's outcome in the store.

    Args:
        parent: The address of the state before.
        kind: The step's kind.
        version: Of the kind.
        options: The step's options.
        surroundings: What else the outcome depends on, by name.

    Returns:
        64 hexadecimal digits.
    """
    text = canonical({"parent": parent, "kind": kind, "version": version, "options": options, **surroundings})
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class PlannedStep:
    """A step with the address of its outcome (`key`) and of the state before it (`parent`), and what it may measure."""

    label: str
    step: Step
    key: str
    parent: str
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class PlannedTrial:
    """One combination of the grid's values: its settings, its recipe without a grid, and its steps resolved."""

    index: int
    settings: Table
    recipe: Recipe
    steps: tuple[PlannedStep, ...]
    reshaped: str = ""
    """What is said where the images have another shape in their files than the model is given."""


@dataclass(frozen=True)
class RunPlan:
    """A recipe resolved: all its trials, and the device they are planned for."""

    recipe: Recipe
    device: str
    trials: tuple[PlannedTrial, ...]

    def reshaping(self) -> list[str]:
        """As `reshaping` of the trials' recipes, from the data that planning has loaded: nothing is loaded again."""
        return list(dict.fromkeys(trial.reshaped for trial in self.trials if trial.reshaped))

    def check_limits(self, limits: Iterable[str]) -> None:
        """Refuse limits, as `accuracy >= 0.97`, of what no step of any trial measures.

        Args:
            limits: Their texts.

        Raises:
            UnknownNameError: No step has the name, or the label before it.
        """
        steps: dict[str, tuple[str, ...] | None] = {}
        for step in (step for trial in self.trials for step in trial.steps):
            before = steps.get(step.label, ())
            unknown = before is None or step.names is None
            steps[step.label] = (
                None if unknown else tuple(dict.fromkeys((*(before or ()), *(step.names or ()))))
            )
        check_limits([Requirement.of(text) for text in limits], steps)

    def keys(self) -> list[str]:
        """The address of every distinct outcome, in the order of work."""
        return list(dict.fromkeys(step.key for trial in self.trials for step in trial.steps))

    def rows(self, store: Store | None) -> Iterator[tuple[str, str, str, str]]:
        """Trial, label, options that differ from the defaults, and what will happen, of every step."""
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
    """The options that differ from the defaults, as text for people."""
    given = step.model_dump(mode="json", exclude={"label"}, exclude_defaults=True)
    return ", ".join(f"{key}={value}" for key, value in given.items())


def builder(recipe: Recipe, spec: ModelSpec | None = None) -> Callable[[], nn.Module]:
    """A function that builds the model as it is before the first step: the same seed gives the same bytes.

    Args:
        recipe: The recipe.
        spec: Another network than the recipe's `[model]`, such as its teacher.

    Returns:
        The function.
    """
    spec = spec or recipe.model

    def build() -> nn.Module:
        model = _seeded(recipe, spec)
        if spec.weights is not None:
            from secateur.lab.weights import load_weights

            load_weights(model, spec.weights)
        return model

    return build


def without_weights(recipe: Recipe) -> tuple[nn.Module, ShrinkPlan | None]:
    """The recipe's network before its weights come, and the plan of the cut model that their file holds, if it does.

    Args:
        recipe: The recipe.
    """
    model, weights = _seeded(recipe, recipe.model), recipe.model.weights
    if weights is None or Path(weights).suffix != ".sct":
        return model, None
    from secateur.container.loading import plan_in
    from secateur.lab.weights import find_weights

    return model, plan_in(find_weights(weights), model)


def _seeded(recipe: Recipe, spec: ModelSpec) -> nn.Module:
    """A freshly built network: the same seed gives the same bytes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.lab.seed)
        return _network(spec.name, spec.options)


def _network(name: str, options: Table) -> nn.Module:
    """A model by its name; raises a `RecipeError` for options that it cannot be built with."""
    if secateur.models.runs_code(name):
        return secateur.models.build(name, **options)
    try:
        _check_size(name, options)
        return secateur.models.build(name, **options)
    except SecateurError:
        raise
    except Exception as error:  # of whichever library, for whichever option
        raise OptionError(
            f"model {name!r} cannot be built with the options {options} ({type(error).__name__}: {error}); leave out "
            "or change one"
        ) from error


def _check_size(name: str, options: Table) -> None:
    """Refuse a model that does not fit into memory; only large numbers among the options can ask for one."""
    numbers = [value for value in options.values() if isinstance(value, int)]
    lists = [value for value in options.values() if isinstance(value, list | tuple)]
    numbers += [value for several in lists for value in several if isinstance(value, int)]
    if max(numbers, default=0) <= _LARGE:
        return
    import psutil

    with torch.device("meta"):
        model = secateur.models.build(name, **options)
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    most = psutil.virtual_memory().total // 2
    if size > most:
        raise OptionError(
            f"model {name!r} with the options {options} has {size / 2**30:,.1f} GiB of weights, and this machine takes "
            f"at most {most / 2**30:,.1f} GiB, half its memory; give smaller numbers"
        )


@lru_cache(maxsize=4)
def _data(name: str, arguments: str, model: str, options: str) -> Data:
    import json

    known = json.loads(arguments)
    with torch.random.fork_rng(devices=[]):
        network = _network(model, json.loads(options))
    if isinstance(known.get("normalise"), list):
        known["normalise"] = tuple(tuple(part) for part in known["normalise"])
    if isinstance(known.get("size"), list):
        known["size"] = tuple(known["size"])
    return secateur.data.load_for(network, name, **known)


def data_of(recipe: Recipe) -> Data:
    """The recipe's dataset, loaded once per process."""
    return _data(
        recipe.data.name,
        canonical(recipe.data.arguments()),
        recipe.model.name,
        canonical(recipe.model.options),
    )


def reshaping(recipes: Iterable[Recipe]) -> list[str]:
    """A line for each dataset whose images reach a model in another shape than they have in their files.

    Args:
        recipes: Recipes without a grid.
    """
    found: dict[tuple[str, ...], str] = {}
    for recipe in recipes:
        data, model = recipe.data, recipe.model
        place = (data.name, canonical(data.arguments()), model.name, canonical(model.options))
        if place not in found:
            found[place] = _reshaped(recipe, data_of(recipe))
    return list(dict.fromkeys(line for line in found.values() if line))


def _reshaped(recipe: Recipe, data: Data) -> str:
    """The line about a recipe's data; empty where its images keep their shape."""
    asked = recipe.data.size is not None or recipe.data.channels is not None
    why = "as the recipe asks" if asked else f"as {recipe.model.name} takes them"
    return f"{recipe.data.name}: {data.reshaped}, {why}" if data.reshaped else ""


def _root(spec: ModelSpec, seed: int) -> str:
    """The address of a freshly built network: the model before the first step, or the teacher."""
    model: Table = {"name": spec.name, "options": spec.options, "seed": seed}
    if spec.weights is not None:
        from secateur.lab.weights import find_weights

        with find_weights(spec.weights).open("rb") as file:
            model["weights"] = hashlib.file_digest(file, "sha256").hexdigest()
    if secateur.models.runs_code(spec.name) and (source := functions.source_digest(spec.name, "model")):
        model["source"] = source
    return hashlib.sha256(canonical(model).encode()).hexdigest()


def _teacher(recipe: Recipe, spec: ModelSpec, model: nn.Module, data: Data) -> nn.Module:
    """The recipe's teacher, built. Refused where no step uses it or its outputs have another shape than the model's."""
    if not any("teacher" in step.refers() for step in recipe.steps):
        raise RecipeError(
            f"{recipe.name}: no step learns from the [teacher] ({spec.name}); write teacher = 'teacher' and "
            "distill_alpha in the steps that train, or leave the table out"
        )
    teacher = builder(recipe, spec)()
    images = next(iter(data.test.batches(1)))[0]
    shapes = [
        _output_shape(recipe, name, network, data, images)
        for name, network in ((spec.name, teacher), (recipe.model.name, model))
    ]
    if shapes[0] != shapes[1]:
        raise RecipeError(
            f"{recipe.name}: the teacher {spec.name} answers an image with {shapes[0][1:]} numbers, expected "
            f"{shapes[1][1:]} as of {recipe.model.name}; take a network with the same classes"
        )
    return teacher


def _output_shape(
    recipe: Recipe, name: str, network: nn.Module, data: Data, images: torch.Tensor
) -> tuple[int, ...]:
    """The shape of a network's logits; refused where it does not take the images."""
    training = network.training
    try:
        with torch.no_grad():
            outputs = network.eval()(images)
            return tuple(getattr(outputs, "logits", outputs).shape)
    except (RuntimeError, AttributeError) as error:
        raise RecipeError(
            f"{recipe.name}: {name} does not take an image of {data.name} "
            f"({'x'.join(str(side) for side in images.shape[1:])}): {str(error).splitlines()[0]}"
        ) from error
    finally:
        network.train(training)


def plan_trial(
    recipe: Recipe,
    index: int = 0,
    settings: Table | None = None,
    *,
    device: str | None = None,
    built: dict[str, nn.Module] | None = None,
) -> PlannedTrial:
    """Resolve and check one trial: its data, its patterns, its addresses.

    Args:
        recipe: A recipe without a grid.
        index: The trial's number.
        settings: The grid's values that it stands for.
        device: Where it will be computed, where that is not this process.
        built: Keeps models between the trials of one plan.

    Returns:
        The trial.

    Raises:
        RecipeError: A step that cannot work.
        DataError: The data has no images.
    """
    device = device or device_word(recipe.lab.device)
    data = data_of(recipe)
    if len(data.train) == 0 or len(data.test) == 0:
        raise DataError(f"data {recipe.data.name!r}: expected training and test images, got none")
    # Checks need names and shapes only, which do not depend on the seed.
    built, what = {} if built is None else built, canonical(recipe.model.model_dump(mode="json"))
    if what not in built:
        built.clear()
        built[what] = builder(recipe)()
    model = built[what]
    parent = _root(recipe.model, recipe.lab.seed)
    # By label: the address of the teacher, or of a step's outcome.
    keys: dict[str, str] = {}
    if recipe.teacher is not None:
        pair = canonical([what, recipe.teacher.model_dump(mode="json")])
        if pair not in built:
            built[pair] = _teacher(recipe, recipe.teacher, model, data)
        keys["teacher"] = _root(recipe.teacher, recipe.lab.seed)
    steps: list[PlannedStep] = []
    for step in recipe.steps:
        _check(step, model, list(keys), recipe)
        step.check_after([planned.step for planned in steps])
        surroundings: Table = {"data": data.fingerprint, "seed": recipe.lab.seed}
        if step.timed:
            surroundings |= {"device": device.partition(":")[0], "machine": fingerprint()}
        if step.refers():
            surroundings["refers"] = [keys[label] for label in step.refers()]
        key = address(parent, step.kind(), step.version, step.chosen(), **surroundings)
        steps.append(PlannedStep(step.label, step, key, parent, step.measured_names(model)))
        keys[step.label] = key
        if not step.timed:  # a timed step does not change the state
            parent = key
    return PlannedTrial(index, settings or {}, recipe, tuple(steps), _reshaped(recipe, data))


def _check(step: Step, model: nn.Module, before: list[str], recipe: Recipe) -> None:
    """A step's own check; its errors name recipe and step."""
    try:
        step.check(model, before)
    except (OptionError, StructureError, LookupError) as error:
        if isinstance(error, RecipeError) or not hasattr(error, "exit_code"):
            raise
        raise type(error)(f"{recipe.name}: step {step.label!r}: {error}") from error
    except SecateurError:
        raise
    except Exception as error:  # options of a type or size that nothing foresaw
        raise OptionError(
            f"{recipe.name}: step {step.label!r}: its options cannot be used ({type(error).__name__}: {error})"
        ) from error


def plan(recipe: Recipe, device: str | None = None) -> RunPlan:
    """Resolve a recipe. Nothing is trained, pruned or written.

    Args:
        recipe: The recipe.
        device: Where it will be computed, where that is not this process.

    Returns:
        All its trials.

    Raises:
        RecipeError: A step that cannot work.
        UnknownNameError: A limit in `require` of what no step measures.
    """
    built: dict[str, nn.Module] = {}
    trials = tuple(
        plan_trial(one, index, settings, device=device, built=built)
        for index, (settings, one) in enumerate(recipe.trials())
    )
    made = RunPlan(recipe, device or device_word(recipe.lab.device), trials)
    made.check_limits(recipe.require)
    return made

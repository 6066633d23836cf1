"""Steps: what a recipe can do to a model. One file per kind of step; the file name is its word in recipes.

A step is a frozen pydantic value with three parts: its options (the fields), `check` (what can be refused before any
work), and `run` (from the state before it to the state after it). Its outcome depends only on its options, the state
before, the data and the seed, so that the store finds it again by their hash. Raise `version` when the same options
come to mean something else. Set `trains` where all processes of a distributed launch must take part, and `measures` to
the names that `run` gives its measurements, so that a misspelt objective or limit is found before any work.

A new kind is one new file with one class `NameStep`, and one test.

>>> registry.get("prune").__name__
'PruneStep'
>>> registry.get("idle")(seconds=0.5).chosen()
{'seconds': 0.5, 'work': 0, 'note': '', 'fail': False}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from secateur.adapters import functions
from secateur.core.renamed import old_names
from secateur.errors import OptionError, RecipeError, near
from secateur.lab.outcomes import Table
from secateur.lab.trust import named_in
from secateur.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from secateur.core.measurement import Measurements
    from secateur.data import Data
    from secateur.lab.display.progress import Progress
    from secateur.lab.state import State
    from secateur.structure.cut.plan import ShrinkPlan

__all__ = ["Options", "Plugin", "Plugins", "Result", "Step", "Work", "leaving_one", "make", "registry"]

registry = Registry(
    __name__,
    __path__,
    "step",
    base="secateur.lab.steps:Step",
    suffix="Step",
    deprecated={"tidy": "zero_dead_neurons"},
)

Plugin = float | str | dict[str, Any]
"""A plug-in in a recipe: its name, a number where the plug-ins have one, or a table of `name` and options."""

Plugins = Plugin | tuple[str | dict[str, Any], ...]
"""One plug-in, or several that work in one call, such as granularities that share a budget."""


class Options(BaseModel):
    """A table of a recipe: frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        """Refuse true and false where a number is expected: pydantic takes them for 1 and 0."""
        kinds = _kinds(cls.model_fields[info.field_name or ""].annotation)
        given = value if isinstance(value, (list, tuple)) else [value]
        wrong = next((each for each in given if isinstance(each, bool)), None)
        if wrong is not None and {int, float} & kinds and bool not in kinds:
            raise ValueError(f"expected a number, got {str(wrong).lower()}")
        return value


def _kinds(annotation: object) -> set[object]:
    """The plain types in an annotation: of `int | tuple[float, ...]` int and float."""
    inner = get_args(annotation)
    return set().union(*map(_kinds, inner)) if inner else {annotation}


@dataclass
class Work:
    """What a step may use besides its options.

    Args:
        data: The recipe's dataset.
        build: Builds the model as it is before the first step.
        device: The device's name.
        seed: The recipe's seed.
        checkpoint: The file in which a step may keep what it has done so far, or None.
        progress: The display.
        earlier: The state after an earlier step, by its label; `teacher` is the recipe's `[teacher]`.
        without_weights: The model as it is before the recipe's weights come, and the plan that their file cuts it by;
            None where the step is run by itself.
    """

    data: Data
    build: Callable[[], nn.Module]
    device: str
    seed: int
    checkpoint: Path | None
    progress: Progress
    earlier: Callable[[str], State]
    without_weights: Callable[[], tuple[nn.Module, ShrinkPlan | None]] | None = None


@dataclass
class Result:
    """What a step returns.

    Args:
        state: The state after the step.
        measurements: What it measured.
        log: What else is to be kept, as plain data.
        line: What happened, in half a sentence, for the display.
    """

    state: State
    measurements: Measurements
    log: Table = field(default_factory=dict)
    line: str = ""


class Step(Options):
    """The base class of all steps."""

    version: ClassVar[int] = 1
    """Part of the outcome's address: raise it when the same options come to mean something else."""
    timed: ClassVar[bool] = False
    """Whether the outcome depends on the machine and the device, as a measured time does. Such a step must not change
    the state, because the addresses of later outcomes do not depend on it."""
    trains: ClassVar[bool] = False
    """Whether `run` trains. In a distributed launch all processes run such a step together."""
    measures: ClassVar[tuple[str, ...] | None] = None
    """The names of what `run` may measure, `*` in them for any letters; None: only `run` knows."""
    renamed: ClassVar[dict[str, str]] = {}
    """The present names of options by their old ones, which work with a `DeprecationWarning`."""

    label: str = Field("", description="the step's name in --set, [grid] and tables; by default its kind")

    @classmethod
    def kind(cls) -> str:
        """The word used in recipes: the name of the step's file."""
        return cls.__module__.rpartition(".")[2]

    def chosen(self) -> Table:
        """The options as plain data, with digests of the files of the user's own plug-ins: part of the address."""
        found = self.model_dump(mode="json", exclude={"label"})
        sources = {
            name: functions.source_digest(name, kind)
            for kind in (*OWN, "sparsify")
            for name in sorted(named_in(found.get(kind), kind))
        }
        return {**found, "source": sources} if sources else found

    def check(self, model: nn.Module, before: list[str]) -> None:
        """Refuse, before any work, what cannot work: a bad name or option, a pattern that matches no layer.

        Args:
            model: The recipe's model as it is before the first step.
            before: Labels of the earlier steps.
        """

    def check_after(self, steps: Sequence[Step]) -> None:
        """Refuse, before any work, what cannot follow these steps.

        Args:
            steps: The earlier steps, in order.
        """

    def measured_names(self, model: nn.Module) -> tuple[str, ...] | None:
        """What `run` may measure with these options: `measures`, where they make no difference.

        Args:
            model: The recipe's model as it is before the first step.
        """
        return self.measures

    def refers(self) -> tuple[str, ...]:
        """Labels of earlier steps whose outcome this one reads besides the state: part of the outcome's address."""
        return ()

    def run(self, state: State, work: Work) -> Result:
        """Do the step.

        Args:
            state: The state before; the step may change it.
            work: Data, device, seed and the rest.

        Returns:
            The state after, and what was measured.
        """
        raise NotImplementedError


def leaving_one(chosen: Table) -> Table:
    """The options of a step that prunes, with an address of their own for channels and heads.

    Args:
        chosen: The options. A share of every layer leaves one channel or head of each list, which it did not always.

    >>> leaving_one({"granularity": {"name": "channel"}})
    {'granularity': {'name': 'channel'}, 'one_stays': True}
    """
    words = str(chosen["granularity"])
    return {**chosen, "one_stays": True} if "channel" in words or "head" in words else chosen


def make(plugins: Registry, value: Plugins) -> Any:
    """The plug-in that a recipe's name, number or table means.

    Args:
        plugins: The folder of plug-ins.
        value: What the recipe says.

    Returns:
        The plug-in, of the base class of that folder.

    Raises:
        RecipeError: A table without `name`, or with an option that the plug-in does not have.
        OptionError: What `module:Class` names does not make a plug-in of that folder.

    >>> from secateur import budget
    >>> make(budget.registry, {"name": "overall", "sparsity": 0.9}).sparsity
    0.9
    >>> make(budget.registry, {"name": "overall", "sparsty": 0.9})
    Traceback (most recent call last):
    ...
    secateur.errors.RecipeError: budget 'overall' has no option 'sparsty': did you mean 'sparsity'?
    """
    if isinstance(value, (list, tuple)):
        return plugins.make([make(plugins, each) for each in value])
    if isinstance(value, str) and ":" in value:
        return _own(plugins, value, {})
    if not isinstance(value, dict):
        return plugins.make(value)
    options = dict(value)
    word = options.pop("name", None)
    if not isinstance(word, str):
        known = ", ".join(plugins.names())
        raise RecipeError(f"a {plugins.kind} given as a table needs a `name`, one of {known}; got {value}")
    if ":" in word:
        return _own(plugins, word, options)
    cls = plugins.get(word)
    known_options = list(getattr(cls, "__dataclass_fields__", {}))
    for old, new in old_names(cls).items():
        if options.keys() >= {old, new}:
            raise RecipeError(
                f"{plugins.kind} {word!r}: {old!r} is the old name of {new!r}; give {new!r} alone"
            )
    for option in options.keys() - old_names(cls).keys():
        if known_options and option not in known_options:
            raise RecipeError(
                f"{plugins.kind} {word!r} has no option {option!r}: {near(option, known_options)}"
            )
    try:
        return cls(**options)
    except TypeError as error:
        raise OptionError(
            f"{plugins.kind} {word!r}: {error}; its options are {', '.join(known_options)}"
        ) from error


OWN = ("criterion", "granularity", "budget")
"""The kinds of plug-in that may be one of the user's own, as `module:Class`. Whether a recipe may name it is decided
before, when the recipe is read (`secateur.lab.trust`)."""


def _own(plugins: Registry, word: str, options: dict[str, Any]) -> Any:
    """A plug-in of the user's own: what the class or function `module:Class` makes."""
    if plugins.kind not in OWN:
        return plugins.get(word)  # its error names the words that there are
    what = f"{plugins.kind} {word!r}"
    if not named_in(word):
        # what a recipe may not name without leave is what may be imported here, and no more
        raise OptionError(
            f"{what}: expected a name, or module:Class of your own, in letters, digits, dots and _"
        )
    maker = functions.find(word, plugins.kind)
    functions.check_options(maker, options, what)
    made = maker(**options)
    if isinstance(made, (str, int, float, type)):
        raise OptionError(f"{what}: expected a {plugins.kind}, got {made!r}; name a class of one")
    try:
        return plugins.make(made)
    except OptionError as error:
        base = plugins.kind.capitalize()
        raise OptionError(
            f"{what}: expected a class derived from {plugins.package}.{base}, or a function that returns such a value, "
            f"got {type(made).__name__}"
        ) from error


def __getattr__(name: str) -> object:
    return registry.attribute(name)

"""What can be done to a model in a recipe. One file per kind of step; the file name is the word used in
recipes.

A step is a frozen pydantic value with three parts: its options (the fields), `check` (what can be refused
before any work), and `run` (from the state before to the state after). Everything it depends on is in its
options, the state before, the data and the seed, so that its outcome can be found again by their hash. Raise
`version` when the same options come to mean something else.

>>> registry.get("prune").__name__
'PruneStep'
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from secateur.errors import OptionError, RecipeError, near
from secateur.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from secateur.core.measurement import Measurements
    from secateur.data import Data
    from secateur.lab.display.progress import Progress
    from secateur.lab.state import State

__all__ = ["Options", "Plugin", "Result", "Step", "Work", "make", "registry"]

registry = Registry(
    __name__,
    __path__,
    "step",
    base="secateur.lab.steps:Step",
    suffix="Step",
    deprecated={"tidy": "zero_dead_neurons"},
)

Plugin = float | str | dict[str, Any]
"""A plug-in in a recipe: its name, a number where one is understood, or a table of `name` and options."""


class Options(BaseModel):
    """A table of a recipe: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


@dataclass
class Work:
    """What a step may use beside its options: data, device, seed, the checkpoint's place, progress, earlier
    states."""

    data: Data
    build: Callable[[], nn.Module]
    device: str
    seed: int
    checkpoint: Path | None
    progress: Progress
    earlier: Callable[[str], State]


@dataclass
class Result:
    """What a step gives back."""

    state: State
    measurements: Measurements
    log: dict[str, Any] = field(default_factory=dict)
    line: str = ""  # what happened, in half a sentence, for the progress display


class Step(Options):
    """What every step is."""

    version: ClassVar[int] = 1
    """Part of the outcome's address: raise it when the same options come to mean something else."""
    timed: ClassVar[bool] = False
    """Whether the outcome is bound to the machine and the device: a measured time is. Such a step must leave the
    state as it was, since what follows it is found without it."""

    label: str = Field("", description="the step's name in --set, [grid] and tables; by default its kind")

    @classmethod
    def kind(cls) -> str:
        """The word used in recipes: the name of the step's file."""
        return cls.__module__.rpartition(".")[2]

    def chosen(self) -> dict[str, Any]:
        """The options as plain data: what the outcome's address is made of."""
        return self.model_dump(mode="json", exclude={"label"})

    def check(self, model: nn.Module, before: list[str]) -> None:
        """Refuse, before any work, what cannot work: a bad name or option, a pattern that matches no layer.

        `before` are the labels of the steps that come first.
        """

    def refers(self) -> tuple[str, ...]:
        """Labels of earlier steps whose outcome this one reads beside the state: part of the outcome's address."""
        return ()

    def run(self, state: State, work: Work) -> Result:
        """From the state before to the state after. The state given belongs to the step and may be
        changed."""
        raise NotImplementedError


def make(plugins: Registry, value: Plugin) -> Any:
    """The plug-in that a recipe's name, number or table means.

    >>> from secateur import budget
    >>> make(budget.registry, {"name": "overall", "sparsity": 0.9}).sparsity
    0.9
    >>> make(budget.registry, {"name": "overall", "sparsty": 0.9})
    Traceback (most recent call last):
    ...
    secateur.errors.RecipeError: budget 'overall' has no option 'sparsty': did you mean 'sparsity'?
    """
    if not isinstance(value, dict):
        return plugins.make(value)
    options = dict(value)
    word = options.pop("name", None)
    if not isinstance(word, str):
        known = ", ".join(plugins.names())
        raise RecipeError(f"a {plugins.kind} given as a table needs a `name`, one of {known}; got {value}")
    cls = plugins.get(word)
    known_options = list(getattr(cls, "__dataclass_fields__", {}))
    for option in options:
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


def __getattr__(name: str) -> Any:
    return registry.attribute(name)

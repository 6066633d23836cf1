"""The options that several verbs share, each written once, alone or in groups.

>>> debugging()
False
>>> RecipeChanges(["prune.budget=0.5"], 3, DeviceChoice.cpu).settings()
['prune.budget=0.5', 'lab.seed=3', 'lab.device=cpu']
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.core.terminal import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from secateur.criteria import CriterionLike
    from secateur.lab.recipe import Recipe

__all__ = [
    "STORE",
    "AllowCode",
    "Debug",
    "Device",
    "DeviceChoice",
    "DryRun",
    "Evaluate",
    "Example",
    "Jobs",
    "Json",
    "Out",
    "OutputFlags",
    "ProgressFlags",
    "Quiet",
    "RecipeChanges",
    "RecipePath",
    "Seed",
    "Set",
    "StoreFolder",
    "Trials",
    "TrialsOrNone",
    "debugging",
    "own_criterion",
    "repetitions_of",
    "results_folder",
]

_debug = False


def debugging() -> bool:
    """Whether `--debug` was given."""
    return _debug


def _set_debug(value: bool) -> bool:
    global _debug
    _debug = _debug or value
    return value


def repetitions_of(asked: int, before: int | None) -> int:
    """How many repetitions are asked for, by the option's present name or by the one before.

    >>> repetitions_of(25, None), repetitions_of(25, 3)
    (25, 3)
    """
    return asked if before is None else before


def _trials(value: int | None) -> int | None:
    if value is not None:
        say("--trials is called --repetitions now: a trial is one combination of a grid", error=True)
    return value


Trials = Annotated[int | None, typer.Option("--trials", min=1, hidden=True, callback=_trials)]
"""The name of `--repetitions` before; it works, with a warning."""
TrialsOrNone = Annotated[int | None, typer.Option("--trials", min=0, hidden=True, callback=_trials)]
"""The same where 0 means that nothing is timed."""


class DeviceChoice(StrEnum):
    """The kinds of device."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


Debug = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error.", callback=_set_debug, is_eager=True)
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.", min=0)]
Device = Annotated[
    DeviceChoice | None, typer.Option("--device", help="Where to compute.", case_sensitive=False)
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a value of the recipe: --set prune.budget=0.5. Repeatable."
    ),
]
StoreFolder = Annotated[
    Path, typer.Option("--store", help="The folder of the run store.", envvar="SECATEUR_STORE")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
RecipePath = Annotated[Path, typer.Argument(help="A recipe in TOML.", show_default=False)]
STORE = Path("runs")


def results_folder(path: Path | None) -> Path | None:
    """The folder of an option for results, refused before any work where it cannot be written."""
    if path is not None:
        from secateur.core.new_folders import check_results_folder

        check_results_folder(path)
    return path


Out = Annotated[
    Path | None, typer.Option("--out", help="Folder to write the results to.", callback=results_folder)
]
Example = Annotated[
    str | None,
    typer.Option(
        "--input",
        metavar="SHAPE",
        help="Shape of one input, such as 1,3,224,224, or module:function that returns an input; default: the "
        "model's own.",
    ),
]
AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        help="Import and call models, data, judgements and criteria that the file names as package.module:function.",
    ),
]
Evaluate = Annotated[
    str | None,
    typer.Option(
        "--evaluate",
        metavar="MODULE:FUNCTION",
        help="Judge by a function of your own in place of accuracy: of the model, or of the model and the data.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the steps and which of them are cached; run nothing.")
]
Jobs = Annotated[
    int, typer.Option("--jobs", "-j", min=1, help="Number of processes that share a grid's trials.")
]


def own_criterion(text: str) -> CriterionLike:
    """A criterion of the command line: its name, or the value that `module:Class` of the user's own makes.

    Args:
        text: What `--criterion` says.

    >>> own_criterion("l2"), own_criterion("secateur.criteria.fpgm:Fpgm").__class__.__name__
    ('l2', 'Fpgm')
    """
    if ":" not in text:
        return text
    from secateur import criteria
    from secateur.lab.steps import make

    found: CriterionLike = make(criteria.registry, text)
    return found


@dataclass(frozen=True)
class OutputFlags:
    """How a verb that shows no progress prints."""

    json: Json = False
    debug: Debug = False


@dataclass(frozen=True)
class ProgressFlags:
    """How a verb that shows its progress prints."""

    json: Json = False
    quiet: Quiet = False
    debug: Debug = False


@dataclass(frozen=True)
class RecipeChanges:
    """What the command line changes in a recipe."""

    set_: Set = None
    seed: Seed = None
    device: Device = None
    allow_code: AllowCode = False

    def settings(self) -> list[str]:
        """`--set`, `--seed` and `--device` as settings of a recipe."""
        found = list(self.set_ or [])
        if self.seed is not None:
            found.append(f"lab.seed={self.seed}")
        if self.device is not None:
            found.append(f"lab.device={self.device.value}")
        return found

    def read(self, recipe: Path, axes: Sequence[str] = ()) -> Recipe:
        """The recipe in this file with the changes made, and with these axes added to its grid."""
        from secateur.lab.recipe import Recipe

        return Recipe.read(recipe, self.settings(), list(axes), allow_code=self.allow_code)

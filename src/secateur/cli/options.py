"""The options that several verbs have, each written once.

>>> debugging()
False
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "STORE",
    "Debug",
    "Device",
    "DeviceChoice",
    "Example",
    "Json",
    "Out",
    "Quiet",
    "RecipePath",
    "Seed",
    "Set",
    "StoreFolder",
    "debugging",
    "settings_of",
]

_debug = False


def debugging() -> bool:
    """Whether `--debug` was given."""
    return _debug


def _set_debug(value: bool) -> bool:
    global _debug
    _debug = _debug or value
    return value


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
    Path, typer.Option("--store", help="The folder that remembers every run.", envvar="SECATEUR_STORE")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
RecipePath = Annotated[Path, typer.Argument(help="A recipe in TOML.", show_default=False)]
STORE = Path("runs")
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write the results to.")]
Example = Annotated[
    str | None,
    typer.Option(
        "--input", metavar="SHAPE", help="Shape of one input, such as 1,3,224,224; default: the model's own."
    ),
]


def settings_of(given: list[str] | None, seed: int | None, device: DeviceChoice | None = None) -> list[str]:
    """`--set`, `--seed` and `--device` as settings of a recipe.

    >>> settings_of(["prune.budget=0.5"], 3, DeviceChoice.cpu)
    ['prune.budget=0.5', 'lab.seed=3', 'lab.device=cpu']
    """
    found = list(given or [])
    if seed is not None:
        found.append(f"lab.seed={seed}")
    if device is not None:
        found.append(f"lab.device={device.value}")
    return found

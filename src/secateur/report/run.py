"""`Run`: one run as a report shows it: its name, its measurements and its provenance.

>>> run = Run("demo", Measurements([Measurement("accuracy", 0.9)]), provenance={"command": "secateur demo"})
>>> run.measurements[0].context["run"]
'demo'

All text of a page passes through a `Run`, which replaces the path of the home folder by `~`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from secateur.core.measurement import Measurement, Measurements

__all__ = ["Run", "without_home"]

_Plain = TypeVar("_Plain")


def without_home(value: _Plain) -> _Plain:
    """Plain data with the home folder's path replaced by `~` in every text.

    >>> without_home({"path": str(Path.home() / "data")})
    {'path': '~/data'}
    """
    if isinstance(value, str):
        home = str(Path.home())
        short = re.sub(re.escape(home) + r"(?=$|[^\w.-])", "~", value) if len(home) > 1 else value
        return cast(_Plain, short)
    if isinstance(value, Mapping):
        return cast(_Plain, {without_home(key): without_home(item) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(without_home(item) for item in value)
    return value


@dataclass(frozen=True)
class Run:
    """One run to be shown.

    `provenance` is shown at the foot in the order given: texts, numbers, or tables of them (command, seed,
    versions, hardware, started, seconds, recipe ...). `about` is what was done, in a sentence or two;
    `failures` are trials that failed, with their errors.
    """

    name: str
    measurements: Measurements
    about: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    failures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        name = without_home(self.name)
        rows = [_cleaned(item, name) for item in self.measurements]
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "measurements", Measurements(rows))
        object.__setattr__(self, "about", without_home(self.about))
        object.__setattr__(self, "provenance", without_home(dict(self.provenance)))
        object.__setattr__(self, "failures", tuple(without_home(text) for text in self.failures))


def _cleaned(item: Measurement, run: str) -> Measurement:
    return replace(
        item,
        definition=without_home(item.definition),
        notes=tuple(without_home(note) for note in item.notes),
        context={**without_home(item.context), "run": run},
    )

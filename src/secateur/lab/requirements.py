"""`Requirement`: a limit that the measurements of a run must hold, as `accuracy >= 0.97`; a build can fail on it.

    require = ["small.accuracy >= 0.97", "file_bytes <= 40_000"]      # in a recipe
    secateur run recipe.toml --require "small.accuracy>=0.97"         # on the command line: exit code 3 where it fails

>>> Requirement.of("small.accuracy >= 0.97")
Requirement(name='accuracy', at_least=True, limit=0.97, variant='small')
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from secateur.core.measurement import Measurement
from secateur.errors import OptionError, UnknownNameError, near
from secateur.lab.measured_names import refuse_unmeasured

__all__ = ["Requirement", "check_limits", "unmet"]

_FORM = re.compile(
    r"(?:(?P<variant>[^<>=]+)\.)?(?P<name>[^.<>=]*[^.<>=\s])\s*(?P<sign>>=|<=)\s*(?P<limit>\S+)"
)


@dataclass(frozen=True)
class Requirement:
    """A limit for one measurement of every trial.

    Args:
        name: What is measured.
        at_least: Whether the limit is the least that holds, or the most.
        limit: The limit itself.
        variant: The label of the step that measured it; None is the last that did.
    """

    name: str
    at_least: bool
    limit: float
    variant: str | None = None

    @classmethod
    def of(cls, text: str) -> Requirement:
        """A requirement from its text.

        Args:
            text: `NAME>=NUMBER` or `NAME<=NUMBER`, the name after the label of a step and a point where it is needed.

        Raises:
            OptionError: The text has another form.

        >>> Requirement.of("macs<=5e6").limit
        5000000.0
        """
        found = _FORM.fullmatch(text.strip())
        try:
            limit = float(found["limit"]) if found is not None else math.nan
        except ValueError:
            limit = math.nan
        if found is None or math.isnan(limit):
            raise OptionError(
                "require: expected NAME>=NUMBER or NAME<=NUMBER, such as accuracy>=0.97 or small.file_bytes<=40000, "
                f"got {text!r}"
            )
        return cls(found["name"], found["sign"] == ">=", limit, found["variant"])

    def fails(self, measured: Iterable[Measurement]) -> str:
        """What is wrong with the measurements of one trial; an empty text where they hold.

        Args:
            measured: The measurements, in the order of the steps.

        Raises:
            OptionError: None of them is the one that is meant.
        """
        rows = [item for item in measured if "epoch" not in item.context]
        mine = [
            item
            for item in rows
            if item.name == self.name and self.variant in (None, str(item.context.get("variant")))
        ]
        if not mine:
            raise OptionError(f"require: {self._words()} was not measured: {self._nearest(rows)}")
        value = float(mine[-1].value)
        if value >= self.limit if self.at_least else value <= self.limit:
            return ""
        bound = "at least" if self.at_least else "at most"
        return f"{self._words()}: {bound} {self.limit:g} is required, got {value:.6g}"

    def _words(self) -> str:
        return self.name if self.variant is None else f"{self.variant}.{self.name}"

    def _nearest(self, rows: Sequence[Measurement]) -> str:
        """The names that were measured, the nearest first."""
        names = sorted({item.name for item in rows})
        if self.variant is not None and self.name in names:
            variants = sorted({str(item.context.get("variant")) for item in rows if item.name == self.name})
            return near(self.variant, variants)
        return near(self.name, names) if names else "nothing was measured; add a step of kind 'measure'"


def check_limits(required: Sequence[Requirement], steps: Mapping[str, tuple[str, ...] | None]) -> None:
    """Refuse, before any work, limits of what no step measures.

    Args:
        required: The limits.
        steps: What each step may measure, by its label, as `refuse_unmeasured` takes it.

    Raises:
        UnknownNameError: No step has the name, or the label before it.
    """
    for each in required:
        if each.variant is not None and each.variant not in steps:
            raise UnknownNameError(
                f"require: no step is called {each.variant!r}: {near(each.variant, steps)}"
            )
    refuse_unmeasured("require", [each.name for each in required], steps.values())


def unmet(required: Sequence[Requirement], measured: Iterable[Measurement]) -> list[str]:
    """What does not hold, for each trial.

    Args:
        required: The limits.
        measured: The measurements of a run, with their trials in `context`; trials that failed have none.

    Returns:
        A text for each limit and each trial that misses it.
    """
    by_trial: dict[int, list[Measurement]] = {}
    measured = list(measured)
    if required and not measured:
        required[0].fails(measured)
    for item in measured:
        by_trial.setdefault(int(item.context.get("trial", 0)), []).append(item)
    found = []
    for trial, rows in sorted(by_trial.items()):
        where = f"trial {trial + 1}: " if len(by_trial) > 1 else ""
        found += [f"{where}{why}" for each in required if (why := each.fails(rows))]
    return found

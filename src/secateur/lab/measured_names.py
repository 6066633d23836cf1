"""`refuse_unmeasured`: names that no planned step measures are refused before any work.

What a step may measure is known when it is planned (`Step.measured_names`), unless a function of the user's own names
the numbers: then nothing is refused here, and a name that was not measured is an error after the run.

>>> refuse_unmeasured("search", ["accuracy", "int8_loss"], [("int8_*",), ("accuracy", "loss")])
>>> refuse_unmeasured("search", ["acuracy"], [("int8_*",), ("accuracy", "loss")])
Traceback (most recent call last):
secateur.errors.UnknownNameError: search: no step of the recipe measures 'acuracy': did you mean 'accuracy'?
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from secateur.errors import UnknownNameError, near

__all__ = ["refuse_unmeasured"]


def refuse_unmeasured(who: str, names: Iterable[str], measured: Iterable[tuple[str, ...] | None]) -> None:
    """Refuse a name that no step measures.

    Args:
        who: Who asks for the names, for the message.
        names: Names of measurements.
        measured: What each step may measure, `*` standing for any letters; None where only its run says.

    Raises:
        UnknownNameError: No step measures it.
    """
    patterns: list[str] = []
    for one in measured:
        if one is None:
            return
        patterns += one
    for name in names:
        if not any(fnmatchcase(name, pattern) for pattern in patterns):
            known = [pattern for pattern in patterns if "*" not in pattern]
            hint = near(name, known) if known else "nothing is measured; add a step of kind 'measure'"
            raise UnknownNameError(f"{who}: no step of the recipe measures {name!r}: {hint}")

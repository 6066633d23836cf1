"""`renamed`: an argument goes on working under the name it had before, with a `DeprecationWarning`.

>>> import warnings
>>> @renamed(count="size")
... def ask(size: int = 1) -> int:
...     return size
>>> with warnings.catch_warnings(record=True) as caught:
...     warnings.simplefilter("always")
...     ask(count=3)
3
>>> str(caught[0].message)
"ask: the argument 'count' is called 'size' now; the old name will be removed in 1.0"
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar, cast

from secateur.core.user_warnings import warn

__all__ = ["old_names", "renamed"]

_F = TypeVar("_F", bound=Callable[..., object])


def renamed(**names: str) -> Callable[[_F], _F]:
    """Let a function or a dataclass take arguments by their old names too, and a dataclass give them.

    Args:
        **names: The present name of each old one.

    Returns:
        A decorator. The function raises a `TypeError` where an argument is given by both names. A dataclass takes the
        old one then, as `dataclasses.replace` adds the present value of every field.
    """

    def decorate(target: _F) -> _F:
        if isinstance(target, type):
            kind: type = target
            make = functools.wraps(kind.__init__)(_renaming(kind.__init__, kind.__name__, names, True))  # type: ignore[misc]
            kind.__init__ = make  # type: ignore[misc]
            for old, new in names.items():
                setattr(kind, old, property(_reading(kind.__name__, old, new)))
            _RENAMED[kind] = names
            return target
        return cast(_F, functools.wraps(target)(_renaming(target, target.__name__, names)))

    return decorate


_RENAMED: dict[type, dict[str, str]] = {}


def old_names(kind: object) -> dict[str, str]:
    """The present names of a dataclass's arguments by the old ones that it takes as well; empty for other objects.

    Args:
        kind: The class.
    """
    return _RENAMED.get(kind, {}) if isinstance(kind, type) else {}


def _renaming(
    function: Callable[..., object], called: str, names: dict[str, str], old_wins: bool = False
) -> Callable[..., object]:
    """The function that takes the old names too; with `old_wins`, also beside the present ones."""

    def call(*args: object, **kwargs: object) -> object:
        for old in names.keys() & kwargs.keys():
            new = names[old]
            if new in kwargs and not old_wins:
                raise TypeError(f"{called}: {old!r} is the old name of {new!r}; give {new!r} alone")
            warn(_text(called, "argument", old, new), DeprecationWarning)
            kwargs[new] = kwargs.pop(old)
        return function(*args, **kwargs)

    return call


def _reading(called: str, old: str, new: str) -> Callable[[object], object]:
    """The getter of an old attribute."""

    def read(value: object) -> object:
        warn(_text(called, "attribute", old, new), DeprecationWarning)
        return getattr(value, new)

    return read


def _text(called: str, what: str, old: str, new: str) -> str:
    return f"{called}: the {what} {old!r} is called {new!r} now; the old name will be removed in 1.0"

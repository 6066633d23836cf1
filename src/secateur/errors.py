"""Every error secateur raises on purpose, as one tree.

    SecateurError                 exit code 1; every message says what, expected, got, next step
    ├── OptionError               an option's value is out of range or of the wrong kind (exit 2)
    │   ├── UnknownNameError      no plug-in, layer or key of that name; near names are suggested (exit 2)
    │   └── RecipeError           a recipe that cannot be understood (exit 2)
    ├── PatternError              a pattern matched no layer or parameter (exit 2)
    ├── NothingToDoError          the request would change nothing (exit 4)
    ├── NonFiniteError            NaN or infinity in a weight or a score
    ├── MaskMismatchError         masks that belong to another model
    ├── DataError                 data that is missing, empty or of the wrong shape
    ├── CollapseError             a mask that disconnects the network
    ├── BudgetNotMetError         a budget that cannot be met; says how close it came (exit 3)
    ├── StructureError            the structure of a model could not be followed
    │   ├── TraceError            the forward pass could not be recorded
    │   ├── ProofError            shrunk and masked models compute different things
    │   └── PlanError             a plan that does not fit the model it is applied to
    ├── FormatError               a file that is not a valid .sct file; says what and where
    ├── ModelInUseError           a model that a verb in another thread is working on
    ├── StoreError                a run store that is damaged or of another version
    └── MissingExtraError         an optional dependency is not installed; says which extra brings it

>>> issubclass(UnknownNameError, OptionError), BudgetNotMetError("no room").exit_code
(True, 3)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BudgetNotMetError",
    "CollapseError",
    "DataError",
    "FormatError",
    "MaskMismatchError",
    "MissingExtraError",
    "ModelInUseError",
    "NonFiniteError",
    "NothingToDoError",
    "OptionError",
    "PatternError",
    "PlanError",
    "ProofError",
    "RecipeError",
    "SecateurError",
    "StoreError",
    "StructureError",
    "TraceError",
    "UnknownNameError",
    "near",
]


class SecateurError(Exception):
    """The base class of every error that secateur raises on purpose."""

    exit_code: int = 1


class OptionError(SecateurError, ValueError):
    """An option's value is out of range or of the wrong kind."""

    exit_code = 2


class UnknownNameError(OptionError):
    """No plug-in, layer or key goes by that name."""


class RecipeError(OptionError):
    """A recipe that cannot be understood."""


class PatternError(SecateurError, LookupError):
    """A pattern that matched no layer or parameter."""

    exit_code = 2


class NothingToDoError(SecateurError):
    """The request would change nothing, which is never what was intended."""

    exit_code = 4


class NonFiniteError(SecateurError, ValueError):
    """NaN or infinity where a number was needed."""


class MaskMismatchError(SecateurError, ValueError):
    """Masks that belong to another model."""


class DataError(SecateurError):
    """Data that is missing, empty or of the wrong shape."""


class CollapseError(SecateurError):
    """A mask that disconnects the network, found before any training is spent on it."""


class BudgetNotMetError(SecateurError):
    """A budget that cannot be met."""

    exit_code = 3


class StructureError(SecateurError):
    """The structure of a model could not be followed."""


class TraceError(StructureError):
    """The forward pass could not be recorded."""


class ProofError(StructureError):
    """The shrunk model computes something else than the masked one."""


class PlanError(StructureError):
    """A plan that does not fit the model it is applied to."""


class FormatError(SecateurError, ValueError):
    """A file that is not a valid .sct file."""


class ModelInUseError(SecateurError):
    """A model that a verb in another thread is working on."""


class StoreError(SecateurError):
    """A run store that is damaged or of another version."""


class MissingExtraError(SecateurError, ImportError):
    """An optional dependency is not installed."""


def near(word: str, known: Iterable[str], limit: int = 3) -> str:
    """A hint for a message about an unknown name: the most similar known names, or else all of them.

    >>> near("magnitud", ["magnitude", "l1"])
    "did you mean 'magnitude'?"
    >>> near("zzz", ["magnitude", "l1"])
    "known: 'l1', 'magnitude'"
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=limit, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    shown = ", ".join(repr(name) for name in names[:20])
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"known: {shown}{more}"

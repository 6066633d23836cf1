"""Every error secateur raises on purpose, as one tree.

    SecateurError                 exit 1: it failed; every message says what, expected, got, next step
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

Where a file, folder or store that was named is not there, or by its name is none that is read, an error of any kind has
exit code 2 (`as_usage`).

>>> issubclass(UnknownNameError, OptionError), BudgetNotMetError("no room").exit_code
(True, 3)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Self

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
    """The base class of every error that secateur raises on purpose.

    Catch it to handle whatever secateur refuses, and read its message: the next step is its last sentence.
    """

    exit_code: int = 1

    def as_usage(self) -> Self:
        """This error with exit code 2: what was named is not there, or is no file of a kind that is read."""
        self.exit_code = 2
        return self


class OptionError(SecateurError, ValueError):
    """An option's value is out of range or of the wrong kind.

    Cure: take a value that the message names. A share is between 0 and 1: `budget` and `sparsity` are the
    share that is removed, `keep` is the share that remains. `secateur COMMAND --help` and the reference list
    every option.
    """

    exit_code = 2


class UnknownNameError(OptionError):
    """There is no plug-in, layer or key of that name.

    Cure: take one of the names that the message suggests. `secateur list criteria` (or `granularities`,
    `budgets`, `models`, `data`, `measures`) prints all of them; layers are named as in
    `model.named_modules()`.
    """


class RecipeError(OptionError):
    """A recipe that cannot be understood.

    Cure: the message has the key and the line. `secateur run FILE --dry-run` checks a recipe without
    computing anything, and `secateur schema` prints all keys as JSON Schema, which editors can check while
    you write.
    """


class PatternError(SecateurError, LookupError):
    """A pattern that matched no layer or parameter.

    Cure: compare the pattern with the names of the model: `[target.name for target in sc.select(model)]`.
    `conv*` matches names, `type:Conv2d` matches classes.
    """

    exit_code = 2


class NothingToDoError(SecateurError):
    """The request would change nothing, which is never what was intended.

    Cure: ask for something that changes the model: a budget above 0, another pattern, masks that remove whole
    channels (zeros in single weights cannot be cut out; `shrink` needs granularity `channel`, `filter` or the
    like).
    """

    exit_code = 4


class NonFiniteError(SecateurError, ValueError):
    """NaN or infinity where a number was needed.

    Cure: find the first tensor with NaN or infinity, which the message names. After training it is most often
    a learning rate that is too high or float16 without loss scaling; in a score it is often data with NaN.
    """


class MaskMismatchError(SecateurError, ValueError):
    """Masks that belong to another model.

    Cure: use masks with the model that they were made for: same names, same shapes. After `shrink` the model
    has other shapes: choose again by `prune` on the small model.
    """


class DataError(SecateurError):
    """Data that is missing, empty or of the wrong shape.

    Cure: look at one batch. Data is an iterable of tensors, of (inputs, labels) pairs or of dicts of
    arguments that can be iterated over more than once: a list or a DataLoader, not a generator. `path=` names
    the folder of a dataset.
    """


class CollapseError(SecateurError):
    """A mask that disconnects the network, found before any training is spent on it.

    Cure: remove less from the layer that the message names: `PruneOptions(at_least=1)` keeps one unit of each layer,
    `at_most=0.9` limits the share, and `skip="NAME"` leaves a layer out. `allow_collapse=True` turns the check off.
    """


class BudgetNotMetError(SecateurError):
    """A budget that cannot be met.

    Cure: ask for no more than the message says was reached, or free what is locked: `sc.explain(model,
    example)` lists the locks, and every `skip` and `at_least` keeps something as well.
    """

    exit_code = 3


class StructureError(SecateurError):
    """The structure of a model could not be followed.

    Cure: `sc.explain(model, example)` shows how far the model can be followed, and by which operator it is
    stopped.
    """


class TraceError(StructureError):
    """The forward pass could not be recorded.

    Cure: call `model(example)` yourself with the same example; it must run in eval mode and take the tensors
    from it. Pass several inputs as a tuple, named ones as a dict. Parts that cannot be followed can be left
    out by `skip`.
    """


class ProofError(StructureError):
    """The shrunk model computes something else than the masked one.

    Cure: report it with the model, as this is never expected. Random outputs are the usual exception: a model
    in train mode or one that draws numbers. Outputs in float32 inside need
    `proof=sc.ProofOptions(tolerance=1e-6)`.
    """


class PlanError(StructureError):
    """A plan that does not fit the model it is applied to.

    Cure: build the model exactly as the dense one was built (same class, same arguments), before any weights
    are loaded, and apply the plan to that: `sc.load_shrunk(path, into=dense_model)`.
    """


class FormatError(SecateurError, ValueError):
    """A file that is not a valid .sct file.

    Cure: copy or write the file again; `secateur inspect FILE` says which part is damaged. A file of a newer
    version needs a newer secateur.
    """


class ModelInUseError(SecateurError):
    """A model that a verb in another thread is working on.

    Cure: wait for the other verb, or give each thread a copy of its own: `copy.deepcopy(model)`.
    """


class StoreError(SecateurError):
    """A run store that is damaged or of another version.

    Cure: `secateur gc` removes what killed runs left. A store of another version is read by the secateur that
    wrote it; a new folder (`--store NEW`) always works, and recomputes.
    """


class MissingExtraError(SecateurError, ImportError):
    """An optional dependency is not installed.

    Cure: install the extra that the message names, as in `pip install "secateur[onnx]"`.
    """


def near(word: str, known: Iterable[str], limit: int = 3, shown: int = 20) -> str:
    """A hint for a message about an unknown name: the most similar known names, or else all, or the first of them.

    Args:
        word: The unknown name.
        known: The known ones.
        limit: The most similar names given.
        shown: The most names given where none is similar.

    >>> near("magnitud", ["magnitude", "l1"])
    "did you mean 'magnitude'?"
    >>> near("zzz", ["magnitude", "l1"])
    "known: 'l1', 'magnitude'"
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=limit, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"known: {', '.join(repr(name) for name in names[:shown])}{more}"

"""Data of the user's own: what a function named `package.module:function` returns, as the parts of a dataset.

The function returns (train, test), (train, validation, test), or a dict with these words; each part is a pair of
tensors (inputs, labels) or a torch Dataset of such pairs. It may also return a `Raw` or a `Data`. Images of bytes,
uint8 [N, C, H, W], are normalised as those of the datasets by name; other inputs are given to the model as they are.

>>> rows, classes = torch.zeros(6, 3), torch.tensor([0, 1, 0, 1, 0, 1])
>>> own = parts_of({"train": (rows, classes), "test": (rows[:2], classes[:2])}, "mine:build")
>>> own.train.shape, own.classes, own.validation is None
((3,), ('0', '1'), True)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from secateur.adapters import functions
from secateur.data._kind import Raw, named_classes
from secateur.data._splits import Data, ImageMemory, Source, TensorMemory
from secateur.errors import DataError, OptionError, SecateurError
from secateur.execution.undisturbed import kept_random_state

__all__ = ["answer_of", "check_labels", "only_for_images", "parts_of", "runs_code", "with_source"]

_WORDS = ("train", "validation", "test")
_EXPECTED = (
    "(train, test), (train, validation, test) or a dict with these words, each part a pair of tensors (inputs, labels) "
    "or a torch Dataset of such pairs; or a Data of secateur.data"
)


def runs_code(name: str) -> bool:
    """Whether loading this name imports and calls a function of the user's.

    Args:
        name: A dataset's name.

    Returns:
        True for `package.module:function`; a path is none. A folder's name with a colon in it is written `./NAME`, so
        that it depends on no folder whether a name is code.

    >>> runs_code("os:system"), runs_code("digits"), runs_code("./folder:1"), runs_code("OWNER/NAME")
    (True, False, False, False)
    """
    return ":" in name and "/" not in name and "\\" not in name


def only_for_images(name: str, given: Mapping[str, object]) -> None:
    """Refuse arguments of `load` that the user's own function is not asked for.

    Args:
        name: The data's name.
        given: The arguments, those not given as None.

    Raises:
        OptionError: One was given.
    """
    for key, value in given.items():
        if value is not None:
            raise OptionError(
                f"data {name!r}: {key} belongs to datasets by name: expected it to be left out, got {value!r}; let the "
                "function prepare its inputs, and give it options: [data] options = {...}"
            )


def answer_of(name: str, options: Mapping[str, object], seed: int) -> object:
    """What the user's function returns. Random generators are seeded for it, and restored.

    Args:
        name: `package.module:function`.
        options: What it is called with.
        seed: Of torch's, numpy's and Python's generators.

    Raises:
        OptionError: The options do not fit it, or there is a folder of this name.
        DataError: It failed.
    """
    import random

    if os.path.exists(name):
        raise OptionError(
            f"data {name!r}: expected a function, package.module:function, and there is a file or folder of this name "
            f"too; write './{name}' for that, or rename it"
        )
    function: Callable[..., Any] = functions.find(name, "data")
    functions.check_options(function, dict(options), f"data {name!r}")
    with kept_random_state():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            return function(**options)
        except SecateurError:
            raise
        except Exception as error:  # of the user's own code
            raise DataError(
                f"data {name!r}: the function failed ({type(error).__name__}: {error}); --debug shows where"
            ) from error


def with_source(data: Data, name: str) -> Data:
    """A `Data` that a user's function made, its fingerprint joined with that of the function's files.

    The content of what `parts_of` takes is hashed. A `Data` comes with a fingerprint, perhaps of images that the
    function then changed.

    Args:
        data: What the function returned.
        name: `package.module:function`.
    """
    source = functions.source_digest(name, "data")
    joint = hashlib.sha256(f"{data.fingerprint} {source}".encode()).hexdigest()
    return replace(data, fingerprint=joint)


def parts_of(answer: object, name: str) -> Raw:
    """The parts in what the user's function returned.

    Args:
        answer: What it returned.
        name: Its name, for messages.

    Raises:
        DataError: It is something else, or a part's inputs and labels do not fit together.
    """
    if isinstance(answer, Raw):
        return answer
    sources = {word: _source(part, f"data {name!r}: {word}") for word, part in _named(answer, name).items()}
    shapes = {word: source.shape for word, source in sources.items()}
    for word, shape in shapes.items():
        if shape != shapes["train"]:
            raise DataError(
                f"data {name!r}: {word}: expected inputs of shape {shapes['train']} as in train, got {shape}; give all "
                "parts one shape"
            )
    labels = [source.labels for source in sources.values()]
    classes = named_classes(labels, None, f"data {name!r}") if all(map(_numbered, labels)) else ()
    return Raw(sources["train"], sources.get("validation"), sources["test"], classes)


def _named(answer: object, name: str) -> dict[str, object]:
    """The parts by their words."""
    if isinstance(answer, Mapping):
        found = {str(word): part for word, part in answer.items() if part is not None}
        if {"train", "test"} <= found.keys() <= set(_WORDS):
            return found
        raise DataError(f"data {name!r}: expected {_EXPECTED}; got a dict with {', '.join(map(str, answer))}")
    if isinstance(answer, tuple | list) and any(isinstance(part, torch.Tensor) for part in answer):
        raise DataError(
            f"data {name!r}: expected {_EXPECTED}; got tensors, as of one part; return "
            "((train_inputs, train_labels), (test_inputs, test_labels))"
        )
    if isinstance(answer, tuple | list) and len(answer) in (2, 3):
        words = _WORDS if len(answer) == 3 else ("train", "test")
        return {word: part for word, part in zip(words, answer) if part is not None or word != "validation"}
    several = f" of {len(answer)}" if isinstance(answer, tuple | list) else ""
    raise DataError(f"data {name!r}: expected {_EXPECTED}; got {type(answer).__name__}{several}")


def _source(part: object, where: str) -> Source:
    """One part as a source."""
    if isinstance(part, torch.utils.data.IterableDataset) or (
        isinstance(part, torch.utils.data.Dataset) and not hasattr(part, "__len__")
    ):
        raise DataError(
            f"{where}: expected a torch Dataset with a length and places, got {type(part).__name__}, which only runs "
            "through; give tensors, or a Dataset with __len__ and __getitem__"
        )
    tensors = getattr(part, "tensors", None)  # of a TensorDataset
    if isinstance(part, torch.utils.data.TensorDataset) and tensors is not None:
        part = tuple(tensors)
    if isinstance(part, torch.utils.data.Dataset):
        part = _read(part, where)
    if not isinstance(part, tuple | list) or len(part) != 2:
        what = type(part).__name__ + (f" of {len(part)}" if isinstance(part, tuple | list) else "")
        raise DataError(f"{where}: expected a pair (inputs, labels) or a torch Dataset, got {what}")
    inputs, labels = (_tensor(value, f"{where}: {word}") for word, value in zip(("inputs", "labels"), part))
    if inputs.dim() < 1 or labels.dim() < 1 or len(inputs) != len(labels) or not len(inputs):
        raise DataError(
            f"{where}: expected as many labels as inputs, at least one, got inputs {tuple(inputs.shape)} and labels "
            f"{tuple(labels.shape)}"
        )
    if inputs.dtype == torch.uint8 and inputs.dim() == 4 and inputs.shape[1] in (1, 3) and _numbered(labels):
        return ImageMemory(inputs, labels)
    return TensorMemory(inputs, labels)


def _tensor(value: object, where: str) -> torch.Tensor:
    """A tensor on the CPU, of a tensor or an array of numpy; the user's own is never changed."""
    if isinstance(value, torch.Tensor) and not value.is_sparse:
        return value.detach().to("cpu")
    if hasattr(value, "__array__"):
        try:
            array = np.asarray(value)
            return torch.as_tensor(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{where}: expected a tensor, got an array that is none ({error})") from error
    raise DataError(
        f"{where}: expected a tensor or an array of numpy, got {type(value).__name__}; where the model takes several "
        "inputs, put them into one tensor and take them apart in the model"
    )


def _read(dataset: Any, where: str) -> tuple[torch.Tensor, torch.Tensor]:
    """All items of a torch Dataset as tensors; refused where an item changes from one reading to the next."""
    count = len(dataset)
    if not count:
        raise DataError(f"{where}: expected a torch Dataset with items, got an empty one")
    inputs, labels = zip(*(_item(dataset[at], f"{where}: item {at}") for at in range(count)))
    again, _ = _item(dataset[0], f"{where}: item 0")
    first = inputs[0]
    if again.shape != first.shape or not torch.equal(
        again.nan_to_num() if again.is_floating_point() else again,
        first.nan_to_num() if first.is_floating_point() else first,
    ):
        raise DataError(
            f"{where}: expected the same item at every reading, got item 0 changed; leave random transforms out: "
            "images are augmented by the steps that train, with augment"
        )
    for word, items in (("input", inputs), ("label", labels)):
        for at, item in enumerate(items):
            if item.shape != items[0].shape or item.dtype != items[0].dtype:
                raise DataError(
                    f"{where}: item {at}: expected {word} {tuple(items[0].shape)} {items[0].dtype} as of item 0, got "
                    f"{tuple(item.shape)} {item.dtype}; pad or cut all to one shape"
                )
    return torch.stack(inputs), torch.stack(labels)


def _item(item: object, where: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(input, label) of one item."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError(f"{where}: expected a pair (input, label), got {type(item).__name__}")
    given, label = item
    if isinstance(label, int | float):
        label = torch.tensor(label)
    return _tensor(given, f"{where}: input"), _tensor(label, f"{where}: label")


def _numbered(labels: torch.Tensor) -> bool:
    """Whether labels are numbers of classes: whole, one each."""
    return labels.dim() == 1 and not (labels.is_floating_point() or labels.is_complex())


def check_labels(data: Data, model: torch.nn.Module) -> None:
    """Refuse labels that are no classes where the model has no loss of its own.

    Args:
        data: The user's data.
        model: The model that will be trained or measured on it.

    Raises:
        DataError: The model would be trained with cross-entropy, which needs classes.
    """
    labels = data.train.labels
    if _numbered(labels) or hasattr(model, "training_loss"):
        return
    raise DataError(
        f"data {data.name!r}: labels: expected whole numbers [N], a class each, got {labels.dtype} "
        f"{tuple(labels.shape)}; for other targets give {type(model).__name__} its own methods "
        "training_loss(outputs, inputs, labels), a mean, and evaluation_metrics(inputs, labels, generator), sums"
    )

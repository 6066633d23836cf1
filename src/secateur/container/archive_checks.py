"""What `save` and `load` refuse: tensors, masks and codebooks that are not those of the model.

>>> check_masks({"weight": torch.ones(2)}, {"bias": torch.ones(2, dtype=torch.bool)})
Traceback (most recent call last):
secateur.errors.MaskMismatchError: mask of 'bias': the model has no such tensor; ...
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import torch

from secateur.container import batch_norm as bn
from secateur.container import format as sct
from secateur.container import int8_weights
from secateur.container.arrays import TORCH_DTYPES
from secateur.container.frame import Archive
from secateur.container.scalar_rounding import SCALES
from secateur.core.codebook import Codebook
from secateur.errors import (
    DataError,
    FormatError,
    MaskMismatchError,
    OptionError,
    near,
)

if TYPE_CHECKING:
    from secateur.structure.cut.plan import ShrinkPlan

__all__ = ["check_books", "check_masks", "check_target", "read_plan", "wrapper_of"]

State = Mapping[str, torch.Tensor]

_WRAPPERS = frozenset(["state_dict", "model_state_dict", "model", "net", "module", "_orig_mod"])


def _implied(archive: Archive, name: str) -> bool:
    """Whether a model may lack this tensor: batch norms of old torch releases count no batches."""
    return archive.folded and name.endswith("num_batches_tracked")


def check_target(
    path: str | os.PathLike[str], archive: Archive, target: State, weights: Collection[str]
) -> None:
    """Raise unless the tensors of the file are those of the model, before any of them is decoded."""
    found: set[str] = set()
    parts = int8_weights.parts_of(weights)
    for record in archive.heads:
        name, entry = record.entry.name, record.entry
        if name in parts:
            continue
        extra = _statistics_of(archive, record)
        found.update(extra, [name])
        if name not in target:
            raise DataError(f"{path}: the file's tensor {name!r} is not in the model; {near(name, target)}")
        wanted = target[name]
        if tuple(wanted.shape) != entry.shape:
            raise DataError(
                f"{path}: tensor {name!r} has shape {list(entry.shape)} in the file and "
                f"{list(wanted.shape)} in the model; build the class the file was saved from. Where channels were "
                "removed, save the plan too, sc.save(small.model, path, plan=small.plan), or load into small.model"
            )
        held = torch.float32 if name in weights else TORCH_DTYPES[entry.dtype]
        if wanted.dtype != held:
            raise DataError(
                f"{path}: tensor {name!r} is {held} in the file and {wanted.dtype} in the "
                f"model; convert the model first, so that nothing is rounded unseen"
            )
        strange = [one for one in extra if one not in target and not _implied(archive, one)]
        if strange:
            raise DataError(
                f"{path}: the file's tensor {strange[0]!r} is not in the model; {near(strange[0], target)}"
            )
    missing = [name for name in target if name not in found]
    if missing:
        raise DataError(
            f"{path}: the model's tensor {missing[0]!r} is not in the file ({len(missing)} are missing)"
        )


def wrapper_of(archive: Archive, target: State) -> str:
    """What the names of a file begin with and those of the model do not: a checkpoint packed as it was has the names of
    its dictionaries and of DataParallel and `torch.compile` before those of the model.

    Args:
        archive: The file.
        target: The model's tensors.

    Returns:
        Such as "state_dict.module."; empty where the names are the model's own.
    """
    names = [record.entry.name for record in archive.heads]
    if not names or any(name in target for name in names):
        return ""
    prefix = next((names[0].removesuffix(own) for own in target if names[0].endswith(f".{own}")), "")
    known = all(part in _WRAPPERS for part in prefix.split(".")[:-1])
    return prefix if known and all(name.startswith(prefix) for name in names) else ""


def _statistics_of(archive: Archive, record: sct.Record) -> list[str]:
    """The names of the statistics that a reader supplies for the scale of a folded batch norm."""
    if not archive.folded or record.method != sct.DRAWN + SCALES:
        return []
    prefix = record.entry.name.removesuffix("weight")
    return [prefix + part for part in bn.STATISTICS]


def check_books(state: State, books: Mapping[str, Codebook]) -> None:
    """Raise an `OptionError` where a codebook is not that of a tensor of the model."""
    for name, book in books.items():
        if name not in state:
            raise OptionError(f"codebook of {name!r}: the model has no such tensor; {near(name, state)}")
        tensor = book.tensor()
        if tensor.shape != state[name].shape or not bool((tensor.to(state[name]) == state[name]).all()):
            raise OptionError(
                f"codebook of {name!r}: the model's tensor is not made of the codebook's values; write them "
                f"into the "
                "model first (shared.apply_(model)) or save the shared copy"
            )


def check_masks(state: State, masks: Mapping[str, torch.Tensor] | None) -> None:
    """Raise a `MaskMismatchError` where a mask is not that of a tensor, or drops a weight that is not 0."""
    for name, mask in (masks or {}).items():
        if name not in state:
            raise MaskMismatchError(f"mask of {name!r}: the model has no such tensor; {near(name, state)}")
        if mask.shape != state[name].shape:
            raise MaskMismatchError(
                f"mask of {name!r}: shape {list(mask.shape)}, the tensor has {list(state[name].shape)}"
            )
        alive = int((state[name][~mask.to(state[name].device)] != 0).sum())
        if alive:
            raise MaskMismatchError(
                f"mask of {name!r}: {alive} weights it removes are not zero in the model; "
                f"masks.apply_(model) first"
            )


def read_plan(text: bytes) -> ShrinkPlan:
    """The shrink plan of a file.

    Args:
        text: The text `plan`, decoded.
    """
    from secateur.structure.cut.plan import ShrinkPlan

    try:
        return ShrinkPlan.from_json(text.decode())
    except UnicodeDecodeError:
        raise FormatError("the shrink plan of the file is not UTF-8") from None

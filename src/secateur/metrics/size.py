"""`size`: bytes as really written; a size that comes from a formula says so in its definition.

>>> from torch import nn
>>> import io, torch
>>> model = nn.Linear(3, 2)
>>> stream = io.BytesIO()
>>> torch.save(model.state_dict(), stream)
>>> size(model)["size"].value == len(stream.getvalue())
True
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from secateur.core.measurement import Measurement, Measurements
from secateur.core.missing_files import missing
from secateur.errors import DataError, OptionError

__all__ = ["file_size", "formula_size", "size"]

DEFINITION = "bytes of torch.save(model.state_dict()) as really serialised"


class _Counter:
    """A stream that only counts bytes, so that a large model is not held in memory twice."""

    def __init__(self) -> None:
        self.count = 0

    def write(self, data: bytes) -> int:
        length = len(data)
        self.count += length
        return length

    def flush(self) -> None:
        pass


def size(model: nn.Module | Mapping[str, object]) -> Measurements:
    """Bytes of the state dict as `torch.save` serialises it; per tensor, the bytes of its elements alone.

    Args:
        model: The model, or its state dict.
    """
    # the state dict as it is: torch.save writes its metadata too
    state: Mapping[str, object] = model.state_dict() if isinstance(model, nn.Module) else dict(model)
    counter = _Counter()
    torch.save(state, counter)  # type: ignore[arg-type]
    tensors = {name: t.numel() * t.element_size() for name, t in state.items() if isinstance(t, torch.Tensor)}
    notes = (f"per tensor: bytes of its elements, {sum(tensors.values()):,} in all",)
    return Measurements(
        [Measurement("size", counter.count, "bytes", DEFINITION, per_layer=tensors, notes=notes)]
    )


def file_size(path: str | os.PathLike[str]) -> Measurements:
    """Bytes of a file on disk.

    Args:
        path: The file.
    """
    target = Path(path)
    if not target.is_file():
        raise DataError(f"{missing(path)}; save one first").as_usage()
    value = target.stat().st_size
    return Measurements([Measurement("file_size", value, "bytes", f"bytes of {target.name} on disk")])


def formula_size(value: float, formula: str) -> Measurements:
    """A size that was calculated, not measured on a file; its definition begins with the word FORMULA.

    Args:
        value: The bytes.
        formula: The formula that gave them.

    >>> print(formula_size(103349.5, "non-zero weights x 5 bits"))
    size_formula  103,350 bytes  FORMULA, not a file: non-zero weights x 5 bits
    """
    if not formula:
        raise OptionError("formula_size: say which formula gave the value, got an empty text")
    return Measurements([Measurement("size_formula", value, "bytes", f"FORMULA, not a file: {formula}")])

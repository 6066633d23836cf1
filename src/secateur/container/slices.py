"""A tensor with few distinct values in every slice along an axis, such as a codebook for each output channel.

All slices have one number of levels; what a slice with fewer distinct values leaves over is zero, and nothing has it.
Where 0.0 occurs in every slice it has the same level in all of them, so that the coder of levels knows which weights
are zero.

>>> words = np.array([[0.5, 0.25] * 8, [3.0, 2.0] * 8], dtype=np.float32).view(np.uint32)
>>> found = few_in_slices(words, Entry("w", "F32", (2, 16)), 0)
>>> found.values.view(np.float32).tolist(), found.levels[:, :3].tolist(), found.zero
([[0.25, 2.0], [0.5, 3.0]], [[1, 0, 1], [1, 0, 1]], None)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.coding import floats, indices, static, varint
from secateur.coding.indices import MixerBank
from secateur.container import format as sct
from secateur.container.codebooks import value_keys
from secateur.container.format import Entry, Record
from secateur.errors import FormatError

__all__ = ["MOST_VALUES", "Slices", "few_in_slices", "from_slices", "in_slices"]

MOST_VALUES = 256
"""Distinct values of a slice, at most."""
_SAMPLE = 8  # slices by which most tensors are told to have more
_SHARE = 4  # a slice has at least this many times as many elements as values


@dataclass(frozen=True)
class Slices:
    """The distinct words of every slice, and which of them each element has.

    Attributes:
        axis: The axis.
        values: The words, [levels, slices].
        levels: The level of every element, in the tensor's shape.
        zero: The level whose words are zero in all slices; None where there is none.
    """

    axis: int
    values: np.ndarray
    levels: np.ndarray
    zero: int | None

    def guess(self) -> float:
        """About how many bytes it takes."""
        return static.entropy(self.levels) * self.levels.size / 8 + 0.95 * self.values.nbytes + 24


def few_in_slices(words: np.ndarray, entry: Entry, axis: int) -> Slices | None:
    """The tensor as slices of few values; None where that cannot be smaller than the words as they are.

    Args:
        words: Its elements as unsigned words, in its shape.
        entry: Name, dtype and shape.
        axis: The axis along which every slice has values of its own.
    """
    if words.ndim < 2 or not 0 <= axis < words.ndim or not words.size:
        return None
    apart = np.moveaxis(words, axis, 0)
    rows = apart.reshape(apart.shape[0], -1)
    most = min(MOST_VALUES, rows.shape[1] // _SHARE)
    if most < 1 or _most_distinct(rows[:: max(1, len(rows) // _SAMPLE)]) > most:
        return None
    keys = value_keys(rows, entry)
    order = np.argsort(keys, axis=1, kind="stable")
    ascending = np.take_along_axis(rows, order, 1)
    new = np.ones(rows.shape, dtype=bool)
    new[:, 1:] = ascending[:, 1:] != ascending[:, :-1]
    ranks = np.cumsum(new, axis=1, dtype=np.int32) - 1
    counts = ranks[:, -1] + 1
    if counts.max() > most:
        return None
    table = np.zeros((len(rows), int(counts.max())), dtype=words.dtype)
    row, place = np.nonzero(new)
    table[row, ranks[row, place]] = ascending[row, place]
    levels = np.empty_like(ranks)
    np.put_along_axis(levels, order, ranks, 1)
    table, levels, zero = _zeros_aligned(table, levels, counts)
    shaped = np.moveaxis(levels.reshape(apart.shape), 0, axis)
    return Slices(axis, np.ascontiguousarray(table.T), np.ascontiguousarray(shaped), zero)


def _most_distinct(rows: np.ndarray) -> int:
    """The most distinct words that one of these rows has."""
    ascending = np.sort(rows, axis=1)
    return 1 + int((ascending[:, 1:] != ascending[:, :-1]).sum(1).max(initial=0))


def _zeros_aligned(
    table: np.ndarray, levels: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int | None]:
    """Values and levels of rows moved so that zero has one level, where every row has a zero; and that level."""
    there = (table == 0) & (np.arange(table.shape[1]) < counts[:, None])
    if not there.any(1).all():
        return table, levels, None
    at = there.argmax(1)
    zero = int(at.max())
    size = zero + int((counts - at).max())
    if size > MOST_VALUES:
        return table, levels, None
    shift = (zero - at)[:, None]  # level k of a row becomes level k + shift
    source = np.arange(size)[None] - shift
    own = (source >= 0) & (source < counts[:, None])
    moved = np.take_along_axis(table, np.where(own, source, 0), 1)
    return np.where(own, moved, 0).astype(table.dtype), levels + shift.astype(levels.dtype), zero


def in_slices(entry: Entry, found: Slices, coder: str, memory: MixerBank) -> tuple[int, list[bytes]]:
    """Method and parts of a tensor of few values in every slice.

    Args:
        entry: Name, dtype and shape of the tensor.
        found: Its slices.
        coder: "fast", "mixed" or "strong".
        memory: The coder's state after the earlier tensors of the same section.
    """
    count = len(found.values)
    zero = 0 if found.zero is None else found.zero + 1
    head = varint.write(found.axis) + varint.write(count) + varint.write(zero)
    stream = indices.encode(found.levels.reshape(entry.shape), count, found.zero, coder, memory)
    return sct.SLICED, [head, floats.encode(found.values.reshape(-1), entry.floating), stream]


def from_slices(record: Record) -> np.ndarray:
    """The words of a record of method `SLICED`.

    Args:
        record: The record.

    Raises:
        FormatError: Its head does not fit the tensor, or a value at its zero level is not zero.
    """
    entry, parts = record.entry, record.parts
    reader = varint.Reader(parts["slices"], "slices")
    axis = reader.varint(sct.MOST_DIMS, "the axis of slices")
    count = reader.varint(MOST_VALUES, "the number of values of a slice")
    zero = reader.varint(MOST_VALUES, "the zero level of slices")
    reader.end()
    if axis >= len(entry.shape) or not count or zero > count:
        raise FormatError(
            f"slices along axis {axis} with {count} values and zero level {zero - 1}, expected an axis of shape "
            f"{list(entry.shape)}, one value or more, and a level below {count}"
        )
    slices = entry.shape[axis]
    if count * slices > entry.numel:
        raise FormatError(f"{slices} slices of {count} values, more than the tensor's {entry.numel} elements")
    table = floats.decode(parts["values"], count * slices, entry.width, entry.floating, record.version)
    table = table.reshape(count, slices)
    if zero and table[zero - 1].any():
        raise FormatError(f"the value at zero level {zero - 1} of a slice is not zero")
    stream = bytes(parts["indices"])
    levels = indices.decode(stream, entry.shape, count, zero - 1 if zero else None, record.memory)
    across = np.arange(slices).reshape([-1 if k == axis else 1 for k in range(len(entry.shape))])
    return table[levels, across]

"""What is known about a weight before it is coded: contexts from kernels, filters and channels, a block at a
time.

A tensor is seen as filters x channels x taps, and coded tap by tap ("plane by plane"), so that when one tap
of all kernels is coded the taps before it are known to coder and decoder alike. Planes are cut into blocks of
filters. All arithmetic is in whole numbers; docs/format.md defines every context.

>>> layout((16, 3, 3, 3))
Layout(filters=16, channels=3, taps=9, width=3, split=1)
>>> layout((10, 64))
Layout(filters=10, channels=8, taps=8, width=8, split=8)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

__all__ = ["MAGNITUDE", "MAGNITUDE_PLAIN", "SIGN", "ZERO", "Block", "Layout", "Planes", "layout"]

_MOST_TAPS = 64

# How many values each context of a set has, in the order `Block` gives them.
ZERO = (256, 416, 144, 64, 128)
SIGN = (625, 289, 169, 81)
MAGNITUDE = (625, 64, 96, 96)
MAGNITUDE_PLAIN = (12, 12)  # for the low bits, which are nearly random


def _steps(edges: tuple[int, ...]) -> np.ndarray:
    return np.searchsorted(np.array(edges), np.arange(256), side="left").astype(np.int64)


def _within(values: np.ndarray, most: int) -> np.ndarray:
    """Values cut to 0..most (faster than clip on short arrays)."""
    return np.minimum(np.maximum(values, 0), most)


_EIGHT = _steps((3, 7, 11, 15, 20, 28, 45))
_TWELVE = _steps((2, 5, 8, 11, 14, 18, 23, 30, 40, 60, 90))
# Each edge about a fifth above the one before.
_FINE = _steps(
    (2, 3, 4, 5, 6, 8, 9, 11, 13, 16, 19, 22, 27, 32, 38, 45, 54, 64, 77, 91, 109, 130, 154, 184, 219)
)


@dataclass(frozen=True)
class Layout:
    """A shape as filters x channels x taps; `width` taps are a row of a kernel, `split` runs a matrix row."""

    filters: int
    channels: int
    taps: int
    width: int
    split: int

    def planes(self, levels: np.ndarray) -> np.ndarray:
        """The tensor as [taps, filters, channels]."""
        if self.split > 1:
            return np.ascontiguousarray(
                levels.reshape(self.filters, self.split, self.channels).transpose(1, 0, 2)
            )
        return np.ascontiguousarray(levels.reshape(self.filters, self.channels, self.taps).transpose(2, 0, 1))

    def tensor(self, planes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The inverse of `planes`."""
        order = (1, 0, 2) if self.split > 1 else (1, 2, 0)
        return np.ascontiguousarray(planes.transpose(order)).reshape(shape)


def layout(shape: tuple[int, ...]) -> Layout:
    """How a tensor of this shape is walked."""
    filters = shape[0] if len(shape) > 0 else 1
    channels = shape[1] if len(shape) > 1 else 1
    taps, width = prod(shape[2:]), shape[-1] if len(shape) > 2 else 1
    if taps > _MOST_TAPS:
        filters, channels, taps = filters * channels, taps, 1
    if taps > 1:
        return Layout(filters, channels, taps, width, 1)
    split = next((s for s in range(8, 1, -1) if channels >= 16 and channels % s == 0), 1)
    return Layout(filters, channels // split, split, split, split)


def _neighbours(taps: int, width: int) -> list[list[int]]:
    """For every tap: left, up, right, below, the diagonals, two left, two up; `taps` where none is."""
    height = taps // width
    steps = ((0, -1), (-1, 0), (0, 1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1), (0, -2), (-2, 0))
    table = []
    for tap in range(taps):
        y, x = divmod(tap, width)
        spots = [(y + dy, x + dx) for dy, dx in steps]
        table.append([v * width + u if 0 <= v < height and 0 <= u < width else taps for v, u in spots])
    return table


class Planes:
    """The signed ranks coded so far and what adds up over kernels, filters and channels."""

    def __init__(self, layout: Layout, largest: int):
        self.layout = layout
        filters, channels, taps = layout.filters, layout.channels, layout.taps
        self._near = _neighbours(taps, layout.width)
        self.signed = np.zeros((taps + 1, filters, channels), dtype=np.int64)  # the last plane stays zero
        self._size = np.zeros((taps + 1, filters, channels), dtype=np.int64)
        self._kernel = np.zeros((2, filters, channels), dtype=np.int64)  # sums of sizes, of signed ranks
        self._filter = np.zeros((4, filters), dtype=np.int64)  # non-zeros, sizes, signed sums, how many
        self._channel = np.zeros((4, channels), dtype=np.int64)
        self._count = 0
        self._total = 0
        self._first_mean = max(4, 16 * max(1, largest) // 3)

    def blocks(self, grain: int) -> Iterator[Block]:
        """The blocks in coding order; each must be `close`d with its ranks before the next is asked for.

        Blocks have about 2**grain weights, more in large planes: small ones learn sooner, large ones run
        faster.
        """
        plan = self.layout
        size = min(max(plan.filters * plan.channels // 16, 1 << grain), 16384)
        rows = max(1, size // plan.channels)
        for tap in range(plan.taps):
            for top in range(0, plan.filters, rows):
                yield Block(self, tap, slice(top, min(top + rows, plan.filters)))

    @property
    def mean(self) -> int:
        """The mean rank so far, zeros counted, in 16ths; a guess before the first block."""
        return max(4, 16 * self._total // self._count) if self._count else self._first_mean

    def add(self, tap: int, rows: slice, signed: np.ndarray) -> None:
        """Take a block's ranks into account."""
        size = np.abs(signed)
        there = (size > 0).astype(np.int64)
        self.signed[tap, rows], self._size[tap, rows] = signed, size
        for k, what in enumerate((there, size, signed)):
            self._filter[k, rows] += what.sum(axis=1)
            self._channel[k] += what.sum(axis=0)
        self._kernel[0, rows] += size
        self._kernel[1, rows] += signed
        self._filter[3, rows] += signed.shape[1]
        self._channel[3] += signed.shape[0]
        self._count += signed.size
        self._total += int(size.sum())


class Block:
    """The contexts of one block: rows of filters at one tap."""

    def __init__(self, planes: Planes, tap: int, rows: slice):
        self._planes = planes
        self.tap = tap
        self._rows = rows
        self._mean = planes.mean
        self.shape = planes.signed[tap, rows].shape
        self.size = self.shape[0] * self.shape[1]
        self._step = min(tap, 15)
        near = planes._near[tap]
        self._done = [spot < tap for spot in near]
        self._signed = [planes.signed[spot, rows] if done else None for spot, done in zip(near, self._done)]
        around = sum(self._done[:4]), sum(self._done[4:8])
        sizes = [planes._size[spot, rows] if done else 0 for spot, done in zip(near, self._done)]
        zero = np.zeros(self.shape, dtype=np.int64)
        cross, corner = zero, zero
        for size in sizes[:4]:
            cross = cross + size
        for size in sizes[4:8]:
            corner = corner + size
        self._sizes = sizes
        self.kernel = _EIGHT[self._ratio(planes._kernel[0, rows], tap)] if tap else zero
        self.cross = _EIGHT[self._ratio(cross, around[0])] if around[0] else zero
        both = 2 * around[0] + around[1]
        self.all_near = _EIGHT[self._ratio(2 * cross + corner, both)] if both else zero
        filters, channels = self._level(planes._filter[:, rows]), self._level(planes._channel)
        self.filter = _TWELVE[filters][:, None]
        self.channel = _TWELVE[channels][None, :]
        self.expected = self._expected(filters, channels, 2 * cross + corner, both)

    def _expected(
        self, filters: np.ndarray, channels: np.ndarray, around: np.ndarray, known: int
    ) -> np.ndarray:
        """The magnitude to expect: what filter and channel make of it together, the kernel and its
        neighbours, each the heavier the more is known.
        """
        total, weight = (filters[:, None] * channels[None, :]) >> 1, 8
        if self.tap:
            seen = min(self.tap, 4)
            total = total + seen * self._ratio(self._planes._kernel[0, self._rows], self.tap)
            weight += seen
        if known:
            total = total + known * self._ratio(around, known)
            weight += known
        return _FINE[np.minimum(total // weight, 255)]

    def _ratio(self, total: np.ndarray, count: int) -> np.ndarray:
        """A sum of `count` ranks against the mean, in 16ths, below 256."""
        return np.minimum((total * 256 + self._mean) // (count * self._mean), 255)

    def _level(self, sums: np.ndarray) -> np.ndarray:
        known = sums[3] > 0
        total = np.where(known, sums[1], self._planes._total)
        count = np.where(known, sums[3], max(1, self._planes._count))
        return np.minimum((total * 256 + self._mean) // (count * self._mean), 255)

    def _stack(self, contexts: list[np.ndarray | int]) -> np.ndarray:
        out = np.empty((len(contexts), *self.shape), dtype=np.int64)
        for row, context in zip(out, contexts):
            row[...] = context
        return out.reshape(len(contexts), -1)

    def zero(self) -> np.ndarray:
        """Contexts of "is it zero": [len(ZERO), size]."""
        step = self._step
        pattern = np.zeros(self.shape, dtype=np.int64)
        for bit, size in enumerate(self._sizes[:4]):
            if self._done[bit]:
                pattern += (size > 0) * (1 << bit)
        return self._stack(
            [
                pattern * 16 + step,
                self.expected * 16 + step,
                self.filter * 12 + self.channel,
                self.cross * 8 + self.kernel,
                self.all_near * 16 + step,
            ]
        )

    def sign(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Contexts of the signs of the chosen weights, and what their neighbours make of the sign (0..624)."""
        nothing = np.zeros(len(chosen), dtype=np.int64)
        ranks = [nothing if s is None else s.reshape(-1)[chosen] for s in self._signed]
        left, up, two_left, two_up = (np.sign(ranks[k]) + 1 for k in (0, 1, 8, 9))
        mean = self._mean
        cross = ranks[0] + ranks[1] + ranks[2] + ranks[3]
        # A plane through left, up and up left goes on to this weight.
        plane = cross - ranks[4] - ranks[6]
        near = 2 * cross + ranks[4] + ranks[5] + ranks[6] + ranks[7]
        by_cross = _within((cross * 16 + mean // 2) // mean * 2 // 3 + 6, 12)
        by_plane = _within((plane * 16 + mean // 2) // mean * 2 // 3 + 12, 24)
        by_near = _within((near * 16 + mean // 2) // mean * 2 // 3 + 12, 24)
        guess = by_plane * 25 + by_near
        kernel = self._planes._kernel[1, self._rows].reshape(-1)[chosen]
        by_kernel = _within((kernel * 16 + mean // 2) // mean // 3 + 6, 12)
        row, column = np.divmod(chosen, self.shape[1])
        filters = self._lean(self._planes._filter[:, self._rows])[row]
        channels = self._lean(self._planes._channel)[column]
        contexts = np.stack(
            [
                guess,
                filters * 17 + channels,
                by_cross * 13 + by_kernel,
                two_left * 27 + left * 9 + two_up * 3 + up,
            ]
        )
        return contexts, guess

    def _lean(self, sums: np.ndarray) -> np.ndarray:
        """How far the signs of a filter or a channel lean to one side, 0..16."""
        return _within(sums[2] * 12 // np.maximum(self._mean * sums[3] // 16, 1) + 8, 16)

    def magnitude(self, chosen: np.ndarray, agree: np.ndarray) -> np.ndarray:
        """Contexts of the magnitudes of the chosen weights: [len(MAGNITUDE), chosen]."""
        row, column = np.divmod(chosen, self.shape[1])
        filters, channels = self.filter[row, 0], self.channel[0, column]
        kernel, cross = self.kernel.reshape(-1)[chosen], self.cross.reshape(-1)[chosen]
        near = self.all_near.reshape(-1)[chosen]
        return np.stack(
            [
                agree,
                cross * 8 + kernel,
                near * 12 + filters,
                near * 12 + channels,
            ]
        )

    def magnitude_plain(self, chosen: np.ndarray) -> np.ndarray:
        """Contexts of the low bits of magnitudes."""
        row, column = np.divmod(chosen, self.shape[1])
        return np.stack([self.filter[row, 0], self.channel[0, column]])

    def close(self, signed: np.ndarray) -> None:
        """Hand in the block's signed ranks, so that the next blocks know them."""
        self._planes.add(self.tap, self._rows, signed.reshape(self.shape))

"""Contexts of a weight from the weights coded before it: its kernel, its filter and its channel, a block at a time.

A tensor is viewed as filters x channels x taps, and coded tap by tap ("plane by plane"), so that when one tap of all
kernels is coded, encoder and decoder know the taps before it. Planes are cut into blocks of filters. All arithmetic is
in integers; docs/format.md defines every context.

>>> layout((16, 3, 3, 3))
PlaneLayout(filters=16, channels=3, taps=9, width=3, split=1)
>>> layout((10, 64))
PlaneLayout(filters=10, channels=8, taps=8, width=8, split=8)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from secateur.coding.mixing import starts

__all__ = [
    "MAGNITUDE",
    "MAGNITUDE_PLAIN",
    "SIGN",
    "ZERO",
    "PlaneBlock",
    "PlaneLayout",
    "Planes",
    "layout",
]

_MOST_TAPS = 64

# How many values each context of a set has, in the order `PlaneBlock` gives them.
ZERO = (256, 416, 144, 64, 128)
SIGN = (625, 289, 169, 81)
MAGNITUDE = (625, 64, 96, 96)
MAGNITUDE_PLAIN = (12, 12)  # for the low bits, which are nearly random


def _steps(edges: tuple[int, ...]) -> np.ndarray:
    return np.searchsorted(np.array(edges), np.arange(256), side="left").astype(np.int64)


def _within(values: np.ndarray, most: int) -> np.ndarray:
    """Values limited to 0..most (faster than np.clip on short arrays)."""
    return np.minimum(np.maximum(values, 0), most)


_EIGHT = _steps((3, 7, 11, 15, 20, 28, 45))
_TWELVE = _steps((2, 5, 8, 11, 14, 18, 23, 30, 40, 60, 90))
# Each edge is about a fifth above the one before.
_FINE = _steps(
    (2, 3, 4, 5, 6, 8, 9, 11, 13, 16, 19, 22, 27, 32, 38, 45, 54, 64, 77, 91, 109, 130, 154, 184, 219)
)

LOOP_TABLES = (_EIGHT, _TWELVE)  # for compiled loops

_MIDDLES = np.array([6, 12, 12])[:, None, None]
_SIGNS = tuple((k, np.int16(weight)) for k, weight in ((8, 27), (0, 9), (9, 3), (1, 1)))


@dataclass(frozen=True)
class PlaneLayout:
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


def layout(shape: tuple[int, ...]) -> PlaneLayout:
    """The layout of a tensor of this shape."""
    filters = shape[0] if len(shape) > 0 else 1
    channels = shape[1] if len(shape) > 1 else 1
    taps, width = prod(shape[2:]), shape[-1] if len(shape) > 2 else 1
    if taps > _MOST_TAPS:
        filters, channels, taps = filters * channels, taps, 1
    if taps > 1:
        return PlaneLayout(filters, channels, taps, width, 1)
    split = next((s for s in range(8, 1, -1) if channels >= 16 and channels % s == 0), 1)
    return PlaneLayout(filters, channels // split, split, split, split)


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
    """The signed ranks coded so far, and their sums over kernels, filters and channels."""

    PARTS = 16  # about how many blocks a large plane has

    def __init__(self, layout: PlaneLayout, largest: int, kernels: bool = True):
        self.layout = layout
        self.largest = max(1, largest)
        filters, channels, taps = layout.filters, layout.channels, layout.taps
        self.near = _neighbours(taps, layout.width)
        self.signed = np.zeros((taps, filters, channels), dtype=np.int16)
        self.size = np.zeros((taps, filters, channels), dtype=np.int16)
        # Sums of sizes and of signed ranks.
        self.kernel = np.zeros((2, filters, channels), dtype=np.int32) if kernels else None
        self.filter = np.zeros((2, filters), dtype=np.int64)
        self.channel = np.zeros((2, channels), dtype=np.int64)
        self.count = 0
        self.total = 0

    def rows(self, grain: int) -> int:
        """Filters in a block: about 2**grain weights, more in large planes.

        Small blocks learn sooner, large ones run faster.
        """
        plan = self.layout
        return max(
            1, min(max(plan.filters * plan.channels // self.PARTS, 1 << grain), 16384) // plan.channels
        )

    @property
    def kind(self) -> type[PlaneBlock]:
        """The class of the blocks, which says which contexts they have."""
        return PlaneBlock

    def blocks(self, grain: int) -> Iterator[PlaneBlock]:
        """The blocks in coding order; each must be `close`d with its ranks before the next is asked for."""
        rows = self.rows(grain)
        for tap in range(self.layout.taps):
            for top in range(0, self.layout.filters, rows):
                yield self.kind(self, tap, slice(top, min(top + rows, self.layout.filters)))

    def seen(self, tap: int) -> list[int | None]:
        """The neighbours of a tap, None for those that come later or do not exist."""
        return [spot if spot < tap else None for spot in self.near[tap]]

    @property
    def mean(self) -> int:
        """The mean rank so far, zeros included, in 16ths; a default before the first block."""
        return max(4, 16 * self.total // self.count if self.count else 16 * self.largest // 3)

    def add(self, tap: int, rows: slice, signed: np.ndarray) -> None:
        """Add a block's ranks to the sums."""
        size = np.abs(signed)
        self.signed[tap, rows], self.size[tap, rows] = signed, size
        for k, what in enumerate((size, signed)):
            by_filter = np.add.reduce(what, axis=1)
            self.filter[k, rows] += by_filter
            self.channel[k] += np.add.reduce(what, axis=0)
            if self.kernel is not None:
                self.kernel[k, rows] += what
            if not k:
                self.total += int(np.add.reduce(by_filter))
        self.count += signed.size


class PlaneBlock:
    """The contexts of one block, rows of filters at one tap; each is made when first asked for.

    The contexts of a kind of bit are a matrix [contexts + 1, weights] of cells of a mixer's node (see
    `mixing.places`); `*_SIZES` says how many values each context has.
    """

    ZERO_SIZES: tuple[int, ...] = ZERO
    SIGN_SIZES: tuple[int, ...] = SIGN
    SIZE_SIZES: tuple[int, ...] = MAGNITUDE
    PLAIN_SIZES: tuple[int, ...] = MAGNITUDE_PLAIN

    def __init__(self, planes: Planes, tap: int, rows: slice):
        self.planes = planes
        self.tap = tap
        self.rows = rows
        self.mean = planes.mean
        self.shape = planes.signed[tap, rows].shape
        self.size = self.shape[0] * self.shape[1]
        self.step = min(tap, 15)
        self.spots = planes.seen(tap)
        self._four = sum(spot is not None for spot in self.spots[:4])
        self._known = 2 * self._four + sum(spot is not None for spot in self.spots[4:8])

    # -- magnitudes around -----------------------------------------------------------------------------------
    def _sum(self, first: int, last: int, of: np.ndarray) -> np.ndarray | int:
        """The ranks or magnitudes of some neighbours, added up."""
        found = [of[spot, self.rows] for spot in self.spots[first:last] if spot is not None]
        return sum(found[1:], start=found[0]) if found else 0

    @cached_property
    def _by_four(self) -> np.ndarray | int:
        return self._sum(0, 4, self.planes.size)

    @cached_property
    def _by_all(self) -> np.ndarray | int:
        return 2 * self._by_four + self._sum(4, 8, self.planes.size)

    @cached_property
    def _by_kernel(self) -> np.ndarray:
        assert self.planes.kernel is not None
        return self._ratio(self.planes.kernel[0, self.rows], self.tap)

    @cached_property
    def kernel(self) -> np.ndarray | int:
        """The magnitude of the kernel's weights so far, in eight steps."""
        return _EIGHT.take(self._by_kernel) if self.tap else 0

    @cached_property
    def cross(self) -> np.ndarray | int:
        """The magnitude of the four neighbours, in eight steps."""
        return _EIGHT.take(self._ratio(self._by_four, self._four)) if self._four else 0

    @cached_property
    def _around(self) -> np.ndarray:
        return self._ratio(self._by_all, self._known)

    @cached_property
    def all_near(self) -> np.ndarray | int:
        """The magnitude of all neighbours, in eight steps."""
        return _EIGHT.take(self._around) if self._known else 0

    @cached_property
    def _lines(self) -> np.ndarray:
        """Sums of sizes and of signed ranks, of the block's filters and then of all channels."""
        return np.concatenate((self.planes.filter[:, self.rows], self.planes.channel), axis=1)

    @cached_property
    def _counts(self) -> np.ndarray:
        """How many weights of each filter and channel are known."""
        filters, channels = self.shape
        counts = np.empty(filters + channels, dtype=np.intp)
        counts[:filters] = self.tap * channels
        counts[filters:] = self.tap * self.planes.layout.filters + self.rows.start
        return counts

    @cached_property
    def _levels(self) -> np.ndarray:
        """The magnitude of each of those so far, in 16ths of the mean; that of all weights where none is known."""
        sums, counts = self._lines[0], self._counts
        if not self.tap:
            unknown = slice(None, self.shape[0] if self.rows.start else None)
            sums, counts = sums.copy(), counts.copy()
            sums[unknown], counts[unknown] = self.planes.total, max(1, self.planes.count)
        return self._ratio(sums, counts)

    @cached_property
    def filter(self) -> np.ndarray:
        """The magnitude of the filter's weights so far, in twelve steps."""
        return _TWELVE.take(self._levels[: self.shape[0]])[:, None]

    @cached_property
    def channel(self) -> np.ndarray:
        """The magnitude of the channel's weights so far, in twelve steps."""
        return _TWELVE.take(self._levels[self.shape[0] :])

    @cached_property
    def expected(self) -> np.ndarray:
        """The expected magnitude: a mean of filter times channel, kernel and neighbours, weighted by how much of
        each is known.
        """
        filters, channels = np.split(self._levels, [self.shape[0]])
        total, weight = (filters[:, None] * channels) >> 1, 8
        if self.tap:
            seen = min(self.tap, 4)
            total = total + seen * self._by_kernel
            weight += seen
        if self._known:
            total = total + self._known * self._around
            weight += self._known
        return _FINE.take(np.minimum(total // weight, 255))

    def _ratio(self, total: np.ndarray | int, count: np.ndarray | int) -> np.ndarray:
        """A sum of `count` ranks relative to the mean, in 16ths, at most 255."""
        out = np.multiply(total, 256, dtype=np.intp)
        out += self.mean
        out //= count * self.mean
        return np.minimum(out, 255, out=out)

    def pattern(self, unit: int) -> np.ndarray | int:
        """Which of the four neighbours are not zero, as bits of `unit` and more."""
        bits = [
            np.multiply(self.planes.size[spot, self.rows] > 0, unit << bit, dtype=np.intp)
            for bit, spot in enumerate(self.spots[:4])
            if spot is not None
        ]
        return sum(bits[1:], start=bits[0]) if bits else 0

    def stack(self, sizes: tuple[int, ...], contexts: Sequence[np.ndarray | int]) -> np.ndarray:
        """Contexts of all weights of the block as one matrix of places."""
        begin = starts(sizes)
        out = np.empty((len(begin), *self.shape), dtype=np.intp)
        for row, start, context in zip(out, begin, contexts):
            np.add(context, start, out=row)
        out[-1] = begin[-1]
        return out.reshape(len(begin), -1)

    # -- the contexts ----------------------------------------------------------------------------------------
    def zero(self) -> np.ndarray:
        """Contexts of "is it zero"."""
        return self.stack(self.ZERO_SIZES, self._zero())

    def _zero(self) -> list[np.ndarray | int]:
        step = self.step
        return [
            self.pattern(16) + step,
            self.expected * 16 + step,
            self.filter * 12 + self.channel,
            self.cross * 8 + self.kernel,
            self.all_near * 16 + step,
        ]

    def sign(self, chosen: np.ndarray) -> np.ndarray:
        """Contexts of the signs of the chosen weights."""
        return of(self.stack(self.SIGN_SIZES, self._sign()), chosen)

    @cached_property
    def _guess(self) -> np.ndarray:
        """The value that the neighbours suggest."""
        return self._by_sums[1] * 25 + self._by_sums[2]

    @cached_property
    def _by_sums(self) -> np.ndarray:
        """Sums of the neighbours' ranks relative to the mean: the first four, the plane through them, all."""
        signed, mean = self.planes.signed, self.mean
        cross = self._sum(0, 4, signed)
        left_ones = self._sum(4, 5, signed) + self._sum(6, 7, signed)
        sums = np.empty((3, *self.shape), dtype=np.intp)
        sums[0] = cross
        # A plane through left, up and up left, extended to this weight.
        sums[1] = cross - left_ones
        sums[2] = 2 * cross + self._sum(4, 8, signed)
        sums *= 16
        sums += mean // 2
        sums //= mean
        sums *= 2
        sums //= 3
        sums += _MIDDLES
        return np.minimum(np.maximum(sums, 0, out=sums), 2 * _MIDDLES, out=sums)

    def _sign(self) -> list[np.ndarray | int]:
        mean = self.mean
        assert self.planes.kernel is not None
        by_kernel = _within((self.planes.kernel[1, self.rows] * 16 + mean // 2) // mean // 3 + 6, 12)
        # The balance of positive and negative weights in each filter and channel.
        balance = self._lines[1] * 12
        balance //= np.maximum(self._counts * mean // 16, 1)
        balance += 8
        filters, channels = np.split(_within(balance, 16), [self.shape[0]])
        return [
            self._guess,
            filters[:, None] * 17 + channels,
            self._by_sums[0] * 13 + by_kernel,
            self._signs(),
        ]

    def _signs(self) -> np.ndarray | int:
        """The signs of two left, left, two up and up, as one number."""
        total: np.ndarray | int = 40
        for k, weight in _SIGNS:
            spot = self.spots[k]
            if spot is not None:
                total = np.sign(self.planes.signed[spot, self.rows]) * weight + total
        return total

    def magnitude(self, chosen: np.ndarray, negative: np.ndarray) -> np.ndarray:
        """Contexts of the magnitudes of the chosen weights, by their signs."""
        places = of(self.stack(self.SIZE_SIZES, self._size()), chosen)
        places[0] = np.abs(negative * 624 - places[0])
        return places

    def _size(self) -> list[np.ndarray | int]:
        """Contexts of magnitudes, as if all were positive."""
        near = self.all_near * 12
        return [self._guess, self.cross * 8 + self.kernel, near + self.filter, near + self.channel]

    def magnitude_plain(self, chosen: np.ndarray) -> np.ndarray:
        """Contexts of the low bits of magnitudes."""
        return of(self.stack(self.PLAIN_SIZES, self._low()), chosen)

    def _low(self) -> list[np.ndarray | int]:
        return [self.filter, self.channel]

    def close(self, signed: np.ndarray) -> None:
        """Add the block's signed ranks to the planes, so that the next blocks know them."""
        self.planes.add(self.tap, self.rows, signed.reshape(self.shape))


def of(what: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The columns of the chosen weights, whose numbers ascend; the matrix itself if all are chosen."""
    return what if len(chosen) == what.shape[-1] else what.take(chosen, axis=-1)

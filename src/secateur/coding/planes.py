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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
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
        self.largest = max(1, largest)
        filters, channels, taps = layout.filters, layout.channels, layout.taps
        self.near = _neighbours(taps, layout.width)
        self.signed = np.zeros((taps + 1, filters, channels), dtype=np.int16)  # the last plane stays zero
        self.size = np.zeros((taps + 1, filters, channels), dtype=np.int16)
        self.kernel = np.zeros((2, filters, channels), dtype=np.int32)  # sums of sizes, of signed ranks
        self.filter = np.zeros((3, filters), dtype=np.int64)  # sizes, signed sums, how many
        self.channel = np.zeros((3, channels), dtype=np.int64)
        self.count = 0
        self.total = 0

    def rows(self, grain: int) -> int:
        """Filters in a block: about 2**grain weights, more in large planes.

        Small blocks learn sooner, large ones run faster.
        """
        plan = self.layout
        return max(1, min(max(plan.filters * plan.channels // 16, 1 << grain), 16384) // plan.channels)

    def block(self, tap: int, rows: slice) -> Block:
        """The contexts of one block."""
        return Block(self, tap, rows)

    def blocks(self, grain: int) -> Iterator[Block]:
        """The blocks in coding order; each must be `close`d with its ranks before the next is asked for."""
        rows = self.rows(grain)
        for tap in range(self.layout.taps):
            for top in range(0, self.layout.filters, rows):
                yield self.block(tap, slice(top, min(top + rows, self.layout.filters)))

    @property
    def mean(self) -> int:
        """The mean rank so far, zeros counted, in 16ths; a guess before the first block."""
        return max(4, 16 * self.total // self.count if self.count else 16 * self.largest // 3)

    def add(self, tap: int, rows: slice, signed: np.ndarray) -> None:
        """Take a block's ranks into account."""
        size = np.abs(signed)
        self.signed[tap, rows], self.size[tap, rows] = signed, size
        for k, what in enumerate((size, signed)):
            self.filter[k, rows] += what.sum(axis=1)
            self.channel[k] += what.sum(axis=0)
            self.kernel[k, rows] += what
        self.filter[2, rows] += signed.shape[1]
        self.channel[2] += signed.shape[0]
        self.count += signed.size
        self.total += int(size.sum())


class Block:
    """The contexts of one block, rows of filters at one tap; each is made when first asked for.

    The sets of contexts of a kind of bit are matrices [how many, weights]; `*_SIZES` has how many values each has.
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
        self.spots = [spot if spot < tap else None for spot in planes.near[tap]]
        self._four = sum(spot is not None for spot in self.spots[:4])
        self._known = 2 * self._four + sum(spot is not None for spot in self.spots[4:8])
        self._guess = np.zeros(0, dtype=np.int64)

    # -- magnitudes around -----------------------------------------------------------------------------------
    def _sum(self, first: int, last: int) -> np.ndarray:
        """The magnitudes of some neighbours, added up."""
        out = np.zeros(self.shape, dtype=np.int32)
        for spot in self.spots[first:last]:
            if spot is not None:
                out += self.planes.size[spot, self.rows]
        return out

    @cached_property
    def _by_four(self) -> np.ndarray:
        return self._sum(0, 4)

    @cached_property
    def _by_all(self) -> np.ndarray:
        return 2 * self._by_four + self._sum(4, 8)

    @cached_property
    def kernel(self) -> np.ndarray | int:
        """How large the kernel's weights are so far, in eight steps."""
        return _EIGHT[self._ratio(self.planes.kernel[0, self.rows], self.tap)] if self.tap else 0

    @cached_property
    def cross(self) -> np.ndarray | int:
        """How large the four neighbours are, in eight steps."""
        return _EIGHT[self._ratio(self._by_four, self._four)] if self._four else 0

    @cached_property
    def all_near(self) -> np.ndarray | int:
        """How large all neighbours are, in eight steps."""
        return _EIGHT[self._ratio(self._by_all, self._known)] if self._known else 0

    @cached_property
    def _filters(self) -> np.ndarray:
        return self._level(self.planes.filter[:, self.rows])

    @cached_property
    def _channels(self) -> np.ndarray:
        return self._level(self.planes.channel)

    @cached_property
    def filter(self) -> np.ndarray:
        """How large the filter's weights are so far, in twelve steps."""
        return _TWELVE[self._filters][:, None]

    @cached_property
    def channel(self) -> np.ndarray:
        """How large the channel's weights are so far, in twelve steps."""
        return _TWELVE[self._channels][None, :]

    @cached_property
    def expected(self) -> np.ndarray:
        """The magnitude to expect: what filter and channel make of it together, the kernel and its
        neighbours, each the heavier the more is known.
        """
        total, weight = (self._filters[:, None] * self._channels[None, :]) >> 1, 8
        if self.tap:
            seen = min(self.tap, 4)
            total = total + seen * self._ratio(self.planes.kernel[0, self.rows], self.tap)
            weight += seen
        if self._known:
            total = total + self._known * self._ratio(self._by_all, self._known)
            weight += self._known
        return _FINE[np.minimum(total // weight, 255)]

    def _ratio(self, total: np.ndarray, count: int) -> np.ndarray:
        """A sum of `count` ranks against the mean, in 16ths, below 256."""
        return np.minimum((total * 256 + self.mean) // (count * self.mean), 255)

    def _level(self, sums: np.ndarray) -> np.ndarray:
        known = sums[2] > 0
        total = np.where(known, sums[0], self.planes.total)
        count = np.where(known, sums[2], max(1, self.planes.count))
        return np.minimum((total * 256 + self.mean) // (count * self.mean), 255)

    def pattern(self) -> np.ndarray:
        """Which of the four neighbours are not zero, as bits."""
        pattern = np.zeros(self.shape, dtype=np.int64)
        for bit, spot in enumerate(self.spots[:4]):
            if spot is not None:
                pattern += (self.planes.size[spot, self.rows] > 0) * (1 << bit)
        return pattern

    def stack(self, contexts: Sequence[np.ndarray | int]) -> np.ndarray:
        """Contexts of all weights of the block as one matrix."""
        out = np.empty((len(contexts), *self.shape), dtype=np.int64)
        for row, context in zip(out, contexts):
            row[...] = context
        return out.reshape(len(contexts), -1)

    def of(self, what: np.ndarray | int, chosen: np.ndarray) -> np.ndarray | int:
        """A context of the whole block, for the chosen weights."""
        return what if isinstance(what, int) else what.reshape(-1)[chosen]

    # -- the contexts ----------------------------------------------------------------------------------------
    def zero(self) -> np.ndarray:
        """Contexts of "is it zero"."""
        step = self.step
        return self.stack(
            [
                self.pattern() * 16 + step,
                self.expected * 16 + step,
                self.filter * 12 + self.channel,
                self.cross * 8 + self.kernel,
                self.all_near * 16 + step,
            ]
        )

    def _ranks(self, chosen: np.ndarray) -> list[np.ndarray]:
        """Signed ranks of the ten neighbours of the chosen weights."""
        nothing = np.zeros(len(chosen), dtype=np.int32)
        signed, rows = self.planes.signed, self.rows
        return [
            nothing if spot is None else signed[spot, rows].reshape(-1)[chosen].astype(np.int32)
            for spot in self.spots
        ]

    def sign(self, chosen: np.ndarray) -> np.ndarray:
        """Contexts of the signs of the chosen weights."""
        ranks = self._ranks(chosen)
        left, up, two_left, two_up = (np.sign(ranks[k]) + 1 for k in (0, 1, 8, 9))
        mean = self.mean
        cross = ranks[0] + ranks[1] + ranks[2] + ranks[3]
        # A plane through left, up and up left goes on to this weight.
        plane = cross - ranks[4] - ranks[6]
        near = 2 * cross + ranks[4] + ranks[5] + ranks[6] + ranks[7]
        by_cross = _within((cross * 16 + mean // 2) // mean * 2 // 3 + 6, 12)
        by_plane = _within((plane * 16 + mean // 2) // mean * 2 // 3 + 12, 24)
        by_near = _within((near * 16 + mean // 2) // mean * 2 // 3 + 12, 24)
        self._guess = by_plane * 25 + by_near
        kernel = self.planes.kernel[1, self.rows].reshape(-1)[chosen]
        by_kernel = _within((kernel * 16 + mean // 2) // mean // 3 + 6, 12)
        row, column = np.divmod(chosen, self.shape[1])
        filters = self._lean(self.planes.filter[:, self.rows])[row]
        channels = self._lean(self.planes.channel)[column]
        return np.stack(
            [
                self._guess,
                filters * 17 + channels,
                by_cross * 13 + by_kernel,
                two_left * 27 + left * 9 + two_up * 3 + up,
            ]
        )

    def _lean(self, sums: np.ndarray) -> np.ndarray:
        """How far the signs of a filter or a channel lean to one side, 0..16."""
        return _within(sums[1] * 12 // np.maximum(self.mean * sums[2] // 16, 1) + 8, 16)

    def magnitude(self, chosen: np.ndarray, negative: np.ndarray) -> np.ndarray:
        """Contexts of the magnitudes of the weights that `sign` was asked about last."""
        row, column = np.divmod(chosen, self.shape[1])
        filters, channels = self.filter[row, 0], self.channel[0, column]
        near = self.of(self.all_near, chosen)
        return np.stack(
            [
                np.where(negative == 1, 624 - self._guess, self._guess),
                np.broadcast_to(self.of(self.cross * 8 + self.kernel, chosen), len(chosen)),
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
        self.planes.add(self.tap, self.rows, signed.reshape(self.shape))

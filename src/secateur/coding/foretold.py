"""What is known about a weight, summed up by least squares: its magnitude and its value as the taps before foretell
them. Contexts of model 2, beside those of `planes`.

For every tap, one `Forecast` makes the magnitude to expect of the densities of filter and channel and of the
magnitudes of the same kernel's earlier taps; another makes the value to expect of their values. They go on
learning from block to block and from tensor to tensor. docs/format.md defines every number.

>>> import numpy as np
>>> from secateur.coding.planes import layout
>>> book = Foretold(layout((4, 3, 3, 3)), 5, {}, plain=True)
>>> block = next(book.blocks(10))
>>> block.zero().shape, block.fine.tolist()[:3]
((4, 12), [9, 9, 9])
"""

from __future__ import annotations

from functools import cached_property
from math import isqrt

import numpy as np

from secateur.coding import planes
from secateur.coding.forecast import MOST, Forecast

__all__ = ["LEAST_GRAIN", "Forecasts", "Foretold"]

LEAST_GRAIN = 6
_TAPS = 12  # so many taps before this one are looked at
_ONE = 64  # of magnitudes in relation to the mean one

_FINE = np.searchsorted(
    4 * np.array(
        (2, 3, 4, 5, 6, 8, 9, 11, 13, 16, 19, 22, 27, 32, 38, 45, 54, 64, 77, 91, 109, 130, 154, 184, 219)
    ),
    np.arange(MOST + 1),
).astype(np.int64)  # fmt: skip
# Errors count less where much is expected.
_TRUST_SIZE = np.array([float((1 << 20) // isqrt(max(e, 16) ** 3)) for e in range(MOST + 1)])
_TRUST_VALUE = np.array([float((1 << 23) // max(e, 16) ** 2) for e in range(MOST + 1)])

Forecasts = dict[tuple[str, int, int, int], Forecast]


class Foretold(planes.Planes):
    """The planes of a tensor, with forecasts for every tap; `plain` blocks have the most useful contexts only."""

    def __init__(self, layout: planes.Layout, largest: int, forecasts: Forecasts, plain: bool):
        super().__init__(layout, largest)
        self._forecasts = forecasts
        self._plain = plain

    def rows(self, grain: int) -> int:
        """Filters in a block: about 2**grain weights, more in very large planes."""
        plan = self.layout
        return max(1, min(max(plan.filters * plan.channels // 64, 1 << grain), 16384) // plan.channels)

    def block(self, tap: int, rows: slice) -> planes.Block:
        """The contexts of one block."""
        return (Plain if self._plain else Rich)(self, tap, rows)

    def mean256(self) -> int:
        """The mean rank so far in 256ths; a guess before the first block."""
        return max(16, 256 * self.total // self.count if self.count else 256 * self.largest // 3)

    def forecast(self, kind: str, tap: int, start: list[int]) -> Forecast:
        """The forecast of one tap, made when first needed."""
        key = (kind, self.layout.taps, self.layout.width, tap)
        if key not in self._forecasts:
            self._forecasts[key] = Forecast(start)
        return self._forecasts[key]


class Rich(planes.Block):
    """All contexts of `planes.Block`, and those of the forecasts."""

    ZERO_SIZES: tuple[int, ...] = (*planes.ZERO, 208)
    SIGN_SIZES: tuple[int, ...] = (*planes.SIGN, 650)
    SIZE_SIZES: tuple[int, ...] = (*planes.MAGNITUDE, 650, 416)
    PLAIN_SIZES: tuple[int, ...] = (*planes.MAGNITUDE_PLAIN, 26)

    def __init__(self, book: Foretold, tap: int, rows: slice):
        super().__init__(book, tap, rows)
        unit = book.mean256()
        ranks = np.arange(-book.largest, book.largest + 1)
        self._table = np.copysign(np.minimum(256 * _ONE * np.abs(ranks) // unit, MOST), ranks)
        filters, channels = book.filter[:, rows], book.channel
        known = self._related(book.signed[max(0, tap - _TAPS) : tap, rows]).reshape(-1, self.size)
        taps = len(known)
        # How large the weights of filter and channel are on average, and which way they lean.
        f, c = (
            np.minimum((256 * _ONE * s[0] + _ONE * unit) // ((s[2] + 1) * unit), MOST)
            for s in (filters, channels)
        )
        self._features = np.empty((3 + taps, self.size))
        shaped = self._features.reshape(-1, *self.shape)
        shaped[0] = f[:, None]
        shaped[1] = c[None, :]
        shaped[2] = np.minimum(f[:, None] * c[None, :] // _ONE, MOST)
        np.abs(known, out=self._features[3:])
        start = [9830, 9830, 19661] + [26214 // taps] * taps if taps else [16384, 16384, 32768]
        self._by_size = book.forecast("size", tap, start)
        e = self._by_size.predict(self._features)
        self._size = np.minimum(np.maximum(e, 3), MOST)
        self._place = self._size.astype(np.int64)
        self.fine = _FINE[self._place]
        self._by_value = None
        self._standing = np.full(self.size, 12)
        if taps:
            self._values = np.empty((2 + taps, self.size))
            shaped = self._values.reshape(-1, *self.shape)
            f, c = (
                np.clip(256 * _ONE * s[1] // (np.maximum(s[2], 1) * unit), -MOST, MOST)
                for s in (filters, channels)
            )
            shaped[0] = f[:, None]
            shaped[1] = c[None, :]
            self._values[2:] = known
            self._by_value = book.forecast("value", tap, [0] * (2 + taps))
            value = np.minimum(np.maximum(self._by_value.predict(self._values), -MOST), MOST)
            # Rounded quotients: a double is far finer than the distance of such a fraction from a whole number.
            standing = np.floor((16 * value + self._size) / (2 * self._size)) + 12
            self._standing = np.minimum(np.maximum(standing, 0), 24).astype(np.int64)

    def _related(self, ranks: np.ndarray) -> np.ndarray:
        """Ranks in 64ths of the mean rank."""
        return self._table[ranks + np.int16(len(self._table) // 2)]

    @cached_property
    def expected(self) -> np.ndarray:
        return self.fine.reshape(self.shape)

    def _surely(self) -> np.ndarray:
        """How far the value to expect lies from zero, and the magnitude to expect."""
        far = np.minimum(np.abs(self._standing - 12), 7)
        return (far * 26 + self.fine).reshape(self.shape)

    def zero(self) -> np.ndarray:
        return np.vstack([super().zero(), self._surely().reshape(1, -1)])

    def sign(self, chosen: np.ndarray) -> np.ndarray:
        return np.vstack([super().sign(chosen), self._standing[chosen] * 26 + self.fine[chosen]])

    def _outlook(self, chosen: np.ndarray, negative: np.ndarray) -> list[np.ndarray]:
        standing, fine = self._standing[chosen], self.fine[chosen]
        return [np.where(negative == 1, 24 - standing, standing) * 26 + fine, fine * 16 + self.step]

    def magnitude(self, chosen: np.ndarray, negative: np.ndarray) -> np.ndarray:
        return np.vstack([super().magnitude(chosen, negative), *self._outlook(chosen, negative)])

    def magnitude_plain(self, chosen: np.ndarray) -> np.ndarray:
        return np.vstack([super().magnitude_plain(chosen), self.fine[chosen]])

    def close(self, signed: np.ndarray) -> None:
        value = self._related(signed)
        self._by_size.learn(self._features, np.abs(value), _TRUST_SIZE[self._place])
        if self._by_value is not None:
            self._by_value.learn(self._values, value, _TRUST_VALUE[self._place])
        super().close(signed)


class Plain(Rich):
    """The contexts that earn most, for speed."""

    ZERO_SIZES = (256, 416, 144, 208)
    SIGN_SIZES = (81, 650)
    SIZE_SIZES = (96, 650, 416)
    PLAIN_SIZES = (12, 26)

    def zero(self) -> np.ndarray:
        step = self.step
        return self.stack(
            [
                self.pattern() * 16 + step,
                self.expected * 16 + step,
                self.filter * 12 + self.channel,
                self._surely(),
            ]
        )

    def sign(self, chosen: np.ndarray) -> np.ndarray:
        signs = np.zeros(len(chosen), dtype=np.int64)
        for spot, weight in zip((self.spots[k] for k in (8, 0, 9, 1)), (27, 9, 3, 1)):
            if spot is not None:
                rank = self.planes.signed[spot, self.rows].reshape(-1)[chosen]
                signs += weight * np.sign(rank)
        return np.stack([signs + 40, self._standing[chosen] * 26 + self.fine[chosen]])

    def magnitude(self, chosen: np.ndarray, negative: np.ndarray) -> np.ndarray:
        filters = self.filter[:, 0][chosen // self.shape[1]]
        near = self.of(self.all_near, chosen)
        return np.stack([near * 12 + filters, *self._outlook(chosen, negative)])

    def magnitude_plain(self, chosen: np.ndarray) -> np.ndarray:
        return np.stack([self.filter[:, 0][chosen // self.shape[1]], self.fine[chosen]])

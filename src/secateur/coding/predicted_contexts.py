"""Contexts predicted by least squares: the magnitude and the value of a weight, from the taps before it. They are the
contexts of model 2, in addition to those of `planes`.

For every tap, one `Forecast` predicts the magnitude from the densities of filter and channel and from the magnitudes of
the same kernel's earlier taps; another predicts the value from their values. They continue to learn from block to block
and from tensor to tensor. docs/format.md defines every number.

>>> import numpy as np
>>> from secateur.coding.planes import layout
>>> book = PredictedContexts(layout((4, 3, 3, 3)), 5, {}, plain=True)
>>> block = next(book.blocks(10))
>>> block.zero().shape, block.fine.tolist()[0]
((5, 12), [9, 9, 9])
"""

from __future__ import annotations

from functools import cached_property
from math import isqrt

import numpy as np

from secateur.coding import planes
from secateur.coding.forecast import MOST, Forecast, subsample
from secateur.coding.mixing import starts

__all__ = ["LEAST_GRAIN", "LOOP_TABLES", "Forecasts", "PredictedContexts"]

LEAST_GRAIN = 6
_TAPS = 12  # how many earlier taps are features
_ONE = 64  # the mean magnitude, in the unit of relative magnitudes

# Indexed by the predicted magnitude, in 64ths of the mean: the magnitude within its limits, its step, and the weights
# of errors, which fall as the prediction grows.
_EXPECTED = np.maximum(np.arange(MOST + 1), 3)
_SIZES = _EXPECTED.astype(np.float64)
_FINE = np.searchsorted(
    4 * np.array(
        (2, 3, 4, 5, 6, 8, 9, 11, 13, 16, 19, 22, 27, 32, 38, 45, 54, 64, 77, 91, 109, 130, 154, 184, 219)
    ),
    _EXPECTED,
).astype(np.intp)  # fmt: skip
_TRUST_SIZE = np.array([float((1 << 20) // isqrt(max(e, 16) ** 3)) for e in range(MOST + 1)])
_TRUST_VALUE = np.array([float((1 << 23) // max(e, 16) ** 2) for e in range(MOST + 1)])
_EIGHT_VALUES = 8.0 * np.arange(-MOST, MOST + 1)  # indexed by a value within the limits, from the lowest on
_BY_STANDING = np.arange(25, dtype=np.intp) * 26
# A prediction is 26 times the predicted value relative to the predicted magnitude (12 means zero), plus the step of the
# magnitude. Indexed by prediction: the same without its sign, and the same with the other sign.
_STANDING, _SIZE = np.divmod(np.arange(25 * 26, dtype=np.intp), 26)
_SURELY = np.minimum(np.abs(_STANDING - 12), 7) * 26 + _SIZE
_MIRROR = (24 - _STANDING) * 26 + _SIZE

LOOP_TABLES = (_FINE, _SURELY, _MIRROR, _TRUST_SIZE, _TRUST_VALUE)  # for compiled loops

Forecasts = dict[tuple[str, int, int, int], Forecast]


class PredictedContexts(planes.Planes):
    """The planes of a tensor with forecasts for every tap; `plain` blocks have the most useful contexts only."""

    PARTS = 64

    def __init__(self, layout: planes.PlaneLayout, largest: int, forecasts: Forecasts, plain: bool):
        super().__init__(layout, largest, kernels=not plain)
        self._forecasts = forecasts
        self._plain = plain
        ranks = np.arange(-self.largest, self.largest + 1)
        self._far, self._side = 256 * _ONE * np.abs(ranks), np.sign(ranks)

    @property
    def kind(self) -> type[planes.PlaneBlock]:
        """The class of the blocks: all contexts, or the most useful ones."""
        return FewContexts if self._plain else AllContexts

    def mean256(self) -> int:
        """The mean rank so far in 256ths; a guess before the first block."""
        return max(16, 256 * self.total // self.count if self.count else 256 * self.largest // 3)

    def related(self, unit: int) -> np.ndarray:
        """Every rank, from the lowest on, in 64ths of the mean rank and limited."""
        return np.minimum(self._far // unit, MOST) * self._side.astype(np.float64)

    def forecast(self, kind: str, tap: int) -> Forecast:
        """The forecast of one tap, of "size" or of "value", made when first needed."""
        key = (kind, self.layout.taps, self.layout.width, tap)
        if key not in self._forecasts:
            taps = min(tap, _TAPS)
            if kind == "value":
                start = [0] * (2 + taps)
            else:
                start = [9830, 9830, 19661] + [26214 // taps] * taps if taps else [16384, 16384, 32768]
            self._forecasts[key] = Forecast(start)
        return self._forecasts[key]


class PredictedBlock(planes.PlaneBlock):
    """The forecasts for the weights of a block: `fine` (magnitude) and `prediction` (magnitude and sign)."""

    def __init__(self, book: PredictedContexts, tap: int, rows: slice):
        super().__init__(book, tap, rows)
        unit = book.mean256()
        self._table = book.related(unit)
        self._middle = book.largest
        known = book.signed[max(0, tap - _TAPS) : tap, rows]
        taps = len(known)
        # The mean magnitude of the weights of each filter and channel, and the mean of their signed ranks.
        filters = self.shape[0]
        sums = self._lines * (256 * _ONE)
        large = sums[0] + _ONE * unit
        large //= (self._counts + 1) * unit
        np.minimum(large, MOST, out=large)
        features = np.empty((4 + taps, *self.shape))  # the last row is for the target
        features[0] = by_filter = large[:filters, None]
        features[1] = by_channel = large[filters:]
        together = by_filter * by_channel
        together >>= _ONE.bit_length() - 1
        np.minimum(together, MOST, out=features[2])
        self._features = features.reshape(4 + taps, -1)
        if taps:
            values = np.empty((3 + taps, *self.shape))
            self._table.take(np.add(known, self._middle, dtype=np.intp), out=values[2:-1], mode="clip")
            np.abs(values[2:-1], out=features[3:-1])
        self._by_size = book.forecast("size", tap)
        # Indices beyond the ends of the tables below are clipped to their first and last entry.
        self._place = self._by_size.sums(self._features[:-1]).astype(np.intp)
        fine = _FINE.take(self._place, mode="clip")
        self.fine = fine.reshape(self.shape)
        self._by_value = None
        if not taps:
            self.prediction = self.fine + 12 * 26
            return
        lean = sums[1]
        lean //= self._counts * unit
        np.maximum(lean, -MOST, out=lean)
        np.minimum(lean, MOST, out=lean)
        values[0], values[1] = lean[:filters, None], lean[filters:]
        self._values = values.reshape(3 + taps, -1)
        self._by_value = book.forecast("value", tap)
        # (16 * value + size) // (2 * size) + 12, as a rounded quotient, which is exact: a double is far
        # finer than the distance of such a fraction from an integer.
        value = self._by_value.sums(self._values[:-1])
        value += MOST
        standing = _EIGHT_VALUES.take(value.astype(np.intp), mode="clip")
        standing /= _SIZES.take(self._place, mode="clip")
        standing += 12.5
        prediction = _BY_STANDING.take(standing.astype(np.intp), mode="clip")
        prediction += fine
        self.prediction = prediction.reshape(self.shape)

    @cached_property
    def expected(self) -> np.ndarray:
        return self.fine

    def _mirrored(
        self, places: np.ndarray, row: int, start: int, chosen: np.ndarray, negative: np.ndarray
    ) -> None:
        """Mirror the prediction of negative weights in `row` of `places`, whose cells begin at `start`."""
        both = np.empty((2, self.size), dtype=np.intp)
        both[0] = self.prediction.reshape(-1)
        _MIRROR.take(both[0], out=both[1], mode="clip")
        both += start
        both.take(negative * self.size + chosen, out=places[row], mode="clip")

    def close(self, signed: np.ndarray) -> None:
        some = subsample(self.size)
        value = self._table.take(signed[some] + self._middle)
        place = self._place[some]
        features = self._features[:, some].copy()
        np.abs(value, out=features[-1])
        self._by_size.learn(features, _TRUST_SIZE.take(place, mode="clip"))
        if self._by_value is not None:
            values = self._values[:, some].copy()
            values[-1] = value
            self._by_value.learn(values, _TRUST_VALUE.take(place, mode="clip"))
        super().close(signed)


class AllContexts(PredictedBlock):
    """All contexts of `planes.PlaneBlock`, and those of the forecasts."""

    ZERO_SIZES: tuple[int, ...] = (*planes.ZERO, 208)
    SIGN_SIZES: tuple[int, ...] = (*planes.SIGN, 650)
    SIZE_SIZES: tuple[int, ...] = (*planes.MAGNITUDE, 650, 416)
    PLAIN_SIZES: tuple[int, ...] = (*planes.MAGNITUDE_PLAIN, 26)

    def _zero(self) -> list[np.ndarray | int]:
        return [*super()._zero(), _SURELY.take(self.prediction)]

    def _sign(self) -> list[np.ndarray | int]:
        return [*super()._sign(), self.prediction]

    def magnitude(self, chosen: np.ndarray, negative: np.ndarray) -> np.ndarray:
        places = super().magnitude(chosen, negative)
        self._mirrored(places, 4, starts(self.SIZE_SIZES)[4], chosen, negative)
        return places

    def _size(self) -> list[np.ndarray | int]:
        return [*super()._size(), 0, self.fine * 16 + self.step]

    def _low(self) -> list[np.ndarray | int]:
        return [*super()._low(), self.fine]


class FewContexts(PredictedBlock):
    """The most useful contexts only, for speed: each is computed in place, in as few operations as possible."""

    ZERO_SIZES = (256, 416, 144, 208)
    SIGN_SIZES = (81, 650)
    SIZE_SIZES = (96, 650, 416)
    PLAIN_SIZES = (12, 26)

    def _empty(self, sizes: tuple[int, ...]) -> tuple[tuple[int, ...], np.ndarray]:
        begin = starts(sizes)
        places = np.empty((len(begin), *self.shape), dtype=np.intp)
        places[-1] = begin[-1]
        return begin, places

    def zero(self) -> np.ndarray:
        begin, places = self._empty(self.ZERO_SIZES)
        np.add(self.pattern(16), self.step, out=places[0])
        np.multiply(self.fine, 16, out=places[1])
        places[1] += self.step + begin[1]
        np.add(self.filter * 12 + begin[2], self.channel, out=places[2])
        np.add(_SURELY.take(self.prediction), begin[3], out=places[3])
        return places.reshape(len(begin), -1)

    def sign(self, chosen: np.ndarray) -> np.ndarray:
        begin, places = self._empty(self.SIGN_SIZES)
        places[0] = self._signs()
        np.add(self.prediction, begin[1], out=places[1])
        return planes.of(places.reshape(len(begin), -1), chosen)

    def magnitude(self, chosen: np.ndarray, negative: np.ndarray) -> np.ndarray:
        begin, places = self._empty(self.SIZE_SIZES)
        np.add(self.all_near * 12, self.filter, out=places[0])
        np.multiply(self.fine, 16, out=places[2])
        places[2] += self.step + begin[2]
        places = planes.of(places.reshape(len(begin), -1), chosen)
        self._mirrored(places, 1, begin[1], chosen, negative)
        return places

    def magnitude_plain(self, chosen: np.ndarray) -> np.ndarray:
        begin, places = self._empty(self.PLAIN_SIZES)
        places[0] = self.filter
        np.add(self.fine, begin[1], out=places[1])
        return planes.of(places.reshape(len(begin), -1), chosen)

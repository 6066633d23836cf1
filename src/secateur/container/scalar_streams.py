"""Lanes: the scalars of many small tensors (batch norm's scales and shifts, biases) coded as one stream each.

A table of its own would make a tensor of 16 numbers larger. So the tensors of a lane are rounded to one common grid,
and the integers are written one after the other as adaptive bits: the distance of each from the running mean of those
before it, in Elias-gamma binarisation, with every bit predicted from the last distances.

>>> import numpy as np
>>> scales = ScalarGrid.geometric(np.array([0.5, 1.0, -2.0, 0.0], dtype=np.float32), ratio=1.1)
>>> numbers = scales.numbers(np.array([0.5, 1.0, -2.0, 0.0], dtype=np.float32))
>>> numbers.tolist(), scales.values(numbers).round(2)
([1, 8, -16, 0], array([ 0.5 ,  0.97, -2.09,  0.  ], dtype=float32))
>>> decode(encode(numbers), 4).tolist() == numbers.tolist()
True
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from secateur.coding import varint
from secateur.coding.range_coder import BitReader, Decoder, Encoder
from secateur.errors import FormatError

__all__ = ["MOST_LANES", "MOST_NUMBER", "ScalarGrid", "ScalarStreams", "decode", "encode", "most_numbers"]

MOST_LANES = 4
MOST_NUMBER = 4095  # no number is further from zero
_MOST_PREFIX = 13  # bits of MOST_NUMBER * 2, what a difference can be, plus one
_CLOSENESS = 8  # contexts of how far the last numbers were from their prediction
_EMPTY, _EVEN = 2, 3  # kinds of version 4: a lane without numbers, and one of equal steps without `first`
_LIMIT = 60  # occurrences after which the older half is forgotten


def most_numbers(size: int) -> int:
    """The most numbers a stream of `size` bytes may have, which bounds the work a short file can ask for."""
    return 64 + 32 * size


# -- grids ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ScalarGrid:
    """The grid of a lane: kind 0 has equal steps from zero on, kind 1 equal ratios, with a sign and a zero.

    Kind 0: number n is step * n. Kind 1: 0 is 0, n > 0 is first * ratio**(n - 1), and -n is minus that.
    """

    kind: int
    first: float
    step: float

    @classmethod
    def even(cls, step: float) -> ScalarGrid:
        """A grid of equal steps."""
        return cls(0, 0.0, float(np.float32(step)))

    @classmethod
    def geometric(cls, values: np.ndarray, ratio: float) -> ScalarGrid:
        """Equal ratios from the smallest value that is not negligible (2**-14 of the largest) to the largest."""
        size = np.abs(values.astype(np.float64))
        top = float(size.max(initial=0.0))
        some = size[size > top / 2**14]
        first = float(some.min()) if some.size else 1.0
        ratio = max(ratio, (top / first) ** (1 / (MOST_NUMBER - 95)) if some.size else 1.0)  # so that all fit
        return cls(1, float(np.float32(first)), float(np.float32(ratio)))

    def table(self, last: int) -> np.ndarray:
        """The values of 0..last as float32: products in float64 in a fixed order, so the same on every machine."""
        values = np.zeros(last + 1)
        value = self.first
        for number in range(last + 1):
            if self.kind == 0:
                values[number] = self.step * number
            elif number:
                values[number] = value
                value *= self.step
        with np.errstate(over="ignore"):
            return values.astype(np.float32)

    def values(self, numbers: np.ndarray) -> np.ndarray:
        """The values that the numbers stand for."""
        size = np.abs(numbers)
        table = self.table(int(size.max(initial=0)))
        return np.where(numbers < 0, -table[size], table[size]).astype(np.float32)

    def numbers(self, values: np.ndarray) -> np.ndarray:
        """The nearest number of each value (kind 1: nearest in ratio; far below the first value: 0)."""
        size = np.abs(values.reshape(-1).astype(np.float64))
        if self.kind == 0:
            found = np.rint(size / self.step)
        else:
            with np.errstate(divide="ignore"):
                found = np.rint(np.log(size / self.first) / np.log(self.step)) + 1
            found = np.where(size < self.first / 2, 0, np.maximum(found, 1))
        if found.max(initial=0) > MOST_NUMBER:
            raise ValueError(f"a lane's numbers reach {MOST_NUMBER}, got {int(found.max())}")
        return np.where(values.reshape(-1) < 0, -found, found).astype(np.int64)

    def head(self, short: bool = False) -> bytes:
        """Nine bytes: the kind and two numbers; five where `short` and the steps are even."""
        if short and self.kind == 0:
            return bytes([_EVEN]) + np.array([self.step], dtype="<f4").tobytes()
        return bytes([self.kind]) + np.array([self.first, self.step], dtype="<f4").tobytes()

    @classmethod
    def read(cls, reader: varint.Reader, kind: int) -> ScalarGrid:
        """The inverse of `head`, from the byte after the kind."""
        if kind == _EVEN:
            step = float(np.frombuffer(reader.take(4), dtype="<f4")[0])
            if not np.isfinite(step):
                raise reader.fail("the step of a lane is not finite")
            return cls(0, 0.0, step)
        first, step = (float(x) for x in np.frombuffer(reader.take(8), dtype="<f4"))
        if kind > 1 or not (np.isfinite(first) and np.isfinite(step)):
            raise reader.fail(f"a lane of kind {kind}: expected kind 0 or 1 and two finite numbers")
        if kind == 0 and first != 0:
            raise reader.fail("a lane of even steps starts at zero")
        return cls(kind, first, step)


# -- numbers as bits -----------------------------------------------------------------------------------------
class _Bits:
    """Adaptive bits: each context counts its zeros and ones."""

    def __init__(self, flip: Callable[[int | None, int], int]):
        self._flip = flip
        self._seen: dict[tuple[int, ...], list[int]] = {}

    def bit(self, context: tuple[int, ...], value: int | None) -> int:
        """Code one bit in its context: `value` when writing, None when reading; gives the bit."""
        counts = self._seen.setdefault(context, [0, 0])
        ones = (2 * counts[1] + 1) * 65536 // (2 * (counts[0] + counts[1]) + 2)
        found = self._flip(value, min(max(ones, 24), 65512))
        counts[found] += 1
        if counts[0] + counts[1] > _LIMIT:
            counts[0], counts[1] = counts[0] // 2, counts[1] // 2
        return found

    def even(self, value: int | None) -> int:
        """Code one bit with probability one half."""
        return self._flip(value, 32768)


class _Model:
    """Predicts the next number from those before: its expected value, and how far from that it may be."""

    def __init__(self) -> None:
        self._mean = 0  # 256ths
        self._away = 256 * 8

    def expected(self) -> int:
        return (self._mean + 128) >> 8

    def closeness(self) -> int:
        return min(max((self._away >> 6).bit_length(), 1), _CLOSENESS) - 1

    def learn(self, number: int) -> None:
        away = abs(number - self.expected())
        self._mean += ((number << 8) - self._mean) >> 3
        self._away += ((away << 8) - self._away) >> 3


def _code(bits: _Bits, model: _Model, number: int | None, where: str) -> int:
    """Code one number: its distance from the expected one (prefix, rest), and the side."""
    expected, near = model.expected(), model.closeness()
    away = None if number is None else number - expected
    size = None if away is None else abs(away) + 1
    length = 0
    while length <= _MOST_PREFIX:
        longer = None if size is None else int(size.bit_length() - 1 > length)
        if not bits.bit((0, near, length), longer):
            break
        length += 1
    else:
        raise FormatError(f"{where}: a number further than {MOST_NUMBER} from zero")
    rest = 1
    for place in range(length - 1, -1, -1):
        given = None if size is None else size >> place & 1
        top = place == length - 1
        rest = rest * 2 + (bits.bit((1, near, length), given) if top else bits.even(given))
    away_size = rest - 1
    negative = 0
    if away_size:
        negative = bits.bit((2,), None if away is None else int(away < 0))
    found = expected + (-away_size if negative else away_size)
    if abs(found) > MOST_NUMBER:
        raise FormatError(f"{where}: the number {found}, further than {MOST_NUMBER} from zero")
    model.learn(found)
    return found


def encode(numbers: np.ndarray) -> bytes:
    """Code the numbers as one stream, filled with zero bytes where it would be shorter than the limit asks."""
    coded: list[tuple[int, int]] = []

    def flip(value: int | None, ones: int) -> int:
        assert value is not None
        coded.append((value, ones))
        return value

    bits, model = _Bits(flip), _Model()
    for number in numbers.tolist():
        _code(bits, model, number, "lane")
    encoder = Encoder()
    if coded:
        encoder.bits(*np.array(coded).T)
    data = encoder.finish()
    while most_numbers(len(data)) < len(numbers):
        data += b"\0"
    return data


def decode(data: bytes | memoryview, count: int, where: str = "lane") -> np.ndarray:
    """The inverse of `encode`."""
    if count > most_numbers(len(data)):
        raise FormatError(
            f"{where}: expected at most {most_numbers(len(data))} numbers in {len(data)} bytes, got {count}"
        )
    if data and count > most_numbers(len(data) - 1):
        data = bytes(data).rstrip(b"\0")  # drop the filling
    # Bit by bit in plain integers, which calls of the coder for single bits would take ten times as long for. Then
    # the coder itself, once for all bits: it says whether the stream ends where it should.
    reader = BitReader(bytes(data))
    bits, model = _Bits(lambda _, ones: reader.bit(ones)), _Model()
    numbers = np.array([_code(bits, model, None, where) for _ in range(count)], dtype=np.int64)
    decoder = Decoder(bytes(data))
    if reader.found and (decoder.bits(np.array(reader.odds)) != np.array(reader.found)).any():
        raise FormatError(f"{where}: its bits are not what the range coder reads")
    decoder.finish()
    return numbers


def _count(reader: varint.Reader, left: int | None, most: int | None) -> int:
    """How many numbers a lane has; raises where that is more than are `left` of the `most` for all lanes."""
    size = reader.varint(1 << 20, "the number of numbers in a lane")
    if left is not None and size > left:
        raise reader.fail(
            f"the lanes hold more than the {most:,} numbers that a file of this size may ask for; if you trust "
            "the file, allow it with max_bytes= (--max-bytes)"
        )
    return size


# -- the section ---------------------------------------------------------------------------------------------
class ScalarStreams:
    """The lanes of a file: written as one section, and read number by number by the tensors that refer to them."""

    def __init__(self, lanes: list[tuple[ScalarGrid, np.ndarray]]):
        self._lanes = lanes
        self._at = [0] * len(lanes)

    def payload(self, short: bool = False) -> bytes:
        """The section's payload; with `short` one that takes version 4 to read."""
        out = bytes([len(self._lanes)])
        for lane, numbers in self._lanes:
            if short and not len(numbers):
                out += bytes([_EMPTY])
                continue
            stream = encode(numbers)
            out += lane.head(short) + varint.write(len(numbers)) + varint.write(len(stream)) + stream
        return out

    def compact(self) -> bytes:
        """The lanes as a file of version 5 has them: two bits of kind for each, then its head and stream.

        >>> none, ones = np.zeros(0, dtype=np.int64), np.ones(3, dtype=np.int64)
        >>> ScalarStreams([(ScalarGrid.even(1.0), none), (ScalarGrid.even(0.5), ones)]).compact()[:5].hex()
        '040000003f'
        """
        some = [(place, lane, numbers) for place, (lane, numbers) in enumerate(self._lanes) if len(numbers)]
        out = bytes([sum(1 + lane.kind << 2 * place for place, lane, _ in some)])
        for number, (_, lane, numbers) in enumerate(some, 1):
            stream = encode(numbers)
            out += lane.head(short=True)[1:] + varint.write(len(numbers))
            out += (varint.write(len(stream)) if number < len(some) else b"") + stream
        return out

    @classmethod
    def read_compact(cls, payload: bytes, most: int | None = None) -> ScalarStreams:
        """Decode and check every number of the lanes of a file of version 5.

        Args:
            payload: The lanes.
            most: The most numbers to accept; None for no other limit than the format's.

        Raises:
            FormatError: They are not what `compact` writes, or hold too many numbers.
        """
        reader = varint.Reader(payload, "lanes")
        kinds, left = reader.byte(), most
        lanes: list[tuple[ScalarGrid, np.ndarray]] = []
        while kinds:
            kind, kinds = kinds & 3, kinds >> 2
            if kind == 0:
                lanes.append((ScalarGrid.even(1.0), np.zeros(0, dtype=np.int64)))
                continue
            lane = ScalarGrid.read(reader, _EVEN if kind == 1 else kind - 1)
            size = _count(reader, left, most)
            left = None if left is None else left - size
            stream = reader.part("a lane's stream") if kinds else reader.take(reader.left)
            lanes.append((lane, decode(stream, size, f"lane {len(lanes)}")))
        reader.end()
        return cls(lanes)

    @classmethod
    def read(cls, payload: bytes, base: int = 0, most: int | None = None, version: int = 3) -> ScalarStreams:
        """Decode and check every number of a section.

        Args:
            payload: The section.
            base: Where it starts in the file.
            most: The most numbers to accept; None for no other limit than the format's.
            version: The version of the file.
        """
        reader = varint.Reader(payload, "numbers section", base)
        count = reader.byte()
        if not 1 <= count <= MOST_LANES:
            raise reader.fail(f"{count} lanes, expected 1..{MOST_LANES}")
        lanes, left = [], most
        for number in range(count):
            kind = reader.byte()
            if kind in (_EMPTY, _EVEN) and version < 4:
                raise reader.fail(f"a lane of kind {kind}, which came with version 4")
            if kind == _EMPTY:
                lanes.append((ScalarGrid.even(1.0), np.zeros(0, dtype=np.int64)))
                continue
            lane = ScalarGrid.read(reader, kind)
            size = _count(reader, left, most)
            left = None if left is None else left - size
            lanes.append(
                (lane, decode(reader.part("a lane's stream"), size, f"numbers section, lane {number}"))
            )
        reader.end()
        return cls(lanes)

    def take(self, lane: int, count: int, where: str) -> np.ndarray:
        """The next `count` values of a lane, as float32 words."""
        if lane >= len(self._lanes):
            raise FormatError(f"{where}: draws from lane {lane}, the file has {len(self._lanes)}")
        grid, numbers = self._lanes[lane]
        at = self._at[lane]
        if at + count > len(numbers):
            raise FormatError(
                f"{where}: draws {count} numbers from lane {lane}, which has {len(numbers) - at} left"
            )
        self._at[lane] += count
        return grid.values(numbers[at : at + count]).view(np.uint32)

    def end(self) -> None:
        """Raise unless every number has been drawn."""
        left = sum(len(numbers) for _, numbers in self._lanes) - sum(self._at)
        if left:
            raise FormatError(f"numbers section: {left} numbers are left that no tensor draws")

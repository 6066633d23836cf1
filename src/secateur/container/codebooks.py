"""Codebooks: the distinct values of a tensor, the index of each weight into them, and how the values are written.

>>> words = np.array([0.5, 0.25, 0.5, 0.75], dtype=np.float32).view(np.uint32)
>>> values, levels = few_levels(words, Entry("w", "F32", (4,)))
>>> values.view(np.float32).tolist(), levels.tolist()
([0.25, 0.5, 0.75], [1, 0, 1, 2])
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from secateur.coding import ascending, static, varint
from secateur.container import format as sct
from secateur.container.format import Entry

__all__ = [
    "MOST_LEVELS",
    "codebook",
    "few_levels",
    "gaps_filled",
    "levels_of",
    "read_codebook",
    "read_multiples",
    "round_to_bits",
    "short_codebook",
    "value_keys",
]

MOST_LEVELS = 1024  # a tensor with more distinct values is not stored as indices
_SAMPLE = 1 << 14
_PIECE = 1 << 20
_MARGIN = 8  # bytes that filling the gaps must save, for what the coder spends on unused levels
_FARTHEST = 1 << 20  # a reader accepts first multiples up to four times as far


def value_keys(words: np.ndarray, entry: Entry) -> np.ndarray:
    """Words as unsigned numbers that sort like the values they stand for.

    Args:
        words: The words.
        entry: The dtype of the tensor.
    """
    bits = words.dtype.type(words.dtype.itemsize * 8 - 1)
    top = words.dtype.type(1) << bits
    if entry.floating:
        return np.where(words >> bits, ~words, words | top)
    return words ^ top if entry.dtype.startswith("I") else words


def _disorder(keys: np.ndarray, entry: Entry) -> np.ndarray:
    """The inverse of `value_keys`."""
    bits = keys.dtype.type(keys.dtype.itemsize * 8 - 1)
    top = keys.dtype.type(1) << bits
    if entry.floating:
        return np.where(keys >> bits, keys ^ top, ~keys)
    return keys ^ top if entry.dtype.startswith("I") else keys


def levels_of(
    words: np.ndarray, entry: Entry, most: int = MOST_LEVELS
) -> tuple[np.ndarray, np.ndarray] | None:
    """(distinct words in ascending order of value, level of each word); None with more than `most`."""
    flat = words.reshape(-1)
    if flat.size == 0:
        return None
    step = flat.size // _SAMPLE
    # A sample of the sample rules out most long tensors in an eighth of the time.
    if step and (len(np.unique(flat[:: 8 * step])) > most or len(np.unique(flat[::step])) > most):
        return None
    keys = value_keys(flat, entry)
    found = np.unique(keys)
    if len(found) > most:
        return None
    levels = np.empty(flat.size, dtype=np.uint16 if len(found) > 256 else np.uint8)
    for start in range(0, flat.size, _PIECE):  # a part at a time: numpy's indices take eight bytes each
        levels[start : start + _PIECE] = np.searchsorted(found, keys[start : start + _PIECE])
    return _disorder(found, entry), levels.reshape(words.shape)


def few_levels(
    words: np.ndarray, entry: Entry, most: int = MOST_LEVELS
) -> tuple[np.ndarray, np.ndarray] | None:
    """As `levels_of`, with unused values added where that makes the codebook smaller."""
    few = levels_of(words, entry, most)
    return None if few is None else gaps_filled(*few, entry)


def gaps_filled(values: np.ndarray, levels: np.ndarray, entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    """Fill the gaps between values that are multiples of one step, where that makes the codebook smaller.

    With uniform steps most large multiples do not occur. A row of equal steps takes a dozen bytes in all, and an unused
    level about one.

    >>> values = (0.1 * np.array([-7, -2, -1, 0, 1, 4], dtype=np.float32)).view(np.uint32)
    >>> filled, levels = gaps_filled(values, np.array([0, 3, 5], dtype=np.uint8), Entry("w", "F32", (3,)))
    >>> len(filled), levels.tolist()
    (12, [0, 7, 11])
    """
    plain = codebook(values, entry)
    found = _steps(values.view(np.float32)) if entry.dtype == "F32" and plain[0] == 0 else None
    if found is None:
        return values, levels
    step, whole = found
    count = int(whole[-1] - whole[0]) + 1
    if count > MOST_LEVELS:
        return values, levels
    filled = (step * np.arange(whole[0], whole[-1] + 1, dtype=np.float32)).view(np.uint32)
    # The filled values are encoded to measure them: far from zero their step may not be recovered.
    if len(codebook(filled, entry)) + count - len(values) + _MARGIN >= len(plain):
        return values, levels
    return filled, (whole - whole[0])[levels].astype(np.uint16 if count > 256 else np.uint8)


def codebook(values: np.ndarray, entry: Entry) -> bytes:
    """Encode the distinct values, which ascend.

    Equal steps are written as a step and a start, small multiples of a power of two as an exponent and the multiples.
    """
    return _codebook(values.tobytes(), entry.dtype)


@lru_cache(maxsize=4)  # a codebook is measured before it is chosen, and written after
def _codebook(raw: bytes, dtype: str) -> bytes:
    entry = Entry("", dtype, ())
    values = np.frombuffer(raw, dtype=f"u{entry.width}")
    size = varint.write(len(values))
    if dtype == "F32":
        floats32 = values.view(np.float32)
        small = _small_multiples(floats32)
        even = _even_steps(floats32) if len(values) > 2 else None
        short = [b"\1" + size + even] if even is not None else []
        short += [b"\2" + size + small] if small is not None else []
        if short:
            return min(short, key=len)
    sorted_keys = ascending.encode(value_keys(values, entry))
    return b"\0" + size + sorted_keys


_MIDDLE = 128  # the byte that stands for a multiple of 0
_EXPONENTS = range(-126, 120)  # so that 128 times the power is finite, and once the power is no denormal


def round_to_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Round float32 values to multiples of a power of two; the multiples have at most `bits` bits with their sign.

    >>> round_to_bits(np.array([-0.9, 0.0, 0.3], dtype=np.float32), 5)
    array([-0.875 ,  0.    ,  0.3125], dtype=float32)
    """
    top = float(np.abs(values).max(initial=0.0))
    most = 2 ** (bits - 1) - 1
    if top == 0.0 or not np.isfinite(top):
        return values.astype(np.float32)
    exponent = int(np.ceil(np.log2(top / (most + 0.5))))
    exponent = min(max(exponent, _EXPONENTS[0]), _EXPONENTS[-1])
    multiples = np.clip(np.rint(values.astype(np.float64) / 2.0**exponent), -most, most)
    return (multiples * 2.0**exponent).astype(np.float32)


def _multiples(values: np.ndarray) -> tuple[int, np.ndarray] | None:
    """Exponent and multiples, where the values are exactly multiples, -128 to 127, of a power of two; else None."""
    with np.errstate(invalid="ignore"):  # a NaN may be of the signalling kind
        some = values[values != 0].astype(np.float64)
    if not some.size or not np.isfinite(some).all() or (np.signbit(values) & (values == 0)).any():
        return None
    mantissa, exponents = np.frexp(some)
    whole = np.rint(mantissa * 2.0**24).astype(np.int64)  # a float32 has 24 bits
    spare = np.frexp((whole & -whole).astype(np.float64))[1] - 1  # how many bits are zero at the end
    exponent = int((exponents - 24 + spare).min())
    multiples = values.astype(np.float64) / 2.0**exponent
    if exponent not in _EXPONENTS or multiples.min() < -_MIDDLE or multiples.max() >= _MIDDLE:
        return None
    return exponent, multiples


def _small_multiples(values: np.ndarray) -> bytes | None:
    """Exponent and multiples as bytes, where `_multiples` finds them; else None."""
    found = _multiples(values)
    if found is None:
        return None
    exponent, multiples = found
    return varint.write(varint.unsigned(exponent)) + ascending.encode((multiples + _MIDDLE).astype(np.uint8))


_MOST_SIDE = 15  # values on one side of zero, in a short codebook


def short_codebook(values: np.ndarray, entry: Entry) -> bytes | None:
    """A codebook as method `SHORT` has it, where it can hold these distinct values, which ascend; else None.

    One byte counts the values below and above zero, which is one of them; the next one is the exponent of a power of
    two; then comes a byte for each other value: its multiple of that power, plus 128.

    Args:
        values: The distinct words in ascending order of value.
        entry: Name, dtype and shape of the tensor.

    >>> words = (np.array([-3, 0, 5], dtype=np.float32) / 8).view(np.uint32)
    >>> list(short_codebook(words, Entry("w", "F32", (3,))))
    [17, 123, 125, 133]
    """
    if entry.dtype != "F32":
        return None
    floats32 = values.view(np.float32)
    below, above = int((floats32 < 0).sum()), int((floats32 > 0).sum())
    found = _multiples(floats32) if below + above + 1 == len(values) else None
    if found is None or not 0 < max(below, above) <= _MOST_SIDE:
        return None
    exponent, multiples = found
    kept = multiples[multiples != 0] + _MIDDLE
    return bytes([below << 4 | above, exponent - _EXPONENTS[0], *kept.astype(np.uint8).tolist()])


def read_multiples(data: memoryview, entry: Entry, where: str) -> np.ndarray:
    """Decode a short codebook: its distinct words in ascending order.

    Args:
        data: The codebook.
        entry: Name, dtype and shape of the tensor.
        where: The tensor, for messages.

    Raises:
        FormatError: The values do not ascend, or there is none but zero.
    """
    reader = varint.Reader(data, where + ", codebook")
    sides, exponent = reader.byte(), reader.byte() + _EXPONENTS[0]
    bytes_of = np.frombuffer(reader.take(reader.left), dtype=np.uint8)
    below, above = sides >> 4, sides & _MOST_SIDE
    if entry.dtype != "F32":
        raise reader.fail(f"a short codebook for dtype {entry.dtype}, expected F32")
    if not sides or len(bytes_of) != below + above or exponent not in _EXPONENTS:
        raise reader.fail(
            f"a short codebook of {below} and {above} values with exponent {exponent}, expected one value or more "
            "and -126..119"
        )
    multiples = np.concatenate([bytes_of[:below], [_MIDDLE], bytes_of[below:]]).astype(np.int64) - _MIDDLE
    if (np.diff(multiples) <= 0).any():
        raise reader.fail("the values of a codebook do not ascend")
    return (multiples * 2.0**exponent).astype(np.float32).view(np.uint32)


def _steps(values: np.ndarray) -> tuple[np.float32, np.ndarray] | None:
    """The step and the integers, where the values are exactly float32(step * integers); else None.

    Three candidates for the step are tried: the median gap, the smallest value, and the largest value divided into
    its smallest gaps.
    """
    return _steps_in(values.tobytes())


@lru_cache(maxsize=4)
def _steps_in(raw: bytes) -> tuple[np.float32, np.ndarray] | None:
    values = np.frombuffer(raw, dtype=np.float32)
    if len(values) < 2 or not np.isfinite(values).all() or not values.any():
        return None
    wide = values.astype(np.float64)
    sizes = np.abs(wide[wide != 0])
    gaps = np.diff(wide)
    largest = float(sizes.max())
    cut = max(1, round(largest / float(gaps.min()))) if gaps.min() > 0 else 1
    with np.errstate(over="ignore"):
        # two values of opposite signs may be further apart than a float32 can say
        guesses = np.array([np.median(np.diff(values)), sizes.min(), largest / cut]).astype(np.float32)
    for step in guesses:
        if not 0 < step < np.inf or largest / float(step) > _FARTHEST:
            continue
        whole = np.rint(wide / float(step)).astype(np.int64)
        if step * np.float32(whole[0]) != values[0]:
            continue  # most guesses fail here
        if ((step * whole.astype(np.float32)).view(np.uint32) == values.view(np.uint32)).all():
            return step, whole
    return None


def _even_steps(values: np.ndarray) -> bytes | None:
    """Step and first multiple, where the values are exactly float32(step * consecutive integers); else None."""
    found = _steps(values)
    if found is None or (np.diff(found[1]) != 1).any():
        return None
    step, whole = found
    return step.tobytes() + varint.write(varint.unsigned(int(whole[0])))


def read_codebook(data: memoryview, entry: Entry, where: str, version: int = sct.VERSION) -> np.ndarray:
    """Decode a codebook: its distinct words in ascending order; repeats and disorder are refused."""
    reader = varint.Reader(data, where + ", codebook")
    kind = reader.byte()
    size = reader.varint(static.MOST_SYMBOLS, "the number of values")
    if size == 0:
        raise reader.fail("expected at least one value in a codebook, got none")
    if kind == 0:
        keys = ascending.decode(reader.take(reader.left), size, entry.width)
        return _disorder(keys, entry)
    elif kind == 1 and entry.dtype == "F32":
        step = np.frombuffer(reader.take(4), dtype="<f4")[0]
        first = varint.signed(reader.varint(1 << 22, "the first multiple"))
        reader.end()
        if not np.isfinite(step):
            raise reader.fail("the step of a codebook is not finite")
        with np.errstate(over="ignore"):
            values = (step * np.arange(first, first + size, dtype=np.float32)).view(np.uint32)
    elif kind == 2 and entry.dtype == "F32" and version > 1:
        exponent = varint.signed(reader.varint(2 * len(_EXPONENTS), "the exponent of a codebook"))
        if exponent not in _EXPONENTS:
            raise reader.fail(f"the exponent {exponent} of a codebook, expected -126..119")
        multiples = ascending.decode(reader.take(reader.left), size, 1).astype(np.float64) - _MIDDLE
        return (multiples * 2.0**exponent).astype(np.float32).view(np.uint32)
    else:
        raise reader.fail(f"a codebook of kind {kind} for dtype {entry.dtype}")
    keys = value_keys(values, entry)
    if (keys[1:] <= keys[:-1]).any():
        raise reader.fail("the values of a codebook do not ascend")
    return values

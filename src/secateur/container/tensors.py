"""One tensor into its parts and back: which way of storing it is smallest, on plain numpy words. No torch.

>>> import numpy as np
>>> from secateur.container.format import METHODS, Entry
>>> words = np.array([0.0, 0.5, 0.0, 0.5] * 50, dtype=np.float32).view(np.uint32)
>>> method, parts = encode(Entry("w", "F32", (200,)), words)
>>> METHODS[method][0], sum(map(len, parts)) < 60
('indexed', True)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from secateur.coding import ascending, floats, indices, static, varint
from secateur.coding.indices import Memory
from secateur.container import format as sct
from secateur.container.format import DTYPES, Entry, Record
from secateur.container.lanes import Lanes
from secateur.errors import FormatError

__all__ = [
    "MOST_LEVELS",
    "cast",
    "codebook",
    "decode",
    "encode",
    "grid",
    "indexed",
    "levels_of",
    "read_codebook",
    "round_to_bits",
    "text",
]

MOST_LEVELS = 1024  # with more distinct values than this a tensor is not looked at as an indexed one
_SAMPLE = 1 << 14
_PIECE = 1 << 20
_CASTS = {("F16", "F32"), ("BF16", "F32"), ("F16", "F64"), ("BF16", "F64"), ("F32", "F64")}


# -- distinct values -----------------------------------------------------------------------------------------
def _order(words: np.ndarray, entry: Entry) -> np.ndarray:
    """Words as unsigned numbers that sort like the values they stand for."""
    bits = words.dtype.type(words.dtype.itemsize * 8 - 1)
    top = words.dtype.type(1) << bits
    if entry.floating:
        return np.where(words >> bits, ~words, words | top)
    return words ^ top if entry.dtype.startswith("I") else words


def _disorder(keys: np.ndarray, entry: Entry) -> np.ndarray:
    """The inverse of `_order`."""
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
    step = max(1, flat.size // _SAMPLE)
    if len(np.unique(flat[::step])) > most:
        return None
    keys = _order(flat, entry)
    found = np.unique(keys)
    if len(found) > most:
        return None
    levels = np.empty(flat.size, dtype=np.uint16 if len(found) > 256 else np.uint8)
    for start in range(0, flat.size, _PIECE):  # numpy's places take eight bytes each
        levels[start : start + _PIECE] = np.searchsorted(found, keys[start : start + _PIECE])
    return _disorder(found, entry), levels.reshape(words.shape)


def _zero(values: np.ndarray) -> int | None:
    at = np.flatnonzero(values == 0)
    return int(at[0]) if len(at) else None


# -- codebooks -----------------------------------------------------------------------------------------------
def codebook(values: np.ndarray, entry: Entry) -> bytes:
    """The distinct values in ascending order; even steps are written as a step and a start, and small multiples of
    a power of two as those.
    """
    size = varint.write(len(values))
    if entry.dtype == "F32":
        floats32 = values.view(np.float32)
        small = _small_multiples(floats32)
        even = _even_steps(floats32) if len(values) > 2 else None
        short = [b"\1" + size + even] if even is not None else []
        short += [b"\2" + size + small] if small is not None else []
        if short:
            return min(short, key=len)
    sorted_keys = ascending.encode(_order(values, entry))
    return b"\0" + size + sorted_keys


_MIDDLE = 128  # what a multiple of 0 is written as, in a byte
_EXPONENTS = range(-126, 120)  # so that 128 times the power is finite, and once the power is no denormal


def round_to_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Float32 values as multiples, of at most `bits` bits with their sign, of the power of two that suits the largest.

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


def _small_multiples(values: np.ndarray) -> bytes | None:
    """The exponent and the multiples, where the values are exactly those, from -128 to 127, of a power of two."""
    with np.errstate(invalid="ignore"):  # a NaN may be of the signalling kind
        some = values[values != 0].astype(np.float64)
    if not some.size or not np.isfinite(some).all() or (np.signbit(values) & (values == 0)).any():
        return None
    mantissa, exponents = np.frexp(some)
    whole = np.rint(mantissa * 2.0**24).astype(np.int64)  # a float32 has 24 bits
    spare = np.array([(int(n) & -int(n)).bit_length() - 1 for n in whole])
    exponent = int((exponents - 24 + spare).min())
    multiples = values.astype(np.float64) / 2.0**exponent
    if exponent not in _EXPONENTS or multiples.min() < -_MIDDLE or multiples.max() >= _MIDDLE:
        return None
    return varint.write(varint.unsigned(exponent)) + ascending.encode((multiples + _MIDDLE).astype(np.uint8))


def _even_steps(values: np.ndarray) -> bytes | None:
    """Step and first multiple, where the values are exactly float32(step * whole numbers in a row)."""
    if not np.isfinite(values).all():
        return None
    gaps = np.diff(values)
    guess = np.float32(np.median(gaps))
    if not guess > 0 or not np.isfinite(guess):
        return None
    small = np.abs(values)[np.argsort(np.abs(values))]
    for step in {float(guess), float(small[1] if small[0] == 0 else small[0])}:
        if not step > 0:
            continue
        first = round(float(values[0]) / step)
        if abs(first) > 1 << 20:
            continue
        rebuilt = np.float32(step) * np.arange(first, first + len(values), dtype=np.float32)
        if (rebuilt.view(np.uint32) == values.view(np.uint32)).all():
            return np.float32(step).tobytes() + varint.write(varint.unsigned(first))
    return None


def read_codebook(data: memoryview, entry: Entry, where: str, version: int = sct.VERSION) -> np.ndarray:
    """The distinct words of a codebook; ascending and without repeats, else it is not a valid one."""
    reader = varint.Reader(data, where + ", codebook")
    kind = reader.byte()
    size = reader.varint(static.MOST_SYMBOLS, "the number of values")
    if size == 0:
        raise reader.fail("a codebook without values")
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
    keys = _order(values, entry)
    if (keys[1:] <= keys[:-1]).any():
        raise reader.fail("the values of a codebook do not ascend")
    return values


# -- encoding ------------------------------------------------------------------------------------------------
def gaps_filled(values: np.ndarray, levels: np.ndarray, entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    """Values that are multiples of one step, the gaps between them filled where that is the smaller codebook.

    Uniform steps leave most large multiples out. As even steps all of them take a dozen bytes, and a level nobody
    uses takes about one.

    >>> values = (0.1 * np.array([-7, -2, -1, 0, 1, 4], dtype=np.float32)).view(np.uint32)
    >>> filled, levels = gaps_filled(values, np.array([0, 3, 5], dtype=np.uint8), Entry("w", "F32", (3,)))
    >>> len(filled), levels.tolist()
    (12, [0, 7, 11])
    """
    plain = codebook(values, entry)
    if entry.dtype != "F32" or plain[0] or len(values) < 2:
        return values, levels
    found = _multiples(values.view(np.float32))
    if found is None:
        return values, levels
    step, whole = found
    count = int(whole[-1] - whole[0]) + 1
    if count > MOST_LEVELS or count - len(values) + 16 >= len(plain):
        return values, levels
    filled = (step * np.arange(whole[0], whole[-1] + 1, dtype=np.float32)).view(np.uint32)
    return filled, (whole - whole[0])[levels].astype(np.uint16 if count > 256 else np.uint8)


def _multiples(values: np.ndarray) -> tuple[np.float32, np.ndarray] | None:
    """Step and whole numbers, where the values are exactly float32(step * whole numbers)."""
    if not np.isfinite(values).all():
        return None
    sizes = np.sort(np.abs(values[values != 0]).astype(np.float64))
    gap = float(np.diff(values.astype(np.float64)).min())
    if not sizes.size or not gap > 0:
        return None
    top = round(sizes[-1] / gap)
    for step in (np.float32(sizes[0]), np.float32(sizes[-1] / top)):
        if not step > 0 or sizes[-1] / float(step) > 1 << 20:
            continue
        whole = np.rint(values.astype(np.float64) / float(step)).astype(np.int64)
        if ((step * whole.astype(np.float32)).view(np.uint32) == values.view(np.uint32)).all():
            return step, whole
    return None


def indexed(
    entry: Entry, values: np.ndarray, levels: np.ndarray, coder: str, memory: Memory
) -> tuple[int, list[bytes]]:
    """A tensor of few distinct words: the codebook, then the level of each weight."""
    values, levels = gaps_filled(values, levels, entry)
    stream = indices.encode(levels.reshape(entry.shape), len(values), _zero(values), coder, memory)
    return sct.INDEXED, [codebook(values, entry), stream]


def _codebook_bytes(values: np.ndarray, entry: Entry) -> int:
    filled, _ = gaps_filled(values, np.zeros(0, dtype=np.uint8), entry)
    return len(codebook(filled, entry)) + len(filled) - len(values)


def encode(
    entry: Entry, words: np.ndarray, coder: str = indices.DEFAULT, memory: Memory | None = None
) -> tuple[int, list[bytes]]:
    """A small exact way to store these words.

    What the indices will cost is judged by their entropy: coding them teaches `memory`, so it is done only
    once the choice has fallen on them.
    """
    flat = words.reshape(-1)
    memory = Memory() if memory is None else memory
    if not flat.any():
        return sct.ZERO, []
    if (flat == flat[0]).all():
        return sct.CONST, [flat[:1].tobytes()]
    few = levels_of(words, entry) if entry.numel >= 16 else None
    guess = float("inf")
    if few is not None:
        # About a byte a level is what it costs a coder to learn how often each comes.
        learning = len(few[0]) + 8
        guess = static.entropy(few[1]) * entry.numel / 8 + _codebook_bytes(few[0], entry) + learning
        if guess < entry.nbytes / 2:  # packing could hardly win, and would have to be tried on all of it
            return indexed(entry, *few, coder, memory)
    small = coder == "strong"
    packed = [floats.encode(flat, entry.floating, small)]
    if few is not None and guess < len(packed[0]):
        return indexed(entry, *few, coder, memory)
    zeros = int((flat == 0).sum())
    if few is None and entry.numel >= 16 and zeros * 50 > flat.size:
        mask = (flat != 0).astype(np.int32).reshape(entry.shape)
        kept = floats.encode(flat[flat != 0], entry.floating, small)
        if static.entropy(mask) * entry.numel / 8 + len(kept) < len(packed[0]):
            return sct.SPARSE, [indices.encode(mask, 2, 0, coder, memory), kept]
    return (sct.PACKED, packed) if len(packed[0]) < entry.nbytes else (sct.RAW, [flat.tobytes()])


def cast(entry: Entry, words: np.ndarray, dtype: str) -> tuple[int, list[bytes], np.ndarray]:
    """Stored in a narrower float dtype; also gives the words a reader will get."""
    if (dtype, entry.dtype) not in _CASTS:
        raise ValueError(f"{entry.dtype} cannot be stored as {dtype}")
    narrow = _to_narrow(words.reshape(-1), entry.dtype, dtype)
    parts = [bytes([DTYPES[dtype][0]]), floats.encode(narrow, True)]
    return sct.CAST, parts, _to_wide(narrow, dtype, entry.dtype).reshape(words.shape)


def _to_narrow(words: np.ndarray, wide: str, narrow: str) -> np.ndarray:
    values = words.view(f"f{words.dtype.itemsize}")
    if narrow != "BF16":
        with np.errstate(over="ignore"):
            cut = values.astype("f2" if narrow == "F16" else "f4")
        return cut.view(f"u{cut.dtype.itemsize}")
    bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


def _to_wide(words: np.ndarray, narrow: str, wide: str) -> np.ndarray:
    if narrow == "BF16":
        values = (words.astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        values = words.view(f"f{words.dtype.itemsize}")
    out = values.astype("f4" if wide == "F32" else "f8")
    return out.view(f"u{out.dtype.itemsize}")


_GRID_HEAD = 9  # one byte of kind and two float32


def grid(entry: Entry, words: np.ndarray, logarithmic: bool) -> tuple[int, list[bytes], np.ndarray]:
    """A float32 tensor in 8 bits a value: even steps, or even ratios with a sign and an exact zero."""
    values = words.reshape(-1).view(np.float32).astype(np.float64)
    if logarithmic:
        size = np.abs(values)
        low = float(size[size > 0].min()) if (size > 0).any() else 1.0
        ratio = float((size.max() / low) ** (1 / 126)) if size.max() > low else 1.0
        step = np.log(ratio) if ratio > 1 else 1.0
        codes = np.where(size > 0, 1 + np.rint(np.log(np.maximum(size, low) / low) / step), 0)
        codes = np.clip(codes, 0, 127) + 128 * (values < 0)
        head = b"\1" + np.array([low, ratio], dtype="<f4").tobytes()
    else:
        low, high = float(values.min()), float(values.max())
        step = (high - low) / 255 or 1.0
        codes = np.clip(np.rint((values - low) / step), 0, 255)
        head = b"\0" + np.array([low, step], dtype="<f4").tobytes()
    stored = codes.astype(np.uint8)
    parts = [head, floats.encode(stored, False)]
    return sct.GRID, parts, _grid_table(memoryview(head), entry.name)[stored].reshape(words.shape)


def _grid_table(head: memoryview, where: str) -> np.ndarray:
    """The 256 words a grid can give: products and sums one after the other, so that every machine agrees."""
    if len(head) != _GRID_HEAD or head[0] > 1:
        raise FormatError(f"{where}: a grid of {len(head)} bytes, expected kind 0 or 1 and two numbers")
    low, step = (float(x) for x in np.frombuffer(head[1:], dtype="<f4"))
    if not (np.isfinite(low) and np.isfinite(step)):
        raise FormatError(f"{where}: a grid whose numbers are not finite")
    table = np.zeros(256)
    value = low
    for code in range(1, 128) if head[0] else range(256):
        if head[0]:
            table[code], table[code + 128] = value, -value
            value *= step
        else:
            table[code] = low + step * code
    with np.errstate(over="ignore"):
        return table.astype(np.float32).view(np.uint32)


# -- decoding ------------------------------------------------------------------------------------------------
def same_as(record: Record) -> int:
    """The number of the earlier tensor that a record says it equals."""
    reader = varint.Reader(record.parts["back"], record.where)
    back = reader.varint(record.index, "the distance back")
    reader.end()
    if back == 0:
        raise reader.fail("a tensor that is the same as itself")
    return record.index - back


def decode(
    record: Record, earlier: Mapping[int, np.ndarray | None], lanes: Lanes | None = None
) -> np.ndarray:
    """The words of a record; `earlier` has those of the tensors that a later one says it equals, and `lanes` the
    numbers that tensors share.
    """
    try:
        if record.method >= sct.DRAWN:
            return _drawn(record, lanes or Lanes([]))
        return _decode(record, earlier)
    except FormatError as error:
        if str(error).startswith("tensor "):
            raise
        raise FormatError(f"{record.where}: {error}") from None


def _drawn(record: Record, lanes: Lanes) -> np.ndarray:
    entry = record.entry
    if entry.dtype != "F32":
        raise FormatError(f"numbers of a lane for dtype {entry.dtype}, expected F32")
    return lanes.take(record.method - sct.DRAWN, entry.numel, record.where).reshape(entry.shape)


def _decode(record: Record, earlier: Mapping[int, np.ndarray | None]) -> np.ndarray:
    entry, parts = record.entry, record.parts
    kind = np.dtype(f"u{entry.width}")
    if record.method == sct.ZERO:
        return np.zeros(entry.shape, dtype=kind)
    if record.method == sct.RAW:
        if len(parts["raw"]) != entry.nbytes:
            raise FormatError(f"expected {entry.nbytes} raw bytes, got {len(parts['raw'])}")
        return np.frombuffer(parts["raw"], dtype=kind.newbyteorder("<")).astype(kind).reshape(entry.shape)
    if record.method == sct.CONST:
        if len(parts["value"]) != entry.width:
            raise FormatError(f"expected one value of {entry.width} bytes, got {len(parts['value'])}")
        return np.full(
            entry.shape, np.frombuffer(parts["value"], dtype=kind.newbyteorder("<"))[0], dtype=kind
        )
    if record.method == sct.SAME:
        words = earlier[same_as(record)]
        assert words is not None
        if words.dtype != kind or words.size != entry.numel:
            raise FormatError(
                f"the same as a tensor of {words.size} {words.dtype}, expected {entry.numel} {kind}"
            )
        return words.reshape(entry.shape)
    if record.method == sct.PACKED:
        words = floats.decode(parts["packed"], entry.numel, entry.width, entry.floating, record.version)
        return words.reshape(entry.shape)
    if record.method == sct.INDEXED:
        values = read_codebook(parts["codebook"], entry, record.where, record.version)
        levels = indices.decode(
            bytes(parts["indices"]), entry.shape, len(values), _zero(values), record.memory
        )
        return values[levels]
    if record.method == sct.SPARSE:
        mask = indices.decode(bytes(parts["mask"]), entry.shape, 2, 0, record.memory).astype(bool)
        out = np.zeros(entry.shape, dtype=kind)
        kept = int(mask.sum())
        out[mask] = floats.decode(parts["packed"], kept, entry.width, entry.floating, record.version)
        return out
    if record.method == sct.CAST:
        narrow = next((n for n, (code, _, _) in DTYPES.items() if bytes([code]) == bytes(parts["dtype"])), "")
        if (narrow, entry.dtype) not in _CASTS:
            raise FormatError(
                f"{entry.dtype} stored as dtype {bytes(parts['dtype']).hex()}, which is not a narrower float"
            )
        words = floats.decode(parts["packed"], entry.numel, DTYPES[narrow][1], True, record.version)
        return _to_wide(words, narrow, entry.dtype).reshape(entry.shape)
    if entry.dtype != "F32":
        raise FormatError(f"a grid for dtype {entry.dtype}, expected F32")
    table = _grid_table(parts["grid"], record.where)
    return table[floats.decode(parts["packed"], entry.numel, 1, False, record.version)].reshape(entry.shape)


# -- text ----------------------------------------------------------------------------------------------------
def text(data: bytes) -> bytes:
    """Bytes of text, coded where that is smaller.

    >>> bytes(read_text(text(b"aaaaaaaaaaaaaaab" * 20), "t")) == b"aaaaaaaaaaaaaaab" * 20
    True
    """
    coded = static.encode(np.frombuffer(data, dtype=np.uint8).astype(np.int32), 256)
    if len(coded) + 4 < len(data) < 64 * len(coded):
        return b"\1" + varint.write(len(data)) + coded
    return b"\0" + data


def read_text(data: bytes, where: str) -> bytes:
    """The inverse of `text`."""
    reader = varint.Reader(data, where)
    kind = reader.byte()
    if kind == 0:
        return bytes(reader.take(reader.left))
    if kind != 1:
        raise reader.fail(f"text of kind {kind}, known kinds are 0 and 1")
    count = reader.varint(64 * len(data), "the length of a text")
    return static.decode(reader.take(reader.left), count, 256).astype(np.uint8).tobytes()

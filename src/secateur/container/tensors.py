"""Encode one tensor in the smallest of the storage methods, and decode it; on plain numpy words, without torch.

>>> import numpy as np
>>> from secateur.container.format import METHODS, Entry
>>> words = np.array([0.0, 0.5, 0.0, 0.5] * 50, dtype=np.float32).view(np.uint32)
>>> method, parts = encode(Entry("w", "F32", (200,)), words)
>>> METHODS[method][0], sum(map(len, parts)) < 60
('indexed', True)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

import numpy as np

from secateur.coding import floats, indices, static, varint
from secateur.coding.digits import LONG
from secateur.coding.indices import MixerBank
from secateur.coding.room import Pieces, Room
from secateur.container import format as sct
from secateur.container.codebooks import codebook, few_levels, read_codebook, read_multiples
from secateur.container.format import DTYPES, Entry, Record
from secateur.container.scalar_streams import ScalarStreams
from secateur.container.slices import from_slices
from secateur.errors import FormatError

__all__ = [
    "cast",
    "decode",
    "dense_bytes",
    "encode",
    "grid",
    "indexed",
    "minor_bytes",
    "pieces_of",
    "text",
    "values_of",
]

_SAMPLE = 1 << 13  # words by which dense floats of eight bits are told
_MOST_SHARED = 64  # a tensor of fewer distinct values counts as shared
_LEAST_LARGE, _MINOR = 1 << 24, 9  # bytes of a checkpoint from which a 2**9th of it is minor
_CASTS = {("F16", "F32"), ("BF16", "F32"), ("F16", "F64"), ("BF16", "F64"), ("F32", "F64")}


def _zero(values: np.ndarray) -> int | None:
    at = np.flatnonzero(values == 0)
    return int(at[0]) if len(at) else None


def dense_bytes(entry: Entry, flat: np.ndarray, coder: str) -> bool:
    """Whether these are many floats of eight bits, as training leaves them: neither pruned nor shared.

    Their values take no fewer bytes as indices, whose contexts tell nothing, and a hundred times as long.

    Args:
        entry: Name, dtype and shape of the tensor.
        flat: Its elements as unsigned words, in one axis.
        coder: "fast", "mixed" or "strong".
    """
    if not entry.floating or entry.width > 1 or flat.size < LONG or coder == "strong":
        return False
    sample = flat[:: max(1, flat.size // _SAMPLE)]
    zeros = sample.size - int(np.count_nonzero(sample & 0x7F))
    return zeros * 50 <= sample.size and int(np.count_nonzero(np.bincount(sample))) > _MOST_SHARED


def minor_bytes(entries: Sequence[Entry]) -> int:
    """The bytes up to which tensors of a large checkpoint are minor: together no more than a 512th of it.

    To look for few distinct values in each takes longer than the rest, and saves a hundredth of a percent. Those that
    are shared or pruned are still told where words are longer than a byte; of bytes, a table of frequencies tells.

    Args:
        entries: All tensors of the checkpoint.

    >>> minor_bytes([Entry("w", "F32", (4096, 4096)), Entry("b", "F32", (4096,))])
    16384
    >>> minor_bytes([Entry("w", "F32", (64, 64)), Entry("b", "F32", (64,))])
    0
    """
    sizes = sorted(entry.nbytes for entry in entries)
    left, found = sum(sizes) >> _MINOR, 0
    if left << _MINOR < _LEAST_LARGE:
        return 0
    for size, same in groupby(sizes):
        left -= sum(same)
        if left < 0:
            break
        found = size
    return found


def _minor_dense(entry: Entry, flat: np.ndarray, minor: int) -> bool:
    """Whether this is a minor tensor of many distinct values, and neither pruned nor shared; any of eight bits."""
    if entry.nbytes > minor:
        return False
    if entry.width == 1:  # one table of frequencies does for a byte what a codebook would
        return True
    zeros = flat.size - int(np.count_nonzero(flat))
    return zeros * 50 <= flat.size and len(np.unique(flat)) > _MOST_SHARED


# -- encoding ------------------------------------------------------------------------------------------------
def indexed(
    entry: Entry, values: np.ndarray, levels: np.ndarray, coder: str, memory: MixerBank
) -> tuple[int, list[bytes]]:
    """Method and parts of a tensor of few distinct words: the codebook, then the level of each weight."""
    stream = indices.encode(levels.reshape(entry.shape), len(values), _zero(values), coder, memory)
    return sct.INDEXED, [codebook(values, entry), stream]


def encode(
    entry: Entry, words: np.ndarray, coder: str = indices.DEFAULT, memory: MixerBank | None = None
) -> tuple[int, list[bytes]]:
    """A small exact storage of these words.

    The size of the indices is estimated by their entropy: coding them changes `memory`, so it is done only once
    they have been chosen.

    Args:
        entry: Name, dtype and shape of the tensor.
        words: Its elements as unsigned words.
        coder: "fast", "mixed" or "strong".
        memory: The coder's state after the earlier tensors of the same section; None starts with an empty one.

    Returns:
        The storage method and its parts.
    """
    method, parts = pieces_of(entry, words, coder, memory)
    return method, [bytes(part) for part in parts]


def pieces_of(
    entry: Entry,
    words: np.ndarray,
    coder: str = indices.DEFAULT,
    memory: MixerBank | None = None,
    room: Room | None = None,
    minor: int = 0,
) -> tuple[int, Sequence[bytes | Pieces]]:
    """As `encode`, with parts that are not joined; some of them are in the room, or in the words themselves.

    Args:
        entry: Name, dtype and shape of the tensor.
        words: Its elements as unsigned words.
        coder: "fast", "mixed" or "strong".
        memory: The coder's state after the earlier tensors of the same section; None starts with an empty one.
        room: Memory for what is stored as it is; None takes new memory.
        minor: The result of `minor_bytes` for the checkpoint: such tensors are packed at once, if they are dense.
    """
    flat = words.reshape(-1)
    memory = MixerBank() if memory is None else memory
    if not flat.size:
        return sct.ZERO, []
    if flat[0] == flat[-1] and (flat == flat[0]).all():  # the first test rules out most tensors
        return (sct.CONST, [flat[:1].tobytes()]) if flat[0] else (sct.ZERO, [])
    if _minor_dense(entry, flat, minor):
        return _packed_or_raw(entry, flat, floats.pieces_of(flat, entry.floating, coder == "strong"))
    few = few_levels(words, entry) if entry.numel >= 16 and not dense_bytes(entry, flat, coder) else None
    guess = float("inf")
    if few is not None:
        # A coder needs about a byte a level to learn the levels' frequencies.
        learning = len(few[0]) + 8
        guess = static.entropy(few[1]) * entry.numel / 8 + len(codebook(few[0], entry)) + learning
        if guess < entry.nbytes / 2:
            # packing is unlikely to be smaller, and trying it would take a pass over everything
            return indexed(entry, *few, coder, memory)
    small = coder == "strong"
    packed = floats.pieces_of(flat, entry.floating, small, room)
    if few is not None and guess < len(packed):
        return indexed(entry, *few, coder, memory)
    zeros = flat.size - np.count_nonzero(flat)
    if few is None and entry.numel >= 16 and zeros * 50 > flat.size:
        mask = (flat != 0).astype(np.int32).reshape(entry.shape)
        kept = floats.encode(flat[flat != 0], entry.floating, small)
        if static.entropy(mask) * entry.numel / 8 + len(kept) < len(packed):
            return sct.SPARSE, [indices.encode(mask, 2, 0, coder, memory), kept]
    return _packed_or_raw(entry, flat, packed)


def _packed_or_raw(entry: Entry, flat: np.ndarray, packed: Pieces) -> tuple[int, list[bytes | Pieces]]:
    return (sct.PACKED, [packed]) if len(packed) < entry.nbytes else (sct.RAW, [flat.tobytes()])


def cast(entry: Entry, words: np.ndarray, dtype: str) -> tuple[int, list[bytes], np.ndarray]:
    """Method and parts of a tensor stored in a narrower float dtype, and the words a reader will decode."""
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
    """A float32 tensor in 8 bits a value: equal steps, or equal ratios with a sign and an exact zero."""
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
    """The 256 words of a grid; products and sums in a fixed order, so that every machine computes the same."""
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
    """The index of the earlier tensor that a record refers to."""
    reader = varint.Reader(record.parts["back"], record.where)
    back = reader.varint(record.index, "the distance back")
    reader.end()
    if back == 0:
        raise reader.fail("a tensor that is the same as itself")
    return record.index - back


def decode(
    record: Record,
    earlier: Mapping[int, np.ndarray | None],
    lanes: ScalarStreams | None = None,
    room: Room | None = None,
) -> np.ndarray:
    """The words of a record.

    Args:
        record: The record.
        earlier: The words of the tensors that later records refer to, by index.
        lanes: The scalars that tensors draw from; None where the file has none.
        room: Memory for long words; None takes new memory.
    """
    try:
        if sct.DRAWN <= record.method < sct.SHORT:
            return _drawn(record, lanes or ScalarStreams([]))
        return _decode(record, earlier, room)
    except FormatError as error:
        if str(error).startswith("tensor "):
            raise
        raise FormatError(f"{record.where}: {error}") from None


def _drawn(record: Record, lanes: ScalarStreams) -> np.ndarray:
    entry = record.entry
    if entry.dtype != "F32":
        raise FormatError(f"numbers of a lane for dtype {entry.dtype}, expected F32")
    return lanes.take(record.method - sct.DRAWN, entry.numel, record.where).reshape(entry.shape)


def _decode(record: Record, earlier: Mapping[int, np.ndarray | None], room: Room | None) -> np.ndarray:
    """The words of a record that draws from no lane."""
    if record.method == sct.PACKED:
        return _packed(record, room)
    if record.method == sct.SAME:
        return _same(record, earlier)
    return _DECODERS[record.method](record)


def _zeros(record: Record) -> np.ndarray:
    return np.zeros(record.entry.shape, dtype=_word(record))


def _raw(record: Record) -> np.ndarray:
    entry, raw, word = record.entry, record.parts["raw"], _word(record)
    if len(raw) != entry.nbytes:
        raise FormatError(f"expected {entry.nbytes} raw bytes, got {len(raw)}")
    return np.frombuffer(raw, dtype=word.newbyteorder("<")).astype(word).reshape(entry.shape)


def _constant(record: Record) -> np.ndarray:
    entry, value, word = record.entry, record.parts["value"], _word(record)
    if len(value) != entry.width:
        raise FormatError(f"expected one value of {entry.width} bytes, got {len(value)}")
    return np.full(entry.shape, np.frombuffer(value, dtype=word.newbyteorder("<"))[0], dtype=word)


def _same(record: Record, earlier: Mapping[int, np.ndarray | None]) -> np.ndarray:
    entry, word = record.entry, _word(record)
    words = earlier[same_as(record)]
    assert words is not None
    if words.dtype != word or words.size != entry.numel:
        raise FormatError(
            f"the same as a tensor of {words.size} {words.dtype}, expected {entry.numel} {word}"
        )
    return words.reshape(entry.shape)


def _packed(record: Record, room: Room | None) -> np.ndarray:
    entry, packed = record.entry, record.parts["packed"]
    words = floats.decode(packed, entry.numel, entry.width, entry.floating, record.version, room)
    return words.reshape(entry.shape)


def values_of(record: Record) -> np.ndarray:
    """The distinct words of an indexed tensor, in ascending order.

    Args:
        record: The record.
    """
    if record.method == sct.SHORT:
        return read_multiples(record.parts["multiples"], record.entry, record.where)
    return read_codebook(record.parts["codebook"], record.entry, record.where, record.version)


def _indexed(record: Record) -> np.ndarray:
    entry, parts = record.entry, record.parts
    values = values_of(record)
    stream = bytes(parts["indices"])
    return values[indices.decode(stream, entry.shape, len(values), _zero(values), record.memory)]


def _sparse(record: Record) -> np.ndarray:
    entry, parts = record.entry, record.parts
    mask = indices.decode(bytes(parts["mask"]), entry.shape, 2, 0, record.memory).astype(bool)
    out = np.zeros(entry.shape, dtype=_word(record))
    kept = int(mask.sum())
    out[mask] = floats.decode(parts["packed"], kept, entry.width, entry.floating, record.version)
    return out


def _widened(record: Record) -> np.ndarray:
    entry, parts = record.entry, record.parts
    code = bytes(parts["dtype"])
    narrow = next((name for name, (known, _, _) in DTYPES.items() if bytes([known]) == code), "")
    if (narrow, entry.dtype) not in _CASTS:
        raise FormatError(f"{entry.dtype} stored as dtype {code.hex()}, which is not a narrower float")
    words = floats.decode(parts["packed"], entry.numel, DTYPES[narrow][1], True, record.version)
    return _to_wide(words, narrow, entry.dtype).reshape(entry.shape)


def _from_grid(record: Record) -> np.ndarray:
    entry, parts = record.entry, record.parts
    if entry.dtype != "F32":
        raise FormatError(f"a grid for dtype {entry.dtype}, expected F32")
    table = _grid_table(parts["grid"], record.where)
    return table[floats.decode(parts["packed"], entry.numel, 1, False, record.version)].reshape(entry.shape)


def _word(record: Record) -> np.dtype:
    """The numpy dtype of a word of the record's tensor."""
    return np.dtype(f"u{record.entry.width}")


_DECODERS: dict[int, Callable[[Record], np.ndarray]] = {
    sct.ZERO: _zeros,
    sct.RAW: _raw,
    sct.CONST: _constant,
    sct.INDEXED: _indexed,
    sct.SHORT: _indexed,
    sct.SLICED: from_slices,
    sct.SPARSE: _sparse,
    sct.CAST: _widened,
    sct.GRID: _from_grid,
}


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


def read_text(data: bytes, where: str, most: int | None = None) -> bytes:
    """The inverse of `text`.

    Args:
        data: The coded text.
        where: The name of the text, for messages.
        most: The most bytes to accept; None for no other limit than the format's.
    """
    reader = varint.Reader(data, where)
    kind = reader.byte()
    if kind == 0:
        return bytes(reader.take(reader.left))
    if kind != 1:
        raise reader.fail(f"text of kind {kind}, known kinds are 0 and 1")
    limit = 64 * len(data) if most is None else min(most, 64 * len(data))
    count = reader.varint(limit, "the length of a text")
    return static.decode(reader.take(reader.left), count, 256).astype(np.uint8).tobytes()

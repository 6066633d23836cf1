"""Pack words without loss: split them into byte planes and code each plane that gets smaller.

The exponents of floats are the redundant part. A rotation by one bit puts the exponent alone into the top byte (the
sign moves to the bottom); the other planes are nearly random and mostly stay raw. Short planes, and all planes with
`small`, are coded by the range coder. Long ones are coded by Huffman codes, which are much faster and hardly larger: in
Zstandard frames, with the bits in another order (`digits`), or by zlib where there is no Zstandard.

>>> import numpy as np
>>> words = np.linspace(0.5, 2, 1000, dtype=np.float32).view(np.uint32)
>>> data = encode(words, floating=True)
>>> bool((decode(data, 1000, 4, floating=True) == words).all()), len(data) < 4000
(True, True)
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from secateur.coding import digits, frames, static, varint
from secateur.coding.digits import FULL, LONG, POOR, RICH
from secateur.coding.room import Pieces, Room, array
from secateur.errors import FormatError

__all__ = ["CHUNK", "decode", "encode", "pieces_of"]

CHUNK = 1 << 22  # words coded with one set of tables
_RAW, _CODED, _DEFLATED = 0, 1, 2
_SAMPLED = 16  # one byte in this many of a long plane is sampled first
_PIECE = 1 << 15  # words split and rebuilt at a time: they stay in the cache


def encode(words: np.ndarray, floating: bool, small: bool = False) -> bytes:
    """Pack unsigned words.

    Args:
        words: Words of 1, 2, 4 or 8 bytes.
        floating: Whether they are the bits of floats.
        small: Use the range coder for long planes too: smaller and slower.
    """
    return bytes(pieces_of(words, floating, small))


def pieces_of(words: np.ndarray, floating: bool, small: bool = False, room: Room | None = None) -> Pieces:
    """As `encode`, the bytes not joined; some of them are in the room.

    Args:
        words: Words of 1, 2, 4 or 8 bytes.
        floating: Whether they are the bits of floats.
        small: Use the range coder for long planes too: smaller and slower.
        room: Memory for planes that are stored as they are; None takes new memory.
    """
    flat = words.reshape(-1)
    chunks = [flat[i : i + CHUNK] for i in range(0, len(flat), CHUNK)]
    if len(flat) >= LONG and not small and frames.available():
        packed = digits.pieces_of(chunks, floating, room)
        if packed is not None:
            return packed
    return Pieces(piece for chunk in chunks for piece in _encode_chunk(chunk, floating, small))


def decode(
    data: bytes | memoryview,
    count: int,
    width: int,
    floating: bool,
    version: int = 3,
    room: Room | None = None,
) -> np.ndarray:
    """The inverse of `encode`.

    Args:
        data: The packed bytes.
        count: How many words there are.
        width: Bytes of a word.
        floating: Whether the words are the bits of floats.
        version: The version of the file the bytes come from.
        room: Memory for the words; None takes new memory.
    """
    reader = varint.Reader(data, "packed numbers")
    if count > CHUNK * (len(data) + 1):
        raise FormatError(f"packed numbers: {count} of them cannot be in {len(data)} bytes")
    in_digits = version > 2 and data[:1] == bytes([digits.MARK])
    if in_digits:
        reader.byte()
    out = array(room, count, np.dtype(f"u{width}"))
    for start in range(0, count, CHUNK):
        if in_digits:
            digits.decode(reader, out[start : start + CHUNK], floating)
        else:
            _decode_chunk(reader, out[start : start + CHUNK], floating, version)
    reader.end()
    return out


def _encode_chunk(words: np.ndarray, floating: bool, small: bool) -> Iterator[bytes | memoryview]:
    for plane in _planes(words, floating)[::-1]:
        coded, coding = None, _CODED
        if plane.size >= LONG and not small:
            bound = static.entropy(plane[::_SAMPLED])
            if bound < POOR + 0.05:  # otherwise the sample is accurate enough
                bound = static.entropy(plane)
            if RICH < bound < POOR:
                coded, coding = _deflated(plane), _DEFLATED
            elif bound <= RICH:
                coded = static.encode(plane, 256)
        # The entropy is a lower bound: where even that saves nothing, coding would waste time.
        elif static.entropy(plane) < FULL if plane.size > 64 else plane.size > 8:
            coded = static.encode(plane, 256)
        if coded is not None and len(coded) + 1 < plane.size:
            yield from (bytes([coding]), varint.write(len(coded)), coded)
        else:
            yield from (bytes([_RAW]), plane.data)


def _decode_chunk(reader: varint.Reader, out: np.ndarray, floating: bool, version: int) -> None:
    count, width = len(out), out.dtype.itemsize
    planes = [_plane(reader, count, version) for _ in range(width)][::-1]
    scratch = np.empty(min(count, _PIECE), dtype=f"<u{width}")
    for start in range(0, count, _PIECE):
        piece = out[start : start + _PIECE]
        words = scratch[: len(piece)]
        columns = words.view(np.uint8).reshape(-1, width)
        for k, plane in enumerate(planes):
            columns[:, k] = plane[start : start + _PIECE]
        if floating:
            _rotate(words.astype(out.dtype, copy=False), width * 8 - 1, piece)
        else:
            piece[:] = words


def _plane(reader: varint.Reader, count: int, version: int) -> np.ndarray:
    """Read the next plane."""
    mode = reader.byte()
    if mode == _RAW:
        return np.frombuffer(reader.take(count), dtype=np.uint8)
    if mode == _CODED:
        return static.decode(reader.part("a byte plane"), count, 256).astype(np.uint8, copy=False)
    if mode == _DEFLATED and version > 1:
        return np.frombuffer(_inflated(reader.part("a byte plane"), count), dtype=np.uint8)
    raise reader.fail(f"a byte plane has coding {mode}, known codings are 0..{min(version, 2)}")


def _planes(words: np.ndarray, floating: bool) -> np.ndarray:
    """The bytes of all words as [width, count], lowest byte first."""
    count, width = len(words), words.dtype.itemsize
    planes = np.empty((width, count), dtype=np.uint8)
    scratch = np.empty(min(count, _PIECE), dtype=words.dtype)
    for start in range(0, count, _PIECE):
        piece = words[start : start + _PIECE]
        if floating:
            _rotate(piece, 1, scratch[: len(piece)])
            piece = scratch[: len(piece)]
        stored = np.ascontiguousarray(piece.astype(piece.dtype.newbyteorder("<"), copy=False))
        planes[:, start : start + _PIECE] = stored.view(np.uint8).reshape(-1, width).T
    return planes


def _rotate(words: np.ndarray, bits: int, out: np.ndarray) -> None:
    """Rotate words to the left, into `out`, which must not overlap `words`."""
    left, right = words.dtype.type(bits), words.dtype.type(words.dtype.itemsize * 8 - bits)
    np.left_shift(words, left, out=out)
    out |= words >> right


def _deflated(plane: np.ndarray) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return packer.compress(plane.data) + packer.flush()


def _inflated(data: memoryview, count: int) -> bytes:
    unpacker = zlib.decompressobj(-15)
    try:
        plane = unpacker.decompress(data, count)
        rest = unpacker.decompress(unpacker.unconsumed_tail, 1) if not unpacker.eof else b""
    except zlib.error as error:
        raise FormatError(f"a byte plane does not inflate: {error}") from None
    if len(plane) != count or rest or not unpacker.eof or unpacker.unused_data:
        raise FormatError(f"a byte plane does not inflate to exactly {count} bytes")
    return plane

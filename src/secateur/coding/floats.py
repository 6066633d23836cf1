"""Numbers without loss: split into byte planes, each coded by its own table where that makes it smaller.

The exponent of a float is the part that repeats itself. A rotation by one bit puts it alone into the top byte
(the sign goes to the bottom); the other planes are nearly random and mostly stay as they are. Long planes are
coded by zlib's Huffman codes, which is quicker by far and hardly larger; short ones, and all of them where
every byte counts, by the range coder.

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

from secateur.coding import static, varint
from secateur.errors import FormatError

__all__ = ["CHUNK", "decode", "encode"]

CHUNK = 1 << 22  # numbers coded with one set of tables
_RAW, _CODED, _DEFLATED = 0, 1, 2
_LONG = 1 << 16  # bytes of a plane from which speed goes before the last percent
_RICH = 2.0  # bits a byte; with fewer Huffman's whole bits cost too much


def encode(words: np.ndarray, floating: bool, small: bool = False) -> bytes:
    """Unsigned words of 1, 2, 4 or 8 bytes, as bytes; `small` takes the range coder for long planes too."""
    flat = words.reshape(-1)
    chunks = (flat[i : i + CHUNK] for i in range(0, len(flat), CHUNK))
    return b"".join(piece for chunk in chunks for piece in _encode_chunk(chunk, floating, small))


def decode(data: bytes | memoryview, count: int, width: int, floating: bool, version: int = 2) -> np.ndarray:
    """The inverse of `encode`: `count` words of `width` bytes; `version` is that of the file."""
    reader = varint.Reader(data, "packed numbers")
    if count > CHUNK * (len(data) + 1):
        raise FormatError(f"packed numbers: {count} of them cannot be in {len(data)} bytes")
    out = np.empty(count, dtype=f"u{width}")
    for start in range(0, count, CHUNK):
        _decode_chunk(reader, out[start : start + CHUNK], floating, version)
    reader.end()
    return out


def _encode_chunk(words: np.ndarray, floating: bool, small: bool) -> Iterator[bytes | memoryview]:
    width = words.dtype.itemsize
    if floating:
        words = _rotated(words, 1)
    bytes_of = np.ascontiguousarray(words.astype(words.dtype.newbyteorder("<"), copy=False)).view(np.uint8)
    for k in reversed(range(width)):
        plane = np.ascontiguousarray(bytes_of[k::width])
        coded, way, bound = None, _CODED, static.entropy(plane)
        # The entropy is a bound: where even that saves nothing, coding would only cost time.
        if bound < 7.97 if plane.size > 64 else plane.size > 8:
            if plane.size >= _LONG and bound > _RICH and not small:
                coded, way = _deflated(plane), _DEFLATED
            else:
                coded = static.encode(plane, 256)
        if coded is not None and len(coded) + 1 < plane.size:
            yield from (bytes([way]), varint.write(len(coded)), coded)
        else:
            yield from (bytes([_RAW]), plane.data)


def _decode_chunk(reader: varint.Reader, out: np.ndarray, floating: bool, version: int) -> None:
    count, width = len(out), out.dtype.itemsize
    target = out if out.dtype.newbyteorder("<") == out.dtype else np.empty(count, dtype=f"<u{width}")
    planes = target.view(np.uint8).reshape(count, width)
    for k in reversed(range(width)):
        mode = reader.byte()
        if mode == _RAW:
            planes[:, k] = np.frombuffer(reader.take(count), dtype=np.uint8)
        elif mode == _CODED:
            planes[:, k] = static.decode(reader.part("a byte plane"), count, 256)
        elif mode == _DEFLATED and version > 1:
            planes[:, k] = np.frombuffer(_inflated(reader.part("a byte plane"), count), dtype=np.uint8)
        else:
            raise reader.fail(f"a byte plane is coded in way {mode}, known ways are 0..{min(version, 2)}")
    if target is not out:
        out[:] = target
    if floating:
        out[:] = _rotated(out, width * 8 - 1)


def _rotated(words: np.ndarray, bits: int) -> np.ndarray:
    """Words rotated left."""
    left, right = words.dtype.type(bits), words.dtype.type(words.dtype.itemsize * 8 - bits)
    out = words << left
    out |= words >> right
    return out


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

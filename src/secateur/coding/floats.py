"""Numbers without loss: split into byte planes, each coded by its own table where that makes it smaller.

The exponent of a float is the part that repeats itself. A rotation by one bit puts it alone into the top byte
(the sign goes to the bottom); the other planes are nearly random and mostly stay as they are.

>>> import numpy as np
>>> words = np.linspace(0.5, 2, 1000, dtype=np.float32).view(np.uint32)
>>> data = encode(words, floating=True)
>>> bool((decode(data, 1000, 4, floating=True) == words).all()), len(data) < 4000
(True, True)
"""

from __future__ import annotations

import numpy as np

from secateur.coding import static, varint
from secateur.errors import FormatError

__all__ = ["CHUNK", "decode", "encode"]

CHUNK = 1 << 22  # numbers coded with one set of tables
_RAW, _CODED = 0, 1


def encode(words: np.ndarray, floating: bool) -> bytes:
    """Unsigned words of 1, 2, 4 or 8 bytes, as bytes."""
    flat = words.reshape(-1)
    return b"".join(_encode_chunk(flat[i : i + CHUNK], floating) for i in range(0, len(flat), CHUNK))


def decode(data: bytes | memoryview, count: int, width: int, floating: bool) -> np.ndarray:
    """The inverse of `encode`: `count` words of `width` bytes."""
    reader = varint.Reader(data, "packed numbers")
    if count > CHUNK * (len(data) + 1):
        raise FormatError(f"packed numbers: {count} of them cannot be in {len(data)} bytes")
    out = np.empty(count, dtype=f"u{width}")
    for start in range(0, count, CHUNK):
        chunk = out[start : start + CHUNK]
        chunk[:] = _decode_chunk(reader, len(chunk), width, floating)
    reader.end()
    return out


def _encode_chunk(words: np.ndarray, floating: bool) -> bytes:
    bits = words.dtype.itemsize * 8
    if floating:
        one, rest = words.dtype.type(1), words.dtype.type(bits - 1)
        words = (words << one) | (words >> rest)
    planes = np.ascontiguousarray(words.astype(words.dtype.newbyteorder("<"))).view(np.uint8)
    out = []
    for k in reversed(range(words.dtype.itemsize)):
        plane = np.ascontiguousarray(planes[k :: words.dtype.itemsize])
        # The entropy is a bound: where even that saves nothing, coding would only cost time.
        worth = static.entropy(plane) < 7.97 if plane.size > 64 else plane.size > 8
        coded = static.encode(plane, 256) if worth else None
        if coded is not None and len(coded) + 1 < plane.size:
            out.append(bytes([_CODED]) + varint.write(len(coded)) + coded)
        else:
            out.append(bytes([_RAW]) + plane.tobytes())
    return b"".join(out)


def _decode_chunk(reader: varint.Reader, count: int, width: int, floating: bool) -> np.ndarray:
    planes = np.empty((count, width), dtype=np.uint8)
    for k in reversed(range(width)):
        mode = reader.byte()
        if mode == _RAW:
            planes[:, k] = np.frombuffer(reader.take(count), dtype=np.uint8)
        elif mode == _CODED:
            planes[:, k] = static.decode(reader.part("a byte plane"), count, 256)
        else:
            raise reader.fail(f"a byte plane is coded in way {mode}, known ways are 0 and 1")
    words = planes.reshape(-1).view(f"<u{width}").astype(f"u{width}", copy=False)
    if floating:
        one, rest = words.dtype.type(1), words.dtype.type(width * 8 - 1)
        words = (words >> one) | (words << rest)
    return words

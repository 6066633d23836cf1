"""The CRC-32 of zlib, by the compiled library where the processor multiplies without carries: the same number.

zlib's own goes at one to seven gigabytes a second, depending on who built it; `crc.c` at 10 to 27.

>>> crc32(b"123456789") == zlib.crc32(b"123456789") == 0xCBF43926
True
"""

from __future__ import annotations

import ctypes
import zlib

import numpy as np

from secateur.coding import compiled, native

__all__ = ["crc32"]

_LONG = 1 << 14  # bytes from which a call of the library pays off
_WORTH_IT = 1 << 26  # bytes after which the library is loaded from the cache for the checksum alone
_seen = [0]  # bytes so far


def crc32(data: bytes | memoryview, value: int = 0) -> int:
    """The checksum after these bytes.

    Args:
        data: The bytes, in one piece.
        value: The checksum of what is before them.
    """
    view = memoryview(data)
    library = _library(view.nbytes) if view.nbytes >= _LONG else None
    if library is None:
        return zlib.crc32(view, value)
    whole = np.frombuffer(view, dtype=np.uint8)
    return int(library.secateur_crc(value, whole.ctypes.data, whole.size))


def _library(nbytes: int) -> ctypes.CDLL | None:
    """The library, if it is loaded, or its checksum is worth loading it; None where zlib is to be used."""
    _seen[0] += nbytes
    if not compiled.available():
        return None
    if not native.is_loaded() and (_seen[0] < _WORTH_IT or native.cached() is None):
        return None
    library = native.load()
    return library if library is not None and library.secateur_has_crc() else None

"""One byte plane as one Zstandard frame (RFC 8878), checked before it is decompressed.

Python's own `compression.zstd` (from 3.14 on) or the `zstandard` package does the coding. The headers of a frame are
compared with what is expected first, so that a hostile frame is refused before any memory is allocated for it.

>>> import numpy as np
>>> plane = np.random.default_rng(0).binomial(20, 0.5, 70_000).astype(np.uint8)
>>> if available():
...     frame = compress(plane)
...     assert (decompress(frame, 70_000) == plane).all() and len(frame) < 30_000
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from types import ModuleType

import numpy as np

from secateur.errors import FormatError, MissingExtraError

__all__ = ["available", "check", "compress", "decompress"]

_Tools = tuple[Callable[[memoryview], bytes], Callable[[bytes | memoryview, int], bytes]]
_MAGIC = b"\x28\xb5\x2f\xfd"
_MOST_WINDOW = 1 << 23  # what RFC 8878 asks of every reader
_CONTENT_SIZE = {0: 1, 1: 2, 2: 4, 3: 8}  # bytes of the content's size, by the top two bits of the descriptor
_RAW, _RLE, _RESERVED = 0, 1, 3

# Matches cost more than they save in nearly random bytes: a small table of long matches finds almost none, which leaves
# the Huffman code. A window of 128 KiB, which is the longest block, gives
# every block tables of its own.
_SETTINGS = {"window_log": 17, "hash_log": 6, "chain_log": 6, "search_log": 1, "min_match": 7}


def available() -> bool:
    """Whether a package that writes and reads frames is installed."""
    return bool(_tools())


def compress(plane: np.ndarray) -> bytes:
    """Compress bytes to a frame; its bytes may differ between builds of Zstandard, its content never."""
    tools = _tools()
    if not tools:
        raise _missing()
    return tools[0](np.ascontiguousarray(plane).data)


def decompress(frame: bytes | memoryview, count: int) -> np.ndarray:
    """Decompress a frame of exactly `count` bytes."""
    check(frame, count)
    tools = _tools()
    if not tools:
        raise _missing()
    plane = np.frombuffer(tools[1](frame, count), dtype=np.uint8)
    if plane.size != count:
        raise FormatError(f"a Zstandard frame holds {plane.size} bytes, expected {count}")
    return plane


def check(frame: bytes | memoryview, count: int) -> None:
    """Raise unless the headers say that this is exactly one frame of `count` bytes.

    >>> check(b"\\x28\\xb5\\x2f\\xfd\\x20\\x05\\x29\\x00\\x00hello", 5)
    >>> check(b"\\x28\\xb5\\x2f\\xfd\\x20\\x05\\x29\\x00\\x00hello!", 5)
    Traceback (most recent call last):
    ...
    secateur.errors.FormatError: a Zstandard frame is followed by 1 byte
    """
    data = memoryview(frame)
    if bytes(data[:4]) != _MAGIC:
        raise FormatError(f"expected a Zstandard frame, found {bytes(data[:4]).hex() or 'nothing'}")
    if len(data) < 5:
        raise FormatError("a Zstandard frame ends within its header")
    descriptor = data[4]
    size, single = _CONTENT_SIZE[descriptor >> 6], descriptor >> 5 & 1
    if descriptor & 0b11111:
        raise FormatError(
            f"a Zstandard frame with descriptor {descriptor:#04x}: no dictionary, checksum or other bit"
        )
    if not single and size == 1:
        raise FormatError("a Zstandard frame does not say how long its content is")
    at = 5 if single else 6
    if len(data) < at + size:
        raise FormatError("a Zstandard frame ends within its header")
    if not single and ((8 + (data[5] & 7)) << (7 + (data[5] >> 3))) > _MOST_WINDOW:
        raise FormatError(f"a Zstandard frame with a window of more than {_MOST_WINDOW} bytes")
    claimed = int.from_bytes(data[at : at + size], "little") + (256 if size == 2 else 0)
    if claimed != count:
        raise FormatError(f"a Zstandard frame claims {claimed} bytes, expected {count}")
    at, last = at + size, 0
    while not last:
        header = int.from_bytes(data[at : at + 3], "little")
        last, kind, length = header & 1, header >> 1 & 3, header >> 3
        if at + 3 > len(data) or kind == _RESERVED:
            raise FormatError(f"a Zstandard frame has no block at byte {at}")
        at += 3 + (1 if kind == _RLE else length)
    if at > len(data):
        raise FormatError(f"a Zstandard frame ends {_bytes(at - len(data))} too early")
    if at < len(data):
        raise FormatError(f"a Zstandard frame is followed by {_bytes(len(data) - at)}")


def _bytes(count: int) -> str:
    return f"{count} byte{'s' if count > 1 else ''}"


@cache
def _tools() -> _Tools | tuple[()]:
    """(compress, decompress), or an empty tuple where no package is installed."""
    for name, tools in (("compression.zstd", _of_python), ("zstandard", _of_package)):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        return tools(module)
    return ()


def _of_python(module: ModuleType) -> _Tools:
    names = module.CompressionParameter
    options = {getattr(names, name): value for name, value in _SETTINGS.items()}
    options |= {names.compression_level: 1, names.strategy: module.Strategy.fast}

    def unpack(frame: bytes | memoryview, count: int) -> bytes:
        unpacker = module.ZstdDecompressor()
        try:
            plane = unpacker.decompress(frame, count)
            rest = b"" if unpacker.eof else unpacker.decompress(b"", 1)
        except module.ZstdError as error:
            raise _damaged(error) from None
        if rest or not unpacker.eof:
            raise FormatError(f"a Zstandard frame does not end after {count} bytes")
        return plane

    return lambda plane: module.ZstdCompressor(options=options).compress(
        plane, module.ZstdCompressor.FLUSH_FRAME
    ), unpack


def _of_package(module: ModuleType) -> _Tools:
    settings = module.ZstdCompressionParameters(
        compression_level=1, strategy=module.STRATEGY_FAST, write_content_size=True, **_SETTINGS
    )

    def unpack(frame: bytes | memoryview, count: int) -> bytes:
        try:
            return module.ZstdDecompressor().decompress(frame, max_output_size=count)
        except module.ZstdError as error:
            raise _damaged(error) from None

    return lambda plane: module.ZstdCompressor(compression_params=settings).compress(plane), unpack


def _missing() -> MissingExtraError:
    return MissingExtraError(
        "this file holds Zstandard frames, which need Python 3.14 or the zstandard package: pip install zstandard"
    )


def _damaged(error: Exception) -> FormatError:
    return FormatError(f"a Zstandard frame cannot be read: {error}")

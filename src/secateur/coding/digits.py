"""Pack words without loss, sixteen bits at a time: compressible byte planes as Zstandard frames, the rest raw.

A word is split into digits of sixteen bits. The sign of a float moves below its exponent, so that the exponent is a
byte of its own, which is where most of the redundancy is. Everything else stays in place, so that a few operations on
whole digits rebuild the words.

>>> import numpy as np
>>> from secateur.coding import varint
>>> words = np.random.default_rng(0).normal(size=70_000).astype(np.float32).view(np.uint32)
>>> data = encode([words], floating=True)
>>> if data is not None:  # without Zstandard, `floats` is used instead
...     out = np.empty_like(words)
...     decode(varint.Reader(data[1:], "numbers"), out, floating=True)
...     assert (out == words).all() and len(data) < 0.87 * words.nbytes
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from secateur.coding import compiled, frames, native, static, varint
from secateur.coding.room import Pieces, Room, array

__all__ = ["FULL", "LOADING", "LONG", "MARK", "POOR", "RICH", "decode", "encode", "pieces_of"]

LONG = 1 << 16  # bytes of a plane from which speed matters more than the last percent
MARK = 3  # the first byte of numbers in this layout; those in the older one begin with 0, 1 or 2
_RAW, _CODED, _FRAMED, _WHOLE = 0, 1, 3, 4
# Entropies in bits a byte. Below RICH, Huffman's whole bits cost too much; above POOR, coding a long plane saves too
# little for the time; above FULL, coding would not make a short plane smaller.
RICH, POOR, FULL = 2.0, 7.93, 7.97
LOADING = 1 << 26
"""Words that a process codes before it compiles the passes over them."""
_coded = [0]  # words so far
_SAMPLE = 1 << 15  # bytes of a plane from which its coding is chosen
_PIECE = 1 << 19  # words rebuilt at a time
_SIGN_AND_REST = np.int16(-0x8000 | 0x7F)  # the bits of a digit that are not exponent

_Codings = tuple[int, ...]  # the codings of a digit: one for the whole, or one for each of its bytes
_Digit = tuple[np.ndarray, ...]  # the digits as they are, or their upper and their lower bytes


def encode(chunks: Sequence[np.ndarray], floating: bool) -> bytes | None:
    """Pack chunks of unsigned words; None if no plane of any chunk is smaller as a frame."""
    packed = pieces_of(chunks, floating)
    return None if packed is None else bytes(packed)


def pieces_of(chunks: Sequence[np.ndarray], floating: bool, room: Room | None = None) -> Pieces | None:
    """As `encode`, the bytes not joined; some of them are in the room."""
    found = [_codings(chunk, floating) for chunk in chunks]
    if not any(_FRAMED in codings for one in found for codings in one):
        return None
    coded = (_encode_chunk(chunk, floating, one, room) for chunk, one in zip(chunks, found, strict=True))
    return Pieces((bytes([MARK]), *(piece for pieces in coded for piece in pieces)))


def decode(reader: varint.Reader, out: np.ndarray, floating: bool) -> None:
    """Read the next chunk into `out`, which has as many words; the mark has been read already."""
    count, width = len(out), out.dtype.itemsize
    digits = [_read(reader, count, width) for _ in range(max(1, width // 2))]
    if (library := _library(out)) is not None:
        library.secateur_join(out.ctypes.data, _pointers(digits), count, width, floating)
        return
    size = min(count, _PIECE)
    lower, narrow = np.empty(size, dtype=np.uint16), np.empty(size, dtype=np.uint16)
    wide, wider = (np.empty(size if width > 2 else 0, dtype=out.dtype) for _ in range(2))
    for start in range(0, count, _PIECE):
        piece = out[start : start + _PIECE]
        size = len(piece)
        parts = [tuple(plane[start : start + size] for plane in planes) for planes in digits]
        if width == 1:
            piece[:] = parts[0][0]
            if floating:
                _turn(piece, 7)
        elif width == 2:
            _join(parts[0], floating, lower[:size], piece)
        else:
            words, next_ = wide[:size], wider[:size]
            for number, part in enumerate(parts):
                if len(part) > 1:
                    _join(part, floating and number == 0, lower[:size], narrow[:size])
                # Several times as fast as operations on words of two widths.
                digit = part[0] if len(part) == 1 else narrow[:size]
                if not number:
                    np.copyto(words, digit)
                    continue
                into = next_ if number < len(parts) - 1 else piece
                np.left_shift(words, words.dtype.type(16), out=words)
                np.copyto(into, digit)
                np.bitwise_or(words, into, out=words if into is next_ else piece)


def _library(words: np.ndarray) -> ctypes.CDLL | None:
    """The compiled passes over these words; None where numpy makes them, which gives the same bytes.

    Compiling takes about as long as numpy takes for a few hundred million words, so where the result is not
    in the cache it is done only by a process that has coded `LOADING` words.
    """
    plain = words.flags.c_contiguous and words.flags.aligned and words.dtype.isnative
    if sys.byteorder != "little" or not plain or not compiled.available():
        return None
    _coded[0] += words.size
    return native.load() if _coded[0] >= LOADING or native.cached() is not None else None


def _pointers(digits: list[_Digit]) -> ctypes.Array[ctypes.c_void_p]:
    """Where the planes of the digits lie, two for each: the second is null where there is one."""
    places = [place for planes in digits for place in (*(plane.ctypes.data for plane in planes), None)[:2]]
    return (ctypes.c_void_p * len(places))(*places)


def _encode_chunk(
    words: np.ndarray, floating: bool, found: list[_Codings], room: Room | None
) -> Iterator[bytes | memoryview]:
    for codings, planes in zip(found, _split(words, floating, found, room), strict=True):
        if codings == (_WHOLE,):
            yield from (bytes([_WHOLE]), planes[0].astype("<u2", copy=False).data)
            continue
        for coding, plane in zip(codings, planes, strict=True):
            coded = None
            if coding != _RAW:
                coded = frames.compress(plane) if coding == _FRAMED else static.encode(plane, 256)
            if coded is not None and len(coded) + 4 < plane.size:
                yield from (bytes([coding]), varint.write(len(coded)), coded)
            else:
                yield from (bytes([_RAW]), plane.data)


def _codings(words: np.ndarray, floating: bool) -> list[_Codings]:
    """Choose the coding of every digit by a sample of its bytes."""
    sample = np.ascontiguousarray(words[:: max(1, len(words) // _SAMPLE)])
    pair: _Codings = (_RAW,) if words.dtype.itemsize == 1 else (_RAW, _RAW)
    bytes_of = _split(sample, floating, [pair] * max(1, words.dtype.itemsize // 2))
    found = [tuple(_coding(plane, len(words)) for plane in planes) for planes in bytes_of]
    if any(_FRAMED in codings for codings in found):
        # one byte all along is a few bytes of a frame, and read at once
        found = [
            tuple(
                _FRAMED if coding == _CODED and not np.ptp(plane) else coding
                for coding, plane in zip(codings, planes, strict=True)
            )
            for codings, planes in zip(found, bytes_of, strict=True)
        ]
    return [(_WHOLE,) if codings == (_RAW, _RAW) else codings for codings in found]


def _entropy(plane: np.ndarray) -> float:
    """As `static.entropy`, of bytes."""
    if (library := _library(plane)) is None or plane.size >= native.COUNTABLE:
        return static.entropy(plane)
    counts = np.empty(256, dtype=np.int64)
    library.secateur_count(plane.ctypes.data, plane.size, counts.ctypes.data)
    share = counts[counts > 0] / plane.size
    return float(-(share * np.log2(share)).sum()) + 0.0


def _coding(sample: np.ndarray, count: int) -> int:
    bound = _entropy(sample)
    if count < LONG:
        return _CODED if bound < FULL else _RAW
    if bound >= POOR:
        return _RAW
    return _FRAMED if bound > RICH else _CODED


def _split(
    words: np.ndarray, floating: bool, codings: list[_Codings], room: Room | None = None
) -> list[_Digit]:
    """Split words into digits, most significant first: whole, or as their upper and their lower bytes."""
    count, width = len(words), words.dtype.itemsize
    if width == 1:
        plane = array(room, count, words.dtype)
        if (library := _library(words)) is not None:
            library.secateur_split(words.ctypes.data, _pointers([(plane,)]), count, width, floating)
            return [(plane,)]
        np.copyto(plane, words)
        if floating:
            _turn(plane, 1)
        return [(plane,)]
    out = [
        (array(room, count, np.dtype("u2")),)
        if coding == (_WHOLE,)
        else tuple(array(room, count, np.dtype("u1")) for _ in range(2))
        for coding in codings
    ]
    if (library := _library(words)) is not None:
        library.secateur_split(words.ctypes.data, _pointers(out), count, width, floating)
        return out
    for start in range(0, count, _PIECE):
        piece = words[start : start + _PIECE]
        for number, planes in enumerate(out):
            shift = 16 * (len(out) - 1 - number)
            digit = (piece >> piece.dtype.type(shift) if shift else piece).astype(np.uint16, copy=False)
            parts = tuple(plane[start : start + _PIECE] for plane in planes)
            if len(parts) == 1:
                parts[0][:] = digit
            else:
                _halve(digit, floating and number == 0, *parts)
    return out


def _halve(digit: np.ndarray, first_of_float: bool, upper: np.ndarray, lower: np.ndarray) -> None:
    """Split digits into two bytes each: the halves, or for a float's first digit the exponent and the rest."""
    np.copyto(upper, digit >> np.uint16(7 if first_of_float else 8), casting="unsafe")
    if first_of_float:
        digit = digit & _SIGN_AND_REST.view(np.uint16)
        digit *= np.uint16(257)  # put the sign above the rest, eight bits further up
        digit >>= np.uint16(8)
    np.copyto(lower, digit, casting="unsafe")


def _join(parts: _Digit, first_of_float: bool, scratch: np.ndarray, out: np.ndarray) -> None:
    """The inverse of `_halve`, into `out`."""
    if len(parts) == 1:
        out[:] = parts[0]
        return
    upper, lower = parts
    np.copyto(out, upper)
    np.multiply(out, np.uint16(128 if first_of_float else 256), out=out)
    if first_of_float:
        rest = scratch.view(np.int16)
        np.copyto(rest, lower.view(np.int8))  # sign extension fills the upper byte with the sign
        np.bitwise_and(rest, _SIGN_AND_REST, out=rest)
    else:
        np.copyto(scratch, lower)
    np.bitwise_or(out, scratch, out=out)


def _turn(plane: np.ndarray, bits: int) -> None:
    """Rotate bytes to the left, in place."""
    right = plane >> np.uint8(8 - bits)
    plane <<= np.uint8(bits)
    plane |= right


def _read(reader: varint.Reader, count: int, width: int) -> _Digit:
    """Read the next digit."""
    coding = reader.byte()
    if coding == _WHOLE and width > 1:
        return (np.frombuffer(reader.take(2 * count), dtype="<u2"),)
    upper = _plane(reader, coding, count)
    return (upper,) if width == 1 else (upper, _plane(reader, reader.byte(), count))


def _plane(reader: varint.Reader, coding: int, count: int) -> np.ndarray:
    if coding == _RAW:
        return np.frombuffer(reader.take(count), dtype=np.uint8)
    if coding == _CODED:
        return static.decode(reader.part("a byte plane"), count, 256).astype(np.uint8, copy=False)
    if coding == _FRAMED:
        return frames.decompress(reader.part("a byte plane"), count)
    raise reader.fail(f"a byte plane has coding {coding}, known codings are 0, 1 and 3")

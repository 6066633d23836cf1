"""Update a CRC-32 when earlier bytes change, without reading the bytes between.

A CRC-32 is linear: if two checksums differ, then after the same further bytes they differ by an amount that depends
only on the number of those bytes. So the version of a file, its fifth byte, can be written last.

>>> import zlib
>>> late = zlib.crc32(b"the same", zlib.crc32(b"one"))
>>> late ^ carried(zlib.crc32(b"one") ^ zlib.crc32(b"two"), len(b"the same")) == zlib.crc32(b"twothe same")
True
"""

from __future__ import annotations

__all__ = ["carried"]

_POLYNOMIAL = 0xEDB88320  # bits mirrored: the top bit is the constant term
_ONE = 1 << 31


def carried(difference: int, count: int) -> int:
    """The difference of two checksums after `count` further bytes, the same for both."""
    for power in _POWERS:
        if not count:
            break
        if count & 1:
            difference = _product(difference, power)
        count >>= 1
    return difference


def _product(one: int, other: int) -> int:
    """The product of two polynomials over GF(2), modulo the checksum's polynomial."""
    out = 0
    while one:
        if one & _ONE:
            out ^= other
        one = one << 1 & 0xFFFFFFFF
        other = other >> 1 ^ (_POLYNOMIAL if other & 1 else 0)
    return out


def _powers() -> list[int]:
    """The factors for 1, 2, 4, ... bytes, up to 2**62."""
    out = [1 << (31 - 8)]
    while len(out) < 63:
        out.append(_product(out[-1], out[-1]))
    return out


_POWERS = _powers()

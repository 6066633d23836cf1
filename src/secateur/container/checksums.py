"""What a CRC-32 becomes when bytes far before it change, without reading what lies between.

A CRC-32 is linear: if two starts differ by some bits, so do the ends after the same bytes, and by what depends on
their number alone. So the version of a file, its fifth byte, can be written last.

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
    """The difference between two checksums `count` bytes later, where both went over the same bytes."""
    for power in _POWERS:
        if not count:
            break
        if count & 1:
            difference = _product(difference, power)
        count >>= 1
    return difference


def _product(one: int, other: int) -> int:
    """Of two polynomials over bits, modulo that of the checksum."""
    out = 0
    while one:
        if one & _ONE:
            out ^= other
        one = one << 1 & 0xFFFFFFFF
        other = other >> 1 ^ (_POLYNOMIAL if other & 1 else 0)
    return out


def _powers() -> list[int]:
    """What 1, 2, 4, ... bytes multiply by, for numbers of bytes up to 2**63."""
    out = [1 << (31 - 8)]
    while len(out) < 63:
        out.append(_product(out[-1], out[-1]))
    return out


_POWERS = _powers()

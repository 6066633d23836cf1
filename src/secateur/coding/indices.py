"""Whole-number tensors as one coded stream: level numbers of a codebook, with the zeros among them.

A tensor of levels 0..size-1 in ascending order of value; `zero` says which level is the value 0.0 (None:
there is none). Zeros, signs and magnitudes are coded jointly, so the positions of pruned weights cost what
entropy says.

>>> import numpy as np
>>> levels = np.array([[1, 1, 0, 2], [1, 2, 1, 1]])
>>> data = encode(levels, size=3, zero=1)
>>> decode(data, levels.shape, size=3, zero=1).tolist() == levels.tolist()
True
"""

from __future__ import annotations

from math import prod

import numpy as np

from secateur.coding import static
from secateur.errors import FormatError

__all__ = ["DEFAULT", "MODELS", "decode", "encode", "floor"]

MODELS = {"fast": 0}
DEFAULT = "fast"


def floor(numel: int) -> int:
    """The fewest bytes a stream of this many levels may have, so that a short file cannot ask for endless work."""
    return max(0, (numel - 4096 + 127) // 128)


def encode(levels: np.ndarray, size: int, zero: int | None, model: str = "fast") -> bytes:
    """The stream: one byte that names the model, then what the model writes."""
    data = bytes([MODELS[model]]) + static.encode(levels, size)
    return data + bytes(max(0, floor(levels.size) - len(data)))


def decode(data: bytes | memoryview, shape: tuple[int, ...], size: int, zero: int | None) -> np.ndarray:
    """The inverse of `encode`, as int32."""
    numel = prod(shape)
    if len(data) < max(1, floor(numel)):
        raise FormatError(
            f"a stream of {numel} levels has at least {max(1, floor(numel))} bytes, got {len(data)}"
        )
    data = memoryview(data)
    body = bytes(data[1:])
    if len(data) <= floor(numel):
        body = body.rstrip(b"\0")
    if data[0] == MODELS["fast"]:
        return static.decode(body, numel, size).reshape(shape)
    raise FormatError(f"a stream names model {data[0]}, known models are {sorted(MODELS.values())}")

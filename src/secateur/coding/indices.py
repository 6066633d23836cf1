"""Code a tensor of levels, the indices into its codebook, as one stream.

Levels are 0..size-1 in ascending order of value; `zero` is the level whose value is 0.0, or None. Zeros, signs and
magnitudes are coded together, so that the positions of pruned weights take no more bits than their entropy.

>>> import numpy as np
>>> levels = np.array([[1, 1, 0, 2], [1, 2, 1, 1]])
>>> data = encode(levels, size=3, zero=1)
>>> decode(data, levels.shape, size=3, zero=1).tolist() == levels.tolist()
True
"""

from __future__ import annotations

from math import prod

import numpy as np

from secateur.coding import mixed, static
from secateur.coding.mixed import MixerBank
from secateur.errors import FormatError

__all__ = ["DEFAULT", "MODELS", "MixerBank", "decode", "encode", "floor"]

# name -> (which contexts, how fine the blocks are); "fast" has none
MODELS = {"fast": ("", 0), "mixed": ("plain", 10), "strong": ("rich", 7)}
DEFAULT = "mixed"


def floor(numel: int) -> int:
    """The fewest bytes a stream of `numel` levels may have, which bounds the work a short file can ask for."""
    return max(1, (numel - 4096 + 127) // 128)


def _sides(size: int, zero: int | None) -> tuple[int, int]:
    """How many levels lie below and above zero; without a zero level, below and above the middle."""
    if zero is None:
        return size // 2, size - size // 2
    return zero, size - 1 - zero


def encode(
    levels: np.ndarray, size: int, zero: int | None, model: str = DEFAULT, memory: MixerBank | None = None
) -> bytes:
    """Code levels: one byte that names the model, then the model's stream.

    Args:
        levels: The levels.
        size: How many values the codebook has.
        zero: The level whose value is 0.0, or None.
        model: `fast` uses one table, `mixed` learns contexts, `strong` learns more contexts in finer steps and takes
            about six times as long.
        memory: What the model learnt from earlier tensors; the decoder must be given the same. None starts with an
            empty one.
    """
    below, above = _sides(size, zero)
    kind, grain = MODELS[model]
    if kind and max(below, above) <= mixed.MOST_SIDE:
        memory = MixerBank() if memory is None else memory
        data = mixed.encode(levels, below, above, memory, zero is not None, grain, kind)
    else:
        data = b"\0" + static.encode(levels, size)
    return data + bytes(max(0, floor(levels.size) - len(data)))


def decode(
    data: bytes | memoryview,
    shape: tuple[int, ...],
    size: int,
    zero: int | None,
    memory: MixerBank | None = None,
) -> np.ndarray:
    """The inverse of `encode`: levels of the given shape, which are all below `size`."""
    numel = prod(shape)
    least = floor(numel)
    if len(data) < least:
        raise FormatError(f"a stream of {numel} levels has at least {least} bytes, got {len(data)}")
    body = bytes(data[1:])
    if len(data) == least:
        body = body.rstrip(b"\0")
    if data[0] == 0:
        return static.decode(body, numel, size).astype(np.int32, copy=False).reshape(shape)
    memory = MixerBank() if memory is None else memory
    old = data[0] == 1
    if memory.version == 1 and not old:
        raise FormatError(f"a stream names model {data[0]}, files of version 1 know models 0 and 1")
    below, above = _sides(size, zero)
    if max(below, above) > mixed.MOST_SIDE:
        raise FormatError(
            f"the mixed model has at most {mixed.MOST_SIDE} levels a side, got {below} and {above}"
        )
    rest = body if old else bytes(data[:1]) + body
    return mixed.decode(rest, shape, below, above, memory, zero is not None, old)

"""The strong model: zero, sign and magnitude of every weight as bits, each with a mixed probability.

The same walk codes and decodes: `coin(bits, probabilities)` writes the bits it is given, or reads them where
it is given none. A `Memory` carries what was learnt from one tensor to the next of the same section.

>>> import numpy as np
>>> levels = np.random.default_rng(0).integers(0, 3, (8, 4, 3, 3))
>>> data = encode(levels, 1, 1, Memory())
>>> bool((decode(data, levels.shape, 1, 1, Memory()) == levels).all())
True
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from secateur.coding import planes
from secateur.coding.mixing import Mixer
from secateur.coding.range_coder import Decoder, Encoder
from secateur.errors import FormatError

__all__ = ["MOST_SIDE", "Memory", "decode", "encode"]

MOST_SIDE = 1024  # the most levels on one side of zero
_MOST_UNARY = 6
_RICH = 2  # so many top bits of a magnitude have all contexts
_NODES = 64
_LEAST_GRAIN, _MOST_GRAIN = 8, 14

Coin = Callable[[np.ndarray | None, np.ndarray], np.ndarray]


class Memory:
    """The mixers of all decisions, by name; made when first needed."""

    def __init__(self) -> None:
        self._mixers: dict[str, Mixer] = {}

    def mixer(self, name: str, nodes: int, sizes: tuple[int, ...]) -> Mixer:
        """The mixer of one kind of decision."""
        if name not in self._mixers:
            self._mixers[name] = Mixer(nodes, sizes)
        return self._mixers[name]

    def next_tensor(self) -> None:
        """Old counts become hints."""
        for mixer in self._mixers.values():
            mixer.next_tensor()


def encode(
    levels: np.ndarray, below: int, above: int, memory: Memory, zero: bool = True, grain: int = 10
) -> bytes:
    """Levels 0..size-1 with `below` of them under zero and `above` over it; `zero` False: no level is zero.

    The first byte says how magnitudes become bits and how large the blocks are (about 2**grain weights,
    8..14).
    """
    signed = levels.astype(np.int64) - below
    if not zero:
        signed += signed >= 0
    unary = _unary(np.bincount(np.abs(signed).reshape(-1), minlength=max(below, above) + 1))
    head = 1 + unary + 8 * (grain - _LEAST_GRAIN)
    encoder = Encoder()

    def coin(bits: np.ndarray | None, probabilities: np.ndarray) -> np.ndarray:
        assert bits is not None
        encoder.bits(bits, probabilities)
        return bits

    _walk(planes.layout(levels.shape), below, above, zero, unary, grain, coin, memory, signed)
    return bytes([head]) + encoder.finish()


def decode(
    data: bytes | memoryview,
    shape: tuple[int, ...],
    below: int,
    above: int,
    memory: Memory,
    zero: bool = True,
) -> np.ndarray:
    """The inverse of `encode`, as int64."""
    head = data[0] - 1 if len(data) else -1
    unary, grain = head % 8, head // 8 + _LEAST_GRAIN
    if head < 0 or unary > _MOST_UNARY or grain > _MOST_GRAIN:
        raise FormatError("a stream of levels starts with a byte that is not known")
    decoder = Decoder(data[1:])
    plan = planes.layout(shape)
    signed = _walk(plan, below, above, zero, unary, grain, lambda _, odds: decoder.bits(odds), memory, None)
    decoder.finish()
    levels = plan.tensor(signed, shape)
    if not zero:
        levels -= levels > 0
    return levels + below


def _unary(histogram: np.ndarray) -> int:
    """How many magnitudes are told apart one by one before the rest goes by binary digits."""
    left = int(histogram[1:].sum())
    unary = 0
    while unary < min(_MOST_UNARY, len(histogram) - 3) and int(histogram[unary + 1]) * 50 > 11 * left:
        left -= int(histogram[unary + 1])
        unary += 1
    return unary


def _walk(
    plan: planes.Layout,
    below: int,
    above: int,
    zero: bool,
    unary: int,
    grain: int,
    coin: Coin,
    memory: Memory,
    known: np.ndarray | None,
) -> np.ndarray:
    """Code (or, with `known` None, decode) all blocks; gives the planes of signed ranks."""
    memory.next_tensor()
    largest = max(below, above)
    book = planes.Planes(plan, largest)
    source = None if known is None else plan.planes(known)
    for block in book.blocks(grain):
        signed = None if source is None else source[block.tap, block._rows].reshape(-1)
        ranks = np.zeros(block.size, dtype=np.int64)
        chosen = np.arange(block.size)
        if zero:
            bits = None if signed is None else (signed != 0).astype(np.int64)
            mixer = memory.mixer("zero", 1, planes.ZERO)
            chosen = np.flatnonzero(
                _flip(mixer, np.zeros(block.size, dtype=np.int64), block.zero(), bits, coin)
            )
        if len(chosen):
            part = None if signed is None else signed[chosen]
            ranks[chosen] = _ranks(block, chosen, part, below, above, unary, coin, memory)
        block.close(ranks)
    return book.signed[: plan.taps]


def _flip(
    mixer: Mixer, node: np.ndarray, contexts: np.ndarray, bits: np.ndarray | None, coin: Coin
) -> np.ndarray:
    """One batch of bits of one mixer, coded and learnt."""
    bits = coin(bits, mixer.predict(node, contexts)).astype(np.int64)
    mixer.learn(bits)
    return bits


def _ranks(
    block: planes.Block,
    chosen: np.ndarray,
    signed: np.ndarray | None,
    below: int,
    above: int,
    unary: int,
    coin: Coin,
    memory: Memory,
) -> np.ndarray:
    """The signed ranks of the weights that are not zero."""
    nothing = np.zeros(len(chosen), dtype=np.int64)
    contexts, agree = block.sign(chosen)
    if below and above:
        bits = None if signed is None else (signed < 0).astype(np.int64)
        negative = _flip(memory.mixer("sign", 1, planes.SIGN), nothing, contexts, bits, coin)
    else:
        negative = nothing + (above == 0)
    agree = np.where(negative == 1, 624 - agree, agree)
    size = None if signed is None else np.abs(signed)
    size = _sizes(block, chosen, size, negative, agree, max(below, above), unary, coin, memory)
    if (size > np.where(negative == 1, below, above)).any():
        raise FormatError("a level lies outside the codebook")
    return np.where(negative == 1, -size, size)


def _sizes(
    block: planes.Block,
    chosen: np.ndarray,
    size: np.ndarray | None,
    negative: np.ndarray,
    agree: np.ndarray,
    largest: int,
    unary: int,
    coin: Coin,
    memory: Memory,
) -> np.ndarray:
    """Magnitudes 1..largest: `unary` steps one by one, the rest in binary digits from the top."""
    out = np.ones(len(chosen), dtype=np.int64)
    if largest == 1:
        return out
    unary = min(unary, largest - 2)
    contexts = block.magnitude(chosen, agree)
    live = np.arange(len(chosen))
    for step in range(unary):
        bits = None if size is None else (size[live] > step + 1).astype(np.int64)
        mixer = memory.mixer(f"more than {step + 1}", 2, planes.MAGNITUDE)
        bits = _flip(mixer, negative[live], contexts[:, live], bits, coin)
        live = live[bits == 1]
        if not len(live):
            return out
        out[live] += 1
    digits = (largest - 1 - unary).bit_length()
    rest = None if size is None else size[live] - 1 - unary
    prefix = np.zeros(len(live), dtype=np.int64)
    side, rich = negative[live], contexts[:, live]
    plain = None
    for depth in range(digits):
        nodes = min(1 << depth, _NODES)
        bits = None if rest is None else (rest >> (digits - 1 - depth)) & 1
        if depth >= _RICH and plain is None:
            plain = block.magnitude_plain(chosen[live])
        sizes = planes.MAGNITUDE if depth < _RICH else planes.MAGNITUDE_PLAIN
        mixer = memory.mixer(f"digit {depth} of {digits} after {unary}", 2 * nodes, sizes)
        node = np.minimum(prefix, nodes - 1) * 2 + side
        bits = _flip(mixer, node, rich if plain is None else plain, bits, coin)
        prefix = prefix * 2 + bits
    out[live] += prefix
    return out

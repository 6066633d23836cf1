"""Context-mixing model of levels: zero, sign and magnitude of every weight as bits with mixed probabilities.

The same walk encodes and decodes: a bit coder writes the bits it is given, or reads bits when given None. A
`MixerBank` carries what was learnt from one tensor to the next of the same section.

>>> import numpy as np
>>> levels = np.random.default_rng(0).integers(0, 3, (8, 4, 3, 3))
>>> data = encode(levels, 1, 1, MixerBank())
>>> bool((decode(data, levels.shape, 1, 1, MixerBank()) == levels).all())
True
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from secateur.coding import compiled, planes, static
from secateur.coding.mixing import Mixer
from secateur.coding.predicted_contexts import LEAST_GRAIN, Forecasts, PredictedContexts
from secateur.coding.range_coder import Decoder, Encoder
from secateur.errors import FormatError

__all__ = ["FIRST_BYTE", "MOST_SIDE", "CodingMode", "MixerBank", "decode", "encode"]

MOST_SIDE = 1024  # the most levels on one side of zero
_MOST_UNARY = 6
_RICH = 2  # top bits of a magnitude that are coded with all contexts
_NODES = 64
_LEAST_GRAIN, _MOST_GRAIN = 8, 14  # of model 1
_GRAINS = 9  # of model 2, from LEAST_GRAIN on
FIRST_BYTE = 2  # of a stream of model 2


class MixerBank:
    """The mixers of all decisions, by name, made when first needed; `version` is that of the file."""

    def __init__(self, version: int = 2) -> None:
        self.version = version
        self._mixers: dict[str, Mixer] = {}
        self.forecasts: Forecasts = {}

    def mixer(self, name: str, nodes: int, sizes: tuple[int, ...]) -> Mixer:
        """The mixer of one kind of decision."""
        if name not in self._mixers:
            self._mixers[name] = Mixer(nodes, sizes)
        return self._mixers[name]

    def next_tensor(self) -> None:
        """Reduce the counts of earlier tensors, so that the model adapts to a new one quickly."""
        for mixer in self._mixers.values():
            mixer.next_tensor()
        for forecast in self.forecasts.values():
            forecast.next_tensor()


@dataclass(frozen=True)
class CodingMode:
    """How a tensor is coded: which contexts, how magnitudes become bits, and how large blocks are."""

    kind: str  # "old", "plain" or "rich": contexts of model 1, or fewer or all of model 2
    unary: int
    grain: int

    def book(self, plan: planes.PlaneLayout, largest: int, memory: MixerBank) -> planes.Planes:
        """The planes of a tensor before its first weight."""
        if self.kind == "old":
            return planes.Planes(plan, largest)
        return PredictedContexts(plan, largest, memory.forecasts, self.kind == "plain")

    @property
    def byte(self) -> int:
        """The mode as one byte: model 1 has its own number before it, model 2 begins with it."""
        if self.kind == "old":
            return 1 + self.unary + 8 * (self.grain - _LEAST_GRAIN)
        rich = int(self.kind == "rich")
        return FIRST_BYTE + self.unary + (_MOST_UNARY + 1) * (self.grain - LEAST_GRAIN + _GRAINS * rich)

    @staticmethod
    def of(byte: int, old: bool) -> CodingMode:
        """The inverse of `byte`."""
        if old:
            unary, grain = (byte - 1) % 8, (byte - 1) // 8 + _LEAST_GRAIN
            known, kind = byte > 0 and unary <= _MOST_UNARY and grain <= _MOST_GRAIN, "old"
        else:
            place, unary = divmod(byte - FIRST_BYTE, _MOST_UNARY + 1)
            known, grain = 0 <= place < 2 * _GRAINS, LEAST_GRAIN + place % _GRAINS
            kind = "rich" if place >= _GRAINS else "plain"
        if not known:
            raise FormatError("a stream of levels starts with a byte that is not known")
        return CodingMode(kind, unary, grain)


def encode(
    levels: np.ndarray,
    below: int,
    above: int,
    memory: MixerBank,
    zero: bool = True,
    grain: int = 11,
    kind: str = "plain",
) -> bytes:
    """Levels 0..size-1 with `below` of them under zero and `above` over it; `zero` False: no level is zero.

    The first byte says which contexts there are, how magnitudes become bits and how large the blocks are
    (about 2**grain weights).
    """
    signed = levels.astype(np.int16)
    signed -= np.int16(below)
    if not zero:
        signed += signed >= 0
    histogram = static.histogram((signed + np.int16(below)).view(np.uint16), below + above + 1)
    sizes = np.zeros(max(below, above) + 1, dtype=np.int64)
    sizes[: above + 1] += histogram[below : below + above + 1]
    sizes[1 : below + 1] += histogram[:below][::-1]
    way = CodingMode(kind, _unary(sizes), grain)
    stream = b""
    if levels.size:
        plan = planes.layout(levels.shape)
        _, stream = _Walk(way, plan, below, above, zero, memory, None).run(plan.planes(signed))
    return bytes([way.byte]) + stream


def decode(
    data: bytes | memoryview,
    shape: tuple[int, ...],
    below: int,
    above: int,
    memory: MixerBank,
    zero: bool = True,
    old: bool = False,
) -> np.ndarray:
    """The inverse of `encode`, as int16; `old` for model 1."""
    way = CodingMode.of(data[0] if len(data) else 0, old)
    if not prod(shape):  # a shape such as (2**40, 0) has no level, but filters to iterate over
        Decoder(data[1:]).finish()
        return np.zeros(shape, dtype=np.int16)
    plan = planes.layout(shape)
    signed, _ = _Walk(way, plan, below, above, zero, memory, data[1:]).run(None)
    levels = plan.tensor(signed, shape)
    if not zero:
        levels -= levels > 0
    levels += np.int16(below)
    return levels


def _unary(histogram: np.ndarray) -> int:
    """How many magnitudes are coded in unary before the rest are coded in binary."""
    left = int(histogram[1:].sum())
    unary = 0
    while unary < min(_MOST_UNARY, len(histogram) - 3) and int(histogram[unary + 1]) * 50 > 11 * left:
        left -= int(histogram[unary + 1])
        unary += 1
    return unary


class _BitCoder:
    """Codes batches of bits with constriction, or decodes them where there are none, and lets the mixers learn."""

    def __init__(self, data: bytes | memoryview | None):
        self._encoder = Encoder() if data is None else None
        self._decoder = None if data is None else Decoder(data)

    def flip(
        self, mixer: Mixer, node: np.ndarray | None, places: np.ndarray, bits: np.ndarray | None
    ) -> np.ndarray:
        """One batch of bits (intp) of one mixer."""
        pairs = mixer.predict(node, places)
        if self._decoder is not None:
            bits = self._decoder.coins(pairs)
        else:
            assert self._encoder is not None
            assert bits is not None
            self._encoder.coins(bits, pairs)
        found = bits.astype(np.intp)
        mixer.learn(found)
        return found

    def finish(self) -> bytes:
        """What was written; of a decoder, raise unless the stream ends here."""
        if self._decoder is not None:
            self._decoder.finish()
        return self._encoder.finish() if self._encoder is not None else b""


class _Walk:
    """Codes or decodes all blocks of a tensor."""

    def __init__(
        self,
        way: CodingMode,
        plan: planes.PlaneLayout,
        below: int,
        above: int,
        zero: bool,
        memory: MixerBank,
        data: bytes | memoryview | None,
    ):
        memory.next_tensor()
        self._way = way
        self._below, self._above, self._zero = below, above, zero
        self._largest = max(below, above)
        self._unary = min(way.unary, max(self._largest - 2, 0))
        self._coder = _BitCoder(data)
        self._data = data
        self._memory = memory
        self._book = way.book(plan, self._largest, memory)
        kind = self._book.kind
        self._of_zero = self._mixer("zero", 1, kind.ZERO_SIZES)
        self._of_sign = self._mixer("sign", 1, kind.SIGN_SIZES)
        self._more = [self._mixer(f"more than {k + 1}", 2, kind.SIZE_SIZES) for k in range(self._unary)]
        digits = max(self._largest - 1 - self._unary, 0).bit_length()
        self._digits = [
            self._mixer(
                f"digit {depth} of {digits} after {self._unary}",
                2 * min(1 << depth, _NODES),
                kind.SIZE_SIZES if depth < _RICH else kind.PLAIN_SIZES,
            )
            for depth in range(digits)
        ]

    def run(self, source: np.ndarray | None) -> tuple[np.ndarray, bytes]:
        """Code (or, with `source` None, decode) all blocks; returns the planes of signed ranks and the stream."""
        loops = compiled.kernels() if self._way.kind != "old" and compiled.pays(self._book.layout) else None
        if loops is not None:
            assert isinstance(self._book, PredictedContexts)
            mixers = [self._of_zero, self._of_sign, *self._more, *self._digits]
            sides = (self._below, self._above, self._zero, self._unary, len(self._digits), _NODES)
            return compiled.walk(loops, self._book, mixers, (*sides, self._way.grain), source, self._data)
        for block in self._book.blocks(self._way.grain):
            signed = None if source is None else source[block.tap, block.rows].reshape(-1)
            ranks = np.zeros(block.size, dtype=np.intp)
            if self._zero:
                bits = None if signed is None else (signed != 0).astype(np.int32)
                chosen = self._coder.flip(self._of_zero, None, block.zero(), bits).nonzero()[0]
            else:
                chosen = np.arange(block.size)
            if len(chosen):
                ranks[chosen] = self._ranks(
                    block, chosen, None if signed is None else planes.of(signed, chosen)
                )
            block.close(ranks)
        return self._book.signed, self._coder.finish()

    def _mixer(self, name: str, nodes: int, sizes: tuple[int, ...]) -> Mixer:
        return self._memory.mixer(f"{self._way.kind} {name}", nodes, sizes)

    def _ranks(self, block: planes.PlaneBlock, chosen: np.ndarray, signed: np.ndarray | None) -> np.ndarray:
        """The signed ranks of the weights that are not zero."""
        if self._below and self._above:
            bits = None if signed is None else (signed < 0).astype(np.int32)
            negative = self._coder.flip(self._of_sign, None, block.sign(chosen), bits)
        else:
            negative = np.full(len(chosen), int(self._above == 0))
        size = self._sizes(block, chosen, None if signed is None else np.abs(signed), negative)
        if (
            size.max() > min(self._below, self._above)
            and (size > np.where(negative == 1, self._below, self._above)).any()
        ):
            raise FormatError("a level lies outside the codebook")
        size *= 1 - 2 * negative
        return size

    def _sizes(
        self, block: planes.PlaneBlock, chosen: np.ndarray, size: np.ndarray | None, negative: np.ndarray
    ) -> np.ndarray:
        """Code magnitudes 1..largest: `unary` of them in unary, the rest in binary from the top bit."""
        out = np.ones(len(chosen), dtype=np.intp)
        if self._largest == 1:
            return out
        contexts = block.magnitude(chosen, negative)
        live = None
        bits: np.ndarray | None
        for step, mixer in enumerate(self._more, 1):
            bits = None if size is None else (size > step).astype(np.int32)
            more = self._coder.flip(mixer, negative, contexts, bits).nonzero()[0]
            if not len(more):
                return out
            if len(more) < len(negative):
                live = more if live is None else live[more]
                negative, contexts = negative[more], contexts.take(more, axis=1)
                size = None if size is None else size[more]
            out[slice(None) if live is None else live] += 1
        rest = None if size is None else (size - (1 + self._unary)).astype(np.int32)
        code = negative.copy()  # twice the digits so far as a number, and the sign
        for depth, mixer in enumerate(self._digits):
            bits = None if rest is None else (rest >> (len(self._digits) - 1 - depth)) & 1
            if depth == _RICH:
                contexts = block.magnitude_plain(chosen if live is None else chosen[live])
            node = code if 1 << depth <= _NODES else np.minimum(code >> 1, _NODES - 1) * 2 + negative
            code += self._coder.flip(mixer, node, contexts, bits)
            code *= 2
            code -= negative
        out[slice(None) if live is None else live] += code >> 1
        return out

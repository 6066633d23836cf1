"""The walks of the context models as machine code, by the machine's C compiler: the same numbers, so the same bytes.

Long tensors are coded and decoded by `walk.c`, which `native` compiles the first time and keeps. Without a compiler,
or with `SECATEUR_COMPILED=0` in the environment, numpy does the same in more passes. The numpy path is the reference:
tests hold the two equal on random tensors and on the golden files.

They are equal because nothing here rounds. Counts, log-odds and sums of products are whole numbers (or whole
multiples of 2**-16) that a double holds exactly, in whichever order they are added; quotients are one division each,
as in numpy.

>>> available() in (True, False)
True
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from ctypes import CDLL, Structure, byref
from functools import cache

import numpy as np

from secateur.coding import forecast, mixing, native, planes, predicted_contexts
from secateur.coding.mixing import Mixer
from secateur.coding.predicted_contexts import PredictedContexts
from secateur.errors import FormatError

__all__ = ["LOADING", "LONGEST_BLOCK", "SHORTEST", "WORTH_IT", "available", "kernels", "pays", "walk"]

SHORTEST = 1 << 8
"""Tensors of fewer weights are coded by numpy, which takes no longer."""
WORTH_IT = 1 << 16
"""Weights of such tensors that a process codes before it loads the walk from the cache."""
LOADING = 1 << 20
"""Weights of such tensors that a process codes before it compiles the walk."""
_coded = [0]  # weights of such tensors so far
LONGEST_BLOCK = 1 << 18
"""Blocks of more weights are coded by numpy: sums over them could leave 64 bits."""
_PIECE = 1 << 17  # weights coded between two checks of the space left for the stream
_NO_MEMORY = 3
_WRONG = {1: "a coded stream holds a value outside the coder's range", 2: "a level lies outside the codebook"}


@cache
def available() -> bool:
    """Whether there is a C compiler, and it is not switched off by `SECATEUR_COMPILED=0`."""
    return os.environ.get("SECATEUR_COMPILED", "1") != "0" and native.compiler() is not None


def kernels() -> CDLL | None:
    """The compiled walk, loaded or compiled at the first call; None where it cannot be."""
    return native.load() if available() else None


def pays(layout: planes.PlaneLayout) -> bool:
    """Whether a tensor is long enough for the compiled walk to pay, and its blocks short enough for their sums.

    Compiling takes about a second, the time in which numpy codes some million weights, and loading a hundredth of that.
    So the first tensors of a process are coded by numpy until they add up to `WORTH_IT` weights, or to `LOADING` where
    nothing is in the cache.
    """
    size = layout.filters * layout.channels * layout.taps
    if size < SHORTEST or layout.channels > LONGEST_BLOCK or not available():
        return False
    _coded[0] += size
    if native.is_loaded() or _coded[0] >= LOADING:
        return True
    return _coded[0] >= WORTH_IT and native.cached() is not None


def walk(
    library: CDLL,
    book: PredictedContexts,
    mixers: Sequence[Mixer],
    sides: tuple[int, int, bool, int, int, int, int],
    source: np.ndarray | None,
    data: bytes | memoryview | None,
) -> tuple[np.ndarray, bytes]:
    """Code all blocks of a tensor, or with `data` decode them, and leave book, mixers and forecasts as numpy would.

    Args:
        library: The result of `kernels`.
        book: The tensor's planes.
        mixers: Those of zero, sign, magnitudes one by one, and binary digits.
        sides: Levels below and above zero, whether there is a zero, how many magnitudes are coded one by one, how many
            binary digits the rest has, the most nodes of a digit, and the grain of the blocks.
        source: The planes of signed ranks; None to decode.
        data: The stream to decode.

    Returns:
        The planes of signed ranks, and the stream that was written.
    """
    coder, bank = _Coder(data), _PackedMixers(mixers)
    fits = _PackedForecasts(book, "size"), _PackedForecasts(book, "value")
    filters, channels = book.layout.filters, book.layout.channels
    rows, rich = book.rows(sides[-1]), book.kernel is not None
    known = np.array([book.count, book.total], dtype=np.int64)
    call = _Call()
    call.tables()
    call.numbers("below above zero unary digits nodes rich rows", *sides[:-1], rich, rows)
    call.numbers("taps filters channels", book.layout.taps, filters, channels)
    call.arrays("counts begins cells strides weights whole energies", *bank.arrays)
    call.numbers("contexts", bank.arrays[4].shape[1])
    call.arrays("signs sizes by_filter by_channel", book.signed, book.size, book.filter, book.channel)
    call.arrays("known near source", known, np.array(book.near, dtype=np.int64), np.ascontiguousarray(source))
    if book.kernel is not None:
        call.arrays("kernels", book.kernel)
    for kind, fit in zip(("size", "value"), fits):
        call.arrays("features starts weights sums room", *fit.arrays, of=getattr(call.values, kind))
        call.numbers("most", fit.arrays[1].shape[1], of=getattr(call.values, kind))
    together = max(rows, _PIECE // channels // rows * rows)
    for tap in range(book.layout.taps):
        for top in range(0, filters, together):
            end = min(top + together, filters)
            coder.room((end - top) * channels * (len(mixers) + 1))
            call.arrays("state words", coder.state, coder.words)
            call.numbers("word_count decodes", len(coder.words), data is not None)
            wrong = library.secateur_walk(byref(call.values), tap, top, end)
            if wrong == _NO_MEMORY:
                raise MemoryError
            if wrong:
                raise FormatError(_WRONG[wrong])
    bank.unpack()
    for fit in fits:
        fit.unpack()
    book.count, book.total = (int(number) for number in known)
    return book.signed, coder.finish()


class _Call:
    """The arguments of a compiled walk, and the arrays that they point to.

    >>> call = _Call()
    >>> call.numbers("below above", 3, True)
    >>> call.values.below, call.values.above
    (3, 1)
    """

    def __init__(self) -> None:
        self.values = native.WalkArguments()
        self._kept: dict[str, np.ndarray] = {}

    def numbers(self, names: str, *numbers: int, of: Structure | None = None) -> None:
        """Set whole numbers."""
        for name, number in zip(names.split(), numbers, strict=True):
            setattr(self.values if of is None else of, name, int(number))

    def arrays(self, names: str, *arrays: np.ndarray, of: Structure | None = None) -> None:
        """Set pointers to arrays, which live as long as this object."""
        for name, array in zip(names.split(), arrays, strict=True):
            assert array.flags.c_contiguous
            self._kept[f"{id(of)} {name}"] = array
            setattr(self.values if of is None else of, name, array.ctypes.data)

    def tables(self) -> None:
        """Set the model's tables and limits."""
        self.arrays("stretch squash doubts", *mixing.LOOP_TABLES)
        self.arrays("eight twelve", *planes.LOOP_TABLES)
        self.arrays("fine surely mirror trust_size trust_value", *predicted_contexts.LOOP_TABLES)
        self.numbers("last_odds", len(mixing.LOOP_TABLES[1]) - 1)
        self.numbers("prior calm heaviest", *mixing.LOOP_LIMITS)
        most, ridge, heaviest, fullest = forecast.LOOP_LIMITS
        self.numbers("most ridge fullest", most, ridge, fullest)
        self.values.heaviest_fit = heaviest


class _PackedMixers:
    """Several mixers side by side in a few arrays. Their counts become views into one array."""

    def __init__(self, mixers: Sequence[Mixer]):
        self._mixers = mixers
        cells = np.array([mixer.cells for mixer in mixers])
        begins = np.concatenate(([0], np.cumsum(2 * cells)[:-1]))
        counts = np.empty(int(2 * cells.sum()))
        states = []
        for mixer, begin in zip(mixers, begins.tolist()):
            mixer.move_counts(counts[begin : begin + 2 * mixer.cells])
            states.append(mixer.state)
        self._lengths = [len(weights) for weights, _ in states]
        whole = np.zeros((len(mixers), max(self._lengths)), dtype=np.int64)
        for row, (weights, _) in zip(whole, states):
            row[: len(weights)] = weights
        energies = np.array([energy for _, energy in states])
        strides = np.array([mixer.stride for mixer in mixers])
        self.arrays = (counts, begins, cells, strides, whole / 65536.0, whole, energies)

    def unpack(self) -> None:
        """Copy weights and energies back."""
        *_, whole, energies = self.arrays
        for mixer, length, weights, energy in zip(
            self._mixers, self._lengths, whole.tolist(), energies.tolist()
        ):
            mixer.state = weights[:length], energy


class _PackedForecasts:
    """A tensor's forecasts of one kind, one for each tap, side by side in a few arrays."""

    def __init__(self, book: PredictedContexts, kind: str):
        first = 1 if kind == "value" else 0  # nothing predicts a value at the first tap
        self._forecasts = {tap: book.forecast(kind, tap) for tap in range(first, book.layout.taps)}
        most = max((len(one.weights) for one in self._forecasts.values()), default=1)
        taps = book.layout.taps
        features, room = np.zeros(taps, dtype=np.int64), np.zeros(taps, dtype=np.int64)
        starts, weights, sums = (
            np.zeros((taps, most)),
            np.zeros((taps, most)),
            np.zeros((taps, most, most + 1)),
        )
        for tap, one in self._forecasts.items():
            start, now, total, left = one.state
            features[tap], room[tap] = len(start), left
            starts[tap, : len(start)], weights[tap, : len(start)] = start, now
            sums[tap, : len(start), : len(start) + 1] = total
        self.arrays = (features, starts, weights, sums, room)

    def unpack(self) -> None:
        """Copy everything back."""
        features, _, weights, sums, room = self.arrays
        for tap, one in self._forecasts.items():
            count = int(features[tap])
            one.take(weights[tap, :count], sums[tap, :count, : count + 1], int(room[tap]))


class _Coder:
    """The range coder's state, for the compiled loops: an encoder, or with `data` a decoder of that stream.

    It is constriction's queue coder with words of 32 bits and a state of 64, as docs/format.md defines it.

    >>> _Coder().finish()
    b''
    """

    def __init__(self, data: bytes | memoryview | None = None):
        self.decodes = data is not None
        # low end, range, point, place in the words
        self.state = np.array([0, 2**64 - 1, 0, 0], dtype=np.uint64)
        if data is None:
            self.words = np.zeros(1 << 12, dtype=np.uint32)
            return
        whole = bytes(data) + bytes(-len(data) % 4)
        self.words = np.frombuffer(whole, dtype=">u4").astype(np.uint32)
        first = [int(word) for word in (*self.words[:2], 0, 0)][:2]
        self.state[2] = (first[0] << 32) | first[1]
        self.state[3] = 2

    def room(self, bits: int) -> None:
        """Make room for this number of coded bits: 11.5 bits each at most."""
        if not self.decodes and int(self.state[3]) + bits // 2 + 4 > len(self.words):
            longer = np.empty(len(self.words) + max(len(self.words), bits // 2 + 4), dtype=np.uint32)
            # the system clears only pages in use
            longer[: int(self.state[3])] = self.words[: int(self.state[3])]
            self.words = longer

    def finish(self) -> bytes:
        """The encoder's bytes, without the zero bytes at the end; of a decoder, raise unless the stream ends here."""
        low, span, point, at = (int(number) for number in self.state)
        if self.decodes:
            used_up = at >= len(self.words) and (span == 2**64 - 1 or (point - low) % 2**64 < 2**33 - 1)
            if not used_up:
                raise FormatError("a coded stream has bytes after its last symbol")
            return b""
        if span == 2**64 - 1:
            return b""
        point = low + 2**32 - 1
        written = int.from_bytes(self.words[:at].astype(">u4").tobytes(), "big") if point >= 2**64 else None
        head = self.words[:at].astype(">u4").tobytes()
        if written is not None:  # the last carry
            head = (written + 1).to_bytes(4 * at, "big")
        return (head + (point % 2**64 >> 32).to_bytes(4, "big")).rstrip(b"\0")

# numba gives the variables below their machine types; mypy, which sees numpy scalars there, cannot follow.
# mypy: disable-error-code="assignment,operator,arg-type,return-value,index"
"""The walk over a tensor's blocks for numba: one pass over the weights where numpy takes many.

Imported by `compiled.kernels` alone. The formulas are those of `mixing`, `forecast`, `planes` and `predicted_contexts`,
which are the reference and say what they mean; docs/format.md defines them all. All of it stands in one file, because
numba's cache on disk does not see changes of other files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np

__all__ = ["Bank", "Book", "Fit", "KernelMode", "Stream", "Tables", "walk"]

_Function = TypeVar("_Function", bound=Callable[..., object])

_WORD = np.uint64(32)
_BITS = np.uint64(24)
_TOTAL = np.uint64(1 << 24)
_LEAST_RANGE = np.uint64(1 << 32)
_LAST_WORD = np.uint32(0xFFFFFFFF)
_PARTS = 1 << 14  # bits whose squares are summed at a time
_RICH_DIGITS = 2  # this number of top digits of a magnitude have all contexts


class Stream(NamedTuple):
    """The range coder: its low end, range, point (of a decoder) and place in the words; the words; whether it reads."""

    state: np.ndarray
    words: np.ndarray
    decodes: bool


class Tables(NamedTuple):
    """Every table of the model, and its limits: see `mixed.loop_tables`."""

    stretch: np.ndarray  # log-odds from 0 on, by probability in 65536ths
    squash: np.ndarray  # ones in 65536ths, by log-odds
    doubts: np.ndarray  # what the square of an error is expected to be, by log-odds
    eight: np.ndarray  # how large in eight steps, by ratio
    twelve: np.ndarray  # how large in twelve steps, by ratio
    fine: np.ndarray  # how large in 26 steps, by size to expect
    surely: np.ndarray  # how far from zero, by prediction
    mirror: np.ndarray  # the prediction of the other sign
    trust_size: np.ndarray  # how much an error counts, by size to expect
    trust_value: np.ndarray
    prior: int  # counts a context begins with
    calm: int  # the least energy
    heaviest: int  # the largest weight of a mixer
    most: int  # the largest feature
    ridge: int
    heaviest_fit: float  # the largest weight of a forecast
    fullest: int  # sums of a forecast are halved beyond this


class Bank(NamedTuple):
    """All mixers of a tensor: zero, sign, magnitudes one by one, digits. `counts`: each one's zeros, then its ones."""

    counts: np.ndarray
    begins: np.ndarray  # where each begins in `counts`
    cells: np.ndarray  # how many each has
    strides: np.ndarray  # how many a node of each has
    weights: np.ndarray
    whole: np.ndarray  # the weights in 65536ths
    energies: np.ndarray


class Fit(NamedTuple):
    """The forecasts of one kind, one for each tap: see `forecast.Forecast`."""

    features: np.ndarray  # how many each has
    starts: np.ndarray
    weights: np.ndarray
    sums: np.ndarray
    room: np.ndarray


class Book(NamedTuple):
    """What is known of the tensor so far: see `planes.Planes`."""

    signed: np.ndarray
    sizes: np.ndarray
    kernels: np.ndarray  # sums of sizes and of signed ranks by kernel; empty where there are few contexts
    filters: np.ndarray
    channels: np.ndarray
    sums: np.ndarray  # how many ranks are known, and the sum of their sizes
    near: np.ndarray  # the ten neighbours of every tap


class KernelMode(NamedTuple):
    """How the tensor is coded: see `mixed.CodingMode`."""

    below: int
    above: int
    zero: bool
    unary: int
    digits: int
    nodes: int  # the most nodes of a digit
    rich: bool
    rows: int  # filters in a block


class CodedBlock(NamedTuple):
    """One block: where it lies, and what its contexts are made of."""

    tap: int
    top: int
    bottom: int
    mean: int  # the mean rank in 16ths
    unit: int  # the mean rank in 256ths
    spots: np.ndarray  # the tap's known neighbours, -1 for the others
    by_filter: np.ndarray  # how large in twelve steps
    by_channel: np.ndarray
    lean_filter: np.ndarray  # which way the signs lean, in seventeen steps
    lean_channel: np.ndarray
    place: np.ndarray  # the size to expect
    prediction: np.ndarray


def _compiled(function: _Function) -> _Function:
    """The function as machine code, kept on disk where the folder can be written; without the interpreter's lock.

    Sums may be taken in any order, since they are exact in every order.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc"}}
    try:
        return cast(_Function, numba.njit(cache=True, **options)(function))
    except RuntimeError:  # no folder for the cache
        return cast(_Function, numba.njit(**options)(function))


# -- bits --------------------------------------------------------------------------------------------------------
@_compiled
def _code_bit(stream: Stream, likely: int, bit: int) -> int:
    """Code one bit that is 1 with probability `likely` / 65536, or decode it; -1 where the stream is broken."""
    state, words = stream.state, stream.words
    low, span, at = state[0], state[1], np.int64(state[3])
    left = np.uint64(((65536 - likely) * ((1 << 24) - 2) >> 16) + 1)
    scale = span >> _BITS
    if stream.decodes:
        quotient = (state[2] - low) // scale
        if quotient >= _TOTAL:
            return -1
        bit = np.int64(quotient >= left)
    if bit:
        span = scale * (_TOTAL - left)
        moved = low + scale * left
        if not stream.decodes and moved < low:  # carry
            back = at - 1
            while words[back] == _LAST_WORD:
                words[back] = 0
                back -= 1
            words[back] += np.uint32(1)
        low = moved
    else:
        span = scale * left
    if span < _LEAST_RANGE:
        if stream.decodes:
            following = np.uint64(words[at]) if at < len(words) else np.uint64(0)
            state[2] = (state[2] << _WORD) | following
        else:
            words[at] = np.uint32(low >> _WORD)
        state[3] = np.uint64(at + 1)
        low <<= _WORD
        span <<= _WORD
    state[0], state[1] = low, span
    return bit


@_compiled
def _odds(
    zeros: np.ndarray, ones: np.ndarray, of_context: np.ndarray, weights: np.ndarray, tables: Tables
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the contexts say of each bit of a batch: log-odds beyond its node's own, their squares' sum, the mixture."""
    rows, n = of_context.shape
    contexts = rows - 1
    beyond = np.empty((contexts, n), dtype=np.int32)
    base, square = np.empty(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    share, total = np.empty(n), np.empty(n)
    own = of_context[contexts]
    for i in range(n):
        of_ones = ones[own[i]]
        level = np.uint64(of_ones * 65536.0 / (zeros[own[i]] + of_ones))
        base[i] = tables.stretch[level]
        share[i] = np.float64(level) * tables.prior
        total[i] = base[i]
    for j in range(contexts):
        cell, row, weight = of_context[j], beyond[j], weights[j]
        for i in range(n):
            of_ones = ones[cell[i]]
            seen = np.uint64((of_ones * 65536.0 + share[i]) / (of_ones + zeros[cell[i]]))
            odds = np.int64(tables.stretch[seen]) - base[i]
            row[i] = odds
            square[i] += odds * odds
            total[i] += weight * odds
    return beyond, square, total


@_compiled
def _flip(
    bank: Bank, which: int, cells: np.ndarray, bits: np.ndarray, tables: Tables, stream: Stream
) -> bool:
    """Code (or decode into `bits`) a batch of bits of one mixer and learn from it; False where the stream is broken.

    `cells` [contexts + 1, n] are the cells of each bit's contexts, its node's own last. One context after the other is
    taken for all bits, which the compiler turns into vector instructions; only the coder goes bit by bit.
    """
    rows, n = cells.shape
    contexts = rows - 1
    begin, count = bank.begins[which], bank.cells[which]
    zeros, ones = bank.counts[begin : begin + count], bank.counts[begin + count : begin + 2 * count]
    weights, whole = bank.weights[which], bank.whole[which]
    last = len(tables.squash) - 1
    of_context = cells.view(np.uint64)
    beyond, square, total = _odds(zeros, ones, of_context, weights, tables)
    error = np.empty(n, dtype=np.int32)
    squares = 0
    energy = max(bank.energies[which] - (bank.energies[which] >> 3), tables.calm)
    for i in range(n):
        place = np.uint64(min(max(np.int64(total[i]), 0), last))
        likely = tables.squash[place]
        bit = _code_bit(stream, likely, bits[i])
        if bit < 0:
            return False
        bits[i] = bit
        error[i] = (bit << 16) - likely
        squares += square[i] * tables.doubts[place]
        if i % _PARTS == _PARTS - 1:
            energy += squares >> 4
            squares = 0
    energy += squares >> 4
    bank.energies[which] = energy
    slope = np.zeros(contexts, dtype=np.int64)
    for j in range(contexts):
        row, summed = beyond[j], 0
        for i in range(n):
            summed += np.int64(row[i]) * error[i]
        slope[j] = summed
    counts = bank.counts[begin : begin + 2 * count]  # the zeros, then the ones
    to_ones = (bits * count).view(np.uint64)
    for j in range(rows):
        cell = of_context[j]
        for i in range(n):
            counts[cell[i] + to_ones[i]] += 1.0
    for j in range(contexts):
        whole[j] = min(max(whole[j] + (slope[j] << 16) // energy, -tables.heaviest), tables.heaviest)
        weights[j] = whole[j] / 65536.0
    return True


# -- forecasts ---------------------------------------------------------------------------------------------------
@_compiled
def _sums_of(fit: Fit, tap: int, features: np.ndarray) -> np.ndarray:
    """What one forecast makes of every column of features."""
    out = np.zeros(features.shape[1])
    for j in range(fit.features[tap]):
        weight = fit.weights[tap, j] * (1 / 65536)
        row = features[j]
        for i in range(len(out)):
            out[i] += weight * row[i]
    return out


@_compiled
def _learn(fit: Fit, tap: int, features: np.ndarray, trust: np.ndarray, every: int, tables: Tables) -> None:
    """Take every `every`-th column into account, the last row being the target of the others; one step."""
    count = fit.features[tap]
    sums = fit.sums[tap]
    used = len(trust)
    seen = features
    if every > 1:
        seen = np.empty((count + 1, used))
        for j in range(count + 1):
            for i in range(used):
                seen[j, i] = features[j, i * every]
    trusted = np.empty(used)
    for j in range(count):
        for i in range(used):
            trusted[i] = seen[j, i] * trust[i]
        # By pairs of columns alike both ways; the last column is the target's.
        for k in range(j, count + 1):
            other = seen[k]
            total = 0.0
            for i in range(used):
                total += trusted[i] * other[i]
            sums[j, k] += total
            if k > j and k < count:
                sums[k, j] += total
    fit.room[tap] -= used * tables.most * tables.most * (1 << 15)
    if fit.room[tap] <= 0:
        largest = np.abs(sums[:count, : count + 1]).max()
        while largest >= tables.fullest:
            sums[:count, : count + 1] = np.floor(sums[:count, : count + 1] / 2)
            largest = np.abs(sums[:count, : count + 1]).max()
        fit.room[tap] = tables.fullest - np.int64(largest)
    _step(fit, tap, tables)


@_compiled
def _step(fit: Fit, tap: int, tables: Tables) -> None:
    """One step towards the least squares, one weight after the other."""
    count = fit.features[tap]
    weights, starts = fit.weights[tap], fit.starts[tap]
    largest = 0
    for j in range(count):
        largest = max(largest, np.int64(fit.sums[tap, j, j]))
    shift = 0
    while largest >> shift >= 1 << 26:
        shift += 1
    scale = 2.0**-shift
    ridge = np.float64(tables.ridge >> shift)
    for j in range(count):
        products = 0.0
        for k in range(count):
            products += np.floor(fit.sums[tap, j, k] * scale) * weights[k]
        target = np.floor(fit.sums[tap, j, count] * scale)
        rest = target * 65536.0 + ridge * (starts[j] - weights[j]) - products
        divisor = np.floor(fit.sums[tap, j, j] * scale) + ridge + 1
        moved = weights[j] + rest // divisor
        weights[j] = min(max(moved, -tables.heaviest_fit), tables.heaviest_fit)


# -- what is known -----------------------------------------------------------------------------------------------
@_compiled
def _ratio(total: int, count: int, mean: int) -> int:
    """A sum of `count` ranks against the mean, in 16ths, below 256."""
    return min((total * 256 + mean) // (count * mean), 255)


@_compiled
def _steps_of(book: Book, table: np.ndarray, count: int, of: np.ndarray, mean: int) -> np.ndarray:
    """How large the weights of each line are so far, in steps; as all weights are, where `count` is 0."""
    out = np.empty(len(of), dtype=np.int64)
    for k in range(len(of)):
        if count:
            out[k] = table[_ratio(of[k], count, mean)]
        else:
            out[k] = table[_ratio(book.sums[1], max(1, book.sums[0]), mean)]
    return out


@_compiled
def _lean_of(count: int, of: np.ndarray, mean: int) -> np.ndarray:
    """Which way the signs of each line lean, in seventeen steps."""
    out = np.empty(len(of), dtype=np.int64)
    for k in range(len(of)):
        out[k] = min(max(of[k] * 12 // max(count * mean // 16, 1) + 8, 0), 16)
    return out


@_compiled
def _features_of(
    book: Book, block: tuple[int, int, int, int], counts: tuple[int, int], table: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """What the forecasts of size and of value are made of, [features + 1, n]; the last rows are left open."""
    tap, top, bottom, unit = block
    channels = book.signed.shape[2]
    n = (bottom - top) * channels
    taps = min(tap, 12)
    middle = len(table) // 2
    features = np.empty((4 + taps, n))
    values = np.empty((3 + taps, n))
    by_channel = np.empty(channels, dtype=np.int64)
    leans = np.empty(channels, dtype=np.int64)
    for column in range(channels):
        large = (book.channels[0, column] * 16384 + 64 * unit) // ((counts[1] + 1) * unit)
        by_channel[column] = min(large, most)
        if taps:
            leans[column] = min(max(book.channels[1, column] * 16384 // (counts[1] * unit), -most), most)
    for row in range(top, bottom):
        at = (row - top) * channels
        by_filter = min((book.filters[0, row] * 16384 + 64 * unit) // ((counts[0] + 1) * unit), most)
        lean = 0
        if taps:
            lean = min(max(book.filters[1, row] * 16384 // (counts[0] * unit), -most), most)
        for column in range(channels):
            features[0, at + column], features[1, at + column] = by_filter, by_channel[column]
            features[2, at + column] = min((by_filter * by_channel[column]) >> 6, most)
            if taps:
                values[0, at + column], values[1, at + column] = lean, leans[column]
    for k in range(taps):
        for row in range(top, bottom):
            at = (row - top) * channels
            for column in range(channels):
                value = table[book.signed[tap - taps + k, row, column] + middle]
                values[2 + k, at + column] = value
                features[3 + k, at + column] = abs(value)
    return features, values


@_compiled
def _predictions(
    fits: tuple[Fit, Fit], tap: int, features: np.ndarray, values: np.ndarray, tables: Tables
) -> tuple[np.ndarray, np.ndarray]:
    """The size to expect of every weight of a block, within its limits, and its prediction."""
    n = features.shape[1]
    place = np.empty(n, dtype=np.int64)
    prediction = np.empty(n, dtype=np.int64)
    sizes = _sums_of(fits[0], tap, features)
    of_values = _sums_of(fits[1], tap, values)
    for i in range(n):
        place[i] = min(max(np.int64(sizes[i]), 0), tables.most)
        fine = tables.fine[place[i]]
        if tap:
            value = np.int64(of_values[i] + tables.most)
            standing = 8.0 * (min(max(value, 0), 2 * tables.most) - tables.most)
            standing = standing / max(place[i], 3) + 12.5
            prediction[i] = min(max(np.int64(standing), 0), 24) * 26 + fine
        else:
            prediction[i] = 12 * 26 + fine
    return place, prediction


@_compiled
def _close(book: Book, block: CodedBlock, ranks: np.ndarray, rich: bool) -> None:
    """Take a block's ranks into account."""
    channels = book.signed.shape[2]
    row, column = block.top, -1
    for i in range(len(ranks)):
        column += 1
        if column == channels:
            row, column = row + 1, 0
        rank = ranks[i]
        size = abs(rank)
        book.signed[block.tap, row, column] = rank
        book.sizes[block.tap, row, column] = size
        book.filters[0, row] += size
        book.filters[1, row] += rank
        book.channels[0, column] += size
        book.channels[1, column] += rank
        if rich:
            book.kernels[0, row, column] += size
            book.kernels[1, row, column] += rank
        book.sums[1] += size
    book.sums[0] += len(ranks)


# -- contexts ----------------------------------------------------------------------------------------------------
@_compiled
def _near(book: Book, block: CodedBlock, row: int, column: int) -> tuple[int, int, int, int]:
    """The sums of the first four and of all eight neighbours' sizes, and how many of each are known."""
    four = all_eight = known_four = known = 0
    for k in range(8):
        if block.spots[k] >= 0:
            size = np.int64(book.sizes[block.spots[k], row, column])
            if k < 4:
                four += size
                known_four += 1
                known += 2
            else:
                all_eight += size
                known += 1
    return four, 2 * four + all_eight, known_four, known


@_compiled
def _cross_and_kernel(book: Book, block: CodedBlock, row: int, column: int, eight: np.ndarray) -> int:
    """How large the four neighbours and the kernel are, in eight steps each."""
    four, _, known_four, _ = _near(book, block, row, column)
    cross = eight[_ratio(four, known_four, block.mean)] if known_four else 0
    kernel = eight[_ratio(book.kernels[0, row, column], block.tap, block.mean)] if block.tap else 0
    return cross * 8 + kernel


@_compiled
def _all_near(book: Book, block: CodedBlock, row: int, column: int, eight: np.ndarray) -> int:
    """How large all neighbours are, in eight steps."""
    _, all_eight, _, known = _near(book, block, row, column)
    return eight[_ratio(all_eight, known, block.mean)] if known else 0


@_compiled
def _by_sums(book: Book, block: CodedBlock, row: int, column: int) -> tuple[int, int, int]:
    """Sums of the neighbours' ranks against the mean one: the first four, the plane they lie in, all."""
    cross = left = others = 0
    for k in range(8):
        if block.spots[k] >= 0:
            rank = np.int64(book.signed[block.spots[k], row, column])
            if k < 4:
                cross += rank
            else:
                others += rank
                if k in (4, 6):
                    left += rank
    mean = block.mean
    first = (cross * 16 + mean // 2) // mean * 2 // 3 + 6
    second = ((cross - left) * 16 + mean // 2) // mean * 2 // 3 + 12
    third = ((2 * cross + others) * 16 + mean // 2) // mean * 2 // 3 + 12
    return min(max(first, 0), 12), min(max(second, 0), 24), min(max(third, 0), 24)


@_compiled
def _signs(book: Book, block: CodedBlock, row: int, column: int) -> int:
    """The signs of two left, left, two up and up, as one number."""
    total = 40
    for k, weight in ((8, 27), (0, 9), (9, 3), (1, 1)):
        if block.spots[k] >= 0:
            there = book.signed[block.spots[k], row, column]
            total += weight * (np.int64(there > 0) - np.int64(there < 0))
    return total


@_compiled
def _zero_cells(book: Book, block: CodedBlock, tables: Tables, rich: bool) -> np.ndarray:
    """The cells of "is it zero" of every weight of a block."""
    channels = book.signed.shape[2]
    n = len(block.place)
    cells = np.empty((7 if rich else 5, n), dtype=np.int64)
    step = min(block.tap, 15)
    row, column = block.top, -1
    for i in range(n):
        column += 1
        if column == channels:
            row, column = row + 1, 0
        pattern = 0
        for k in range(4):
            if block.spots[k] >= 0 and book.sizes[block.spots[k], row, column] > 0:
                pattern += 16 << k
        cells[0, i] = pattern + step
        cells[1, i] = 256 + tables.fine[block.place[i]] * 16 + step
        cells[2, i] = 672 + block.by_filter[row - block.top] * 12 + block.by_channel[column]
        if rich:
            cells[3, i] = 816 + _cross_and_kernel(book, block, row, column, tables.eight)
            cells[4, i] = 880 + _all_near(book, block, row, column, tables.eight) * 16 + step
            cells[5, i] = 1008 + tables.surely[block.prediction[i]]
            cells[6, i] = 1216
        else:
            cells[3, i] = 816 + tables.surely[block.prediction[i]]
            cells[4, i] = 1024
    return cells


@_compiled
def _sign_cells(book: Book, block: CodedBlock, chosen: np.ndarray, rich: bool) -> np.ndarray:
    """The cells of the signs of the chosen weights."""
    channels = book.signed.shape[2]
    cells = np.empty((6 if rich else 3, len(chosen)), dtype=np.int64)
    row, first_of_row = block.top, 0
    for i in range(len(chosen)):
        at = chosen[i]
        while at >= first_of_row + channels:
            row, first_of_row = row + 1, first_of_row + channels
        column = at - first_of_row
        signs = _signs(book, block, row, column)
        if rich:
            first, second, third = _by_sums(book, block, row, column)
            kernel = (book.kernels[1, row, column] * 16 + block.mean // 2) // block.mean // 3 + 6
            cells[0, i] = second * 25 + third
            cells[1, i] = 625 + block.lean_filter[row - block.top] * 17 + block.lean_channel[column]
            cells[2, i] = 914 + first * 13 + min(max(kernel, 0), 12)
            cells[3, i] = 1083 + signs
            cells[4, i] = 1164 + block.prediction[at]
            cells[5, i] = 1814
        else:
            cells[0, i] = signs
            cells[1, i] = 81 + block.prediction[at]
            cells[2, i] = 731
    return cells


@_compiled
def _size_cells(
    book: Book, block: CodedBlock, chosen: np.ndarray, negative: np.ndarray, tables: Tables, rich: bool
) -> np.ndarray:
    """The cells of the magnitudes of the chosen weights, within node 0."""
    channels = book.signed.shape[2]
    cells = np.empty((7 if rich else 4, len(chosen)), dtype=np.int64)
    step = min(block.tap, 15)
    row, first_of_row = block.top, 0
    for i in range(len(chosen)):
        at = chosen[i]
        while at >= first_of_row + channels:
            row, first_of_row = row + 1, first_of_row + channels
        column = at - first_of_row
        near = _all_near(book, block, row, column, tables.eight) * 12
        prediction = tables.mirror[block.prediction[at]] if negative[i] else block.prediction[at]
        fine = tables.fine[block.place[at]] * 16 + step
        if rich:
            _, second, third = _by_sums(book, block, row, column)
            cells[0, i] = abs(negative[i] * 624 - (second * 25 + third))
            cells[1, i] = 625 + _cross_and_kernel(book, block, row, column, tables.eight)
            cells[2, i] = 689 + near + block.by_filter[row - block.top]
            cells[3, i] = 785 + near + block.by_channel[column]
            cells[4, i] = 881 + prediction
            cells[5, i] = 1531 + fine
            cells[6, i] = 1947
        else:
            cells[0, i] = near + block.by_filter[row - block.top]
            cells[1, i] = 96 + prediction
            cells[2, i] = 746 + fine
            cells[3, i] = 1162
    return cells


@_compiled
def _low_cells(
    block: CodedBlock, channels: int, chosen: np.ndarray, tables: Tables, rich: bool
) -> np.ndarray:
    """The cells of the low digits of the chosen weights, within node 0."""
    cells = np.empty((4 if rich else 3, len(chosen)), dtype=np.int64)
    for i in range(len(chosen)):
        at = chosen[i]
        fine = tables.fine[block.place[at]]
        cells[0, i] = block.by_filter[at // channels]
        if rich:
            cells[1, i] = 12 + block.by_channel[at % channels]
            cells[2, i] = 24 + fine
            cells[3, i] = 50
        else:
            cells[1, i] = 12 + fine
            cells[2, i] = 38
    return cells


# -- the walk ----------------------------------------------------------------------------------------------------
@_compiled
def _at_nodes(cells: np.ndarray, live: np.ndarray, nodes: np.ndarray, stride: int) -> np.ndarray:
    """The cells of the weights that are left, each in its node."""
    out = np.empty((cells.shape[0], len(live)), dtype=np.int64)
    moved = nodes * stride
    for j in range(cells.shape[0]):
        row, to = cells[j], out[j]
        for i in range(len(live)):
            to[i] = row[live[i]] + moved[i]
    return out


@_compiled
def _sizes(
    bank: Bank,
    cells: tuple[np.ndarray, np.ndarray],
    negative: np.ndarray,
    size: np.ndarray,
    way: KernelMode,
    tables: Tables,
    stream: Stream,
) -> bool:
    """Code the magnitudes (from 1 on) in `size`, or decode them into it; False where the stream is broken."""
    known = size.copy()
    size[:] = 1
    live = np.arange(len(size))
    for k in range(way.unary):
        bits = np.empty(len(live), dtype=np.int64)
        for i in range(len(live)):
            bits[i] = known[live[i]] > k + 1
        there = _at_nodes(cells[0], live, negative[live], bank.strides[2 + k])
        if not _flip(bank, 2 + k, there, bits, tables, stream):
            return False
        live = live[bits == 1]
        if not len(live):
            return True
        for i in range(len(live)):
            size[live[i]] += 1
    code = negative[live]  # twice the digits so far as a number, and the sign
    for depth in range(way.digits):
        bits = np.empty(len(live), dtype=np.int64)
        nodes = code.copy()
        for i in range(len(live)):
            bits[i] = (known[live[i]] - 1 - way.unary) >> (way.digits - 1 - depth) & 1
            if 1 << depth > way.nodes:
                nodes[i] = min(code[i] >> 1, way.nodes - 1) * 2 + negative[live[i]]
        which = 2 + way.unary + depth
        of = cells[0] if depth < _RICH_DIGITS else cells[1]
        there = _at_nodes(of, live, nodes, bank.strides[which])
        if not _flip(bank, which, there, bits, tables, stream):
            return False
        for i in range(len(live)):
            code[i] = (code[i] + bits[i]) * 2 - negative[live[i]]
    for i in range(len(live)):
        size[live[i]] += code[i] >> 1
    return True


@_compiled
def _ranks(
    book: Book,
    block: CodedBlock,
    ranks: np.ndarray,
    way: KernelMode,
    bank: Bank,
    tables: Tables,
    stream: Stream,
) -> int:
    """Code the signed ranks of a block, or decode them into `ranks`; 0, or what is wrong as `walk` says it."""
    chosen = np.arange(len(ranks))
    if way.zero:
        bits = (ranks != 0).astype(np.int64)
        if not _flip(bank, 0, _zero_cells(book, block, tables, way.rich), bits, tables, stream):
            return 1
        if stream.decodes:
            ranks[:] = 0
        chosen = np.nonzero(bits)[0]
    if not len(chosen):
        return 0
    negative = np.full(len(chosen), np.int64(way.above == 0))
    if way.below and way.above:
        negative = (ranks[chosen] < 0).astype(np.int64)
        if not _flip(bank, 1, _sign_cells(book, block, chosen, way.rich), negative, tables, stream):
            return 1
    size = np.ones(len(chosen), dtype=np.int64)
    if max(way.below, way.above) > 1:
        size = np.abs(ranks[chosen])
        cells = (
            _size_cells(book, block, chosen, negative, tables, way.rich),
            _low_cells(block, book.signed.shape[2], chosen, tables, way.rich),
        )
        if not _sizes(bank, cells, negative, size, way, tables, stream):
            return 1
    for i in range(len(chosen)):
        if size[i] > (way.below if negative[i] else way.above):
            return 2
        ranks[chosen[i]] = -size[i] if negative[i] else size[i]
    return 0


@_compiled
def _open(book: Book, way: KernelMode, tap: int, top: int, tables: Tables, table: np.ndarray) -> CodedBlock:
    """A block before its features: the caller fills in `place` and `prediction`."""
    _, filters, channels = book.signed.shape
    bottom = min(top + way.rows, filters)
    largest = max(1, max(way.below, way.above))
    count, total = book.sums[0], book.sums[1]
    mean = max(4, 16 * total // count if count else 16 * largest // 3)
    unit = max(16, 256 * total // count if count else 256 * largest // 3)
    for k in range(len(table)):
        rank = k - len(table) // 2
        table[k] = min(256 * 64 * abs(rank) // unit, tables.most) * np.sign(rank)
    spots = np.where(book.near[tap] < tap, book.near[tap], -1)
    in_filter, in_channel = tap * channels, tap * filters + top
    of_filters, of_channels = book.filters[:, top:bottom], book.channels
    empty = np.empty(0, dtype=np.int64)
    lean_filter, lean_channel = empty, empty
    if way.rich:
        lean_filter = _lean_of(in_filter, of_filters[1], mean)
        lean_channel = _lean_of(in_channel, of_channels[1], mean)
    by_filter = _steps_of(book, tables.twelve, in_filter, of_filters[0], mean)
    by_channel = _steps_of(book, tables.twelve, in_channel, of_channels[0], mean)
    return CodedBlock(
        tap, top, bottom, mean, unit, spots, by_filter, by_channel, lean_filter, lean_channel, empty, empty
    )


@_compiled
def walk(
    part: tuple[int, int, int],
    source: np.ndarray,
    book: Book,
    way: KernelMode,
    bank: Bank,
    fits: tuple[Fit, Fit],
    tables: Tables,
    stream: Stream,
) -> int:
    """Code the blocks of a part of a tensor, its planes of signed ranks in `source`, or decode them into `book.signed`.

    Args:
        part: The tap, the first filter, and the filter after the last.
        source: The signed ranks [taps, filters, channels]; of a decoder, anything.
        book: What is known so far.
        way: How the tensor is coded.
        bank: The mixers.
        fits: The forecasts of size and of value.
        tables: The model's tables.
        stream: The range coder.

    Returns:
        0: done. 1: the stream is none of these. 2: a level lies outside the codebook.
    """
    _, filters, channels = book.signed.shape
    table = np.empty(2 * max(1, max(way.below, way.above)) + 1, dtype=np.int64)
    tap = part[0]
    for top in range(part[1], part[2], way.rows):
        b = _open(book, way, tap, top, tables, table)
        counts = (tap * channels, tap * filters + top)
        features, values = _features_of(book, (tap, top, b.bottom, b.unit), counts, table, tables.most)
        place, prediction = _predictions(fits, tap, features, values, tables)
        block = CodedBlock(
            b.tap, b.top, b.bottom, b.mean, b.unit, b.spots, b.by_filter, b.by_channel, b.lean_filter,
            b.lean_channel, place, prediction,
        )  # fmt: skip
        n = len(place)
        ranks = np.zeros(n, dtype=np.int64)
        if not stream.decodes:
            ranks[:] = source[tap, top : b.bottom].reshape(-1)
        wrong = _ranks(book, block, ranks, way, bank, tables, stream)
        if wrong:
            return wrong
        every = max(1, n // 512)
        used = (n + every - 1) // every
        trust = np.empty(used)
        for kind in range(2 if tap else 1):
            of = values if kind else features
            for i in range(used):
                value = table[ranks[i * every] + len(table) // 2]
                of[-1, i * every] = value if kind else abs(value)
                at = place[i * every]
                trust[i] = tables.trust_value[at] if kind else tables.trust_size[at]
            _learn(fits[kind], tap, of, trust, every, tables)
        _close(book, block, ranks, way.rich)
    return 0

"""The fast mixed model against the specification read aloud."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from secateur.coding import mixed
from secateur.coding.forecast import MOST, Forecast
from secateur.coding.logistic import SQUASH, STRETCH
from secateur.coding.mixing import EXACT, Mixer, places

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.coding import by_the_book


def test_the_tables() -> None:
    assert SQUASH.tolist() == by_the_book.SQUASH
    for p in (0, 1, 24, 400, 32767, 32768, 60000, 65535, 65536):
        assert STRETCH[p] == by_the_book.stretch(p)


CASES = [
    ((12, 6, 3, 3), 15, 7), ((40, 32), 9, None), ((8, 1, 5, 5), 5, 0), ((30,), 40, 20), ((6, 17), 3, 2),
    ((3, 2, 9, 9), 4, 1), ((20, 30, 1, 1), 70, 35), ((5, 4, 7), 2, 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "grain"), [("old", 10), ("old", 8), ("plain", 11), ("plain", 6), ("rich", 7)]
)
def test_streams_follow_the_specification(kind: str, grain: int) -> None:
    """Several tensors of one section, so that what is carried from one to the next is held to it as well."""
    rng = np.random.default_rng(14)
    memory, book = mixed.MixerBank(), {}
    for shape, size, zero in CASES:
        spread = rng.gamma(1.0, size / 6, (shape[0], *[1] * (len(shape) - 1)))
        drawn = rng.laplace(0, 1, shape) * spread + (size // 2 if zero is None else zero)
        levels = np.clip(np.rint(drawn), 0, size - 1).astype(np.int64)
        below, above = (zero, size - 1 - zero) if zero is not None else (size // 2, size - size // 2)
        data = mixed.encode(levels, below, above, memory, zero is not None, grain, kind)
        if kind == "old":
            data = b"\1" + data
        assert by_the_book.decode(data, shape, size, zero, book) == levels.reshape(-1).tolist(), shape


class Recorded:
    """In place of a decoder: gives the bits it was made of, and keeps the probabilities it was asked with."""

    def __init__(self, bits: np.ndarray):
        self.bits = iter(bits.tolist())
        self.odds: list[int] = []

    def bit(self, p: int) -> int:
        self.odds.append(p)
        return next(self.bits)


@pytest.mark.parametrize("nodes", [1, 4])
@pytest.mark.parametrize("start", [14000, (1 << 20) - 1, 1 - (1 << 20)])
def test_batches_of_all_lengths_follow_the_specification(nodes: int, start: int) -> None:
    """Short batches look up and count their own cells, long ones all of them, and the longest are summed in parts."""
    rng = np.random.default_rng(19)
    sizes = (5, 30)
    mixer, book = Mixer(nodes, sizes), by_the_book.Mixer(nodes, sizes)
    mixer._whole, book.weights = [start] * 2, [start] * 2
    mixer._weights[:-1] = start / 65536
    lengths = [3, 20, 60, 500, 7, 500, 20] + [EXACT + 100] * (start == 14000 and nodes == 1)
    for turn, length in enumerate(lengths):
        if turn in (3, 5):
            mixer.next_tensor()
            book.shrink()
        node = rng.integers(0, nodes, length)
        contexts = np.stack([rng.integers(0, size, length) for size in sizes])
        bits = (rng.random(length) < (1 + contexts[0] + node) / 10).astype(np.intp)
        pairs = mixer.predict(None if nodes == 1 else node, places(sizes, contexts))
        mixer.learn(bits)
        recorded = Recorded(bits)
        book.batch(recorded, node.tolist(), contexts.T.tolist())
        assert (pairs[:, 1] * 65536).tolist() == recorded.odds, length
        assert (pairs.sum(axis=1) == 1).all()
        assert mixer._whole == book.weights


def test_a_forecast_follows_the_specification_near_what_doubles_hold() -> None:
    """Small features and large targets: where sums grow too large for doubles, weights are at their limit."""
    rng = np.random.default_rng(20)
    start = [9830, 19661, 0]
    forecast, book = Forecast(start), by_the_book.Forecast(start)
    for size in (1, 1, 2, 1, 300, 300, 1):
        columns = rng.integers(-size, size + 1, (3, 500)) if size > 2 else rng.integers(1, size + 1, (3, 500))
        target = np.full(500, MOST)
        trust = np.full(500, 1 << 15)
        forecast.learn(np.vstack([columns, target]).astype(np.float64), trust.astype(np.float64))
        book.learn(columns.T.tolist(), target.tolist(), trust.tolist())
        assert forecast.weights.tolist() == book.weights
        if size == 300:
            forecast.next_tensor()
            book.fade(4)

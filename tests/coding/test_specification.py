"""The fast mixed model against the specification read aloud."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from secateur.coding import mixed
from secateur.coding.logistic import SQUASH, STRETCH

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
    memory, book = mixed.Memory(), {}
    for shape, size, zero in CASES:
        spread = rng.gamma(1.0, size / 6, (shape[0], *[1] * (len(shape) - 1)))
        drawn = rng.laplace(0, 1, shape) * spread + (size // 2 if zero is None else zero)
        levels = np.clip(np.rint(drawn), 0, size - 1).astype(np.int64)
        below, above = (zero, size - 1 - zero) if zero is not None else (size // 2, size - size // 2)
        data = mixed.encode(levels, below, above, memory, zero is not None, grain, kind)
        if kind == "old":
            data = b"\1" + data
        assert by_the_book.decode(data, shape, size, zero, book) == levels.reshape(-1).tolist(), shape

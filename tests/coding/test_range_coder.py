"""constriction against the whole-number definition of docs/format.md."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from secateur.coding.range_coder import TOTAL, Decoder, Encoder
from secateur.coding.static import frequencies
from secateur.errors import FormatError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.coding.by_the_book import RangeDecoder


@pytest.mark.parametrize("kind", ["even", "rare", "often", "mixed"])
def test_bits_follow_the_definition(kind: str) -> None:
    rng = np.random.default_rng(3)
    ones = {
        "even": np.full(4000, 32768),
        "rare": np.full(4000, 24),
        "often": np.full(4000, 65512),
        "mixed": rng.integers(1, 65536, 4000),
    }[kind]
    bits = (rng.random(4000) * 65536 < ones).astype(np.int64)
    bits[::50] ^= 1  # unlikely ones too
    encoder = Encoder()
    encoder.bits(bits, ones)
    data = encoder.finish()
    book = RangeDecoder(data)
    assert [book.bit(int(p)) for p in ones] == bits.tolist()
    decoder = Decoder(data)
    assert decoder.bits(ones).tolist() == bits.tolist()
    decoder.finish()


def test_symbols_follow_the_definition() -> None:
    rng = np.random.default_rng(4)
    counts = np.array([0, 1, 5, 4000, 17, 0, 90])
    table = frequencies(counts)
    assert int(table.sum()) == TOTAL - 7
    symbols = rng.choice(7, 5000, p=(table + 1) / TOTAL)
    encoder = Encoder()
    encoder.symbols(symbols, table)
    encoder.bits(np.array([1, 0]), np.array([100, 200]))
    data = encoder.finish()
    lefts = [0, *np.cumsum(table + 1).tolist()]
    book = RangeDecoder(data)
    assert [book.symbol(lefts) for _ in symbols] == symbols.tolist()
    assert [book.bit(100), book.bit(200)] == [1, 0]


def test_a_table_that_is_not_exact_is_refused() -> None:
    with pytest.raises(ValueError, match="must sum to"):
        Encoder().symbols(np.array([0, 1]), np.array([1, 2]))


def test_a_stream_outside_the_range_is_a_format_error() -> None:
    with pytest.raises(FormatError, match="outside the coder's range"):
        Decoder(b"\xff" * 12).bits(np.full(100, 32768))


def test_a_stream_that_goes_on_is_a_format_error() -> None:
    encoder = Encoder()
    encoder.bits(np.array([1, 0, 1]), np.full(3, 32768))
    decoder = Decoder(encoder.finish() + bytes(3) + b"\1" * 30)
    decoder.bits(np.full(3, 32768))
    with pytest.raises(FormatError, match="has bytes after its last symbol"):
        decoder.finish()

"""Bits of ideal codes, and numbers rounded to few bits, worked out by hand."""

from __future__ import annotations

import numpy as np

import secateur as sc
from secateur.container.codebooks import round_to_bits
from secateur.container.tensors import read_text, text
from secateur.quantize.rates import entropy_bits, huffman_bits


def test_entropy_of_counts() -> None:
    assert entropy_bits(np.array([], dtype=np.int64)) == 0.0
    assert entropy_bits(np.array([0, 0])) == 0.0
    assert entropy_bits(np.array([4, 4])) == 8.0
    assert entropy_bits(np.array([2, 1, 1, 0])) == 2 * 1 + 2 * 2  # half of them 1 bit, a quarter 2


def test_huffman_bits_of_counts() -> None:
    assert huffman_bits(np.array([2, 1, 1])) == 2 * 1 + 2 * 2


def test_the_largest_multiple_has_the_bits_that_were_asked_for() -> None:
    """5 bits with a sign: multiples up to 15, so 1.0 is 8 eighths, and a sixteenth is no multiple."""
    found = round_to_bits(np.array([1.0, 0.0625, 0.25], dtype=np.float32), 5)
    assert found.tolist() == [1.0, 0.0, 0.25]


def test_a_text_of_two_letters_takes_a_bit_for_each() -> None:
    letters = np.random.default_rng(0).integers(97, 99, 4000).astype(np.uint8).tobytes()
    coded = text(letters)
    assert coded[0] == 1
    assert 500 <= len(coded) < 540
    assert bytes(read_text(coded, "here")) == letters
    assert text(b"abc") == b"\0abc"  # where coding does not help


def test_a_sensitivity_of_zero_is_allowed() -> None:
    assert sc.budget.StdDev(0).sensitivity == 0

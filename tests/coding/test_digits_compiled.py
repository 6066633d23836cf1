"""The compiled passes over words give the bytes and the words of numpy's."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.coding import digits, floats, native

needs_compiler = pytest.mark.skipif(
    native.compiler() is None, reason="needs a C compiler: cc, or the extra fast"
)


@pytest.fixture
def library():
    """The compiled library."""
    found = native.load()
    assert found is not None
    return found


def words_of(width: int, count: int, kind: str) -> np.ndarray:
    random = np.random.default_rng(width * count)
    if width == 1:
        return random.integers(0, 256 if kind == "noise" else 40, count).astype(np.uint8)
    if kind == "floats":
        values = random.normal(size=count).astype({2: np.float16, 4: np.float32, 8: np.float64}[width])
        return values.view(f"u{width}")
    words = random.integers(0, 2**63, count, dtype=np.uint64).astype(f"u{width}")
    return words & np.array(0xFF0F, dtype=words.dtype) if kind == "sparse" else words


@needs_compiler
@pytest.mark.parametrize("floating", [False, True])
@pytest.mark.parametrize("kind", ["floats", "sparse", "noise"])
@pytest.mark.parametrize("count", [1 << 16, 70_001])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_planes_are_those_of_numpy(library, monkeypatch, width, count, kind, floating):
    words = words_of(width, count, kind)
    monkeypatch.setattr(digits, "_library", lambda words: None)
    reference = floats.encode(words, floating)
    used = []
    monkeypatch.setattr(digits, "_library", lambda words: used.append(1) or library)
    assert floats.encode(words, floating) == reference
    assert (floats.decode(reference, count, width, floating) == words).all()
    assert used
    monkeypatch.setattr(digits, "_library", lambda words: None)
    assert (floats.decode(reference, count, width, floating) == words).all()


@needs_compiler
def test_words_in_another_order_of_bytes_are_left_to_numpy(monkeypatch):
    monkeypatch.setattr(native, "cached", lambda: "there")
    monkeypatch.setattr(native, "load", lambda: "library")
    words = np.zeros(8, dtype=np.uint32)
    assert digits._library(words) == "library"
    assert digits._library(words.astype(">u4")) is None
    assert digits._library(words[::2]) is None
    shifted = np.zeros(33, dtype=np.uint8)[1:].view(np.uint32)
    assert digits._library(shifted) is None
    assert digits._library(words[:, None].T[0]) == "library"


@needs_compiler
def test_a_plane_of_one_byte_takes_a_few_bytes_and_no_range_coder():
    words = (np.random.default_rng(0).normal(size=1 << 17).astype(np.float16).astype(np.float32)).view(
        np.uint32
    )
    data = floats.encode(words, True)
    assert data[0] == digits.MARK
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits.static, "decode", lambda *_: pytest.fail("the range coder"))
        assert (floats.decode(data, len(words), 4, True) == words).all()
    assert len(data) < 0.86 * len(words) * 2 + 1000  # two of the four bytes, and hardly more


@needs_compiler
def test_the_passes_are_compiled_only_by_a_process_that_codes_much(monkeypatch):
    monkeypatch.setattr(digits, "LOADING", 3000)
    monkeypatch.setattr(digits, "_coded", [0])
    monkeypatch.setattr(native, "cached", lambda: None)
    monkeypatch.setattr(native, "load", lambda: "library")
    words = np.zeros(1000, dtype=np.uint16)
    assert [digits._library(words) for _ in range(4)] == [None, None, "library", "library"]
    monkeypatch.setattr(digits, "_coded", [0])
    monkeypatch.setattr(native, "cached", lambda: "there")
    assert digits._library(words) == "library"


@needs_compiler
@pytest.mark.parametrize("count", [1, 5, 4096, 70_003])
def test_bytes_are_counted_as_numpy_counts_them(library, monkeypatch, count):
    plane = np.random.default_rng(count).binomial(255, 0.3, count).astype(np.uint8)
    monkeypatch.setattr(digits, "_library", lambda words: library)
    assert digits._entropy(plane) == digits.static.entropy(plane)

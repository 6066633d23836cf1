"""Numbers in digits of sixteen bits: held to the definition of docs/format.md, in every width and way."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.coding import digits, floats, frames, static, varint
from secateur.errors import FormatError

pytestmark = pytest.mark.skipif(not frames.available(), reason="needs Python 3.14 or zstandard")


def words_by_the_book(data: bytes, count: int, width: int, floating: bool) -> list[int]:
    """One chunk, as section 6 says it, a word at a time."""
    reader = varint.Reader(data, "book")
    assert reader.byte() == 3

    def plane(way: int) -> list[int]:
        if way == 0:
            return list(reader.take(count))
        part = reader.part()
        return (static.decode(part, count, 256) if way == 1 else frames.decompress(part, count)).tolist()

    planes: list[list[int]] = []
    while len(planes) < width:
        way = reader.byte()
        if way == 4:
            assert len(planes) % 2 == 0
            raw = bytes(reader.take(2 * count))
            planes += [list(raw[1::2]), list(raw[::2])]
        else:
            assert way in (0, 1, 3)
            planes.append(plane(way))
    reader.end()
    out = []
    for column in zip(*planes, strict=True):
        word = int.from_bytes(bytes(column), "big")
        if floating:  # of the top nine bits (eight, if there are no more) the lowest goes to the top
            size = min(9, 8 * width)
            below = 8 * width - size
            top = word >> below
            word = (top >> 1 | (top & 1) << (size - 1)) << below | word & ((1 << below) - 1)
        out.append(word)
    return out


def drawn(width: int, count: int, seed: int = 0) -> np.ndarray:
    """Words whose top byte is worth a frame, of both signs."""
    rng = np.random.default_rng(seed)
    if width == 1:
        return (rng.geometric(0.1, count).clip(1, 127) + 128 * rng.integers(0, 2, count)).astype(np.uint8)
    values = rng.normal(0, 0.02, count)
    if width == 2:
        return (values.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return values.astype(f"f{width}").view(f"u{width}")


@pytest.mark.parametrize("floating", [True, False])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_words_follow_the_specification(width: int, floating: bool) -> None:
    count = digits.LONG
    words = drawn(width, count)
    data = floats.encode(words, floating)
    assert data[0] == digits.MARK
    assert words_by_the_book(data, count, width, floating) == words.tolist()
    assert np.array_equal(floats.decode(data, count, width, floating), words)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_pieces_and_chunks(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    words = drawn(width, 70_001, seed=1)
    whole = floats.encode(words, True)
    monkeypatch.setattr(digits, "_PIECE", 999)
    assert floats.encode(words, True) == whole
    assert np.array_equal(floats.decode(whole, 70_001, width, True), words)
    monkeypatch.setattr(floats, "CHUNK", 65_600)
    several = floats.encode(words, True)
    assert several != whole
    assert np.array_equal(floats.decode(several, 70_001, width, True), words)


def test_every_word_of_sixteen_bits_comes_back() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    words = np.concatenate([every, drawn(2, 4 << 16)])
    data = floats.encode(words, True)
    assert data[0] == digits.MARK
    assert np.array_equal(floats.decode(data, words.size, 2, True), words)


def test_the_layout_is_taken_only_where_it_has_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = drawn(4, 70_000)
    noise = np.random.default_rng(2).integers(0, 1 << 32, 70_000, dtype=np.uint32)
    assert floats.encode(weights, True)[0] == 3
    older = (
        floats.encode(weights, True, small=True),
        floats.encode(weights[: digits.LONG - 1], True),
        floats.encode(noise, True),
        floats.encode(np.zeros(70_000, np.uint32), True),
    )
    assert all(data[0] < 3 for data in older)
    monkeypatch.setattr(frames, "_tools", lambda: ())
    data = floats.encode(weights, True)
    assert data[0] == 2
    assert np.array_equal(floats.decode(data, 70_000, 4, True, version=2), weights)


def test_sizes_are_those_of_huffman_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (2, 4):
        words = drawn(width, 300_000)
        framed = len(floats.encode(words, True))
        with monkeypatch.context() as patch:
            patch.setattr(frames, "_tools", lambda: ())
            assert framed < 1.005 * len(floats.encode(words, True))


def test_earlier_versions_do_not_know_the_layout() -> None:
    data = floats.encode(drawn(2, 70_000), True)
    for version, last in ((1, 1), (2, 2)):
        with pytest.raises(FormatError, match=f"has coding 3, known codings are 0..{last}"):
            floats.decode(data, 70_000, 2, True, version=version)


@pytest.mark.parametrize(
    ("data", "width", "message"),
    [
        (b"\3", 2, "expected 1 more byte"),
        (b"\3\2\0", 2, "has coding 2, known codings are 0, 1 and 3"),
        (b"\3\5\0", 4, "has coding 5"),
        (b"\3\4\0\0", 1, "has coding 4"),
        (b"\3\0abc\4", 2, "has coding 4"),
        (b"\3\4abcde", 2, "expected 1 more byte"),
        (b"\3\4abcdefg", 2, "1 bytes are left over"),
        (b"\3\0abc\3\4none", 2, "expected a Zstandard frame, found 6e6f6e65"),
    ],
)
def test_damaged_digits(data: bytes, width: int, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        floats.decode(data, 3, width, True)

"""The models of levels: exact round trips, honest lengths, tables that are the same everywhere."""

from __future__ import annotations

import hashlib
import itertools
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.coding import ascending, floats, huffman, indices, mixed, planes, static, varint
from secateur.coding import predicted_contexts as foretold
from secateur.coding.forecast import MOST, Forecast
from secateur.coding.logistic import SQUASH, STRETCH
from secateur.coding.mixing import EXACT, Mixer, places
from secateur.errors import FormatError, NothingToDoError

SHAPES = [
    (1,), (7,), (5000,), (3, 5), (64, 48), (10, 64), (8, 3, 3, 3), (16, 1, 5, 5), (4, 6, 7), (2, 3, 2, 3, 3),
    (1, 1, 1, 1), (2, 2, 9, 9), (1, 4000), (4000, 1), (6, 17, 1, 1), (0,), (3, 0), (0, 3, 3, 3), (1 << 40, 0, 3),
]  # fmt: skip


def draw(shape: tuple[int, ...], size: int, spread: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(np.rint(rng.laplace(0, spread, shape)) + size // 2, 0, size - 1).astype(np.int64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("size", "zero"), [(2, 0), (2, 1), (3, 1), (9, None), (32, 15), (33, 0), (200, 100)])
@pytest.mark.parametrize("model", ["fast", "mixed", "strong"])
def test_levels_come_back(shape: tuple[int, ...], size: int, zero: int | None, model: str) -> None:
    levels = draw(shape, size, size / 6)
    data = indices.encode(levels, size, zero, model)
    assert np.array_equal(indices.decode(data, shape, size, zero), levels)


@given(
    st.tuples(st.integers(1, 12), st.integers(1, 20), st.integers(1, 4), st.integers(1, 4)),
    st.integers(2, 40),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_any_levels_come_back(shape: tuple[int, ...], size: int, data: st.DataObject) -> None:
    zero = data.draw(st.one_of(st.none(), st.integers(0, size - 1)))
    levels = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, size, shape)
    for model in ("fast", "mixed"):
        assert np.array_equal(
            indices.decode(indices.encode(levels, size, zero, model), shape, size, zero), levels
        )


def test_memory_is_carried_alike_by_coder_and_decoder() -> None:
    writing, reading = indices.MixerBank(), indices.MixerBank()
    lengths = []
    for seed in range(4):
        levels = draw((16, 8, 3, 3), 15, 1.5, seed)
        data = indices.encode(levels, 15, 7, "mixed", writing)
        lengths.append(len(data))
        assert np.array_equal(indices.decode(data, levels.shape, 15, 7, reading), levels)
    assert lengths[-1] < lengths[0]  # what was learnt pays


def test_contexts_pay_where_there_is_structure() -> None:
    rng = np.random.default_rng(5)
    scale = rng.gamma(0.5, 4, (64, 1, 1, 1)) * rng.gamma(0.5, 1, (1, 32, 1, 1))
    levels = np.clip(np.rint(rng.normal(size=(64, 32, 3, 3)) * scale), -15, 15).astype(np.int64) + 15
    plain = static.entropy(levels) * levels.size / 8
    assert len(indices.encode(levels, 31, 15, "mixed")) < 0.85 * plain
    assert len(indices.encode(levels, 31, 15, "strong")) < 0.85 * plain
    assert len(indices.encode(levels, 31, 15, "fast")) < plain + 150


def test_noise_costs_hardly_more_than_its_entropy() -> None:
    levels = np.random.default_rng(6).integers(0, 32, (64, 64, 3, 3))
    assert len(indices.encode(levels, 32, None, "mixed")) < 1.02 * 5 / 8 * levels.size


def test_a_stream_is_padded_to_its_floor() -> None:
    levels = np.full((1000, 1000), 3)
    for model in ("fast", "mixed"):
        data = indices.encode(levels, 8, 3, model)
        assert len(data) == indices.floor(levels.size) == 7781
        assert np.array_equal(indices.decode(data, levels.shape, 8, 3), levels)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "at least 1 bytes, got 0"),
        (b"\xfe", "starts with a byte"),
        (b"\1\xff", "starts with a byte"),
        (b"\1", "starts with a byte"),
        (b"\0", "found the end"),
        (b"\0\0\0\2", "expected a one"),
    ],
)
def test_bad_streams_say_what_is_wrong(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        indices.decode(data, (4, 4), 8, 3)


def test_files_of_version_1_hold_no_model_of_version_2() -> None:
    levels = draw((8, 3, 3, 3), 9, 1.0)
    with pytest.raises(FormatError, match="files of version 1 know models 0 and 1"):
        indices.decode(indices.encode(levels, 9, 4), levels.shape, 9, 4, indices.MixerBank(version=1))


def test_a_level_outside_the_codebook_is_refused() -> None:
    levels = np.array([[0, 1, 2, 3, 4]] * 40)
    data = indices.encode(levels, 5, 0, "mixed")
    with pytest.raises(FormatError):
        indices.decode(data, levels.shape, 4, 0)


def test_tables_are_the_same_everywhere() -> None:
    assert hashlib.sha256(SQUASH.astype("<i4").tobytes()).hexdigest()[:16] == "38d6891507bfff55"
    assert hashlib.sha256(STRETCH.astype("<i4").tobytes()).hexdigest()[:16] == "c8200373833dc518"
    for odds in (-1400, -100, 0, 5, 1400):
        assert STRETCH[SQUASH[odds + 2047]] == odds


def test_sums_of_the_mixer_stay_exact() -> None:
    """The largest block and the widest odds keep every float64 sum below 2**53, where whole numbers are exact."""
    sets = (foretold.AllContexts.ZERO_SIZES, foretold.AllContexts.SIGN_SIZES, foretold.AllContexts.SIZE_SIZES)
    beyond, contexts = 2 * 2047, max(map(len, sets))
    assert contexts * (1 << 20) * beyond < 1 << 53
    assert EXACT * beyond * 65536 < 1 << 53
    assert contexts * EXACT * beyond**2 * (65536**2 // 4 >> 20) < 1 << 53


def test_one_long_row_is_coded_in_exact_sums() -> None:
    levels = draw((1, 8 * (EXACT + 5000)), 9, 1.0)
    assert planes.layout(levels.shape).channels > EXACT
    assert np.array_equal(indices.decode(indices.encode(levels, 9, 4), levels.shape, 9, 4), levels)


def test_a_mixer_learns_which_context_to_trust() -> None:
    rng = np.random.default_rng(7)
    mixer = Mixer(1, (2, 50))
    for _ in range(20):
        good, noise = rng.integers(0, 2, 500), rng.integers(0, 50, 500)
        mixer.predict(None, places((2, 50), np.stack([good, noise])))
        mixer.learn(np.where(rng.random(500) < 0.9, good, 1 - good))
    assert mixer._weights[0] > 4 * abs(int(mixer._weights[1]))


@pytest.mark.parametrize("count", [0, 1, 2, 255, 5000])
@pytest.mark.parametrize("size", [1, 2, 300])
def test_static_symbols_come_back(count: int, size: int) -> None:
    symbols = np.random.default_rng(8).integers(0, size, count)
    assert static.decode(static.encode(symbols, size), count, size).tolist() == symbols.tolist()


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("floating", [True, False])
def test_numbers_come_back(width: int, floating: bool) -> None:
    rng = np.random.default_rng(9)
    for words in (
        rng.integers(0, 1 << (8 * width - 1), 3000).astype(f"u{width}"),
        np.zeros(10, dtype=f"u{width}"),
        np.zeros(0, dtype=f"u{width}"),
        np.array([np.iinfo(f"u{width}").max, 0, 1], dtype=f"u{width}"),
    ):
        data = floats.encode(words, floating)
        assert np.array_equal(floats.decode(data, len(words), width, floating), words)


def test_chunks_of_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floats, "CHUNK", 100)
    words = np.random.default_rng(10).normal(size=1050).astype(np.float32).view(np.uint32)
    assert np.array_equal(floats.decode(floats.encode(words, True), 1050, 4, True), words)


@pytest.mark.parametrize("floating", [True, False])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_pieces_of_chunks(width: int, floating: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planes are the same however many words are taken apart at a time; the words, by the definition."""
    words = np.random.default_rng(18).integers(0, 2 ** (8 * width - 3), 1050).astype(f"u{width}")
    whole = floats.encode(words, floating)
    monkeypatch.setattr(floats, "_PIECE", 100)
    assert floats.encode(words, floating) == whole
    assert np.array_equal(floats.decode(whole, 1050, width, floating), words)
    bits = 8 * width
    turned = [(w << 1 | w >> (bits - 1)) % 2**bits if floating else w for w in words.tolist()]
    top = bytes(w >> (bits - 8) for w in turned)
    assert floats._planes(words, floating)[-1].tobytes() == top


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_long_planes_are_deflated_and_come_back(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floats, "LONG", 1000)
    words = np.random.default_rng(15).geometric(0.1, 5000).astype(f"u{width}")
    quick, small = (floats.encode(words, False, small) for small in (False, True))
    assert quick != small
    assert len(quick) < 1.02 * len(small) + 200
    for data in (quick, small):
        assert np.array_equal(floats.decode(data, 5000, width, False), words)
    assert np.array_equal(floats.decode(small, 5000, width, False, version=1), words)
    with pytest.raises(FormatError, match=r"has coding 2, known codings are 0..1"):
        floats.decode(quick, 5000, width, False, version=1)


def test_a_plane_that_does_not_inflate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floats, "LONG", 1000)
    words = np.random.default_rng(16).geometric(0.3, 5000).astype(np.uint8)
    deflated = floats._deflated(words)

    def plane(data: bytes) -> bytes:
        return b"\2" + varint.write(len(data)) + data

    assert np.array_equal(floats.decode(plane(deflated), 5000, 1, False), words)
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    large = bomb.compress(bytes(10_000_000)) + bomb.flush()
    for bad in (deflated[:-1], deflated[:-40], deflated + b"\0", b"", b"\xff" * 20, large):
        with pytest.raises(FormatError, match="does not inflate"):
            floats.decode(plane(bad), 5000, 1, False)
    for count in (4999, 5001):
        with pytest.raises(FormatError, match="does not inflate to exactly"):
            floats.decode(plane(deflated), count, 1, False)


def test_a_forecast_finds_the_weights_that_made_the_numbers() -> None:
    rng = np.random.default_rng(17)
    forecast = Forecast((20000, 20000, 20000))
    for _ in range(40):
        features = np.rint(rng.normal(0, 300, (3, 400)).clip(-2047, 2047))
        target = np.floor(features[0] / 2 - features[1] / 4)
        forecast.learn(np.vstack([features, target]), np.full(400, 2048.0))
    assert np.abs(forecast.weights - (32768, -16384, 0)).max() < 100


def test_sums_of_a_forecast_stay_exact() -> None:
    """The largest features, trusts and blocks keep every float64 below 2**53, where whole numbers are exact."""
    trust = max(foretold._TRUST_SIZE.max(), foretold._TRUST_VALUE.max())
    assert 1023 * MOST * MOST * trust + (1 << 50) < 1 << 53
    assert 14 * (1 << 26) * (1 << 20) < 1 << 53
    forecast = Forecast([1 << 20] * 14)
    for _ in range(20):
        columns = np.vstack([np.full((14, 1023), MOST * 1.0), np.full((1, 1023), -MOST * 1.0)])
        forecast.learn(columns, np.full(1023, trust))
        assert np.abs(forecast._sums).max() < 1 << 50


def test_float_weights_become_smaller() -> None:
    weights = np.random.default_rng(11).normal(0, 0.02, 100_000).astype(np.float32)
    assert len(floats.encode(weights.view(np.uint32), True)) < 0.86 * 4 * len(weights)
    half = (weights.view(np.uint32) >> 16).astype(np.uint16)
    assert len(floats.encode(half, True)) < 0.69 * 2 * len(weights)


@pytest.mark.parametrize("count", [1, 2, 3, 70_000])
def test_huffman_comes_back(count: int) -> None:
    symbols = np.minimum(np.random.default_rng(12).geometric(0.3, count), 40)
    code = huffman.Huffman.of(symbols)
    data = code.encode(symbols)
    assert len(data) == -(-int(code.lengths[symbols].sum()) // 8)
    assert np.array_equal(code.decode(data, count), symbols)
    assert static.entropy(symbols) <= code.average(symbols) <= static.entropy(symbols) + 1


def test_huffman_words_are_a_prefix_code_and_at_most_sixteen_bits() -> None:
    symbols = np.repeat(
        np.arange(30), np.minimum(2 ** np.arange(30), 200_000)
    )  # its plain tree is deeper than 16
    code = huffman.Huffman.of(symbols)
    assert code.lengths.max() == huffman.LONGEST
    words = sorted(code.table().values())
    assert not any(b.startswith(a) for a, b in itertools.pairwise(words))
    assert sum(2.0 ** -len(word) for word in words) <= 1
    assert np.array_equal(code.decode(code.encode(symbols), len(symbols)), symbols)


def test_huffman_is_optimal_on_a_known_case() -> None:
    code = huffman.Huffman.of(np.repeat(np.arange(6), [45, 13, 12, 16, 9, 5]))
    assert code.lengths.tolist() == [1, 3, 3, 3, 4, 4]


def test_huffman_refuses_what_it_cannot_read() -> None:
    code = huffman.Huffman.of(np.array([0, 0, 1, 2]))
    with pytest.raises(FormatError, match="ends"):
        code.decode(b"\0", 9)
    with pytest.raises(NothingToDoError, match="at least one symbol"):
        huffman.Huffman.of(np.zeros(0, dtype=np.int64))
    with pytest.raises(ValueError, match="does not have"):
        code.encode(np.array([7]))


@given(st.integers(0, varint.LARGEST))
def test_varints_come_back(value: int) -> None:
    assert varint.Reader(varint.write(value), "t").varint() == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x00", "needless bytes"),
        (b"\xff" * 10, "more than 63 bits"),
        (b"\x80", "expected 1 more byte"),
    ],
)
def test_bad_varints(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        varint.Reader(data, "t").varint()


def test_layouts_cover_every_weight_once() -> None:
    for shape in SHAPES:
        numbers = np.arange(int(np.prod(shape))).reshape(shape)
        plan = planes.layout(shape)
        walked = plan.planes(numbers)
        assert walked.shape == (plan.taps, plan.filters, plan.channels)
        assert np.array_equal(plan.tensor(walked, shape), numbers)


def test_the_strong_model_refuses_too_many_levels_a_side() -> None:
    levels = np.arange(3000).reshape(30, 100)
    data = indices.encode(levels, 3000, None, "mixed")
    assert data[0] == 0  # falls back to one table
    with pytest.raises(FormatError, match=f"at most {mixed.MOST_SIDE} levels"):
        indices.decode(b"\1" + data[1:], levels.shape, 3000, None)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 32, 200])
def test_ascending_numbers_come_back(width: int, count: int) -> None:
    rng = np.random.default_rng(13)
    numbers = np.unique(rng.integers(0, 1 << min(8 * width, 62), 4 * count).astype(f"u{width}"))[:count]
    data = ascending.encode(numbers)
    assert np.array_equal(ascending.decode(data, len(numbers), width), numbers)
    packed = np.arange(5, 5 + min(count, 200), dtype=f"u{width}")
    assert len(ascending.encode(packed)) == min(len(packed), 2) * width  # nothing is left to say


@pytest.mark.parametrize(
    ("data", "count", "message"),
    [
        (b"\0\0", 2, "at least 8 bytes"),
        (bytes(8), 2, "do not fit between 0 and 0"),
        (b"\0\0\0\0\x09\0\0\0", 3, "the bits do not end"),
        (b"\0\0\0\0\x09\0\0\0\0\0", 3, "the bits do not end"),
        (b"\0\0\0\0\x09\0\0\0\x01", 3, "the bits do not end"),
    ],
)
def test_bad_ascending_numbers(data: bytes, count: int, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        ascending.decode(data, count, 4)


@given(
    width=st.sampled_from([1, 2, 4, 8]),
    numbers=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=70),
    shift=st.integers(0, 63),
)
def test_ascending_numbers_take_the_bits_that_the_format_gives_them(width, numbers, shift):
    found = sorted({(number >> shift) % 256**width for number in numbers})
    known = np.array(found, dtype=f"u{width}")
    data = ascending.encode(known)
    assert (ascending.decode(data, len(known), width) == known).all()
    bits = ""
    for middle, low, high in ascending._order(found):
        count, place = high - low + 1, found[middle] - low
        short = count.bit_length() - 1
        spare = (2 << short) - count
        length, place = (short, place) if place < spare else (short + 1, place + spare)
        bits += format(place, f"0{length}b") if length else ""
    bits += "0" * (-len(bits) % 8)
    ends = known[[0, -1]] if len(known) > 1 else known
    assert data == ends.tobytes() + bytes(int(bits[k : k + 8], 2) for k in range(0, len(bits), 8))


@given(st.lists(st.integers(0, 2**40), max_size=30))
def test_many_varints_are_those_of_each_number(numbers):
    data = varint.write_all(numbers)
    assert data == b"".join(map(varint.write, numbers))
    reader = varint.Reader(data, "numbers")
    assert reader.varints(len(numbers)).tolist() == numbers
    reader.end()


def test_many_varints_are_checked_like_one():
    with pytest.raises(FormatError, match="is 9, expected at most 7"):
        varint.Reader(b"\1\x09\2", "numbers").varints(3, 7)
    with pytest.raises(FormatError, match="found the end"):
        varint.Reader(b"\1\2", "numbers").varints(3)

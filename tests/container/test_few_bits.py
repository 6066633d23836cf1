"""Batch norm, biases and codebooks in few bits: how far off they may be, what comes back, what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from secateur.coding import varint
from secateur.container import codebooks, scalar_rounding, tensors
from secateur.container import format as sct
from secateur.container.archive import save
from secateur.container.arrays import entry_of
from secateur.container.format import Entry
from secateur.container.frame import Archive
from secateur.container.inspection import inspect
from secateur.container.loading import load
from secateur.container.pack import _few
from secateur.container.reading import words_of
from secateur.container.save_options import SaveOptions
from secateur.container.scalar_streams import (
    MOST_NUMBER,
    ScalarGrid,
    ScalarStreams,
    decode,
    encode,
    most_numbers,
)
from secateur.container.writer import Writer
from secateur.errors import FormatError, NonFiniteError, NothingToDoError, OptionError


def net(eps: float = 1e-5) -> nn.Module:
    """A net whose batch norms have seen something: a dead channel, a negative scale."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False),
        nn.BatchNorm2d(16, eps=eps),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3),
        nn.BatchNorm2d(8, eps=eps),
        nn.Flatten(),
        nn.Linear(8 * 16, 10),
    )
    with torch.no_grad():
        for layer in (model[1], model[4]):
            layer.weight.normal_(1.0, 0.3)
            layer.bias.normal_(0.0, 0.5)
            layer.weight[:2] = torch.tensor([0.0, -0.7])
    for _ in range(20):
        model(torch.randn(32, 3, 8, 8) * 2 + 1)
    return model.eval()


def folded(model: nn.Module, layer: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale and the shift that a batch norm computes in evaluation."""
    scale = layer.weight / torch.sqrt(layer.running_var + layer.eps)
    return scale, layer.bias - layer.running_mean * scale


@pytest.mark.parametrize("bits", [4, 6, 9, 12])
@pytest.mark.parametrize("names", ["file", "model"])
def test_batch_norm_is_off_by_no_more_than_is_said(tmp_path, bits, names):
    model = net()
    save(model, tmp_path / "m.sct", names=names, options=SaveOptions(batch_norm=bits))
    again = load(tmp_path / "m.sct", into=net()).eval()
    shifts = torch.cat([folded(model, layer)[1] for layer in (model[1], model[4])])
    for at in (1, 4):
        scale, shift = folded(model, model[at])
        mine, theirs = folded(again, again[at])
        assert mine[0] == 0
        assert mine[1] < 0
        assert ((mine - scale).abs() <= scale.abs() / 2 ** (bits - 1) + 1e-6).all()
        assert (theirs - shift).abs().max() <= shifts.square().mean().sqrt() / 2 ** (bits - 2) + 1e-6
        assert int(again[at].num_batches_tracked) == 0
    images = torch.randn(8, 3, 8, 8)
    assert (again(images) - model(images)).abs().max() < 2.0 ** (4 - bits)


def test_few_bits_are_smaller_than_half_precision_and_statistics_cost_nothing(tmp_path):
    model = sc.models.build("resnet20").eval()
    half = save(model, tmp_path / "half.sct", names="model", options=SaveOptions(batch_norm="fp16")).size
    few = save(model, tmp_path / "few.sct", names="model", options=SaveOptions(batch_norm=6)).size
    assert few < half
    with open(tmp_path / "few.sct", "rb") as file:
        archive = Archive(file)
        assert archive.folded
        assert archive.count == len(model.state_dict()) - 3 * 19
    state = load(tmp_path / "half.sct", into=sc.models.build("resnet20")).state_dict()
    assert list(state) == list(model.state_dict())


def test_a_folded_file_gives_a_whole_state_dict(tmp_path):
    model = net()
    save(model, tmp_path / "m.sct", options=SaveOptions(batch_norm=8))
    state = load(tmp_path / "m.sct")
    assert set(state) == set(model.state_dict())
    fresh = net()
    fresh.load_state_dict(state)
    again = load(tmp_path / "m.sct", into=net()).eval()
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(fresh.eval()(images), again(images))


def test_statistics_stay_where_the_reader_cannot_know_them(tmp_path):
    """Another eps than torch's: 1 - eps is written."""
    model = net(eps=1e-3)
    save(model, tmp_path / "m.sct", options=SaveOptions(batch_norm=12))
    with open(tmp_path / "m.sct", "rb") as file:
        assert not Archive(file).folded
    again = load(tmp_path / "m.sct", into=net(eps=1e-3)).eval()
    images = torch.randn(4, 3, 8, 8)
    assert (again(images) - model(images)).abs().max() < 0.01


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_codebooks_in_few_bits(tmp_path, bits):
    shared = sc.share(net(), bits=3)
    exact = save(shared.model, tmp_path / "exact.sct", shared).size
    few = save(shared.model, tmp_path / "few.sct", shared, options=SaveOptions(codebook_bits=bits)).size
    assert few < exact
    again = load(tmp_path / "few.sct", into=net())
    for name, book in shared.codebooks.items():
        before, after = book.tensor(), dict(again.named_parameters())[name]
        assert ((before - after).abs() <= before.abs().max() / (2 ** (bits - 1) - 1)).all()
        assert len(after.unique()) <= len(before.unique())
    # What is rounded already comes back bit for bit, and asks for no option.
    same = save(again, tmp_path / "same.sct").size
    assert same <= few
    state = load(tmp_path / "same.sct")
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize(
    ("step", "first", "text"),
    [
        (0.0, 1, "do not ascend"),  # 0, 0, 0
        (-0.5, 1, "do not ascend"),
        (1.5e-45, -1, None),
        (float("inf"), 1, "is not finite"),
        (3e38, 1, "do not ascend"),  # 3e38, inf, inf
    ],
)
def test_even_steps_that_repeat_a_value_are_refused(step, first, text):
    data = b"\1" + varint.write(3) + np.float32(step).tobytes() + varint.write(varint.unsigned(first))
    entry = Entry("w", "F32", (9,))
    if text is None:
        got = codebooks.read_codebook(memoryview(data), entry, "w").view(np.float32)
        assert got.tolist() == (np.float32(step) * np.arange(-1, 2, dtype=np.float32)).tolist()
        return
    with pytest.raises(FormatError, match=text):
        codebooks.read_codebook(memoryview(data), entry, "w")


def test_biases_in_few_bits(tmp_path):
    model = net()
    whole = save(model, tmp_path / "whole.sct").size
    assert save(model, tmp_path / "few.sct", options=SaveOptions(biases=6)).size < whole
    again = load(tmp_path / "few.sct", into=net())
    for at in (3, 6):
        spread = torch.cat([model[3].bias, model[6].bias]).square().mean().sqrt()
        assert (again[at].bias - model[at].bias).abs().max() <= spread / 2**4
        assert torch.equal(again[at].weight, model[at].weight)


def test_what_cannot_be_is_refused(tmp_path):
    model = net()
    file = tmp_path / "m.sct"
    with pytest.raises(OptionError, match="batch_norm: expected a whole number from 2 to 12, got 1"):
        save(model, file, options=SaveOptions(batch_norm=1))
    shared = sc.share(model, bits=3)
    with pytest.raises(OptionError, match="codebook_bits: expected a whole number from 2 to 8, got 9"):
        save(shared.model, file, shared, options=SaveOptions(codebook_bits=9))
    with pytest.raises(NothingToDoError, match="share weights first"):
        save(model, file, options=SaveOptions(codebook_bits=5))
    with pytest.raises(NothingToDoError, match="there is none"):
        save(nn.Linear(3, 3, bias=False), file, options=SaveOptions(biases=5))
    with pytest.raises(OptionError, match=r"only float32 can be rounded to bits, got torch\.float64"):
        save(net().double(), file, options=SaveOptions(batch_norm=6))
    model[1].running_mean[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"'1\.bias': holds NaN"):
        save(model, file, options=SaveOptions(batch_norm=6))
    assert not file.exists()


def test_inspect_accounts_for_lanes(tmp_path):
    model = net()
    shared = sc.share(model, bits=3)
    save(
        shared.model, tmp_path / "m.sct", shared, options=SaveOptions(batch_norm=6, biases=6, codebook_bits=6)
    )
    report = inspect(tmp_path / "m.sct")
    assert report.accounted == report.size
    assert report.parts["numbers"] > 20
    assert {row.way for row in report.rows} >= {"lane 0", "lane 1", "lane 2", "indexed"}
    save(model, tmp_path / "n.sct", names="model", options=SaveOptions(batch_norm=6))
    report = inspect(tmp_path / "n.sct")
    assert report.accounted == report.size


# -- lanes ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0, 40.0, 900.0])
@pytest.mark.parametrize("count", [0, 1, 17, 700])
def test_lanes_come_back_and_cost_near_their_entropy(spread, count):
    rng = np.random.default_rng(0)
    numbers = np.clip(np.rint(rng.normal(0, 1, count) * spread), -MOST_NUMBER, MOST_NUMBER).astype(np.int64)
    data = encode(numbers)
    assert decode(data, count).tolist() == numbers.tolist()
    if count == 700:
        ideal = np.log2(max(spread, 0.25) * 4.13) * count / 8
        assert len(data) < 1.15 * ideal + 40


def test_scales_of_any_range_fit_the_lane(tmp_path):
    model = net()
    with torch.no_grad():
        model[1].weight.copy_(torch.logspace(-6, 3, 16))
    save(model, tmp_path / "m.sct", options=SaveOptions(batch_norm=12))
    scale, _ = folded(model, model[1])
    again, _ = folded(model, load(tmp_path / "m.sct", into=net())[1])
    some = scale > scale.max() / 2**13
    assert ((again - scale)[some] <= scale[some] * 0.01).all()


def test_the_ends_of_a_lane_can_be_written():
    numbers = np.array([MOST_NUMBER, -MOST_NUMBER] * 3)
    assert decode(encode(numbers), 6).tolist() == numbers.tolist()


def content(lanes: bytes, records: list[tuple[str, tuple[int, ...], int, bytes]]) -> bytes:
    """A file of these lanes and of these tensors: name, shape, method, words."""
    file = io.BytesIO()
    writer = Writer(file)
    writer.numbers(lanes)
    for name, shape, method, words in records:
        writer.add(Entry(name, "F32", shape), words, method, [])
    writer.finish()
    return file.getvalue()


def read(data: bytes) -> dict[str, list[float]]:
    return {
        record.entry.name: words.view(np.float32).tolist()
        for record, words in words_of(Archive(io.BytesIO(data)))
    }


GRID = ScalarGrid.even(0.5)
ONE = ScalarStreams([(GRID, np.array([3, -1]))]).payload()
WORDS = np.array([1.5, -0.5], dtype=np.float32).tobytes()


def test_lanes_by_hand():
    assert read(content(ONE, [("w", (2,), sct.DRAWN, WORDS)])) == {"w": [1.5, -0.5]}


@pytest.mark.parametrize(
    ("lanes", "shape", "method", "message"),
    [
        (ONE, (3,), sct.DRAWN, "draws 3 numbers from lane 0, which has 2 left"),
        (ONE, (1,), sct.DRAWN, "1 numbers are left that no tensor draws"),
        (ONE, (2,), sct.DRAWN + 1, "draws from lane 1, the file has 1"),
        (b"\0", (2,), sct.DRAWN, "0 lanes, expected 1..4"),
        (b"\5" + ONE[1:], (2,), sct.DRAWN, "5 lanes"),
        (b"\1\2" + ONE[2:], (2,), sct.DRAWN, "a lane of kind 2"),
        (ONE[:2] + b"\0\0\x80?" + ONE[6:], (2,), sct.DRAWN, "even steps starts at zero"),
        (ONE[:6] + b"\0\0\xc0\x7f" + ONE[10:], (2,), sct.DRAWN, "finite numbers"),
        (ONE + b"\0", (2,), sct.DRAWN, "1 bytes are left over"),
        (
            ONE[:10] + varint.write(1 << 17) + ONE[11:],
            (2,),
            sct.DRAWN,
            "expected at most 128 numbers in 2 bytes, got 131072",
        ),
        (ONE[:10] + varint.write(1 << 40) + ONE[11:], (2,), sct.DRAWN, "the number of numbers in a lane"),
    ],
)
def test_hostile_lanes(lanes, shape, method, message):
    data = content(lanes, [("w", shape, method, WORDS[: 4 * shape[0]])])
    with pytest.raises(FormatError, match=message):
        read(data)


def test_a_lane_of_endless_distance_is_refused():
    bad = bytes([255]) * 40
    with pytest.raises(FormatError):
        decode(bad, most_numbers(40))


def test_the_section_comes_once_and_first():
    file = io.BytesIO()
    writer = Writer(file)
    writer.numbers(ONE)
    writer.numbers(ONE)
    writer.finish()
    with pytest.raises(FormatError, match="expected one numbers section, before all tensors"):
        Archive(file)


def old(data: bytes) -> bytes:
    """The same file, called version 1, with checksums that fit."""
    import zlib

    out = bytearray(data)
    out[4] = 1
    crc, at = zlib.crc32(bytes(out[:5])), 5
    while at < len(out):
        reader = varint.Reader(bytes(out[at + 1 :]), "section")
        length = reader.varint()
        end = at + 1 + reader.at + length
        crc = zlib.crc32(bytes(out[at:end]), crc)
        out[end : end + 4] = crc.to_bytes(4, "little")
        at = end + 4
    return bytes(out)


def test_a_file_of_version_1_has_nothing_of_version_2(tmp_path):
    with pytest.raises(FormatError, match=r"section of kind 6, known kinds are 1\.\.5"):
        read(old(content(ONE, [("w", (2,), sct.DRAWN, WORDS)])))
    file = io.BytesIO()
    Writer(file, folded=True).finish()
    with pytest.raises(FormatError, match="flags 2 are not known to version 1"):
        read(old(file.getvalue()))
    file = io.BytesIO()
    writer = Writer(file)
    writer.add(Entry("w", "F32", (0,)), b"", sct.DRAWN, [])
    writer.finish()
    with pytest.raises(FormatError, match=r"stored by method 9, known methods are 0\.\.8"):
        read(old(file.getvalue()))
    values = np.array([-1.0, 0.25, 0.5], dtype=np.float32)
    entry = Entry("w", "F32", (30,))
    book = codebooks.codebook(values.view(np.uint32), entry)
    assert book[0] == 2
    assert (codebooks.read_codebook(memoryview(book), entry, "w") == values.view(np.uint32)).all()
    with pytest.raises(FormatError, match="a codebook of kind 2"):
        codebooks.read_codebook(memoryview(book), entry, "w", version=1)


@pytest.mark.parametrize(
    "values",
    [
        [-127.0, 3.0, 127.0],
        [2.0**-126, 2.0**-120],
        [-(2.0**126), 2.0**126],
        [-1.5, -0.25, 0.0, 0.125],
        [1e-40, 1.0],
        [-0.0, 1.0, 3.0],
        [0.1, 0.7, 1e30],
    ],
)
def test_codebooks_come_back_whatever_their_kind(values):
    words = np.array(values, dtype=np.float32).view(np.uint32)
    entry = entry_of("w", torch.zeros(50))
    book = codebooks.codebook(words, entry)
    assert (codebooks.read_codebook(memoryview(book), entry, "w") == words).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"\2\2" + varint.write(varint.unsigned(120)) + b"\1\2",
            "the exponent 120 of a codebook, expected -126..119",
        ),
        (b"\2\2\0\2\1", "do not fit"),
        (b"\2\2\0\1", "expected at least 2 bytes"),
        (b"\2\3\0\1\3\1", "do not end where the numbers do"),
    ],
)
def test_hostile_codebooks_of_small_multiples(data, message):
    with pytest.raises(FormatError, match=message):
        codebooks.read_codebook(memoryview(data), Entry("w", "F32", (3,)), "w")


def test_values_rounded_to_three_bits_are_three_steps_each_way():
    # 1 in three bits: at most three steps, so steps of a half; with five they would be quarters
    assert codebooks.round_to_bits(np.array([1.0, 0.3, -0.8], np.float32), 3).tolist() == [1.0, 0.5, -1.0]


def test_multiples_of_a_power_of_two_may_be_negative_but_not_minus_zero():
    exponent, multiples = codebooks._multiples(np.array([-0.5, 0.25, 0.0], np.float32))
    assert (exponent, multiples.tolist()) == (-2, [-2.0, 1.0, 0.0])
    assert codebooks._multiples(np.array([-0.0, 0.25], np.float32)) is None
    assert codebooks._multiples(np.array([np.inf, 0.25], np.float32)) is None
    assert codebooks._multiples(np.zeros(2, np.float32)) is None


def test_even_steps_are_one_apart():
    assert codebooks._even_steps(np.array([0.5, 1.0, 1.5], np.float32)) is not None
    assert codebooks._even_steps(np.array([0.5, 1.5, 2.0], np.float32)) is None


def test_grids_of_scalars_by_hand():
    one = np.array([1.0, -1.0], np.float32)  # a spread of 1, in steps of 2**-5 of it
    assert scalar_rounding._grid(scalar_rounding.BIASES, one, 8).table(2).tolist() == [0.0, 0.03125, 0.0625]
    small = ScalarGrid.geometric(np.array([1.0, 2.0**-13, 2.0**-15], np.float32), 2.0)
    assert small.table(3).tolist() == [0.0, 2.0**-13, 2.0**-12, 2.0**-11]  # the last is negligible


def test_bfloat16_is_rounded_half_to_even():
    halves = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7FC00001], np.uint32)
    assert tensors._to_narrow(halves, "F32", "BF16").tolist() == [0x3F80, 0x3F82, 0x3F81, 0x7FC0]


def test_a_sample_of_every_word_says_whether_they_are_few():
    words = np.zeros(12, np.uint32)
    words[1::2] = range(1, 7)  # every second word alone would be few
    assert not _few(Entry("w", "F32", (12,)), words, "mixed")
    entry = Entry("w", "F32", (1000,))
    assert _few(entry, np.arange(1000, dtype=np.uint32) % 210, "mixed")
    assert not _few(entry, np.arange(1000, dtype=np.uint32) % 250, "mixed")


def test_dense_floats_of_eight_bits_are_not_few_as_they_are_packed():
    words = np.random.default_rng(0).integers(1, 127, 1 << 17).astype(np.uint8)
    entry = Entry("w", "F8_E4M3", words.shape)
    assert not _few(entry, words, "mixed")
    assert _few(entry, words, "strong")
    assert _few(entry, words & 3, "mixed")

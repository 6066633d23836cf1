"""Small choices of writing and reading that the other files of this folder do not hold."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.coding import varint
from secateur.container import batch_norm, codebooks, reading, tensors
from secateur.container import format as sct
from secateur.container.format import Entry
from secateur.container.frame import Archive
from secateur.container.save_options import SaveOptions
from secateur.container.writer import Writer
from secateur.errors import FormatError, SecateurError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from attacks import hostile


def test_a_text_that_repeats_itself_is_coded() -> None:
    """Two letters take a bit each: 1,000 of them some 130 bytes with their frequencies."""
    coded = tensors.text(b"ab" * 500)
    assert len(coded) < 200
    assert bytes(tensors.read_text(coded, "t")) == b"ab" * 500


def test_a_text_that_would_grow_too_much_in_reading_is_kept_as_it_is() -> None:
    assert tensors.text(b"a" * 100_000) == b"\0" + b"a" * 100_000


def test_the_batch_norms_of_a_state_dict_are_found_by_their_names() -> None:
    state = {f"bn.{part}": torch.ones(2) for part in ("weight", "bias", "running_mean", "running_var")}
    assert batch_norm.usual(state)
    assert [*batch_norm._layers(state, None)] == ["bn."]
    assert not batch_norm._layers({"bn.running_var": torch.ones(2)}, None)  # without an affine part


def test_a_file_of_another_kind_is_not_called_safetensors(tmp_path: Path) -> None:
    for content, told in ((bytes(100), False), (b"\x10" + bytes(7) + b"{" + bytes(100), True)):
        (tmp_path / "a.sct").write_bytes(content)
        with pytest.raises(FormatError) as caught:
            sc.load(tmp_path / "a.sct")
        assert ("safetensors" in str(caught.value)) == told


@pytest.mark.parametrize("keys", [("a", "a"), ("",), ("x" * 5000,)])
def test_keys_of_texts_are_there_once_and_are_short(keys: tuple[str, ...]) -> None:
    file = io.BytesIO()
    writer = Writer(file)
    for key in keys:
        writer._section(sct.TEXT, varint.write(len(key)) + key.encode() + b"value")
    writer.finish()
    with pytest.raises(FormatError, match="is empty, too long, or comes twice"):
        Archive(io.BytesIO(file.getvalue()))


def test_a_tensor_has_32_dimensions_at_most(tmp_path: Path) -> None:
    state = {"w": torch.ones([1] * 32)}
    sc.save(state, tmp_path / "a.sct")
    assert sc.load(tmp_path / "a.sct")["w"].shape == (1,) * 32
    with pytest.raises(SecateurError, match="33 dimensions, expected at most 32"):
        sc.save({"w": torch.ones([1] * 33)}, tmp_path / "b.sct")


def test_a_file_with_widths_is_of_version_4() -> None:
    file = io.BytesIO()
    writer = Writer(file, [Entry("w", "F32", (1,))], widths=b"\1")
    writer.add(Entry("w", "F32", (1,)), b"1234", sct.RAW, [b"1234"])
    writer.finish()
    assert Archive(io.BytesIO(file.getvalue()), [Entry("w", "F32", (1,))]).version == 4


def test_empty_tensors_are_no_copies_of_each_other(tmp_path: Path) -> None:
    sc.save({"a": torch.zeros(0), "b": torch.zeros(0)}, tmp_path / "a.sct")
    with open(tmp_path / "a.sct", "rb") as file:
        assert [record.method for record in Archive(file).records()] == [sct.ZERO, sct.ZERO]


def test_batch_norms_that_share_their_weights_are_folded_each_with_its_own_statistics(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4)).eval()
    model[1].weight, model[1].bias = model[0].weight, model[0].bias
    with torch.no_grad():
        for layer in model:
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    sc.save(model, tmp_path / "a.sct", options=SaveOptions(batch_norm="fp32"))
    again = sc.load(tmp_path / "a.sct", into=nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))).eval()
    inputs = torch.randn(3, 4)
    torch.testing.assert_close(again(inputs), model(inputs))


def test_a_section_is_decoded_by_another_process_as_it_is_here(tmp_path: Path) -> None:
    weights = torch.randn(64).mul(2).round()
    sc.save({"a": weights, "b": weights.flip(0)}, tmp_path / "a.sct")
    with open(tmp_path / "a.sct", "rb") as file:
        sent = [reading._portable(record) for record in Archive(file).records()]
    words = reading._section(sent)
    assert [one.tobytes() for one in words] == [weights.numpy().tobytes(), weights.flip(0).numpy().tobytes()]


def test_a_compact_file_of_one_tensor_has_one_method(tmp_path: Path) -> None:
    data = sc.save(nn.Linear(3, 1, bias=False), tmp_path / "a.sct", names="model").path.read_bytes()
    assert data[4] == 5
    assert data[12] == 1  # the number of methods, after flags, count, digest and lanes
    (tmp_path / "a.sct").write_bytes(hostile.reseal(data[:12] + b"\2" + data[13:]))
    with pytest.raises(FormatError, match="the number of methods is 2, expected at most 1"):
        sc.load(tmp_path / "a.sct", into=nn.Linear(3, 1, bias=False))


@pytest.mark.parametrize("step", [0.0, -1.0])
def test_a_codebook_of_equal_or_falling_values_is_refused(step: float) -> None:
    """Three values in steps of 0 are one value three times, in steps of -1 they fall."""
    data = b"\1\3" + struct.pack("<f", step) + varint.write(varint.unsigned(-1))
    with pytest.raises(FormatError, match="do not ascend"):
        codebooks.read_codebook(memoryview(data), Entry("w", "F32", (4,)), "w")

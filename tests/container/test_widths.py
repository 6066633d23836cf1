"""A file that leaves names to a model has widths in place of a shrink plan, and short heads of lanes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.container.frame import Archive
from secateur.container.inspection import inspect
from secateur.container.save_options import SaveOptions
from secateur.container.scalar_streams import ScalarGrid, ScalarStreams
from secateur.errors import FormatError, PlanError
from secateur.structure.cut.kept_widths import encode_widths, plan_of_widths


@pytest.fixture(scope="module")
def small() -> sc.ShrinkPlan:
    torch.manual_seed(0)
    model = sc.models.build("lenet5").eval()
    example = torch.randn(1, 1, 28, 28)
    masks = sc.prune(model, "l2", "channel", 0.6, example=example)
    return sc.shrink(model, masks, example)


def test_a_file_of_a_shrunk_model_needs_eight_bytes_of_plan(small, tmp_path: Path) -> None:
    saved = sc.save(small.model, tmp_path / "a.sct", plan=small.plan, names="model")
    with open(saved.path, "rb") as file:
        archive = Archive(file)
    assert archive.version == 5
    assert not archive.texts
    # 16 axes; those that are not as foretold: conv1 keeps 8, conv2 20, fc1 200 outputs and 320 inputs.
    assert archive.widths == bytes([0b00100001, 0b00001100, 8, 20, 200, 1, 192, 2])
    again = sc.load(saved.path, into=sc.models.build("lenet5")).eval()
    image = torch.randn(2, 1, 28, 28)
    assert torch.equal(again(image), small.model.eval()(image))
    assert again.conv2.in_channels == 8
    assert again.fc1.in_features == 320


def test_the_parts_of_such_a_file_add_up(small, tmp_path: Path) -> None:
    shared = sc.share(small.model, bits=2)
    options = SaveOptions(biases=4, codebook_bits=6, coder="strong")
    saved = sc.save(shared.model, tmp_path / "a.sct", shared, plan=small.plan, names="model", options=options)
    report = inspect(saved.path)
    assert report.accounted == saved.size
    assert "texts" not in report.parts
    overhead = sum(report.parts[part] for part in ("framing", "checksums", "codebooks"))
    assert overhead <= 72


def test_a_plan_with_more_than_widths_stays_a_plan(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = sc.models.build("resnet20").eval()  # its shortcuts are rewritten calls of pad
    example = torch.randn(1, 3, 32, 32)
    cut = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=example), example)
    assert encode_widths(cut.plan, cut.model) is None
    saved = sc.save(cut.model, tmp_path / "a.sct", plan=cut.plan, names="model")
    with open(saved.path, "rb") as file:
        archive = Archive(file)
    assert (archive.version, archive.widths, list(archive.texts)) == (2, None, ["plan"])


def test_a_plan_that_sets_other_widths_is_kept_whole() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3))
    keep = {"0.weight": {0: (0, 1)}, "0.bias": {0: (0, 1)}, "1.weight": {1: (0, 1)}}
    shapes = {"0.weight": (4, 2), "0.bias": (4,), "1.weight": (3, 4)}
    attributes = {"0": {"out_features": 2}, "1": {"in_features": 2}}
    plan = sc.ShrinkPlan(keep, attributes, {}, shapes, "Sequential")
    cut = plan.apply_(model)
    assert encode_widths(plan, cut) == b"\x01\x02"
    assert encode_widths(sc.ShrinkPlan(keep, {}, {}, shapes, "Sequential"), cut) is None
    assert encode_widths(sc.ShrinkPlan(keep, attributes, {}, shapes, "Other"), cut) is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x01\x00", "keeps 0 of an axis of 4"),
        (b"\x01\x05", "a width"),
        (b"\x41\x02", "widths of more axes than the 6"),
        (b"\x01\x02\x02", "1 byte"),
        (b"", "widths"),
    ],
)
def test_widths_that_do_not_fit_are_refused(data: bytes, message: str) -> None:
    with pytest.raises((PlanError, FormatError), match=message):
        plan_of_widths(data, nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3)))


def test_lanes_with_short_heads() -> None:
    numbers = torch.tensor([1, -2, 0]).numpy()
    empty = torch.tensor([], dtype=torch.int64).numpy()
    lanes = ScalarStreams([(ScalarGrid.even(1.0), empty), (ScalarGrid.even(0.5), numbers)])
    long, short = lanes.payload(), lanes.payload(short=True)
    assert len(long) - len(short) == 4 + 10  # no `first`; nothing at all of the lane without numbers
    again = ScalarStreams.read(short, version=4)
    assert again.take(1, 3, "w").view("float32").tolist() == [0.5, -1.0, 0.0]
    with pytest.raises(FormatError, match="kind 2, which came with version 4"):
        ScalarStreams.read(short, version=3)

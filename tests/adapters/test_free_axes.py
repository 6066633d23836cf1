"""Free axes: which sizes of inputs a file leaves free, which it says are fixed, and which can be asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.adapters import programs
from secateur.adapters.free_axes import axes_of, input_names, larger
from secateur.errors import DataError, OptionError, UnknownNameError

pytest.importorskip("onnxruntime", reason="NOT TESTED: ONNX export, as onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="NOT TESTED: ONNX export, as onnxscript is not installed")


class Speech(nn.Module):
    """Convolutions of step 2 over time, attention, and a mask of what is no padding."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(6, 8, 3, stride=2, padding=1)
        self.attend, self.out = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x, lengths):
        x = self.conv(x.transpose(1, 2)).transpose(1, 2).relu()
        scores = self.attend(x) @ x.transpose(1, 2)
        padding = torch.arange(x.shape[1])[None] * 2 >= lengths[:, None]
        return self.out((scores.masked_fill(padding[:, None], -1e4).softmax(-1) @ x).mean(1))


def shapes(path):
    return [each.shape for each in sc.OnnxModel(path).session.get_inputs()]


def same(model, path, *inputs):
    with torch.no_grad():
        return torch.allclose(sc.OnnxModel(path)(*inputs), model(*inputs), atol=1e-5)


def test_the_time_of_floats_is_free(tmp_path):
    torch.manual_seed(0)
    model, path = Speech().eval(), tmp_path / "a.onnx"
    done = sc.export(model, path, (torch.randn(2, 20, 6), torch.tensor([20, 11])))
    assert done.notes == ()
    assert shapes(path) == [["batch", "length", 6], ["batch"]]
    for size in (5, 17, 96):
        assert same(model, path, torch.randn(3, size, 6), torch.tensor([size, 3, size]))


def test_axes_that_the_model_takes_only_together_are_tried_together(tmp_path):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(6, 3)

        def forward(self, x, keep):
            return self.out((x * keep[..., None]).sum(1) / keep.sum(1, keepdim=True))

    torch.manual_seed(0)
    model, path = Padded().eval(), tmp_path / "a.onnx"
    example = torch.randn(2, 20, 6), torch.ones(2, 20, dtype=torch.bool)
    done = sc.export(model, path, example)
    assert done.notes == ()
    assert shapes(path) == [["batch", "length", 6], ["batch", "length"]]
    assert same(model, path, torch.randn(3, 7, 6), torch.ones(3, 7, dtype=torch.bool))


def test_what_stays_fixed_is_said_and_can_be_asked_for(tmp_path):
    class Image(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

        def forward(self, image):
            return self.out(self.conv(image).relu().mean((2, 3)))

    torch.manual_seed(0)
    model, path, image = Image().eval(), tmp_path / "a.onnx", torch.randn(1, 3, 8, 12)
    done = sc.export(model, path, image)
    assert done.notes == (
        "fixed, although the model takes other sizes: axis 2 of 'image' to 8, axis 3 of 'image' to 12; "
        "dynamic_axes={'image': [2, 3]} frees them, unless the forward branches on a size",
    )
    assert shapes(path) == [["batch", 3, 8, 12]]
    done = sc.export(model, path, image, dynamic_axes={"image": {2: "rows", 3: "columns"}})
    assert done.notes == ()
    assert shapes(path) == [["batch", 3, "rows", "columns"]]
    assert same(model, path, torch.randn(2, 3, 19, 5))
    assert sc.export(model, path, image, dynamic_axes=False).notes == ()
    assert shapes(path) == [[1, 3, 8, 12]]


def test_an_axis_that_the_code_needs_is_said_or_refused(tmp_path):
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRUCell(3, 4)

        def forward(self, x):
            state = x.new_zeros(x.shape[0], 4)
            for step in range(x.shape[1]):
                state = self.cell(x[:, step], state)
            return state

    torch.manual_seed(0)
    model, path, x = Steps().eval(), tmp_path / "a.onnx", torch.randn(2, 6, 3)
    done = sc.export(model, path, x)
    assert done.notes == (
        "fixed, although the model takes other sizes: axis 1 of 'x' to 6; the exporter or the model's code needs to "
        "know it",
    )
    assert shapes(path) == [["batch", 6, 3]]
    path.unlink()
    with pytest.raises(
        DataError,
        match=r"axis 1 of 'x' cannot be free: .* needs to know its size, as an .if. on sizes or a loop",
    ):
        sc.export(model, path, x, dynamic_axes={"x": [1]})
    with pytest.raises(DataError, match=r"neither with half nor with twice the size 3 of 'x', axis 2"):
        sc.export(model, path, x, dynamic_axes={"x": [2]})
    with pytest.raises(UnknownNameError, match=r"no input 'y'.*x"):
        sc.export(model, path, x, dynamic_axes={"y": [1]})
    with pytest.raises(OptionError, match=r"expected axes from 0 to 2, got 3"):
        sc.export(model, path, x, dynamic_axes={"x": [3]})
    assert not list(tmp_path.iterdir())


def test_an_axis_that_the_file_does_not_take_is_fixed_in_it(tmp_path, monkeypatch):
    """The file of a free length computes something else: it is written again with the length fixed."""
    right = programs.OnnxModel.forward

    def wrong(self, *inputs):
        found = right(self, *inputs)
        return found + 1 if inputs[0].shape[1] != 20 else found

    monkeypatch.setattr(programs.OnnxModel, "forward", wrong)
    torch.manual_seed(0)
    path = tmp_path / "a.onnx"
    done = sc.export(Speech().eval(), path, (torch.randn(2, 20, 6), torch.tensor([20, 11])))
    assert done.notes[0].startswith(
        "fixed, although the model takes other sizes: axis 1 of 'x' to 20; the exporter"
    )
    assert shapes(path) == [["batch", 20, 6], ["batch"]]


def test_inputs_are_called_as_the_forward_calls_them():
    class Towers(nn.Module):
        def forward(self, batch, extra=None):
            return batch["ids"] + extra

    example = ({"ids": torch.zeros(2)}, torch.ones(2))
    assert input_names(Towers(), example) == ["batch.ids", "extra"]
    assert input_names(Towers(), {"batch": example[0], "extra": example[1]}) == ["batch.ids", "extra"]


def test_a_larger_batch_has_offsets_that_rise():
    ids, offsets, lengths = larger((torch.arange(6, 0, -1), torch.tensor([0, 2, 5]), torch.tensor([3, 1])))
    assert offsets.tolist() == [0, 2, 5, 5, 7, 10, 10, 12, 15]
    assert len(ids) == 18
    assert lengths.tolist() == [3, 1, 1, 3, 3, 1]


def test_the_old_name_still_works(tmp_path):
    with pytest.warns(DeprecationWarning, match="dynamic_axes"):
        done = sc.export(nn.Linear(4, 2).eval(), tmp_path / "a.pt2", torch.randn(2, 4), dynamic_batch=False)
    assert done.notes == ()


def test_a_few_sizes_that_rounding_makes_room_for_are_not_other_sizes():
    model = nn.Sequential(nn.Conv1d(3, 4, 2, stride=2), nn.Flatten(), nn.Linear(4 * 10, 2)).eval()
    assert [each.name for each in axes_of(model, torch.randn(2, 3, 20))[0]] == ["batch"]

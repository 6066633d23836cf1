"""Shortcuts without weights and means over rows and columns are written in fewer operators, with the same numbers."""

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from secateur.adapters.export import export
from secateur.adapters.int8 import Int8Options
from secateur.adapters.onnx_model import OnnxModel

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from secateur.adapters.onnx_few import fewer  # noqa: E402


def written(module, x, path):
    """The kinds of operators before and after, and the outputs of both files."""
    export(module.eval(), path, x)
    graph = onnx.load(str(path))
    before, wanted = [node.op_type for node in graph.graph.node], OnnxModel(path)(x)
    done = fewer(graph)
    onnx.checker.check_model(graph)
    onnx.save(graph, str(path))
    return before, [node.op_type for node in graph.graph.node], done, wanted, OnnxModel(path)(x)


class Shortcut(nn.Module):
    """Every `step`th row and column from `first` on, then channels of `value` around."""

    def __init__(self, step=2, first=0, pads=(0, 0, 0, 0, 1, 2), value=0.0, columns=None) -> None:
        super().__init__()
        self.step, self.first, self.pads, self.value = step, first, pads, value
        self.columns = columns

    def forward(self, x):
        part = x[:, :, self.first :: self.step, : self.columns : self.step]
        return nn.functional.pad(part, self.pads, value=self.value) + 1


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 4, 7, 9)])
@pytest.mark.parametrize("step", [2, 3])
def test_a_shortcut_is_one_convolution(tmp_path, shape, step):
    torch.manual_seed(0)
    x = torch.randn(shape)
    before, after, done, wanted, found = written(Shortcut(step), x, tmp_path / "m.onnx")
    assert "Slice" in before
    assert (after, done) == (["Conv", "Add"], 1)
    assert torch.equal(found, wanted)
    assert torch.equal(found, Shortcut(step)(x))


@pytest.mark.parametrize(
    "module",
    [
        Shortcut(value=2.0),
        Shortcut(pads=(1, 0, 0, 0, 1, 2)),
        Shortcut(step=1),
        Shortcut(columns=4),
    ],
    ids=["ones", "columns too", "no step", "half of the columns"],
)
def test_what_is_no_shortcut_stays(tmp_path, module):
    torch.manual_seed(0)
    before, after, done, wanted, found = written(module, torch.randn(2, 3, 8, 8), tmp_path / "m.onnx")
    assert (after, done) == (before, 0)
    assert torch.equal(found, wanted)


def test_what_is_cut_off_in_front_stays_cut_off(tmp_path):
    torch.manual_seed(0)
    _, after, done, wanted, found = written(Shortcut(first=1), torch.randn(2, 3, 8, 8), tmp_path / "m.onnx")
    assert (after, done) == (
        ["Slice", "Conv", "Add"],
        1,
    )  # rows from the second on; columns by the convolution
    assert torch.equal(found, wanted)


class Mean(nn.Module):
    """A mean over some axes of what a convolution gives."""

    def __init__(self, axes, keep) -> None:
        super().__init__()
        self.conv, self.axes, self.keep = nn.Conv2d(2, 4, 1), axes, keep

    def forward(self, x):
        return self.conv(x).mean(self.axes, keepdim=self.keep) + 1


@pytest.mark.parametrize(
    ("axes", "keep", "pooled"),
    [((2, 3), True, 1), ((-1, -2), True, 1), ((2, 3), False, 0), ((1, 2), True, 0)],
)
def test_a_mean_over_rows_and_columns_is_pooling(tmp_path, axes, keep, pooled):
    torch.manual_seed(0)
    _, after, done, wanted, found = written(Mean(axes, keep), torch.randn(2, 2, 5, 6), tmp_path / "m.onnx")
    assert (done, after.count("GlobalAveragePool")) == (pooled, pooled)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_images_of_three_channels_get_a_fourth(tmp_path):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, padding=1)
    _, after, done, wanted, found = written(conv, torch.randn(2, 3, 7, 8), tmp_path / "m.onnx")
    assert (after, done) == (["Pad", "Conv"], 1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    graph = onnx.load(str(tmp_path / "m.onnx")).graph
    weight = next(onnx.numpy_helper.to_array(each) for each in graph.initializer if len(each.dims) == 4)
    assert weight.shape == (5, 4, 3, 3)
    assert not weight[:, 3].any()


@pytest.mark.parametrize(
    ("kernel", "padding"), [(1, 0), (2, 1), (3, 0), (3, 1), ((4, 5), (3, 2)), (7, 3), (7, (0, 1))]
)
def test_images_of_a_convolution_of_step_two_are_taken_in_squares(tmp_path, kernel, padding):
    torch.manual_seed(0)
    shape = (2, 3, 12, 10)
    conv = nn.Conv2d(3, 5, kernel, stride=2, padding=padding)
    _, after, done, wanted, found = written(conv, torch.randn(shape), tmp_path / "m.onnx")
    assert (after[-1], done) == ("Conv", 1)
    if kernel in (3, 7):
        assert after == ["SpaceToDepth", "Conv"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_images_with_an_odd_number_of_rows_get_a_fourth_channel(tmp_path):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
    _, after, done, wanted, found = written(conv, torch.randn(2, 3, 7, 8), tmp_path / "m.onnx")
    assert (after, done) == (["Pad", "Conv"], 1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "module", [nn.Conv2d(2, 4, 3), nn.Conv2d(3, 6, 3, groups=3)], ids=["two channels", "a channel each"]
)
def test_other_convolutions_of_images_stay(tmp_path, module):
    x = torch.randn(1, module.in_channels, 6, 6)
    before, after, done, wanted, found = written(module, x, tmp_path / "m.onnx")
    assert (after, done) == (before, 0)
    assert torch.equal(found, wanted)


class TwoReaders(nn.Module):
    """One weight for two convolutions of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x) + self.conv(2 * x)


def test_a_weight_with_two_readers_stays(tmp_path):
    torch.manual_seed(0)
    _, after, done, wanted, found = written(TwoReaders(), torch.randn(1, 3, 6, 6), tmp_path / "m.onnx")
    assert (after.count("Pad"), done) == (0, 0)
    assert torch.equal(found, wanted)


def test_a_resnet_in_int8_has_no_float_between_its_layers(tmp_path):
    torch.manual_seed(0)
    model = sc.models.build("resnet20").eval()
    images = [torch.randn(2, 3, 32, 32) for _ in range(2)]
    done = export(model, tmp_path / "m.onnx", images[0], int8=images, int8_options=Int8Options(lost=0.9))
    kinds = [node.op_type for node in onnx.load(str(tmp_path / "m.onnx")).graph.node]
    assert not {"Slice", "ReduceMean"} & set(kinds)
    assert kinds.index("Pad") < kinds.index("QuantizeLinear")  # the fourth channel of the images, in float
    assert kinds.count("Pad") == 1
    assert done.int8.noise < 0.2

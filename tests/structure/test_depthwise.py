"""Depthwise convolutions over three axes, computed by a proof as sums: what torch computes, and only where they fit."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import ProofError
from secateur.structure import depthwise
from secateur.structure.depthwise import DepthwiseSums, depthwise_sums


def test_a_sum_by_hand() -> None:
    x = torch.zeros(1, 8, 1, 1, 3, dtype=torch.float64)
    x[0, :, 0, 0] = torch.tensor([1.0, 2.0, 3.0])
    weight = torch.tensor([10.0, 1.0]).double().expand(8, 1, 1, 1, 2).contiguous()
    with DepthwiseSums():
        out = torch.conv3d(x, weight, torch.full((8,), 0.5).double(), groups=8)
    assert out[0, 3, 0, 0].tolist() == [10 * 1 + 2 + 0.5, 10 * 2 + 3 + 0.5]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
        ((3, 1, 2), (2, 1, 2), (0, 2, 1), (1, 3, 2)),
        ((1, 5, 3), (1, 2, 1), (0, 0, 3), (2, 1, 1)),
    ],
)
def test_it_is_the_convolution_of_torch_with_its_gradients(
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    bias: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    taken = []
    sums = depthwise._sums
    monkeypatch.setattr(depthwise, "_sums", lambda *args: taken.append(1) or sums(*args))
    layer = nn.Conv3d(8, 8, kernel, stride, padding, dilation, groups=8, bias=bias).double()
    x = torch.randn(2, 8, 6, 7, 9, dtype=torch.float64)
    want = layer(x)
    with DepthwiseSums():
        got = layer(x)
    assert taken == [1]
    assert torch.allclose(got, want, rtol=0, atol=1e-13)
    (slope,) = torch.autograd.grad(got.sum(), layer.weight)
    assert torch.allclose(slope, torch.autograd.grad(want.sum(), layer.weight)[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv3d(8, 8, 3, groups=4),
        nn.Conv3d(8, 16, 3, groups=8),
        nn.Conv3d(8, 8, 3, stride=4, groups=8),
        nn.Conv3d(4, 4, 3, groups=4),
        nn.ConvTranspose3d(8, 8, 3, groups=8),
        nn.Conv3d(8, 8, 3, groups=8).float(),
    ],
)
def test_other_convolutions_are_left_to_torch(layer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depthwise, "_sums", lambda *args: pytest.fail("computed as a sum"))
    dtype = (
        torch.float32 if layer.groups == layer.out_channels == 8 and layer.stride[0] == 1 else torch.float64
    )
    x = torch.randn(1, layer.in_channels, 9, 9, 9, dtype=dtype)
    if dtype == torch.float64 or isinstance(layer, nn.ConvTranspose3d):
        layer, x = layer.double(), x.double()
    with DepthwiseSums():
        assert torch.equal(layer(x), layer(x))


def test_an_input_smaller_than_the_kernel_is_torchs_error() -> None:
    layer = nn.Conv3d(8, 8, 3, groups=8).double()
    with DepthwiseSums(), pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        layer(torch.zeros(1, 8, 2, 2, 2, dtype=torch.float64))


def test_only_models_with_such_a_layer_run_in_the_mode() -> None:
    assert isinstance(depthwise_sums(nn.Conv2d(8, 8, 3, groups=8)), nullcontext)
    assert isinstance(depthwise_sums(nn.Sequential(nn.Conv3d(8, 8, 3, groups=8))), DepthwiseSums)


def test_a_proof_runs_them_so_and_still_sees_a_wrong_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv3d(2, 16, 1), nn.Conv3d(16, 16, 3, padding=1, groups=16), nn.ReLU(), nn.Conv3d(16, 3, 1)
    )
    x = torch.randn(1, 2, 4, 6, 6)
    taken = []
    sums = depthwise._sums
    monkeypatch.setattr(depthwise, "_sums", lambda *args: taken.append(args[1].shape[0]) or sums(*args))
    small = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=x), x)
    assert small.proof.error < 1e-14
    assert set(taken) == {16, 8}
    right = sums

    def wrong(*args: torch.Tensor) -> torch.Tensor:
        return right(*args) * (1.0 if args[1].shape[0] == 16 else 1.0 + 1e-6)

    monkeypatch.setattr(depthwise, "_sums", wrong)
    with pytest.raises(ProofError, match="does not compute what the masked one does"):
        sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=x), x)

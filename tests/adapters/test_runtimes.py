"""OpenVINO and ExecuTorch files: they compute what PyTorch does, at the batches they allow; wrong ones are not kept."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.adapters import runtimes
from secateur.adapters.runtimes import times
from secateur.errors import DataError, MissingExtraError, OptionError, ProofError

KINDS = [
    pytest.param(
        ending,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(package) is None,
            reason=f"NOT TESTED: {package} files, as it is not installed: secateur[{package}]",
        ),
    )
    for package, ending in (("openvino", ".xml"), ("executorch", ".pte"))
]
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    torch.manual_seed(0)
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), *pooled).eval()


@pytest.mark.parametrize("ending", KINDS)
def test_a_shrunk_model_computes_the_same(ending, tmp_path):
    model = net()
    small = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=X), X).model
    path = tmp_path / f"m{ending}"
    done = sc.export(small, path, X)
    assert done.error < 1e-5
    assert done.size == sum(each.stat().st_size for each in tmp_path.iterdir())
    peer = runtimes.model_of_file(path, threads=1)
    for batch in (2, 5) if ending == ".xml" else (2,):
        x = torch.randn(batch, 3, 8, 8)
        with torch.no_grad():
            assert torch.allclose(peer(x), small(x), atol=1e-5)
    assert any("batch is fixed" in note for note in done.notes) == (ending == ".pte")
    assert times(small, path, X, repetitions=3).names() == ["latency", "speedup"]


@pytest.mark.parametrize("ending", KINDS)
def test_a_wrong_file_is_not_kept(ending, tmp_path, monkeypatch):
    kind = runtimes.OpenVinoModel if ending == ".xml" else runtimes.ExecuTorchModel
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, *a, **k: forward(self, *a, **k) + 0.01)
    with pytest.raises(ProofError, match="not kept"):
        sc.export(net(), tmp_path / f"m{ending}", X)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("package", "ending"), [("openvino", ".xml"), ("executorch", ".pte")])
def test_without_the_package_the_extra_is_named(package, ending, tmp_path, monkeypatch):
    for name in (package, "executorch.exir"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"secateur\[{package}\]"):
        sc.export(net(), tmp_path / f"m{ending}", X)
    with pytest.raises(OptionError, match=r"ends in \.onnx"):
        sc.export(net(), tmp_path / f"m{ending}", X, int8="dynamic")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_converted_is_said(tmp_path, monkeypatch):
    def broken(program, path):
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setitem(runtimes.WRITERS, "openvino", runtimes._written(broken))
    with pytest.raises(DataError, match=r"RuntimeError: no such operator; write a \.onnx"):
        sc.export(net(), tmp_path / "m.xml", X)
    assert not list(tmp_path.iterdir())

"""export: dense, masked, shrunk and shared models compute in ONNX Runtime and torch.export what PyTorch does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.adapters.export import _checked, _Wanted, export
from secateur.adapters.onnx_model import OnnxModel
from secateur.adapters.runtimes import times
from secateur.adapters.two_of_four import two_of_four
from secateur.errors import DataError, MissingExtraError, OptionError, ProofError

missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(
    bool(missing), reason=f"NOT TESTED: ONNX export, as {', '.join(missing)} is not installed: secateur[onnx]"
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        return self.head((self.body(x) + x).relu().mean((2, 3)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    found = Net().eval()
    found.norm.running_mean.normal_()
    return found


X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def variants(model):
    masks = sc.prune(model, "l2", "channel", 0.5, example=X)
    return {
        "dense": (model, None),
        "masked": (model, masks),
        "shrunk": (sc.shrink(model, masks, X).model, None),
        "shared": (sc.share(model, bits=3).model, None),
    }


@pytest.mark.parametrize("ending", [pytest.param(".onnx", marks=needs_onnx), ".pt2"])
def test_every_variant_computes_the_same_at_any_batch(model, ending, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sizes = {}
    for name, (variant, masks) in variants(model).items():
        path = tmp_path / f"{name}{ending}"
        done = export(variant, path, X, masks=masks)
        assert done.error < 1e-5
        assert done.size == path.stat().st_size
        peer = OnnxModel(path) if ending == ".onnx" else torch.export.load(path).module()
        wanted = masks.apply(variant) if masks is not None else variant
        for batch in (1, 3, 8):
            x = torch.randn(batch, 3, 8, 8)
            with torch.no_grad():
                assert torch.allclose(peer(x), wanted(x), atol=1e-5)
        assert any("are zero" in note for note in done.notes) == (name == "masked")
        sizes[name] = done.size
    assert sizes["shrunk"] < sizes["dense"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{name}{ending}" for name in sizes)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("ending", [pytest.param(".onnx", marks=needs_onnx), ".pt2"])
def test_a_file_does_not_say_where_the_code_lay_and_is_the_same_twice(model, ending, tmp_path):
    """An exporter notes the lines of code of each operator, with the folders of the machine."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        sc.export(model, tmp_path / name / f"m{ending}", X)
    text = (tmp_path / "a" / f"m{ending}").read_bytes()
    assert Path(__file__).name.encode() not in text
    assert Path(__file__).parent.name.encode() + b"/" not in text
    assert b"body" in text  # the name of each operator's layer stays
    assert text == (tmp_path / "b" / f"m{ending}").read_bytes()


@needs_onnx
def test_a_wrong_file_is_not_kept(model, tmp_path, monkeypatch):
    forward = OnnxModel.forward
    monkeypatch.setattr(OnnxModel, "forward", lambda self, *a, **k: forward(self, *a, **k) + 0.01)
    with pytest.raises(ProofError, match=r"differ from PyTorch's by .* not kept"):
        export(model, tmp_path / "m.onnx", X)
    assert not list(tmp_path.iterdir())


def test_a_tolerance_left_out_follows_the_precision(tmp_path, monkeypatch):
    """Eight steps of float16 are 8 / 1024 = 0.0078 of the largest output; a difference of 0.0005 is half a step."""
    away = 0.0005
    monkeypatch.setattr("secateur.adapters.export.program_error", lambda *given: away)
    half, x, path = nn.Linear(4, 2).half().eval(), torch.randn(1, 4).half(), tmp_path / "m.pt2"
    assert export(half, path, x, dynamic_axes=False).error == away
    given, left = ([path, x, tolerance, False, "torch.export"] for tolerance in (1e-4, None))
    with pytest.raises(ProofError, match=r"at most 0\.0001 is allowed"):
        _checked(half, half, _Wanted(*given), ())
    away = 0.02
    with pytest.raises(ProofError, match=r"at most 0\.0078125 is allowed"):
        _checked(half, half, _Wanted(*left), ())
    left[1], away = x.float(), 0.0005
    with pytest.raises(ProofError, match=r"at most 0\.0001 is allowed"):
        _checked(nn.Linear(4, 2), half, _Wanted(*left), ())
    assert _checked(nn.Flatten(), half, _Wanted(path, x, None, False, "torch.export"), ()).error == away


@needs_onnx
def test_float32_is_advised_only_where_it_is_not_so_already(model, tmp_path, monkeypatch):
    forward = OnnxModel.forward
    monkeypatch.setattr(OnnxModel, "forward", lambda self, *a, **k: forward(self, *a, **k) + 0.01)
    with pytest.raises(ProofError, match=r"written wrongly; .* \.pt2 file") as raised:
        export(model, tmp_path / "m.onnx", X)
    assert "export in float32" not in str(raised.value)
    with pytest.raises(ProofError, match="or export in float32"):
        export(nn.Linear(4, 2).double().eval(), tmp_path / "m.onnx", torch.randn(2, 4, dtype=torch.float64))


@needs_onnx
@pytest.mark.parametrize("mode", ["mean", "sum", "max"])
def test_bags_of_an_embedding_with_offsets_are_compared_on_offsets(tmp_path, mode):
    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(20, 8, mode=mode)

        def forward(self, ids, offsets):
            return self.bag(ids, offsets)

    torch.manual_seed(0)
    bags, path = Bags().eval(), tmp_path / "m.onnx"
    done = export(bags, path, (torch.randint(20, (12,)), torch.arange(0, 12, 3)))
    assert done.error < 1e-6
    assert done.notes == ()
    other = torch.randint(20, (18,)), torch.tensor([0, 2, 2, 9, 12])
    assert torch.allclose(OnnxModel(path)(*other), bags(*other), atol=1e-6)


def test_a_batch_that_the_code_fixes_is_said(tmp_path):
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(x.reshape(2, 4))

    done = export(Fixed(), tmp_path / "m.pt2", torch.randn(2, 4))
    assert any("batch is fixed" in note for note in done.notes)
    assert done.error == 0.0


def test_errors_say_what_to_do(model, tmp_path, monkeypatch):
    with pytest.raises(OptionError, match=r"ends in \.onnx or \.pt2"):
        export(model, tmp_path / "m.pb", X)

    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum().item() > 0 else -x

    with pytest.raises(DataError, match="cannot be recorded"):
        export(Branching(), tmp_path / "m.pt2", X)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"secateur\[onnx\]"):
        export(model, tmp_path / "m.onnx", X)


@needs_onnx
def test_times_read_eager_and_onnx_runtime_in_turns(model, tmp_path):
    export(model, tmp_path / "m.onnx", X)
    found = times(model, tmp_path / "m.onnx", X, repetitions=3)
    assert found.names() == ["latency", "speedup"]
    assert [row.context.get("variant") for row in found[:2]] == ["eager", "onnx runtime"]


def test_two_of_four_is_plain_about_the_cpu():
    layer = nn.Linear(64, 64)
    sc.prune(layer, budget=sc.budget.NOfM(2, 4)).apply_(layer)
    from secateur.adapters.two_of_four import _is_two_of_four

    assert _is_two_of_four(layer.weight)
    assert not _is_two_of_four(nn.Linear(64, 64).weight)
    assert "no kernels for it" in two_of_four(layer, torch.zeros(1, 64))


@needs_onnx
def test_a_model_in_bfloat16_that_the_runtime_refuses_is_sent_to_float32(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU()).eval().bfloat16()
    with pytest.raises(
        DataError, match=r"does not load the file .* Export in float32, model\.float\(\), or to \.pt2"
    ):
        sc.export(model, tmp_path / "m.onnx", torch.randn(1, 3, 8, 8, dtype=torch.bfloat16))
    assert not list(tmp_path.iterdir())

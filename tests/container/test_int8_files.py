"""INT8 .sct files: what they hold, that they load as floats and as torch's own INT8 layers, and what is refused."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from secateur.container import tensors
from secateur.container.format import RAW, Entry
from secateur.container.int8_weights import quantised
from secateur.container.writer import Writer
from secateur.errors import DataError, FormatError, NothingToDoError, OptionError

INT8 = sc.SaveOptions(int8=True)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.norm(self.stem(x)).relu().mean((2, 3)))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().eval()


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def torch_dynamic(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def test_a_file_holds_integers_and_loads_as_floats(tmp_path: Path) -> None:
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    sc.save(model, tmp_path / "float.sct")
    saved = sc.save(model, tmp_path / "m.sct", options=INT8)
    assert saved.size < 0.65 * (tmp_path / "float.sct").stat().st_size
    assert saved.dense == sum(value.nbytes for value in before.values())
    state = sc.load(tmp_path / "m.sct")
    assert list(state) == list(before)
    for name in ("stem.weight", "head.weight"):
        scale = before[name].flatten(1).abs().amax(1) / 127
        away = (state[name] - before[name]).abs().flatten(1).amax(1)
        assert bool((away <= 0.5 * scale + 1e-7).all())
        assert not torch.equal(state[name], before[name])
    assert all(torch.equal(state[k], v) for k, v in before.items() if k not in ("stem.weight", "head.weight"))
    again = sc.load(tmp_path / "m.sct", into=net(1))
    assert torch.equal(again.head.weight, state["head.weight"])
    assert (again(X) - model(X)).abs().max() < 0.02 * model(X).abs().max()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    rows = {row.name: row.dtype for row in sc.inspect(tmp_path / "m.sct").rows}
    assert (rows["stem.weight"], rows["stem.weight.scale"], rows["stem.weight.zero_point"]) == (
        "I8",
        "F32",
        "I32",
    )


def test_a_second_saving_changes_nothing(tmp_path: Path) -> None:
    sc.save(net(), tmp_path / "a.sct", options=INT8)
    once = sc.load(tmp_path / "a.sct", into=net(1))
    sc.save(once, tmp_path / "b.sct", options=INT8)
    twice = sc.load(tmp_path / "b.sct")
    assert all(torch.allclose(v, twice[k], rtol=1e-6, atol=0) for k, v in once.state_dict().items())


def test_it_loads_into_torchs_own_layers(tmp_path: Path) -> None:
    sc.save(net(), tmp_path / "m.sct", options=INT8)
    fresh = net(1)
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    found = sc.load_int8(tmp_path / "m.sct", into=fresh)
    assert type(found.head).__module__.startswith("torch.ao.nn.quantized.dynamic")
    assert type(found.stem).__module__.startswith("torch.ao.nn.quantized.dynamic")
    state = sc.load(tmp_path / "m.sct")
    assert torch.equal(found.head.weight().dequantize(), state["head.weight"])
    assert torch.equal(found.stem.weight().dequantize(), state["stem.weight"])
    floats = sc.load(tmp_path / "m.sct", into=net(1))
    wanted = floats(X)
    assert (
        0 < (found(X) - wanted).abs().max() < 0.05 * wanted.abs().max()
    )  # activations are rounded in every call
    assert all(torch.equal(before[k], v) for k, v in fresh.state_dict().items())


@pytest.mark.parametrize(
    "make", [net, lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.ReLU(), nn.Linear(4, 2))]
)
def test_what_torch_quantised_comes_back_bit_for_bit(make, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch_dynamic(make().eval())
    sc.save(model, tmp_path / "m.sct")
    torch.manual_seed(5)
    again = sc.load(tmp_path / "m.sct", into=torch_dynamic(make().eval()))
    assert torch.equal(again(X), model(X))
    floats = sc.load(tmp_path / "m.sct", into=make().eval())  # the same integers as floats
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.ao.nn.quantized.dynamic.Linear)
    ]
    assert names
    for name in names:
        wanted = model.get_submodule(name).weight().dequantize()
        assert torch.allclose(floats.get_submodule(name).weight, wanted, rtol=1e-6, atol=0)


def test_static_layers_keep_their_scales(tmp_path: Path) -> None:
    def make() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantized = torch.ao.nn.quantized
            return nn.Sequential(
                quantized.Quantize(0.1, 3, torch.quint8), quantized.Conv2d(3, 4, 3), quantized.DeQuantize()
            )

    model, fresh = make(), make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weight = quantised(torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(2)), 0).packed()
        model[1].set_weight_bias(weight, torch.arange(4.0))
        model[1].scale, model[1].zero_point = 0.07, 5
        sc.save(model, tmp_path / "m.sct")
        again = sc.load(tmp_path / "m.sct", into=fresh)
        assert (again[1].scale, again[1].zero_point) == (pytest.approx(0.07), 5)
        assert torch.equal(again(X), model(X))


def test_a_shrunk_model_and_its_plan(tmp_path: Path) -> None:
    model = net()
    masks = sc.prune(model, "l2", "channel", 0.5, example=X)
    small = sc.shrink(model, masks, X)
    sc.save(small.model, tmp_path / "m.sct", plan=small.plan, options=INT8)
    found = sc.load_int8(tmp_path / "m.sct", into=net(1))
    assert found.stem.out_channels == 4
    wanted = small.model(X)
    assert (found(X) - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_tied_and_fused_weights_stay_floats(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.mix = (
                nn.Embedding(20, 16),
                nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
            )
            self.head = nn.Linear(16, 20, bias=False)
            self.head.weight = self.words.weight

        def forward(self, x):
            return self.head(self.mix(self.words(x)))

    torch.manual_seed(0)
    model, tokens = Tied().eval(), torch.arange(12).reshape(2, 6)
    sc.save(model, tmp_path / "m.sct", options=INT8)
    state = sc.load(tmp_path / "m.sct")
    assert torch.equal(state["head.weight"], model.words.weight)
    assert not torch.equal(state["mix.linear1.weight"], model.mix.linear1.weight)
    wanted = model(tokens)
    assert (
        sc.load_int8(tmp_path / "m.sct", into=Tied().eval())(tokens) - wanted
    ).abs().max() < 0.1 * wanted.abs().max()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = net()
    with pytest.raises(OptionError, match="expected a model"):
        sc.save(model.state_dict(), tmp_path / "m.sct", options=INT8)
    with pytest.raises(OptionError, match="expected 'file', got 'model'"):
        sc.save(model, tmp_path / "m.sct", names="model", options=INT8)
    shared = sc.share(model, bits=3)
    with pytest.raises(OptionError, match="has a codebook already"):
        sc.save(shared.model, tmp_path / "m.sct", shared, options=INT8)
    with pytest.raises(NothingToDoError, match=r"no nn\.Linear"):
        sc.save(nn.LayerNorm(4), tmp_path / "m.sct", options=INT8)
    broken = net()
    broken.head.weight.data[1, 2] = float("nan")
    with pytest.raises(OptionError, match=r"'head\.weight' holds numbers that are not finite"):
        sc.save(broken, tmp_path / "m.sct", options=INT8)
    assert not list(tmp_path.iterdir())
    sc.save(model, tmp_path / "float.sct")
    with pytest.raises(NothingToDoError, match="holds no INT8 weight"):
        sc.load_int8(tmp_path / "float.sct", into=net())
    with pytest.raises(DataError, match="in floats in the file"):
        sc.load(tmp_path / "float.sct", into=torch_dynamic(net()))


def file_of(path: Path, text: object, **parts: np.ndarray) -> Path:
    """A file with this list of INT8 weights and these tensors."""
    kinds = {"int8": "I8", "float32": "F32", "int32": "I32"}
    buffer = io.BytesIO()
    writer = Writer(buffer)
    writer.text("int8", tensors.text(json.dumps(text).encode()))
    for name, value in parts.items():
        entry = Entry(name.replace("_", ".", 1), kinds[value.dtype.name], value.shape)
        writer.add(entry, value.tobytes(), RAW, [value.tobytes()])
    writer.finish()
    path.write_bytes(buffer.getvalue())
    return path


GOOD = {
    "w": np.array([[1, -2], [3, 4]], np.int8),
    "w_scale": np.array([0.5, 0.25], np.float32),
    "w_zero_point": np.array([0, 1], np.int32),
}
LIST = {"version": 1, "weights": {"w": 0}}


def test_the_format_by_hand(tmp_path: Path) -> None:
    assert sc.load(file_of(tmp_path / "m.sct", LIST, **GOOD))["w"].tolist() == [[0.5, -1.0], [0.5, 0.75]]


@pytest.mark.parametrize(
    ("text", "parts", "says"),
    [
        ({"version": 2, "weights": {"w": 0}}, {}, "version 1"),
        ({"version": 1, "weights": {}}, {}, "at least one weight"),
        ({"version": 1, "weights": {"v": 0}}, {}, "got none"),
        ({"version": 1, "weights": {"w": 2}}, {}, "a number below 2"),
        ({"version": 1, "weights": {"w": True}}, {}, "a number below 2"),
        ({"version": 1, "weights": {"w": None}}, {}, r"shape \[\], got F32 of shape \[2\]"),
        ({"version": 1, "weights": {"w.scale": 0}}, {}, "expected a tensor of I8 or U8, got F32"),
        (LIST, {"w_scale": np.array([0.5, 0.0], np.float32)}, "finite numbers above 0"),
        (LIST, {"w_scale": np.array([0.5, np.nan], np.float32)}, "finite numbers above 0"),
        (LIST, {"w_zero_point": np.array([0, 128], np.int32)}, "from -128 to 127"),
        (LIST, {"w_zero_point": np.array([0.0, 1.0], np.float32)}, "expected I32"),
    ],
)
def test_a_wrong_list_is_refused(
    text: object, parts: dict[str, np.ndarray], says: str, tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match=says):
        sc.load(file_of(tmp_path / "m.sct", text, **{**GOOD, **parts}))


def test_floats_count_towards_the_memory_that_a_file_may_take(tmp_path: Path) -> None:
    many = {
        "w": np.zeros((1, 24 << 20), np.int8),
        "w_scale": np.ones(1, np.float32),
        "w_zero_point": np.zeros(1, np.int32),
    }
    buffer = io.BytesIO()
    writer = Writer(buffer)
    writer.text("int8", tensors.text(json.dumps(LIST).encode()))
    for name, kind in (("w", "I8"), ("w_scale", "F32"), ("w_zero_point", "I32")):
        words = many[name].view({"I8": "u1", "F32": "u4", "I32": "u4"}[kind])
        entry = Entry(name.replace("_", ".", 1), kind, words.shape)
        writer.add(entry, words.tobytes(), *tensors.encode(entry, words, "fast", writer.memory))
    writer.finish()
    (tmp_path / "m.sct").write_bytes(buffer.getvalue())
    with pytest.raises(FormatError, match="max_bytes"):
        sc.load(tmp_path / "m.sct")
    assert sc.load(tmp_path / "m.sct", max_bytes=200 << 20)["w"].shape == (1, 24 << 20)


def test_the_golden_file_gives_the_same_weights_for_ever() -> None:
    state = sc.load(Path(__file__).resolve().parents[1] / "golden" / "v2-int8.sct")
    assert list(state) == ["0.weight", "0.bias", "whole"]
    assert [float(state["0.weight"][row].sum()) for row in range(4)] == [6.078125, -2.25, -23.484375, 1.625]
    assert state["whole"].tolist() == [[-2.625, 4.5, 14.125], [-3.375, -14.125, 7.625]]


class Scaled(nn.Linear):
    """A linear layer whose forward is its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


def test_layers_of_a_subclass_are_named_where_nothing_is_rounded(tmp_path: Path) -> None:
    text = r"with a float32 weight of its own; subclasses are left out, as '1' of Scaled, a subclass of nn\.Linear, .*"
    with pytest.raises(NothingToDoError, match=text + r"sc\.share\(model, bits=8\)"):
        sc.save(nn.Sequential(nn.ReLU(), Scaled(3, 2)), tmp_path / "scaled.sct", options=INT8)
    with pytest.raises(NothingToDoError, match=r"as 'the model itself' of Scaled"):
        sc.save(Scaled(3, 2), tmp_path / "scaled.sct", options=INT8)
    with pytest.raises(NothingToDoError, match=r"float32 weight of its own$"):
        sc.save(nn.Sequential(nn.BatchNorm1d(2)), tmp_path / "norm.sct", options=INT8)

"""INT8: what the file holds, how it compares, which layers stay in float and why, and what is refused."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch
from torch import nn

from secateur.adapters import int8_quantisers
from secateur.adapters.export import _not_smaller, export
from secateur.adapters.int8 import Int8Options, Int8Report, _failed, _fewest, _found, _Judge
from secateur.adapters.onnx_attention import drop_unread
from secateur.adapters.onnx_model import OnnxModel
from secateur.errors import (
    BudgetNotMetError,
    DataError,
    NothingToDoError,
    OptionError,
    UnknownNameError,
)

missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(
    bool(missing), reason=f"NOT TESTED: INT8, as {', '.join(missing)} is not installed: secateur[onnx]"
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


class Outliers(nn.Module):
    """A channel between `first` and `second` is ten thousand times as large as the others: 8 bits cannot hold both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 10)
        with torch.no_grad():
            self.first.weight[0] *= 1e4
            self.second.weight[:, 0] *= 1e-4

    def forward(self, x):
        return self.third(self.second(self.first(x)).relu())


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net().eval()


def batches(*shape: int, count: int = 4, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


X = batches(1, 3, 8, 8, count=1)[0]
IMAGES = batches(8, 3, 8, 8)


def graph(path):
    import onnx

    return onnx.load(str(path)).graph


@needs_onnx
@pytest.mark.parametrize("calibration", ["minmax", "percentile", "entropy"])
def test_a_static_file_holds_integers_by_channel_and_is_compared(model, tmp_path, calibration):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = tmp_path / "m.onnx"
    options = Int8Options(calibration=calibration, lost=0.5)
    done = export(model, path, X, int8=IMAGES, int8_options=options)
    assert done.format == "onnx int8"
    assert done.int8.method == f"static, {calibration}"
    assert done.int8.quantised == 3
    assert done.int8.float_layers == ()
    found = graph(path)
    kinds = [node.op_type for node in found.node]
    assert kinds.count("Conv") == 2
    assert kinds.count("QuantizeLinear") >= 4
    integers = {item.name: tuple(item.dims) for item in found.initializer if item.data_type == 3}
    assert (8, 4, 3, 3) in integers.values()  # images get a fourth channel
    scales = [tuple(item.dims) for item in found.initializer if "stem.weight_scale" in item.name]
    assert scales == [(8,)]  # one for each output channel
    peer = OnnxModel(path)
    with torch.no_grad():
        wanted, got = [torch.cat([net(x) for x in IMAGES]) for net in (model, peer)]
        agreement = float((wanted.argmax(1) == got.argmax(1)).float().mean())
        assert peer(IMAGES[0][:3]).shape == (3, 5)  # the batch is free still
    assert done.int8.after == pytest.approx(agreement)
    assert done.int8.noise == pytest.approx(float((got - wanted).norm() / wanted.norm()), rel=1e-4)
    assert 0 < done.error < 0.5
    assert done.error == done.int8.error
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@needs_onnx
@pytest.mark.parametrize("way", ["static", "dynamic"])
def test_no_sum_of_products_is_cut_off(tmp_path, way):
    """Two products of a full byte and a full weight are more than the 16 bits that processors without VNNI sum in."""
    model = nn.Linear(64, 8, bias=False).eval()
    with torch.no_grad():
        model.weight.fill_(0.5)
    full = [torch.full((4, 64), 3.0) for _ in range(2)]
    int8 = full if way == "static" else "dynamic"
    done = export(model, tmp_path / "m.onnx", full[0], int8=int8, int8_options=Int8Options(lost=0.9))
    assert done.int8.weight_bits == 7
    assert "weights of 7 bits" in str(done.int8)
    assert done.int8.error < 0.01  # half of the sum would be left with 8 bits there


@needs_onnx
def test_a_reduced_range_uses_seven_bits(model, tmp_path):
    import onnx

    most = {}
    for reduced in (False, True):
        path = tmp_path / f"{reduced}.onnx"
        export(model, path, X, int8=IMAGES, int8_options=Int8Options(lost=0.9, reduce_range=reduced))
        weight = next(i for i in graph(path).initializer if i.name.startswith("stem.weight_quantized"))
        most[reduced] = int(abs(onnx.numpy_helper.to_array(weight).astype(int)).max())
    assert most[False] == 127
    assert most[True] <= 64


@needs_onnx
def test_batches_may_have_targets_and_be_dicts(tmp_path):
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, a, b):
            return self.fc(torch.cat([a, b], 1))

    torch.manual_seed(0)
    example = {"a": torch.randn(1, 2), "b": torch.randn(1, 4)}
    calibration = [
        {"b": torch.randn(4, 4), "a": torch.randn(4, 2), "labels": torch.zeros(4)} for _ in range(3)
    ]
    done = export(Pair(), tmp_path / "p.onnx", example, int8=calibration, int8_options=Int8Options(lost=0.5))
    assert done.int8.noise < 0.1
    plain = [(torch.randn(4, 3, 8, 8), torch.zeros(4)) for _ in range(2)]
    done = export(Net(), tmp_path / "m.onnx", X, int8=plain, int8_options=Int8Options(lost=0.9))
    assert done.int8.quantised == 3


@needs_onnx
def test_the_layer_that_eight_bits_spoil_stays_in_float(tmp_path):
    torch.manual_seed(0)
    model, inputs = Outliers().eval(), batches(64, 16)
    path = tmp_path / "m.onnx"
    spoilt = export(model, path, inputs[0], int8=inputs, int8_options=Int8Options(lost=0.9))
    assert spoilt.int8.float_layers == ()
    assert spoilt.int8.after < 0.8
    done = export(model, path, inputs[0], int8=inputs, int8_options=Int8Options(lost=0.1))
    report = done.int8
    assert report.float_layers == ("first", "second")  # what lies between them stays in float
    assert report.quantised == 1
    assert report.after >= report.limit == 0.9
    noise = {layer.name: layer.noise for layer in report.layers}
    assert set(noise) == {"first", "second", "third", "all other operators"}
    assert list(noise)[:2] == ["second", "first"]
    assert min(noise["first"], noise["second"]) > 10 * noise["third"]
    assert "1 layers in INT8, 2 in float: first, second" in str(done)
    kept = export(
        model, path, inputs[0], int8=inputs, int8_options=Int8Options(lost=0.999, keep_float=["sec*"])
    )
    assert kept.int8.float_layers == ("second",)
    assert kept.int8.layers == ()


@needs_onnx
def test_accuracy_decides_where_it_can_be_measured(tmp_path):
    torch.manual_seed(0)
    model, inputs = Outliers().eval(), batches(64, 16)
    labelled = [(x, model(x).argmax(1)) for x in inputs]
    options = Int8Options(lost=0.1, evaluate=iter(labelled))  # an iterator can be read once only
    report = export(model, tmp_path / "m.onnx", inputs[0], int8=inputs, int8_options=options).int8
    assert (report.judged_by, report.before) == ("accuracy", 1.0)
    assert report.float_layers == ("first", "second")
    asked = []

    def score(net):
        asked.append(type(net).__name__)
        return {"score": 7.0}

    options = Int8Options(lost=0.0, evaluate=score)
    report = export(model, tmp_path / "m.onnx", inputs[0], int8=inputs, int8_options=options).int8
    assert (report.judged_by, report.before, report.after) == ("score", 7.0, 7.0)
    assert asked == ["Outliers", "OnnxModel"]


@needs_onnx
def test_a_limit_that_never_holds_leaves_no_file(tmp_path):
    torch.manual_seed(0)
    model, inputs = Outliers().eval(), batches(8, 16)
    options = Int8Options(evaluate=lambda net: 0.25 if isinstance(net, OnnxModel) else 1.0)
    with pytest.raises(
        BudgetNotMetError, match=r"score 0\.2500 with all layers .* expected at least 0\.9900"
    ):
        export(model, tmp_path / "m.onnx", inputs[0], int8=inputs, int8_options=options)
    assert not list(tmp_path.iterdir())


@needs_onnx
def test_numbers_that_name_no_class_are_judged_by_their_noise(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    inputs = batches(16, 8)
    report = export(
        model, tmp_path / "m.onnx", inputs[0], int8=inputs, int8_options=Int8Options(lost=0.1)
    ).int8
    assert report.judged_by == "fidelity"
    assert report.after == pytest.approx(1.0 - report.noise)


@needs_onnx
def test_transformers_are_quantised_dynamically(tmp_path):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.Sequential(
        nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(16, 4)
    ).eval()
    inputs = batches(4, 5, 16)
    options = Int8Options(compare=inputs, lost=0.2)
    done = export(model, tmp_path / "m.onnx", inputs[0], int8="dynamic", int8_options=options)
    assert done.int8.method == "dynamic"
    kinds = [node.op_type for node in graph(tmp_path / "m.onnx").node]
    assert kinds.count("DynamicQuantizeLinear") >= 4
    assert kinds.count("MatMulInteger") >= 4
    assert done.int8.quantised >= 4
    assert done.int8.noise < 0.1
    with torch.no_grad():
        assert OnnxModel(tmp_path / "m.onnx")(inputs[1]).shape == model(inputs[1]).shape


def test_padding_does_not_count_in_how_far_answers_are():
    class Tokens(nn.Module):
        """Logits of two classes for each token; one number for each row."""

        def __init__(self, wrong: float):
            super().__init__()
            self.wrong = wrong

        def forward(self, input_ids, attention_mask):
            logits = torch.stack([input_ids, 2.0 * input_ids], -1)
            logits[..., 0] += self.wrong * (1 - attention_mask)
            logits[0, 0, 0] += 0.3 * (self.wrong > 0)
            return logits, input_ids.sum(1, keepdim=True)

    batch = {"input_ids": torch.tensor([[1.0, 1.0, 1.0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    judge = _Judge(Tokens(0.0), [batch], Int8Options())
    found = judge.outputs(Tokens(100.0))
    assert judge.error(found) == pytest.approx(0.3 / 2)  # not 100 / 2, which is at padding
    # squares: the change 0.3², the outputs two tokens of 1² + 2², and the sum 3² of all
    assert judge.noise(found) == pytest.approx((0.09 / (2 * 5 + 9)) ** 0.5)
    assert judge.value(Tokens(100.0), found) == 1.0  # both tokens name class 1; padding would name class 0
    unmasked = [{"input_ids": batch["input_ids"], "attention_mask": torch.ones(1, 3)}]
    assert _Judge(Tokens(0.0), unmasked, Int8Options()).outputs(Tokens(0.0))[0][0].shape == (3, 2)


def test_fewest_finds_the_first_count_that_holds():
    for most in range(1, 20):
        for first in range(1, most + 1):
            assert _fewest(lambda count, first=first: count >= first, most) == first
        assert _fewest(lambda count: False, most) is None
    assert _fewest(lambda count: True, 0) is None


@needs_onnx
@pytest.mark.parametrize(
    ("int8", "options", "error", "text"),
    [
        (torch.zeros(4, 3, 8, 8), {}, DataError, "int8: expected an iterable of batches, got a tensor"),
        ([], {}, DataError, "int8: the data holds no batch"),
        (IMAGES, {"compare": iter([])}, DataError, "compare: the data holds no batch"),
        ([torch.zeros(1, 4, 8, 8)], {}, (DataError, RuntimeError), "channels|does not run"),
        ("static", {}, OptionError, "expected batches to calibrate with, or 'dynamic', got 'static'"),
        (
            IMAGES,
            {"keep_float": "haed"},
            UnknownNameError,
            "keep_float: no layer 'haed': did you mean 'head'",
        ),
        (IMAGES, {"keep_float": "*"}, NothingToDoError, "keep_float names every layer that could"),
    ],
)
def test_what_cannot_be_done_is_refused(model, tmp_path, int8, options, error, text):
    with pytest.raises(error, match=text):
        export(model, tmp_path / "m.onnx", X, int8=int8, int8_options=Int8Options(**options))
    assert not list(tmp_path.iterdir())


@needs_onnx
def test_a_model_without_weights_is_refused(tmp_path):
    with pytest.raises(NothingToDoError, match="no convolution, linear layer or product with weights"):
        export(nn.ReLU(), tmp_path / "m.onnx", X, int8=IMAGES)
    convolutions = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(NothingToDoError, match="has convolutions only; give batches"):
        export(convolutions.eval(), tmp_path / "m.onnx", X, int8="dynamic")


def test_options_are_checked(model, tmp_path):
    with pytest.raises(OptionError, match=r"int8 is written as ONNX: expected a file that ends in \.onnx"):
        export(model, tmp_path / "m.pt2", X, int8=IMAGES)
    with pytest.raises(OptionError, match="int8_options without int8="):
        export(model, tmp_path / "m.onnx", X, int8_options=Int8Options())
    for wrong, text in [
        ({"percentile": 0.99}, "above 50 and at most 100"),
        ({"lost": 1.0}, "for 1 % write 0.01"),
        ({"batches": 0}, "at least 1 calibration batch"),
    ]:
        with pytest.raises(OptionError, match=text):
            Int8Options(**wrong)


@needs_onnx
def test_no_more_batches_are_read_than_asked(model, tmp_path, monkeypatch):
    read = []

    def endless():
        while True:
            read.append(1)
            yield IMAGES[0]

    seen = []
    reader = int8_quantisers._reader
    monkeypatch.setattr(int8_quantisers, "_reader", lambda feed: seen.append(1) or reader(feed))
    export(model, tmp_path / "m.onnx", X, int8=endless(), int8_options=Int8Options(lost=0.9, batches=2))
    assert len(seen) == 2
    assert len(read) <= 3


@needs_onnx
def test_attention_with_fewer_heads_is_quantised_whole(tmp_path):
    """Its weights are split and transposed in the graph; left there, the quantiser takes them for activations."""
    import secateur as sc

    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
    model = nn.Sequential(
        nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(32, 5)
    ).eval()
    inputs = batches(2, 7, 32)
    small = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=inputs[0]), inputs[0]).model
    assert small[0].layers[0].self_attn.num_heads == 2
    options = Int8Options(lost=0.9, compare=inputs)
    done = export(small, tmp_path / "m.onnx", inputs[0], int8="dynamic", int8_options=options)
    kinds = [node.op_type for node in graph(tmp_path / "m.onnx").node]
    assert kinds.count("MatMulInteger") == 7  # q, k, v, out, linear1, linear2, head
    assert kinds.count("MatMul") == 0  # q k^T and the product with v are inside
    assert kinds.count("Attention") == 1
    assert done.int8.noise < 0.05


@needs_onnx
def test_weights_are_stored_and_linear_layers_are_products(tmp_path):
    import numpy as np
    import onnx
    import onnxruntime
    from onnx import helper, numpy_helper

    from secateur.adapters.onnx_weights import gemm_as_matmul, store_weights

    both = np.arange(12, dtype=np.float32).reshape(
        4, 3
    )  # rows 0-1 for one product, rows 2-3 for a linear layer
    nodes = [
        helper.make_node("Split", ["w"], ["a", "b"], num_outputs=2, axis=0),
        helper.make_node("Transpose", ["a"], ["at"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "at"], ["left"], name="left"),
        helper.make_node("Gemm", ["x", "b", "bias"], ["right"], name="right", transB=1),
        helper.make_node("Add", ["left", "right"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, 1, [1, n]) for name, n in (("x", 3), ("y", 2))]
    stored = [numpy_helper.from_array(both, "w"), numpy_helper.from_array(np.float32([1, 2]), "bias")]
    whole = helper.make_graph(nodes, "g", values[:1], values[1:], stored)
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    assert store_weights(model) == 2
    gemm_as_matmul(model)
    assert [node.op_type for node in model.graph.node] == ["MatMul", "MatMul", "Add", "Add"]
    found = {item.name: numpy_helper.to_array(item).tolist() for item in model.graph.initializer}
    assert found == {
        "at": [[0, 3], [1, 4], [2, 5]],
        "b.transposed": [[6, 9], [7, 10], [8, 11]],
        "bias": [1, 2],
    }
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.float32([[1, 0, 2]])})
    assert y.tolist() == [[4 + 22 + 1, 13 + 31 + 2]]


class Block(nn.Module):
    """Attention and a norm after the addition, as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm, self.head = nn.Linear(16, 48), nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x):
        q, k, v = self.mix(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(self.norm(x + attended.transpose(1, 2).flatten(2)))


@needs_onnx
def test_transformers_are_written_in_operators_that_are_fast_in_int8(tmp_path):
    torch.manual_seed(0)
    block, x = Block().eval(), torch.randn(2, 6, 16)
    options = Int8Options(lost=0.5, compare=batches(2, 6, 16))
    done = export(block, tmp_path / "m.onnx", x, int8="dynamic", int8_options=options)
    kinds = [node.op_type for node in graph(tmp_path / "m.onnx").node]
    assert "Sum" in kinds  # an Add would be merged with the norm
    assert kinds.count("Attention") == 1
    assert "Softmax" not in kinds
    assert done.int8.noise < 0.1
    assert OnnxModel(tmp_path / "m.onnx")(torch.randn(5, 6, 16)).shape == (5, 6, 4)
    static = export(block, tmp_path / "s.onnx", x, int8=batches(2, 6, 16), int8_options=options)
    assert static.int8.noise < 0.1


class Projected(nn.Module):
    """Attention with three layers of its own for queries, keys and values."""

    def __init__(self, causal: bool = False, keys: int = 16) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, size) for size in (16, keys, keys))
        self.out, self.causal = nn.Linear(16, 4), causal

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (-1, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if k.shape[1] < q.shape[1]:
            k, v = k.expand(-1, q.shape[1], -1, -1), v.expand(-1, q.shape[1], -1, -1)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(attended.transpose(1, 2).flatten(2))


@needs_onnx
def test_attention_and_its_products_are_one_operator_of_the_runtime_on_request(tmp_path):
    torch.manual_seed(0)
    block, x = Projected().eval(), torch.randn(2, 6, 16)
    files = {}
    for own in (False, True):
        options = Int8Options(lost=0.5, compare=batches(2, 6, 16), own_operators=own)
        export(block, tmp_path / f"{own}.onnx", x, int8="dynamic", int8_options=options)
        kinds = [node.op_type for node in graph(tmp_path / f"{own}.onnx").node]
        assert ("QAttention" in kinds, "Attention" in kinds) == (own, not own)
        assert kinds.count("MatMulInteger") == (1 if own else 4)  # the output's product stays
        files[own] = OnnxModel(tmp_path / f"{own}.onnx")
    more = (
        torch.randn(5, 9, 16)
        if files[True].session.get_inputs()[0].shape[1] == "s"
        else torch.randn(5, 6, 16)
    )
    torch.testing.assert_close(files[True](more), files[False](more), rtol=1e-6, atol=1e-6)
    assert "QAttention" not in (tmp_path / "False.onnx").read_bytes().decode("latin-1")


@needs_onnx
@pytest.mark.parametrize("block", [Projected(causal=True), Projected(keys=8)], ids=["causal", "shared keys"])
def test_attention_of_another_form_stays_as_it_is(tmp_path, block):
    torch.manual_seed(0)
    options = Int8Options(lost=0.5, compare=batches(2, 6, 16), own_operators=True)
    done = export(
        block.eval(), tmp_path / "m.onnx", torch.randn(2, 6, 16), int8="dynamic", int8_options=options
    )
    assert "QAttention" not in [node.op_type for node in graph(tmp_path / "m.onnx").node]
    assert done.int8.noise < 0.1


class Windows(Projected):
    """Attention within four windows of three positions, of inputs [1, 12, 16] or flattened to [12, 16]."""

    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        self.flat = flat

    def forward(self, x):
        x = x.flatten(0, 1) if self.flat else x
        q, k, v = (layer(x).view(4, 3, 2, 8).transpose(1, 2) for layer in (self.q, self.k, self.v))
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out(attended.reshape(4, 3, 16) if self.flat else attended.reshape(1, 12, 16))


class Split(Projected):
    """Attention whose heads are not put beside each other afterwards."""

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (-1, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return attended.reshape(1, 24, 8)


@needs_onnx
@pytest.mark.parametrize("block", [Windows(), Windows(flat=True), Split()], ids=["windows", "flat", "split"])
def test_attention_over_other_positions_than_the_input_has_gives_the_same_on_request(tmp_path, block):
    torch.manual_seed(0)
    x, found = torch.randn(1, 12, 16), {}
    for own in (False, True):
        options = Int8Options(lost=0.5, compare=batches(1, 12, 16), own_operators=own)
        export(block.eval(), tmp_path / f"{own}.onnx", x, int8="dynamic", int8_options=options)
        found[own] = OnnxModel(tmp_path / f"{own}.onnx")(x)
    assert "QAttention" not in [node.op_type for node in graph(tmp_path / "True.onnx").node]
    torch.testing.assert_close(found[True], found[False], rtol=1e-6, atol=1e-6)


class Patches(Projected):
    """Attention over patches and a token in front, whose number no inference finds where the batch is free."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, 1, 16))

    def forward(self, x):
        return super().forward(torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1).relu())


@needs_onnx
def test_positions_that_the_exporter_noted_are_known(tmp_path):
    torch.manual_seed(0)
    options = Int8Options(lost=0.5, compare=batches(2, 6, 16), own_operators=True)
    export(Patches().eval(), tmp_path / "m.onnx", torch.randn(2, 6, 16), int8="dynamic", int8_options=options)
    assert "QAttention" in [node.op_type for node in graph(tmp_path / "m.onnx").node]


@needs_onnx
def test_what_only_a_branch_reads_stays():
    from onnx import TensorProto, helper, numpy_helper

    def branch(name, kind):
        node = helper.make_node(kind, ["doubled", "stored"], [name])
        return helper.make_graph(
            [node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])]
        )

    nodes = [
        helper.make_node("Add", ["x", "x"], ["doubled"]),
        helper.make_node("Neg", ["x"], ["unread"]),
        helper.make_node(
            "If", ["which"], ["y"], then_branch=branch("a", "Add"), else_branch=branch("b", "Mul")
        ),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
        helper.make_tensor_value_info("which", TensorProto.BOOL, []),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])]
    stored = [numpy_helper.from_array(torch.ones(2).numpy(), name) for name in ("stored", "spare")]
    made = helper.make_graph(nodes, "m", inputs, outputs, stored)
    drop_unread(made)
    assert [node.op_type for node in made.node] == ["Add", "If"]
    assert [item.name for item in made.initializer] == ["stored"]


@needs_onnx
def test_operators_of_the_runtime_are_for_dynamic_files(tmp_path, monkeypatch):
    options = Int8Options(own_operators=True)
    monkeypatch.setattr("secateur.adapters.export.record_program", None)  # said before the model is exported
    with pytest.raises(
        OptionError, match=r"only int8='dynamic' writes them.*; pass int8='dynamic', or leave"
    ):
        export(
            Projected().eval(),
            tmp_path / "m.onnx",
            torch.randn(2, 6, 16),
            int8=batches(2, 6, 16),
            int8_options=options,
        )


@needs_onnx
def test_an_older_runtime_gets_attention_in_parts(tmp_path, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "__version__", "1.22.0")
    torch.manual_seed(0)
    options = Int8Options(lost=0.5, compare=batches(2, 6, 16))
    export(Block().eval(), tmp_path / "m.onnx", torch.randn(2, 6, 16), int8="dynamic", int8_options=options)
    assert "Softmax" in [node.op_type for node in graph(tmp_path / "m.onnx").node]


@pytest.mark.parametrize("value", [True, 8, "static"])
def test_what_is_no_batch_is_refused(model, tmp_path, value):
    with pytest.raises(
        OptionError, match=rf"int8: expected batches .*'dynamic', got {value!r}; give a list of inputs"
    ):
        export(model, tmp_path / "a.onnx", X, int8=value)


def test_a_file_that_is_not_smaller_is_called_so():
    report = Int8Report("dynamic", "agreement", 1.0, 1.0, 0.99, 0.0, 0.0, 3, ("a", "b"))
    said = _not_smaller(104_779, 104_522, report)
    assert said.startswith(
        "INT8 did not make the file smaller: 104,779 bytes, 104,522 in floats, as 2 layers had to"
    )
    assert "Int8Options(lost=...)" in said
    assert "so small" in _not_smaller(9, 8, replace(report, float_layers=()))


def test_a_file_that_is_hardly_smaller_is_called_so():
    report = Int8Report("dynamic", "agreement", 1.0, 1.0, 0.99, 0.0, 0.0, 3)
    said = _not_smaller(220_268, 238_215, report)
    assert said.startswith(
        "INT8 made the file only 8% smaller: 220,268 bytes, 238,215 in floats; the model is so"
    )


class Tables(nn.Module):
    """A product with one stored matrix for each head, between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.out = nn.Linear(16, 16), nn.Linear(9, 5)
        self.register_buffer("table", torch.randn(1, 4, 4, 9))

    def forward(self, x):
        return self.out((self.q(x).unflatten(2, (4, 4)).transpose(1, 2) @ self.table).mean(1))


@needs_onnx
@pytest.mark.parametrize("way", ["static", "dynamic"])
def test_a_product_with_more_than_one_matrix_stays_in_float(tmp_path, monkeypatch, way, capfd):
    torch.manual_seed(0)
    model, x = Tables().eval(), torch.randn(2, 6, 16)
    data = batches(4, 6, 16, count=2)
    options = Int8Options(lost=0.5, compare=data)
    given = {"int8": data if way == "static" else "dynamic", "int8_options": options}
    done = export(model, tmp_path / "a.onnx", x, **given)
    assert done.int8 is not None
    assert done.int8.quantised == 2
    assert done.int8.float_layers == ("node_matmul",)
    monkeypatch.setattr(int8_quantisers, "_batched_products", lambda graph: [])
    with pytest.raises(
        DataError,
        match=r"(?s)ONNX Runtime fails at the operator 'node_matmul' of 'node_matmul'.*keep_float=\['node_matmul'\]",
    ):
        export(model, tmp_path / "b.onnx", x, **given)
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    assert "onnxruntime" not in capfd.readouterr().err


@pytest.mark.parametrize("always", [False, True])
def test_where_the_runtime_fails_other_operators_are_left_in_float(tmp_path, monkeypatch, always):
    """The quantiser fails where the operator 'sum', which has no weights, would be in INT8, or at all."""
    units, tries = {"head": ["product"], "all other operators": ["sum"]}, []

    def quantise(path, *, only=(), exclude=()):
        tries.append(list(exclude))
        if always or "sum" not in exclude:
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Name:'sum_quant' Status Message: wrong")

    class Judge:
        limit = 0.9
        outputs = noise = error = staticmethod(lambda found: 0.1)
        value = staticmethod(lambda peer, found: 1.0)

    monkeypatch.setattr("secateur.adapters.int8.OnnxModel", lambda path: path)
    if always:
        with pytest.raises(
            DataError, match=r"operator 'sum' of .*keep_float=\['all other operators', \.\.\.\]\)"
        ):
            _found(quantise, Judge(), units, [], tmp_path)
        return
    found, notes = _found(quantise, Judge(), units, [], tmp_path)
    assert tries == [[], ["sum"]]
    assert found.in_float == ("all other operators",)
    assert notes == (
        "all operators that are no layer with weights are in float, as ONNX Runtime fails with them in INT8 at the "
        "operator 'sum' of 'all other operators'; Int8Options(keep_float=['all other operators']) asks for that at "
        "once",
    )
    assert _found(quantise, Judge(), units, ["all other operators"], tmp_path)[1] == ()


def test_an_error_of_the_runtime_that_names_no_operator_says_what_may_help():
    said = "int8: ONNX Runtime fails: wrong; leave "
    units = {"head": ["product"], "all other operators": ["sum"]}
    assert _failed("wrong", units) == (
        f"{said}all that is no layer in float: Int8Options(keep_float=['all other operators'])"
    )
    kept = ["all other operators"]
    assert _failed("wrong", units, kept) == (
        f"{said}layers in float: Int8Options(keep_float=['all other operators', ...])"
    )
    assert _failed("wrong", {"head": ["product"]}) == f"{said}layers in float: Int8Options(keep_float=[...])"


@needs_onnx
def test_such_a_file_bears_the_remark(model, tmp_path, monkeypatch):
    """The quantised file is replaced by one twice as long as the file in floats."""

    def longer(given, path, *rest):
        path.write_bytes(2 * path.read_bytes())
        return Int8Report("dynamic", "agreement", 1.0, 1.0, 0.99, 0.0, 0.0, 3, notes=("a note",))

    monkeypatch.setattr("secateur.adapters.export.write_int8", longer)
    done = export(model, tmp_path / "a.onnx", X, int8="dynamic")
    assert f"INT8 did not make the file smaller: {done.size:,} bytes, {done.size // 2:,} in floats" in str(
        done
    )
    assert "a note" in done.notes


def moves(path):
    """How many operators exchange heads and positions, and how many are attention."""
    kinds = [node.op_type for node in graph(path).node]
    return kinds.count("Transpose"), kinds.count("Attention")


@needs_onnx
@pytest.mark.parametrize("causal", [False, True])
def test_heads_stay_beside_each_other(tmp_path, causal):
    torch.manual_seed(0)
    block, x = Projected(causal=causal).eval(), torch.randn(2, 6, 16)
    options = Int8Options(lost=0.5, compare=batches(2, 6, 16))
    done = export(block, tmp_path / "m.onnx", x, int8="dynamic", int8_options=options)
    assert moves(tmp_path / "m.onnx") == (0, 1)
    assert done.int8.noise < 0.05
    node = next(each for each in graph(tmp_path / "m.onnx").node if each.op_type == "Attention")
    found = {each.name: each.i for each in node.attribute}
    assert (found["q_num_heads"], found["kv_num_heads"], found.get("is_causal", 0)) == (2, 2, int(causal))


class Masked(Projected):
    """Attention in which the last two positions do not count."""

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (-1, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mask = torch.zeros(6, 6).masked_fill(torch.arange(6) >= 4, -1e4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(attended.transpose(1, 2).flatten(2))


@needs_onnx
@pytest.mark.parametrize("block", [Masked(), Windows(), Split()], ids=["mask", "windows", "split"])
def test_heads_beside_each_other_give_the_same(tmp_path, monkeypatch, block):
    torch.manual_seed(0)
    example = torch.randn(1, 6, 16) if isinstance(block, Masked) else torch.randn(1, 12, 16)
    options = Int8Options(lost=0.5, compare=batches(*example.shape))
    found = {}
    for name in ("beside", "transposed"):
        if name == "transposed":
            monkeypatch.setattr("secateur.adapters.int8.beside", lambda graph: 0)
        export(block.eval(), tmp_path / f"{name}.onnx", example, int8="dynamic", int8_options=options)
        found[name] = OnnxModel(tmp_path / f"{name}.onnx")(example)
    assert (moves(tmp_path / "beside.onnx")[0] == 0) == isinstance(block, Masked)
    assert moves(tmp_path / "transposed.onnx")[0] > 0
    torch.testing.assert_close(found["beside"], found["transposed"], rtol=1e-6, atol=1e-6)


class Image(nn.Module):
    """Patches of an image and attention with one weight for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.out = nn.Linear(16, 4)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.out(self.attention(x, x, x, need_weights=False)[0].mean(1))


@needs_onnx
def test_patches_and_packed_attention_are_products_in_int8(tmp_path):
    torch.manual_seed(0)
    model, images = Image().eval(), batches(2, 3, 16, 16)
    options = Int8Options(lost=0.5, compare=images)
    done = export(model, tmp_path / "m.onnx", images[0], int8="dynamic", int8_options=options)
    kinds = [node.op_type for node in graph(tmp_path / "m.onnx").node]
    assert "Conv" not in kinds
    assert kinds.count("MatMulInteger") == 6
    assert done.int8.noise < 0.05
    assert "patches" not in done.int8.float_layers
    float_patches = Int8Options(lost=0.5, compare=images, keep_float="patches")
    done = export(model, tmp_path / "m.onnx", images[0], int8="dynamic", int8_options=float_patches)
    assert done.int8.float_layers == ("patches",)
    kinds = [node.op_type for node in graph(tmp_path / "m.onnx").node]
    assert kinds.count("MatMulInteger") == 5

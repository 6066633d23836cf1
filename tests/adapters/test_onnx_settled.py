"""What is the same for every input leaves the graph, what depends on it stays, and outputs stay equal."""

from __future__ import annotations

import importlib.util
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from secateur.adapters.export import export
from secateur.adapters.int8 import Int8Options
from secateur.adapters.onnx_model import OnnxModel, runs_attention
from secateur.adapters.onnx_settled import settled
from secateur.adapters.programs import ATTENTION, record_program, write_program

missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(missing), reason=f"NOT TESTED: INT8, as {', '.join(missing)} is not installed: secateur[onnx]"
)


class Tokens(nn.Module):
    """Words, kinds of words and places in a sum, then attention, as models of transformers are written."""

    def __init__(self, mask: str = "true", kind: int = 0, shared: bool = False) -> None:
        super().__init__()
        self.words, self.kinds, self.places = nn.Embedding(50, 16), nn.Embedding(2, 16), nn.Embedding(32, 16)
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, 5)
        self.mask, self.shared = mask, shared
        self.register_buffer("kind", torch.full((1, 32), kind))
        self.register_buffer("place", torch.arange(32)[None])

    def forward(self, ids):
        batch, length = ids.shape
        kinds = self.kind[:, :length].expand(batch, length)
        if self.mask == "kinds of the input":
            kinds = ids % 2
        place = self.place[:, :length]
        x = self.norm(self.words(ids) + self.kinds(kinds) + self.places(place))
        if self.shared:
            x = x + self.places(place) + self.words(ids)
        heads = x.unflatten(2, (4, 4)).transpose(1, 2)
        ones = torch.arange(length)[None, None, None, :]
        mask = {"true": ones >= 0, "later": ones >= 1, "of the input": (ids > 9)[:, None, None, :]}.get(
            self.mask
        )
        mask = None if mask is None else mask.expand(batch, 1, length, length)
        x = F.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)
        return self.out(x.transpose(1, 2).flatten(2))


IDS = torch.randint(1, 50, (2, 12), generator=torch.Generator().manual_seed(0))


def written(model, path):
    """The model's float file with attention as one operator, and its graph."""
    import onnx

    if not runs_attention():
        pytest.skip("NOT TESTED: attention as one operator, which needs onnxruntime 1.23 and onnx 1.18")
    write_program(record_program(model, IDS, True)[0], path, True, ATTENTION)
    return onnx.load(str(path))


def compare(model, graph, path, before):
    """Outputs of the file before and after at three sizes, the model's beside them."""
    import onnx

    onnx.checker.check_model(graph)
    onnx.save(graph, str(path.with_name("after.onnx")))
    again = OnnxModel(path.with_name("after.onnx"))
    for ids in (IDS, IDS[:1, :5], IDS.repeat(2, 2)):
        torch.testing.assert_close(again(ids), before(ids), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(again(ids), model(ids), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [0, 1])
def test_a_mask_that_is_true_and_a_row_for_all_leave(tmp_path, kind):
    torch.manual_seed(0)
    model, path = Tokens(kind=kind).eval(), tmp_path / "m.onnx"
    graph = written(model, path)
    assert settled(graph) == 2
    found = Counter(node.op_type for node in graph.graph.node)
    assert found["Gather"] == 2
    assert not {"Range", "GreaterOrEqual", "GatherElements"} & set(found)
    assert [len(node.input) for node in graph.graph.node if node.op_type == "Attention"] == [3]
    assert "kinds.weight" not in {item.name for item in graph.graph.initializer}
    compare(model, graph, path, OnnxModel(path))
    assert settled(graph) == 0


@pytest.mark.parametrize(
    ("options", "count", "masked"),
    [
        ({"mask": "later"}, 1, True),  # the first position is not seen
        ({"mask": "of the input"}, 1, True),
        ({"mask": "kinds of the input"}, 0, False),  # rows differ; there is no mask
        ({"shared": True}, 1, False),  # the tables are read elsewhere as well
    ],
    ids=["later", "of the input", "kinds of the input", "shared"],
)
def test_what_depends_on_the_input_stays(tmp_path, options, count, masked):
    torch.manual_seed(0)
    model, path = Tokens(**options).eval(), tmp_path / "m.onnx"
    graph = written(model, path)
    assert settled(graph) == count
    assert [len(node.input) == 4 for node in graph.graph.node if node.op_type == "Attention"] == [masked]
    compare(model, graph, path, OnnxModel(path))


@pytest.mark.parametrize(
    ("kind", "first", "second", "true"),
    [
        ("GreaterOrEqual", "numbers", 0, True),
        ("GreaterOrEqual", "numbers", 1, False),
        ("Greater", "numbers", 0, False),
        ("Greater", "numbers", -1, True),
        ("LessOrEqual", 0, "numbers", True),
        ("Less", 0, "numbers", False),
        ("LessOrEqual", "numbers", 0, False),
        ("And", "numbers", 0, False),
        ("Or", "numbers", 0, True),
    ],
)
def test_comparisons_of_numbers_from_zero(kind, first, second, true):
    import onnx
    from onnx import TensorProto, helper

    truths = kind in ("And", "Or")  # one side is always true, the other given
    given = {
        "numbers": "truth" if truths else "numbers",
        0: "asked" if truths else "zero",
        1: "one",
        -1: "minus",
    }
    whole = [
        helper.make_tensor(n, TensorProto.INT64, [], [v]) for n, v in (("zero", 0), ("one", 1), ("minus", -1))
    ]
    floats = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", 8])
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"], start=1, end=2),
        helper.make_node("Squeeze", ["sizes"], ["length"]),
        helper.make_node("Range", ["zero", "length", "one"], ["numbers"]),
        helper.make_node("GreaterOrEqual", ["numbers", "zero"], ["truth"]),
        helper.make_node(kind, [given[first], given[second]], ["mask"]),
        helper.make_node("Attention", ["x", "x", "x", "mask"], ["y"], q_num_heads=2, kv_num_heads=2),
    ]
    asked = helper.make_tensor_value_info("asked", TensorProto.BOOL, ["length"])
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", 8])]
    graph = helper.make_graph(nodes, "m", [floats, asked], outputs, whole)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    assert settled(model) == int(true)
    assert len(model.graph.node[-1].input) == (3 if true else 4)
    onnx.checker.check_model(model)


def test_a_file_in_int8_has_no_such_mask_and_other_sizes_still_run(tmp_path):
    import onnx

    if not runs_attention():
        pytest.skip("NOT TESTED: attention as one operator, which needs onnxruntime 1.23 and onnx 1.18")
    torch.manual_seed(0)
    model, path = Tokens().eval(), tmp_path / "m.onnx"
    done = export(model, path, IDS, int8="dynamic", int8_options=Int8Options(lost=0.5))
    assert done.int8 is not None
    attention = [node for node in onnx.load(str(path)).graph.node if node.op_type == "Attention"]
    assert [len(node.input) for node in attention] == [3]
    other = IDS[:1, :7]
    assert (OnnxModel(path)(other) - model(other)).abs().max() < 0.1 * model(other).abs().max()


def test_a_size_that_a_model_does_not_take_prints_nothing(tmp_path, capfd):
    # The model has 32 places; whether five times as many positions run is tried, and torch logs that as an error.
    record_program(Tokens().eval(), IDS, True)
    heard = capfd.readouterr()
    assert heard.err == ""

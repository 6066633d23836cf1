"""Weights of an ONNX graph as the quantiser looks for them: stored numbers, read by MatMul.

ONNX Runtime's quantiser takes an operator's weight for one only where it is stored in the file. A weight that the graph
first splits or transposes (attention with fewer heads does) is computed in every call and stays in float.
`store_weights` computes such tensors once and stores them. `gemm_as_matmul` writes a linear layer as MatMul and Add,
the only form that the dynamic quantiser knows.

>>> store_weights.__name__, gemm_as_matmul.__name__
('store_weights', 'gemm_as_matmul')
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from secateur.adapters.onnx_model import extra_module

if TYPE_CHECKING:
    import onnx

__all__ = ["TRANSPOSED", "gemm_as_matmul", "store_weights"]

TRANSPOSED = ".transposed"

_MOVES = ("Concat", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")


def store_weights(model: onnx.ModelProto) -> int:
    """Compute operators that only move stored numbers, and store their results; the outputs stay equal bit for bit.

    Args:
        model: The graph; it is changed.

    Returns:
        How many operators were computed.
    """
    graph = model.graph
    stored = {item.name: item for item in graph.initializer}
    left = []
    for node in graph.node:
        names = [name for name in node.input if name]
        if node.op_type in _MOVES and names and all(name in stored for name in names):
            stored.update(_computed(model, node, {name: stored[name] for name in names}))
        else:
            left.append(node)
    done = len(graph.node) - len(left)
    _rewrite(graph, left, stored)
    return done


def _rewrite(
    graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto], stored: dict[str, onnx.TensorProto]
) -> None:
    """Put other operators into a graph, and of the stored numbers those that are read."""
    used = {name for node in nodes for name in node.input} | {item.name for item in graph.output}
    kept = [item for name, item in stored.items() if name in used]
    _replace(graph.node, nodes)
    _replace(graph.initializer, kept)


def _replace(field: object, items: Sequence[object]) -> None:
    """Put other items into a repeated field."""
    copies = [type(item).FromString(item.SerializeToString()) for item in items]  # type: ignore[attr-defined]
    field.clear()  # type: ignore[attr-defined]
    field.extend(copies)  # type: ignore[attr-defined]


def _computed(
    model: onnx.ModelProto, node: onnx.NodeProto, inputs: dict[str, onnx.TensorProto]
) -> dict[str, onnx.TensorProto]:
    """The outputs of one operator, by onnx's own reference."""
    numbers, helper = extra_module("onnx.numpy_helper"), extra_module("onnx.helper")
    alone = helper.make_graph(
        [node],
        "alone",
        [helper.make_tensor_value_info(name, item.data_type, item.dims) for name, item in inputs.items()],
        [extra_module("onnx").ValueInfoProto(name=name) for name in node.output],
    )
    one = helper.make_model(alone, opset_imports=model.opset_import, ir_version=model.ir_version)
    reference = extra_module("onnx.reference").ReferenceEvaluator(one)
    found = reference.run(None, {name: numbers.to_array(item) for name, item in inputs.items()})
    return {name: numbers.from_array(value, name) for name, value in zip(node.output, found, strict=True)}


def gemm_as_matmul(model: onnx.ModelProto) -> None:
    """Write every Gemm with a factor of 1 as MatMul and Add, its weight transposed once.

    Args:
        model: The graph; it is changed.
    """
    numbers, helper = extra_module("onnx.numpy_helper"), extra_module("onnx.helper")
    graph = model.graph
    stored = {item.name: item for item in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        plain = (
            given.get("alpha", 1.0) == 1.0 and given.get("beta", 1.0) == 1.0 and not given.get("transA", 0)
        )
        if node.op_type != "Gemm" or not plain or node.input[1] not in stored:
            nodes.append(node)
            continue
        weight, bias = node.input[1], node.input[2] if len(node.input) > 2 else ""
        if given.get("transB", 0):
            turned = f"{weight}{TRANSPOSED}"
            if turned not in stored:
                stored[turned] = numbers.from_array(numbers.to_array(stored[weight]).T.copy(), turned)
            weight = turned
        product = f"{node.output[0]}.product" if bias else node.output[0]
        made = helper.make_node("MatMul", [node.input[0], weight], [product], name=node.name)
        made.metadata_props.extend(node.metadata_props)
        nodes.append(made)
        if bias:
            nodes.append(
                helper.make_node("Add", [product, bias], list(node.output), name=f"{node.name}.bias")
            )
    _rewrite(graph, nodes, stored)

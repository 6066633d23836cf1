"""`join_attention`: attention in INT8 written as QAttention, an operator of ONNX Runtime's own.

A dynamically quantised attention is three integer products of one input, each scaled and given its bias by itself,
then reshaped and transposed for the heads. QAttention does all of it in one operator, with the same outputs. No other
runtime reads it, so files are written with it on request alone.

    x ─ quantised ─┬─ q ─ scale ─ bias ─ reshape ─ transpose ─┐
                   ├─ k ─ scale ─ bias ─ reshape ─ transpose ─┼─ Attention ─ transpose ─ reshape ─ y
                   └─ v ─ scale ─ bias ─ reshape ─ transpose ─┘

>>> join_attention.__name__
'join_attention'
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from secateur.adapters.onnx_model import extra_module

if TYPE_CHECKING:
    import onnx

__all__ = ["drop_unread", "join_attention", "moves", "read_by"]

_DOMAIN = "com.microsoft"


@dataclass(frozen=True)
class _Projection:
    """One of the three products: its quantised input, and its weight, scale, zero point and bias."""

    source: tuple[str, str, str]  # the quantised tensor, its scale, its zero point
    weight: npt.NDArray[Any]
    scale: npt.NDArray[Any]
    zero: npt.NDArray[Any]
    bias: npt.NDArray[Any]
    heads: tuple[int, int]  # how many, and the size of each
    outer: tuple[int | None, int | None]  # its batch and positions, where they are known


def join_attention(model: onnx.ModelProto, noted: Iterable[onnx.ValueInfoProto] = ()) -> int:
    """Write every attention whose three products read one quantised input as QAttention.

    Attention with a mask that is not all true, with fewer heads of keys than of queries, or whose products differ in
    size is left as it is. So is attention within windows, where the batch and positions of the heads are not those of
    the products' input, and any where these are not known.

    Args:
        model: A dynamically quantised graph; it is changed.
        noted: Shapes of its tensors besides those in it; of those that the exporter noted, not all can be inferred.

    Returns:
        How many were rewritten.
    """
    tools = extra_module("onnx")
    shapes = {
        item.name: item.type.tensor_type.shape
        for item in (*model.graph.value_info, *model.graph.input, *noted)
    }
    done = 0
    for node in [each for each in model.graph.node if each.op_type == "Attention"]:
        graph = _Graph(model.graph, shapes)
        found = graph.attention(node)
        if found is None:
            continue
        parts, after = found
        place = list(model.graph.node).index(node)
        model.graph.node.insert(place, _joined(model.graph, node.output[0], parts, after[-1].output[0]))
        for each in (node, *after):
            model.graph.node.remove(each)
        done += 1
    if done:
        drop_unread(model.graph)
        if not any(each.domain == _DOMAIN for each in model.opset_import):
            model.opset_import.append(tools.helper.make_opsetid(_DOMAIN, 1))
    return done


class _Graph:
    """A graph by the names of its tensors."""

    def __init__(self, graph: onnx.GraphProto, shapes: Mapping[str, onnx.TensorShapeProto]):
        self.graph, self.shapes = graph, shapes
        self.made = {name: node for node in graph.node for name in node.output}
        self.stored = {item.name: item for item in graph.initializer}

    @cached_property
    def readers(self) -> dict[str, list[onnx.NodeProto]]:
        """The operators that read each tensor."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in set(read_by(node)):
                found.setdefault(name, []).append(node)
        return found

    def array(self, name: str) -> npt.NDArray[Any] | None:
        """A stored tensor; None where it is computed."""
        if name not in self.stored:
            return None
        found: npt.NDArray[Any] = extra_module("onnx").numpy_helper.to_array(self.stored[name])
        return found

    def attention(self, node: onnx.NodeProto) -> tuple[list[_Projection], list[onnx.NodeProto]] | None:
        """The three products of an attention, and the operators after it that go with it."""
        if len(node.output) > 1 or not all(self._true(name) for name in node.input[3:]):
            return None
        parts = [self._projection(name) for name in node.input[:3]]
        after: list[onnx.NodeProto] = []
        for kind in ("Transpose", "Reshape"):
            readers = self.readers.get((after[-1] if after else node).output[0], [])
            if len(readers) != 1 or not _is(readers[0], kind):
                return None
            after.append(readers[0])
        known = [part for part in parts if part is not None]
        alike = len({(part.source, part.heads, part.weight.shape) for part in known}) == 1
        if len(known) < 3 or not alike or not _plain(node, known[0].heads[1]):
            return None
        return (known, after) if self._joins(after[-1], known[0]) else None

    def _joins(self, reshape: onnx.NodeProto, part: _Projection) -> bool:
        """Whether the Reshape after an attention gives [batch, positions, heads beside each other]."""
        shape = self.array(reshape.input[1])
        if shape is None or len(shape) != 3:
            return False
        sure = _kept(reshape, shape, part.outer)
        return all(sure) if shape[2] == -1 else bool(shape[2] == part.weight.shape[1]) and any(sure)

    def _outer(self, name: str) -> tuple[int | None, int | None] | None:
        """The batch and positions of the tensor that was quantised, None where one is not a fixed number; None in all
        where it is not known to have three axes.
        """
        node = self.made.get(name)
        if node is None or node.op_type != "DynamicQuantizeLinear" or node.input[0] not in self.shapes:
            return None
        sizes = [
            axis.dim_value if axis.HasField("dim_value") else None for axis in self.shapes[node.input[0]].dim
        ]
        return (sizes[0], sizes[1]) if len(sizes) == 3 else None

    def _true(self, name: str) -> bool:
        """Whether a mask is stored and all true, or not there; it may be expanded to the batch."""
        if not name:
            return True
        node = self.made.get(name)
        values = self.array(node.input[0] if node is not None and node.op_type == "Expand" else name)
        return values is not None and values.dtype == np.bool_ and bool(values.all())

    def _projection(self, name: str) -> _Projection | None:
        """The product behind one input of an attention."""
        nodes = []
        for kind in ("Transpose", "Reshape", "Add"):
            node = self.made.get(name)
            if node is None or not _is(node, kind):
                return None
            nodes.append(node)
            name = node.input[0] if kind != "Add" else self._computed(node)
        shape, bias = self.array(nodes[1].input[1]), self._stored(nodes[2])
        scaled = self.made.get(name)
        if shape is None or len(shape) != 4 or bias is None or scaled is None or scaled.op_type != "Mul":
            return None
        cast, scales = self.made.get(scaled.input[0]), self.made.get(scaled.input[1])
        if cast is None or cast.op_type != "Cast" or scales is None or scales.op_type != "Mul":
            return None
        product, scale = self.made.get(cast.input[0]), self._stored(scales)
        if product is None or product.op_type != "MatMulInteger" or len(product.input) < 4 or scale is None:
            return None
        weight, zero = self.array(product.input[1]), self.array(product.input[3])
        if weight is None or zero is None or weight.ndim != 2:
            return None
        wide = weight.shape[1]
        source = product.input[0], self._computed(scales), product.input[2]
        heads, outer = (int(shape[-2]), int(shape[-1])), self._outer(product.input[0])
        if min(heads) < 1 or heads[0] * heads[1] != wide or bias.shape != (wide,):
            return None
        if outer is None or not any(_kept(nodes[1], shape, outer)):
            return None
        return _Projection(
            source, weight, np.broadcast_to(scale.reshape(-1), wide), np.broadcast_to(zero.reshape(-1), wide),
            bias, heads, outer,
        )  # fmt: skip

    def _stored(self, node: onnx.NodeProto) -> npt.NDArray[Any] | None:
        """The input of an operator that is stored."""
        return next((self.array(name) for name in node.input if name in self.stored), None)

    def _computed(self, node: onnx.NodeProto) -> str:
        """The input of an operator that is computed."""
        return next((name for name in node.input if name not in self.stored), "")


def _plain(node: onnx.NodeProto, size: int) -> bool:
    """Whether an attention is softmax(q k / sqrt(size)) v, without a rule of its own about which positions count."""
    numbers = {each.name: each.f if each.name in ("scale", "softcap") else each.i for each in node.attribute}
    scale = numbers.pop("scale", size**-0.5)
    return not any(numbers.values()) and math.isclose(scale, size**-0.5, rel_tol=1e-6)


def _kept(reshape: onnx.NodeProto, asked: npt.NDArray[Any], outer: Sequence[int | None]) -> tuple[bool, bool]:
    """Whether a Reshape keeps the first axis, and the second; where all later axes are one size, either follows from
    the other.

    Args:
        reshape: The operator.
        asked: The shape that it is given.
        outer: The first two axes of what it reads, None where one is not known.
    """
    copies = not any(each.name == "allowzero" and each.i for each in reshape.attribute)
    first, second = (bool(size == known or (copies and size == 0)) for size, known in zip(asked, outer))
    return first, second


def moves(node: onnx.NodeProto) -> bool:
    """Whether an operator is a Transpose that exchanges heads and positions.

    Args:
        node: The operator.
    """
    return node.op_type == "Transpose" and [list(each.ints) for each in node.attribute] == [[0, 2, 1, 3]]


def _is(node: onnx.NodeProto, kind: str) -> bool:
    """Whether an operator is of this kind; a Transpose has to exchange heads and positions."""
    return moves(node) if kind == "Transpose" else bool(node.op_type == kind)


def _joined(graph: onnx.GraphProto, name: str, parts: list[_Projection], out: str) -> onnx.NodeProto:
    """QAttention with the weights of the three products beside each other, which are stored in the graph."""
    tools = extra_module("onnx")
    arrays = {
        "weight": np.concatenate([part.weight for part in parts], axis=1),
        "bias": np.concatenate([part.bias for part in parts]).astype(np.float32),
        "scale": np.concatenate([part.scale for part in parts]).astype(np.float32),
        "zero_point": np.concatenate([part.zero for part in parts]),
    }
    for kind, values in arrays.items():
        stored = tools.numpy_helper.from_array(np.ascontiguousarray(values), f"{name}.{kind}")
        graph.initializer.append(stored)
    source, scale, zero = parts[0].source
    names = [source, f"{name}.weight", f"{name}.bias", scale, f"{name}.scale", "", zero, f"{name}.zero_point"]
    made: onnx.NodeProto = tools.helper.make_node(
        "QAttention", names, [out], domain=_DOMAIN, num_heads=parts[0].heads[0]
    )
    return made


def read_by(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that an operator reads, also within the bodies of an If or a Loop.

    Args:
        node: The operator.
    """
    yield from node.input
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            yield from (item.name for item in body.output)
            for inner in body.node:
                yield from read_by(inner)


def drop_unread(graph: onnx.GraphProto) -> None:
    """Remove operators whose results nothing reads, and then stored numbers that nothing reads.

    Args:
        graph: The graph; it is changed.
    """
    outputs = {item.name for item in graph.output}
    while True:
        used = outputs | {name for node in graph.node for name in read_by(node)}
        dead = [node for node in graph.node if used.isdisjoint(node.output)]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    kept = [item for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)

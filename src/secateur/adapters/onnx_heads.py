"""`beside`: attention that reads heads beside each other, as products write them, in place of transposed ones.

ONNX's operator for attention takes [batch, heads, positions, size], or [batch, positions, heads x size] with the number
of heads as an attribute. Exporters write the first form, with a Reshape and a Transpose before each input and after the
output. In the second they all leave, and the outputs stay equal.

    q ─ reshape ─ transpose ─┐                                             q ─┐
    k ─ reshape ─ transpose ─┼─ Attention ─ transpose ─ reshape ─ y   =>   k ─┼─ Attention ─ y
    v ─ reshape ─ transpose ─┘                                             v ─┘

>>> beside.__name__
'beside'
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from secateur.adapters.onnx_attention import drop_unread, kept, moves
from secateur.adapters.onnx_model import extra_module

if TYPE_CHECKING:
    import onnx

__all__ = ["beside"]


def beside(model: onnx.ModelProto) -> int:
    """Write every attention between transposes in the form that needs none.

    An attention is left as it is where a Reshape does more than part the heads, or where that is not known.

    Args:
        model: The graph; it is changed.

    Returns:
        How many were rewritten.
    """
    graph = model.graph
    found = _Heads(graph)
    done = 0
    for node in [each for each in graph.node if each.op_type == "Attention"]:
        parts = [found.parted(name) for name in node.input[:3]]
        after = found.joined(node)
        known = [part for part in parts if part is not None]
        if len(known) < 3 or after is None or len(node.output) > 1 or any(node.input[4:]):
            continue
        joins = after[1]
        width = known[0][1] * known[2][2]  # heads of the queries, each of the values' size
        if not found.keeps(joins, known[0][3], width):
            continue
        _rewrite(node, known, joins.output[0])
        for each in after:
            graph.node.remove(each)
        done += 1
    if done:
        drop_unread(graph)
    return done


_Part = tuple[str, int, int, "tuple[int | None, int | None]"]
"""The tensor with heads beside each other, the number of heads, the size of each, and its batch and positions."""


class _Heads:
    """A graph, asked for what parts and joins heads."""

    def __init__(self, graph: onnx.GraphProto):
        self.graph = graph
        self.made = {name: node for node in graph.node for name in node.output}
        self.stored = {item.name: item for item in graph.initializer}
        self.shapes = {item.name: item.type.tensor_type.shape for item in (*graph.value_info, *graph.input)}

    def numbers(self, name: str) -> npt.NDArray[Any] | None:
        """A stored tensor; None where it is computed."""
        if name not in self.stored:
            return None
        values: npt.NDArray[Any] = extra_module("onnx").numpy_helper.to_array(self.stored[name])
        return values

    def parted(self, name: str) -> _Part | None:
        """What stands before the Reshape and the Transpose of one input."""
        transpose = self.made.get(name)
        if transpose is None or not moves(transpose):
            return None
        reshape = self.made.get(transpose.input[0])
        if reshape is None or reshape.op_type != "Reshape":
            return None
        asked, shape = self.numbers(reshape.input[1]), self.shapes.get(reshape.input[0])
        if asked is None or len(asked) != 4 or shape is None or len(shape.dim) != 3:
            return None
        outer = tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in shape.dim[:2])
        wide, heads, size = shape.dim[2].dim_value, int(asked[2]), int(asked[3])
        if heads < 1 or wide < 1 or size not in (-1, wide // heads) or wide % heads:
            return None
        sure = kept(reshape, asked, outer)
        if not (all(sure) if size == -1 else any(sure)):
            return None
        return reshape.input[0], heads, wide // heads, (outer[0], outer[1])

    def joined(self, node: onnx.NodeProto) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
        """The Transpose and the Reshape after an attention, which nothing else reads."""
        transpose = self._only_reader(node.output[0])
        if transpose is None or not moves(transpose):
            return None
        reshape = self._only_reader(transpose.output[0])
        return (transpose, reshape) if reshape is not None and reshape.op_type == "Reshape" else None

    def _only_reader(self, name: str) -> onnx.NodeProto | None:
        readers = [node for node in self.graph.node if name in node.input]
        outward = any(item.name == name for item in self.graph.output)
        return readers[0] if len(readers) == 1 and not outward else None

    def keeps(self, reshape: onnx.NodeProto, outer: tuple[int | None, int | None], width: int) -> bool:
        """Whether a Reshape gives [batch, positions, heads beside each other]."""
        asked = self.numbers(reshape.input[1])
        if asked is None or len(asked) != 3:
            return False
        sure = kept(reshape, asked, outer)
        return all(sure) if asked[2] == -1 else bool(asked[2] == width) and any(sure)


def _rewrite(node: onnx.NodeProto, parts: list[_Part], out: str) -> None:
    """Let an attention read and write heads beside each other."""
    helper = extra_module("onnx").helper
    for index, (name, *_) in enumerate(parts):
        node.input[index] = name
    node.output[0] = out
    for name, count in (("q_num_heads", parts[0][1]), ("kv_num_heads", parts[1][1])):
        for each in [each for each in node.attribute if each.name == name]:
            node.attribute.remove(each)
        node.attribute.append(helper.make_attribute(name, count))

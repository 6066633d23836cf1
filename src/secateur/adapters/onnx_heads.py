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

from typing import TYPE_CHECKING

from secateur.adapters.onnx_attention import drop_unread, moves
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
        if found.axes(joins.output[0]) != [*known[0][3], width]:
            continue
        _rewrite(node, known, joins.output[0])
        for each in after:
            graph.node.remove(each)
        done += 1
    if done:
        drop_unread(graph)
    return done


_Axes = list["int | str"]
"""The sizes of a tensor's axes: a number, or the name of what is free."""
_Part = tuple[str, int, int, _Axes]
"""The tensor with heads beside each other, the number of heads, the size of each, and its batch and positions."""


class _Heads:
    """A graph, asked for what parts and joins heads."""

    def __init__(self, graph: onnx.GraphProto):
        self.graph = graph
        self.made = {name: node for node in graph.node for name in node.output}
        noted = (*graph.value_info, *graph.input, *graph.output)
        self._shapes = {item.name: item.type.tensor_type.shape for item in noted}

    def axes(self, name: str) -> _Axes:
        """The axes of a tensor, as the exporter noted them; none where one of them has no size and no name."""
        found = (
            [each.dim_param or each.dim_value for each in self._shapes[name].dim]
            if name in self._shapes
            else []
        )
        return found if all(found) else []

    def parted(self, name: str) -> _Part | None:
        """What stands before the Reshape and the Transpose of one input."""
        transpose = self.made.get(name)
        reshape = self.made.get(transpose.input[0]) if transpose is not None and moves(transpose) else None
        if reshape is None or reshape.op_type != "Reshape":
            return None
        before, after = self.axes(reshape.input[0]), self.axes(reshape.output[0])
        if len(before) != 3 or len(after) != 4 or before[:2] != after[:2]:
            return None
        heads, size = after[2:]
        if not isinstance(heads, int) or not isinstance(size, int) or before[2] != heads * size:
            return None
        return reshape.input[0], heads, size, before[:2]

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

"""`settled`: what is the same for every input is not computed again in each call.

A program with a free length computes some of its numbers from the input's sizes although they do not depend on them. In
models of transformers that are called without a mask, attention is given one of `positions >= 0`, true everywhere, and
the kind of each token is looked up though all are of kind 0. The mask is left out; the row that is looked up for every
token is added to another table that is looked up in the same sum, once and for all.

    range(length) >= 0 ─ expand ─ mask of Attention    =>    no mask
    words[ids] + kinds[0] + places[positions]          =>    words[ids] + (places + kinds[0])[positions]

>>> settled.__name__
'settled'
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from secateur.adapters.onnx_attention import drop_unread, read_by
from secateur.adapters.onnx_model import extra_module

if TYPE_CHECKING:
    import onnx

__all__ = ["settled"]

_Bounds = tuple[float, float]
"""The least and the largest number that a tensor may hold."""
_MOVES = frozenset([
    "Expand", "Flatten", "Gather", "GatherElements", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose",
    "Unsqueeze",
])  # fmt: skip
"""Operators whose results are numbers of their first input."""


def settled(model: onnx.ModelProto) -> int:
    """Leave out masks of attention that are true everywhere, and rows that are looked up for every input alike.

    Args:
        model: The graph; it is changed. Outputs stay equal, to rounding where a row was added to a table.

    Returns:
        How many masks and rows were left out.
    """
    numbers = _Numbers(model.graph)
    done = sum(_without_mask(numbers, node) for node in model.graph.node if node.op_type == "Attention")
    while any(_into_table(_Numbers(model.graph), node) for node in model.graph.node if node.op_type == "Add"):
        done += 1
    if done:
        drop_unread(model.graph)
    return done


class _Numbers:
    """A graph, asked for what its tensors can hold."""

    def __init__(self, graph: onnx.GraphProto):
        self.graph = graph
        self.made = {name: node for node in graph.node for name in node.output}
        self.stored = {item.name: item for item in graph.initializer}
        noted = (*graph.value_info, *graph.input, *graph.output)
        self._noted = {item.name: item.type.tensor_type.shape for item in noted}
        self._given = {item.name for item in graph.input}  # may be given again in place of what is stored
        self._outputs = {item.name for item in graph.output}
        self._known: dict[str, _Bounds | None] = {}

    def bounds(self, name: str) -> _Bounds | None:
        """The bounds of a tensor of whole numbers or truths (0 and 1); None where they are not known."""
        if name not in self._known:
            self._known[name] = self._bounds(name)
        return self._known[name]

    def _bounds(self, name: str) -> _Bounds | None:
        if name in self.stored and name not in self._given:
            values = extra_module("onnx").numpy_helper.to_array(self.stored[name])
            whole = values.dtype == np.bool_ or np.issubdtype(values.dtype, np.integer)
            return (float(values.min()), float(values.max())) if whole and values.size else None
        node = self.made.get(name)
        if node is None:
            return None
        if node.op_type in _MOVES:
            return self.bounds(node.input[0])
        if node.op_type == "Range":
            return _range(*(self.bounds(each) for each in node.input))
        return _compared(node.op_type, [self.bounds(each) for each in node.input[:2]])

    def readers(self, name: str) -> list[onnx.NodeProto] | None:
        """The operators that read a tensor, once for each time; None where it is an output of the graph as well."""
        if name in self._outputs:
            return None
        return [node for node in self.graph.node for each in read_by(node) if each == name]

    def axes(self, name: str) -> list[int | str]:
        """The axes of a tensor, as the exporter noted them; none where one of them has no size and no name."""
        shape = self._noted.get(name)
        found = [each.dim_param or each.dim_value for each in shape.dim] if shape is not None else []
        return found if all(found) else []

    def table(self, name: str) -> str | None:
        """The stored table of floats whose rows a Gather looks up to make a tensor."""
        node = self.made.get(name)
        if node is None or node.op_type != "Gather" or any(each.i for each in node.attribute):
            return None
        item = self.stored.get(node.input[0])
        floats = item is not None and len(item.dims) == 2 and item.data_type == item.FLOAT
        return node.input[0] if floats and node.input[0] not in self._given else None


def _range(start: _Bounds | None, limit: _Bounds | None, step: _Bounds | None) -> _Bounds | None:
    """The bounds of the numbers from a start in steps of one direction."""
    if start is None or step is None:
        return None
    if step[0] > 0:
        return start[0], math.inf if limit is None else max(start[1], limit[1])
    return (-math.inf if limit is None else min(start[0], limit[0]), start[1]) if step[1] < 0 else None


def _compared(kind: str, read: Sequence[_Bounds | None]) -> _Bounds | None:
    """What a comparison of two tensors, or two truths in one, can be."""
    if kind in ("And", "Or"):
        (a, b), (c, d) = ((0.0, 1.0) if each is None else each for each in read)
        return (min(a, c), min(b, d)) if kind == "And" else (max(a, c), max(b, d))
    first, second = read if len(read) == 2 else (None, None)
    if kind in ("Less", "LessOrEqual"):
        first, second = second, first
    elif kind not in ("Greater", "GreaterOrEqual"):
        return None
    if first is None or second is None:
        return 0.0, 1.0
    equal = kind.endswith("OrEqual")
    sure = first[0] >= second[1] if equal else first[0] > second[1]
    never = first[1] < second[0] if equal else first[1] <= second[0]
    return float(sure), float(not never)


def _without_mask(numbers: _Numbers, node: onnx.NodeProto) -> bool:
    """Take the mask from an attention where every position is true."""
    if len(node.input) < 4 or not node.input[3] or numbers.bounds(node.input[3]) != (1.0, 1.0):
        return False
    if not _truths(numbers, node.input[3]):
        return False
    node.input[3] = ""
    while not node.input[-1]:
        del node.input[-1]
    return True


def _truths(numbers: _Numbers, name: str) -> bool:
    """Whether a tensor holds truths: a mask of whole numbers is not one of ones and zeros, but added to the scores."""
    if name in numbers.stored:
        return bool(numbers.stored[name].data_type == numbers.stored[name].BOOL)
    node = numbers.made[name]
    return _truths(numbers, node.input[0]) if node.op_type in _MOVES else node.op_type != "Range"


def _into_table(numbers: _Numbers, node: onnx.NodeProto) -> bool:
    """Add a row that is looked up for every input to another table of the same sum, and take its addition out."""
    if len(node.input) != 2 or node.input[0] == node.input[1]:
        return False
    for row, other in (tuple(node.input), tuple(node.input)[::-1]):
        source = numbers.table(row)
        index = None if source is None else numbers.bounds(numbers.made[row].input[1])
        if source is None or index is None or index[0] != index[1] or index[0] < 0:
            continue
        axes = numbers.axes(node.output[0])
        table = _other_table(numbers, node, other)
        if table is None or table == source or not axes or numbers.axes(other) != axes:
            continue
        tools = extra_module("onnx").numpy_helper
        added = tools.to_array(numbers.stored[source])[int(index[0])]
        values = tools.to_array(numbers.stored[table]) + added
        numbers.stored[table].CopyFrom(tools.from_array(values, table))
        for reader in numbers.readers(node.output[0]) or ():
            for place, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[place] = other
        numbers.graph.node.remove(node)
        return True
    return False


def _other_table(numbers: _Numbers, node: onnx.NodeProto, other: str) -> str | None:
    """The smallest table of the same sum that is looked up there alone: of the other term, or of the next addition."""
    after = numbers.readers(node.output[0])
    if not after or any(node.output[0] not in each.input for each in after):
        return None
    terms = [other]
    if len(after) == 1 and after[0].op_type == "Add":
        terms += [name for name in after[0].input if name != node.output[0]]
    found: list[str] = []
    for term in terms:
        table = numbers.table(term)
        readers = [] if table is None else numbers.readers(table) or []
        if table is not None and len(readers) == 1 and len(numbers.readers(term) or ()) == 1:
            found.append(table)
    return min(found, key=lambda name: math.prod(numbers.stored[name].dims), default=None)

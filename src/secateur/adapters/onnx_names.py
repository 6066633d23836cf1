"""Names in an ONNX file: outputs as the model's dictionary calls them, and free axes as `batch` and `length`.

The exporter calls an output after the operator that computes it (`linear_37`), and a free axis by a symbol (`s18`). Who
calls the file from another language has only these names.

>>> import torch
>>> output_names({"logits": torch.ones(2), "states": (torch.ones(1), torch.ones(1))})
['logits', 'states.0', 'states.1']
>>> output_names(torch.ones(2))
['output']
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import onnx

__all__ = ["name_axes", "name_outputs", "output_names"]


def output_names(outputs: object) -> list[str]:
    """A name for every tensor of a model's outputs, in their order.

    Args:
        outputs: What the model returned: a tensor, or tensors in dictionaries, tuples and lists.
    """
    return [name or "output" for name in _names(outputs, "")]


def _names(value: object, name: str) -> list[str]:
    if torch.is_tensor(value):
        return [name]
    items: list[tuple[str, object]] = []
    if isinstance(value, Mapping):
        items = [(str(key), one) for key, one in value.items()]
    elif isinstance(value, (tuple, list)):
        fields = getattr(value, "_fields", range(len(value)))
        items = [(str(key), one) for key, one in zip(fields, value, strict=True)]
    words = (
        (f"{name}.{key}" if name else key if not key.isdigit() else f"output_{key}", one)
        for key, one in items
    )
    return [each for word, one in words for each in _names(one, word)]


def name_outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Name the outputs of a file. A name that an input or another value has gets `_out` after it; an output that is an
    input keeps that name.

    Args:
        model: The file; it is changed.
        names: A name for each output.
    """
    graph = model.graph
    inputs = {each.name for each in graph.input}
    olds = [each.name for each in graph.output]
    taken = _names_in(graph) - set(olds)
    new: dict[str, str] = {}
    for old, name in zip(olds, names, strict=True):
        if old in inputs or old in new:
            continue
        while name in taken:
            name += "_out"
        taken.add(name)
        new[old] = name
    for value in (*graph.output, *graph.value_info):
        value.name = new.get(value.name, value.name)
    _rename(graph, new)


def _names_in(graph: onnx.GraphProto) -> set[str]:
    """Every name of a value in a graph and the graphs within it."""
    found = {each.name for each in (*graph.input, *graph.initializer, *graph.value_info, *graph.output)}
    for node in graph.node:
        found.update(node.input, node.output)
        for inner in _inner(node):
            found |= _names_in(inner)
    return found


def _rename(graph: onnx.GraphProto, new: Mapping[str, str]) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = new.get(name, name)
        for inner in _inner(node):
            _rename(inner, new)


def _inner(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs within a node, of a branch or a loop."""
    held = [(*each.graphs, *([each.g] if each.HasField("g") else [])) for each in node.attribute]
    return [graph for graphs in held for graph in graphs]


def name_axes(model: onnx.ModelProto, axes: Sequence[Mapping[int, str]]) -> None:
    """Name the free axes of a file's inputs, everywhere in it.

    Sizes that the exporter found equal have one symbol, and get one name; others are told apart (`length`, `length_2`):
    a runtime takes sizes of one name for equal.

    Args:
        model: The file; it is changed.
        axes: For each input the names of its axes.
    """
    known: dict[str, str] = {}
    for each, names in zip(model.graph.input, axes, strict=True):
        dimensions: Any = each.type.tensor_type.shape.dim
        for axis, name in names.items():
            symbol = dimensions[axis].dim_param if axis < len(dimensions) else ""
            if symbol and symbol not in known:
                count = sum(re.fullmatch(rf"{name}(_\d+)?", one) is not None for one in known.values())
                known[symbol] = name if not count else f"{name}_{count + 1}"
    if not known:
        return
    word = re.compile(r"\b(" + "|".join(map(re.escape, known)) + r")\b")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = word.sub(lambda found: known[found[0]], dimension.dim_param)

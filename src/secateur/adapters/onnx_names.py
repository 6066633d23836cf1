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

__all__ = ["name_axes", "output_names"]


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


def name_axes(model: onnx.ModelProto, axes: Sequence[Mapping[int, str]]) -> None:
    """Name the free axes of a file's inputs, everywhere in it.

    Args:
        model: The file; it is changed.
        axes: For each input the names of its axes. Inputs whose axes have one name have one size there.
    """
    known: dict[str, str] = {}
    for each, names in zip(model.graph.input, axes, strict=True):
        dimensions: Any = each.type.tensor_type.shape.dim
        known.update(
            {dimensions[axis].dim_param: name for axis, name in names.items() if axis < len(dimensions)}
        )
    known.pop("", None)
    if not known:
        return
    word = re.compile(r"\b(" + "|".join(map(re.escape, known)) + r")\b")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = word.sub(lambda found: known[found[0]], dimension.dim_param)

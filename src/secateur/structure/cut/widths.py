"""Widths: the attributes of layers that repeat the shapes of their parameters.

A cut parameter has a new shape; `nn.Linear.in_features` and its like must agree with it. One function per kind of layer
computes them from the shapes its tensors will have.

>>> from torch import nn
>>> widths_of(nn.Linear(4, 3), {"weight": (2, 4)}, None)
{'out_features': 2}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from secateur.core.targets import stated_layer

__all__ = ["widths_of"]

Shape = tuple[int, ...]
Widths = dict[str, int | tuple[int, ...]]


class _Shapes:
    """The shapes a module's tensors will have: those that change as given, all others unchanged."""

    def __init__(self, module: nn.Module, changed: Mapping[str, Shape], grouped: str | None):
        self.module, self.changed, self.grouped = module, changed, grouped

    def of(self, name: str) -> Shape | None:
        """The shape of one tensor; None where the module has no tensor of this name."""
        if name in self.changed:
            return self.changed[name]
        tensor = getattr(self.module, name, None)
        return tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else None


def widths_of(module: nn.Module, shapes: Mapping[str, Shape], grouped: str | None) -> Widths:
    """Attributes that change when the module's tensors get new shapes.

    Args:
        module: The layer, as it is before the cut.
        shapes: The new shape of each of its tensors that is cut, by its name in the layer.
        grouped: For a grouped convolution "whole" where whole groups leave, else "pattern"; None for others.

    Returns:
        The attributes to set, without those that do not change.
    """
    found = _Shapes(module, shapes, grouped)
    kind = next((kind for kind in _KINDS if isinstance(module, kind)), None)
    widths = _others(module, found) if kind is None else _KINDS[kind](module, found)
    return {
        key: value for key, value in widths.items() if hasattr(module, key) and getattr(module, key) != value
    }


def _convolution(module: nn.modules.conv._ConvNd, shapes: _Shapes) -> Widths:
    weight = shapes.of("weight")
    if weight is None:
        return {}
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    groups = module.groups
    if shapes.grouped == "whole":
        groups = groups * weight[0] // (module.in_channels if transposed else module.out_channels)
    ins, outs = (weight[0], weight[1] * groups) if transposed else (weight[1] * groups, weight[0])
    return {"in_channels": ins, "out_channels": outs, "groups": groups}


def _linear(module: nn.Module, shapes: _Shapes) -> Widths:
    weight = shapes.of("weight")
    return {} if weight is None else {"out_features": weight[0], "in_features": weight[1]}


def _bilinear(module: nn.Module, shapes: _Shapes) -> Widths:
    weight = shapes.of("weight")
    return {} if weight is None else {"out_features": weight[0]}


def _embedding(module: nn.Module, shapes: _Shapes) -> Widths:
    weight = shapes.of("weight")
    return {} if weight is None else {"num_embeddings": weight[0], "embedding_dim": weight[1]}


def _batch_norm(module: nn.Module, shapes: _Shapes) -> Widths:
    line = shapes.of("weight") or shapes.of("running_mean")
    return {} if line is None else {"num_features": line[0]}


def _group_norm(module: nn.GroupNorm, shapes: _Shapes) -> Widths:
    weight = shapes.of("weight")
    if weight is None:
        return {}
    return {"num_channels": weight[0], "num_groups": module.num_groups * weight[0] // module.num_channels}


def _layer_norm(module: nn.Module, shapes: _Shapes) -> Widths:
    weight = shapes.of("weight")
    return {} if weight is None else {"normalized_shape": tuple(weight)}


def _prelu(module: nn.Module, shapes: _Shapes) -> Widths:
    weight = shapes.of("weight")
    return {} if weight is None else {"num_parameters": weight[0]}


def _recurrent(module: nn.RNNBase, shapes: _Shapes) -> Widths:
    first, back = shapes.of("weight_ih_l0"), shapes.of("weight_hh_l0")
    if first is None or back is None:
        return {}
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    found: Widths = {"input_size": first[1], "hidden_size": first[0] // gates}
    if module.proj_size:
        found["proj_size"] = back[1]
    return found


def _recurrent_cell(module: nn.Module, shapes: _Shapes) -> Widths:
    first, back = shapes.of("weight_ih"), shapes.of("weight_hh")
    return {} if first is None or back is None else {"input_size": first[1], "hidden_size": back[1]}


def _attention(module: nn.Module, shapes: _Shapes) -> Widths:
    packed = shapes.of("in_proj_weight")
    return {} if packed is None else {"embed_dim": packed[1]}


def _others(module: nn.Module, shapes: _Shapes) -> Widths:
    """The `Conv1D` of transformers, whose weight is (in, out), and layers that state widths as torch's do."""
    weight = shapes.of("weight")
    if weight is None:
        return {}
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return {"nx": weight[0], "nf": weight[1]}
    stated = stated_layer(module)
    if stated is None:
        return {}
    before = module._parameters["weight"].shape[0]  # type: ignore[union-attr]
    groups = stated.groups * weight[0] // before if shapes.grouped == "whole" else stated.groups
    wide = [weight[0], weight[1] * groups]
    found: Widths = {stated.outs: wide[stated.out_axis], stated.ins: wide[stated.in_axis]}
    return found | {"groups": groups} if stated.groups > 1 else found


_KINDS: dict[type[nn.Module], Callable[[Any, _Shapes], Widths]] = {
    nn.modules.conv._ConvNd: _convolution,
    nn.Linear: _linear,
    nn.Bilinear: _bilinear,
    nn.Embedding: _embedding,
    nn.EmbeddingBag: _embedding,
    nn.modules.batchnorm._NormBase: _batch_norm,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.PReLU: _prelu,
    nn.RNNBase: _recurrent,
    nn.modules.rnn.RNNCellBase: _recurrent_cell,
    nn.MultiheadAttention: _attention,
}
"""By the class of torch's own layer; a subclass counts as its base."""

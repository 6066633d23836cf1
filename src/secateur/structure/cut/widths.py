"""The attributes of torch's own layers that hold widths, worked out from the shapes their parameters will have.

>>> from torch import nn
>>> widths_of(nn.Linear(4, 3), {"weight": (2, 4)}, None)
{'out_features': 2}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["widths_of"]

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH = (nn.modules.batchnorm._NormBase,)


def widths_of(
    module: nn.Module, shapes: Mapping[str, tuple[int, ...]], grouped: str | None
) -> dict[str, Any]:
    """Attributes that change when the module's tensors get these shapes; `grouped` says how its groups leave."""
    new = {key: value for key, value in _expected(module, shapes, grouped).items() if hasattr(module, key)}
    return {key: value for key, value in new.items() if getattr(module, key) != value}


def _shape(module: nn.Module, shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...] | None:
    if name in shapes:
        return shapes[name]
    tensor = getattr(module, name, None)
    return None if tensor is None or not hasattr(tensor, "shape") else tuple(tensor.shape)


def _expected(
    module: nn.Module, shapes: Mapping[str, tuple[int, ...]], grouped: str | None
) -> dict[str, Any]:
    weight = _shape(module, shapes, "weight")
    if isinstance(module, (*_CONV, *_TRANSPOSED)) and weight is not None:
        transposed = isinstance(module, _TRANSPOSED)
        groups = module.groups
        if grouped == "whole":
            lead = module.in_channels if transposed else module.out_channels
            groups = groups * weight[0] // lead
        ins, outs = (weight[0], weight[1] * groups) if transposed else (weight[1] * groups, weight[0])
        return {"in_channels": ins, "out_channels": outs, "groups": groups}
    if isinstance(module, nn.Linear) and weight is not None:
        return {"out_features": weight[0], "in_features": weight[1]}
    if isinstance(module, nn.Bilinear) and weight is not None:
        return {"out_features": weight[0]}
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and weight is not None:
        return {"num_embeddings": weight[0], "embedding_dim": weight[1]}
    if isinstance(module, _BATCH):
        line = weight or _shape(module, shapes, "running_mean")
        return {} if line is None else {"num_features": line[0]}
    if isinstance(module, nn.GroupNorm) and weight is not None:
        return {"num_channels": weight[0], "num_groups": module.num_groups * weight[0] // module.num_channels}
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and weight is not None:
        return {"normalized_shape": tuple(weight)}
    if isinstance(module, nn.PReLU) and weight is not None:
        return {"num_parameters": weight[0]}
    if isinstance(module, nn.RNNBase):
        return _recurrent(module, shapes)
    if isinstance(module, nn.modules.rnn.RNNCellBase):
        ih, hh = _shape(module, shapes, "weight_ih"), _shape(module, shapes, "weight_hh")
        return {} if ih is None or hh is None else {"input_size": ih[1], "hidden_size": hh[1]}
    if isinstance(module, nn.MultiheadAttention):
        out = _shape(module, {}, "out_proj")
        del out
        packed = _shape(module, shapes, "in_proj_weight")
        return {} if packed is None else {"embed_dim": packed[1]}
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf") and weight is not None:
        return {"nx": weight[0], "nf": weight[1]}
    return {}


def _recurrent(module: nn.RNNBase, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    first, back = _shape(module, shapes, "weight_ih_l0"), _shape(module, shapes, "weight_hh_l0")
    if first is None or back is None:
        return {}
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    found: dict[str, Any] = {"input_size": first[1], "hidden_size": first[0] // gates}
    if module.proj_size:
        found["proj_size"] = back[1]
    return found

"""Batch norm folded into a scale and a shift per channel: two numbers stored where there were four.

The layer stays a batch norm: scale and shift become its weight and bias, its mean 0 and its variance 1 - eps,
so that in evaluation it computes `scale * x + shift`. Its statistics are lost, so fold a finished model, not one that
is still trained.

>>> import torch
>>> from torch import nn
>>> layer = nn.Sequential(nn.BatchNorm1d(2))
>>> sorted(fold(layer.state_dict(), layer))
['0.bias', '0.num_batches_tracked', '0.running_mean', '0.running_var', '0.weight']
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from secateur.errors import NothingToDoError

__all__ = ["EPS", "STATISTICS", "fold", "restored", "statistics", "usual"]

EPS = 1e-5  # torch's default, for a state dict that comes without its model
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def _layers(state: Mapping[str, torch.Tensor], model: nn.Module | None) -> dict[str, float]:
    """Prefix and eps of every batch norm with statistics and an affine part."""
    if model is not None:
        return {
            f"{name}." if name else "": module.eps
            for name, module in model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            and module.affine
            and module.running_var is not None
        }
    prefixes = [
        name.removesuffix("running_var") for name in state if name.rpartition(".")[2] == "running_var"
    ]
    return {p: EPS for p in prefixes if all(p + part in state for part in ("weight", "bias", "running_mean"))}


def usual(state: Mapping[str, torch.Tensor], model: nn.Module | None = None) -> bool:
    """Whether every batch norm has the eps that a reader assumes, so that its statistics can be left out."""
    return set(_layers(state, model).values()) <= {EPS}


def statistics(names: Iterable[str]) -> set[str]:
    """Which of these names are statistics of a batch norm with an affine part: what a folded file leaves out.

    >>> sorted(statistics(["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "fc.weight"]))
    ['bn.running_mean', 'bn.running_var']
    """
    known = set(names)
    prefixes = (
        name.removesuffix("running_var") for name in known if name.rpartition(".")[2] == "running_var"
    )
    folded = (p for p in prefixes if all(p + part in known for part in ("weight", "bias", "running_mean")))
    return {prefix + part for prefix in folded for part in STATISTICS if prefix + part in known}


def restored(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """The statistics of a folded batch norm with this weight."""
    return {
        "running_mean": torch.zeros_like(weight),
        "running_var": torch.full_like(weight, 1.0 - EPS),
        "num_batches_tracked": torch.tensor(0),
    }


def fold(state: Mapping[str, torch.Tensor], model: nn.Module | None = None) -> dict[str, torch.Tensor]:
    """The tensors of every batch norm, replaced by their folded form; the others are not in the result."""
    layers = _layers(state, model)
    if not layers:
        raise NothingToDoError(
            "batch_norm=... folds batch norm layers, and there is none with statistics and an affine part; "
            "leave it out"
        )
    out: dict[str, torch.Tensor] = {}
    for prefix, eps in layers.items():
        weight, bias = state[prefix + "weight"], state[prefix + "bias"]
        mean, variance = state[prefix + "running_mean"].double(), state[prefix + "running_var"].double()
        scale = weight.double() / torch.sqrt(variance + eps)
        out[prefix + "weight"] = scale.to(weight.dtype)
        out[prefix + "bias"] = (bias.double() - mean * scale).to(bias.dtype)
        out[prefix + "running_mean"] = torch.zeros_like(state[prefix + "running_mean"])
        out[prefix + "running_var"] = torch.full_like(state[prefix + "running_var"], 1.0 - eps)
        if prefix + "num_batches_tracked" in state:
            out[prefix + "num_batches_tracked"] = torch.zeros_like(state[prefix + "num_batches_tracked"])
    return out

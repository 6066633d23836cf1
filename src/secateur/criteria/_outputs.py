"""The common part of `bn_scale` and `activation`: which batch norm takes a layer's outputs, found by running the model.

>>> model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 1)).eval()
>>> norm_after(model, ["0", "3"], ((torch.ones(1, 1, 2, 2),), {}))
{'0': '1'}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.core.targets import Target

__all__ = ["layers_of", "norm_after", "spread"]

Call = tuple[tuple[Any, ...], dict[str, Any]]


def layers_of(targets: Sequence[Target]) -> dict[str, Target]:
    """The weights of layers whose outputs have channels, by the layer's name."""
    kinds = ("conv", "conv_transpose", "linear")
    return {target.layer: target for target in targets if target.kind in kinds}


def norm_after(model: nn.Module, layers: Iterable[str], call: Call) -> dict[str, str]:
    """The batch norm that takes exactly a layer's output, by the layer's name; run inside `undisturbed`.

    Args:
        model: The model.
        layers: The names of the layers in question.
        call: The arguments and keywords of one forward pass.
    """
    made: dict[int, str] = {}
    held: list[torch.Tensor] = []  # alive until the end, so that no identity is used twice
    found: dict[str, str] = {}
    handles = []
    modules = dict(model.named_modules())

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                held.append(output)
                made[id(output)] = name

        return hook

    def ask(name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            if args and id(args[0]) in made:
                found.setdefault(made[id(args[0])], name)

        return hook

    for name in layers:
        handles.append(modules[name].register_forward_hook(note(name)))
    for name, module in modules.items():
        if isinstance(module, _BatchNorm):
            handles.append(module.register_forward_pre_hook(ask(name)))
    try:
        with torch.no_grad():
            model(*call[0], **call[1])
    finally:
        for handle in handles:
            handle.remove()
    return found


def spread(values: Mapping[str, torch.Tensor], targets: Mapping[str, Target]) -> dict[str, torch.Tensor]:
    """One value per output of each layer as one score per weight: every weight has that of its output."""
    scores = {}
    for layer, line in values.items():
        target = targets[layer]
        shape = [target.shape[axis] if axis == target.out_axis else 1 for axis in range(len(target.shape))]
        if target.kind == "conv_transpose" and target.groups > 1:
            # its out axis counts the outputs of one group
            line = line.reshape(target.groups, -1).repeat_interleave(target.shape[0] // target.groups, 0)
            shape = [target.shape[0], target.shape[1], *[1] * (len(target.shape) - 2)]
        scores[target.name] = line.reshape(shape).expand(target.shape)
    return scores

"""What leaves with removed channels although the masks keep it: biases, and the numbers of norms.

Masks of granularity "filter" drop the weights of a channel and nothing else. A bias or a norm behind them gives the
channel a constant output, which is trained while the masks are held, and which a cut removes. A warning says so, and
by how much the outputs change.

>>> model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1, bias=False)); _ = model[0].bias.data.fill_(1.0)
>>> rows = torch.tensor([[True], [False]])
>>> whole = {"0.weight": rows, "0.bias": torch.tensor([True, False])}
>>> constants(model, Masks({"0.weight": rows}), Masks(whole))
['0.bias']
"""

from __future__ import annotations

import torch
from torch import nn

from secateur.core.masks import Masks
from secateur.core.user_warnings import warn
from secateur.execution.example import Example
from secateur.structure.cutting import Cut
from secateur.structure.depth.bypass import bypass_
from secateur.structure.proof_runs import double_copy, run
from secateur.structure.selections import largest_difference

__all__ = ["constants", "warn_of_constants"]

_NAMED = 3


def constants(model: nn.Module, masks: Masks, whole: Masks) -> list[str]:
    """The biases and parameters of norms, not zero, that the masks keep and a cut removes.

    Args:
        model: The dense model.
        masks: The masks that the cut was asked for.
        whole: Everything that the cut removes.
    """
    parameters, found = dict(model.named_parameters(remove_duplicate=False)), []
    for name, mask in whole.items():
        value = parameters.get(name)
        if value is None or value.dim() != 1:
            continue
        leaves = masks[name] & ~mask if name in masks else ~mask
        if bool((value.detach().to(leaves.device)[leaves] != 0).any()):
            found.append(name)
    return found


def warn_of_constants(model: nn.Module, masks: Masks, cut: Cut, example: Example, tolerance: float) -> str:
    """Warn where the cut model is not what the masks alone make of the model, because constants left with channels.

    Args:
        model: The dense model.
        masks: The masks that the cut was asked for.
        cut: The cut model, and everything that the cut removes: the proof compares with the model that this masks.
        example: One input.
        tolerance: The largest difference, over the largest output, that counts as equal.

    Returns:
        What the proof says of it; empty where the outputs are equal.
    """
    names = constants(model, masks, cut.masks)
    if not names:
        return ""
    dtype = torch.float32 if next(model.parameters()).device.type == "mps" else torch.float64
    dense = double_copy(model, masks, dtype)
    bypass_(dense, cut.bypassed)
    left = run(dense, example, "no_grad", dtype)
    del dense
    right = run(double_copy(cut.model, None, dtype), example, "no_grad", dtype)
    absolute = scale = 0.0
    if [a.shape for a in left.outputs] != [b.shape for b in right.outputs]:
        return ""  # outputs that select, as boxes do; the proof compares what they select from
    for a, b in zip(left.outputs, right.outputs, strict=True):
        apart, largest = largest_difference(a, b)
        absolute, scale = max(absolute, apart), max(scale, largest)
    off = absolute / scale if scale else absolute
    if off <= tolerance:
        return ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    listed = ", ".join(names[:_NAMED]) + more
    warn(
        f"the masks drop all weights of some channels and keep their constants ({listed}), which leave with "
        f"the channels: the small model's outputs differ by {off:.2g} of the largest from those under the masks. "
        "Train the small model, or prune with granularity 'channel', whose masks hold constants at zero as well"
    )
    return (
        f"with {listed} of removed channels at zero as well, else outputs differ by {off:.2g} of the largest"
    )

"""What leaves with removed channels although the masks keep it: biases, and the numbers of norms.

Masks of granularity "filter" drop the weights of a channel and nothing else. A bias, a norm or an activation behind
them gives the channel a constant output, which is trained while the masks are held, and which a cut removes. A warning
says so, and by how much the outputs change.

>>> model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1, bias=False)); _ = model[0].bias.data.fill_(1.0)
>>> rows = torch.tensor([[True], [False]])
>>> whole = {"0.weight": rows, "0.bias": torch.tensor([True, False])}
>>> constants(model, Masks({"0.weight": rows}), Masks(whole))
['0.bias']
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from secateur.core.masks import Masks
from secateur.core.user_warnings import warn
from secateur.execution.example import Example
from secateur.structure.cutting import Cut
from secateur.structure.depth.bypass import bypass_
from secateur.structure.proof import Proof
from secateur.structure.proof_runs import double_copy, run
from secateur.structure.selections import differences, relative

__all__ = ["constants", "warn_of_constants"]

_NAMED = 3


def constants(model: nn.Module, masks: Masks, whole: Masks) -> list[str]:
    """The biases and parameters of norms, not zero, that the masks keep and a cut removes.

    Args:
        model: The dense model.
        masks: The masks that the cut was asked for.
        whole: Everything that the cut removes.
    """
    return [name for name, value in _leaving(model, masks, whole) if value.dim() == 1]


def _leaving(model: nn.Module, masks: Masks, whole: Masks) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters of which a cut removes a weight that is not zero and that the masks keep."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in whole.items():
        if name not in parameters or (name in masks and torch.equal(masks[name], mask)):
            continue
        value = parameters[name].detach()
        leaves = masks[name] & ~mask if name in masks else ~mask
        if bool((value.to(leaves.device)[leaves] != 0).any()):
            yield name, value


def warn_of_constants(model: nn.Module, masks: Masks, cut: Cut, example: Example, proof: Proof) -> str:
    """Warn where the cut model is not what the masks alone make of the model, because constants left with channels.

    Args:
        model: The dense model.
        masks: The masks that the cut was asked for.
        cut: The cut model, and everything that the cut removes: the proof compares with the model that this masks.
        example: One input.
        proof: The proof, for its precision and tolerance.

    Returns:
        What the proof says of it; empty where the outputs are equal.
    """
    if next(_leaving(model, masks, cut.masks), None) is None:
        return ""
    names = constants(model, masks, cut.masks)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    listed = f" ({', '.join(names[:_NAMED])}{more})" if names else ""
    off = _difference(model, masks, cut, example, getattr(torch, proof.dtype))
    if off is None:
        return f"with the constants of removed channels{listed} at zero as well; what they change was not measured"
    if off <= proof.tolerance:
        return ""
    warn(
        f"the masks drop all weights of some channels and keep their constants{listed}, which leave with "
        f"the channels: the small model's outputs differ by {off:.2g} of the largest from those under the masks. "
        "Train the small model, or prune with granularity 'channel', whose masks hold constants at zero as well"
    )
    return f"with the constants of removed channels{listed} at zero as well, else outputs differ by {off:.2g}"


def _difference(
    model: nn.Module, masks: Masks, cut: Cut, example: Example, dtype: torch.dtype
) -> float | None:
    """The largest difference of the outputs from the masked model's, over the largest; None where a run fails."""
    dense = double_copy(model, masks, dtype)
    bypass_(dense, cut.bypassed)
    left = run(dense, example, "no_grad", dtype)
    del dense
    right = run(double_copy(cut.model, None, dtype), example, "no_grad", dtype)
    shapes = [[tensor.shape for tensor in each.outputs] for each in (left, right)]
    if left.error is not None or right.error is not None or shapes[0] != shapes[1]:
        return None
    return relative(*differences(left.outputs, right.outputs))

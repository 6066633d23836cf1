"""The common part of `wanda` and `obs`: the second moments of every target's inputs, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from secateur.compensation.batches import read_all
from secateur.compensation.fitting import Observed, Setting, observed
from secateur.core.context import Context
from secateur.core.scores import Scores
from secateur.core.targets import Target
from secateur.criteria._weights import weights
from secateur.errors import DataError, NonFiniteError
from secateur.execution.undisturbed import undisturbed

__all__ = ["scored"]

Score = Callable[[Observed, torch.Tensor], torch.Tensor]


def scored(who: str, model: nn.Module, targets: Sequence[Target], context: Context, score: Score) -> Scores:
    """A score per weight from a layer's moments and its weight as [groups, features, outputs].

    Raises:
        DataError: for a target that is never called as a layer on the data.
        NonFiniteError: for NaN or infinity in the inputs of a layer.
    """
    held = weights(model, targets)
    frozen = frozenset(name for name, _ in model.named_parameters() if name not in held)
    found: dict[str, torch.Tensor] = {}
    with undisturbed(model, mode="eval"), torch.no_grad():
        batches = read_all(who, context.data if context.data is not None else (), model)
        device = next(model.parameters()).device
        setting = Setting(model, model, batches, {}, frozen, device, seed=context.seed)
        for layer in observed(setting):
            call = layer.call
            if not layer.moments.finite():
                raise NonFiniteError(
                    f"{who}: NaN or infinity in the inputs of {call.name!r}; check the data and the layers before it"
                )
            weight = held[call.name]
            scores = score(layer, call.geometry.matrix(weight).to(layer.moments.wide))
            kind = torch.float64 if weight.dtype == torch.float64 else torch.float32
            found[call.name] = call.geometry.weight(scores, weight.shape).to(kind)
    missing = [target for target in targets if target.name not in found]
    if missing:
        names = ", ".join(target.name for target in missing[:5])
        layers = [target.layer for target in missing]
        raise DataError(
            f"{who}: {names}: never called as a linear layer or a convolution on this data, so the inputs are unknown; "
            f"leave out with skip={layers}"
        )
    return Scores({name: found[name] for name in held})

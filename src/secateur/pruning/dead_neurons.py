"""`zero_dead_neurons`: zero the weights and biases of neurons that do not affect the outputs.

Pruning single weights leaves neurons whose outputs are all cut, or that are never active. Their weights do not affect
the outputs and cost bytes. The gradient shows whether a neuron matters: if that of its bias and of all its weights is
exactly zero for every image, no output depends on it. (For a single weight that is not enough: it may be what keeps a
neuron inactive.)

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
>>> _ = model[2].weight.data.copy_(torch.tensor([[1.0, 0.0]])); _ = model[0].bias.data.fill_(1.0)
>>> masks = zero_dead_neurons(model, [torch.ones(4, 2)])
>>> masks["0.weight"].tolist(), masks["0.bias"].tolist()
([[True, True], [False, False]], [True, False])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from secateur.core.fetching import fetched
from secateur.core.interrupts import uninterrupted
from secateur.core.masks import Masks
from secateur.core.targets import Target, select
from secateur.errors import DataError, OptionError, ProofError
from secateur.execution.undisturbed import undisturbed
from secateur.execution.verb import verb

__all__ = ["zero_dead_neurons"]

_TOLERANCE = 1e-5


@verb
def zero_dead_neurons(model: nn.Module, inputs: Iterable[torch.Tensor], seed: int = 0) -> Masks:
    """Zero neurons that do not affect the outputs on `inputs`, in place; return masks of the rest.

    The outputs are compared before and after. Where they differ, an activation is constant but not zero (as batch norm
    gives for a removed filter): the layers are then zeroed one by one, and one that changes the outputs is restored.

    Args:
        model: The model.
        inputs: Batches of inputs.
        seed: Seeds the mixture of outputs whose gradient is computed.

    Returns:
        Masks of whole neurons; a neuron that is needed keeps all of its weights.

    Raises:
        ProofError: Neurons have zero gradient, and those of no layer can be zeroed; the model is unchanged.
        DataError: There is no batch.
        OptionError: The model does not return one tensor.
    """
    batches = list(inputs)
    if not batches:
        raise DataError("zero_dead_neurons: expected at least one batch of inputs, got none")
    named = dict(model.named_parameters())
    neurons = [
        _neuron(target, named) for target in select(model) if target.groups == 1 and target.out_axis == 0
    ]
    with undisturbed(model, mode="eval"):
        for parameter in named.values():  # a frozen neuron may be dead, too
            parameter.requires_grad_(parameter.is_floating_point())
        needed, before = _needed(model, named, neurons, batches, seed)
        needed = _proven(model, named, neurons, needed, (batches, before))
    return Masks(
        {
            name: mine.to(named[name].device)
            .reshape(-1, *[1] * (named[name].dim() - 1))
            .expand(named[name].shape)
            .clone()
            for members, mine in zip(neurons, needed)
            for name in members
        }
    )


def _needed(
    model: nn.Module,
    named: dict[str, nn.Parameter],
    neurons: Sequence[Sequence[str]],
    batches: Sequence[torch.Tensor],
    seed: int,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Which neurons of each layer have a gradient, and the outputs."""
    asked = [name for members in neurons for name in members]
    generator = torch.Generator().manual_seed(seed)
    firsts = [named[members[0]] for members in neurons]
    used = [torch.zeros(first.shape[0], dtype=torch.bool, device=first.device) for first in firsts]
    before = []
    for batch in batches:
        outputs = model(batch)
        if not isinstance(outputs, torch.Tensor):
            raise OptionError(
                f"zero_dead_neurons: the model returned {type(outputs).__name__}, expected one tensor"
            )
        # Any mixture of the outputs will do; the loss itself may saturate to a gradient of zero.
        mixture = torch.randn(outputs.shape, generator=generator).to(outputs.device)
        found = torch.autograd.grad(
            (outputs * mixture).sum(), [named[name] for name in asked], allow_unused=True
        )
        slopes = dict(zip(asked, found))
        for mine, members in zip(used, neurons):
            for name in members:
                slope = slopes[name]
                if slope is not None:
                    mine |= (slope.reshape(len(mine), -1) != 0).any(1)
        before.append(outputs.detach())
    return [mine.cpu() for mine in used], before


def _proven(
    model: nn.Module,
    named: dict[str, nn.Parameter],
    neurons: Sequence[Sequence[str]],
    needed: Sequence[torch.Tensor],
    known: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]],
) -> list[torch.Tensor]:
    """Zero the neurons that are not needed if the outputs stay the same; returns the needed ones, layer by layer."""
    kept = {name: named[name].detach().clone() for members in neurons for name in members}
    try:
        return _tried(model, named, neurons, needed, known, kept)
    except BaseException:
        _restore(named, kept)
        raise


def _tried(
    model: nn.Module,
    named: dict[str, nn.Parameter],
    neurons: Sequence[Sequence[str]],
    needed: Sequence[torch.Tensor],
    known: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]],
    kept: Mapping[str, torch.Tensor],
) -> list[torch.Tensor]:
    """The work of `_proven`; what fails leaves weights changed.

    Args:
        model: The model.
        named: Its parameters.
        neurons: The names of the parameters of each layer's neurons.
        needed: The neurons of each layer that have a gradient.
        known: Inputs, and the outputs that the model gave for them.
        kept: The values of all these parameters.
    """
    inputs, outputs = known
    allowed = _TOLERANCE * max(1.0, *fetched(output.abs().max() for output in outputs))
    if not any(bool((~mine).any()) for mine in needed):
        return list(needed)
    _silence(named, neurons, needed)
    away = _moved(model, inputs, outputs)
    if away <= allowed:
        return list(needed)
    _restore(named, kept)
    found: list[torch.Tensor] = []
    for members, mine in zip(neurons, needed):
        _silence(named, [members], [mine])
        if bool((~mine).any()) and _moved(model, inputs, outputs) > allowed:
            _restore(named, {name: kept[name] for name in members})
            mine = torch.ones_like(mine)
        found.append(mine)
    if all(bool(mine.all()) for mine in found):
        raise ProofError(
            f"zero_dead_neurons: the outputs moved by {away:.3g} without the neurons of zero gradient, so an "
            "activation is constant there but not zero; the model is unchanged"
        )
    return found


@torch.no_grad()
def _moved(model: nn.Module, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> float:
    """The largest difference between the model's outputs and those it had."""
    return max(fetched((model(batch) - output).abs().max() for batch, output in zip(inputs, outputs)))


@uninterrupted
@torch.no_grad()
def _restore(named: dict[str, nn.Parameter], values: Mapping[str, torch.Tensor]) -> None:
    for name, value in values.items():
        named[name].copy_(value)


def _neuron(target: Target, named: dict[str, nn.Parameter]) -> list[str]:
    """The parameters of a layer's neurons, all with one row a neuron: the weight, and the bias where there is one."""
    bias = f"{target.layer}.bias" if target.layer else "bias"
    return [target.name, bias] if target.name.endswith("weight") and bias in named else [target.name]


@torch.no_grad()
def _silence(
    named: dict[str, nn.Parameter], neurons: Sequence[Sequence[str]], needed: Sequence[torch.Tensor]
) -> None:
    """Set every parameter of the neurons that are not needed to zero."""
    for members, mine in zip(neurons, needed):
        for name in members:
            away = ~mine.to(named[name].device)
            named[name].masked_fill_(away.reshape(-1, *[1] * (named[name].dim() - 1)), 0.0)

"""`skeleton`: the layers of a checkpoint as a module without weights, from the names and shapes of its tensors.

A tensor called `NAME.weight` of two axes counts as the weight of a linear layer, of three to five as that of a
convolution. That is all that magnitude pruning of single weights needs; layers that cannot be recognised by a shape
(transposed layers, embeddings) need a model on the meta device.

>>> from secateur.container.format import Entry
>>> from secateur.core.targets import select
>>> found = skeleton([Entry("model.layers.0.q.weight", "BF16", (8, 4)), Entry("norm.weight", "BF16", (4,))])
>>> [(target.layer, target.kind, target.shape) for target in select(found)]
[('model.layers.0.q', 'linear', (8, 4))]
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from secateur.container.arrays import TORCH_DTYPES
from secateur.container.format import Entry
from secateur.core.targets import Pattern, Target, select
from secateur.core.user_warnings import warn
from secateur.errors import MaskMismatchError, NothingToDoError, near
from secateur.streaming.tied import names_of, with_ties

__all__ = ["OTHER_MODEL", "Layers", "skeleton", "targets_in", "with_weight"]

_WORTH_SAYING = 0.01

OTHER_MODEL = (
    "The model must be the one that the checkpoint was written from: pass it on the meta device as model=, or leave "
    "the layer out with skip="
)
"""The next step where a model and a checkpoint do not fit."""

_CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


class Layers(nn.Module):
    """Modules by their full names, kept flat, so that any name is allowed and a lookup is fast."""

    def get_parameter(self, target: str) -> nn.Parameter:
        """A parameter by its full name.

        Args:
            target: The name.
        """
        layer, _, leaf = target.rpartition(".")
        module = self if not layer else self._modules.get(layer)
        found = None if module is None else module._parameters.get(leaf)
        if found is None:
            raise AttributeError(f"no parameter {target!r}")
        return found

    def get_submodule(self, target: str) -> nn.Module:
        """A layer by its full name.

        Args:
            target: The name; an empty one is this module itself.
        """
        found = self._modules.get(target) if target else self
        if found is None:
            raise AttributeError(f"no layer {target!r}")
        return found

    def put(self, layer: str, module: nn.Module) -> None:
        """Add a layer.

        Args:
            layer: Its full name.
            module: The layer.
        """
        self._modules[layer] = module


def skeleton(entries: Sequence[Entry]) -> Layers:
    """A module on the meta device with a layer for every weight, and the other floating-point tensors as parameters.

    Args:
        entries: The tensors.
    """
    root = Layers()
    for entry in entries:
        if not entry.floating or entry.dtype not in TORCH_DTYPES:
            continue
        layer, _, leaf = entry.name.rpartition(".")
        weight = nn.Parameter(torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype], device="meta"))
        known = root if not layer else root._modules.get(layer)
        made = _layer(entry.shape) if leaf == "weight" and layer else None
        if made is not None:
            if known is not None:  # a bias that came first
                made._parameters.update({n: p for n, p in known._parameters.items() if n != "weight"})
            known = made
        elif known is None:
            known = nn.Module()
        known._parameters[leaf] = weight
        if known is not root:
            root.put(layer, known)
    return root


def _layer(shape: tuple[int, ...]) -> nn.Module | None:
    """A layer of torch with a weight of this shape; None where there is none."""
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0], bias=False, device="meta") if all(shape) else None
    kind: Callable[..., nn.Module] | None = _CONVOLUTIONS.get(len(shape))
    if kind is None or not all(shape):
        return None
    return kind(shape[1], shape[0], shape[2:], bias=False, device="meta")


def with_weight(model: nn.Module, target: Target, weight: torch.Tensor) -> Layers:
    """A module of one layer, that of the target, which has this weight.

    Args:
        model: The skeleton, or a model on the meta device; it is not changed.
        target: The weight that is meant.
        weight: Its numbers.
    """
    leaf = target.name.rpartition(".")[2]
    original = (
        model._modules.get(target.layer) if isinstance(model, Layers) else model.get_submodule(target.layer)
    )
    owner = copy.copy(original if original is not None else model)
    owner._parameters = {leaf: nn.Parameter(weight, requires_grad=False)}
    owner._modules, owner._buffers = {}, {}
    root = Layers()
    if target.layer:
        root.put(target.layer, owner)
    else:
        root._parameters[leaf] = owner._parameters[leaf]
    return root


def _warn_of_others(entries: Sequence[Entry], targets: Mapping[str, Target]) -> None:
    """Say which tensors of several axes take no part because of their names, as experts kept in one tensor do."""
    floating = [entry for entry in entries if entry.floating]
    others = [entry for entry in floating if len(entry.shape) > 1 and entry.name not in targets]
    share = sum(entry.numel for entry in others) / max(1, sum(entry.numel for entry in floating))
    if share > _WORTH_SAYING:
        warn(
            f"{share:.0%} of the numbers take no part: {len(others)} tensors, such as {others[0].name!r} of shape "
            f"{others[0].shape}, are not called NAME.weight; name them with parameters=[...]",
        )


def targets_in(
    entries: Sequence[Entry],
    model: nn.Module | None,
    only: Pattern | Sequence[Pattern] | None,
    skip: Pattern | Sequence[Pattern] | None,
    parameters: Pattern | Sequence[Pattern] | None,
) -> tuple[nn.Module, dict[str, Target]]:
    """The layers, and the tensors of a checkpoint that take part in a call, by name in the order of the checkpoint.

    Args:
        entries: The tensors of the checkpoint.
        model: A model on the meta device whose parameters have these names; None reads layers off names and shapes.
        only: As of `select`.
        skip: As of `select`.
        parameters: As of `select`.

    A tensor that several layers of the model share takes part under every name that the checkpoint has for it.

    Raises:
        MaskMismatchError: A weight of the model is not in the checkpoint, or has another shape there.
        PatternError: A pattern matches nothing.
        NothingToDoError: No tensor takes part.
    """
    layers = skeleton(entries) if model is None else with_ties(model)
    shapes = {entry.name: entry.shape for entry in entries}
    shared = {} if model is None else names_of(layers)
    found = {
        name: replace(target, name=name, layer=name.rpartition(".")[0])
        for target in select(layers, only, skip, parameters)
        for name in [name for name in shared.get(target.name, ()) if name in shapes] or [target.name]
    }
    for name, target in found.items():
        if shapes.get(name) != target.shape:
            raise MaskMismatchError(
                f"tensor {name!r}: the model has it in shape {target.shape}, the checkpoint "
                f"{'in ' + str(shapes[name]) if name in shapes else 'not at all'}; {near(name, shapes)}. {OTHER_MODEL}"
            )
    targets = {entry.name: found[entry.name] for entry in entries if entry.name in found and entry.numel}
    if not targets:
        raise NothingToDoError("nothing to do: every weight that takes part is empty")
    if only is None and skip is None and parameters is None:
        _warn_of_others(entries, targets)
    return layers, targets

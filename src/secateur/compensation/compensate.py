"""`compensate`: the weights that stay make up for those that left, on unlabelled inputs, without training.

>>> import torch
>>> from torch import nn
>>> import secateur as sc
>>> from secateur.compensation.compensate import compensate
>>> torch.manual_seed(0) and None
>>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
>>> inputs = torch.randn(512, 8) @ torch.randn(8, 16)
>>> masks = sc.prune(model, budget=0.5)
>>> result = compensate(model, masks, [inputs])
>>> off = lambda other: float((other(inputs) - model(inputs)).square().mean())
>>> off(result.model) < 0.5 * off(masks.apply(model))
True
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.compensation.fitting import FittedLayer, LayerProblem, Progress, Setting, fit
from secateur.compensation.least_squares import solve
from secateur.core.masks import Masks
from secateur.core.undisturbed import undisturbed
from secateur.criteria._gradients import Batch, move, read_batch

__all__ = ["Compensated", "compensate"]


@dataclass(frozen=True)
class LeastSquares:
    """Damped least squares on each output's own support."""

    damping: float = 0.01

    def __call__(self, layer: LayerProblem) -> tuple[torch.Tensor | None, str]:
        """The weights of least error, or none where those at hand are as good."""
        problem, start, keep = layer.problem, layer.matrix, layer.keep
        parts = []
        for group in range(start.shape[0]):
            hessian = problem.hessian[group]
            ridge = self.damping * float(hessian.diagonal().mean())
            parts.append(solve(hessian, problem.cross[group], start[group], keep[group], ridge))
        new = torch.stack(parts).to(layer.weight.dtype)
        worse = problem.error(new) > problem.error(start)
        new = torch.where(worse[:, None, :], start, new)
        most = int(keep.sum(1).max())
        note = "" if layer.rows > most else f"{layer.rows:,} rows for up to {most:,} weights an output: damped"
        return layer.geometry.weight(new, layer.weight.shape), note


@dataclass(frozen=True, eq=False)
class Compensated:
    model: nn.Module
    masks: Masks
    layers: tuple[FittedLayer, ...]


def compensate(model, masks, data, *, dense=None, damping=0.01, progress=None) -> Compensated:
    masks = masks if isinstance(masks, Masks) else Masks(masks)
    masks.check(model)
    reference = model if dense is None else dense
    student = copy.deepcopy(model)
    masks.apply_(student)
    batches = read_batches(data, reference)
    names = {id(p): n for n, p in reversed(list(student.named_parameters(remove_duplicate=False)))}
    params = dict(student.named_parameters(remove_duplicate=False))
    first = {id(p): n for n, p in student.named_parameters()}
    held = {first[id(params[name])]: mask for name, mask in masks.items()}
    device = next(student.parameters()).device
    with undisturbed(reference, mode="eval"), torch.no_grad():
        student.eval()
        setting = Setting(reference, student, batches, held, frozenset(), device)
        layers = fit(setting, LeastSquares(damping), progress)
    return Compensated(student, masks, tuple(layers))


def read_batches(data: Iterable[Any], model: nn.Module) -> list[Batch]:
    parameter = next(model.parameters())
    found = []
    for index, raw in enumerate(data):
        batch = read_batch(raw, index, labels_apart=True)
        found.append(Batch(move(batch.args, parameter.device, parameter.dtype), move(batch.kwargs, parameter.device, parameter.dtype), None, batch.size))
    return found

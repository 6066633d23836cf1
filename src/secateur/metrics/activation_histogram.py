"""`activation_histogram`: how the outputs of every layer are distributed on an example; zeros are counted separately.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
>>> model[0].weight.data = torch.eye(2)
>>> rows = activation_histogram(model, torch.tensor([[-1.0, 3.0]]), bins=2)
>>> [(row.context["layer"], row.context["counts"], row.context["zeros"]) for row in rows]
[('0', [1, 1], 0), ('1', [0, 1], 1)]
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from secateur.core.measurement import Measurement, Measurements
from secateur.execution.calling import call, evaluating
from secateur.execution.example import Example
from secateur.metrics.weight_histogram import histogram

__all__ = ["activation_histogram"]

BY_DEFAULT = False


def activation_histogram(model: nn.Module, example: Example, *, bins: int = 40) -> Measurements:
    """One row for every module without submodules whose output is a tensor, in the order they run.

    Args:
        model: The model.
        example: What it is called with.
        bins: How many bins of one width.
    """
    found: dict[str, dict[str, object]] = {}

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def keep(module: nn.Module, inputs: object, output: object) -> None:
            # Counting is no part of the forward pass: modes that record its calls must not see it.
            with torch._C.DisableTorchFunction():
                if isinstance(output, torch.Tensor) and output.is_floating_point() and name not in found:
                    found[name] = histogram(output, bins)

        return keep

    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves]
    try:
        with evaluating(model, example) as inputs:
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    text = "activations of the layer that are not zero, for the example, counted in bins of one width"
    return Measurements(
        Measurement(
            "activation_histogram",
            sum(row["counts"]),  # type: ignore[call-overload]
            "",
            text,
            context={"layer": name or "(model)", **row},
        )
        for name, row in found.items()
    )

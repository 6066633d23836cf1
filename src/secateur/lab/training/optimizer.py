"""`optimizer_of`: the optimizer of a training.

>>> optimizer_of(nn.Linear(2, 2), TrainingOptions(optimizer="adam", lr=0.01)).defaults["lr"]
0.01
"""

from __future__ import annotations

import torch
from torch import nn

from secateur.lab.training.options import TrainingOptions

__all__ = ["optimizer_of"]


def optimizer_of(model: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    """The optimizer that the options name, for the parameters that require a gradient.

    Args:
        model: The model that is trained.
        options: The optimizer's name, its learning rate and the rest.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if options.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=options.lr,
            momentum=options.momentum,
            nesterov=options.nesterov,
            weight_decay=options.weight_decay,
        )
    kind = torch.optim.Adam if options.optimizer == "adam" else torch.optim.AdamW
    # torch's fused step, several times faster on a CPU; elsewhere its own choice is fast enough.
    fused = all(one.device.type == "cpu" and one.is_floating_point() for one in parameters)
    return kind(
        parameters,
        lr=options.lr,
        betas=options.betas,
        weight_decay=options.weight_decay,
        fused=fused or None,
    )

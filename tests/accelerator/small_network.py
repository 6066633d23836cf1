"""The network that the tests on the simulated accelerator run verbs on, and what these tests need of torch."""

from __future__ import annotations

import pytest
import torch
from tests.accelerator import simulated
from torch import nn
from torch.utils import backend_registration

needs_python_back_ends = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this version of torch has no back ends written in Python",
)

if hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
    simulated.register()  # before the first backward pass of the process: PyTorch counts devices then


def network() -> nn.Module:
    """Two convolutions with a batch norm, and a linear layer; always the same weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip

"""A configuration that refuses to be read leaves the model to be loaded by its plan."""

from __future__ import annotations

import torch
from torch import nn

import secateur as sc


class PerLayerConfig:
    """Has a size of its own for each layer, and refuses to give one for all."""

    def to_dict(self) -> dict[str, object]:
        return {}

    @property
    def head_dim(self) -> int:
        raise ValueError("'head_dim' may vary across layers")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = PerLayerConfig()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def save_pretrained(self, folder: str) -> None:
        """Marks the class as one with a configuration."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def test_shrink_says_why_the_configuration_does_not_describe_the_model() -> None:
    x = torch.randn(2, 4)
    model = Model()
    small = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=x), x)
    assert small.model.body[0].out_features == 4
    assert small.unsaid == "its configuration cannot be read ('head_dim' may vary across layers)"

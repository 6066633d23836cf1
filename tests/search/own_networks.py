"""A network as a user writes it, for tests that name it in a recipe."""

from torch import nn


def convolutions() -> nn.Module:
    """Convolutions with a bias in front of batch norm, for images of 8 x 8."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 10),
    )

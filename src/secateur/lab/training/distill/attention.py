"""Attention: where in the image two layers are active, whatever their numbers of channels.

Zagoruyko and Komodakis 2017, "Paying More Attention to Attention".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from secateur.errors import OptionError
from secateur.lab.training.distill import Distillation

__all__ = ["AttentionDistillation"]


@dataclass(frozen=True)
class AttentionDistillation(Distillation):
    """mean (a - b)**2, where a map is the mean of squares over channels, scaled to norm 1 for each image.

    Channels are axis 1 of images and the last axis of sequences. The paper uses a weight of about 1000.

    >>> maps = torch.tensor([[[[3.0, 4.0]]]]).sqrt()  # squares 3 and 4: the map is (0.6, 0.8)
    >>> AttentionDistillation().compare(maps, torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]])).item() # (0.16 + 0.64) / 2
    0.4...
    """

    def compare(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """The mean squared difference of the maps."""
        ours, theirs = _map(student), _map(teacher)
        self._same(ours, theirs, "attention")
        return (ours - theirs).square().mean()


def _map(output: torch.Tensor) -> torch.Tensor:
    """[images, positions], each row of norm 1."""
    if output.dim() < 3:
        raise OptionError(
            f"distill: attention: expected a layer with positions besides channels, got shape {tuple(output.shape)}; "
            "name a convolution, or take features or similarity"
        )
    squares = output.float().square().mean(dim=-1 if output.dim() == 3 else 1)
    return functional.normalize(squares.flatten(1))

"""Similarity: which images of a batch two layers find alike, whatever their shapes.

Tung and Mori 2019, "Similarity-Preserving Knowledge Distillation".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from secateur.lab.training.distill import Distillation

__all__ = ["SimilarityDistillation"]


@dataclass(frozen=True)
class SimilarityDistillation(Distillation):
    """mean (G - H)**2 with G = Q @ Q.T for Q [images, rest], each row of G scaled to norm 1.

    The paper uses a weight of 3000.

    >>> SimilarityDistillation().compare(torch.eye(2), torch.tensor([[1.0], [0.0]])).item()  # ((0 - 0) + 1) / 4
    0.25
    """

    def compare(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """The mean squared difference of the matrices."""
        return (_alike(student) - _alike(teacher)).square().mean()


def _alike(output: torch.Tensor) -> torch.Tensor:
    """How alike the images are, [images, images], each row of norm 1."""
    flat = output.float().flatten(1)
    return functional.normalize(flat @ flat.T)

"""Features: the mean squared difference of the outputs of two layers; without layers, of the logits.

Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", for layers of equal shapes, without a regressor between them;
on logits Ba and Caruana 2014, "Do Deep Nets Really Need to be Deep?".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from secateur.lab.training.distill import Distillation

__all__ = ["FeaturesDistillation"]


@dataclass(frozen=True)
class FeaturesDistillation(Distillation):
    """mean (student - teacher)**2."""

    def compare(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """The mean squared difference."""
        self._same(student, teacher, "features")
        return (student.float() - teacher.float()).square().mean()

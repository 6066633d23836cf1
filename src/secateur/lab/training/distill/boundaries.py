"""Boundaries: which neurons are active, for layers before a ReLU.

Heo et al. 2019, "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from secateur.lab.training.distill import Distillation

__all__ = ["BoundariesDistillation"]


@dataclass(frozen=True)
class BoundariesDistillation(Distillation):
    """mean of max(0, margin + s)**2 where the teacher's neuron is off, and of max(0, margin - s)**2 where it is on.

    Args:
        layers: Names of layers, alike in both networks, or a table of the student's names to the teacher's.
        weight: The weight of the term in the loss.
        margin: How far beyond 0 a neuron of the student should be.

    The first should be on and is 0.5 short; the second should be off and is 3 too high; the third is as it should be.

    >>> student, teacher = torch.tensor([[0.5, 2.0, -1.5]]), torch.tensor([[7.0, -1.0, -9.0]])
    >>> BoundariesDistillation().compare(student, teacher).item()  # (0.25 + 9 + 0) / 3
    3.083...
    """

    margin: float = 1.0

    def compare(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """How far neurons are on the wrong side, squared."""
        self._same(student, teacher, "boundaries")
        ours, on = student.float(), teacher > 0
        short = torch.where(on, self.margin - ours, self.margin + ours).clamp(min=0)
        return short.square().mean()

"""Movement pruning: scores of weights learnt in training, by the gradients of a network that uses the highest only.

Sanh, Wolf and Rush 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning". The criterion `movement` is the same
scores without the mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from secateur import budget as budgets
from secateur.core.context import Context
from secateur.core.masks import Masks
from secateur.core.scores import Scores
from secateur.core.targets import Target, select
from secateur.criteria import Criterion
from secateur.errors import NothingToDoError, OptionError
from secateur.execution.example import Example
from secateur.granularity import Granularity
from secateur.pruning.prune import PruneOptions, prune
from secateur.sparsify import Sparsifier, Sparsifying, check_above_zero, check_whole
from secateur.sparsify._masked_forward import MaskedForward
from secateur.sparsify._units import Patterns

__all__ = ["MovementScores"]


@dataclass(frozen=True)
class MovementScores(Sparsifier):
    """Each weight's score S starts at 0 and loses lr * g * w at every step, g the gradient of the masked weight.

    Weights that move away from zero score high. The share removed rises from 0 along a cubic, and the weights with the
    lowest scores are removed in the forward pass; the dense ones continue to be trained. At the end removed ones are 0.

    Args:
        sparsity: The share removed in the end.
        lr: The learning rate of the scores.
        until: The share of all optimizer steps after which the final sparsity is reached.
        every: Optimizer steps between two choices.
        granularity: What is one unit; it scores the sum.
        budget: The name of a budget that takes a share: which units compete.
        only: Patterns of the layers that take part; None means all.
        skip: Patterns of the layers that are left alone.

    >>> [round(MovementScores(0.8).level(step, 100), 3) for step in (0, 25, 50, 99)]
    [0.0, 0.7, 0.8, 0.8]
    """

    changes_masks: ClassVar[bool] = True

    sparsity: float
    lr: float = 1e-2
    until: float = 0.5
    every: int = 10
    granularity: str | Granularity = "element"
    budget: str = "overall"
    only: Patterns = None
    skip: Patterns = None

    def __post_init__(self) -> None:
        check_above_zero("lr", self.lr)
        check_whole("every", self.every)
        for name, value in (("sparsity", self.sparsity), ("until", self.until)):
            if not 0 < value < 1:
                raise OptionError(f"{name}: expected a share 0 < {name} < 1, got {value}")

    def level(self, step: int, steps: int) -> float:
        """The share removed at a step.

        Args:
            step: Counted from 0.
            steps: Optimizer steps of the whole training.
        """
        left = 1 - step / (self.until * steps)
        return self.sparsity * (1 - left**3) if left > 0 else self.sparsity

    def start(
        self,
        model: nn.Module,
        *,
        example: Example = None,
        masks: Masks | None = None,
        steps: int | None = None,
        seed: int = 0,
    ) -> Sparsifying:
        """Set all scores to 0."""
        if steps is None:
            raise OptionError(
                "movement_scores: expected steps=, the number of optimizer steps of the whole training, got none"
            )
        return _Scored(model, self, steps, example, masks)


@dataclass(frozen=True, eq=False)
class _Learnt(Criterion):
    """A criterion of given scores."""

    values: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
        """The scores of these targets."""
        return Scores({target.name: self.values[target.name] for target in targets})


class _Scored(MaskedForward):
    """Scores learnt in training, and the masks that follow from them."""

    method = "movement_scores"

    def __init__(
        self,
        model: nn.Module,
        options: MovementScores,
        steps: int,
        example: Example,
        before: Masks | None,
    ) -> None:
        super().__init__(model, options.every)
        self._options, self._steps, self._example = options, steps, example
        self._before = self.masks = before
        self._is_ending = False
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self.scores = {
            target.name: torch.zeros_like(parameters[target.name], dtype=torch.float32)
            for target in select(model, options.only, options.skip)
        }

    def choose(self) -> Masks | None:
        """The masks of the scores as they are now."""
        options = self._options
        level = options.sparsity if self._is_ending else options.level(self.step, self._steps)
        if level <= 0:
            return self._before
        try:
            return prune(
                self.model,
                _Learnt(self.scores),
                options.granularity,
                budgets.registry.get(options.budget).at(level),
                skip=options.skip,
                example=self._example,
                options=PruneOptions(only=options.only, masks=self._before),
            )
        except NothingToDoError:
            if level < options.sparsity:
                return self._before  # less than one unit so far
            raise

    def finish(self) -> Masks | None:
        """The masks of the whole sparsity, also where training was shorter than it was said to be."""
        self._is_ending = True
        return super().finish()

    @torch.no_grad()
    def before_step(self) -> None:
        """Restore the dense weights, and update the scores."""
        super().before_step()
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if name in self.scores and parameter.grad is not None:
                self.scores[name].sub_(parameter.grad.float() * parameter.float(), alpha=self._options.lr)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The scores, and the masks in force."""
        masks = {f"mask/{name}": mask for name, mask in (self.masks or {}).items()}
        return {f"score/{name}": score for name, score in self.scores.items()} | masks

    def load(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Continue with these."""
        super().load(tensors, step)
        for name, score in self.scores.items():
            score.copy_(tensors[f"score/{name}"])
        masks = {
            name.removeprefix("mask/"): mask for name, mask in tensors.items() if name.startswith("mask/")
        }
        self.masks = Masks(masks) if masks else self._before

"""Masks that change while the network is trained: in every tensor as many weights are regrown as are removed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, TypeVar

import torch
from torch import nn

from secateur import budget as budgets
from secateur.core.masks import Masks, count_true
from secateur.errors import NothingToDoError, OptionError
from secateur.pruning.hold import Held, hold
from secateur.pruning.prune import PruneOptions, prune
from secateur.sparsify import Sparsifier, Sparsifying, check_whole
from secateur.sparsify._units import Patterns

__all__ = ["Moving", "MovingMasks", "moved"]

_Self = TypeVar("_Self", bound="Moving")


@dataclass(frozen=True)
class MovingMasks(Sparsifier):
    """The options of methods whose masks move: see `Rigl` and `Set`."""

    changes_masks: ClassVar[bool] = True
    moves: ClassVar[bool] = True

    sparsity: float | None = None
    budget: str = "erdos_renyi"
    share: float = 0.3
    every: int = 100
    until: float = 1.0
    only: Patterns = None
    skip: Patterns = None

    def __post_init__(self) -> None:
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            raise OptionError(f"sparsity: expected a share 0 < sparsity < 1, or none, got {self.sparsity}")
        for name, value in (("share", self.share), ("until", self.until)):
            if not 0 < value <= 1:
                raise OptionError(f"{name}: expected a share 0 < {name} <= 1, got {value}")
        check_whole("every", self.every)

    def first_masks(self, model: nn.Module, masks: Masks | None, seed: int) -> Masks:
        """The initial masks: those given, or drawn at random.

        Args:
            model: The model.
            masks: Those of an earlier pruning, or None.
            seed: Of the draw.
        """
        if (masks is None) == (self.sparsity is None):
            given = "both" if masks is not None else "neither"
            raise OptionError(
                "sparsity: expected either masks of an earlier pruning or the share that is removed at random, got "
                f"{given}"
            )
        found = masks
        if self.sparsity is not None:
            budget = budgets.registry.get(self.budget).at(self.sparsity)
            options = PruneOptions(only=self.only, seed=seed)
            found = prune(model, "random", "element", budget, skip=self.skip, options=options)
        assert found is not None
        if not any(0 < count_true(mask) < mask.numel() for mask in found.values()):
            raise NothingToDoError(
                "no tensor is masked in part, so no weights can be exchanged; give masks or a sparsity that keep some "
                "weights of a tensor"
            )
        return found


def moved(
    mask: torch.Tensor, weight: torch.Tensor, share: float, ranking: torch.Tensor, seed: object
) -> torch.Tensor:
    """The next mask of a tensor: its smallest weights are removed, as many others are regrown. Ties are decided by
    position.

    Args:
        mask: True where a weight is kept now.
        weight: The weights.
        share: The share of the kept weights that is removed, rounded down.
        ranking: Weights of the highest values are regrown; empty: drawn at random. Weights just removed may be regrown.
        seed: Of the draw.

    >>> mask = torch.tensor([True, True, True, False, False])
    >>> weight, ranking = torch.tensor([3.0, -1.0, 2.0, 0.0, 0.0]), torch.tensor([9.0, 0.1, 0.0, 0.2, -0.3])
    >>> moved(mask, weight, 0.4, ranking, 0).tolist()
    [True, False, True, False, True]
    """
    flat = mask.flatten().clone()
    there = flat.nonzero().flatten()
    count = int(share * there.numel())
    if count == 0 or there.numel() == flat.numel():
        return mask
    order = weight.detach().flatten()[there].abs().sort(stable=True).indices
    flat[there[order[:count]]] = False
    free = (~flat).nonzero().flatten()
    if ranking.numel():
        best = ranking.detach().flatten()[free].abs().sort(stable=True, descending=True).indices
    else:
        digest = hashlib.sha256(repr(seed).encode()).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "big"))
        best = torch.randperm(free.numel(), generator=generator).to(free.device)
    flat[free[best[:count]]] = True
    return flat.reshape(mask.shape)


class Moving(Sparsifying):
    """Masks held on a model, which change at a fixed interval of steps.

    Args:
        model: The model.
        masks: The initial masks.
        every: Optimizer steps between two changes.
        until: The step from which the masks no longer change; None: never.
        seed: The seed of the draws.
    """

    method: ClassVar[str]
    """The word of the method, for errors."""

    def __init__(self, model: nn.Module, masks: Masks, every: int, until: float | None, seed: int) -> None:
        super().__init__(model, masks)
        self._every, self._until, self._seed = every, until, seed
        self._held: Held | None = None
        self._has_moved = False
        if until is not None and until <= every:
            raise NothingToDoError(
                f"{self.method}: expected a step at which masks move, got a move after every {every} steps, the last "
                f"before step {until:g}: make every smaller, or train for longer"
            )

    def __enter__(self: _Self) -> _Self:
        self.held()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._held is not None:
            self._held.close(complain=kind is None)

    def held(self) -> Held:
        """The hold, started when first used, when a checkpoint's masks are known."""
        if self._held is None:
            assert self.masks is not None
            self._held = hold(self.model, self.masks)
        return self._held

    def is_due(self) -> bool:
        """Whether the masks change at this step."""
        return (
            self.step > 0
            and self.step % self._every == 0
            and (self._until is None or self.step < self._until)
        )

    def before_forward(self) -> None:
        """Hold, from the first step on."""
        self.held()

    def move(self, share: float, ranking: Mapping[str, torch.Tensor]) -> None:
        """Change the masks of all tensors.

        Args:
            share: The share of a tensor's weights that is exchanged.
            ranking: Decides which weights are regrown, by the tensor's name; an empty mapping: drawn at random.
        """
        assert self.masks is not None
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        nothing = torch.empty(0)
        new = {
            name: moved(
                mask.to(parameters[name].device),
                parameters[name],
                share,
                ranking.get(name, nothing),
                (self._seed, self.step, name),
            )
            for name, mask in self.masks.items()
        }
        self.masks = Masks(new)
        self._has_moved = True
        self.held().update(self.masks)

    def finish(self) -> Masks | None:
        """Stop holding, and return the last masks.

        Raises:
            NothingToDoError: No mask has moved: calls were left out of the loop, or there were too few steps.
        """
        if not self._has_moved:
            raise NothingToDoError(
                f"{self.method}: expected masks that have moved, got none after {self.step} steps with a move "
                f"after every {self._every}: call before_forward(), before_step() and after_step() at each optimizer "
                f"step, and train for more than {self._every} steps"
            )
        return super().finish()

    def close(self) -> None:
        """Stop holding; the weights stay masked."""
        if self._held is not None:
            self._held.close()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The masks."""
        return dict(self.masks or {})

    def load(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Continue with these masks."""
        super().load(tensors, step)
        self.masks, self._has_moved = Masks(tensors), step > self._every

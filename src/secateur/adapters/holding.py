"""What the callbacks for other libraries' trainers share: masks held, made gradually, logged, and kept for a resume.

>>> import torch
>>> from torch import nn
>>> model = nn.Linear(2, 1, bias=False)
>>> keeper = MaskKeeper(Masks({"weight": torch.tensor([[True, False]])}), model=model)
>>> keeper.start(model)
>>> keeper.logged()
{'sparsity': 0.5}
>>> keeper.stop(); model.weight[0, 1].item()
0.0
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from secateur.core.atomic_files import atomic_write
from secateur.core.masks import Masks
from secateur.core.model_kinds import unwrapped
from secateur.core.wrapped_layers import model_with, with_earlier_names
from secateur.errors import OptionError, PlanError
from secateur.execution.example import Example
from secateur.execution.recorded import FirstCall
from secateur.pruning.hold import Held, hold
from secateur.structure.cut.plan import ShrinkPlan

__all__ = ["GradualLike", "GradualOnExample", "MaskKeeper"]

MASKS_FILE = "secateur_masks.safetensors"
PLAN_FILE = "secateur_plan.json"


def _fits(plan: ShrinkPlan, model: nn.Module) -> bool:
    """Whether a model has the widths that a plan cuts."""
    try:
        plan.check(model)
    except PlanError:
        return False
    return True


class GradualLike(Protocol):
    """Masks as a function of the step, such as `sc.GradualPruning`."""

    def is_due(self, step: int, steps: int, /) -> bool:
        """Whether masks are made before this step."""

    def masks(self, model: nn.Module, step: int, steps: int, before: Masks | None, /) -> Masks | None:
        """The masks from this step on."""


@runtime_checkable
class GradualOnExample(Protocol):
    """A `GradualLike` that also takes an example, such as `sc.GradualPruning`."""

    @property
    def needs_example(self) -> bool:
        """Whether it cannot do without one."""

    def masks(
        self, model: nn.Module, step: int, steps: int, before: Masks | None, example: Example, /
    ) -> Masks | None:
        """The masks from this step on."""


class MaskKeeper:
    """Masks in force while a trainer of another library trains.

    Args:
        masks: The masks to hold; None where `gradual` makes them all.
        gradual: Makes more masks while training runs.
        model: The model they belong to, where it is a part of the trainer's model.
        copies: Models of the same names that stay masked too, such as an EMA copy.
        plan: The plan of a model that was cut before; it is written beside every checkpoint.
        example: What the model is called with, where `gradual` needs to know; None takes it from the model's first call
            in training.
    """

    def __init__(
        self,
        masks: Masks | None,
        gradual: GradualLike | None = None,
        model: nn.Module | None = None,
        copies: nn.Module | Iterable[nn.Module] = (),
        plan: ShrinkPlan | None = None,
        example: Example = None,
    ):
        if masks is None and gradual is None and plan is None:
            raise OptionError(
                "masks: nothing to hold; give masks, or gradual=sc.GradualPruning(0.9), or the plan of a cut model"
            )
        self.masks, self.gradual, self.model, self.plan = masks, gradual, model, plan
        self.copies, self.example = copies, example
        self.held: Held | None = None
        self._first: FirstCall | None = None
        self._done: int | None = None
        if model is not None:
            self.check(model)

    def check(self, model: nn.Module) -> None:
        """Refuse a model that checkpoints of the cut one do not load into, or that the masks do not fit.

        Args:
            model: The model they belong to, before anything is loaded into it.

        Raises:
            OptionError: It has the widths from before the cut.
            MaskMismatchError: The masks are those of another model.
        """
        whole = unwrapped(model)
        if self.plan is not None and self.plan.keep and _fits(self.plan, whole):
            raise OptionError(
                f"plan: expected {type(whole).__name__} with the widths that the plan leaves, got those from before "
                "the cut, which no checkpoint of the cut model fits; cut the new model first: plan.apply_(model)"
            )
        if self.masks is not None:
            self.masks.check(whole, wrapped=True)

    def names_known(self, model: nn.Module) -> bool:
        """Whether a model has all the tensors that masks and plan name: one that makes its layers later has not.

        Args:
            model: The model.
        """
        whole = unwrapped(model)
        whole = model_with(whole, self.masks or ())
        names = set(with_earlier_names(dict((*whole.named_parameters(), *whole.named_buffers()))))
        return names.issuperset([*(self.masks or ()), *(self.plan.keep if self.plan is not None else ())])

    def start(self, model: nn.Module, optimizer: object = None) -> None:
        """Begin to hold, on the model that was given, else on the trainer's.

        Args:
            model: The trainer's model.
            optimizer: Its optimizer, if it is made by now.
        """
        self.model = self.model if self.model is not None else model
        if self.masks is not None and self.held is None:
            self.held = hold(self.model, self.masks, optimizer, copies=self.copies)
        if self.needs_call and self._first is None:
            self._first = FirstCall(unwrapped(self.model))

    @property
    def needs_call(self) -> bool:
        """Whether an example is needed, and has to be taken from a call of the model."""
        return (
            self.example is None and isinstance(self.gradual, GradualOnExample) and self.gradual.needs_example
        )

    def step(self, step: int, steps: int) -> None:
        """Make the masks that are due before an optimizer step.

        Where an example is needed and not known yet, they are made when the model is called.

        Args:
            step: Counted from 0.
            steps: Optimizer steps of the whole training.
        """
        if self.gradual is None or step == self._done or not self.gradual.is_due(step, steps):
            return
        self._done = step  # with several batches in a step, it begins several times
        if self._first is not None and self.needs_call:
            self._first.then(lambda example: self._make(step, steps, example))
        else:
            self._make(step, steps, self.example)

    def _make(self, step: int, steps: int, example: Example) -> None:
        """Make masks, and hold them from now on."""
        if self.gradual is None or self.model is None:
            return
        if isinstance(self.gradual, GradualOnExample) and self.gradual.needs_example:
            made = self.gradual.masks(self.model, step, steps, self.masks, example)
        else:
            made = self.gradual.masks(self.model, step, steps, self.masks)
        if made is None or made is self.masks:
            return
        self.masks = made
        if self.held is None:
            self.held = hold(self.model, made, copies=self.copies)
        else:
            self.held.update(made)

    def stop(self) -> None:
        """Release the masks; the weights stay masked. A second call does nothing."""
        if self._first is not None:
            self._first.close()
        held, self.held = self.held, None
        self._first = self._done = None
        if held is not None:
            held.close(complain=False)

    def logged(self) -> dict[str, float]:
        """The numbers to log: the share of the masked tensors' weights that is removed."""
        return {} if self.masks is None else {"sparsity": self.masks.sparsity}

    def state(self) -> dict[str, torch.Tensor]:
        """The masks in force, as a checkpoint keeps them."""
        return {} if self.masks is None else {name: mask.cpu().clone() for name, mask in self.masks.items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue with the masks of a checkpoint.

        Args:
            state: A result of `state`.
        """
        if state:
            self.masks = Masks(dict(state))

    def save(self, folder: Path) -> None:
        """Write masks and plan into a checkpoint's folder.

        Args:
            folder: The folder.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if self.masks is not None:
            self.masks.save(folder / MASKS_FILE)
        if self.plan is not None:
            atomic_write(folder / PLAN_FILE, self.plan.to_json().encode())

    def resume(self, folder: Path) -> None:
        """Continue from a checkpoint's folder.

        Args:
            folder: The folder.

        Raises:
            OptionError: Masks are made gradually, and the folder has none: they would start from the beginning.
        """
        file = folder / MASKS_FILE
        if file.is_file():
            self.masks = Masks.load(file)
        elif self.gradual is not None:
            raise OptionError(
                f"{folder}: training continues from here, and there are no masks in {MASKS_FILE}; resume from the "
                "folder "
                "that this callback wrote into, or give the masks that were in force"
            )

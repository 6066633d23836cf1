"""`norms`: estimate the running mean and variance of batch norm again, over training images; weights do not change.

Pruning and sharing change the inputs of a batch norm, and its running statistics no longer fit. Augment the images as
in training: statistics of plain images do not fit a network trained on augmented ones. Rounding the values of codebooks
changes the inputs too: with `codebook_bits`, as in `pack`, they are rounded first. A file packed with `batch_norm`
holds no statistics: before its model is trained on, `same_outputs` measures them and changes scale and shift with them.

>>> NormsStep(images=2000, augment="standard").images
2000
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from secateur.container.scalar_rounding import round_books
from secateur.core.measurement import Measurements
from secateur.errors import OptionError
from secateur.execution.processors import warn_of_slow_bfloat16
from secateur.lab.state import State
from secateur.lab.steps import Result, Step, Work
from secateur.lab.steps.train import Augmentation, augmentation
from secateur.quantize.share import ShareOptions, share
from secateur.structure.shrunk_files import reestimate_batch_norm

__all__ = ["NormsStep"]

_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class NormsStep(Step):
    """Set batch norm's running statistics to plain averages over training images."""

    measures: ClassVar[tuple[str, ...] | None] = ()
    images: int = Field(10_000, ge=1, description="most training images to average over")
    batch_size: int = Field(500, ge=2, description="images per batch of statistics")
    augment: Augmentation = Field(None, description="as in the training before this step")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="precision of the forward pass")
    codebook_bits: int | None = Field(
        None, ge=2, le=8, description="round the values of codebooks first, as pack will"
    )
    same_outputs: bool = Field(
        False, description="scales and shifts follow, so that the model answers as before"
    )

    def check(self, model: nn.Module, before: list[str]) -> None:
        """Check the augmentation, and that the model has a batch norm."""
        augmentation(self.augment)
        if not any(isinstance(module, _KINDS) for module in model.modules()):
            raise OptionError(f"{type(model).__name__} has no batch norm; leave the step out")

    def run(self, state: State, work: Work) -> Result:
        """Average over whole batches until `images` images were seen."""
        seen = 0

        def batches() -> Iterator[torch.Tensor]:
            nonlocal seen
            how = augmentation(self.augment)
            found = work.data.train.batches(
                self.batch_size, shuffle=True, seed=work.seed, augment=how, device=work.device, drop_last=True
            )
            for images, _ in found:
                if seen >= self.images:
                    return
                seen += len(images)
                yield images

        if len(work.data.train) < self.batch_size:
            raise OptionError(
                f"step {self.label!r}: expected a batch_size of at most {len(work.data.train):,}, the training images "
                f"there are, got {self.batch_size:,}"
            )
        if self.codebook_bits is not None:
            self._round(state, self.codebook_bits)
        state.model.to(work.device)
        if self.precision == "bf16":
            warn_of_slow_bfloat16(work.device)
        with torch.autocast(torch.device(work.device).type, torch.bfloat16, enabled=self.precision == "bf16"):
            most = len(work.data.train) // self.batch_size
            reestimate_batch_norm(state.model, batches(), batches=most, same_outputs=self.same_outputs)
        state.model.to("cpu").eval()
        kept = State(
            state.model, masks=state.masks, codebooks=state.codebooks, plan=state.plan, files=state.files
        )
        return Result(kept, Measurements([]), {}, f"batch norm measured on {seen:,} images")

    def _round(self, state: State, bits: int) -> None:
        """Round the values of the codebooks to `bits` bits, in the model and in the state."""
        for name, book in state.codebooks.items():
            if book.bound:
                raise OptionError(
                    f"step {self.label!r}: {name}: {book.bound} cannot be rounded; leave codebook_bits out"
                )
        tensors, _ = round_books(state.model.state_dict(), state.codebooks, bits)
        state.model.load_state_dict(tensors)
        state.codebooks = dict(
            share(
                state.model, method="exact", options=ShareOptions(parameters=tuple(state.codebooks))
            ).codebooks
        )

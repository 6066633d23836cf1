"""`refine`: train a shared model's codebooks; with `remake_every` weights are also assigned to centroids again.

By default centroids, biases and everything that is not shared are trained by gradient, and every weight keeps its
centroid. With `remake_every` latent weights are trained as well, and assigned again after that number of optimizer
steps; `rate` is the cost of a bit. `latent` names an earlier step, before sharing, whose weights the latent ones start
from.

>>> RefineStep(remake_every=20, rate=0.02, latent="retrain").training().lr
0.001
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from pydantic import Field, create_model
from torch import nn

from secateur.core.codebook import Codebook
from secateur.core.masks import Masks
from secateur.errors import NothingToDoError, OptionError, RecipeError, near
from secateur.lab.state import State
from secateur.lab.steps import Result, Work
from secateur.lab.steps.train import EPOCH_ROWS, TrainBase, training_fields
from secateur.quantize import registry
from secateur.quantize.result import zeroed
from secateur.quantize.share import Shared

__all__ = ["RefineStep"]


class _Refine(TrainBase):
    """Training of a shared model."""

    measures: ClassVar[tuple[str, ...] | None] = EPOCH_ROWS
    remake_every: int | None = Field(
        None, ge=1, description="assign weights to centroids again after this number of optimizer steps"
    )
    rate: float = Field(0.0, ge=0, description="cost of a bit, in mean squared weights; needs remake_every")
    latent: str | None = Field(
        None, description="label of an earlier step whose weights the latent weights start from"
    )

    def check(self, model: nn.Module, before: list[str]) -> None:
        """Check that the options go together, and that the steps named are earlier ones."""
        super().check(model, before)
        if self.training().sparsify is not None:
            raise OptionError(
                f"step {self.label!r}: sparsify makes single weights small, and here they share values; give it to a "
                "training step before the weights are shared"
            )
        if self.remake_every is None and (self.rate or self.latent is not None):
            raise RecipeError(
                f"step {self.label!r}: rate and latent belong to remake_every, which is not given"
            )
        if self.remake_every is not None and (self.keep == "best" or self.early_stop is not None):  # type: ignore[attr-defined]
            raise OptionError(
                "with remake_every the values of the best epoch are not those of its weights; "
                "expected keep='last' and no early_stop"
            )
        if self.latent is not None and self.latent not in before:
            raise RecipeError(
                f"step {self.label!r}: latent {self.latent!r} is no earlier step; "
                + (near(self.latent, before) if before else "this is the first step")
            )

    def refers(self) -> tuple[str, ...]:
        """The teacher's step, and the one whose weights the latent weights start from."""
        return super().refers() + ((self.latent,) if self.latent is not None else ())

    def run(self, state: State, work: Work) -> Result:
        """Train inside `Shared.train`; the codebooks after the step are those at its end."""
        books = self._trainable(state)
        masks = zeroed(books)
        shared = Shared(
            state.model, MappingProxyType(books), MappingProxyType(masks), {}, registry.make("exact")
        )
        model = state.model.to(work.device)
        self.set_memory_format(model)  # before training begins, so that indices lie as their weights do
        parameters = dict(model.named_parameters())
        if self.latent is not None:
            self._start_from(work.earlier(self.latent).model, list(books), parameters)
        # A checkpoint does not hold how many steps were made since the last assignment: a stopped one starts over.
        task = work if self.remake_every is None else replace(work, checkpoint=None)
        fixed = [parameters[name] for name in state.codebooks if name not in books]
        for parameter in fixed:
            parameter.requires_grad_(False)
        with shared.train(model, remake_every=self.remake_every, rate=self.rate) as training:
            result = super().run(State(model, masks=_unshared_masks(state), plan=state.plan), task)
            model.to(work.device)
        for parameter in fixed:
            parameter.requires_grad_(True)
        trained = shared.trained(training)
        model.to("cpu").to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        if self.rate:
            result.line += f", {_kept(trained.codebooks):,} of {_weights(masks):,} weights left"
        kept = dict(state.masks or {})
        kept |= {name: mask.cpu() for name, mask in zeroed(trained.codebooks).items()}
        result.state = State(
            model,
            masks=Masks(kept) if kept else None,
            codebooks={**state.codebooks, **trained.codebooks},
            plan=state.plan,
            files=state.files,
        )
        return result

    def _trainable(self, state: State) -> dict[str, Codebook]:
        """The codebooks with a value to train: a layer whose weights are all removed has none."""
        books = {
            name: book
            for name, book in state.codebooks.items()
            if not book.bound and len(book.values) > int(book.reserved)
        }
        if not books:
            raise NothingToDoError(
                f"step {self.label!r}: no codebook to train; share with method='kmeans' and per='tensor' before it"
            )
        return books

    def _start_from(self, earlier: nn.Module, names: list[str], parameters: dict[str, nn.Parameter]) -> None:
        """Copy the shared tensors of an earlier step into the parameters."""
        latent = dict(earlier.named_parameters())
        for name in names:
            if name not in latent or latent[name].shape != parameters[name].shape:
                raise OptionError(
                    f"step {self.label!r}: {name} of step {self.latent!r} has another shape; name a step after "
                    "the last that shrank the model"
                )
            with torch.no_grad():
                parameters[name].copy_(latent[name])


def _unshared_masks(state: State) -> Masks | None:
    """The masks of tensors that are not shared: biases of removed neurons stay zero while the values are trained."""
    masks = {name: mask for name, mask in (state.masks or {}).items() if name not in state.codebooks}
    return Masks(masks) if masks else None


def _kept(books: Mapping[str, Codebook]) -> int:
    """How many weights are not zero, of codebooks that reserve a value for zero."""
    return sum(int((book.indices != 0).sum()) for book in books.values() if book.reserved)


def _weights(masks: Mapping[str, torch.Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


RefineStep: Any = create_model(
    "RefineStep", __base__=_Refine, __module__=__name__, **training_fields(lr=0.001, optimizer="adam")
)
RefineStep.__doc__ = "Train the codebooks of a shared model."

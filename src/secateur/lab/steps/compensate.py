"""`compensate`: refit the remaining weights to reproduce the dense model's outputs, on training images without labels.
`dense` names the earlier step whose model is reproduced; by default that is the model of the `[model]` table, with its
`weights`. `passes` adds gradient steps on the outputs of blocks and of the whole model. `shares` first asks which
layers cause how much error (`sc.error_shares`), and has each lose accordingly, as much together as before.

>>> CompensateStep(calibrate=2000, dense="train").calibrate
2000
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from secateur import budget, granularity
from secateur.budget.per_layer import PerLayer
from secateur.compensation.compensate import compensate
from secateur.compensation.shares import error_shares
from secateur.compensation.solver import LeastSquares
from secateur.compensation.tuning import Tuning
from secateur.core.masks import Masks
from secateur.core.measurement import Measurement, Measurements
from secateur.errors import NothingToDoError, RecipeError, near
from secateur.lab.calibration import CalibrationImages
from secateur.lab.state import State
from secateur.lab.steps import Result, Step, Work
from secateur.lab.steps.train import Augmentation, augmentation
from secateur.pruning.prune import PruneOptions, prune

__all__ = ["CompensateStep", "check_dense_label"]

Patterns = str | tuple[str, ...] | None
_PROBES = 200
"""Images on which layers are compared, at most."""


def check_dense_label(label: str, dense: str | None, before: list[str]) -> None:
    """Raise a `RecipeError` unless `dense` is an earlier step, or left out where no earlier step trained."""
    if dense is not None and dense not in before:
        raise RecipeError(
            f"step {label!r}: dense {dense!r} is no earlier step; "
            + (near(dense, before) if before else "this is the first step")
        )
    if dense is None and "train" in before:
        raise RecipeError(
            f"step {label!r}: without dense, the model to reproduce is the one before training; name the step after "
            "which it was dense: dense = 'train'"
        )


def _of_lines(mask: torch.Tensor) -> bool:
    """Whether a mask removes whole outputs and whole inputs only, or nothing.

    >>> _of_lines(torch.tensor([[True, False], [True, False]])), _of_lines(torch.eye(2, dtype=torch.bool))
    (True, False)
    """
    flat = mask.reshape(*mask.shape[:2], -1)
    return bool((flat == (flat.any(2).any(1)[:, None, None] & flat.any(2).any(0)[None, :, None])).all())


_CUT = ("channel", "filter", "head", "head_size", "layer")
"""Granularities of which a `shrink` step leaves no masks."""


def _patterns(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The options by which a step cuts more than single weights, each where its score says: their names and words.

    >>> list(_patterns({"granularity": ["element", {"name": "kernel"}], "budget": {"name": "n_of_m", "n": 1}}))
    [('granularity', 'kernel'), ('budget', 'n_of_m')]
    >>> list(_patterns({"granularity": "element", "budget": 0.5, "sparsify": None}))
    []
    """
    for name, plugins in (("granularity", granularity.registry), ("budget", budget.registry)):
        value = options.get(name)
        for one in value if isinstance(value, (list, tuple)) else (value,):
            word = one.get("name") if isinstance(one, Mapping) else one
            if not isinstance(word, str):
                continue
            word = plugins.aliases.get(word, word)
            if (word != "element") if name == "granularity" else (word == "n_of_m"):
                yield name, word
    if isinstance(options.get("sparsify"), Mapping):
        yield from _patterns(options["sparsify"])


class CompensateStep(Step):
    """Refit the remaining weights by least squares, layer by layer, to reproduce the outputs of the dense model."""

    measures: ClassVar[tuple[str, ...] | None] = ("layer_error_before", "layer_error_after")
    calibrate: int = Field(2000, ge=1, description="training images that are used, without their labels")
    batch_size: int = Field(100, ge=1, description="images of one batch")
    augment: Augmentation = Field(None, description="as in training; drawn again in each pass")
    dense: str | None = Field(
        None, description="label of the step with the dense model; by default the [model] table's"
    )
    skip: Patterns = Field(None, description="layers that keep their weights")
    damping: float = Field(0.01, ge=0, description="strength of the penalty on changes of the weights")
    reselect: bool = Field(
        False, description="choose again which single weights remain, the same number in each tensor"
    )
    shares: bool = Field(
        False,
        description="first give each layer the share to lose by the error that it alone causes, for masks of single "
        "weights: chosen again by Wanda, from the dense model's weights",
    )
    passes: int = Field(0, ge=0, description="passes over the images with gradient steps on the outputs")
    lr: float = Field(0.05, gt=0, description="largest step of these, as a share of a tensor's size")
    blocks: float = Field(
        1.0, ge=0, description="weight of the blocks' outputs in the loss, relative to the model's own"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="precision of the gradient steps")

    def check(self, model: nn.Module, before: list[str]) -> None:
        """The dense step, and the options."""
        check_dense_label(self.label, self.dense, before)
        augmentation(self.augment)
        self._tuning()
        LeastSquares(self.damping, self.reselect)

    def check_after(self, steps: Sequence[Step]) -> None:
        """With `shares`, weights are chosen again one by one: refuse masks of a pattern, which would be lost."""
        found: list[tuple[str, str, str]] = []
        for step in steps if self.shares else ():
            if step.kind() == "shrink":
                found = [one for one in found if one[2] not in _CUT]
            elif step.kind() != "scan":  # which leaves no masks
                found += [(step.label, *one) for one in _patterns(step.model_dump())]
        for label, name, word in found:
            raise RecipeError(
                f"step {self.label!r}: shares = true is for masks of single weights, which it chooses again: expected "
                f"granularity 'element' and a budget without a pattern, got {name} {word!r} of step {label!r}; leave "
                "shares out"
            )

    def refers(self) -> tuple[str, ...]:
        """The step with the dense model."""
        return () if self.dense is None else (self.dense,)

    def _tuning(self) -> Tuning | None:
        return Tuning(self.passes, self.lr, self.blocks, self.precision) if self.passes else None

    def chosen(self) -> dict[str, Any]:
        """The options; without `shares` where it is not used, so that addresses of older outcomes stay valid."""
        found = super().chosen()
        if not self.shares:
            del found["shares"]
        return found

    def _images(self, work: Work, most: int | None = None) -> CalibrationImages:
        """The images, or the first few of them."""
        count = self.calibrate if most is None else min(most, self.calibrate)
        return CalibrationImages(
            work.data.train,
            count,
            self.batch_size,
            augment=self.augment,
            seed=work.seed,
            device=work.device,
        )

    def _spread(self, dense: nn.Module, masks: Masks, work: Work) -> Masks:
        """Masks that remove as much, each layer by the error that it alone causes after a first round."""
        layers = {name: mask for name, mask in masks.items() if mask.dim() > 1}
        if len(layers) < len(masks) or all(_of_lines(mask) for mask in layers.values()):
            raise RecipeError(
                f"step {self.label!r}: shares = true is for masks of single weights of layers; leave it out where "
                "channels, filters or biases are pruned"
            )
        first = compensate(
            dense, masks, self._images(work), skip=self.skip, solver=LeastSquares(self.damping, sums=False)
        )
        lost = Masks({name: mask for name, mask in masks.items() if not bool(mask.all())}).sparsity
        shares = error_shares(dense, first, self._images(work, _PROBES), lost)
        options = PruneOptions(only=list(shares), seed=work.seed)
        chosen = prune(
            dense, "wanda", budget=PerLayer(tuple(shares.items())), data=self._images(work), options=options
        )
        return Masks({**masks, **chosen})  # with those of layers that lose nothing

    def run(self, state: State, work: Work) -> Result:
        """Compensate. Codebooks of earlier steps are dropped, because the weights change."""
        if state.masks is None:
            raise NothingToDoError(
                f"step {self.label!r}: nothing was pruned before it; put a prune step first"
            )
        dense = work.earlier(self.dense).model if self.dense is not None else work.build()
        dense.to(work.device)
        model, masks = state.model.to(work.device), state.masks.to(work.device)
        if self.shares:
            model, masks = dense, self._spread(dense, masks, work)
        found = compensate(
            model,
            masks,
            self._images(work),
            dense=dense,
            skip=self.skip,
            solver=LeastSquares(self.damping, self.reselect),
            tune=self._tuning(),
        )
        measured = []
        for name, when in (("before", "before"), ("after", "after")):
            layers: dict[str, Any] = {layer.name: getattr(layer, name) for layer in found.layers}
            text = f"squared error of a layer's outputs {when} compensating, over their variance; mean of the layers"
            mean = sum(layers.values()) / max(1, len(layers))
            measured.append(Measurement(f"layer_error_{when}", mean, "", text, per_layer=layers))
        kept = State(found.model.to("cpu"), masks=found.masks.to("cpu"), plan=state.plan)
        line = f"{len(found.layers)} layers solved on {min(self.calibrate, len(work.data.train)):,} images"
        return Result(kept, Measurements(measured), {"notes": list(found.notes)}, line)

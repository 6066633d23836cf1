"""`zero_dead_neurons`: set to zero the weights and biases of neurons that no longer affect any output.

>>> ZeroDeadNeuronsStep(images=500).images
500
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from secateur.core.masks import Masks
from secateur.core.measurement import Measurement, Measurements
from secateur.errors import OptionError, ProofError
from secateur.lab.state import State
from secateur.lab.steps import Result, Step, Work
from secateur.pruning.dead_neurons import zero_dead_neurons

__all__ = ["ZeroDeadNeuronsStep"]


class ZeroDeadNeuronsStep(Step):
    """Remove weights and biases whose gradient is zero for every image; the outputs stay the same."""

    measures: ClassVar[tuple[str, ...] | None] = ("idle_weights",)
    images: int = Field(10_000, ge=1, description="most training images to use")

    def run(self, state: State, work: Work) -> Result:
        """Find them, set them to zero, and hold them at zero."""
        if state.codebooks:
            raise OptionError(
                f"step {self.label!r}: the weights are shared; zero dead neurons before sharing"
            )
        state.model.to(work.device)
        wanted, batches = self.images, []
        for images, _ in work.data.train.batches(500, device=work.device):
            batches.append(images[:wanted])
            wanted -= len(images)
            if wanted <= 0:
                break
        before = sum(int((parameter != 0).sum()) for parameter in state.model.parameters())
        try:
            masks = zero_dead_neurons(state.model, batches, seed=work.seed).to("cpu")
        except ProofError:  # no neuron can be shown to be dead: all of them stay
            masks = Masks.ones(state.model)
        state.model.to("cpu")
        after = sum(int((parameter != 0).sum()) for parameter in state.model.parameters())
        text = "weights and biases that were not zero, and that no output depended on"
        before_it = dict(state.masks or {})
        merged = {**before_it, **{name: mask & before_it.get(name, mask) for name, mask in masks.items()}}
        return Result(
            State(state.model, masks=Masks(merged), plan=state.plan, files=state.files),
            Measurements([Measurement("idle_weights", before - after, "", text)]),
            {},
            f"{before - after:,} of {before:,} weights and biases were idle",
        )

"""`shrink`: remove pruned channels from the model, with a proof that it still computes the same.

>>> ShrinkStep(round_to=8).round_to
8
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field
from torch import nn

from secateur.core.measurement import Measurement, Measurements
from secateur.errors import NothingToDoError, OptionError
from secateur.lab.outcomes import Table
from secateur.lab.state import State
from secateur.lab.steps import Result, Step, Work
from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.proof import ProofOptions, as_proof_options
from secateur.structure.shrink import shrink

__all__ = ["ShrinkStep"]


class ShrinkStep(Step):
    """Cut the masked channels out of every tensor that has them."""

    measures: ClassVar[tuple[str, ...] | None] = ("proof_error",)
    coupling: str = Field("union", description="union: masks chosen in any way; coupled: masks that agree")
    round_to: int | None = Field(None, description="keep widths at a multiple of this")
    at_least: int = Field(1, ge=1, description="fewest units of a group that remain")
    tolerance: float = Field(1e-9, gt=0, description="largest difference the proof allows, in float64")
    across_norm: bool = Field(
        False, description="also cut axes that cross a LayerNorm; the outputs then change"
    )
    free: bool = Field(
        False,
        description="let zeros inside the smaller model be trained again, instead of holding them",
    )

    proof: list[str] | None = Field(
        None,
        description="modes in which every input is proved: eager, no_grad, compile, export; by default the usual",
    )

    def chosen(self) -> Table:
        """The options; without those that are not used, so that addresses of older outcomes stay valid."""
        unused = {"free"} if not self.free else set()
        unused |= {"proof"} if self.proof is None else set()
        return {key: value for key, value in super().chosen().items() if key not in unused}

    def check(self, model: nn.Module, before: list[str]) -> None:
        """Raise for unknown modes, before anything runs."""
        self.proven()

    def proven(self) -> ProofOptions:
        """What is proved, with this step's tolerance."""
        return replace(as_proof_options(self.proof), tolerance=self.tolerance)

    def run(self, state: State, work: Work) -> Result:
        """Shrink; a later training has a new optimizer for the smaller tensors."""
        if state.masks is None:
            raise NothingToDoError(
                f"step {self.label!r}: nothing was pruned before it, so no channel can be removed"
            )
        earlier = None if state.plan is None else ShrinkPlan.from_json(state.plan)
        if earlier is not None and not earlier.only_factors:
            raise OptionError(
                f"step {self.label!r}: the model was shrunk before, and a file holds one plan only; prune all "
                "channels first, then shrink once"
            )
        small = shrink(
            state.model,
            state.masks,
            work.data.example,
            coupling=self.coupling,
            round_to=self.round_to,
            at_least=self.at_least,
            across_norm=self.across_norm,
            proof=self.proven(),
        )
        before = sum(parameter.numel() for parameter in state.model.parameters())
        after = sum(parameter.numel() for parameter in small.model.parameters())
        text = "largest difference of masked and shrunk model over the largest output, both in float64"
        measured = Measurement("proof_error", float(small.proof.error), "", text, notes=(str(small.proof),))
        # None also where everything masked was cut out.
        masks = small.masks if small.masks.kept < small.masks.numel and not self.free else None
        plan = small.plan if earlier is None else earlier.then(small.plan)
        state = State(small.model, masks=masks, plan=plan.to_json())
        line = f"{before:,} parameters to {after:,}; {small.proof}"
        return Result(state, Measurements([measured]), {}, line)

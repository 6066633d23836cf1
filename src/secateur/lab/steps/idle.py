"""`idle`: wait or compute and leave the model as it is; to try a sweep on a new machine or cluster first.

>>> IdleStep(seconds=0.5, note="a").seconds
0.5
"""

from __future__ import annotations

import time
from typing import ClassVar

from pydantic import Field

from secateur.core.measurement import Measurement, Measurements
from secateur.errors import SecateurError
from secateur.lab.state import State
from secateur.lab.steps import Result, Step, Work

__all__ = ["IdleStep"]


class IdleStep(Step):
    """Sleep, compute, or fail on purpose; the model does not change."""

    measures: ClassVar[tuple[str, ...] | None] = ("note",)
    seconds: float = Field(0.0, ge=0, description="how long to sleep")
    work: int = Field(
        0, ge=0, description="millions of iterations of a loop to compute, to keep the processor busy"
    )
    note: int | str = Field("", description="distinguishes idle steps; measured where it is a number")
    fail: bool = Field(False, description="end with an error, to see how a failed trial is reported")

    def run(self, state: State, work: Work) -> Result:
        """Wait, and return the state."""
        time.sleep(self.seconds)
        total = 0
        for _ in range(self.work):
            for turn in range(1_000_000):
                total += turn
        if self.fail:
            raise SecateurError("idle: asked to fail")
        value = self.note if isinstance(self.note, int) else 0
        measured = [Measurement("note", value, "", "the number in `note` of an idle step")]
        return Result(state, Measurements(measured), {}, "idle")

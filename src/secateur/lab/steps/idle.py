"""`idle`: do nothing for a while; to rehearse a sweep on a new machine or cluster before it costs anything.

>>> IdleStep(seconds=0.5, note="a").seconds
0.5
"""

from __future__ import annotations

import time

from pydantic import Field

from secateur.core.measurement import Measurement, Measurements
from secateur.errors import SecateurError
from secateur.lab.steps import Result, Step, Work

__all__ = ["IdleStep"]


class IdleStep(Step):
    """Leave the model as it is; sleep, compute, or fail on purpose."""

    seconds: float = Field(0.0, ge=0, description="how long to sleep")
    work: int = Field(
        0, ge=0, description="how many million turns of a loop to compute, as a busy processor does"
    )
    note: int | str = Field("", description="tells idle steps apart; measured when it is a number")
    fail: bool = Field(False, description="end with an error, to see what a failed trial looks like")

    def run(self, state: object, work: Work) -> Result:
        """Pass the time, then the state."""
        time.sleep(self.seconds)
        total = 0
        for _ in range(self.work):
            for turn in range(1_000_000):
                total += turn
        if self.fail:
            raise SecateurError("idle: asked to fail")
        value = self.note if isinstance(self.note, int) else 0
        measured = [Measurement("note", value, "", "the number an idle step was told")]
        return Result(state, Measurements(measured), {}, "idle")  # type: ignore[arg-type]

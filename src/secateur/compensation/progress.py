"""`Advance`: what `compensate` reports after each layer and each pass.

>>> str(Advance("layer", "conv1.weight", 1, 20, 38.0))
'layer 1 of 20: conv1.weight; about 38 s left'
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Advance", "Progress"]


@dataclass(frozen=True)
class Advance:
    """One step done.

    `kind` is "layer" or "pass", `name` says which, `position` counts from 1 up to `total`, `seconds_left` is estimated
    from the time of the steps before.
    """

    kind: str
    name: str
    position: int
    total: int
    seconds_left: float

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.position} of {self.total}: {self.name}; about {self.seconds_left:.0f} s left"
        )


Progress = Callable[[Advance], None]
"""Called with each `Advance`; an exception it raises ends the work, and the model is unchanged."""

"""`Refused`: a shape of the input that was tried and that a model does not accept, and why.

>>> print(Refused(((1, 3, 96, 96),), "RuntimeError: no"))
(1, 3, 96, 96) (RuntimeError: no)
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Refused"]

_LONGEST = 160


@dataclass(frozen=True)
class Refused:
    """A shape that a model does not accept.

    Attributes:
        shapes: The shapes of the input's tensors.
        why: The error that the model raised, or what its outputs have come to.
        flag: The flag and its value, where it is not the shapes that are refused but this; else empty.
    """

    shapes: tuple[tuple[int, ...], ...]
    why: str
    flag: str = ""

    @property
    def what(self) -> str:
        """What is refused, in words."""
        shapes = " and ".join(map(str, self.shapes))
        return f"{shapes} with {self.flag}" if self.flag else shapes

    def __str__(self) -> str:
        return f"{self.what} ({self.why})"

    @classmethod
    def by(cls, shapes: tuple[tuple[int, ...], ...], error: BaseException | None, flag: str = "") -> Refused:
        """The refusal of an input of these shapes with an error.

        Args:
            shapes: The shapes of the input's tensors.
            error: The error; None stands for outputs that mean nothing.
            flag: The flag and its value, where it is this that is refused.
        """
        why = "it takes parts of one input for inputs of their own"
        if error is not None:
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:_LONGEST]}"
        return cls(shapes, why, flag)

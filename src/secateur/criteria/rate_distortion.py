"""Rate-distortion score: w² per estimated stored bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from secateur.core.context import Context
from secateur.core.scores import Scores
from secateur.core.targets import Target
from secateur.criteria import Criterion
from secateur.criteria._weights import weights, working_dtype
from secateur.errors import OptionError
from secateur.quantize import nonzero_bits

__all__ = ["RateDistortion"]


@dataclass(frozen=True)
class RateDistortion(Criterion):
    """w**2 / bits: the squared error of removing a weight over the bits that this saves.

    The bits are those of coding that a weight is kept rather than removed, given how many remain of its output, its
    input and its place in the kernel, and `value_bits` for the value itself. So masks become cheap to code: the last
    weights of a nearly empty row are removed before equal ones in a full row. At least `least_bits` are always counted.

    >>> import torch
    >>> from secateur.core.targets import select
    >>> model = nn.Linear(3, 2, bias=False); _ = model.weight.data.copy_(torch.tensor([[1., 1., 1.], [1., 0., 0.]]))
    >>> scores = RateDistortion().scores(model, select(model), Context())["weight"]
    >>> bool(scores[0, 1] > scores[1, 0] > scores[1, 1])
    True
    """

    value_bits: float = 2.5
    least_bits: float = 1.0

    rescore: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.value_bits >= 0:
            raise OptionError(f"value_bits of rate_distortion: expected 0 or more, got {self.value_bits!r}")
        if not self.least_bits > 0:
            raise OptionError(
                f"least_bits of rate_distortion: expected a number above 0, got {self.least_bits!r}"
            )

    def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
        """The square of every weight, over the bits that keeping it adds."""
        found = {}
        for name, weight in weights(model, targets).items():
            there, away = nonzero_bits(weight != 0)
            cost = (there - away + self.value_bits).clamp(min=self.least_bits)
            wide = weight.to(working_dtype(weight.dtype))
            found[name] = wide * wide / cost
        return Scores(found)

"""What would each value cost here? Bits of every choice for every weight, under a model like the coder's own.

A weight is first told to be zero or not, then which value it takes. How likely it is to be zero depends on where it
lies: on the share of non-zeros of its output, of its input and of its tap (the place in the kernel), as the
assignment stands now. So a weight alone in an empty row is dear, and one more in a full row is cheap; a value
that many weights take already is cheaper than a rare one.

The coder in the file learns more than this (from neighbours, from tensors before), but costs thousands of
times as much to ask for every weight and every choice. What it says is measured on the file, not here.

>>> prices = Prices.of(torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]), size=2, zero=0)
>>> lonely, beside = prices.bits(1)[2, 3].item(), prices.bits(1)[0, 3].item()
>>> lonely > beside, prices.bits(0)[2, 3].item() < prices.bits(1)[2, 3].item()
(True, True)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Prices", "there_bits"]

_PRIOR = (
    2.0  # how many weights of the tensor's own share a row, a column or a tap is thought to have seen before
)
_HALF = 0.5  # an occurrence of each value that an adaptive code starts from


@dataclass(frozen=True, eq=False)
class Prices:
    """Bits for each weight: `there` of being a non-zero, `away` of being zero, and `values` of which non-zero it is."""

    there: torch.Tensor
    away: torch.Tensor
    values: torch.Tensor
    zero: int | None

    @classmethod
    def of(cls, indices: torch.Tensor, size: int, zero: int | None) -> Prices:
        """The prices that follow from an assignment: `indices` into `size` values, of which `zero` is 0.0 (or none)."""
        counts = torch.bincount(indices.reshape(-1).long(), minlength=size).to(torch.float32)
        if zero is None:
            nothing = torch.zeros(indices.shape, device=indices.device)
            return cls(nothing, nothing, _bits(counts), None)
        counts[zero] = 0
        bits = _bits(counts, size - 1)
        bits[zero] = 0.0
        there, away = there_bits(indices != zero)
        return cls(there, away, bits, zero)

    def bits(self, value: int) -> torch.Tensor:
        """What it costs every weight to take this value."""
        return self.away if value == self.zero else self.there + self.values[value]

    def total(self, indices: torch.Tensor) -> float:
        """Bits of a whole assignment at these prices."""
        bits = self.there + self.values[indices.long()]
        if self.zero is not None:
            bits = torch.where(indices == self.zero, self.away, bits)
        return float(bits.sum())


def _bits(counts: torch.Tensor, size: int | None = None) -> torch.Tensor:
    """What a value costs in an adaptive code that has seen these counts, and half an occurrence of each."""
    seen = counts + _HALF
    return torch.log2((counts.sum() + _HALF * (len(counts) if size is None else size)) / seen)


def there_bits(there: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Bits of "is not zero" and of "is zero" for every weight, from which weights are not zero now.

    The odds of a weight are those of the tensor, times what its output, its input and its tap add to them.

    >>> ones, zeros = there_bits(torch.tensor([[True, False], [True, False]]))
    >>> bool(ones[0, 0] < ones[0, 1]), bool(zeros[0, 1] < zeros[0, 0])
    (True, True)
    """
    flat = there.reshape(there.shape[0] if there.dim() else 1, there.shape[1] if there.dim() > 1 else 1, -1)
    ones = flat.to(torch.float32)
    share = (ones.sum() + _HALF) / (ones.numel() + 2 * _HALF)
    whole = torch.logit(share)
    odds = whole.expand(flat.shape)
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        count = ones.numel() // max(1, ones.shape[axis])
        if ones.shape[axis] > 1 and count > 1:
            seen = (ones.sum(others, keepdim=True) + _PRIOR * share) / (count + _PRIOR)
            odds = odds + (torch.logit(seen.clamp(1e-6, 1 - 1e-6)) - whole)
    scale = 1.0 / torch.log(torch.tensor(2.0))
    yes = torch.nn.functional.softplus(-odds) * scale
    no = torch.nn.functional.softplus(odds) * scale
    return yes.reshape(there.shape), no.reshape(there.shape)

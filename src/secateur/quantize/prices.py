"""Estimated bits of every value for every weight, under a model like that of the coder.

The coder first says whether a weight is zero, then which value it takes. How likely a zero is depends on the position:
on the share of non-zeros of its output, of its input and of its tap (the position in the kernel), in the present
assignment. So a single non-zero in an empty row costs many bits, one more in a full row few; a value that many weights
take costs less than a rare one.

The coder of the file learns more than this (from neighbours and earlier tensors), but running it for every weight and
every value would take thousands of times as long. Its bytes are measured on the file.

>>> prices = Prices.of(torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]), size=2, zero=0)
>>> alone, among_others = prices.bits(1)[2, 3].item(), prices.bits(1)[0, 3].item()
>>> alone > among_others, prices.bits(0)[2, 3].item() < prices.bits(1)[2, 3].item()
(True, True)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Prices", "magnitude_bits", "nonzero_bits"]

_PRIOR = 2.0  # weights of the tensor's own share that are added to every row, column and tap
_HALF = 0.5  # occurrences of each value that an adaptive code starts from


@dataclass(frozen=True, eq=False)
class Prices:
    """Estimated bits.

    Attributes:
        nonzero: Of each weight not being zero.
        zeroed: Of each weight being zero.
        values: Of each non-zero value.
        zero: The index of the value 0.0, or None.
    """

    nonzero: torch.Tensor
    zeroed: torch.Tensor
    values: torch.Tensor
    zero: int | None

    @classmethod
    def of(cls, indices: torch.Tensor, size: int, zero: int | None) -> Prices:
        """The prices that follow from an assignment.

        Args:
            indices: The value of each weight.
            size: How many values there are.
            zero: The index of the value 0.0, or None.
        """
        counts = torch.bincount(indices.reshape(-1).long(), minlength=size).to(torch.float32)
        if zero is None:
            nothing = torch.zeros(indices.shape, device=indices.device)
            return cls(nothing, nothing, _bits(counts), None)
        counts[zero] = 0
        bits = _bits(counts, size - 1)
        bits[zero] = 0.0
        nonzero, zeroed = nonzero_bits(indices != zero)
        return cls(nonzero, zeroed, bits, zero)

    def bits(self, value: int) -> torch.Tensor:
        """The bits of this value for every weight.

        Args:
            value: The index of the value.
        """
        return self.zeroed if value == self.zero else self.nonzero + self.values[value]

    def total(self, indices: torch.Tensor) -> float:
        """Bits of a whole assignment at these prices.

        Args:
            indices: The value of each weight.
        """
        bits = self.nonzero + self.values[indices.long()]
        if self.zero is not None:
            bits = torch.where(indices == self.zero, self.zeroed, bits)
        return float(bits.sum())


def _bits(counts: torch.Tensor, size: int | None = None) -> torch.Tensor:
    """Bits of each value in an adaptive code that has seen these counts and half an occurrence of each."""
    seen = counts + _HALF
    return torch.log2((counts.sum() + _HALF * (len(counts) if size is None else size)) / seen)


def magnitude_bits(levels: torch.Tensor, most: int) -> torch.Tensor:
    """Bits of the sign and magnitude of a level that is not zero; never fewer for a larger magnitude.

    Args:
        levels: The magnitudes 0..most as they are now.
        most: The largest magnitude.

    Returns:
        Bits of every magnitude 0..most; those of 0 are 0.

    >>> [round(bit, 2) for bit in magnitude_bits(torch.tensor([0, 1, 1, 1, 2]), 2).tolist()]
    [0.0, 1.51, 2.74]
    """
    counts = torch.bincount(levels.reshape(-1), minlength=most + 1)[1:].to(torch.float32)
    bits = 1.0 + torch.cummax(_bits(counts), dim=0).values
    return torch.cat([bits.new_zeros(1), bits])


def nonzero_bits(nonzero: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Bits of "is not zero" and of "is zero" for every weight.

    The odds of a weight are those of the tensor, times factors of its output, its input and its tap.

    Args:
        nonzero: True where a weight is not zero now.

    Returns:
        (bits of not being zero, bits of being zero), shaped like the weights.

    >>> ones, zeros = nonzero_bits(torch.tensor([[True, False], [True, False]]))
    >>> bool(ones[0, 0] < ones[0, 1]), bool(zeros[0, 1] < zeros[0, 0])
    (True, True)
    """
    rows = nonzero.shape[0] if nonzero.dim() else 1
    flat = nonzero.reshape(rows, nonzero.shape[1] if nonzero.dim() > 1 else 1, -1)
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
    return yes.reshape(nonzero.shape), no.reshape(nonzero.shape)

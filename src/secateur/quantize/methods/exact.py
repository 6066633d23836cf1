"""Exact: the values that the weights already take, for a model that was shared before. No weight changes.

>>> import torch
>>> Exact().palette("fc", torch.tensor([0.5, 2.0, 0.5]), zeros=0, seed=0).values.tolist()
[0.5, 2.0]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from secateur.errors import OptionError
from secateur.quantize import Palette, Quantizer, to_numpy
from secateur.quantize.sorted_weights import middles

__all__ = ["Exact"]


@dataclass(frozen=True)
class Exact(Quantizer):
    """The distinct weights as they are.

    Attributes:
        most: More distinct weights than this are an error: such a tensor is not shared.
    """

    most: int = 2**15

    def palette(self, name: str, weights: torch.Tensor, zeros: int, seed: int) -> Palette:
        """Take every distinct weight as a value.

        Args:
            name: The tensor or group, for errors.
            weights: Flat, finite and not empty.
            zeros: How many masked weights there are besides.
            seed: Not used.
        """
        values = np.unique(to_numpy(weights)).astype(np.float64) + 0.0
        if values.size > self.most:
            raise OptionError(
                f"{name}: {values.size:,} distinct weights, expected at most {self.most:,} of a "
                "tensor that is shared already; share it with method='kmeans' or method='uniform'"
            )
        return Palette(values, middles(values))

"""`fetched`: the values of many one-element tensors, with one wait for each device that they lie on.

`float(tensor)` waits for the device; in a loop it waits each time, and the device has nothing to do meanwhile.

>>> import torch
>>> fetched([torch.tensor(1.5), torch.tensor([2]), torch.tensor(True)])
[1.5, 2.0, 1.0]
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

__all__ = ["fetched"]


def fetched(values: Iterable[torch.Tensor]) -> list[float]:
    """The numbers in one-element tensors, in their order.

    Args:
        values: The tensors, of any types, on any devices.

    Returns:
        Their values.
    """
    kept = list(values)
    places: dict[torch.device, list[int]] = {}
    for place, value in enumerate(kept):
        places.setdefault(value.device, []).append(place)
    found = [0.0] * len(kept)
    for there in places.values():
        together = torch.stack([kept[place].detach().reshape(()) for place in there])
        for place, number in zip(there, together.tolist(), strict=True):
            found[place] = float(number)
    return found

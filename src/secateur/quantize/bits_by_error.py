"""`error_bits`: how many bits each layer should have, by the error that it alone causes in the model's outputs.

Layers differ: with the same number of bits, one may change the outputs twenty times as much as another of the same
size. Given a result with the same bits everywhere, each of its layers alone is put into the dense model, and the change
of the outputs is measured. One bit more or less changes it about as it changes the squared error of a normal
distribution's best values (Max 1960, "Quantizing for minimum distortion"). So bits go one by one to the layer where the
error falls most for each bit of the file, as long as the mean over all weights is no more than asked.

>>> allotted({"a": 1.0, "b": 8.0}, {"a": 100, "b": 100}, {"a": 3, "b": 3}, 3.0)
{'a': 2, 'b': 4}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from secateur.compensation.batches import read_all
from secateur.compensation.compensate import check_dense
from secateur.compensation.progress import Progress
from secateur.compensation.shares import check_alone, errors_alone
from secateur.compensation.tuning import Tuning
from secateur.core.model_kinds import plain_model
from secateur.errors import NothingToDoError, OptionError
from secateur.execution.undisturbed import undisturbed
from secateur.execution.verb import verb
from secateur.quantize.methods.kmeans import Kmeans
from secateur.quantize.result import Shared

__all__ = ["allotted", "error_bits"]

_ERROR = (1.0, 0.3634, 0.1175, 0.03454, 0.009497, 0.002499, 0.000642, 0.000163, 0.0000410)
"""The least mean squared error of a standard normal number with 2**bits values, by bits."""

_SWAPS = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (3, 1), (4, 1))
"""Bits that one tensor gets for those of another."""


@verb
def error_bits(
    model: nn.Module,
    shared: Shared,
    data: Iterable[Any],
    bits: float,
    *,
    compare: Callable[[object, object], object] | None = None,
    progress: Progress | None = None,
) -> dict[str, int]:
    """The bits that each layer should have, so that all together change the outputs least; for `bits_of` of `share`.

    Every tensor that `shared` holds is put into the dense model alone, and the outputs are compared on `data`. Share
    again with the bits: `sc.share(model, bits_of=found, ...)`; the second result is what is used.

    Args:
        model: the dense model.
        shared: the result of `sc.share(data=...)` with the same bits in every tensor, by
            `options=sc.ShareOptions(sums=False)` where the model has residual connections: a layer that compensates for
            the errors of others would seem to cause them.
        data: a few batches of inputs; the model runs through them once for every tensor.
        bits: the mean over the weights of all these tensors that is not exceeded. Without `compare`,
            a tensor that changes nothing, since these inputs do not reach it, keeps the bits it has.
        compare: what of an output counts, as that of `sc.Tuning`; by default all of it.
        progress: called with an `Advance` after every tensor.

    Returns:
        The bits, 1 to 8, by parameter name.

    Raises:
        OptionError: for a mean outside 1..8, another method than K-means, or a first result in which a layer
            compensates for the errors of others by a sum.
        NothingToDoError: where fewer than two tensors are shared.
        NonFiniteError: where outputs hold NaN or infinity; the tensor is named.
    """
    if isinstance(bits, bool) or not isinstance(bits, (int, float)) or not 1 <= bits <= 8:
        raise OptionError(f"bits of error_bits: expected a mean from 1 to 8, got {bits!r}")
    method = shared.method
    if not isinstance(method, Kmeans):
        raise OptionError(
            f"error_bits: expected a result of method 'kmeans', whose values follow from its bits, got {method!r}"
        )
    names = list(shared.codebooks)
    if len(names) < 2:
        raise NothingToDoError(
            f"error_bits: expected at least two shared tensors among which bits are divided, got {len(names)}"
        )
    check_alone("error_bits", shared.summed, "options=sc.ShareOptions(sums=False)")
    dense = check_dense(plain_model(shared.model), plain_model(model))
    options = Tuning(compare=compare)
    with undisturbed(dense, mode="eval"), torch.no_grad():
        batches = read_all("error_bits", data, dense)
        errors = errors_alone("error_bits", dense, shared.model, batches, names, options, progress)
    sizes = {name: shared.codebooks[name].indices.numel() for name in names}
    spread = _reached if compare is None else allotted
    return spread(errors, sizes, {name: method.bits_for(name) for name in names}, bits)


def _reached(
    errors: Mapping[str, float], sizes: Mapping[str, int], now: Mapping[str, int], bits: float
) -> dict[str, int]:
    """The bits where some tensors cause no error at all: these inputs may not reach them, so they keep theirs."""
    kept = {name: now[name] for name, error in errors.items() if error == 0}
    others = {name: error for name, error in errors.items() if name not in kept}
    left = bits * sum(sizes.values()) - sum(count * sizes[name] for name, count in kept.items())
    count = sum(sizes[name] for name in others)
    if not kept or not others or left < count:
        return allotted(errors, sizes, now, bits)
    return {**allotted(others, sizes, now, left / count), **kept}


def allotted(
    errors: Mapping[str, float], sizes: Mapping[str, int], now: Mapping[str, int], bits: float
) -> dict[str, int]:
    """The bits of least error in sum, with a mean of at most `bits` over all weights.

    Args:
        errors: The error that each tensor causes with its present bits.
        sizes: The number of its weights.
        now: Its present bits.
        bits: The mean that is not exceeded.
    """
    found = dict.fromkeys(errors, 1)
    left = (bits - 1) * sum(sizes[name] for name in errors) + 1e-6

    def falls(name: str, more: int) -> float:
        """By how much the error falls with so many more bits."""
        return errors[name] * (_ERROR[found[name]] - _ERROR[found[name] + more]) / _ERROR[now[name]]

    while able := [name for name in found if found[name] < 8 and sizes[name] <= left]:
        best = max(able, key=lambda name: (falls(name, 1) / sizes[name], -found[name]))
        found[best] += 1
        left -= sizes[best]
    # tensors of several sizes: a large one's bit for some of a small one's, or the other way round
    while True:
        swaps = [
            (falls(one, up) + falls(other, -down), one, up, other, down)
            for one in found
            for other in found
            for up, down in _SWAPS
            if one != other and found[one] + up <= 8 and found[other] - down >= 1
            if sizes[one] * up - sizes[other] * down <= left
        ]
        gain, one, up, other, down = max(swaps, default=(0.0, "", 0, "", 0))
        if gain <= 1e-9 * sum(errors.values()):
            return found
        found[one] += up
        found[other] -= down
        left -= sizes[one] * up - sizes[other] * down

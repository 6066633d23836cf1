"""`error_shares`: how much each layer should lose, by the error that it alone causes in the model's outputs.

Layers differ: of two that lose half of their weights and are refitted, one may change the outputs twenty times as much.
Given a result with the same share everywhere, each of its layers alone is put into the dense model, and the change of
the outputs is measured. The error of a layer grows with its sparsity about as `exp(steepness * sparsity)`, so that the
sum of all errors is least where layer l loses a share of `c + log(weights_l / error_l) / steepness`; c is what makes
the whole lose as much as asked.

>>> spread({"a": 1.0, "b": 8.0}, {"a": 100, "b": 100}, {"a": 0.5, "b": 0.5}, 0.5, steepness=5.0)
{'a': 0.7079, 'b': 0.2921}
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from secateur.compensation.batches import read_all
from secateur.compensation.compensate import Compensated, check_dense
from secateur.compensation.progress import Advance, Progress
from secateur.compensation.tuning import Tuning, compared, difference
from secateur.core.fetching import fetched
from secateur.core.model_kinds import plain_model
from secateur.errors import NonFiniteError, NothingToDoError, OptionError
from secateur.execution.example import Batch
from secateur.execution.undisturbed import undisturbed
from secateur.execution.verb import verb

__all__ = ["check_alone", "error_shares", "errors_alone", "spread"]

_LEAST, _MOST = 0.1, 0.95
"""What a layer loses at least and at most."""


@verb
def error_shares(
    model: nn.Module,
    compensated: Compensated,
    data: Iterable[Any],
    sparsity: float,
    *,
    compare: Callable[[object, object], object] | None = None,
    steepness: float = 6.0,
    progress: Progress | None = None,
) -> dict[str, float]:
    """The share that each layer should lose, so that all of them together change the outputs least; for `PerLayer`.

    Every layer that `compensated` has masked is put into the dense model alone, and the outputs are compared on `data`.
    Prune again with the shares, and compensate again: the second result is what is used.

    Args:
        model: the dense model.
        compensated: the result of `sc.compensate` with the same share in every layer, by
            `solver=sc.LeastSquares(sums=False)` where the model has residual connections: a layer that compensates for
            the errors of others would seem to cause them.
        data: a few batches of inputs; the model runs through them once for every layer.
        sparsity: the share that the masked layers together lose; those whose masks remove nothing do not count.
        compare: what of an output counts, as that of `sc.Tuning`; by default all of it.
        steepness: how fast errors grow: with a sparsity higher by 0.1, `exp(0.1 * steepness)` times.
        progress: called with an `Advance` after every layer.

    Returns:
        A share by layer, which `sc.budget.PerLayer` takes.

    Raises:
        OptionError: for a sparsity outside 0.1..0.95, what a layer may lose, a steepness that is not above 0, or a
            first result in which a layer compensates for the errors of others by a sum.
        NothingToDoError: where no layer is masked.
        NonFiniteError: where outputs hold NaN or infinity; the layer is named.
    """
    if not _LEAST <= sparsity <= _MOST:
        raise OptionError(f"sparsity of error_shares: expected {_LEAST} to {_MOST}, got {sparsity!r}")
    if not 0 < steepness < math.inf:
        raise OptionError(f"steepness of error_shares: expected a number above 0, got {steepness!r}")
    dense = check_dense(plain_model(compensated.model), plain_model(model))
    kept = {name: float(mask.float().mean()) for name, mask in compensated.masks.items() if mask.dim() > 1}
    names = [name for name, share in kept.items() if share < 1]
    if not names:
        raise NothingToDoError("error_shares: the masks remove no weight of a layer; prune first")
    summed = [layer.name for layer in compensated.layers if layer.summed]
    check_alone("error_shares", summed, "solver=sc.LeastSquares(sums=False)")
    options = Tuning(compare=compare)
    with undisturbed(dense, mode="eval"), torch.no_grad():
        batches = read_all("error_shares", data, dense)
        errors = errors_alone("error_shares", dense, compensated.model, batches, names, options, progress)
    sizes = {name: compensated.masks[name].numel() for name in names}
    now = {name: 1 - kept[name] for name in names}
    shares = spread(errors, sizes, now, sparsity, steepness)
    return {name.rpartition(".")[0] or name: share for name, share in shares.items()}


def check_alone(who: str, summed: Sequence[str], option: str) -> None:
    """Raise where layers of a first result compensate for others.

    Args:
        who: The verb, for the message.
        summed: The layers that were solved for a sum.
        option: What leaves sums out.
    """
    if summed:
        more = f" and {len(summed) - 3} more" if len(summed) > 3 else ""
        raise OptionError(
            f"{who}: {', '.join(summed[:3])}{more} compensate for the errors of other layers, which they would "
            f"seem to cause themselves: expected a first result by {option}; make one for {who}, and the final one "
            "without that option"
        )


def errors_alone(
    who: str,
    dense: nn.Module,
    student: nn.Module,
    batches: Sequence[Batch],
    names: Sequence[str],
    options: Tuning,
    progress: Progress | None,
) -> dict[str, float]:
    """The change of the outputs when one layer is the student's, for each of some weights.

    Args:
        who: The verb, for messages.
        dense: The dense model.
        student: A model with the same parameters.
        batches: The inputs.
        names: The weights.
        options: Their `compare` says what of the outputs counts.
        progress: Called after every layer.
    """
    probe = copy.deepcopy(dense).eval()
    goals = [compared(options, dense(*batch.args, **batch.kwargs), batch) for batch in batches]
    errors: dict[str, float] = {}
    began = time.monotonic()
    for place, name in enumerate(names):
        with _borrowed(probe, student, name):
            found = [
                difference(goal, compared(options, probe(*batch.args, **batch.kwargs), batch), batch)
                for goal, batch in zip(goals, batches, strict=True)
            ]
        errors[name] = sum(fetched(found)) / len(found)
        if not math.isfinite(errors[name]):
            raise NonFiniteError(
                f"{who}: with {name!r} alone of the first result the outputs hold NaN or infinity; check the data"
            )
        if progress is not None:
            left = (time.monotonic() - began) / (place + 1) * (len(names) - place - 1)
            progress(Advance("layer", name, place + 1, len(names), left))
    return errors


@contextmanager
def _borrowed(probe: nn.Module, student: nn.Module, name: str) -> Iterator[None]:
    """While the probe has the student's weight, and the bias of the same layer."""
    path = name.rpartition(".")[0]
    ours, theirs = dict(probe.named_parameters()), dict(student.named_parameters())
    parts = [part for part in (name, f"{path}.bias".lstrip(".")) if part in ours]
    own = {part: ours[part].detach().clone() for part in parts}
    for part in parts:
        ours[part].copy_(theirs[part])
    yield
    for part in parts:
        ours[part].copy_(own[part])


def spread(
    errors: Mapping[str, float],
    sizes: Mapping[str, int],
    now: Mapping[str, float],
    sparsity: float,
    steepness: float,
) -> dict[str, float]:
    """The shares of least error in sum, with `sparsity` over all.

    Args:
        errors: The error that each layer causes at its present share.
        sizes: The number of its weights.
        now: Its present share.
        sparsity: The share that all together lose.
        steepness: How fast errors grow with the share.
    """
    least = max(max(errors.values()) * 1e-6, 1e-30)
    wanted = {
        name: now[name] + math.log(sizes[name] / max(error, least)) / steepness
        for name, error in errors.items()
    }
    whole = sum(sizes.values())

    def shares(shift: float) -> dict[str, float]:
        return {name: min(max(value + shift, _LEAST), _MOST) for name, value in wanted.items()}

    low, high = -max(wanted.values()), 1 - min(wanted.values())
    for _ in range(60):  # the sum grows with the shift
        middle = (low + high) / 2
        if sum(share * sizes[name] for name, share in shares(middle).items()) < sparsity * whole:
            low = middle
        else:
            high = middle
    return {name: round(share, 4) for name, share in shares(high).items()}

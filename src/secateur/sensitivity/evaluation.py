"""`MaskedEvaluation`: one evaluation repeated under many masks, in the fastest way that gives the same numbers.

Where the evaluation is batches and the model can be recorded, `ScreenedTop1` counts the correct predictions. Where it
is a function of the model, it is opaque: `PrefixCache` keeps what the model computes before the masked layer, and the
rest runs as it is.

>>> import torch
>>> from secateur.core.masks import Masks
>>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
>>> batches = [(torch.randn(9, 4), torch.randint(0, 2, (9,)))]
>>> half = Masks({"2.weight": torch.arange(16).reshape(2, 8) < 8})
>>> evaluation = Evaluation.of(batches)
>>> with repeated(model, evaluation) as now:
...     dense, found = now.dense(), list(now.values([EvaluationJob(["2.weight"], [("half", half)])]))
>>> name, (share, interval) = found[0]
>>> name, share == top_1(half.apply(model), batches)[0], interval
('half', True, None)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from secateur.core.interrupts import uninterrupted
from secateur.core.masks import Masks
from secateur.errors import DataError, OptionError
from secateur.execution.undisturbed import undisturbed
from secateur.metrics.accuracy import top_1
from secateur.sensitivity.prefix_cache import PrefixCache
from secateur.sensitivity.screened_top1 import ScreenedTop1

__all__ = [
    "Evaluation",
    "EvaluationJob",
    "MaskedEvaluation",
    "Value",
    "repeated",
]

Value = tuple[float, float | None]  # the number, and half of its 95 % interval or None


@dataclass(frozen=True)
class Evaluation:
    """A function of the model, or batches for top-1 of which each value has an `interval` if they are a sample."""

    function: Callable[[nn.Module], float] | None = None
    batches: list[Any] = field(default_factory=list)
    interval: bool = False

    @classmethod
    def of(cls, evaluate: Any, subset: int | None = None) -> Evaluation:
        """From the argument of `scan`: a function, or batches of which the first `subset` examples are taken."""
        if not callable(evaluate):
            return cls(None, _first(evaluate, subset), subset is not None)
        if subset is not None:
            raise OptionError(
                "subset: a function decides itself what it evaluates on; pass batches (inputs, targets) instead of a "
                "function, or let the function take fewer"
            )
        return cls(evaluate)

    def plainly(self, model: nn.Module) -> Value:
        """The value of the unmasked model, computed by running it."""
        if self.function is None:
            return self.share(*top_1(model, self.batches))
        value = float(self.function(model))
        if math.isnan(value):
            raise DataError("scan: evaluate returned NaN; return a finite number for every pruned model")
        return value, None

    def share(self, share: float, count: int) -> Value:
        """A share of counted targets, with its interval if they are a sample."""
        return share, (_half_width(share, count) if self.interval else None)


@dataclass(frozen=True)
class EvaluationJob:
    """Masks over the same parameters, each with the name its value is known by."""

    names: list[str]
    masks: list[tuple[str, Masks]]

    @property
    def rows(self) -> bool:
        """Whether the masks remove only whole rows of one tensor."""
        if len(self.names) != 1:
            return False
        found = [masks[self.names[0]] for _, masks in self.masks]
        flat = [mask.flatten(1) for mask in found if mask.dim() > 1]
        return len(flat) == len(found) and all(bool((m.all(1) | ~m.any(1)).all()) for m in flat)


@contextmanager
def repeated(
    model: nn.Module, evaluation: Evaluation, memory: int = 1 << 30, quick: bool = True
) -> Iterator[MaskedEvaluation]:
    """An evaluation of this model that can be repeated. The model's weights are restored exactly."""
    screened: ScreenedTop1 | str = "quick=False was given"
    with undisturbed(model), torch.no_grad():
        if quick and evaluation.function is None:
            with undisturbed(model, mode="eval"), torch.no_grad():
                screened = ScreenedTop1.of(model, evaluation.batches, memory)
        elif quick:
            screened = "a function of the model decides itself what it runs"
        if isinstance(screened, ScreenedTop1):
            with undisturbed(model, mode="eval"), torch.no_grad():
                yield MaskedEvaluation(model, evaluation, screened, None)
            return
        with PrefixCache(model, memory) as cache:
            yield MaskedEvaluation(model, evaluation, None, cache, screened)


class MaskedEvaluation:
    """What `repeated` yields: the value of the unmasked model, the order of evaluation, and values under masks."""

    def __init__(
        self,
        model: nn.Module,
        evaluation: Evaluation,
        screened: ScreenedTop1 | None,
        cache: PrefixCache | None,
        reason: str = "",
    ):
        self.model = model
        self.evaluation = evaluation
        self.screened = screened
        self.cache = cache
        self.reason = reason

    def dense(self) -> Value:
        """The value of the unmasked model; call it first."""
        if self.cache is not None:
            return self.cache.first(lambda: self.evaluation.plainly(self.model))
        return self.evaluation.plainly(self.model)

    def position(self, names: Sequence[str]) -> int:
        """When the model first uses one of these parameters: jobs in this order share what is kept."""
        if self.screened is not None:
            return self.screened.folded.position(names)
        assert self.cache is not None
        return self.cache.position(names)

    def values(self, jobs: Iterable[EvaluationJob]) -> Iterator[tuple[str, Value]]:
        """Yield the value under each mask as soon as it is computed."""
        for job in jobs:
            if not job.masks:
                continue
            if self.screened is not None:
                way = self.screened.before(job.names, job.rows)
            else:
                assert self.cache is not None
                way = self.cache.before(job.names)
            with way:
                for name, masks in job.masks:
                    yield name, self._masked(masks)

    def _masked(self, masks: Masks) -> Value:
        """The value under these masks; the weights are restored exactly, also after an error."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        saved = {name: parameters[name].detach().clone() for name in masks}
        try:
            masks.apply_(self.model)
            if self.screened is not None:
                count = self.screened.count()
                return self.evaluation.share(count / self.screened.total, self.screened.total)
            assert self.cache is not None
            return self.cache.run(lambda: self.evaluation.plainly(self.model))
        finally:
            _restore(parameters, saved)

    @property
    def peak(self) -> int:
        """The most bytes kept at one time."""
        return self.screened.folded.peak if self.screened is not None else self.cache.peak  # type: ignore[union-attr]

    @property
    def skipped(self) -> int:
        """Steps or module calls answered from memory."""
        return self.screened.folded.skipped if self.screened is not None else self.cache.skipped  # type: ignore

    @property
    def how(self) -> str:
        """How the values were computed, as a sentence."""
        if self.screened is not None:
            return self.screened.summary
        return f"as the model runs, what comes before the layer kept: {self.reason}"


def _first(batches: Iterable[Any], subset: int | None) -> list[Any]:
    """The batches in memory, or as many as hold the first `subset` examples."""
    if subset is None:
        return list(batches)
    if subset < 1:
        raise OptionError(f"subset: expected a number of examples of at least 1, got {subset}")
    taken: list[Any] = []
    left = subset
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise OptionError(
                "subset: expected batches (inputs, targets); for other batches take fewer beforehand"
            )
        inputs, targets = batch[0][:left], batch[1][:left]
        taken.append((inputs, targets))
        left -= len(targets)
        if left <= 0:
            return taken
    raise DataError(f"subset: the data holds {subset - left} examples, asked for {subset}")


def _half_width(share: float, count: int) -> float:
    """Half of Wilson's 95 % interval of a share of `count`; unlike the normal interval it is valid near 0 and 1."""
    z = 1.959963984540054
    return z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))


@uninterrupted
def _restore(parameters: dict[str, nn.Parameter], saved: dict[str, torch.Tensor]) -> None:
    """Put weights back."""
    for name, value in saved.items():
        parameters[name].copy_(value)

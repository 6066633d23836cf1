"""What `compress` is asked and what it gives: `CompressOptions`, `CompressAttempt`, `Compressed`.

>>> CompressOptions(attempts=4).allocation
'uniform'
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite

from torch import nn

from secateur.compensation.tuning import Tuning
from secateur.core.codebook import Codebook
from secateur.core.measurement import Measurement, Measurements
from secateur.core.targets import Pattern
from secateur.criteria import CriterionLike
from secateur.errors import DataError, OptionError
from secateur.lab.display import Progress
from secateur.lab.judging import score_of
from secateur.metrics.accuracy import Evaluate
from secateur.quantize.result import Shared
from secateur.search.frame import Attempt, SearchResult
from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.proof import Proof

__all__ = ["GOALS", "CompressAttempt", "CompressOptions", "Compressed", "check_read_again"]

GOALS = {"fast": "multiply-accumulates", "small": "weights"}
"""What each goal takes away."""


def check_read_again(given: object, name: str) -> None:
    """Refuse what can be read only once, since every attempt reads it.

    Args:
        given: Batches, or a function.
        name: The name of the argument, for the message.
    """
    if isinstance(given, Iterator):
        raise DataError(
            f"{name}: expected batches that can be read again, because every attempt reads them, got "
            f"{type(given).__name__}; give a list or a DataLoader"
        )


@dataclass(frozen=True)
class CompressOptions:
    """How `compress` makes its attempts.

    Args:
        attempts: How many shares to try; with `keep`, for "small", with each number of bits.
        keep: The share that may remain: of the multiply-accumulates ("fast"), or of the bytes of the dense model's
            tensors that the file may take ("small"). The model of that size with the best number is found, by each
            allocation asked for; `lost` is then any, unless it is given. None finds the size by `lost`.
        allocation: For "fast", how a cut is spread over the layers. "uniform" cuts all layers alike; "scan" by the
            sensitivity that a scan measures first, which calls `evaluate` once for each group of channels and level;
            "between" half way between the two; "best" tries one after the other until one holds.
        criterion: How weights are scored; by default "l2" for "fast", and for "small" `obs` with data, else
            "magnitude".
        skip: Patterns of layers that are left alone.
        round_to: For "fast", keep widths at a multiple of this.
        bits: For "small", bits of a shared weight: a number, or several that are tried at each share, the fewest first,
            until one holds.
        tune: Gradient steps without labels after the least squares on `data`: a `Tuning`, or a number of passes.
        test: As `evaluate`, on data that took no part in the search: judges the dense model and the result once, at the
            end.
        plan: Of a model that was cut before, the plan of its cuts (`small.plan`, `found.plan`): counted in the bytes of
            files, and joined with the plan of the result, whose file then loads into a freshly built model.
        progress: True shows on standard error a bar on a terminal, elsewhere a line for every attempt; or a display of
            your own, a `sc.lab.Progress`, whose steps are the attempts.
        on_message: Called with a sentence about every attempt, such as `print`.
        seed: The seed of everything random.

    """

    attempts: int = 6
    keep: float | None = None
    allocation: str = "uniform"
    criterion: CriterionLike | None = None
    skip: Pattern | Sequence[Pattern] | None = None
    round_to: int | None = None
    bits: int | Sequence[int] = (3, 4)
    tune: Tuning | int | None = None
    test: Evaluate | None = None
    plan: ShrinkPlan | None = None
    progress: Progress | bool = False
    on_message: Callable[[str], None] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1:
            raise OptionError(f"attempts: expected at least 1, got {self.attempts!r}")
        number = isinstance(self.keep, int | float) and not isinstance(self.keep, bool)
        if self.keep is not None and not (number and 0.0 < self.keep < 1.0):
            raise OptionError(
                f"keep: expected the share that remains, above 0 and below 1, got {self.keep!r}; for a thirtieth "
                "write 1 / 30"
            )
        if self.allocation not in ("uniform", "scan", "between", "best"):
            raise OptionError(
                f"allocation: expected 'uniform', 'scan', 'between' or 'best', got {self.allocation!r}"
            )
        given = [self.bits] if isinstance(self.bits, int) else self.bits
        whole = isinstance(given, Sequence) and all(type(one) is int and 1 <= one <= 8 for one in given)
        if not given or not whole:
            raise OptionError(f"bits: expected a number from 1 to 8, or several, got {self.bits!r}")
        if self.plan is not None and not isinstance(self.plan, ShrinkPlan):
            raise OptionError(
                f"plan: expected the plan of an earlier cut, such as small.plan, got {type(self.plan).__name__}"
            )
        if not isinstance(self.progress, Progress | bool):
            raise OptionError(
                f"progress: expected True, False or a sc.lab.Progress, got {type(self.progress).__name__}; a function "
                "of a sentence is on_message"
            )
        check_read_again(self.test, "test")

    @property
    def bit_counts(self) -> tuple[int, ...]:
        """The bits of a shared weight that are tried, the fewest first."""
        return (self.bits,) if isinstance(self.bits, int) else tuple(sorted(self.bits))


@dataclass(frozen=True, kw_only=True)
class CompressAttempt(Attempt):
    """One attempt of `compress`.

    Attributes:
        keep: The share that was asked to remain: of the multiply-accumulates ("fast") or weights ("small").
        trained: Whether `retrain` was called.
        bits: For "small", the bits of a shared weight.
        bytes: For "small", the bytes of the file; None where the attempt failed before it was written.
    """

    keep: float
    trained: bool = False
    bits: int | None = None
    bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Compressed(SearchResult[CompressAttempt]):
    """The result of `compress`; `sc.save` takes it like the result of `shrink` or `share`.

    Attributes:
        goal: "fast" or "small". Where `keep` gave the size and `lost` nothing, `limit` is minus infinity.
        model: The best model: for "fast" narrower, for "small" with few distinct weights, most of them zero.
        before: The dense model measured: what `evaluate` gives, parameters, multiply-accumulates, bytes of its file.
        after: The same of the result.
        plan: For "fast", the cut as plain data, which `load` applies to a freshly built model of the class. It begins
            with `CompressOptions.plan`, which for "small" is all of it.
        proof: For "fast", that cutting changed nothing: the small model, before any retraining, against the masked one.
        shared: For "small", the codebooks.
        speed: For "fast", both latencies, read in turns, and `speedup`.
        test: What `CompressOptions.test` gives for the dense model and for the result; empty without it.
    """

    goal: str
    model: nn.Module
    before: Measurements
    after: Measurements
    plan: ShrinkPlan | None = None
    proof: Proof | None = None
    shared: Shared | None = None
    speed: Measurements = field(default_factory=Measurements)
    test: Measurements = field(default_factory=Measurements)

    @property
    def codebooks(self) -> dict[str, Codebook]:
        """The codebooks by tensor name; for "fast" there are none."""
        return {} if self.shared is None else dict(self.shared.codebooks)

    def __str__(self) -> str:
        accepted = (
            f"at least {self.limit:.4f} must hold" if isfinite(self.limit) else "the best of a given size"
        )
        lines = [f"dense {self.dense:.4f} by evaluate; {accepted}"]
        lines += [f"  {one.why}" for one in self.attempts]
        lines.append(
            f"kept: {self.best.keep:.3g} of the {GOALS[self.goal]} at {self.best.accuracy:.4f}"
            + ("" if self.best.bits is None else f" with {self.best.bits} bits")
            + (", retrained" if self.best.trained else "")
        )
        lines += ["", self.after.against(self.before)]
        if self.speed:
            lines.append(f"times as fast: {self.speed['speedup'].text()}")
            lines += [f"  {note}" for note in self.speed["speedup"].notes]
        if self.proof is not None:
            retrained = " before its retraining" if self.best.trained else ""
            lines.append(f"the small model{retrained} is {self.proof}")
        rose = (self.best.accuracy or 0.0) - self.dense
        if not self.best.trained and rose > max(self.dense - self.limit, 0.1 * abs(self.dense)):
            lines.append(
                f"the number rose by {rose:.4g}, although nothing was trained: is more better for evaluate? Of a "
                "loss, return the negative"
            )
        return "\n".join([*lines, self._tested()])

    def _tested(self) -> str:
        if not self.test:
            return (
                f"evaluate chose among {len(self.attempts)} attempts: judge the result once more on data that took no "
                "part (CompressOptions.test)"
            )
        dense, result = (
            row.value for row in (self._judged("dense"), self._judged("result")) if row is not None
        )
        line = f"on the test data, which no decision used: dense {dense:.4f}, result {result:.4f}"
        if dense - result > self.dense - self.limit + 1e-12:
            line += (
                f", so {dense - result:.4f} is lost instead of at most {self.dense - self.limit:g}: "
                "give evaluate more data, or ask for less loss"
            )
        return line

    def _judged(self, variant: str) -> Measurement | None:
        return score_of((row for row in self.test if row.context.get("variant") == variant), "compress")

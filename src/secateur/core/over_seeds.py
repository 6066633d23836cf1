"""What several seeds say together: the mean, its 95 % interval by Student's t, and differences seed by seed.

`compare` judges methods by it, and a report the variants of a sweep.

>>> found = mean_over_seeds([1, 2, 3])  # 4.303 * 1 / sqrt(3)
>>> found.mean, round(found.half, 3)
(2.0, 2.484)
>>> paired({0: 0.9, 1: 0.8}, {1: 0.7, 2: 0.6})
[(0.8, 0.7)]
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = [
    "SeedMean",
    "interval_of",
    "is_seed",
    "is_share",
    "mean_over_seeds",
    "paired",
    "seed_of",
    "seeds_text",
]

_Seed = TypeVar("_Seed")
_SHARES = ("accuracy", "top1", "sparsity")
_NEVER_BELOW_ZERO = ("s", "ms", "us", "x", "bytes", "MAC")  # units of times, ratios and counts


@dataclass(frozen=True)
class SeedMean:
    """A mean over seeds.

    Args:
        mean: The mean; NaN where a value is.
        half: Half of its 95 % interval; NaN with one value.
        values: The value with each seed.
    """

    mean: float
    half: float
    values: tuple[float, ...]

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return self.mean + self.half


def mean_over_seeds(values: Sequence[float]) -> SeedMean:
    """The mean of the values of several seeds, with its 95 % interval of Student's t.

    Args:
        values: One for each seed, at least one.
    """
    own = tuple(float(value) for value in values)
    if any(math.isnan(value) for value in own):
        return SeedMean(math.nan, math.nan, own)
    mean = own[0] if len(set(own)) == 1 else statistics.fmean(own)
    if len(own) < 2:
        return SeedMean(mean, math.nan, own)
    from scipy import stats

    factor = float(stats.t.ppf(0.975, len(own) - 1))
    return SeedMean(mean, factor * statistics.stdev(own) / math.sqrt(len(own)), own)


def is_share(name: str) -> bool:
    """Whether a measured number is a share, which is written in per cent.

    Args:
        name: The measure.

    >>> is_share("accuracy"), is_share("mask_sparsity"), is_share("macs")
    (True, True, False)
    """
    return any(name == word or name.endswith(f"_{word}") for word in _SHARES)


def interval_of(over: SeedMean, name: str, unit: str = "") -> tuple[float, float]:
    """The ends of the 95 % interval of a measure, within what it can be: a share within 0 and 1, a time not below 0.

    Args:
        over: The mean of the measure.
        name: The measure; one given in per cent is no share.
        unit: Its unit.

    >>> wide = mean_over_seeds([0.5, 1])  # 0.75 ± 3.18
    >>> interval_of(wide, "top1"), [round(end, 2) for end in interval_of(wide, "latency", "ms")]
    ((0.0, 1.0), [0.0, 3.93])
    >>> [round(end, 2) for end in interval_of(wide, "score")]
    [-2.43, 3.93]
    """
    share = is_share(name) and all(0 <= value <= 1 for value in over.values)
    positive = unit in _NEVER_BELOW_ZERO and all(value >= 0 for value in over.values)
    low = max(over.low, 0.0) if share or positive else over.low
    return low, min(over.high, 1.0) if share else over.high


def paired(ours: Mapping[_Seed, float], theirs: Mapping[_Seed, float]) -> list[tuple[float, float]]:
    """The two values of every seed that both have.

    Args:
        ours: The value with each seed.
        theirs: The same of what it is compared with.
    """
    return [(value, theirs[seed]) for seed, value in ours.items() if seed in theirs]


def is_seed(key: str) -> bool:
    """Whether a setting is a seed.

    Args:
        key: Its key.

    >>> is_seed("lab.seed"), is_seed("seed"), is_seed("prune.budget")
    (True, True, False)
    """
    return key.rpartition(".")[2] == "seed"


def seed_of(context: Mapping[str, Any]) -> Any:
    """The seed that something was measured with: that of the axis over seeds where there is one, else the recipe's.

    Args:
        context: The context of a Measurement.

    >>> seed_of({"seed": 0, "lab.seed": 2}), seed_of({"seed": 1}), seed_of({})
    (2, 1, 0)
    >>> seed_of({"lab.seed": 2, "data.seed": 5})
    'lab.seed 2, data.seed 5'
    """
    axes = {key: value for key, value in context.items() if is_seed(key) and key != "seed"}
    if len(axes) > 1:
        return ", ".join(f"{key} {value}" for key, value in axes.items())
    return next(iter(axes.values()), context.get("seed", 0))


def seeds_text(settings: Sequence[Mapping[str, Any]], own: object) -> str:
    """The seeds of a run, as people read them.

    Args:
        settings: What the grid sets in each trial.
        own: The recipe's seed, which the trials have where no axis sets one.

    >>> seeds_text([{"lab.seed": 0}, {"lab.seed": 1}, {"lab.seed": 1}], 0), seeds_text([{"a.x": 1}], 3)
    ('0, 1', '3')
    >>> seeds_text([{"data.seed": 4}, {"data.seed": 5}], 0)
    '0; data.seed 4, 5'
    """
    axes: dict[str, dict[str, None]] = {}
    for one in settings:
        for key, value in one.items():
            if is_seed(key):
                axes.setdefault(key, {})[str(value)] = None
    lab = ", ".join(axes.pop("lab.seed", {str(own): None}))
    return "; ".join([lab, *(f"{key} {', '.join(values)}" for key, values in axes.items())])

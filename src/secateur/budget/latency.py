"""Latency: the shrunk model is as fast as asked, measured on the device at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from secateur.budget._contest import Contest, check_share
from secateur.budget._remaining import Path, Remaining, Search, check_keep, meter_of
from secateur.errors import BudgetNotMetError, OptionError

__all__ = ["Latency"]

_CONFIRMED = 3  # times, at most, that a result is read again and searched anew


@dataclass(frozen=True)
class Latency(Remaining):
    """As few channels go as make a forward pass on the example take at most so long.

    `ms` is the limit, or `keep` the share of the dense model's time. Every try really shrinks the model and reads its
    time in turns with the dense one's (`trials` each, on `threads`); times read before of the same widths are used
    again. Zeros in place save no time, so only pieces that leave the model do: granularity "channel" or "head". What
    is found lies within `within` below the limit as measured, unless the next unit back would pass it or `most`
    measurements were made.

    >>> Latency(keep=0.5).within, Latency(ms=2.0).keep
    (0.04, None)
    """

    measured: ClassVar[bool] = True

    ms: float | None = None
    keep: float | None = None
    trials: int = 25
    threads: int | None = None
    spread: str = "per_tensor"
    within: float = 0.04
    most: int = 10

    def __post_init__(self) -> None:
        if (self.ms is None) == (self.keep is None):
            raise OptionError(
                "Latency: give either ms= (the limit) or keep= (the share of the dense time that remains)"
            )
        if self.keep is not None:
            object.__setattr__(self, "keep", check_keep("Latency", self.keep))
        elif isinstance(self.ms, bool) or not isinstance(self.ms, (int, float)) or not self.ms > 0:
            raise OptionError(f"Latency ms: expected a number above 0, got {self.ms!r}")
        if not 0.0 < self.within < 1.0 or self.most < 2 or self.trials < 1:
            raise OptionError(
                f"Latency: expected 0 < within < 1, most of at least 2 and trials of at least 1, got {self}"
            )
        self.check_spread()

    @classmethod
    def at(cls, share: float) -> Latency:
        """What is left of the dense time when this share is gone."""
        return cls(keep=1.0 - (check_share("share", share) or 1e-9))

    def choose(self, contest: Contest) -> dict[str, torch.Tensor]:
        """The choice of the path that is just fast enough."""
        meter = meter_of(contest, self)
        which = 0 if self.ms is not None else 1
        limit = float(self.ms if self.ms is not None else self.keep or 0.0)
        path = Path(contest, self.spread)
        start = meter.time(path.at(0), self.trials, self.threads)
        search = Search(
            path,
            lambda chosen: meter.time(chosen, self.trials, self.threads)[which],
            lambda chosen: meter.remaining("macs", chosen),
            limit,
            self.within,
            self.most,
            start=start[which],
        )
        best = search.run()
        for _ in range(_CONFIRMED):
            # One lucky reading would be found by a search that looks for low ones: what it found is read again.
            if best is None or meter.time(best, self.trials, self.threads, again=True)[which] <= limit:
                break
            search.done.clear()
            best = search.run()
        if best is None:
            unit = "ms" if which == 0 else "of the dense time"
            raise BudgetNotMetError(
                f"{self}: the fastest of {len(search.done)} shrunk models takes {search.least:.4g} {unit} (dense: "
                f"{start[which]:.4g}) and {limit:.4g} was asked; let more layers be pruned, or ask for "
                f"{search.least * 1.02:.3g}. secateur.measure.latency.why tells where the time goes"
            )
        return best

"""Simulated annealing: a whole choice is changed at random, less and less; worse ones are accepted ever more rarely.

Liu et al. 2020, "AutoCompress: An Automatic DNN Structured Pruning Framework"; NNI's `SimulatedAnnealingPruner`. With
sparse training by `admm` afterwards it is AutoCompress.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from secateur.allocation import Allocator, Gone, Space
from secateur.errors import OptionError

__all__ = ["Annealing"]


@dataclass(frozen=True)
class Annealing(Allocator):
    """From equal shares on: change every share by normal noise, move all by one number to fit the limit, accept or not.

    A choice worse by d is accepted with probability exp(-d / temperature). The best one seen is the result.

    Args:
        rounds: Choices that are evaluated.
        magnitude: The standard deviation of the noise in the first round; it falls with the temperature.
        temperature: In the first round, in units of the value.
        cooling: The factor of the temperature from one round to the next.

    >>> space = Space(("a", "b"), (10, 10), (9, 9), lambda g: 1 - sum(g) / 20, lambda g: -g[0] - 3 * g[1], limit=0.6)
    >>> Annealing(rounds=40).search(space, seed=0)
    (8, 0)
    """

    rounds: int = 100
    magnitude: float = 0.35
    temperature: float = 0.02
    cooling: float = 0.97

    def __post_init__(self) -> None:
        if isinstance(self.rounds, bool) or not isinstance(self.rounds, int) or self.rounds < 1:
            raise OptionError(f"rounds: expected a whole number of at least 1, got {self.rounds!r}")
        for name, value in (("magnitude", self.magnitude), ("temperature", self.temperature)):
            if not 0 < value < math.inf:
                raise OptionError(f"{name}: expected a number above 0, got {value}")
        if not 0 < self.cooling <= 1:
            raise OptionError(f"cooling: expected a share 0 < cooling <= 1, got {self.cooling}")

    def search(self, space: Space, seed: int) -> Gone:
        """Try and accept."""
        draw = random.Random(seed)
        gone = best = space.fitted([0.0] * len(space.names))
        heat = 1.0
        for _ in range(self.rounds):
            shares = [
                each / count + draw.gauss(0.0, self.magnitude * heat)
                for each, count in zip(gone, space.counts, strict=True)
            ]
            tried = space.fitted([min(1.0, max(0.0, share)) for share in shares])
            worse = space.value(gone) - space.value(tried)
            if worse <= 0 or draw.random() < math.exp(-worse / (self.temperature * heat)):
                gone = tried
            best = max(best, tried, key=space.value)
            heat *= self.cooling
        return best

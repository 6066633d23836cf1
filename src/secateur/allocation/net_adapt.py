"""NetAdapt: the network becomes cheaper in small steps; at each the list that costs least accuracy gives.

Yang et al. 2018, "NetAdapt: Platform-Aware Neural Network Adaptation for Mobile Applications". Its short fine-tuning of
every proposal is `sc.AllocateOptions(tune=...)`.
"""

from __future__ import annotations

from dataclasses import dataclass

from secateur.allocation import Allocator, Gone, Space
from secateur.errors import OptionError

__all__ = ["NetAdapt"]


@dataclass(frozen=True)
class NetAdapt(Allocator):
    """At each step every list alone makes the step's saving; the proposal of the highest value is taken.

    Args:
        step: What the first step saves, as a share of the dense cost.
        decay: The factor from one step's saving to the next one's.

    >>> cost = lambda gone: 1 - sum(gone) / 20
    >>> space = Space(("a", "b"), (10, 10), (9, 9), cost, lambda g: -g[0] ** 2 - 3 * g[1], limit=0.6)
    >>> NetAdapt(step=0.1, decay=1.0).search(space, seed=0)  # by twos: a for 4, b for 6, 6 and 6
    (2, 6)
    """

    step: float = 0.05
    decay: float = 0.98

    def __post_init__(self) -> None:
        for name, value in (("step", self.step), ("decay", self.decay)):
            if not 0 < value <= 1:
                raise OptionError(f"{name}: expected a share 0 < {name} <= 1, got {value}")

    def search(self, space: Space, seed: int) -> Gone:
        """Take steps until the limit is reached."""
        space.check_reachable()
        gone, step = space.none, self.step
        while not space.fits(gone):
            aim = max(space.limit, space.cost(gone) - step)
            proposals = [found for at in range(len(gone)) if (found := _proposal(space, gone, at, aim))]
            if not proposals:  # no list alone saves so much: all that can still gives a little
                gone = _all_give(space, gone)
                continue
            gone = max(proposals, key=lambda each: (space.value(each), -space.cost(each)))
            step *= self.decay
        space.value(gone)
        return gone


def _proposal(space: Space, gone: Gone, at: int, aim: float) -> Gone | None:
    """The choice in which one list gives as little as brings the cost to the aim; None if it cannot."""

    def with_gone(count: int) -> Gone:
        return (*gone[:at], count, *gone[at + 1 :])

    low, high = gone[at] + 1, space.most[at]
    if low > high or space.cost(with_gone(high)) > aim + 1e-12:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if space.cost(with_gone(middle)) <= aim + 1e-12 else (middle + 1, high)
    return with_gone(low)


def _all_give(space: Space, gone: Gone) -> Gone:
    """The choice in which every list that has units left gives one."""
    return tuple(min(most, each + 1) for each, most in zip(gone, space.most, strict=True))

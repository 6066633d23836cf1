"""`Space`: what a method of allocation may ask about a model.

>>> space = Space(("a", "b"), (4, 4), (3, 3), lambda gone: 1 - sum(gone) / 8, lambda gone: -float(gone[0]), limit=0.5)
>>> space.fitted([0.25, 0.25]), space.cost((2, 2)), space.value((2, 2)), space.tried
((2, 2), 0.5, -2.0, {(2, 2): -2.0})
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from secateur.errors import BudgetNotMetError

__all__ = ["Gone", "Space"]

Gone = tuple[int, ...]
"""A choice: how many units each list loses, in the order of the lists."""

_HALVINGS = 30


class Space:
    """The choices among lists of units, the cost and the value of each, and the limit.

    Args:
        names: The lists, in the model's order.
        counts: The number of units of each.
        most: How many of each may be removed.
        cost: The remaining share of the dense cost; it must not rise as more units are removed.
        value: The value of the model under a choice, the higher the better: slow to evaluate.
        limit: The largest cost allowed.
        losses: For every list the estimated rise of the loss for 1, 2, ... units gone; needed by `grad_nas` alone.

    Attributes:
        tried: The value of every choice that was evaluated, in order.
    """

    def __init__(
        self,
        names: Sequence[str],
        counts: Sequence[int],
        most: Sequence[int],
        cost: Callable[[Gone], float],
        value: Callable[[Gone], float],
        limit: float,
        losses: Callable[[], Sequence[Sequence[float]]] | None = None,
    ):
        self.names, self.counts, self.most, self.limit = tuple(names), tuple(counts), tuple(most), limit
        self.tried: dict[Gone, float] = {}
        self.losses = losses
        self._cost, self._value = cost, value
        self._costs: dict[Gone, float] = {}

    @property
    def none(self) -> Gone:
        """The choice that removes nothing."""
        return (0,) * len(self.names)

    def cost(self, gone: Gone) -> float:
        """The share of the dense cost that remains.

        Args:
            gone: A choice.
        """
        if gone not in self._costs:
            self._costs[gone] = self._cost(gone)
        return self._costs[gone]

    def fits(self, gone: Gone) -> bool:
        """Whether a choice is within the limit.

        Args:
            gone: A choice.
        """
        return self.cost(gone) <= self.limit + 1e-12

    def value(self, gone: Gone) -> float:
        """The value of the model; evaluated once for each choice.

        Args:
            gone: A choice.
        """
        if gone not in self.tried:
            self.tried[gone] = self._value(gone)
        return self.tried[gone]

    def alone(self, at: int, count: int) -> Gone:
        """The choice in which one list alone loses units.

        Args:
            at: The place of the list.
            count: How many of its units leave.
        """
        return (*self.none[:at], min(count, self.most[at]), *self.none[at + 1 :])

    def rounded(self, shares: Sequence[float]) -> Gone:
        """The choice nearest to a share of each list, as far as the lists allow it.

        Args:
            shares: The share that each list loses.
        """
        return tuple(
            max(0, min(most, round(share * count)))
            for share, count, most in zip(shares, self.counts, self.most, strict=True)
        )

    def fitted(self, shares: Sequence[float]) -> Gone:
        """The choice within the limit that has all shares moved by one number, up or down, and no further than needed.

        Args:
            shares: The share that each list loses.

        Raises:
            BudgetNotMetError: Removing all units that may be removed is not enough.
        """
        self.check_reachable()
        low, high = -1.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if self.fits(self.rounded([share + middle for share in shares])):
                high = middle
            else:
                low = middle
        return self.rounded([share + high for share in shares])

    def check_reachable(self) -> None:
        """Raise a `BudgetNotMetError` if the limit cannot be met at all."""
        least = self.cost(self.most)
        if not self.fits(self.most):
            raise BudgetNotMetError(
                f"allocate: expected to keep at most {self.limit:.4f} of the cost, got {least:.4f} with all removed "
                f"that may be; keep at least {least:.4f}, or let more layers take part (only, skip, at_least)"
            )

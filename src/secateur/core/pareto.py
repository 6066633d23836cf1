"""The Pareto front: of points with several numbers each, those that no other point beats."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["pareto_front"]


def pareto_front(points: Sequence[Sequence[float]]) -> list[int]:
    """Find the points that no other beats; larger is better in every number.

    A point beats another when it is at least as good in every number and better in one. Equal points do not beat each
    other, so all of them are kept. To minimise a number, give it with its sign changed.

    Args:
        points: The points, all with the same count of numbers.

    Returns:
        The positions of the points on the front, in ascending order.

    >>> accuracy_and_bytes = [(0.98, -900), (0.97, -500), (0.96, -600)]
    >>> pareto_front(accuracy_and_bytes)
    [0, 1]
    """

    front: list[int] = []
    # A point that beats another comes before it in descending order, and one on the front beats it too.
    for at in sorted(range(len(points)), key=lambda at: tuple(points[at]), reverse=True):
        if not any(_beats(points[best], points[at]) for best in front):
            front.append(at)
    return sorted(front)


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    gains = [a - b for a, b in zip(one, other, strict=True)]
    return min(gains) >= 0 and max(gains) > 0

"""Lloyd's iteration on sorted weights: cut half way between centroids, move each to the mean of its cluster, repeat.

>>> import numpy as np
>>> from secateur.quantize.sorted_weights import SortedWeights
>>> lloyd(SortedWeights(np.array([0.0, 1.0, 9.0, 11.0])), np.array([0.0, 1.0]), iterations=100).tolist()
[0.5, 10.0]
"""

from __future__ import annotations

import numpy as np

from secateur.quantize.sorted_weights import Floats, Ints, SortedWeights

__all__ = ["lloyd"]


def lloyd(data: SortedWeights, centroids: Floats, iterations: int) -> Floats:
    """Iterate until no centroid moves.

    A centroid without weights is moved to the weight farthest from its own centroid, which can only lower the squared
    error; so every round lowers it, and the iteration ends.

    Args:
        data: The weights.
        centroids: Where to begin.
        iterations: The most rounds.

    Returns:
        The centroids, in ascending order.
    """
    centroids = np.sort(centroids)
    before: Ints | None = None
    for _ in range(iterations):
        edges = data.edges(centroids)
        counts = edges[1:] - edges[:-1]
        if not counts.all():
            moved = _refill(data, edges, counts, centroids)
            if moved is None:
                break
            centroids, before = moved, None
            continue
        if before is not None and (edges == before).all():
            break
        before = edges
        centroids = data.means(edges)
    return centroids


def _refill(data: SortedWeights, edges: Ints, counts: Ints, centroids: Floats) -> Floats | None:
    """Put empty centroids on the weights farthest from their own; None where every weight is on its centroid."""
    full = np.flatnonzero(counts)
    empty = np.flatnonzero(counts == 0)
    # On a line the farthest weight of a cluster is one of its two ends.
    ends = np.concatenate([data.values[edges[full]], data.values[edges[full + 1] - 1]]).astype(np.float64)
    away = np.abs(ends - np.concatenate([centroids[full], centroids[full]]))
    order = np.argsort(-away, kind="stable")[: empty.size]
    order = order[away[order] > 0]
    if not order.size:
        return None
    centroids = centroids.copy()
    centroids[empty[: order.size]] = ends[order]
    return np.sort(centroids)

"""The Pareto front: nothing on it is beaten, everything off it is, and equal points stay."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.core.pareto import pareto_front


def beats(one, other):
    return all(a >= b for a, b in zip(one, other)) and any(a > b for a, b in zip(one, other))


def test_a_front_worked_out_by_hand():
    points = [(1, 9), (2, 5), (1, 5), (2, 5), (0, 10), (0, 9)]
    assert pareto_front(points) == [0, 1, 3, 4]
    assert pareto_front([]) == []
    assert pareto_front([(3.0,), (3.0,), (2.0,)]) == [0, 1]


@pytest.mark.parametrize("numbers", [1, 2, 3, 4])
def test_the_front_is_what_comparing_every_pair_gives(numbers):
    points = [tuple(p) for p in np.random.default_rng(numbers).integers(0, 5, (60, numbers)).tolist()]
    every = [at for at, one in enumerate(points) if not any(beats(other, one) for other in points)]
    assert pareto_front(points) == every


def test_points_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="zip"):
        pareto_front([(1, 2), (1,)])

"""Schedules: their levels against the published formulas, and their errors."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import secateur as sc
from secateur.core import schedule as schedules
from secateur.errors import OptionError

SCHEDULES = st.one_of(
    st.just(sc.OneShot()),
    st.integers(1, 30).map(sc.Iterative),
    st.tuples(st.integers(1, 30), st.floats(0.5, 5)).map(
        lambda pair: sc.Gradual(steps=pair[0], power=pair[1])
    ),
    st.integers(1, 120).map(sc.Exponential),
)


@given(SCHEDULES, st.floats(0, 0.9999))
def test_levels_never_fall_and_end_exactly_at_the_share(schedule: Any, final: float) -> None:
    levels = schedule.levels(final)
    assert levels[-1] == final
    assert all(earlier <= later + 1e-12 for earlier, later in pairwise(levels))
    assert all(0 <= level < 1 for level in levels)


def test_synflows_density_falls_by_the_same_factor_every_round() -> None:
    left = [1.0] + [1 - level for level in sc.Exponential(100).levels(1 - 10**-2)]
    assert len(left) == 101
    assert all(later / earlier == pytest.approx(0.01**0.01) for earlier, later in pairwise(left))


def test_zhu_and_guptas_cubic() -> None:
    start, end, steps = 0.2, 0.9, 7
    wanted = [end + (start - end) * (1 - k / steps) ** 3 for k in range(1, steps + 1)]
    assert sc.Gradual(start, end, steps).levels() == pytest.approx(wanted)
    assert sc.Gradual(start, end, steps).levels(0.9) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: sc.Iterative(0), "Iterative steps: expected a whole number of at least 1, got 0"),
        (lambda: sc.Iterative((0.5, 1.0)), "each level of Iterative is the share removed: .* got 1.0"),
        (lambda: sc.Iterative((0.5, 0.4)), "Iterative levels must not fall, because masks only grow"),
        (lambda: sc.Iterative("3"), "expected a number of rounds or a list of levels, got '3'"),
        (lambda: sc.Gradual(0.5, 0.4), "Gradual: end 0.4 lies below start 0.5"),
        (lambda: sc.Gradual(0.5).levels(0.4), "above the final sparsity 0.4"),
        (lambda: sc.Gradual(power=0), "Gradual power: expected a number above 0, got 0"),
        (lambda: sc.Gradual(end=0.5).levels(0.6), "ends at 0.5, but the budget asks for 0.6"),
        (lambda: sc.Exponential(1.5), "Exponential rounds: expected a whole number of at least 1, got 1.5"),
        (lambda: sc.OneShot().levels(), "has no end of its own; give the final sparsity"),
        (lambda: sc.OneShot().levels(1.0), "sparsity is the share removed"),
        (lambda: schedules.make(0.5), "schedule: expected OneShot"),
    ],
)
def test_errors(make: Any, text: str) -> None:
    with pytest.raises(OptionError, match=text.replace("(", r"\(")):
        make()

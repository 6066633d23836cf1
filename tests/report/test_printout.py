"""Two printouts beside each other: stretches that did not change are folded; readings and ratios of reports."""

from __future__ import annotations

from secateur.core.measurement import Measurement as M
from secateur.core.measurement import Measurements
from secateur.report.printout import Pair, folded
from secateur.report.reading import rows_of
from secateur.report.summary import comparison


def same(text: str) -> list[Pair]:
    return [Pair("same", letter, letter) for letter in text]


def test_short_stretches_stay_and_long_ones_become_one_line() -> None:
    changed = Pair("changed", "x", "y")
    shown = folded([*same("abc"), changed, *same("defg"), changed, *same("h")], around=0)
    assert [pair.before for pair in shown] == ["a", "b", "c", "x", "4 lines that are the same", "x", "h"]


def test_lines_near_a_change_are_shown() -> None:
    shown = folded([*same("abcdef"), Pair("added", "", "y"), *same("ghijkl")], around=1)
    assert [pair.after for pair in shown] == [
        "5 lines that are the same", "f", "y", "g", "5 lines that are the same",
    ]  # fmt: skip


def test_a_setting_above_one_is_no_sparsity() -> None:
    """Then the share removed is that of the weights: 1 - 25 / 100."""
    context = {"trial": 0, "sparsity": 1.5}
    rows = rows_of(Measurements([M("params", 100, context=context), M("nonzeros", 25, context=context)]))
    assert [row.removed for row in rows] == [0.75]


def test_times_smaller_is_dense_bytes_over_those_of_the_variant() -> None:
    rows = [
        M("file_bytes", size, "bytes", context={"variant": variant})
        for variant, size in (("dense", 1000), ("shared", 400))
    ]
    (line,) = [line for line in comparison(Measurements(rows)).lines if line.name == "times smaller on disk"]
    assert line.cells == (("1.00×", 1.0), ("2.50×", 2.5))

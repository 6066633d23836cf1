"""The table that run and sweep print: one row a variant, of several seeds the means."""

from __future__ import annotations

from secateur.core.measurement import Measurement, Measurements
from secateur.lab.tables import summary
from secateur.report.reading import rows_of
from secateur.report.variants import over_seeds

GRID = {"prune.budget": (0.5, 0.9), "lab.seed": (0, 1)}


def measured(seeds: int) -> Measurements:
    rows = []
    for trial, (budget, seed) in enumerate((b, s) for b in (0.5, 0.9) for s in range(seeds)):
        at = {"trial": trial, "prune.budget": budget, "lab.seed": seed, "step": "measure"}
        rows.append(Measurement("accuracy", 0.8 + 0.1 * seed, context={**at, "variant": "dense"}))
        rows.append(Measurement("accuracy", 1 - budget + 0.2 * seed, context={**at, "variant": "small"}))
        rows.append(Measurement("macs", 100, "MAC", context={**at, "variant": "small"}))
    return Measurements(rows)


def test_trials_that_differ_by_the_seed_alone_are_one_row_and_the_dense_model_stands_once():
    head, rows = summary(measured(2), GRID)
    assert head == ["prune.budget", "variant", "seeds", "accuracy", "macs"]
    # 12.706 * 0.0707 / sqrt(2) = 0.635 and twice that, within what an accuracy can be
    assert rows == [
        ["", "dense", "2", "0.85 [0.2147, 1]", ""],
        ["0.5", "small", "2", "0.6 [0, 1]", "100 MAC"],
        ["0.9", "small", "2", "0.2 [0, 1]", "100 MAC"],
    ]


def test_one_seed_is_shown_trial_by_trial():
    head, rows = summary(measured(1), {"prune.budget": (0.5, 0.9), "lab.seed": (0,)})
    assert head == ["prune.budget", "lab.seed", "variant", "accuracy", "macs"]
    assert len(rows) == 4


def test_a_seed_whose_trial_failed_is_said_to_be_missing():
    """The last trial failed after its dense model was measured."""
    found = [m for m in measured(2) if (m.context["trial"], m.context["variant"]) != (3, "small")]
    _, rows = summary(Measurements(found), GRID)
    assert [row[:3] for row in rows] == [
        ["", "dense", "2"],
        ["0.5", "small", "2"],
        ["0.9", "small", "1 of 2"],
    ]


def test_two_criteria_with_the_same_numbers_keep_a_row_each():
    rows = []
    for trial, (criterion, seed) in enumerate((c, s) for c in ("l1", "l2") for s in (0, 1)):
        at = {"trial": trial, "prune.criterion": criterion, "lab.seed": seed, "step": "measure"}
        rows += [Measurement("macs", macs, "MAC", context={**at, "variant": variant})
                 for variant, macs in (("dense", 100), ("small", 50))]  # fmt: skip
    _, shown = summary(Measurements(rows), {"prune.criterion": ("l1", "l2"), "lab.seed": (0, 1)})
    assert [row[:2] for row in shown] == [["", "dense"], ["l1", "small"], ["l2", "small"]]


def test_terminal_and_report_have_the_same_interval_and_no_time_below_zero():
    rows = []
    for seed, (share, time) in enumerate([(0.5, 1.0), (1.0, 4.0)]):
        at = {"trial": seed, "lab.seed": seed, "seed": seed, "variant": "small", "step": "measure"}
        rows.append(Measurement("validation_accuracy", share, context=at))
        rows.append(Measurement("latency", time, "ms", context=at))
    _, ((_, _, accuracy, latency),) = summary(Measurements(rows), {"lab.seed": (0, 1)})
    (row,) = over_seeds(rows_of(rows))
    assert accuracy == "0.75 [0, 1]"
    assert latency == "2.5 ms [0, 21.56]"
    assert row.values["validation_accuracy"].spread == {"low": 0.0, "high": 1.0}
    assert (row.values["latency"].spread["low"], round(row.values["latency"].spread["high"], 2)) == (0, 21.56)

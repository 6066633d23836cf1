"""The table that run and sweep print: one row a variant, of several seeds the means."""

from __future__ import annotations

from secateur.core.measurement import Measurement, Measurements
from secateur.lab.tables import summary

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

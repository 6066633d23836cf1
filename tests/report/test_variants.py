"""Sweeps over seeds are judged by the mean: three seeds by hand, of which the luckiest would have been within a point.

| seed | dense | small | change |
|---|---|---|---|
| 0 | 25 % | 20 % | −5 |
| 1 | 21 % | 21 % | 0: this one alone is within a point |
| 2 | 26 % | 19 % | −7 |
| mean | 24 % | 20 % | −4, and ± 4.3027 * sqrt(13) / sqrt(3) = 8.957 |
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from secateur.core.measurement import Measurement as M
from secateur.core.measurement import Measurements
from secateur.report.charts.network import network
from secateur.report.charts.pareto import pareto
from secateur.report.page import Report
from secateur.report.reading import rows_of
from secateur.report.run import Run
from secateur.report.summary import Tile, comparison, headline, tiles
from secateur.report.variants import (
    change_of,
    of_one_trial,
    over_seeds,
    result_trials,
    seeds_of,
    settled,
    smallest_near,
)

DENSE = (0.25, 0.21, 0.26)
SMALL = (0.20, 0.21, 0.19)
NEAR = (0.245, 0.205, 0.255)  # of criterion b: half a point below with every seed
HALF = 4.302652729911275 * math.sqrt(13) / math.sqrt(3) / 100


def one(trial: int, seed: int, criterion: str, variant: str, accuracy: float, macs: int) -> list[M]:
    at = {
        "trial": trial,
        "variant": variant,
        "step": "measure",
        "seed": seed,
        "lab.seed": seed,
        "prune.criterion": criterion,
    }
    layers = [{"name": "fc", "kind": "Linear", "width": macs, "inputs": 1, "parameters": macs, "group": ""}]
    return [
        M("accuracy", accuracy, context=at),
        M("macs", macs, "MAC", context=at),
        M("architecture", 1, context={**at, "text": "", "layers": layers}),
    ]


def swept(near: bool = True, seeds: tuple[int, ...] = (0, 1, 2)) -> Measurements:
    """Criterion a by the table above; with `near` also b, which costs more. The dense models are shared by both."""
    rows: list[M] = []
    chosen = [("a", SMALL, 20), ("b", NEAR, 50)][: 2 if near else 1]
    for at, (criterion, small, macs) in enumerate(chosen):
        for seed in seeds:
            trial = 3 * at + seed
            rows += one(trial, seed, criterion, "dense", DENSE[seed], 100)
            rows += one(trial, seed, criterion, "small", small[seed], macs)
    return Measurements(rows)


def test_the_luckiest_seed_is_not_the_headline() -> None:
    said = headline(swept())
    assert said == (
        "6 trials (2 settings, 3 seeds each); the smallest within one point of the dense model by its mean over the "
        "seeds is b · small: 2.0 times fewer multiply-accumulates (100 → 50), accuracy 24.00 % → 23.50 % "
        "(−0.50 points [−0.50, −0.50], 3 seeds)"
    )


def test_one_setting_over_seeds_is_the_means_and_none_is_picked() -> None:
    assert headline(swept(near=False)) == (
        "means over 3 seeds: 5.0 times fewer multiply-accumulates (100 → 20), accuracy 24.00 % → 20.00 % "
        "(−4.00 points [−12.96, +4.96], 3 seeds)"
    )
    assert tiles(swept(near=False)) == [
        Tile("accuracy, mean of 3 seeds", "20.00 %", "−4.00 points [−12.96, +4.96], from 24.00 %"),
        Tile("multiply-accumulates", "20", "5.0 times fewer, from 100"),
    ]


def test_differences_are_paired_seed_by_seed() -> None:
    rows = {row.label: row for row in over_seeds(rows_of(swept()))}
    assert list(rows) == ["dense", "a · small", "b · small"]
    change = change_of(rows["a · small"], "accuracy")
    assert change is not None
    assert change.values == pytest.approx((-0.05, 0.0, -0.07))
    assert (change.mean, change.half) == pytest.approx((-0.04, HALF))
    assert rows["a · small"].reference is rows["dense"]
    # The seeds differ much, and b from dense by half a point with each: paired, its interval is no wider than nothing.
    steady = change_of(rows["b · small"], "accuracy")
    assert steady is not None
    assert (steady.mean, steady.half) == pytest.approx((-0.005, 0.0))
    assert rows["b · small"].values["accuracy"].spread["high"] > 0.29


def test_a_seed_that_is_missing_is_missing_of_the_dense_model_too() -> None:
    """Of a with seeds 0 and 2, the dense model of seed 1 is no part of what it is compared with."""
    found = [m for m in swept() if m.context["trial"] != 1]
    row = next(row for row in over_seeds(rows_of(found)) if row.label == "a · small")
    assert row.reference is not None
    assert row.reference.number("accuracy") == pytest.approx((0.25 + 0.26) / 2)
    change = change_of(row, "accuracy")
    assert change is not None
    assert change.mean == pytest.approx(-0.06)


def test_one_lucky_trial_beside_means_is_named_by_its_seed_and_not_judged() -> None:
    found = [m for m in swept() if m.context["trial"] not in (0, 2)]  # of a only the lucky seed is left
    rows = over_seeds(rows_of(found))
    lucky = next(row for row in rows if row.label.startswith("a · small"))
    assert (lucky.label, seeds_of(lucky)) == ("a · small · seed 1", 1)
    assert lucky not in settled(rows)
    best = smallest_near(rows)
    assert best is not None
    assert best.label == "b · small"
    (figure,) = pareto(Measurements(found))
    assert {row[0]: row[4] for row in figure.table.rows}["a · small · seed 1"] == "of fewer seeds"


def test_a_diverged_seed_makes_the_mean_diverge() -> None:
    found = [
        M(m.name, math.nan, context=m.context) if (m.name, m.context["trial"]) == ("accuracy", 4) else m
        for m in swept()
        if m.context["variant"] == "small" or m.context["trial"] != 4
    ]
    row = next(row for row in over_seeds(rows_of(found)) if row.label == "b · small")
    assert row.number("accuracy") is None
    assert row.values["accuracy"].notes == ("diverged with 1 of 3 seeds",)
    assert "none came within one point" in headline(Measurements(found))


def test_table_chart_tiles_and_sentence_have_the_same_numbers() -> None:
    report = Report([Run("sweep", swept())])
    head, rows = report.tables()["summary"]
    table = {str(row[0]): dict(zip(head[1:], row[1:])) for row in rows}
    assert table["seeds"] == {**dict.fromkeys(("dense", "b · small", "a · small"), 3.0)} | {
        "definition": "how many trials, which differ only by their seed, a column is the mean of"
    }
    (figure,) = pareto(report.measurements)
    drawn = {row[0]: row for row in figure.table.rows}
    assert figure.table.head[5:] == ("95 % low", "95 % high", "seeds")
    for name, accuracy, change in (
        ("dense", 0.24, None),
        ("b · small", 0.235, -0.005),
        ("a · small", 0.2, -0.04),
    ):
        assert table["accuracy"][name] == pytest.approx(accuracy)
        assert drawn[name][3] == pytest.approx(accuracy)
        assert table["change of accuracy"][name] == (None if change is None else pytest.approx(change))
        assert drawn[name][5:] == (
            pytest.approx(table["accuracy, 95 % low"][name]),
            pytest.approx(table["accuracy, 95 % high"][name]),
            3,
        )
    assert table["change of accuracy, 95 % low"]["a · small"] == pytest.approx(-0.04 - HALF)
    assert len(figure.table.rows) == 3
    assert tiles(report.measurements)[0].value == "23.50 %"
    assert comparison(report.measurements).of == 3


def test_the_picture_is_of_the_headlines_trial_and_names_its_seed() -> None:
    found = swept()
    assert result_trials(found) == [("", 3)]
    (figure,) = network(found)
    assert figure.title == "The network before and after of trial 4 (b, seed 0)"
    assert figure.table.rows == (("fc", "Linear", 100, 50, ""),)
    own = of_one_trial([m for m in found if m.name == "architecture"], found)
    assert {m.context["trial"] for m in own} == {3}


def test_rows_of_single_trials_say_their_seed_where_seeds_vary() -> None:
    labels = [row.label for row in rows_of(swept())]
    assert labels[:2] == ["a · dense · seed 0", "a · small · seed 0"]
    assert [row.label for row in rows_of(swept(seeds=(0,)))][:2] == ["a · dense", "a · small"]


def test_the_dense_model_of_another_seed_is_no_reference() -> None:
    """Dense models measured in trials of their own: each variant is compared with the one of its seed."""
    rows = [m for seed in (0, 1) for m in one(seed, seed, "a", "dense", DENSE[seed], 100)]
    rows += [m for seed in (0, 1) for m in one(2 + seed, seed, "a", "small", SMALL[seed], 20)]
    found = [row.reference for row in rows_of(rows) if row.variant == "small"]
    assert [row.number("accuracy") for row in found if row is not None] == [0.25, 0.21]


def test_trials_of_one_seed_are_never_taken_for_seeds() -> None:
    """Two trials that are alike in all that is known of them stay two."""
    rows = [m for trial in (0, 1) for m in one(trial, 0, "a", "small", 0.2 + trial / 10, 20)]
    assert [row.number("accuracy") for row in over_seeds(rows_of(rows))] == [0.2, pytest.approx(0.3)]


def repeated(number: int, seed: int, lr: float = 0.1) -> Run:
    recipe = {"name": "r", "lab": {"seed": seed}, "step": [{"kind": "train", "lr": lr}]}
    at = {"trial": 0, "step": "measure", "seed": seed}
    rows = [
        M(name, value, context={**at, "variant": variant})
        for variant, good, macs in (("dense", DENSE[seed], 100), ("small", SMALL[seed], 20))
        for name, value in (("accuracy", good), ("macs", macs))
    ]
    return Run(f"r #{number}", Measurements(rows), provenance={"recipe": recipe})


def test_runs_repeated_with_other_seeds_are_one() -> None:
    report = Report([repeated(1 + seed, seed) for seed in (0, 1, 2)])
    assert report.headline == headline(swept(near=False))
    assert report.title == "r #1 and r #2 and r #3"
    assert tiles(report.measurements) == tiles(swept(near=False))


@pytest.mark.parametrize(
    "other",
    [
        {"device": "cuda"},
        {"hardware": {"cpu": "another"}},
        {"versions": {"torch": "9"}},
        {"versions": {"secateur": "9"}},
    ],
)
def test_runs_of_other_machines_or_versions_are_no_seeds_of_each_other(other: dict[str, object]) -> None:
    def at(number: int, seed: int, **changed: object) -> Run:
        run = repeated(number, seed)
        same = {
            "device": "cpu",
            "hardware": {"cpu": "one", "visible_gpus": str(seed)},
            "versions": {"numpy": str(seed)},
        }
        return replace(run, provenance={**run.provenance, **same, **changed})

    assert Report([at(1, 0), at(2, 1)]).headline.startswith("means over 2 seeds")
    assert Report([at(1, 0), at(2, 1, **other)]).headline.startswith("r #1: ")


def in_run(name: str, found: Measurements) -> list[M]:
    return [replace(m, context={**m.context, "run": name}) for m in found]


def test_a_run_of_one_seed_is_judged_beside_one_of_three() -> None:
    found = Measurements([*in_run("three", swept()), *in_run("one", swept(seeds=(1,)))])
    rows = [row for row in over_seeds(rows_of(found)) if row.run == "one"]
    assert len(rows) == 3
    assert len(settled(over_seeds(rows_of(found)))) == 3 + len(rows)
    assert any(label.startswith("one · a · small") for label in comparison(found).head)


def test_a_missing_seed_is_said() -> None:
    """Of seed 0 the trial failed after its dense model was measured."""
    found = Measurements(
        m for m in swept(near=False) if (m.context["variant"], m.context["trial"]) != ("small", 0)
    )
    said = headline(found)
    assert said.startswith("3 trials (1 setting, 3 seeds); ")
    (seeds, *_), head = comparison(found).lines, comparison(found).head
    assert dict(zip(head, seeds.cells)) == {"dense": ("3", 3.0), "small": ("2 of 3", 2.0)}
    near = Measurements(m for m in swept() if (m.context["variant"], m.context["trial"]) != ("small", 3))
    assert headline(near).endswith("(−0.50 points [−0.50, −0.50], 2 of 3 seeds)")
    assert headline(near).startswith("6 trials (2 settings, 3 seeds each); ")


def test_settings_are_counted_where_a_trial_gave_the_dense_model_alone() -> None:
    kept = [(0, "dense"), (0, "small"), (1, "dense"), (1, "small"), (3, "dense")]
    found = Measurements(m for m in swept() if (m.context["trial"], m.context["variant"]) in kept)
    assert headline(found).startswith("3 trials (2 settings, 1 to 2 seeds each); ")


def test_the_dense_model_of_one_other_seed_gives_no_interval() -> None:
    rows = one(0, 0, "a", "dense", DENSE[0], 100)
    rows += [m for seed in (1, 2) for m in one(seed, seed, "a", "small", SMALL[seed], 20)]
    found = Measurements(rows)
    row = next(row for row in over_seeds(rows_of(found)) if row.variant == "small")
    change = change_of(row, "accuracy")
    assert change is not None
    assert change.mean == pytest.approx(-0.05)
    assert math.isnan(change.half)
    line = next(line for line in comparison(found).lines if line.name == "change of accuracy")
    assert line.definition == (
        "difference of the mean from the dense model, which has no such seed, so that there is no interval"
    )
    assert [text for text, _ in line.cells] == ["", "−5.00 points"]
    assert "of the same seed" in next(
        line.definition for line in comparison(swept()).lines if line.name == "change of accuracy"
    )


def test_runs_of_other_recipes_or_of_the_same_seed_stay_apart() -> None:
    for other in (repeated(2, 1, lr=0.2), repeated(2, 0)):
        assert Report([repeated(1, 0), other]).headline.startswith("r #1: ")

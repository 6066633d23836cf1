"""What a variant is compared with: never with itself, nor with what was not measured."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from secateur.core.measurement import Measurement as M
from secateur.core.measurement import Measurements
from secateur.report import Report, Run
from secateur.report.charts.layer_bars import layer_bars
from secateur.report.charts.network import network
from secateur.report.charts.parallel import parallel
from secateur.report.charts.pareto import pareto
from secateur.report.charts.speed_sparsity import speed_sparsity
from secateur.report.reading import rows_of
from secateur.report.summary import Tile, comparison, headline, tiles
from secateur.report.trials import trials_table

TENSORS = {"conv1.weight": 800, "fc.weight": 200}


def trial(
    number: int, criterion: str, *, accuracy: float = 0.4, dense: Sequence[str] = (), against: str = "train"
) -> list[M]:
    """What a store holds of train, measure where `dense` names measures, prune, shrink, pack and measure."""
    at = {"trial": number, "prune.criterion": criterion}

    def one(step: str, variant: str, name: str, value: float, **more: object) -> M:
        return M(name, value, context={**at, "step": step, "variant": variant}, **more)  # type: ignore[arg-type]

    known = {"accuracy": 0.9, "params": 1000, "nonzeros": 1000, "macs": 5000, "size": 4000}
    layers = {"params": {"per_layer": TENSORS}, "nonzeros": {"per_layer": TENSORS}}
    rows = [one("measure", "dense", name, known[name], **layers.get(name, {})) for name in dense]
    kept = {name: count // 4 for name, count in TENSORS.items()}
    rows += [
        one("prune", "prune", "mask_sparsity", 0.75),
        one("shrink", "shrink", "proof_error", 1e-16),
        one("pack", "pack", "file_bytes", 300 + number),
        one("measure", "small", "accuracy", accuracy),
        one("measure", "small", "params", 250, per_layer=kept),
        one("measure", "small", "nonzeros", 250, per_layer=kept),
        one("measure", "small", "macs", 1250),
        one("measure", "small", "size", 1000),
        one("measure", against, "latency", 2.0),
        one("measure", "small", "latency", 1.0),
        one("measure", "small", "speedup", 2.0, unit="x", spread={"low": 1.9, "high": 2.1}),
    ]
    return rows


ALL = ("accuracy", "params", "nonzeros", "macs", "size")


def swept(**more: object) -> Measurements:
    return Measurements(
        row
        for number, criterion in enumerate(("l2", "random"))
        for row in trial(number, criterion, **more)  # type: ignore[arg-type]
    )


def test_a_sweep_without_a_dense_accuracy_compares_none_with_another() -> None:
    said = headline(swept())
    assert said == (
        "2 trials, accuracy 40.00 %; the accuracy of the dense model was not measured, so none is compared with it: "
        "add a measure step labelled dense after training"
    )
    assert tiles(swept()) == []


def test_a_sweep_with_a_dense_model_compares_each_trial_with_it() -> None:
    said = headline(swept(dense=ALL, accuracy=0.895, against="dense"))
    assert said.startswith(
        "2 trials; the smallest within one point of the dense model is l2 · small: 13.3 times smaller"
    )
    assert said.endswith("2.00 times as fast [1.90, 2.10], accuracy 90.00 % → 89.50 % (−0.50 points)")
    far = headline(swept(dense=ALL, against="dense"))
    assert far == "2 trials; none came within one point of the dense model (accuracy 90.00 %)"


def test_a_dense_model_without_accuracy_is_no_reference_for_it() -> None:
    said = headline(swept(dense=("params", "size")))
    assert "the accuracy of the dense model was not measured" in said
    assert "within" not in said


def test_one_trial_timed_against_its_training_shows_the_small_model() -> None:
    found = Measurements(trial(0, "l2"))
    assert headline(found) == (
        "2.00 times as fast [1.90, 2.10], accuracy of small 40.00 %; the accuracy of train was not measured: "
        "add a measure step after it"
    )
    assert tiles(found) == [
        Tile("accuracy", "40.00 %", "of train not measured"),
        Tile("times as fast", "2.00×", "95 % between 1.90 and 2.10"),
        Tile("bytes on disk", "300", "of train not measured"),
        Tile("multiply-accumulates", "1,250", "of train not measured"),
    ]
    assert "times smaller on disk" not in [line.name for line in comparison(found).lines]


def test_the_headline_is_the_last_variant_with_an_accuracy() -> None:
    rows = trial(0, "l2", dense=ALL, against="dense")
    rows.append(M("latency", 1.0, "ms", context={"trial": 0, "variant": "exported", "step": "measure"}))
    assert headline(Measurements(rows)).endswith("accuracy 90.00 % → 40.00 % (−50.00 points)")


def test_another_model_that_it_was_timed_against_is_named() -> None:
    found = Measurements(trial(0, "l2", dense=ALL, against="pruned"))
    assert "2.00 times as fast as pruned [1.90, 2.10]" in headline(found)
    assert tiles(found)[1].name == "times as fast as pruned"


def test_a_lone_variant_is_named() -> None:
    def one(variant: str) -> str:
        return headline(Measurements([M("latency", 2.0, "ms", context={"variant": variant})]))

    assert one("dense") == "only the dense model was measured: latency, median 2 ms"
    assert one("small") == "only small was measured: latency, median 2 ms"


@pytest.mark.parametrize(("dense", "removed"), [((), ""), (ALL, "75.0 %")])
def test_what_was_cut_out_is_a_share_of_the_dense_model_or_unknown(
    dense: tuple[str, ...], removed: str
) -> None:
    table = trials_table(swept(dense=dense))
    shares = (
        {row[1].text: row[table.head.index("removed")].text for row in table.rows}
        if "removed" in table.head
        else {}
    )
    assert shares.get("small", "") == removed


def test_zeros_of_a_masked_model_are_counted_in_it() -> None:
    at = {"variant": "pruned", "trial": 0}
    (row,) = rows_of([M("params", 100, context=at), M("nonzeros", 25, context=at)])
    assert row.removed == 0.75
    (row,) = rows_of(
        [M("params", 25, context=at), M("nonzeros", 25, context=at)]
    )  # cut, or dense: nobody knows
    assert row.removed is None


def test_a_model_measured_before_it_was_pruned_lost_nothing() -> None:
    at = {"trial": 0, "prune.budget": 0.5, "step": "measure"}
    rows = [M(name, 100, context={**at, "variant": "trained"}) for name in ("params", "nonzeros")]
    rows.append(M("mask_sparsity", 0.5, context={**at, "variant": "prune", "step": "prune"}))
    rows += [
        M(name, n, context={**at, "variant": "pruned"}) for name, n in (("params", 100), ("nonzeros", 50))
    ]
    assert [row.removed for row in rows_of(rows)] == [0.0, 0.5]


def test_layers_are_a_share_of_their_own_dense_model() -> None:
    assert [figure.name for figure in layer_bars(swept())] == []
    figure = next(one for one in layer_bars(swept(dense=ALL)) if one.name == "layer-sparsity")
    assert {row[2] for row in figure.table.rows if row[1] != "dense"} == {0.75}


def test_what_was_packed_is_not_the_dense_model() -> None:
    rows = [M("accuracy", 0.9, context={"variant": "dense", "step": "measure"})]
    rows.append(M("file_bytes", 100, "bytes", context={"variant": "pack", "step": "pack"}))
    found = rows_of(rows)
    assert [(row.variant, sorted(row.values)) for row in found] == [
        ("dense", ["accuracy"]),
        ("pack", ["file_bytes"]),
    ]
    assert "of pack was not measured" in headline(Measurements(rows))


def test_the_file_belongs_to_the_variant_measured_not_to_the_one_beside_it() -> None:
    rows = [row for row in trial(0, "l2") if row.name in ("file_bytes", "latency", "speedup")]
    assert {row.variant: sorted(row.values) for row in rows_of(rows)} == {
        "train": ["latency"],
        "small": ["file_bytes", "latency", "speedup"],
    }


def test_the_lines_of_a_sweep_are_the_small_models() -> None:
    rows = [
        row
        for number, name in enumerate(("l1", "l2", "random"))
        for row in trial(number, name, accuracy=number / 10)
    ]
    (figure,) = parallel(Measurements(rows))
    assert [row[-1] for row in figure.table.rows] == [0.0, 0.1, 0.2]


def test_times_over_sparsity_name_what_they_were_timed_against() -> None:
    rows = [
        M(name, value, context={"trial": t, "variant": variant, "sparsity": 0.5 + t / 5})
        for t in (0, 1)
        for name, variant, value in (
            ("latency", "train", 2.0),
            ("latency", "small", 1.0),
            ("speedup", "small", 2.0),
        )
    ]
    (figure,) = speed_sparsity(Measurements(rows))
    assert "times as fast as train" in str(figure.chart.to_dict())
    assert "in turns with train" in figure.definition


def test_the_network_says_of_which_trial_it_is() -> None:
    layers = [{"name": "conv1", "kind": "Conv2d", "width": 8, "inputs": 3, "parameters": 9, "group": ""}]
    small = [{**layers[0], "width": 4}]
    drawn = [
        M(
            "architecture",
            1,
            context={"trial": 1, "variant": variant, "text": f"{own[0]['width']}", "layers": own},
        )
        for variant, own in (("dense", layers), ("shrunk", small))
    ]
    found = Measurements([*swept(dense=ALL), *drawn])
    assert network(found)[0].title == "The network before and after of trial 2 (random)"
    assert ">print(model), before and after of trial 2 (random)<" in Report([Run("one", found)]).html()
    assert network(Measurements(drawn))[0].title == "The network before and after"  # the only trial


def test_labels_of_points_lie_neither_on_each_other_nor_on_the_axis() -> None:
    spec = pareto(swept(dense=ALL))[0].spec()
    layers = [layer for layer in spec["layer"] if layer["mark"]["type"] == "text"]
    texts = {(layer["mark"]["align"], layer["mark"]["dy"]): str(layer["transform"]) for layer in layers}
    assert "'l2 · dense': 'dense'" in texts["right", -14].replace(
        '"', "'"
    )  # the two dense models are one point
    assert "random · dense" not in str(texts)
    assert {align for align, _ in texts} == {"left", "right"}  # at the ends of the axis none is in the middle
    assert {dy for align, dy in texts if align == "left"} == {-14, 18}  # two at nearly one place


def test_a_table_wider_than_its_place_shows_that_it_goes_on() -> None:
    html = Report([Run("one", swept(dense=ALL))]).html()
    rule = html[html.index(".scroll{") :].partition("}")[0]
    assert rule.count("local") == 2  # a cover at each end of the table, over a shadow that stays at the edge
    assert rule.count("no-repeat scroll") == 2

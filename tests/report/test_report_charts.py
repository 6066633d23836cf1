"""Every chart from hand-made Measurements: what is drawn, what is counted, what is left out."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur.core.measurement import Measurement as M
from secateur.core.measurement import Measurements
from secateur.errors import UnknownNameError
from secateur.metrics import measure
from secateur.report import charts
from secateur.report.charts.accuracy_sparsity import accuracy_sparsity
from secateur.report.charts.latency import latency
from secateur.report.charts.layer_bars import layer_bars
from secateur.report.charts.network import network
from secateur.report.charts.pareto import front
from secateur.report.drawing import DrawnLayer, draw_network
from secateur.report.files import figure_svg
from secateur.report.reading import rows_of

spec = importlib.util.spec_from_file_location("report_samples", Path(__file__).with_name("report_samples.py"))
assert spec is not None
assert spec.loader is not None
samples = sys.modules.setdefault("report_samples", importlib.util.module_from_spec(spec))
if not hasattr(samples, "sweep"):
    spec.loader.exec_module(samples)


def test_every_chart_draws_something_from_the_full_set() -> None:
    found = samples.everything()
    for name in charts.names():
        if name in (
            "accuracy_sparsity",
            "speed_sparsity",
            "methods",
            "parallel",
        ):  # one trial is no curve, and no comparison
            continue
        assert charts.chart(name, found), name
    assert charts.chart("accuracy_sparsity", samples.sweep(72).measurements)
    (figure,) = charts.chart("parallel", samples.sweep(72).measurements)
    assert figure.table.head == ("trial", "criterion", "budget", "non-zero MACs", "accuracy")
    assert [row[:4] for row in figure.table.rows[:2]] == [(1, "l1", 0.1, 8100.0), (2, "l2", 0.1, 8100.0)]
    timed = [M("speedup", 2.0 + t, "x", context={"trial": t, "sparsity": 0.5 + t / 5}) for t in range(2)]
    assert charts.chart("speed_sparsity", Measurements(timed))
    compared = [
        M(what, 0.9, context={"method": m}) for m in ("l2", "random") for what in ("accuracy", "macs")
    ]
    assert charts.chart("methods", Measurements(compared))


def test_every_chart_is_silent_on_nothing_and_on_a_lone_number() -> None:
    for found in (Measurements(), Measurements([M("accuracy", 0.9, context={"variant": "dense"})])):
        assert charts.draw(found) == []


def test_every_figure_has_title_definition_text_alternative_and_numbers() -> None:
    figures = charts.draw(samples.everything())
    assert len({figure.name for figure in figures}) == len(figures) >= 14
    for figure in figures:
        assert figure.title
        assert figure.definition
        assert figure.alt.endswith(".")
        assert figure.table.rows
        assert all(len(row) == len(figure.table.head) for row in figure.table.rows)


def test_unknown_chart() -> None:
    with pytest.raises(UnknownNameError, match="unknown chart 'paretto': did you mean 'pareto'"):
        charts.chart("paretto", Measurements())


def test_front_leaves_out_what_is_beaten_and_keeps_the_first_of_equals() -> None:
    points = [(4.0, 0.9), (2.0, 0.9), (2.0, 0.8), (1.0, 0.5), (3.0, 0.7), (2.0, 0.9)]
    assert front(points) == [3, 1]
    assert front([(1.0, 3.0), (2.0, 1.0), (3.0, 2.0)], lower_is_better=True) == [0, 1]


def test_spread_over_seeds_is_lowest_to_highest() -> None:
    figure = charts.chart("accuracy_sparsity", samples.sweep(72).measurements)[0]
    rows = [row for row in figure.table.rows if row[0] == "l1 · pruned" and row[1] == 0.1]
    values = [
        item.value
        for item in samples.sweep(72).measurements
        if item.name == "accuracy"
        and item.context["prune.criterion"] == "l1"
        and item.context["prune.budget"] == 0.1
        and item.context["variant"] == "pruned"
    ]
    assert len(values) == 2
    assert rows[0][2:] == (pytest.approx(sum(values) / 2), min(values), max(values), 2)


def test_a_diverged_value_is_drawn_nowhere() -> None:
    nan = float("nan")
    found = Measurements(
        M(name, value, context={"variant": variant})
        for variant, accuracy, size in (("dense", 0.9, 10), ("a", nan, 5), ("b", 0.8, 2))
        for name, value in (("accuracy", accuracy), ("size", size))
    )
    (figure,) = charts.draw(found)
    assert [row[0] for row in figure.table.rows] == ["dense", "b"]


def test_what_was_packed_belongs_to_the_next_measured_variant() -> None:
    at = {"trial": 0}
    rows = rows_of(
        [
            M("size", 100, context={**at, "variant": "dense", "step": "measure"}),
            M("file_bytes", 10, context={**at, "variant": "pack", "step": "pack"}),
            M("size", 50, context={**at, "variant": "file", "step": "measure"}),
        ]
    )
    assert [(row.variant, row.bytes) for row in rows] == [("dense", 100), ("file", 10)]


def test_times_of_another_moment_are_not_set_beside_each_other() -> None:
    rows = {row.variant: row for row in rows_of(samples.everything())}
    assert "latency" not in rows["shrunk"].values
    assert {"latency", "speedup"} <= set(rows["file"].values)
    assert "speedup" in rows["shrunk"].values


def test_measures_for_charts_on_a_model_worked_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(8, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.0, -3.0]).reshape(2, 1, 1, 1))
        model[2].weight.fill_(0.5)
    found = measure(
        model,
        torch.ones(1, 1, 2, 2),
        what=["weight_histogram", "filter_sums", "activation_histogram"],
        bins=2,
    )
    of = {(m.name, m.context["layer"]): m for m in found}
    assert of["weight_histogram", "0.weight"].context["counts"] == [1, 0]
    assert of["weight_histogram", "0.weight"].context["zeros"] == 1
    assert of["filter_sums", "0.weight"].context["sums"] == [0.0, 3.0]
    assert of["filter_sums", "0.weight"].value == 1
    # the second filter gives four times -3, the first nothing: zeros apart
    assert of["activation_histogram", "0"].context["counts"] == [4, 0]
    assert of["activation_histogram", "0"].context["zeros"] == 4
    assert of["activation_histogram", "2"].value == 2
    assert "weight_histogram" not in measure(model, torch.ones(1, 1, 2, 2), repetitions=1).names()


def test_coupled_layers_share_a_group_and_a_colour() -> None:
    from secateur import models

    model = models.build("resnet20")
    found = measure(model, torch.zeros(1, 3, 16, 16), what=["architecture"])
    groups = {layer["name"]: layer["group"] for layer in found["architecture"].context["layers"]}
    assert groups["layer1.0.conv2"] == groups["layer1.1.conv2"] != ""
    assert groups["layer1.0.conv1"] == ""  # free: nothing else loses its channels
    drawn = network(found)[0].chart
    assert drawn.count("hsl(") == sum(1 for group in groups.values() if group)


def test_resnet101_is_drawn_in_rows_that_fit() -> None:
    from secateur import models

    with torch.device("meta"):
        model = models.build("resnet101")
    figure = network(measure(model, what=["architecture"]))[0]
    assert len(figure.table.rows) == 105
    assert len(set(figure.table.head)) == len(
        figure.table.head
    )  # of one model too, columns have names of their own
    height = int(figure.chart.split('height="')[1].split('"')[0])
    assert height < 1800
    assert 'width="820"' in figure.chart


def test_a_figure_as_a_file_is_svg_in_the_light_theme() -> None:
    for figure in charts.draw(samples.everything()):
        if figure.name in ("pareto-bytes", "network", "weight-histograms"):
            svg = figure_svg(figure)
            assert svg.startswith("<svg")
            assert "#ffffff" in svg
            assert "var(" not in svg


def test_the_network_before_and_after_is_of_one_trial():
    """Two trials of different sparsity: the picture compares neither with the other."""

    def layers(width: int) -> list[dict[str, object]]:
        return [
            {
                "name": "conv1",
                "kind": "Conv2d",
                "width": width,
                "inputs": 1,
                "parameters": width,
                "group": "g",
            }
        ]

    def rows(trial: int, width: int) -> list[M]:
        return [
            M(
                "architecture",
                1,
                context={"trial": trial, "variant": variant, "text": "", "layers": layers(w)},
            )
            for variant, w in (("dense", 16), ("shrunk", width))
        ]

    (figure,) = network(Measurements([*rows(0, 11), *rows(1, 6)]))
    assert figure.table.rows == (("conv1", "Conv2d", 16, 11, "g"),)
    assert figure.alt == "1 layers, 1 coupled group; 5 of 16 units were removed."
    assert figure.title == "The network before and after"
    # Without a dense variant anywhere, nothing of one trial is compared with another's.
    (figure,) = network(Measurements([rows(0, 11)[1], rows(1, 6)[1]]))
    assert figure.table.rows == (("conv1", "Conv2d", 11, 11, "g"),)


def test_a_loss_rises():
    found = [
        M("loss", value, context={"trial": trial, "variant": "pruned", "sparsity": sparsity})
        for trial, (sparsity, value) in enumerate([(0.5, 1.0), (0.9, 2.0)])
    ]
    assert accuracy_sparsity(Measurements(found))[0].title == "Loss rises as sparsity rises"


@pytest.mark.parametrize(
    ("curves", "title"),
    [
        ({"l1": (0.9, 0.7), "l2": (0.8, 0.6)}, "Accuracy falls as sparsity rises"),
        ({"l1": (0.7, 0.9), "l2": (0.6, 0.8)}, "Accuracy rises as sparsity rises"),
        ({"l1": (0.7, 0.9), "l2": (0.8, 0.6)}, "Accuracy against sparsity"),
        ({"l1": (0.7, 0.7), "l2": (0.8, 0.6)}, "Accuracy against sparsity"),
    ],
)
def test_the_title_says_what_the_curves_do(curves, title):
    (figure, *_) = accuracy_sparsity(over_sparsity(curves))
    assert figure.title == title


def over_sparsity(curves: dict[str, tuple[float, float]]) -> Measurements:
    return Measurements(
        M(
            "accuracy",
            value,
            context={"trial": 2 * t + k, "variant": "pruned", "criterion": name, "sparsity": s},
        )
        for t, (name, values) in enumerate(curves.items())
        for k, (s, value) in enumerate(zip((0.5, 0.9), values))
    )


def test_curves_on_each_other_are_dashed_differently_and_named():
    (figure, *_) = accuracy_sparsity(over_sparsity({"l1": (0.9, 0.7), "l2": (0.9, 0.7), "fpgm": (0.8, 0.6)}))
    assert "On each other lie: l1 · pruned and l2 · pruned." in figure.definition
    (lines,) = [layer for layer in figure.spec()["layer"] if layer["mark"].get("type") == "line"]
    forms = lines["encoding"]["strokeDash"]["scale"]
    assert len({str(form) for form in forms["range"]}) == len(forms["domain"]) == 3


def test_no_legend_is_wider_than_the_page():
    names = [f"structured, convolutions and Linear layers {k}" for k in range(9)]
    (figure, *_) = accuracy_sparsity(over_sparsity(dict.fromkeys(names, (0.9, 0.7))))
    (lines,) = [layer for layer in figure.spec()["layer"] if layer["mark"].get("type") == "line"]
    assert lines["encoding"]["color"]["legend"]["columns"] == 2
    width = int(figure_svg(figure).split('viewBox="0 0 ')[1].split()[0].split(".")[0])
    assert width < 1000


def timed(settings: list[dict[str, object]]) -> Measurements:
    rows = []
    for trial, one in enumerate(settings):
        context = {"trial": trial, "variant": "retrained", **one}
        rows += [
            M("latency", 4.0, "ms", trials=(4.0, 4.1), context={**context, "variant": "dense"}),
            M("latency", 2.0, "ms", trials=(2.0, 2.1), context=context),
            M("speedup", 2.0, "x", trials=(2.0, 2.0), spread={"low": 1.9, "high": 2.1}, context=context),
        ]
    return Measurements(rows)


def test_times_are_named_by_criterion_and_sparsity():
    settings = [{"criterion": c, "sparsity": s, "epochs": 3} for c in ("l1", "l2") for s in (0.3, 0.9)]
    readings, paired = latency(timed(settings))
    wanted = ["l1 · 0.3 · retrained", "l1 · 0.9 · retrained", "l2 · 0.3 · retrained", "l2 · 0.9 · retrained"]
    assert [row[0] for row in paired.table.rows] == wanted
    assert list(dict.fromkeys(row[0] for row in readings.table.rows))[:2] == [
        "dense beside l1 · 0.3 · retrained",
        "l1 · 0.3 · retrained",
    ]
    assert paired.spec()["layer"][1]["encoding"]["y"]["axis"]["labelLimit"] >= 6 * max(map(len, wanted))
    assert [row[0] for row in latency(timed(settings * 4))[1].table.rows][4] == "l1 · 0.3 · retrained (2)"


def test_layer_sparsity_shows_every_criterion_at_one_sparsity():
    rows = []
    for trial, (criterion, sparsity) in enumerate(
        [("random", 0.5), ("random", 0.9), ("snip", 0.5), ("snip", 0.9), ("synflow", 0.5)]
    ):
        context = {"trial": trial, "variant": "pruned", "criterion": criterion, "sparsity": sparsity}
        layers = {"fc1.weight": sparsity, "fc2.weight": sparsity / 2}
        rows.append(M("mask_sparsity", sparsity, context=context, per_layer=layers))
    (figure,) = layer_bars(Measurements(rows))
    assert figure.name == "layer-sparsity"
    shown = {row[1]: row[2] for row in figure.table.rows if row[0] == "fc1.weight"}
    assert shown == {"random · 0.5 · pruned": 0.5, "snip · 0.5 · pruned": 0.5, "synflow · 0.5 · pruned": 0.5}


def test_stacked_histograms_have_three_labelled_axes():
    found = [
        figure
        for figure in charts.chart("weight_histograms", samples.everything())
        if figure.name.endswith("stacked")
    ]
    spec = found[0].spec()["spec"]
    areas, frequency = spec["layer"]
    assert areas["encoding"]["x"]["axis"]["title"] == "weight"
    assert areas["encoding"]["y"]["axis"]["title"] == "layer"
    assert areas["encoding"]["y"]["axis"]["values"][:2] == [0, 0.34]
    assert areas["encoding"]["y"]["scale"]["domain"] == frequency["encoding"]["y"]["scale"]["domain"]
    svg = figure_svg(found[0])
    right = [float(x) for x, words in re.findall(r'translate\(([\d.]+),[\d.]+\)"[^>]*>(50%|0%)<', svg)]
    assert len(right) == 2 * len({row[1] for row in found[0].table.rows})
    assert min(right) == spec["width"] + 4  # right of each variant, not among its histograms
    for layer in samples.LAYERS[:-1]:
        assert f">{layer}.weight<" in svg or f">{layer}<" in svg
    assert ">weight<" in svg
    assert ">frequency<" in svg


def test_histograms_of_a_model_without_a_variants_name_are_drawn():
    """Without a name in the scale of colours the areas had no colour, and the chart was empty."""
    shown = Measurements(measure(nn.Linear(8, 4, bias=False), what=["weight_histogram"]))
    ridges, _ = charts.chart("weight_histograms", shown)
    assert ridges.spec()["spec"]["encoding"]["color"]["scale"]["domain"] == ["model"]


def test_shared_weights_are_bars_at_their_values():
    layer = nn.Linear(8, 4, bias=False)
    dense = measure(layer, what=["weight_histogram"])["weight_histogram"]
    assert "levels" not in dense.context
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([-0.5, 0.25]).repeat(16).reshape(4, 8))
    shared = measure(layer, what=["weight_histogram"])["weight_histogram"]
    assert shared.context["levels"] == [[-0.5, 16], [0.25, 16]]
    found = Measurements([replace(shared, context={**shared.context, "variant": "shared", "trial": 0})])
    spec = charts.chart("weight_histograms", found)[0].spec()
    (row,) = spec["data"]["values"]
    half = 1.0 / 160  # bars of one eightieth of the range, -0.5 to 0.5
    assert row["x"] == pytest.approx(
        [-0.5 - half] * 2 + [-0.5 + half] * 2 + [0.25 - half] * 2 + [0.25 + half] * 2, abs=1e-4
    )
    assert row["h"] == [0, 1.0, 1.0, 0] * 2
    assert spec["spec"]["mark"]["interpolate"] == "linear"


def test_a_drawn_layer_is_as_wide_as_what_remains_and_groups_have_hues_apart() -> None:
    layers = [DrawnLayer(f"conv{k}", "Conv2d", 16, 4, group) for k, group in enumerate("abcd")]
    picture = draw_network(layers)
    assert picture.count('width="154.0" height="10" class="gone"') == 4  # the widest fills its box
    assert picture.count('width="38.5" height="10" class="kept"') == 4  # 4 of 16
    assert re.findall(r"hsl\((\d+),", picture) == ["0", "138", "275", "53"]  # 137.508 degrees further each


def test_of_many_layers_and_variants_as_many_are_drawn_as_can_be_read() -> None:
    rows = [
        M(
            "weight_histogram",
            1,
            context={"variant": f"v{v}", "layer": f"l{k}", "low": -1, "high": 1, "counts": [1]},
        )
        for v in range(9)
        for k in range(30)
    ]
    rows.append(replace(rows[0], context={**rows[0].context, "trial": 1, "layer": "of another trial"}))
    stacked = charts.chart("weight_histograms", Measurements(rows))[1]
    assert (
        len(stacked.table.rows) == 15 * 7
    )  # every second layer, so that 24 suffice, of the first seven variants
    assert {row[0] for row in stacked.table.rows} == {f"l{k}" for k in range(0, 30, 2)}


@pytest.mark.parametrize(("count", "labels"), [(6, True), (7, False)])
def test_points_of_a_trade_off_are_named_where_they_are_few(count: int, labels: bool) -> None:
    rows = []
    for k in range(count):
        where = {"variant": f"v{k}", "trial": k}
        rows += [
            M("accuracy", 0.9 + k / 100, context=where),
            M("size", 100 * (k + 1), "bytes", context=where),
        ]
    found = next(f for f in charts.draw(Measurements(rows)) if f.name.startswith("pareto"))
    marks = [layer["mark"]["type"] for layer in found.spec()["layer"]]
    assert marks[:2] == ["line", "point"]
    assert set(marks[2:]) == ({"text"} if labels else set())


def test_the_fastest_is_the_highest_median_not_the_narrowest_interval() -> None:
    rows = [
        M(
            "speedup",
            value,
            "x",
            context={"variant": "small", "trial": k, "sparsity": s},
            spread={"low": low, "high": 9.0},
        )
        for k, (s, value, low) in enumerate([(0.5, 2.0, 1.9), (0.9, 3.0, 1.0)])
    ]
    (figure,) = charts.chart("speed_sparsity", Measurements(rows))
    assert "the fastest is small at sparsity 0.90 with 3.00" in str(figure)


def test_a_cell_of_filters_has_its_sum_to_four_decimals_and_its_place_among_them():
    item = M("filter_sums", 1, context={"layer": "fc", "sums": [0.123456, 0.0, 0.25]})
    first, zero, last = importlib.import_module("secateur.report.charts.filter_sums")._cells(item)
    assert (first["sum"], first["share"], first["from"], first["to"]) == (0.1235, 0.494, 0.0, 0.3333)
    assert (zero["zero"], zero["filters"]) == (True, "1")
    assert (last["sum"], last["to"], last["zero"]) == (0.25, 1.0, False)

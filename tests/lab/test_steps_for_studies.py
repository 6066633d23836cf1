"""What the published studies need of steps: collapses counted before training, biases in the count, time to test."""

from __future__ import annotations

import pytest

from secateur import models, studies
from secateur.core.measurement import Measurement, Measurements
from secateur.errors import CollapseError, RecipeError, UnknownNameError
from secateur.lab.engine import run
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store
from secateur.report.charts.sensitivity import sensitivity
from secateur.studies.published import PublishedFigure
from secateur.studies.study import Study, TableColumn, TableSpec
from secateur.studies.tables import tabulate

TEXT = """
[data]
name = "digits"
limit = 60
[model]
name = "fc"
[lab]
threads = 1
[[step]]
kind = "prune"
criterion = "synflow"
budget = {name = "overall", sparsity = 0.9}
allow_collapse = true
[[step]]
kind = "measure"
what = ["accuracy", "macs", "testing_time"]
bias = true
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("steps"))


def test_a_collapse_is_counted_and_named_before_any_training(store: Store) -> None:
    found = run(Recipe.parse(TEXT), store).measurements["collapsed_layers"]
    assert found.value == 6  # one round of SynFlow takes the whole first layer
    assert list(found.per_layer) == ["fc1.weight", "fc2", "fc3", "fc4", "fc5", "fc6"]
    assert found.notes[0] == "fc1.weight: nothing is left of it"
    with pytest.raises(CollapseError, match=r"nothing is left of 'fc1\.weight'"):
        run(Recipe.parse(TEXT, ["prune.allow_collapse=false"]), store)


@pytest.mark.parametrize("cure", ["prune.at_most=0.99", 'prune.schedule={name = "exponential", rounds = 10}'])
def test_a_floor_or_rounds_cure_it(store: Store, cure: str) -> None:
    found = run(Recipe.parse(TEXT, [cure]), store).measurements
    assert found["collapsed_layers"].value == 0
    assert found["mask_sparsity"].value == pytest.approx(0.9, abs=1e-5)


def test_both_counts_the_weights_alone_too(store: Store) -> None:
    found = run(Recipe.parse(TEXT, ["measure.bias=both", "prune.at_most=0.99"]), store).measurements
    widths = [100, 100, 100, 100, 100, 10]  # a bias for each
    assert found["macs"].value - found["weight_macs"].value == sum(widths)
    kept = found["weight_macs_nonzero"].per_layer
    assert found["macs_nonzero"].per_layer == {name: kept[name] + width for name, width in zip(kept, widths)}
    assert found["weight_macs"].value == 784 * 100 + 4 * 100 * 100 + 100 * 10


def test_the_scale_without_training_has_all_criteria_and_the_shuffled_control() -> None:
    found = {part.name: recipe for part, recipe in studies.read("at-init-vgg16").recipes("counts")}
    assert len(found["main"].trials()) + len(found["grasp"].trials()) == 7 * 6
    kinds = {step.kind() for recipe in found.values() for _, trial in recipe.trials() for step in trial.steps}
    assert kinds == {"measure", "prune"}
    said = {settings["criterion"] for settings, _ in found["main"].trials()}
    assert said == {"random", "snip", "snip-shuffled", "synflow", "synflow-once", "magnitude, untrained"}


def test_biases_are_counted_and_what_remains_is_of_the_whole_model(store: Store) -> None:
    found = run(Recipe.parse(TEXT), store).measurements
    assert found["macs"].value == 119_910
    assert found["macs_nonzero"].value == 11_940 + 510  # a bias starts from other than zero
    assert found["remaining"].value == pytest.approx(100 * (11_940 + 510) / 119_910, rel=1e-12)
    plain = run(Recipe.parse(TEXT, ["measure.bias=false"]), store).measurements
    assert plain["macs"].value == 119_400


def test_the_time_to_test_is_the_median_of_its_readings(store: Store) -> None:
    found = run(Recipe.parse(TEXT), store).measurements["testing_time"]
    assert found.value == sorted(found.trials)[1] > 0
    assert "the 60 test images" in found.definition
    with pytest.raises(UnknownNameError, match="did you mean 'testing_time'"):
        run(Recipe.parse(TEXT.replace("testing_time", "testing_tim")), store)


def test_two_scans_are_two_pairs_of_figures_and_a_shared_one_is_drawn_once() -> None:
    def scan(trial: int, kind: str, value: float) -> list[Measurement]:
        said = {"trial": trial, "variant": "scan", "step": "scan", "kind": kind, "metric": "accuracy"}
        return [
            Measurement("scan_value", number, context={**said, "layer": layer, "sparsity": sparsity})
            for layer, sparsity, number in (("", 0.0, 0.9), ("a", 0.5, value))
        ]

    both = Measurements([*scan(0, "filter", 0.7), *scan(1, "kernel", 0.8), *scan(2, "kernel", 0.8)])
    figures = sensitivity(both)
    assert [figure.name for figure in figures] == [
        "sensitivity-filter", "sensitivity-filter-each", "sensitivity-kernel", "sensitivity-kernel-each",
    ]  # fmt: skip
    assert [row[2] for row in figures[0].table.rows] == [0.9, 0.7]
    assert figures[2].title.endswith("· kernel")


def test_a_scale_may_leave_a_step_out() -> None:
    text = """
    title = "Small"
    [[step]]
    kind = "train"
    [[part]]
    name = "sweep"
    [[part.step]]
    kind = "prune"
    [scale.given]
    about = "weights of one's own"
    without = ["train"]
    [scale.wrong]
    about = "a misspelt step"
    without = ["trian"]
    """
    study = Study.parse(text, "small")
    assert [step.label for step in study.recipes("given")[0][1].steps] == ["prune"]
    with pytest.raises(RecipeError, match="there is no step 'trian' to leave out: did you mean 'train'"):
        study.recipes("wrong")


def test_a_column_shows_as_many_decimals_as_it_is_told_and_compares_by_them() -> None:
    found = Measurements([Measurement("remaining", 23.954186, "%", context={"trial": 0, "kind": "kernel"})])
    spec = TableSpec(title="t", rows=("kind",), columns=(TableColumn(name="remaining", digits=4),))
    made = tabulate(spec, found, [PublishedFigure(name="remaining", value=23.9542, where={"kind": "kernel"})])
    assert made.rows == [("kernel", "23.9542 %", "23.9542", "0")]
    other = tabulate(
        spec, found, [PublishedFigure(name="remaining", value=23.9539, where={"kind": "kernel"})]
    )
    assert other.rows[0][3].startswith("+0.000286")


def test_the_small_vgg12_keeps_its_form() -> None:
    model = models.build("vgg12", width=8)
    assert [
        conv.out_channels for name, conv in model.features.named_children() if name.startswith("conv")
    ] == [width for width in (8, 16, 32, 64) for _ in range(3)]


def test_a_figure_of_the_whole_model_is_not_one_of_its_layers() -> None:
    whole = PublishedFigure(name="macs", value=30, where={"variant": "dense"})
    layer = PublishedFigure(name="macs", value=10, where={"variant": "dense", "layer": "fc1"})
    assert whole.fits("macs", {"variant": "dense"})
    assert not whole.fits("macs", {"variant": "dense", "layer": "fc1"})
    assert layer.fits("macs", {"variant": "dense", "layer": "fc1"})


def test_a_faint_signal_is_measured_before_training_and_rescaling_brings_it_back(store: Store) -> None:
    random = ["prune.criterion=random", "prune.budget.sparsity=0.95"]
    faint = run(Recipe.parse(TEXT, random), store).measurements
    assert faint["collapsed_layers"].value == 0  # every layer is connected
    assert faint["signal_left"].value < 1e-2
    mended = run(Recipe.parse(TEXT, [*random, "prune.rescale=true"]), store).measurements
    assert mended["signal_left"].value > 20 * faint["signal_left"].value
    assert mended["mask_sparsity"].value == faint["mask_sparsity"].value


def test_outcomes_known_before_rescaling_stay_known() -> None:
    from secateur.lab.steps.prune import PruneStep

    assert "rescale" not in PruneStep().chosen()
    assert PruneStep(rescale=True).chosen()["rescale"] is True


def test_layers_stay_in_the_models_order_when_they_are_stored(tmp_path) -> None:
    text = '[data]\nname = "digits"\nlimit = 20\n[model]\nname = "vgg12"\noptions = {width = 4}\n'
    step = '[[step]]\nkind = "prune"\nonly = "features"\n'
    layers = list(run(Recipe.parse(text + step), Store(tmp_path)).measurements["mask_sparsity"].per_layer)
    assert layers == [f"features.conv{index}.weight" for index in range(12)]

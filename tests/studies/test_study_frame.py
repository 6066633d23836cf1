"""The frame of the studies: recipes of every part at every scale, figures beside ours, tables, the page."""

from __future__ import annotations

import pytest

from secateur import studies
from secateur.core.measurement import Measurement, Measurements
from secateur.data import Augment
from secateur.errors import DataError, RecipeError, UnknownNameError
from secateur.lab.steps.train import TrainBase
from secateur.studies.page import into_page
from secateur.studies.published import PublishedFigure, parse
from secateur.studies.section import Section, markdown_table
from secateur.studies.study import Study, TableColumn, TableSpec, placed
from secateur.studies.tables import tabulate

SMALL = """
title = "Small"
[data]
name = "digits"
[model]
name = "fc"
[[step]]
kind = "train"
epochs = 20
[[step]]
kind = "measure"
label = "dense"
[[part]]
name = "sweep"
context = {scope = "all"}
[[part.step]]
kind = "prune"
[[part.step]]
kind = "retrain"
epochs = 3
[part.grid]
"prune.criterion" = ["magnitude", "random"]
"prune.budget" = [0.5, 0.9]
[[part]]
name = "again"
like = "sweep"
context = {scope = "some"}
set = {"prune.skip" = ["layer1"]}
[[part]]
name = "control"
[[part.step]]
kind = "train"
label = "more"
epochs = 3
[scale.smoke]
about = "small"
set = {"train.epochs" = 1, "retrain.epochs" = 2}
grid = {"prune.budget" = [0.9]}
part.again.grid = {"prune.criterion" = []}
part.again.set = {"retrain.epochs" = 1}
[scale.full]
about = "large"
skip = ["again"]
"""


@pytest.fixture
def small() -> Study:
    return Study.parse(SMALL, "small")


@pytest.mark.parametrize("name", studies.names())
def test_every_part_of_every_study_is_a_recipe_at_every_scale(name: str) -> None:
    study = studies.read(name)
    assert set(study.scale) >= {"smoke", "short", "full"}
    for scale in study.scale:
        found = study.recipes(scale, [f"{key}=given" for key in study.at(scale).needs])
        assert found
        assert all(recipe.trials() for _, recipe in found)
        assert len({part.name for part, _ in found}) == len(found)
    assert {recipe.data.name for part, recipe in study.recipes("smoke")} == {"digits"}
    parse(studies.text_of(name, published=True), name)


@pytest.mark.parametrize("name", ["vae", "cnn", "resnet101"])
@pytest.mark.parametrize("scale", ["smoke", "short", "full"])
def test_the_control_is_trained_as_the_pruned_models_are_retrained(name: str, scale: str) -> None:
    pruned, controls = [], []
    for part, recipe in studies.read(name).recipes(scale):
        for _, trial in recipe.trials():
            step = next((one for one in trial.steps if one.label == "retrain"), None)
            if step is not None:
                (controls if part.name.startswith("control") else pruned).append(step.chosen())
    assert len(pruned) > len(controls) > 0
    # Whatever retraining a pruned model gets, one with nothing pruned gets too, and no other.
    assert all(options in controls for options in pruned)
    assert all(options in pruned for options in controls)


@pytest.mark.parametrize("name", ["sensitivity", "deep-compression", "resnet101", "at-init-vgg16"])
def test_a_day_trains_on_all_images_and_every_training_the_fast_way(name: str) -> None:
    seen = 0
    for part, recipe in studies.read(name).recipes("day"):
        for _, trial in recipe.trials():
            assert part.alone or trial.data.limit is None
            for step in trial.steps:
                if not isinstance(step, TrainBase):
                    continue
                seen += 1
                options = step.training()
                assert (options.precision, options.schedule, step.channels_last) == ("bf16", "linear", True)
                assert options.warmup > 0
                assert options.average is not None
                assert options.batch_size >= 128
                assert options.augment == Augment(edges="mirrored")
                assert options.epochs <= 30
    assert seen


def test_the_control_of_a_day_is_trained_as_the_pruned_models_are() -> None:
    found = {
        part.name: [
            step.chosen() for _, trial in recipe.trials() for step in trial.steps if step.label == "retrain"
        ]
        for part, recipe in studies.read("resnet101").recipes("day")
    }
    assert found["control"]
    assert all(options == found["control"][0] for options in found["structured"] + found["level"])
    assert len(found["structured"] + found["level"]) == 27


def test_scales_set_what_a_part_has_and_cut_axes(small: Study) -> None:
    found = {part.name: recipe for part, recipe in small.recipes("smoke")}
    assert list(found) == ["sweep", "again", "control"]
    assert [len(recipe.trials()) for recipe in found.values()] == [2, 1, 1]
    assert found["sweep"].steps[0].epochs == found["control"].steps[0].epochs == 1
    assert [recipe.steps[-1].epochs for recipe in found.values()] == [2, 1, 3]
    assert found["again"].steps[2].skip == ("layer1",)
    assert found["sweep"].steps[2].skip is None
    assert [part.name for part, _ in small.recipes("full")] == ["sweep", "control"]


def test_settings_go_to_the_parts_that_have_what_they_set(small: Study) -> None:
    found = small.recipes("smoke", ["more.epochs=7", "train.lr=0.5", "lab.seed=3"])
    assert [recipe.lab.seed for _, recipe in found] == [3, 3, 3]
    assert [recipe.steps[0].lr for _, recipe in found] == [0.5, 0.5, 0.5]
    assert found[2][1].steps[-1].epochs == 7


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("retrian.epochs=1", r"study small: --set: nothing called 'retrian' to set.*did you mean 'retrain'"),
        ("train.epoch=1", r"small/sweep: step 'train' has no key 'epoch': did you mean 'epochs'"),
    ],
)
def test_a_setting_nothing_has_is_an_error(small: Study, setting: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        small.recipes("smoke", [setting])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ('like = "sweep"', 'like = "swep"'),
            r"part 'again' is like 'swep', which is not an earlier part.*'sweep'",
        ),
        (('skip = ["again"]', 'skip = ["agian"]'), r"there is no part 'agian'.*'again'"),
        (
            ('grid = {"prune.budget" = [0.9]}', 'grid = {"prune.bugdet" = [0.9]}'),
            r"no part has the axis 'prune.bugdet'",
        ),
        (('title = "Small"', ""), r"study small: title: Field required"),
    ],
)
def test_a_study_that_says_what_cannot_be_is_refused(change: tuple[str, str], message: str) -> None:
    assert change[0] in SMALL
    with pytest.raises(RecipeError, match=message):
        Study.parse(SMALL.replace(*change), "small").recipes("smoke")


def test_unknown_studies_and_scales_are_answered_with_the_near_ones(small: Study) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown study 'vea': did you mean 'vae'"):
        studies.read("vea")
    words = r"scale given needs model\.weights: give it with --set model\.weights=VALUE"
    with pytest.raises(RecipeError, match=words):
        studies.read("deep-compression").recipes("given")
    with pytest.raises(UnknownNameError, match=r"study small has no scale 'smok': did you mean 'smoke'"):
        small.recipes("smok")


def test_data_is_a_name_a_folder_or_the_folder_around_it(tmp_path) -> None:
    (tmp_path / "mnist").mkdir()
    assert placed({"name": "mnist"}, str(tmp_path))["path"] == str(tmp_path / "mnist")
    assert placed({"name": "mnist"}, str(tmp_path / "mnist"))["path"] == str(tmp_path / "mnist")
    assert placed({"name": "digits", "limit": 5}, str(tmp_path)) == {"name": str(tmp_path), "limit": 5}
    assert placed({"name": "digits"}, "mnist") == {"name": "mnist"}


# -- tables
# ----------------------------------------------------------------------------------------------------------


def measured() -> Measurements:
    rows = []
    for trial, sparsity in enumerate((0.5, 0.8)):
        for variant, macs in (("dense", 100), ("shrunk", round(100 * (1 - sparsity)))):
            context = {
                "trial": trial,
                "variant": variant,
                "sparsity": sparsity,
                "criterion": "l1",
                "part": "p",
            }
            layers = {"a": macs // 2, "b": macs - macs // 2}
            rows.append(Measurement("macs", macs, "MAC", context=context, per_layer=layers))
            spread = {"variance": 0.25}
            rows.append(Measurement("latency", macs / 10, "ms", context=context, spread=spread))
    return Measurements(rows)


def test_a_table_pairs_published_figures_and_says_which_cannot_be_right() -> None:
    spec = TableSpec(title="t", rows=("variant", "sparsity"), columns=("macs",))
    figures = [
        PublishedFigure(name="macs", value=100, where={"variant": "dense"}),
        PublishedFigure(
            name="macs",
            value=44,
            where={"variant": "shrunk", "sparsity": 0.5},
            inconsistent="it is half",
            follows=50,
        ),
        PublishedFigure(name="macs", value=21, where={"variant": "shrunk", "sparsity": 0.8}),
        PublishedFigure(name="macs", value=9, where={"variant": "shrunk", "sparsity": 0.9}),
    ]
    made = tabulate(spec, measured(), figures)
    assert made.head == ("variant", "sparsity", "macs", "published", "difference")
    assert made.rows == [
        ("dense", "", "100", "100", "0"),  # one row, for it is the same in both trials
        ("shrunk", "0.5", "50", "44 (*)", "0"),
        ("shrunk", "0.8", "20", "21", "−1 (−4.8 %)"),
    ]
    assert made.notes == [
        "reference inconsistent: it is half; 50 follows from it, and the difference is to that"
    ]
    assert made.values[2] == ("shrunk", 0.8, 20, 21, -1)
    assert figures[3] not in made.used
    assert [one.value for one in made.used] == [100, 44, 21]


def test_columns_that_follow_from_others() -> None:
    columns = (
        TableColumn(name="macs", over="dense", title="fewer"),
        TableColumn(name="macs", share="dense", title="left"),
        TableColumn(name="latency", variant="dense", title="before"),
        TableColumn(name="latency", of="variance", title="variance"),
    )
    spec = TableSpec(title="t", rows=("sparsity",), columns=columns, where={"variant": ["shrunk"]})
    made = tabulate(spec, measured(), [])
    assert made.head == ("sparsity", "fewer", "left", "before [ms]", "variance")
    assert made.rows == [("0.5", "2.00×", "50.00 %", "10", "0.25"), ("0.8", "5.00×", "20.00 %", "10", "0.25")]


def test_what_is_shown_once_has_no_one_trials_value_beside_it() -> None:
    columns = (TableColumn(name="macs"), TableColumn(name="macs", variant="shrunk", title="shrunk"))
    made = tabulate(TableSpec(title="t", rows=("variant", "sparsity"), columns=columns), measured(), [])
    assert made.rows == [
        ("dense", "", "100", ""),
        ("shrunk", "0.5", "50", "50"),
        ("shrunk", "0.8", "20", "20"),
    ]


def test_a_column_shows_a_variant_of_another_part_for_the_same_row_but_never_one_of_several() -> None:
    """Trial 0 retrains at 0.5 and trial 1 compensates at 0.5; at 0.8 two trials compensate, so neither is shown."""
    rows = [
        Measurement("accuracy", value, context={"trial": trial, "variant": variant, "sparsity": sparsity})
        for trial, variant, sparsity, value in (
            (0, "retrained", 0.5, 0.9), (1, "compensated", 0.5, 0.8),
            (2, "retrained", 0.8, 0.7), (3, "compensated", 0.8, 0.6), (4, "compensated", 0.8, 0.5),
        )
    ]  # fmt: skip
    columns = (TableColumn(name="accuracy", variant="compensated"), TableColumn(name="accuracy"))
    spec = TableSpec(title="t", rows=("sparsity",), columns=columns, where={"variant": "retrained"})
    assert tabulate(spec, rows, []).values == [(0.5, 0.8, 0.9), (0.8, None, 0.7)]


def test_layers_and_columns_across_a_key() -> None:
    spec = TableSpec(
        title="t", rows=("layer",), columns=("macs",), across="sparsity", where={"variant": ["shrunk"]}
    )
    made = tabulate(spec, measured(), [])
    assert made.head == ("layer", "0.5", "0.8")
    assert made.rows == [("a", "25", "10"), ("b", "25", "10")]


def test_a_table_nothing_was_measured_for_is_empty() -> None:
    spec = TableSpec(title="t", rows=("sparsity",), columns=("speedup",), parts=("elsewhere",))
    assert tabulate(spec, measured(), []).rows == []


def test_seeds_are_averaged() -> None:
    rows = [
        Measurement("accuracy", value, context={"trial": t, "variant": "x"})
        for t, value in enumerate((0.5, 0.7))
    ]
    made = tabulate(TableSpec(title="t", rows=("variant",), columns=("accuracy",)), rows, [])
    assert made.rows == [("x", "60.00 %")]


def test_a_published_table_with_a_number_missing_is_refused() -> None:
    text = 'source = "r"\n[[table]]\nname = "a"\nrows = "s"\ncolumns = "c"\nhead = ["x", "y"]\nvalues = [[0.5, 1.0]]'
    with pytest.raises(RecipeError, match=r"expected 2 numbers after 0.5, got 1"):
        parse(text)
    assert [one.where["c"] for one in parse(text.replace("[0.5, 1.0]", '[0.5, 1.0, ""]'))] == ["x"]


def test_a_page_keeps_what_is_around_a_study(tmp_path) -> None:
    page = tmp_path / "studies.md"
    into_page(page, Section("vae", "first words", "full"))
    into_page(page, Section("cnn", "other", "full"))
    page.write_text(page.read_text() + "\nby hand\n")
    into_page(page, Section("vae", "new", "full"))
    text = page.read_text()
    assert "first words" not in text
    assert text.index("new") < text.index("## cnn") < text.index("by hand")
    page.write_text(text.replace("<!-- end of cnn -->", ""))
    with pytest.raises(DataError, match=r"the section of 'cnn' begins but does not end"):
        into_page(page, Section("cnn", "other", "full"))


def test_marks_and_bars_are_no_markup_in_the_page() -> None:
    made = tabulate(
        TableSpec(title="t", rows=("variant",), columns=("macs",), where={"variant": "dense"}),
        measured(),
        [PublishedFigure(name="macs", value=1, where={"variant": "dense"}, inconsistent="a|b")],
    )
    assert markdown_table(made).splitlines()[2] == "| dense | 100 | 1 (\\*) | +99 (+9900.0 %) |"


def test_a_part_that_names_its_data_keeps_it(tmp_path):
    (tmp_path / "cifar10").mkdir()
    found = {
        part.name: recipe for part, recipe in studies.read("sensitivity").recipes("short", data=str(tmp_path))
    }
    assert found["count"].data.name == "digits"
    assert found["count"].data.path is None
    assert found["own"].data.path == str(tmp_path / "cifar10")

"""Recipes: what is read, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from secateur.errors import RecipeError, StructureError, UnknownNameError
from secateur.lab.planning import plan, reshaping
from secateur.lab.recipe import Recipe, schema

RECIPES = Path(__file__).parents[2] / "recipes"
TEXT = """
name = "small"
[data]
name = "digits"
size = 16
[model]
name = "resnet20"
[[step]]
kind = "prune"
budget = {name = "overall", sparsity = 0.8}
skip = ["linear"]
[[step]]
kind = "prune"
label = "more"
budget = 0.9
"""


def test_values_are_frozen_and_typed():
    recipe = Recipe.parse(TEXT)
    assert (recipe.name, recipe.data.size, recipe.lab.device) == ("small", 16, "auto")
    assert [step.label for step in recipe.steps] == ["prune", "more"]
    assert recipe.steps[0].budget == {"name": "overall", "sparsity": 0.8}
    with pytest.raises(ValueError, match="frozen"):
        recipe.lab.seed = 3


def test_plain_reads_back_to_the_same_recipe():
    recipe = Recipe.parse(TEXT, ["lab.seed=7"], ["prune.criterion=l1,l2"])
    again = Recipe.of(recipe.plain())
    assert again == recipe
    assert again.plain() == recipe.plain()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[lab]\nsed = 1\n[[step]]\nkind='prune'", r"\[lab\] has no key 'sed': did you mean 'seed'\?"),
        ("[modle]\nname = 'x'", r"a recipe has no key 'modle': did you mean 'model'\?"),
        ("[[step]]\nkind = 'prne'", r"step 1: unknown kind 'prne': did you mean 'prune'"),
        ("[[step]]\nkind = 'prune'\nbudgt = 1", r"step 'prune' has no key 'budgt': did you mean 'budget'\?"),
        ("[[step]]\nbudget = 1", r"step 1 needs a `kind`, one of .*prune"),
        ("[[step]]\nkind = 'prune'\n[[step]]\nkind = 'share'\nlabel = 'prune'", "label 'prune' is taken"),
        ("[[step]]\nkind = 'prune'\nlabel = 'data'", "'data' is a table of recipes, not a label"),
        ("name = 'x'", "needs at least one"),
        ("step = 3", r"steps are written as \[\[step\]\] tables"),
        (
            "[lab]\nseed = -1\n[[step]]\nkind='prune'",
            r"lab.seed: Input should be greater than or equal to 0, got -1",
        ),
        ("[lab]\ndevice = 'gpu'\n[[step]]\nkind='prune'", r"lab.device: .*, got 'gpu'"),
        ("[[step]]\nkind = 'prune'\nimages = 'many'", r"images: Input should be a valid integer.*got 'many'"),
        ("[[step]\nkind", "expected TOML, but"),
        (
            "[[step]]\nkind='prune'\n[grid]\n'prune.budget' = []",
            "grid axis 'prune.budget': expected a list of values",
        ),
        (
            "[[step]]\nkind='prune'\n[grid]\n'prne.budget' = [1]",
            r"nothing called 'prne' to set .*did you mean 'prune'",
        ),
    ],
)
def test_what_is_wrong_is_named_with_the_near_name(text, words):
    with pytest.raises(RecipeError, match=words):
        Recipe.parse(text, source="recipe.toml")


def test_a_missing_file_names_those_beside_it(tmp_path):
    (tmp_path / "sweep.toml").write_text(TEXT)
    with pytest.raises(RecipeError, match=r"no such recipe; did you mean 'sweep.toml'"):
        Recipe.read(tmp_path / "swep.toml")


@pytest.mark.parametrize(
    ("setting", "where", "value"),
    [
        ("prune.budget=0.25", lambda r: r.steps[0].budget, 0.25),
        ("prune.budget.sparsity=0.25", lambda r: r.steps[0].budget, {"name": "overall", "sparsity": 0.25}),
        ("more.criterion=l1", lambda r: r.steps[1].criterion, "l1"),
        ("more.skip=['a', 'b']", lambda r: r.steps[1].skip, ("a", "b")),
        ("model.options.num_classes=7", lambda r: r.model.options, {"num_classes": 7}),
        ("name=other", lambda r: r.name, "other"),
        ("data.size=[8, 12]", lambda r: r.data.size, (8, 12)),
    ],
)
def test_set_changes_one_value_and_keeps_its_type(setting, where, value):
    assert where(Recipe.parse(TEXT, [setting])) == value


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("prune.budget", "expected key=value"),
        ("prun.budget=1", "nothing called 'prun' to set"),
        ("prune=1", "names a table; name the value in it"),
        ("prune.bugdet=1", "has no key 'bugdet': did you mean 'budget'"),
        ("prune.kind=share", "the kind of a step cannot be set"),
    ],
)
def test_a_wrong_setting_is_refused(setting, words):
    with pytest.raises(RecipeError, match=words):
        Recipe.parse(TEXT, [setting])


def test_an_option_that_is_set_joins_the_name_set_before():
    settings = ["prune.criterion=mine:Cube", "prune.criterion.power=1"]
    assert Recipe.parse(TEXT, settings).steps[0].criterion == {"name": "mine:Cube", "power": 1}
    other = [settings[0], "prune.criterion.name=l1", "prune.budget.sparsity=0.5", "more.budget.sparsity=0.5"]
    first, second = Recipe.parse(TEXT, other).steps
    assert (first.criterion, first.budget) == ({"name": "l1"}, {"name": "overall", "sparsity": 0.5})
    assert second.budget == {"sparsity": 0.5}  # a number has no name to join


@pytest.mark.parametrize(
    ("row", "giving"), [("loss", "accuracy"), ("nonzeros", "params"), ("macs_nonzero", "macs")]
)
def test_a_row_that_is_no_measure_is_refused_with_the_measure_it_comes_with(row, giving):
    text = f"{TEXT}[[step]]\nkind = 'measure'\nwhat = ['{row}']\n"
    with pytest.raises(
        UnknownNameError, match=f"unknown measure '{row}': a row of this name comes with '{giving}'"
    ):
        plan(Recipe.parse(text))


def test_a_grid_is_the_product_with_the_last_axis_fastest():
    recipe = Recipe.parse(TEXT + "[grid]\nprune.criterion = ['l1', 'l2']\n'more.budget' = '0.1:0.3:0.1'\n")
    trials = recipe.trials()
    assert [settings for settings, _ in trials][:4] == [
        {"prune.criterion": "l1", "more.budget": 0.1},
        {"prune.criterion": "l1", "more.budget": 0.2},
        {"prune.criterion": "l1", "more.budget": 0.3},
        {"prune.criterion": "l2", "more.budget": 0.1},
    ]
    assert [one.steps[1].budget for _, one in trials] == [0.1, 0.2, 0.3] * 2
    assert all(not one.grid for _, one in trials)


def test_grid_on_the_command_line_takes_lists_and_ranges():
    recipe = Recipe.parse(TEXT, (), ["prune.criterion=l1,l2", "more.budget=0.5,0.7", "lab.seed=[0, 1]"])
    assert recipe.grid == {"prune.criterion": ("l1", "l2"), "more.budget": (0.5, 0.7), "lab.seed": (0, 1)}


def test_near_names_of_plugins_reach_the_reader():
    from secateur.lab.planning import plan

    with pytest.raises(
        UnknownNameError, match=r"step 'prune': unknown criterion 'magnitud': did you mean 'magnitude'"
    ):
        plan(Recipe.parse(TEXT, ["prune.criterion=magnitud"]))


def test_the_schema_accepts_what_is_a_recipe_and_refuses_what_is_not():
    import tomllib

    whole = schema()
    jsonschema.Draft202012Validator.check_schema(whole)
    validator = jsonschema.Draft202012Validator(whole)
    assert not list(validator.iter_errors(tomllib.loads(TEXT)))
    assert list(validator.iter_errors(tomllib.loads(TEXT.replace("budget", "bugdet"))))
    assert list(validator.iter_errors({"model": {"name": "resnet20"}}))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_example_recipes_can_be_planned(path):
    from secateur.lab.planning import plan

    recipe = Recipe.read(path)
    if path.stem == "yolo":
        pytest.skip("its data set is the user's; tests/zoo/test_yolo.py runs it")
    if path.stem == "resnet20-int8":
        pytest.skip(
            "its data set and weights are the user's; benchmarks/bench_int8.py measures what it gives"
        )
    assert len(plan(recipe).trials) == (27 if recipe.grid else 1)


def test_the_demo_and_the_examples_are_there():
    assert {path.stem for path in RECIPES.glob("*.toml")} >= {"sweep", "deep-compression", "filters"}


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5000,
        "x = " + "9" * 5000,
        "lab = 0.0",
        "grid = 3",
        "when = 2024-01-01",
        "[model]\noptions = {d = 2024-01-01}",
        '[[step]]\nkind = "prune"\nlabel = [1]',
        '[[step]]\nkind = "prune"\n[choice.a]\nx = {"a" = "x"}',
        '[[step]]\nkind = "prune"\n[grid]\n"lab.seed" = "0:1e12:1"',
    ],
)
def test_a_recipe_that_is_none_is_a_named_error(text):
    with pytest.raises(RecipeError):
        Recipe.parse(text)


def test_a_grid_has_an_end():
    axes = "".join(f'"prune{i}.images" = [{", ".join(map(str, range(1, 100)))}]\n' for i in ("", 2, 3))
    steps = '[[step]]\nkind = "prune"\n' * 3
    with pytest.raises(RecipeError, match="more than 100,000 combinations"):
        Recipe.parse(f"{steps}[grid]\n{axes}").trials()


GRID = TEXT + "[grid]\nprune.criterion = ['l1', 'l2']\n'more.budget' = '0.1:0.3:0.1'\n'lab.seed' = [0, 1]\n"


def test_a_key_that_the_grid_varies_is_what_set_says_in_every_trial():
    recipe = Recipe.parse(GRID, ["prune.criterion=random"])
    assert recipe.grid == {"prune.criterion": ("random",), "more.budget": (0.1, 0.2, 0.3), "lab.seed": (0, 1)}
    assert {one.steps[0].criterion for _, one in recipe.trials()} == {"random"}
    assert {one.lab.seed for _, one in Recipe.parse(GRID, ["lab.seed=7"]).trials()} == {7}
    assert Recipe.parse(GRID, ["more.budget=0.123"]).grid["more.budget"] == (0.123,)
    with pytest.raises(UnknownNameError, match="unknown criterion 'nonsense'"):
        plan(Recipe.parse(GRID, ["prune.criterion=nonsense"]))
    again = Recipe.of(recipe.plain())
    assert again.grid == recipe.grid


def test_conditions_follow_an_axis_that_set_gives_one_value():
    text = TEXT + "[grid]\n'prune.criterion' = ['l1', 'snip']\n"
    text += "'prune.images' = {values = [1, 10], when = {'prune.criterion' = ['snip']}}\n"
    text += "'more.budget' = {values = [0.1, 0.2], when = {'prune.images' = 10}}\n"
    assert len(Recipe.parse(text, ["prune.criterion=snip"]).trials()) == 3
    alone = Recipe.parse(text, ["prune.criterion=l1"])
    assert (alone.grid, alone.when) == ({"prune.criterion": ("l1",)}, {})
    everywhere = Recipe.parse(text, ["prune.images=10"])
    assert everywhere.grid["prune.images"] == (10,)
    assert len(everywhere.trials()) == 4


@pytest.mark.parametrize(
    ("text", "setting", "words"),
    [
        (
            "[grid]\n'more.budget' = [0.1, 0.2]\n",
            "more.budget.sparsity=0.3",
            "the axis 'more.budget' of the grid",
        ),
        (
            "[grid]\n'more.budget.sparsity' = [0.1, 0.2]\n",
            "more.budget=0.3",
            "--set more.budget.sparsity=VALUE",
        ),
        ("[choice.how]\na = {'more.budget' = 0.1}\n", "more.budget=0.3", "the axis 'how' of the grid"),
    ],
)
def test_a_set_that_an_axis_would_undo_is_an_error(text, setting, words):
    with pytest.raises(RecipeError, match=words):
        Recipe.parse(TEXT + text, [setting])


def test_set_and_grid_of_one_key_on_one_command_line_are_an_error_unless_they_agree():
    with pytest.raises(RecipeError, match=r"--set and --grid both give 'more\.budget'"):
        Recipe.parse(TEXT, ["more.budget=0.3"], ["more.budget=0.1,0.2"])
    seeds = Recipe.parse(TEXT, ["lab.seed=3"], ["lab.seed=3:4:1"])
    assert seeds.grid == {"lab.seed": (3, 4)}
    named = Recipe.parse(
        TEXT + "[choice.how]\na = {'more.budget' = 0.1}\nb = {'more.budget' = 0.2}\n", ["how=b"]
    )
    assert [one.steps[1].budget for _, one in named.trials()] == [0.2]
    inside = Recipe.parse(
        TEXT + "[grid]\n'more.budget.sparsity' = [0.1, 0.2]\n", ["more.budget={name='overall'}"]
    )
    assert [one.steps[1].budget for _, one in inside.trials()] == [
        {"name": "overall", "sparsity": 0.1},
        {"name": "overall", "sparsity": 0.2},
    ]


@pytest.mark.parametrize("kind", ["prune", "scan", "allocate"])
def test_a_criterion_that_cannot_score_this_model_is_found_before_any_work(kind):
    more = {"prune": "budget = 0.5", "scan": "", "allocate": "keep = 0.5"}[kind]
    text = f"[model]\nname = '{{name}}'\n[[step]]\nkind = '{kind}'\ncriterion = 'bn_scale'\n"
    text += f"granularity = 'filter'\n{more}"
    with pytest.raises(StructureError, match=f"step '{kind}': bn_scale: expected a model with batch norms"):
        plan(Recipe.parse(text.format(name="cnn")))
    assert plan(Recipe.parse(text.format(name="resnet20"))).trials


def test_images_in_another_shape_than_their_own_are_said_to_be():
    def lines(text: str) -> list[str]:
        return reshaping(one for _, one in Recipe.parse(text + "[[step]]\nkind = 'prune'\n").trials())

    data = "[data]\nname = 'digits'\nlimit = 20\n"
    assert lines(data + "[model]\nname = 'resnet20'\n") == [
        "digits: images of 1x8x8 are given as 3x32x32, as resnet20 takes them"
    ]
    assert lines(data + "size = 28\nchannels = 1\n[model]\nname = 'cnn'\n") == [
        "digits: images of 1x8x8 are given as 1x28x28, as the recipe asks"
    ]
    assert lines(data + "size = 8\nchannels = 1\n[model]\nname = 'cnn'\n") == []
    swept = data + "[model]\nname = 'cnn'\n[grid]\n'model.name' = ['cnn', 'resnet20']\n'lab.seed' = [0, 1]\n"
    assert len(reshaping(one for _, one in Recipe.parse("[[step]]\nkind = 'prune'\n" + swept).trials())) == 2


def test_what_planning_says_of_the_data_loads_nothing_again(monkeypatch):
    import secateur.data
    from secateur.lab import planning

    load, loaded = secateur.data.load_for, []
    monkeypatch.setattr(secateur.data, "load_for", lambda *a, **k: loaded.append(a[1]) or load(*a, **k))
    planning._data.cache_clear()
    text = "[[step]]\nkind = 'prune'\n[data]\nname = 'digits'\n[model]\nname = 'cnn'\n"
    swept = Recipe.parse(text + "[grid]\n'data.limit' = [20, 21, 22, 23, 24, 25]\n'lab.seed' = [0, 1]\n")
    lines = plan(swept).reshaping()
    assert len(loaded) == 6
    assert lines == reshaping(one for _, one in swept.trials()) != []

"""Data and judgements that a recipe names: refused from a file, used where allowed, addressed by what they are."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys

import pytest

import secateur.lab.planning
from secateur.errors import OptionError, RecipeError, UnknownNameError
from secateur.lab import final_state, steps
from secateur.lab.comparing import comparison_recipe
from secateur.lab.engine import run
from secateur.lab.outcomes import canonical
from secateur.lab.planning import plan
from secateur.lab.recipe import Recipe, schema
from secateur.lab.reporting import gather
from secateur.lab.store import Store

SOURCE = """
import pathlib
import torch
from secateur import Scores
from secateur.budget import Overall
from secateur.criteria import Criterion
pathlib.Path({marker!r}).touch()

def net():
    return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))

def rows(count=80, start=0):
    inputs = torch.arange(start, start + count * 4.0).reshape(count, 4).sin()
    part = (inputs, (inputs[:, 0] > 0).long())
    return dict(train=part, test=part)

class Score(Criterion):
    def __init__(self, sign=1.0):
        self.sign = sign

    def scores(self, model, targets, context):
        return Scores({{t.name: self.sign * t.of(model).detach().abs() + 100 for t in targets}})

def share(sparsity=0.5):
    return Overall(sparsity)

def judge(model):
    return {{"worth": float(model[0].weight.abs().sum() > 0) * {number}, "other": 2.0}}

def counted(model, split):
    return len(split) / 100
"""
CODE = '[data]\nname = "{data}"\n[model]\nname = "{model}"\n[lab]\nthreads = 1\n'
MEASURE = '[[step]]\nkind = "measure"\nwhat = ["accuracy", "params"]\nevaluate = "{evaluate}"\n'


@pytest.fixture
def mine(tmp_path, monkeypatch, request):
    """A module of the user's own that leaves a mark when it is imported; no other test has one of this name."""
    name = "own_" + "".join(letter if letter.isalnum() else "_" for letter in request.node.name)
    marker = tmp_path / "it ran"
    (tmp_path / f"{name}.py").write_text(SOURCE.format(marker=str(marker), number=0.5))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name, marker
    sys.modules.pop(name, None)


PRUNE = '[[step]]\nkind = "prune"\nbudget = 0.5\n'
PLACES = {
    "data": '[data]\nname = "{0}:rows"\n[model]\nname = "fc"\n' + PRUNE,
    "evaluate": '[model]\nname = "fc"\n' + MEASURE.format(evaluate="{0}:rows"),
    "evaluate of a labelled step": '[model]\nname = "fc"\n'
    + PRUNE
    + MEASURE.format(evaluate="{0}:rows")
    + 'label = "x"\n',
    "evaluate without a function": '[model]\nname = "fc"\n' + MEASURE.format(evaluate="{0}"),
    "grid of data": '[model]\nname = "fc"\n' + PRUNE + '[grid]\n"data.name" = ["digits", "{0}:rows"]\n',
    "grid": '[model]\nname = "fc"\n[[step]]\nkind = "measure"\n[grid]\nmeasure.evaluate = ["{0}:rows"]\n',
    "criterion": '[model]\nname = "fc"\n' + PRUNE + 'criterion = "{0}:rows"\n',
    "table of a criterion": '[model]\nname = "fc"\n'
    + PRUNE
    + 'criterion = {{name = "{0}:rows", sign = 1}}\n',
    "list of criteria": '[model]\nname = "fc"\n' + PRUNE + 'criterion = ["l1", {{name = "{0}:rows"}}]\n',
    "granularity": '[model]\nname = "fc"\n' + PRUNE + 'granularity = "{0}:rows"\n',
    "budget": '[model]\nname = "fc"\n[[step]]\nkind = "prune"\nbudget = {{name = "{0}:rows"}}\n',
    "criterion of a scan": '[model]\nname = "fc"\n[[step]]\nkind = "scan"\ncriterion = "{0}:rows"\n',
    "criterion of a search": '[model]\nname = "fc"\n[[step]]\nkind = "allocate"\nkeep = 0.5\ncriterion = "{0}:rows"\n',
    "criterion in sparse training": '[model]\nname = "fc"\n[[step]]\nkind = "train"\nepochs = 1\n'
    + 'sparsify = {{name = "growing", criterion = {{name = "{0}:rows"}}}}\n',
    "grid of criteria": '[model]\nname = "fc"\n' + PRUNE + '[grid]\n"prune.criterion" = ["l1", "{0}:rows"]\n',
    "grid of a name": '[model]\nname = "fc"\n'
    + PRUNE
    + 'criterion = {{name = "l1"}}\n[grid]\n"prune.criterion.name" = ["l1", "{0}:rows"]\n',
    "grid of a step called teacher": '[model]\nname = "fc"\n'
    + PRUNE
    + 'label = "teacher"\n[grid]\n"teacher.criterion" = ["{0}:rows"]\n',
    "choice of criteria": '[model]\nname = "fc"\n'
    + PRUNE
    + '[choice.how]\na = {{prune.criterion = "{0}:rows"}}\n',
    "choice": '[model]\nname = "fc"\n[[step]]\nkind = "measure"\n'
    + '[choice.how]\na = {{"measure.evaluate" = "{0}:rows"}}\n',
}


@pytest.mark.parametrize("place", PLACES)
def test_code_that_a_file_names_is_refused_before_it_is_imported(mine, tmp_path, place, monkeypatch, capsys):
    from secateur.cli import main

    name, marker = mine
    text = PLACES[place].format(name)
    with pytest.raises(RecipeError, match=rf"would import {name} and call .*--allow-code"):
        Recipe.parse(text)
    (tmp_path / "r.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    for verb in (["run"], ["run", "--dry-run"], ["auto"], ["smallest"]):
        monkeypatch.setattr(sys, "argv", ["secateur", verb[0], "r.toml", *verb[1:]])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert "--allow-code" in capsys.readouterr().err
    assert not marker.exists()
    assert Recipe.parse(text, allow_code=True).allowed_code is True
    assert not marker.exists()


def test_names_of_the_command_line_are_the_users_own(mine):
    name, _ = mine
    text = '[model]\nname = "fc"\n[[step]]\nkind = "measure"\n'
    given = [f"data.name={name}:rows", f"measure.evaluate={name}:judge"]
    assert Recipe.parse(text, given).allowed_code == {f"{name}:rows", f"{name}:judge"}
    swept = Recipe.parse(text, grid=[f"measure.evaluate={name}:judge,{name}:rows"])
    assert [one.steps[0].evaluate for _, one in swept.trials()] == [f"{name}:judge", f"{name}:rows"]
    recipe = Recipe.parse(text)
    assert recipe.allowing(None, "a:b").allowed_code == {"a:b"}
    assert recipe.allowed_code == frozenset()
    with pytest.raises(RecipeError, match="would import other"):
        Recipe.parse(text + 'evaluate = "other:thing"\n', given[:1])


def own_recipe(name: str, evaluate: str = "judge", more: str = "") -> Recipe:
    text = CODE.format(data=f"{name}:rows", model=f"{name}:net")
    text += more + MEASURE.format(evaluate=f"{name}:{evaluate}")
    return Recipe.parse(text, allow_code=True)


def test_a_recipe_on_rows_of_a_table_trains_prunes_shrinks_and_is_judged(mine, tmp_path):
    name, _ = mine
    steps = '[[step]]\nkind = "train"\nepochs = 12\nlr = 0.5\nbatch_size = 16\n'
    steps += '[[step]]\nkind = "measure"\nlabel = "dense"\n'
    steps += '[[step]]\nkind = "prune"\ngranularity = "channel"\nbudget = 0.5\n[[step]]\nkind = "shrink"\n'
    recipe, store = own_recipe(name, "judge", steps), Store(tmp_path / "runs")
    ran = run(recipe, store)
    found = {(m.context.get("variant"), m.name): m for m in ran.measurements}
    assert found["dense", "accuracy"].value > 0.9
    assert found["dense", "accuracy"].definition == "accuracy on 80 test inputs"
    assert found["measure", "worth"].value == 0.5
    assert found["measure", "worth"].definition == f"as returned by {name}:judge"
    assert found["measure", "params"].value == 58
    assert ("measure", "accuracy") not in found
    assert run(recipe, store).computed == 0


def test_a_function_of_two_arguments_is_given_the_split(mine, tmp_path):
    name, _ = mine
    ran = run(own_recipe(name, "counted"), Store(tmp_path / "runs"))
    row = next(m for m in ran.measurements if m.name == "score")
    assert (row.value, row.definition) == (0.8, f"as returned by {name}:counted on 80 test inputs")


def test_addresses_depend_on_content_and_on_the_source_of_the_judgement(mine, tmp_path):
    name, _ = mine

    def keys(recipe):
        return [step.key for step in plan(recipe).trials[0].steps]

    first = keys(own_recipe(name, more=PRUNE))
    text = CODE.format(data=f"{name}:rows", model=f"{name}:net") + "[data.options]\nstart = 1\n" + PRUNE
    assert keys(Recipe.parse(text, allow_code=True))[0] != first[0]
    source = tmp_path / f"{name}.py"
    before = own_recipe(name).steps[-1].chosen()
    source.write_text(source.read_text() + "\n# another version\n")
    sys.modules.pop(name)  # as in another process
    after = own_recipe(name).steps[-1].chosen()
    assert {key for key in after if after[key] != before[key]} == {"source"}
    assert len(after["source"]) == 64


SPLIT = {
    "model": ("net", '[model]\nname = "{0}:net"\n' + PRUNE),
    "teacher": (
        "net",
        '[model]\nname = "fc"\n[teacher]\nname = "{0}:net28"\n[[step]]\nkind = "retrain"\nepochs = 1\n'
        'teacher = "teacher"\n',
    ),
    "evaluate": ("judge", '[model]\nname = "fc"\n' + MEASURE.format(evaluate="{0}:judge")),
    "criterion": ("Score", '[model]\nname = "fc"\n' + PRUNE + 'criterion = {{name = "{0}:Score"}}\n'),
    "granularity": ("whole", '[model]\nname = "fc"\n' + PRUNE + 'granularity = "{0}:whole"\n'),
    "budget": ("share", '[model]\nname = "fc"\n[[step]]\nkind = "prune"\nbudget = {{name = "{0}:share"}}\n'),
    "data": ("made", '[data]\nname = "{0}:made"\n[model]\nname = "fc"\n' + PRUNE),
}
LAYERS = """
import torch
from secateur import data
from {own} import Score, judge, share

def net():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))

def net28():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))

def whole():
    from secateur.granularity import Element
    return Element()

def made():
    return data.load("digits", limit=20, size=28)
"""


@pytest.mark.parametrize("place", SPLIT)
def test_a_file_that_named_code_imports_is_part_of_the_address_and_another_is_not(mine, tmp_path, place):
    own, _ = mine
    name, (function, text) = f"{own}_top", SPLIT[place]
    layers = tmp_path / f"{own}_layers.py"
    layers.write_text(LAYERS.format(own=own))
    more = ", net28" if place == "teacher" else ""
    (tmp_path / f"{name}.py").write_text(f"from {own}_layers import {function}{more}\n")
    unrelated = tmp_path / f"{own}_unrelated.py"

    def key():
        for module in (name, f"{own}_layers", own):
            sys.modules.pop(module, None)  # as in another process
        secateur.lab.planning._data.cache_clear()
        return plan(
            Recipe.parse("[data]\nlimit = 20\n" * (place != "data") + text.format(name), allow_code=True)
        )

    try:
        before = key().keys()
        unrelated.write_text("x = 1\n")
        assert key().keys() == before
        layers.write_text(layers.read_text() + "\n# another version\n")
        assert key().keys() != before
    finally:
        sys.modules.pop(name, None), sys.modules.pop(f"{own}_layers", None)


def test_a_changed_layer_in_an_imported_file_is_computed_and_not_found(mine, tmp_path):
    own, _ = mine
    part, store = tmp_path / f"{own}_part.py", Store(tmp_path / "runs")
    part.write_text("width = 16\n")
    source = (tmp_path / f"{own}.py").read_text().replace("16", "width")
    (tmp_path / f"{own}.py").write_text(f"from {own}_part import width\n{source}")
    first = run(own_recipe(own), store)
    assert (first.computed, run(own_recipe(own), store).computed) == (1, 0)
    part.write_text("width = 3\n")
    sys.modules.pop(own), sys.modules.pop(f"{own}_part")
    again = run(own_recipe(own), store)
    sys.modules.pop(f"{own}_part")
    assert again.computed == 1
    found = [next(m.value for m in ran.measurements if m.name == "params") for ran in (first, again)]
    assert found == [4 * 16 + 16 + 16 * 2 + 2, 4 * 3 + 3 + 3 * 2 + 2]


def test_the_address_of_a_model_without_own_code_is_the_one_it_always_was():
    recipe = Recipe.parse('[model]\nname = "fc"\n' + PRUNE)
    told = {"name": "fc", "options": {}, "seed": 0}
    assert plan(recipe).trials[0].steps[0].parent == hashlib.sha256(canonical(told).encode()).hexdigest()


def test_a_measure_step_without_evaluate_has_the_address_it_had():
    step = Recipe.parse('[model]\nname = "fc"\n[[step]]\nkind = "measure"\n').steps[0]
    assert "evaluate" not in step.chosen()


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (
            'evaluate = "{0}:juge"',
            UnknownNameError,
            "step 'measure': evaluate '{0}:juge': .*did you mean 'judge'",
        ),
        ('evaluate = "{0}"', OptionError, "evaluate '{0}': expected package.module:function"),
        ('evaluate = "{0}:judge"\nwhat = ["params"]', OptionError, "expected 'accuracy' in what"),
        ('evaluate = "{0}:judge"\nalso = ["train"]', OptionError, "also: {0}:judge takes the model alone"),
    ],
)
def test_a_judgement_that_cannot_work_is_refused_before_any_work(mine, more, error, message):
    name, _ = mine
    text = f'[data]\nlimit = 20\n[model]\nname = "fc"\n[[step]]\nkind = "measure"\n{more.format(name)}\n'
    with pytest.raises(error, match=message.format(name)):
        plan(Recipe.parse(text, allow_code=True))


def test_a_store_from_a_stranger_runs_nothing_that_it_names(mine, tmp_path):
    from secateur.cli.export import _of_run

    name, marker = mine
    store = Store(tmp_path / "sent")
    run(
        Recipe.parse(
            '[data]\nlimit = 20\n[model]\nname = "fc"\n'
            + PRUNE
            + '[[step]]\nkind = "measure"\nwhat = ["params"]\n'
        ),
        store,
    )
    store.close()
    for change in ("data", "evaluate"):
        with sqlite3.connect(tmp_path / "sent" / "store.sqlite") as db:
            recipe = json.loads(db.execute("SELECT recipe FROM runs").fetchone()[0])
            recipe["data"]["name"] = f"{name}:rows" if change == "data" else "digits"
            recipe["step"][1]["evaluate"] = f"{name}:judge" if change == "evaluate" else None
            db.execute("UPDATE runs SET recipe = ?", (json.dumps(recipe),))
        db.close()
        sent = Store(tmp_path / "sent")
        assert "--allow-code" in gather(sent).provenance["not drawn"]
        sent.close()
        with pytest.raises(RecipeError, match=f"would import {name}"):
            _of_run("last", tmp_path / "sent", False)
        assert not marker.exists()
    assert name not in sys.modules


@pytest.mark.parametrize("goal", ["fast", "small"])
def test_auto_holds_the_number_of_the_users_function(mine, tmp_path, goal):
    from secateur.search.auto import AutoOptions, auto

    name, _ = mine
    text = CODE.format(data=f"{name}:rows", model=f"{name}:net") + '[[step]]\nkind = "train"\nepochs = 1\n'
    options = AutoOptions("uniform", {"epochs": 1}, evaluate=f"{name}:counted")
    said: list[str] = []
    recipe = Recipe.parse(text, allow_code=[f"{name}:rows", f"{name}:net"])
    found = auto(
        recipe, Store(tmp_path / "runs"), goal=goal, attempts=1, options=options, on_message=said.append
    )
    assert (found.dense, found.best.accuracy) == (0.08, 0.08)
    assert said[0].startswith(f"dense: 0.0800 by {name}:counted")
    assert f"dense 0.0800 by {name}:counted" in str(found)
    assert [m.value for m in found.final if m.name == "score"] == [0.8, 0.8]
    both = AutoOptions("uniform", {"epochs": 1}, evaluate=f"{name}:judge")
    with pytest.raises(OptionError, match="evaluate returned worth, other; expected one number"):
        auto(recipe, Store(tmp_path / "runs"), goal=goal, attempts=1, options=both)


def test_the_schema_knows_both():
    found = schema()
    assert "package.module:function" in found["properties"]["data"]["properties"]["name"]["description"]
    assert "options" in found["properties"]["data"]["properties"]
    steps = {one["properties"]["kind"]["const"]: one for one in found["properties"]["step"]["items"]["oneOf"]}
    assert "evaluate" in steps["measure"]["properties"]


def test_a_function_whose_file_changed_under_a_running_process_is_refused(mine, tmp_path):
    """What is stored under the digest of the new file would be what the old code said."""
    from secateur.adapters.functions import source_digest

    name, marker = mine
    before = source_digest(f"{name}:judge", "evaluate")
    (tmp_path / f"{name}.py").write_text(SOURCE.format(marker=str(marker), number=0.75))
    with pytest.raises(OptionError, match="has changed since this process imported it"):
        source_digest(f"{name}:judge", "evaluate")
    (tmp_path / f"{name}.py").write_text(SOURCE.format(marker=str(marker), number=0.5))
    assert source_digest(f"{name}:judge", "evaluate") == before


def test_a_judgement_does_not_take_the_names_of_measures(monkeypatch):
    import torch

    from secateur.lab.judging import judged

    monkeypatch.setattr("secateur.adapters.functions.find", lambda name, kind: lambda model: {"params": 7})
    with pytest.raises(OptionError, match="returned 'params', which secateur measures itself"):
        judged("mine:judge", torch.nn.Linear(1, 1), None)


def test_a_judgement_gets_batches_on_the_device_of_the_model(monkeypatch):
    import torch

    from secateur import data
    from secateur.lab.judging import judged

    def where(model, split):
        return {"meta": float(next(split.batches(5))[0].device.type == "meta")}

    monkeypatch.setattr("secateur.adapters.functions.find", lambda name, kind: where)
    split = data.load("digits", limit=20).test
    assert judged("mine:where", torch.nn.Linear(1, 1), split)["meta"].value == 0
    assert judged("mine:where", torch.nn.Linear(1, 1, device="meta"), split)["meta"].value == 1
    assert next(split.batches(5))[0].device.type == "cpu"


def test_columns_of_two_definitions_have_a_line_each():
    from secateur.core.measurement import Measurement
    from secateur.lab.tables import definitions

    rows = [
        Measurement(
            "accuracy", 0.5, definition=text, context={"trial": 0, "variant": name, "step": "measure"}
        )
        for name, text in (("dense", "top 1"), ("small", "as returned by mine:judge"))
    ]
    assert definitions(rows) == ["  accuracy (dense): top 1", "  accuracy (small): as returned by mine:judge"]


def test_a_report_shows_a_score_and_an_accuracy_in_per_cent_as_they_are():
    from secateur.core.measurement import Measurement, Measurements
    from secateur.report.summary import headline

    def rows(name, *values):
        named = zip(("dense", "small"), values, strict=True)
        return Measurements(
            Measurement(name, value, context={"variant": variant}) for variant, value in named
        )

    assert headline(rows("score", 0.8, 0.9)) == "score 0.8 → 0.9 (+0.1)"
    assert headline(rows("accuracy", 91.3, 90.1)) == "accuracy 91.3 → 90.1 (−1.2)"
    assert headline(rows("accuracy", 0.913, 0.901)) == "accuracy 91.30 % → 90.10 % (−1.20 points)"


def pruned_by(name: str, criterion: str, more: str = "") -> Recipe:
    text = CODE.format(data=f"{name}:rows", model=f"{name}:net")
    return Recipe.parse(text + PRUNE + f"criterion = {criterion}\n{more}", allow_code=True)


def kept(recipe: Recipe, store: Store) -> list[bool]:
    ran = run(recipe, store)
    masks = final_state(ran.plan.trials[0], store).masks
    return masks["0.weight"].flatten().tolist()


def test_a_criterion_of_ones_own_prunes_as_the_criterion_that_it_is(mine, tmp_path):
    name, _ = mine
    store = Store(tmp_path / "runs")
    smallest = kept(pruned_by(name, '"magnitude"'), store)
    assert kept(pruned_by(name, f'"{name}:Score"'), store) == smallest
    largest = kept(pruned_by(name, f'{{name = "{name}:Score", sign = -1.0}}'), store)
    assert largest == [not each for each in smallest]
    text = CODE.format(data=f"{name}:rows", model=f"{name}:net") + '[[step]]\nkind = "prune"\n'
    shared = Recipe.parse(text + f'budget = {{name = "{name}:share", sparsity = 0.25}}\n', allow_code=True)
    assert sum(kept(shared, store)) > len(smallest) / 2


def test_the_file_of_a_criterion_is_part_of_the_address(mine, tmp_path, monkeypatch):
    name, _ = mine

    def key(recipe):
        return plan(recipe).trials[0].steps[0].key

    before, plain = key(pruned_by(name, f'"{name}:Score"')), key(pruned_by(name, '"l1"'))
    real = steps.functions.source_digest

    def other(reference, kind):
        return real(reference, kind) if kind == "model" else f"other {reference} {kind}"

    monkeypatch.setattr(steps.functions, "source_digest", other)
    assert key(pruned_by(name, f'"{name}:Score"')) != before
    assert key(pruned_by(name, '"l1"')) == plain


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        (
            '"{0}:rows"',
            r"criterion 'own_\w+:rows': expected a class derived from secateur.criteria.Criterion",
        ),
        ('{{name = "{0}:Score", sgn = 1}}', r"the options \{{'sgn': 1\}} do not fit it"),
        ('"{0}:Scores2"', r"has no 'Scores2'; did you mean 'Scores'"),
        ('"{0}:Zzz"', r"has no 'Zzz'; known: 'Criterion', 'Overall', 'Score', [^_]*$"),
        ('"{0}-x:Score"', r"expected a name, or module:Class of your own, in letters"),
        ('" {0}/x:Score"', r"expected a name, or module:Class of your own, in letters"),
    ],
)
def test_what_is_no_criterion_is_refused_in_words(mine, criterion, words):
    name, _ = mine
    with pytest.raises((OptionError, UnknownNameError), match=words.format()):
        plan(pruned_by(name, criterion.format(name)))


def test_a_name_that_is_not_written_as_code_is_never_imported(mine, tmp_path):
    """What the check of a file lets pass cannot reach an import: both read names by one rule."""
    _, marker = mine
    (tmp_path / "a-b.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nX = object\n")
    text = '[model]\nname = "fc"\n' + PRUNE + "criterion = {}\n"
    for word in ("a-b:X", "a-b:X ", "a-b :X", "\u202ea-b:X", ":X", "a-b:"):
        with pytest.raises((OptionError, UnknownNameError, RecipeError)):
            plan(Recipe.parse(text.format(json.dumps(word))))
    assert not marker.exists()
    assert (
        Recipe.parse('[model]\nname = "fc"\n' + PRUNE + 'skip = ["type:Conv2d"]\n').allowed_code
        == frozenset()
    )


def test_a_criterion_of_the_command_line_needs_no_permission(mine):
    name, _ = mine
    text = '[model]\nname = "fc"\n' + PRUNE
    given = Recipe.parse(text, [f"prune.criterion={name}:Score"])
    assert given.allowed_code == {f"{name}:Score"}
    table = Recipe.parse(
        text, [f"prune.criterion={{name='{name}:Score', sign=-1}}"], [f"prune.granularity=element,{name}:G"]
    )
    assert table.allowed_code == {f"{name}:Score", f"{name}:G"}
    compared = '[[step]]\nkind = "measure"\nwhat = ["accuracy", "macs"]\n'
    made = comparison_recipe(Recipe.parse(text + compared), ["l2", f"{name}:Score"], 1)
    assert [one.steps[0].criterion for _, one in made.trials()] == ["l2", f"{name}:Score"]
    with pytest.raises(RecipeError, match="would import other"):
        Recipe.parse(text + 'criterion = "other:Score"\n', [f"prune.granularity={name}:G"])

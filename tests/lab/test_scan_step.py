"""The `scan` step, and a `prune` that spends what it found: kept, addressed, resumed, refused."""

from __future__ import annotations

import json
import sys

import pytest
from attacks.tiny_recipe import tiny

from secateur.errors import BudgetNotMetError, OptionError, RecipeError, SecateurError
from secateur.lab.engine import final_state, run
from secateur.lab.planning import plan
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store
from secateur.report.charts.sensitivity import sensitivity
from secateur.sensitivity.scan import Scan

TEXT = tiny(
    """
[[step]]
kind = "train"
epochs = 3
lr = 0.05
batch_size = 16
[[step]]
kind = "scan"
granularity = "filter"
levels = [0.3, 0.6, 0.9]
split = "test"
subset = 200
[[step]]
kind = "prune"
granularity = "filter"
budget = {name = "scanned", floor = 0.5}
""",
    limit=300,
    name="scanned",
)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("scanned"))
    recipe = Recipe.parse(TEXT)
    return store, recipe, run(recipe, store)


def table(store: Store, recipe: Recipe, label: str = "scan") -> Scan:
    trial = plan(recipe).trials[0]
    return Scan.from_json(final_state(trial, store, label).files["scan.json"].decode())


def test_every_cell_is_measured_and_the_prune_takes_what_the_floor_allows(done) -> None:
    store, recipe, ran = done
    found = table(store, recipe)
    assert found.names == ["fc1.weight", "fc2.weight", "fc3.weight"]
    assert [cell.sparsity for cell in found.cells] == [0.3, 0.6, 0.9] * 3
    assert all(cell.interval is not None for cell in found.cells)
    chosen = found.allocate(floor=0.5).sparsities
    assert len(set(chosen.values())) > 1 or max(chosen.values()) < 0.9  # else any table would do
    trial = plan(recipe).trials[0]
    masks = final_state(trial, store).masks
    assert masks is not None
    for row in masks.summary():
        units = masks[row.name].shape[0]
        assert (masks[row.name].any(dim=1) == 0).sum() == round(chosen[row.name] * units)
    assert ran.measurements["chosen_sparsity"].per_layer == chosen
    assert ran.measurements["scan_predicted"].value == found.allocate(floor=0.5).predicted


def test_the_model_leaves_a_scan_as_it_came(done) -> None:
    store, recipe, _ = done
    train, scan = (store.outcome(step.key) for step in plan(recipe).trials[0].steps[:2])
    assert train is not None
    assert scan is not None
    assert scan.state["weights"] == train.state["weights"]


def test_the_curves_are_measurements_that_the_chart_draws(done) -> None:
    store, recipe, ran = done
    rows = [item for item in ran.measurements if item.name == "scan_value"]
    assert len(rows) == 10
    assert {item.context["layer"] for item in rows} == {"", *table(store, recipe).names}
    assert all(item.spread["low"] <= item.value <= item.spread["high"] for item in rows)
    assert [figure.name for figure in sensitivity(ran.measurements)] == ["sensitivity", "sensitivity-each"]


def test_nothing_is_scanned_twice(done) -> None:
    store, recipe, _ = done
    assert run(recipe, store).computed == 0
    other = Recipe.parse(TEXT, ["prune.budget.floor=0.7"])
    assert run(other, store).computed == 1  # the prune alone: the scan is known
    keep = Recipe.parse(TEXT.replace("floor = 0.5", 'keep = 0.5, cost = "params"'))
    assert run(keep, store).computed == 1
    assert run(keep, store).measurements["mask_sparsity"].value == pytest.approx(0.5, abs=0.15)


def test_a_scan_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch, done) -> None:
    store, recipe = Store(tmp_path / "store"), Recipe.parse(TEXT)
    step = sys.modules["secateur.lab.steps.scan"]

    def stop(self, finished: int, total: int, left: float) -> None:
        if finished == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(step._ScanDisplay, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, store)
    (kept,) = (tmp_path / "store" / "checkpoints").glob("*")
    ledger = json.loads(kept.read_text())
    assert len(ledger["values"]) == 6
    # A value that no evaluation gives shows whether the kept ones are measured again.
    last = list(ledger["values"])[-1]
    ledger["values"][last] = [0.125, None]
    kept.write_text(json.dumps(ledger))
    run(recipe, store)
    values, undisturbed = ([cell.value for cell in table(*one).cells] for one in ((store, recipe), done[:2]))
    assert [a == b for a, b in zip(values, undisturbed, strict=True)].count(False) == 1
    assert 0.125 in values
    assert not list((tmp_path / "store" / "checkpoints").glob("*"))


def test_which_scan_is_meant_is_part_of_the_address(done) -> None:
    def keys(first: str, second: str) -> list[str]:
        head, _, rest = TEXT.partition('[[step]]\nkind = "scan"')
        scans = f'[[step]]\nkind = "scan"\nlabel = "{first}"{rest.partition("[[step]]")[0]}'
        more = f'[[step]]\nkind = "scan"\nlabel = "{second}"\ncriterion = "l2"\nlevels = [0.5]\n'
        prune = '[[step]]\nkind = "prune"\ngranularity = "filter"\nbudget = {name = "scanned", scan = "a", floor = 0.5}'
        return [step.key for step in plan(Recipe.parse(head + scans + more + prune)).trials[0].steps]

    one, other = keys("a", "b"), keys("b", "a")
    assert one[:3] == other[:3]  # labels are names
    assert one[3] != other[3]  # but "a" is another scan


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            ("floor = 0.5", 'scan = "scann", floor = 0.5'),
            RecipeError,
            "scan 'scann' is no earlier step; did you mean",
        ),
        (
            ("floor = 0.5", 'scan = "train", floor = 0.5'),
            OptionError,
            "step 'train' is no scan; name one that is",
        ),
        (
            ("floor = 0.5", "floor = 0.5, keep = 0.5"),
            RecipeError,
            "give either floor (a value to stay above) or keep",
        ),
        (("floor = 0.5", "flor = 0.5"), RecipeError, "has no option 'flor': did you mean 'floor'?"),
        (("floor = 0.5", "keep = 50"), RecipeError, "budget 'scanned': keep: "),
        (
            ("floor = 0.5", "floor = 1.1"),
            BudgetNotMetError,
            "before anything is removed, and 1.1 is asked for",
        ),
        (
            ("levels = [0.3, 0.6, 0.9]", "levels = [0.6, 0.3]"),
            OptionError,
            "levels: expected rising sparsities",
        ),
        (
            ("subset = 200", "subset = 5000"),
            OptionError,
            "asked for 5,000 images, but the test split has 300",
        ),
        (
            ('kind = "prune"\ngranularity = "filter"', 'kind = "prune"'),
            OptionError,
            "measured granularity Filter()",
        ),
        (
            ('kind = "prune"', 'kind = "prune"\ncriterion = "l2"'),
            OptionError,
            "measured criterion Magnitude()",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(done, change, error, words) -> None:
    assert change[0] in TEXT
    with pytest.raises(error) as caught:
        run(Recipe.parse(TEXT.replace(*change)), done[0])
    assert words in str(caught.value)


def test_a_model_with_a_loss_of_its_own_is_scanned_by_it(tmp_path) -> None:
    text = TEXT.partition("[[step]]")[0].replace("lenet-300-100", "vae").replace("limit = 300", "limit = 60")
    scan = '[[step]]\nkind = "scan"\nlevels = [0.5]\nonly = "fc1"\n'
    store, recipe = Store(tmp_path), Recipe.parse(text + scan)
    ran = run(recipe, store)
    found = table(store, recipe)
    assert not found.higher_is_better
    assert {item.context["metric"] for item in ran.measurements} == {"loss"}
    with pytest.raises(SecateurError, match="is measured by its own loss"):
        run(Recipe.parse(text + scan + "subset = 5\n"), store)
    assert json.loads(found.to_json())["dense"] == found.dense

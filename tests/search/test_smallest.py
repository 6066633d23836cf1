"""smallest: what is tried next, what counts as the front, and a real search that is not done twice."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import BudgetNotMetError, OptionError, RecipeError
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store
from secateur.search.frame import pursue

small = importlib.import_module("secateur.search.smallest")  # `secateur.smallest` may be the verb itself
ByteSettings = small.ByteSettings
SizeSettings, SizeAttempt = small.SizeSettings, small.SizeAttempt

MODEL = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def attempt(settings, size, accuracy, limit=0.9):
    holds = accuracy is not None and accuracy >= limit
    return SizeAttempt(settings=settings, size=size, accuracy=accuracy, holds=holds)


def walk(verdict, most=30):
    """The settings tried when `verdict(settings)` gives size and accuracy."""
    proposals = small._proposals(SizeSettings(0.2, 2, 0.01), MODEL)
    done = pursue(proposals, lambda settings: attempt(settings, *verdict(settings)), lambda line: None, most)
    return [one.settings for one in done]


def test_the_share_is_halved_while_it_holds_and_then_brought_between():
    tried = walk(lambda s: (int(1e5 * s.keep), 0.95 if s.keep >= 0.04 else 0.5))
    shares = [round(s.keep, 4) for s in tried if s.rate == 0.01 and s.bits == 2]
    assert shares[:4] == [0.2, 0.1, 0.05, 0.025]
    assert shares[4] == pytest.approx((0.05 * 0.025) ** 0.5, abs=1e-4)
    assert min(share for share in shares if share >= 0.04) < 0.05


def test_a_share_that_does_not_hold_is_doubled():
    tried = walk(lambda s: (int(1e5 * s.keep), 0.95 if s.keep >= 0.5 else 0.5))
    assert [round(s.keep, 3) for s in tried[:3]] == [0.2, 0.4, 0.8]


def test_a_change_stays_only_where_the_file_is_smaller_and_holds():
    def verdict(s):
        bits = s.bits if isinstance(s.bits, dict) else {"0": s.bits, "2": s.bits}
        held = s.keep >= 0.04 and s.rate <= 0.03 and bits["0"] >= 1 and bits["2"] >= 2
        size = 1e5 * s.keep * (1 - s.rate) * (sum(bits.values()) + 5)
        return int(size), 0.95 if held else 0.5

    last = walk(verdict)
    good = [s for s in last if verdict(s)[1] > 0.9]
    best = min(good, key=lambda s: verdict(s)[0])
    assert best.rate == 0.03
    assert best.bits == {"0": 1, "2": 2}


def test_the_target_in_bytes_is_halved_while_it_holds_and_then_brought_between():
    def verdict(settings):
        return attempt(settings, settings.target + 1, 0.95 if settings.target >= 20 else 0.5)

    proposals = small._proposals(ByteSettings(32), MODEL)  # 4 * 4 + 4 + 2 * 4 + 2 numbers: 120 bytes
    done = pursue(proposals, verdict, lambda line: None, 30)
    # 22.6 = sqrt(32 * 16), 19.02 = sqrt(22.6 * 16)
    assert [one.settings.target for one in done] == [32, 16, 23, 19]
    assert [one.holds for one in done] == [True, False, True, False]
    proposals = small._proposals(ByteSettings(40), MODEL)
    failing = pursue(proposals, lambda settings: attempt(settings, 1, 0.5), lambda line: None, 9)
    assert [one.settings.target for one in failing] == [
        40,
        80,
    ]  # doubled, while below nine tenths of the dense model


def test_attempts_are_trained_for_bytes_unless_an_option_of_the_other_way_is_given():
    assert small.SmallestOptions().first(nn.Linear(10, 100)) == ByteSettings(110)  # 4,400 bytes, a fortieth
    assert small.SmallestOptions(target=50).first(MODEL) == ByteSettings(50)
    assert small.SmallestOptions(bits=2).first(MODEL) == SizeSettings(0.1, 2, 0.01)
    assert small.SmallestOptions(calibrate=9).first(MODEL) == SizeSettings(0.1, 3, 0.01)
    assert small.SmallestOptions(rate=0.5, keep=0.2).first(MODEL) == SizeSettings(0.2, 3, 0.5)
    with pytest.raises(OptionError, match="target and keep: a model is trained for bytes, or pruned"):
        small.SmallestOptions(keep=0.1, target=50)
    with pytest.raises(OptionError, match="at least 1 byte"):
        small.SmallestOptions(target=0)


def test_the_steps_of_training_for_bytes_round_what_the_model_has():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    steps = small.steps_of(ByteSettings(500), model, "dense", {"epochs": 10, "lr": 0.01, "warmup": 1})
    assert [step["kind"] for step in steps] == ["rate_train", "share", "refine", "pack"]
    assert (steps[0]["target"], steps[0]["batch_norm"], steps[0]["biases"]) == (500, 6, 5)
    assert (steps[2]["epochs"], steps[2]["lr"], steps[2]["warmup"]) == (2, 0.0025, 0)
    assert steps[0]["teacher"] == steps[2]["teacher"] == "dense"
    assert (steps[3]["batch_norm"], steps[3]["biases"], steps[3]["codebook_bits"]) == (6, 5, 8)


def test_the_front_leaves_out_what_is_beaten_in_both():
    attempts = [
        attempt(SizeSettings(0.5), 900, 0.98),
        attempt(SizeSettings(0.4), 950, 0.97),  # larger and worse than the first
        attempt(SizeSettings(0.2), 500, 0.97),
        attempt(SizeSettings(0.1), None, None),
        attempt(SizeSettings(0.3), 500, 0.97),  # as good as the one before, which is kept
    ]
    assert small.front(attempts) == (2, 0)


RECIPE = {
    "data": {"name": "digits", "validation": 0.2},
    "model": {"name": "lenet-300-100"},
    "lab": {"threads": 1},
    "step": [
        {
            "kind": "train",
            "label": "dense",
            "epochs": 6,
            "lr": 0.002,
            "optimizer": "adam",
            "schedule": "cosine",
            "batch_size": 64,
        }
    ],
}
SETTINGS = small.SmallestOptions(keep=0.1, bits=2, train={"epochs": 3, "batch_size": 64})
OPTIONS = {"lost": 0.05, "attempts": 2, "options": SETTINGS}


BYTES = small.SmallestOptions(target=16_000, train={"epochs": 10, "batch_size": 64})


@pytest.fixture(scope="module", params=["bytes", "shares"])
def searched(request, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("smallest"))
    others = {"options": BYTES, "attempts": 1} if request.param == "bytes" else {}
    told, options = [], {**OPTIONS, **others}
    return store, small.smallest(Recipe.of(RECIPE), store, **options, on_message=told.append), told, options


def test_a_real_search_ends_with_a_file_that_holds(searched, tmp_path):
    store, found, told, options = searched
    assert found.best.accuracy >= found.limit
    assert found.best.size == min(one.size for one in found.attempts if one.holds)
    files = importlib.import_module("secateur.lab.engine").final_state(found.ran.plan.trials[0], store).files
    assert len(files[small.FILE]) == found.value("file_bytes") == found.best.size
    path = tmp_path / "model.sct"
    path.write_bytes(files[small.FILE])
    from secateur import models
    from secateur.lab.planning import data_of
    from secateur.lab.training import evaluate

    loaded = sc.load(path, into=models.build("lenet-300-100"))
    again = evaluate(loaded, data_of(Recipe.of(RECIPE)).test, device="cpu")["accuracy"]
    assert again == found.value("accuracy", "smallest_result")
    kept = sum(int((p != 0).sum()) for p in loaded.parameters() if p.dim() > 1)
    if options["options"] is BYTES:
        assert found.best.settings.target == 16_000
        assert found.best.size == pytest.approx(16_000, rel=0.15)
        assert all(len(torch.unique(p)) <= 7 for p in loaded.parameters() if p.dim() > 1)
    else:
        assert kept <= 0.1 * 266_200 + 1
    assert len(told) == 1 + len(found.attempts)
    assert "front of accuracy against bytes" in str(found)


def test_a_second_search_costs_nothing_and_says_the_same(searched):
    store, found, _, options = searched
    again = small.smallest(Recipe.of(RECIPE), store, **options)
    assert again.attempts == found.attempts
    assert again.ran.computed == 0


def test_the_test_images_are_looked_at_once_after_every_decision(searched):
    _, found, _, _ = searched
    labels = [(step.label, getattr(step.step, "split", None)) for step in found.ran.plan.trials[0].steps]
    tested = [label for label, split in labels if split == "test"]
    assert tested == ["smallest_dense_test", "smallest_result"]


def test_no_try_that_holds_is_an_error_that_says_how_near_it_came(searched):
    store, _, _, _ = searched
    with pytest.raises(BudgetNotMetError, match=r"none of 1 attempts held .*the nearest came to"):
        small.smallest(
            Recipe.of(RECIPE),
            store,
            lost=0.0,
            attempts=1,
            options=small.SmallestOptions(0.0005, bits=2, train={"epochs": 2, "batch_size": 256}),
        )


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"lost": 1.0}, "for 1 % write 0.01"),
        ({"attempts": 0}, "at least 1"),
    ],
)
def test_options_are_checked(option, words, tmp_path):
    with pytest.raises(OptionError, match=words):
        small.smallest(Recipe.of(RECIPE), Store(tmp_path), **{**OPTIONS, **option})


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"keep": 1.0}, "0 < keep < 1"),
        ({"bits": 9}, "1 to 8"),
    ],
)
def test_the_start_is_checked(option, words):
    with pytest.raises(OptionError, match=words):
        small.SmallestOptions(**option)


def test_training_options_that_are_no_numbers_are_refused():
    with pytest.raises(OptionError, match=r"expected numbers for epochs and lr, got .3. and 0\.1"):
        small.steps_of(SizeSettings(0.1), MODEL, "dense", {"epochs": "3", "lr": 0.1})


def test_a_recipe_that_shares_by_itself_is_refused_before_any_work(tmp_path):
    recipe = Recipe.of({**RECIPE, "step": [*RECIPE["step"], {"kind": "share"}]})
    with pytest.raises(
        RecipeError, match="step 'share': smallest continues from the model before its weights were"
    ):
        small.smallest(recipe, Store(tmp_path), **OPTIONS)
    assert Store(tmp_path).runs() == []


def test_models_without_biases_and_with_batch_norm_get_their_steps():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2, bias=False)
    )
    steps = small.steps_of(SizeSettings(0.1, {"0": 3, "3": 2}), model, "dense", {"epochs": 3, "lr": 0.01})
    assert [step.get("label") for step in steps if step["kind"] == "share"] == [
        "smallest_share2",
        "smallest_share3",
    ]
    assert steps[-1]["batch_norm"] == 6
    assert "biases" not in steps[-1]


def test_a_search_without_training_ends_with_a_file_that_holds(tmp_path):
    store = Store(tmp_path / "runs")
    options = small.SmallestOptions(keep=0.2, bits=3, calibrate=300)
    found = small.smallest(Recipe.of(RECIPE), store, lost=0.05, attempts=1, options=options)
    assert found.value("file_ratio") > 20
    assert "1 of 1 attempts held without training: 32 epochs saved" in str(found)
    kinds = [step["kind"] for step in small.steps_of(found.best.settings, MODEL, "dense", {}, calibrate=300)]
    assert kinds == ["prune", "compensate", "share", "pack"]
    with pytest.raises(OptionError, match="calibrate: expected a number of images"):
        small.SmallestOptions(calibrate=-1)


OWN = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10),
    )
"""


@pytest.mark.parametrize(
    "options",
    [
        small.SmallestOptions(target=2000, train={"epochs": 2, "batch_size": 32}),
        small.SmallestOptions(keep=0.3, bits=3, train={"epochs": 2, "batch_size": 32}),
        small.SmallestOptions(keep=0.5, bits=4, calibrate=100),
    ],
    ids=["bytes", "shares", "without training"],
)
def test_a_users_own_network_of_convolutions_with_biases_and_batch_norms(options, tmp_path, monkeypatch):
    """Removing filters once left their biases behind, and the file was refused."""
    (tmp_path / "own_network.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    train = {
        "kind": "train",
        "label": "dense",
        "epochs": 2,
        "lr": 0.01,
        "optimizer": "adam",
        "batch_size": 32,
    }
    recipe = {
        "data": {"name": "digits", "validation": 0.2, "limit": 400},
        "model": {"name": "own_network:build"},
        "lab": {"threads": 1},
        "step": [train],
    }
    recipe = Recipe.of(recipe, allow_code=True)
    store = Store(tmp_path / "runs")
    found = small.smallest(recipe, store, lost=0.9, attempts=1, options=options)
    assert found.best.holds
    files = importlib.import_module("secateur.lab.engine").final_state(found.ran.plan.trials[0], store).files
    path = tmp_path / "model.sct"
    path.write_bytes(files[small.FILE])
    loaded = sc.load(path, into=importlib.import_module("own_network").build()).eval()
    assert loaded(torch.zeros(2, 1, 8, 8)).shape == (2, 10)

"""`[teacher]`: another network than the recipe's own, which steps learn from."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import secateur as sc
from secateur.errors import RecipeError, SecateurError
from secateur.lab.engine import run
from secateur.lab.planning import plan
from secateur.lab.recipe import Recipe, schema
from secateur.lab.store import Store

RECIPE = """
name = "taught"
[data]
name = "digits"
limit = 300
size = 28
channels = 1
[model]
name = "lenet-300-100"
[teacher]
name = "lenet5"
weights = "{weights}"
[lab]
threads = 1
[[step]]
kind = "train"
epochs = 1
teacher = "teacher"
distill_alpha = 0.9
"""


@pytest.fixture
def weights(tmp_path):
    def make(seed: int, name: str = "lenet5") -> str:
        torch.manual_seed(seed)
        path = tmp_path / f"{name}-{seed}.safetensors"
        save_file(sc.models.build(name).state_dict(), path)
        return path.as_posix()

    return make


def test_a_step_learns_from_the_network_in_the_file(weights, tmp_path):
    first, second = weights(0), weights(1)
    results = [
        run(Recipe.parse(RECIPE.format(weights=path)), Store(tmp_path / "store")) for path in (first, second)
    ]
    losses = [[item.value for item in result.measurements if item.name == "epoch_loss"] for result in results]
    assert losses[0] != losses[1]  # other weights in the teacher, another loss: it was asked
    again = plan(Recipe.parse(RECIPE.format(weights=first)))
    assert again.keys() == plan(Recipe.parse(RECIPE.format(weights=first))).keys()
    assert again.keys() != plan(Recipe.parse(RECIPE.format(weights=second))).keys()


def test_a_recipe_with_a_teacher_reads_back_and_is_set_by_its_key(weights):
    recipe = Recipe.parse(RECIPE.format(weights=weights(0)), ["teacher.weights=other.safetensors"])
    assert recipe.teacher.weights == "other.safetensors"
    assert Recipe.of(recipe.plain()) == recipe
    assert "teacher" in schema()["properties"]
    plain = Recipe.parse('[[step]]\nkind = "prune"\nbudget = 0.5').plain()
    assert "teacher" not in plain  # recipes without one are written, and found again, as before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('teacher = "teacher"\ndistill_alpha = 0.9', ""), "no step learns from the [teacher] (lenet5)"),
        (('[teacher]\nname = "lenet5"\nweights = "{weights}"', ""), "the recipe has no [teacher] table"),
        (('kind = "train"', 'kind = "train"\nlabel = "teacher"'), "both a table and the label of a step"),
        (("[teacher]\nname", "[teacher]\nnaem = 1\nname"), "has no key 'naem': did you mean 'name'?"),
    ],
)
def test_what_cannot_teach_is_refused_before_any_work(weights, change, words):
    text = RECIPE.replace(*change)
    assert text != RECIPE
    with pytest.raises(SecateurError, match="teacher") as refusal:
        plan(Recipe.parse(text.format(weights=weights(0))))
    assert words in str(refusal.value)


def test_another_number_of_classes_is_refused_with_both_numbers():
    text = RECIPE.replace('weights = "{weights}"', "options = {{num_classes = 3}}").format()
    with pytest.raises(RecipeError) as refusal:
        plan(Recipe.parse(text))
    assert "the teacher lenet5 answers an image with (3,) numbers, expected (10,) as of lenet-300-100" in str(
        refusal.value
    )


def test_a_teacher_of_other_images_is_refused():
    text = RECIPE.replace('weights = "{weights}"', "").replace("lenet5", "resnet20").format()
    with pytest.raises(RecipeError, match="resnet20 does not take an image of digits \\(1x28x28\\)"):
        plan(Recipe.parse(text))


def test_the_teacher_of_a_step_is_part_of_its_address():
    text = """
[data]
name = "digits"
limit = 300
[model]
name = "vae"
[[step]]
kind = "prune"
label = "LABEL1"
budget = 0.5
[[step]]
kind = "prune"
label = "LABEL2"
budget = 0.6
[[step]]
kind = "train"
epochs = 1
teacher = "one"
distill_alpha = 0.5
"""
    keys = [
        plan(Recipe.parse(text.replace("LABEL1", a).replace("LABEL2", b))).keys()
        for a, b in (("one", "two"), ("two", "one"))
    ]
    assert keys[0][:2] == keys[1][:2]
    assert keys[0][2] != keys[1][2]

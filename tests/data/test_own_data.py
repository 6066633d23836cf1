"""Data of the user's own, by the name of a function: what it may return, and what is refused."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from secateur import data
from secateur.errors import DataError, OptionError, UnknownNameError

ROWS, CLASSES = torch.arange(40.0).reshape(20, 2), torch.arange(20) % 4
PAIR = (ROWS, CLASSES)


class Listed(Dataset):
    """Items by place, as a user writes them."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, at):
        return self.items[at]()


class Stream(IterableDataset):
    """Items one after the other."""

    def __iter__(self):
        yield from zip(*PAIR)


def listed(count=20):
    return Listed([lambda at=at: (ROWS[at].numpy(), int(CLASSES[at])) for at in range(count)])


@pytest.fixture
def own(monkeypatch):
    """A module of the user's whose `build` returns what is given."""
    module = type(sys)("own_rows")
    monkeypatch.setitem(sys.modules, "own_rows", module)

    def load(answer, **options):
        module.build = lambda: answer
        return data.load("own_rows:build", **options)

    load.module = module
    return load


@pytest.mark.parametrize(
    "answer",
    [
        (PAIR, PAIR),
        {"train": PAIR, "test": PAIR},
        [PAIR, None, PAIR],
        (TensorDataset(*PAIR), TensorDataset(*PAIR)),
        (listed(), listed()),
        ((ROWS.numpy(), CLASSES.to(torch.int16)), PAIR),
    ],
)
def test_every_form_gives_the_same_data(own, answer):
    found = own(answer)
    assert (len(found.train), len(found.validation), len(found.test)) == (18, 2, 20)
    assert found.classes == ("0", "1", "2", "3")
    assert found.fingerprint == own((PAIR, PAIR)).fingerprint
    inputs, labels = next(iter(found.test.batches(20)))
    assert torch.equal(inputs, ROWS)
    assert torch.equal(labels, CLASSES)
    assert repr(found) == "Data('own_rows:build', 18 + 2 + 20 inputs of 2, 4 classes)"


def test_the_fingerprint_is_of_the_content_and_a_validation_part_is_kept(own):
    first = own((PAIR, PAIR))
    changed = ROWS.clone()
    changed[3, 1] += 1
    assert own(((changed, CLASSES), PAIR)).fingerprint != first.fingerprint
    assert own(((ROWS, CLASSES.flip(0)), PAIR)).fingerprint != first.fingerprint
    assert (
        own(((ROWS.to(torch.int64), CLASSES), (ROWS.to(torch.int64), CLASSES))).fingerprint
        != first.fingerprint
    )
    assert len(own((PAIR, (ROWS[:3], CLASSES[:3]), PAIR)).validation) == 3
    assert len(own((PAIR, PAIR), limit=8, validation=0.5).train) == 4


def test_tokens_keep_their_type_and_images_of_bytes_are_normalised(own):
    tokens = torch.arange(60).reshape(20, 3)
    found = own({"train": (tokens, CLASSES), "test": (tokens, CLASSES)})
    assert found.example.dtype == torch.int64
    assert torch.equal(found.example, tokens[:1])
    assert own(((tokens, CLASSES),) * 2, normalise="none").mean == ()
    pixels = torch.randint(0, 255, (20, 3, 4, 4), dtype=torch.uint8)
    images = own(((pixels, CLASSES), (pixels, CLASSES)))
    assert images.example.dtype == torch.float32
    assert len(images.mean) == 3


def test_a_data_or_the_raw_parts_are_taken_as_they_are(own):
    digits = data.load("digits", limit=20)
    found = own(digits)
    assert (found.train, found.test, found.classes) == (digits.train, digits.test, digits.classes)
    # the function may have changed the images: its source counts
    assert found.fingerprint != digits.fingerprint
    assert own(digits).fingerprint == found.fingerprint
    raw = data.Raw(data.ImageMemory(digits.train.images, digits.train.labels), None, None, digits.classes)
    assert own(raw).classes == digits.classes


def test_options_reach_the_function_and_random_numbers_are_those_of_the_seed(own):
    def build(count):
        return ((torch.randn(count, 2), torch.arange(count) % 2),) * 2

    own.module.drawn = build
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, two = (data.load("own_rows:drawn", options={"count": 6}) for _ in range(2))
    assert one.fingerprint == two.fingerprint
    assert len(one.test) == 6
    assert torch.equal(torch.get_rng_state(), before)
    assert data.load("own_rows:drawn", options={"count": 6}, seed=1).fingerprint != one.fingerprint
    with pytest.raises(OptionError, match=r"data 'own_rows:drawn': the options \{\} do not fit it: missing"):
        data.load("own_rows:drawn")


CHANGING = Listed([lambda: (torch.rand(2), 0), lambda: (torch.zeros(2), 1)])
REFUSED = [
    (None, "expected .*a pair of tensors.* got NoneType"),
    (PAIR, r"got tensors, as of one part; return \(\(train_inputs, train_labels\)"),
    ((PAIR,), "got tuple of 1"),
    ({"train": PAIR, "tset": PAIR}, "got a dict with train, tset"),
    ((PAIR, (ROWS, CLASSES[:5])), r"test: expected as many labels as inputs.*\(20, 2\) and labels \(5,\)"),
    ((PAIR, (ROWS[:0], CLASSES[:0])), "test: expected as many labels as inputs, at least one"),
    ((PAIR, (ROWS[:, :1], CLASSES)), r"test: expected inputs of shape \(2,\) as in train, got \(1,\)"),
    ((PAIR, ("text", CLASSES)), "test: inputs: expected a tensor or an array of numpy, got str"),
    ((PAIR, ({"ids": ROWS}, CLASSES)), "got dict; where the model takes several inputs"),
    ((PAIR, (ROWS, CLASSES, ROWS)), r"expected a pair \(inputs, labels\) or a torch Dataset, got tuple of 3"),
    ((PAIR, (ROWS, CLASSES - 1)), "expected labels 0 and up, got -1"),
    ((PAIR, Stream()), "got Stream, which only runs through; give tensors"),
    ((PAIR, Listed([])), "got an empty one"),
    ((PAIR, Listed([lambda: 3])), r"item 0: expected a pair \(input, label\), got int"),
    (
        (PAIR, Listed([lambda: (ROWS[0], 0), lambda: (ROWS[0, :1], 0)])),
        r"item 1: expected input \(2,\).* pad or cut",
    ),
    ((PAIR, CHANGING), "expected the same item at every reading.*random transforms"),
]


@pytest.mark.parametrize(("answer", "message"), REFUSED)
def test_anything_else_is_refused_with_what_was_expected(own, answer, message):
    with pytest.raises(DataError, match="data 'own_rows:build': .*" + message):
        own(answer)


def test_arguments_of_datasets_by_name_are_refused(own):
    for key, value in {"size": 28, "channels": 1, "path": "x"}.items():
        with pytest.raises(OptionError, match=f"{key} belongs to datasets by name.*options"):
            own((PAIR, PAIR), **{key: value})
    with pytest.raises(OptionError, match="normalise: expected images"):
        own((PAIR, PAIR), normalise="imagenet")
    with pytest.raises(OptionError, match="data 'digits' takes no options"):
        data.load("digits", options={"a": 1})
    with pytest.raises(OptionError, match=r"augment: expected images, got inputs of shape \(2,\)"):
        next(own((PAIR, PAIR)).train.batches(4, augment="flip"))


def test_a_function_that_fails_or_is_not_there(own):
    own.module.fails = lambda: 1 / 0
    with pytest.raises(DataError, match=r"the function failed .ZeroDivisionError: division by zero"):
        data.load("own_rows:fails")
    own.module.build = len
    with pytest.raises(UnknownNameError, match=r"module own_rows has no 'bild'; did you mean 'build'"):
        data.load("own_rows:bild")
    with pytest.raises(UnknownNameError, match="did you mean own_rows:build"):
        data.load("./own_rows:build")


def test_targets_that_are_no_classes_need_a_model_with_its_own_loss(own):
    own.module.build = lambda: ((ROWS, ROWS[:, :1]), (ROWS, ROWS[:, :1]))
    with pytest.raises(DataError, match=r"labels: expected whole numbers.*\(18, 1\).*Linear its own methods"):
        data.load_for(nn.Linear(2, 1), "own_rows:build")

    class Fitted(nn.Linear):
        """A regression."""

        def training_loss(self, outputs, inputs, labels):
            return (outputs - labels).square().mean()

    found = data.load_for(Fitted(2, 1), "own_rows:build")
    assert found.classes == ()
    assert len(found.train.per_class(1)[0]) == 10


def test_a_name_that_is_a_folder_and_a_function_is_refused(own, tmp_path, monkeypatch):
    """Whether a name is code must not depend on the folder that a recipe happens to run in."""
    from secateur.errors import RecipeError
    from secateur.lab.trust import refuse_code

    (tmp_path / "own_rows:build").mkdir()
    monkeypatch.chdir(tmp_path)
    own.module.build = lambda: pytest.fail("called")
    assert data.runs_code("own_rows:build")
    with pytest.raises(RecipeError, match="import own_rows and call build"):
        refuse_code({"data": {"name": "own_rows:build"}}, frozenset(), "recipe")
    with pytest.raises(OptionError, match=r"file or folder of this name too; write '\./own_rows:build'"):
        data.load("own_rows:build")
    assert not data.runs_code("./own_rows:build")
    refuse_code({"data": {"name": "./own_rows:build"}}, frozenset(), "recipe")
    with pytest.raises(DataError):  # it is read as a folder, which is empty
        data.load("./own_rows:build")
    with pytest.raises(UnknownNameError, match="did you mean own_rows:other"):
        data.load("./own_rows:other")

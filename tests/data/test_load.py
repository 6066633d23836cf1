"""Loading: what is asked for is what comes, from every kind of place, and the same every time."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from secateur import data, models
from secateur.data import _decode
from secateur.data._kind import Request
from secateur.errors import DataError, OptionError, UnknownNameError


def png(value: int, size=(6, 4), mode="RGB") -> bytes:
    file = io.BytesIO()
    rng = np.random.default_rng(value)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def pixels(value: int, size=(6, 4)) -> torch.Tensor:
    with Image.open(io.BytesIO(png(value, size))) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def write_parquet(file, values, labels, *, image="image", label="label", names=None, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": png(value, **options), "path": None} for value in values]
    table = pa.table({image: rows, label: labels})
    if names:
        info = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, file)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "set"
    write_parquet(place / "train-00000-of-00002.parquet", range(12), [0, 1, 2] * 4, names=["a", "b", "c"])
    write_parquet(place / "train-00001-of-00002.parquet", range(12, 20), [0, 1, 2, 0, 1, 2, 0, 1])
    write_parquet(place / "test-00000-of-00001.parquet", range(20, 25), [2, 1, 0, 1, 2])
    return place


def test_parquet_in_hugging_faces_layout(folder, tmp_path):
    found = data.load(folder, validation=0.2, seed=1, cache_dir=tmp_path / "cache")
    assert (len(found.train), len(found.validation), len(found.test)) == (16, 4, 5)
    assert found.classes == ("a", "b", "c")
    assert found.shape == (3, 4, 6)
    assert found.test.labels.tolist() == [2, 1, 0, 1, 2]
    assert torch.equal(found.test.images[3], pixels(23))
    # Train and validation together are exactly the training rows, each once, with its own label.
    together = torch.cat([found.train.images, found.validation.images])
    labels = torch.cat([found.train.labels, found.validation.labels]).tolist()
    rows = {pixels(value).numpy().tobytes(): value % 3 for value in range(12)}
    rows |= {pixels(value).numpy().tobytes(): (value - 12) % 3 for value in range(12, 20)}
    assert sorted(image.numpy().tobytes() for image in together) == sorted(rows)
    assert all(rows[image.numpy().tobytes()] == label for image, label in zip(together, labels))


def test_the_same_call_gives_the_same_data_and_another_seed_another_split(folder, tmp_path):
    one, two = (data.load(folder, seed=1, cache_dir=tmp_path / name) for name in ("a", "b"))
    assert one.fingerprint == two.fingerprint
    assert torch.equal(one.train.images, two.train.images)
    other = data.load(folder, seed=2, cache_dir=tmp_path / "a")
    assert other.fingerprint != one.fingerprint
    assert torch.equal(other.test.images, one.test.images)  # the test images never depend on the seed


def test_the_fingerprint_follows_the_content(folder, tmp_path):
    before = data.load(folder, cache_dir=tmp_path / "cache").fingerprint
    write_parquet(folder / "test-00000-of-00001.parquet", [20, 21, 22, 23, 99], [2, 1, 0, 1, 2])
    after = data.load(folder, cache_dir=tmp_path / "cache").fingerprint
    write_parquet(folder / "test-00000-of-00001.parquet", [20, 21, 22, 23, 99], [2, 1, 0, 1, 1])
    assert len({before, after, data.load(folder, cache_dir=tmp_path / "cache").fingerprint}) == 3


def test_images_are_decoded_once(folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = data.load(folder, cache_dir=cache)
    written = sorted((cache / "images").iterdir())
    assert len(written) == 2
    calls = []
    real = _decode.decode
    monkeypatch.setattr(_decode, "decode", lambda *a: calls.append(1) or real(*a))
    assert data.load(folder, cache_dir=cache).fingerprint == first.fingerprint
    assert len(calls) == 2  # the first image of either split, to learn the size
    written[0].write_bytes(b"damaged")
    assert data.load(folder, cache_dir=cache).fingerprint == first.fingerprint
    assert len(calls) > 4


def test_a_cache_that_cannot_be_written_costs_no_run(folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert len(data.load(folder, cache_dir=tmp_path / "file").test) == 5


def test_size_and_channels(folder, tmp_path):
    found = data.load(folder, size=8, channels=1, cache_dir=tmp_path)
    assert found.shape == (1, 8, 8)
    assert found.train.images.shape == (18, 1, 8, 8)
    assert data.load("digits", size=(9, 12), channels=3, limit=10).shape == (3, 9, 12)
    digits = data.load("digits", channels=3, limit=10).test.images
    assert torch.equal(digits[:, 0], digits[:, 2])
    assert digits.max() == 255


def test_images_larger_than_memory_are_streamed_and_give_the_same_batches(folder, tmp_path, monkeypatch):
    held = data.load(folder, cache_dir=tmp_path)
    monkeypatch.setattr(_decode, "IN_MEMORY", 100)
    streamed = data.load(folder, cache_dir=tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert (streamed.mean, streamed.classes, streamed.shape) == (held.mean, held.classes, held.shape)
    options = {"shuffle": True, "seed": 3, "epoch": 2, "augment": "standard"}
    ours, theirs = (list(part.train.batches(4, **options)) for part in (streamed, held))
    assert len(ours) == len(theirs) == 5
    for (images, labels), (same, as_these) in zip(ours, theirs):
        assert torch.equal(images, same)
        assert torch.equal(labels, as_these)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_streamed_split_of_few_batches(folder, tmp_path, monkeypatch, count):
    monkeypatch.setattr(_decode, "IN_MEMORY", 100)
    test = data.load(folder, cache_dir=tmp_path).test
    batches = list(test.batches(-(-5 // count)))
    assert len(batches) == count
    assert torch.cat([labels for _, labels in batches]).tolist() == [2, 1, 0, 1, 2]


def test_a_folder_of_images(tmp_path):
    place = tmp_path / "pets"
    for index, name in enumerate(["dog", "cat", "owl"] * 4):
        (place / name / "deep").mkdir(parents=True, exist_ok=True)
        (place / name / "deep" / f"{index}.png").write_bytes(png(index))
    (place / "dog" / "notes.txt").write_text("not an image")
    found = data.load(place, cache_dir=tmp_path / "cache")
    assert found.classes == ("cat", "dog", "owl")
    assert len(found.train) + len(found.validation) + len(found.test) == 12
    assert len(found.test) == 2  # a fifth, held out of the only part there is
    for split in ("train", "test"):
        (place.parent / "parts" / split).mkdir(parents=True)
        for name in ("cat", "dog", "owl"):
            (place / name).rename(place.parent / "parts" / split / name) if split == "train" else None
    for name in ("cat", "owl"):
        (place.parent / "parts" / "test" / name).mkdir()
        (place.parent / "parts" / "test" / name / "1.png").write_bytes(png(77))
    parts = data.load(place.parent / "parts", cache_dir=tmp_path / "cache")
    assert parts.test.labels.tolist() == [0, 2]
    assert len(parts.train) + len(parts.validation) == 12


def test_a_folder_of_one_class_is_no_dataset(tmp_path):
    (tmp_path / "figures").mkdir()
    for index in range(3):
        (tmp_path / "figures" / f"{index}.png").write_bytes(png(index))
    with pytest.raises(DataError, match="each of two classes or more, found images in 'figures' alone"):
        data.load(tmp_path, cache_dir=tmp_path / "cache")


def test_a_dataset_saved_by_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"img": [{"bytes": png(v), "path": None} for v in range(6)], "label": [0, 1, 0, 1, 0, 1]}
    made = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": made, "test": made.select([5, 0])}).save_to_disk(str(tmp_path / "saved"))
    found = data.load(tmp_path / "saved", cache_dir=tmp_path / "cache")
    assert found.classes == ("no", "yes")
    assert found.test.labels.tolist() == [1, 0]
    assert torch.equal(found.test.images[0], pixels(5))


def test_mnist_and_cifar10_are_looked_for_where_the_message_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SECATEUR_DATA", raising=False)
    with pytest.raises(DataError) as failed:
        data.load("mnist")
    message = str(failed.value)
    for part in ("./data/mnist", "SECATEUR_DATA", "ylecun/mnist", "--local-dir data/mnist", "'digits'"):
        assert part in message
    write_parquet(tmp_path / "data" / "mnist" / "train.parquet", range(6), [0, 1] * 3)
    write_parquet(tmp_path / "data" / "mnist" / "test.parquet", range(3), [0, 1, 0])
    assert len(data.load("mnist", cache_dir=tmp_path / "c").test) == 3
    root = tmp_path / "elsewhere"
    write_parquet(root / "cifar10" / "plain" / "train.parquet", range(6), [0, 1] * 3, image="img")
    write_parquet(root / "cifar10" / "plain" / "test.parquet", range(2), [0, 1], image="img")
    monkeypatch.setenv("SECATEUR_DATA", str(root))
    assert len(data.load("cifar10", cache_dir=tmp_path / "c").test) == 2
    assert len(data.load("cifar-10", path=root / "cifar10", cache_dir=tmp_path / "c").test) == 2
    with pytest.raises(DataError, match=f"looked in {tmp_path}/nowhere; next"):
        data.load("cifar10", path=tmp_path / "nowhere")


def test_splits_the_dataset_has_are_used(tmp_path):
    place = tmp_path / "set"
    write_parquet(place / "train.parquet", range(10), [0, 1] * 5)
    write_parquet(place / "validation.parquet", range(10, 14), [0, 1] * 2)
    only = data.load(place, validation=0.3, cache_dir=tmp_path / "c")
    assert (len(only.train), len(only.validation), len(only.test)) == (7, 3, 4)
    write_parquet(place / "test.parquet", range(14, 16), [0, 1])
    three = data.load(place, validation=0.3, cache_dir=tmp_path / "c")
    assert (len(three.train), len(three.validation), len(three.test)) == (10, 4, 2)
    write_parquet(place / "test.parquet", range(14, 16), [-1, -1])  # as competitions hide their labels
    assert len(data.load(place, cache_dir=tmp_path / "c").test) == 4


def test_labels_that_are_words(tmp_path):
    write_parquet(tmp_path / "train.parquet", range(6), ["b", "a", "c", "a", "b", "c"])
    write_parquet(tmp_path / "test.parquet", range(2), ["c", "a"])
    found = data.load(tmp_path, cache_dir=tmp_path / "c")
    assert found.classes == ("a", "b", "c")
    assert found.test.labels.tolist() == [2, 0]


def test_limit(folder, tmp_path):
    found = data.load(folder, limit=10, validation=0.2, cache_dir=tmp_path)
    assert (len(found.train), len(found.validation), len(found.test)) == (8, 2, 5)
    digits = data.load("digits", limit=100, seed=1)
    assert len(set(digits.train.labels.tolist())) == 10  # drawn, not the first


def test_normalisation(folder, tmp_path):
    found = data.load(folder, validation=0, cache_dir=tmp_path)
    every = torch.cat([images for images, _ in found.train.batches(7)])
    assert every.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (every.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-4
    unit = data.load("digits", normalise="none", limit=50)
    images, _ = unit.test.first(50)
    assert images.min() == 0
    assert images.max() == 1
    assert data.load(folder, normalise="imagenet", cache_dir=tmp_path).std == (0.229, 0.224, 0.225)
    with pytest.raises(OptionError, match="expected 3 means and 3 deviations"):
        data.load(folder, normalise=((0.5,), (0.5,)), cache_dir=tmp_path)
    with pytest.raises(OptionError, match="expected data, imagenet, none"):
        data.load("digits", normalise="zca")


def test_load_for_gives_what_the_model_says_it_wants():
    assert data.load_for(models.build("resnet20"), "digits", limit=20).shape == (3, 32, 32)
    vae = data.load_for(models.build("vae"), "digits", limit=20)
    assert vae.shape == (1, 28, 28)
    assert vae.std == (1.0,)
    assert data.load_for(models.build("cnn"), "digits", limit=20, size=30).shape == (1, 30, 30)


def test_ten_images_of_every_class():
    images, labels = data.load("digits").train.per_class(10)
    assert images.shape == (100, 1, 8, 8)
    assert torch.bincount(labels).tolist() == [10] * 10


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        ({"name_or_path": "digitz"}, UnknownNameError, "did you mean 'digits'"),
        ({"name_or_path": "./nowhere"}, DataError, "no such folder"),
        ({"name_or_path": "folder"}, OptionError, "give the place too, with path="),
        ({"name_or_path": "digits", "validation": 1.0}, OptionError, "validation: expected a share"),
        ({"name_or_path": "digits", "channels": 4}, OptionError, "channels: expected 1, 3 or None"),
        ({"name_or_path": "digits", "limit": 1}, OptionError, "limit: expected at least 2"),
        ({"name_or_path": "digits", "size": 0}, OptionError, "size: expected at least 1 pixel"),
    ],
)
def test_wrong_calls_are_refused(call, error, said):
    with pytest.raises(error, match=said):
        data.load(**call)


def test_wrong_files_are_named(tmp_path):
    cache = tmp_path / "c"
    broken = tmp_path / "broken"
    write_parquet(broken / "train.parquet", range(3), [0, 1, 0])
    rows = [{"bytes": png(1), "path": None}, {"bytes": b"no image", "path": None}]
    pq.write_table(pa.table({"image": rows, "label": [0, 1]}), broken / "test.parquet")
    with pytest.raises(DataError, match=r"row 1 of .*test\.parquet: expected an image that Pillow can read"):
        data.load(broken, cache_dir=cache)
    uneven = tmp_path / "uneven"
    pq.write_table(
        pa.table({"image": [{"bytes": png(1)}, {"bytes": png(1, size=(5, 5))}], "label": [0, 1]}),
        (uneven.mkdir(), uneven / "train.parquet")[1],
    )
    with pytest.raises(DataError, match="expected 6x4 pixels with 3 channels like the first image, got 5x5"):
        data.load(uneven, cache_dir=cache)
    assert data.load(uneven, size=4, cache_dir=cache).shape == (3, 4, 4)
    columns = tmp_path / "columns"
    write_parquet(columns / "train.parquet", range(3), [0, 1, 0], image="photo")
    with pytest.raises(
        DataError, match=r"expected a column of images named .*; got the columns photo, label"
    ):
        data.load(columns, cache_dir=cache)
    (columns / "train.parquet").write_bytes(b"PAR0")
    with pytest.raises(DataError, match="expected a Parquet file, got something else"):
        data.load(columns, cache_dir=cache)
    nameless = tmp_path / "nameless"
    write_parquet(nameless / "part.parquet", range(3), [0, 1, 0])
    with pytest.raises(
        DataError, match=r"expected Parquet files named train\*\.parquet .* got part\.parquet"
    ):
        data.load(nameless, cache_dir=cache)
    labels = tmp_path / "labels"
    write_parquet(labels / "train.parquet", range(3), [0, 5, 0], names=["a", "b"])
    with pytest.raises(DataError, match=r"expected labels 0\.\.1, got 0\.\.5"):
        data.load(labels, cache_dir=cache)
    empty = tmp_path / "pictures"
    (empty / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="expected a folder per class with images in it"):
        data.load(empty, cache_dir=cache)


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    from secateur.data import hub

    seen = []

    def load(name: str) -> None:
        seen.append((datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE))
        raise ConnectionError("the cache has no such thing")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for reachable in (False, True):
        monkeypatch.setattr(hub, "_reachable", lambda address, answer=reachable: answer)
        with pytest.raises(DataError, match=r"dataset 'some/name': expected .* or take 'digits'"):
            hub.Hub().read(Request(path="some/name"))
    assert seen == [(True, True), (False, False)]
    assert (datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE) == (False, False)
    monkeypatch.undo()
    monkeypatch.setattr(hub, "getproxies", dict)
    assert not hub._reachable("http://127.0.0.1:9")


def test_images_of_a_detection_data_set(tmp_path):
    for split, number, line in (
        ("train", 1, "1 0.5 0.5 1 1\n0 0 0 1 1"),
        ("train", 2, ""),
        ("val", 3, "0 0 0 1 1"),
    ):
        for kind, ending in (("images", "png"), ("labels", "txt")):
            (tmp_path / kind / split).mkdir(parents=True, exist_ok=True)
            file = tmp_path / kind / split / f"{number}.{ending}"
            file.write_bytes(png(number) if kind == "images" else line.encode())
    found = data.load("yolo", path=tmp_path, normalise="none", cache_dir=tmp_path / "cache")
    assert (len(found.train), len(found.validation)) == (2, 1) or (len(found.train), len(found.test)) == (
        2,
        1,
    )
    images, labels = next(iter(found.train.batches(2)))
    assert labels.tolist() == [1, 0]
    assert torch.allclose(images[0], pixels(1) / 255)
    (tmp_path / "labels" / "train" / "1.txt").write_text("cat 0.5 0.5 1 1")
    with pytest.raises(
        DataError, match=r"1\.txt: expected lines that begin with the number of a class, got 'cat'"
    ):
        data.load("yolo", path=tmp_path)
    with pytest.raises(DataError, match="expected a folder images/ in it"):
        data.load("yolo", path=tmp_path / "labels")

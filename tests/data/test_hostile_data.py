"""Datasets from strangers: a named error before memory is spent, and no file outside the dataset is read."""

from __future__ import annotations

import io
import json
import resource
import struct
import subprocess
import sys
import zlib
from unittest import mock

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from secateur import data
from secateur.data import _decode
from secateur.errors import DataError


def png(width: int, height: int, pixel: bytes = b"\0") -> bytes:
    """A grey PNG of one value; a tall one is a few hundred bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + pixel * width) * min(height, 300_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def table(path, images, labels, metadata=None):
    found = pyarrow.table({"image": pyarrow.array(images, pyarrow.binary()), "label": labels})
    pyarrow.parquet.write_table(found.replace_schema_metadata(metadata), path)


SMALL = png(8, 8)


@pytest.mark.parametrize("image", [png(1, 200_000), png(200_000, 1), png(12_000, 12_000)])
def test_an_image_that_grows_is_refused_before_memory_is_spent(tmp_path, image):
    assert len(image) < 200_000
    table(tmp_path / "train.parquet", [SMALL, image], [0, 1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"row 1 of .*train.parquet: an image of .* pixels: expected at most"):
        data.load(tmp_path, size=32, cache_dir=tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize(
    ("kind", "mode", "size", "each"),
    [
        ("PNG", "RGB", 8, 4),
        ("PNG", "P", 8, 8),
        ("WEBP", "RGB", 8, 8),
        ("PNG", "RGB", None, 10),
        ("PNG", "L", 8, 8),
    ],
)
def test_all_that_an_image_takes_while_it_is_decoded_is_counted(tmp_path, kind, mode, size, each):
    file = io.BytesIO()
    Image.new(mode, (400, 450)).save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    with mock.patch.object(_decode, "IMAGE_BYTES", each * 400 * 450 - 8 * len(file.getvalue())):
        _decode.decode(file.getvalue(), (size, size) if size else None, 3)
    with (
        mock.patch.object(_decode, "IMAGE_BYTES", each * 400 * 450 - 8 * len(file.getvalue()) - 1),
        pytest.raises(DataError, match=f"at most 179,999 pixels, which take {each} bytes each"),
    ):
        _decode.decode(file.getvalue(), (size, size) if size else None, 3)


def test_more_bytes_can_be_allowed(tmp_path, monkeypatch):
    table(tmp_path / "train.parquet", [SMALL, png(1, 20_000)] * 2, [0, 1] * 2)
    monkeypatch.setattr(_decode, "IMAGE_BYTES", 1 << 20)
    with pytest.raises(DataError, match="SECATEUR_IMAGE_BYTES"):
        data.load(tmp_path, size=32, cache_dir=tmp_path)
    monkeypatch.setenv("SECATEUR_IMAGE_BYTES", str(1 << 30))
    assert len(data.load(tmp_path, size=32, cache_dir=tmp_path).train) == 3


def test_formats_that_start_programs_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a program was started"))
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    with pytest.raises(OSError, match="cannot identify"):
        _decode.decode(page, None, None)
    table(tmp_path / "train.parquet", [page, page], [0, 1])
    with pytest.raises(DataError, match="expected an image that Pillow can read"):
        data.load(tmp_path, cache_dir=tmp_path)


@pytest.mark.parametrize("label", [2**40, 2**62, 65_536])
def test_large_labels_are_refused(tmp_path, label):
    table(tmp_path / "train.parquet", [SMALL, SMALL], pyarrow.array([0, label], pyarrow.int64()))
    with pytest.raises(DataError, match="expected labels 0, 1, 2, … below 65,536, got"):
        data.load(tmp_path, cache_dir=tmp_path)


@pytest.mark.parametrize(
    "labels",
    [
        [0.5, 1.5],
        [None, 1],
        [[0], [1]],
        ["a", None],
        [{"a": 1}, {"a": 2}],
        pyarrow.array([0, 2**63], pyarrow.uint64()),
        pyarrow.array([0, 1], pyarrow.timestamp("s")),
    ],
)
def test_labels_of_other_kinds_are_refused(tmp_path, labels):
    table(tmp_path / "train.parquet", [SMALL, SMALL], labels)
    with pytest.raises(DataError, match="expected labels"):
        data.load(tmp_path, cache_dir=tmp_path)


def test_a_table_without_rows_is_refused(tmp_path):
    table(tmp_path / "train.parquet", [], pyarrow.array([], pyarrow.int64()))
    with pytest.raises(DataError, match="expected images, got none"):
        data.load(tmp_path, cache_dir=tmp_path)


@pytest.mark.parametrize(
    "names", ["[" * 100_000, "{}", '{"info": {"features": {"label": {"names": [1, 2]}}}}', "\xff"]
)
def test_hostile_names_of_classes_are_left_out(tmp_path, names):
    table(tmp_path / "train.parquet", [SMALL] * 10, [0, 1] * 5, {b"huggingface": names.encode("latin1")})
    assert data.load(tmp_path, cache_dir=tmp_path).classes == ("0", "1")


def test_a_table_that_expands_without_end_is_refused(tmp_path):
    image = SMALL + bytes(1 << 20)  # a megabyte that compresses to a kilobyte, ten thousand times
    indices = pyarrow.array([0] * 10_000, pyarrow.int32())
    images = pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array([image], pyarrow.binary()))
    found = pyarrow.table({"image": images, "label": [0, 1] * 5_000})
    pyarrow.parquet.write_table(found, tmp_path / "train.parquet", compression="zstd", store_schema=False)
    assert (tmp_path / "train.parquet").stat().st_size < 100_000
    with pytest.raises(DataError, match="SECATEUR_PARQUET_BYTES"):
        data.load(tmp_path, cache_dir=tmp_path)


def test_many_rows_of_nothing_are_refused(tmp_path):
    count = 30_000_000
    images = pyarrow.DictionaryArray.from_arrays(
        pyarrow.nulls(count, pyarrow.int32()).fill_null(0), pyarrow.array([b""], pyarrow.binary())
    )
    labels = pyarrow.nulls(count, pyarrow.int8()).fill_null(0)
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": labels}), tmp_path / "train.parquet")
    assert (tmp_path / "train.parquet").stat().st_size < 1_000_000
    with pytest.raises(DataError, match="bytes or more in memory"):
        data.load(tmp_path, cache_dir=tmp_path)


def saved(folder, paths):
    """A dataset as `datasets` saves it, whose rows name images by path."""
    import datasets

    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    rows = {"image": [{"bytes": SMALL, "path": None}] * len(paths), "label": [0, 1] * (len(paths) // 2)}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder))
    file = next(folder.glob("*.arrow"))
    found = pyarrow.ipc.open_stream(file.read_bytes()).read_all()
    kind = found.schema.field("image").type
    named = pyarrow.array([{"bytes": None, "path": str(path)} for path in paths], kind)
    found = found.set_column(0, found.schema.field("image"), named)
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, found.schema) as writer:
        writer.write_table(found)


@pytest.mark.parametrize("path", ["/etc/passwd", "/dev/zero", "{folder}/../outside.png", "outside.png"])
def test_a_row_reads_no_file_outside_the_dataset(tmp_path, path):
    Image.new("L", (8, 8)).save(tmp_path / "outside.png")
    folder = tmp_path / "set"
    saved(folder, [path.format(folder=folder)] * 2)
    with pytest.raises(DataError, match=r"its image is the file .*: expected one in .*set; copy it there"):
        data.load(folder, cache_dir=tmp_path)


def test_a_link_leads_nowhere_else(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "outside.png")
    folder = tmp_path / "set"
    saved(folder, [folder / "a.png"] * 2)
    (folder / "a.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(DataError, match="its image is the file"):
        data.load(folder, cache_dir=tmp_path)
    (folder / "a.png").unlink()
    Image.new("L", (8, 8)).save(folder / "a.png")
    assert data.load(folder, cache_dir=tmp_path).shape == (1, 8, 8)


@pytest.mark.parametrize(
    "text", ['{"_data_files": [{"filename": "../../other.arrow"}]}', "[" * 100_000, "{}", "\xff"]
)
def test_a_saved_dataset_names_tables_of_its_own_folder(tmp_path, text):
    folder = tmp_path / "set"
    saved(folder, [folder / "a.png"] * 2)
    (folder / "state.json").write_text(text, encoding="latin1")
    with pytest.raises(DataError, match=r"state.json: expected"):
        data.load(folder, cache_dir=tmp_path)


def test_the_embedded_digits_are_as_they_were():
    """The limits leave honest data alone."""
    assert json.dumps(data.load("digits", limit=100).fingerprint)
    buffer = io.BytesIO()
    Image.effect_noise((3000, 2000), 50).convert("RGB").save(buffer, "JPEG")
    assert _decode.decode(buffer.getvalue(), (32, 32), 3).shape == (3, 32, 32)
    assert sys.getsizeof(buffer.getvalue()) > 100_000


def test_a_tall_image_is_refused_before_its_resizing_takes_memory() -> None:
    from secateur.data._decode import decode

    file = io.BytesIO()
    Image.new("RGB", (9, 1_100_000)).save(file, "PNG")
    with pytest.raises(
        DataError, match="is resized from 9 x 1,100,000 to 8 x 977,778 pixels: expected that to take"
    ):
        decode(file.getvalue(), (8, 8), None)
    file = io.BytesIO()
    Image.new("RGB", (3000, 4000)).save(file, "PNG")  # an ordinary photograph
    assert decode(file.getvalue(), (32, 32), None).shape == (3, 32, 32)


@pytest.mark.parametrize("before", [None, True, "absent"])
def test_a_dataset_that_is_a_script_is_refused_without_a_question(monkeypatch, tmp_path, before) -> None:
    import datasets

    name, seen = "HF_DATASETS_TRUST_REMOTE_CODE", []

    def load_dataset(path):
        seen.append(getattr(datasets.config, name, "absent"))
        raise ValueError("contains custom code")

    if before == "absent":  # as from datasets 4.0 on, which runs no scripts
        monkeypatch.delattr(datasets.config, name, raising=False)
    else:
        monkeypatch.setattr(datasets.config, name, before, raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="custom code"):
        data.load("someone/images", size=8)
    assert seen == [False if before is None else before]  # True is the user's own setting
    assert getattr(datasets.config, name, "absent") == before

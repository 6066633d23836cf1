"""`parquet`: a local folder of Parquet files in Hugging Face's layout, one or several files a split.

A file belongs to the split that its name, or the folder it lies in, begins with: train, validation (valid,
val, dev) or test. Images are in a column `image` or `img` (encoded bytes), labels in `label` or `labels`.

>>> split_of("train-00000-of-00001.parquet"), split_of("plain/test.parquet"), split_of("readme.parquet")
('train', 'test', None)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import torch

from secateur.data._decode import open_source
from secateur.data._kind import Raw, Request, classes_of, named_classes
from secateur.errors import DataError

__all__ = ["ImageColumn", "Parquet", "pick", "split_of"]

IMAGE_COLUMNS = ("image", "img", "images", "pixels")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class")
_WORDS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_WORDS |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")


def split_of(path: str) -> str | None:
    """Which split a file belongs to, by its own name or else its folder's."""
    pure = PurePath(path)
    for part in (pure.stem, *reversed(pure.parts[:-1])):
        word = part.lower().replace("_", "-").split("-")[0].split(".")[0]
        if word in _WORDS:
            return _WORDS[word]
    return None


def pick(columns: Sequence[str], wanted: Sequence[str], what: str, where: str) -> str:
    """The column that holds the images or the labels.

    >>> pick(["id", "img"], IMAGE_COLUMNS, "images", "here")
    'img'
    """
    for name in wanted:
        if name in columns:
            return name
    raise DataError(
        f"{where}: expected a column of {what} named {', '.join(wanted)}; got the columns "
        f"{', '.join(columns)}; rename one"
    )


class ImageColumn:
    """The images and labels of some Parquet files of one split."""

    def __init__(self, files: Sequence[Path]):
        import pyarrow
        from pyarrow import parquet

        self.files = list(files)
        try:
            schema = parquet.read_schema(files[0])
            where = str(files[0])
            image = pick(schema.names, IMAGE_COLUMNS, "images", where)
            label = pick(schema.names, LABEL_COLUMNS, "labels", where)
            tables = [parquet.read_table(file, columns=[image, label], memory_map=True) for file in files]
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise DataError(f"{files[0]}: expected a Parquet file, got something else ({error})") from error
        table = pyarrow.concat_tables(tables)
        column = table.column(image)
        if pyarrow.types.is_struct(column.type):
            if "bytes" not in [field.name for field in column.type]:
                raise DataError(f"{where}: column {image!r} has no field 'bytes'; expected encoded images")
            column = pyarrow.compute.struct_field(column, "bytes")
        if not (pyarrow.types.is_binary(column.type) or pyarrow.types.is_large_binary(column.type)):
            raise DataError(f"{where}: column {image!r}: expected encoded images (bytes), got {column.type}")
        self._images = column.cast(pyarrow.large_binary()).combine_chunks()
        self.values: list[Any] = table.column(label).to_pylist()
        self.names = _class_names(schema.metadata, label)
        self.labels = torch.zeros(len(self.values), dtype=torch.int64)

    def read(self, index: int) -> bytes:
        """The file of one image."""
        return self._images[index].as_py() or b""

    def describe(self, index: int) -> str:
        """Row and file."""
        return f"row {index} of {', '.join(map(str, self.files))}"

    def digest(self) -> str:
        """SHA-256 of the files."""
        whole = hashlib.sha256()
        for file in self.files:
            with file.open("rb") as stream:
                whole.update(hashlib.file_digest(stream, "sha256").digest())
        return whole.hexdigest()


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str] | None:
    """The class names that `datasets` writes into a Parquet file's metadata."""
    try:
        info = json.loads((metadata or {})[b"huggingface"])
        names = info["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return list(names.values()) if isinstance(names, dict) else list(names)


class Parquet:
    """Local Parquet files, read as they stand."""

    def read(self, request: Request) -> Raw:
        """The parts that the folder has."""
        folder = Path(request.path or ".")
        found: dict[str, list[Path]] = {}
        files = sorted(folder.rglob("*.parquet")) if folder.is_dir() else [folder]
        for file in files:
            split = split_of(str(file.relative_to(folder))) if folder.is_dir() else "train"
            if split is not None:
                found.setdefault(split, []).append(file)
        if "train" not in found:
            raise DataError(
                f"{folder}: expected Parquet files named train*.parquet (and test*.parquet), got "
                f"{', '.join(file.name for file in files[:5]) or 'none'}; rename them, or give another folder"
            )
        columns = {split: ImageColumn(found[split]) for split in found}
        return assemble(columns, request, str(folder))


def assemble(columns: dict[str, Any], request: Request, where: str) -> Raw:
    """Number the labels of all splits alike and open each split; a split without labels (all -1) is left
    out."""
    columns = {
        split: column
        for split, column in columns.items()
        if split == "train" or not all(value in (-1, None) for value in column.values)
    }
    if any(isinstance(value, str) for column in columns.values() for value in column.values[:1]):
        every = [value for column in columns.values() for value in column.values]
        classes, numbers = classes_of(every)
        parts = numbers.split([len(column.values) for column in columns.values()])
    else:
        try:
            parts = tuple(torch.tensor(column.values, dtype=torch.int64) for column in columns.values())
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{where}: expected labels all integers or all strings, got others") from error
        names = next((column.names for column in columns.values() if column.names), None)
        classes = named_classes(parts, names, where)
    opened = {}
    for (split, column), labels in zip(columns.items(), parts):
        column.labels = labels
        opened[split] = open_source(column, request.size, request.channels, request.cache_dir)
    return Raw(opened["train"], opened.get("validation"), opened.get("test"), classes)

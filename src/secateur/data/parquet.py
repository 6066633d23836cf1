"""`parquet`: a local folder of Parquet files in Hugging Face's layout, one or several files a split.

A file belongs to the split that its name, or its folder's name, begins with: train, validation (valid, val, dev) or
test. Images are in a column `image` or `img` (encoded bytes), labels in `label` or `labels`. The content of a file may
take at most `FILE_BYTES` and eight times its size in memory.

>>> split_of("train-00000-of-00001.parquet"), split_of("plain/test.parquet"), split_of("readme.parquet")
('train', 'test', None)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Protocol

import torch

from secateur.core.missing_files import missing
from secateur.data._decode import Encoded, open_source, shape_in_file
from secateur.data._kind import Raw, Request, classes_of, named_classes
from secateur.errors import DataError

if TYPE_CHECKING:
    import pyarrow

__all__ = ["ImageColumn", "Labelled", "Parquet", "assemble", "pick", "split_of"]

_ROWS = 256  # rows read at once

FILE_BYTES = 64 << 20
"""Bytes that the columns of one file may take in memory, besides eight for each byte of the file. The environment
variable SECATEUR_PARQUET_BYTES sets another number."""

IMAGE_COLUMNS = ("image", "img", "images", "pixels")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class")
_WORDS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_WORDS |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")


def split_of(path: str) -> str | None:
    """The split of a file by its own name, else by its folder's."""
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


class Labelled(Encoded, Protocol):
    """Encoded images with labels of any kind: integers, or names of classes."""

    values: Sequence[object]

    names: Sequence[str] | None
    """The names of the classes, where the dataset has them."""


class ImageColumn:
    """The images and labels of the Parquet files of one split."""

    def __init__(self, files: Sequence[Path]):
        import pyarrow

        self.files = list(files)
        where = str(files[0])
        try:
            image, label, names = _columns(files[0])
            tables = [_read(file, [image, label]) for file in files]
            table = pyarrow.concat_tables(tables)
            self._images = _bytes_of(table.column(image), image, where)
            self.values: Sequence[object] = table.column(label).to_pylist()
        except DataError:
            raise
        except Exception as error:  # pyarrow raises several kinds of errors for broken files
            raise DataError(
                f"{files[0]}: expected a Parquet file, got something else ({type(error).__name__}: {error})"
            ) from error
        self.names: Sequence[str] | None = names
        self.labels = torch.zeros(len(self.values), dtype=torch.int64)

    def read(self, index: int) -> bytes:
        """The file of one image."""
        data: bytes = self._images[index].as_py() or b""
        return data

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


def _columns(file: Path) -> tuple[str, str, list[str] | None]:
    """The columns of images and of labels, and the names of the classes."""
    from pyarrow import parquet

    schema = parquet.read_schema(file)
    image = pick(schema.names, IMAGE_COLUMNS, "images", str(file))
    label = pick(schema.names, LABEL_COLUMNS, "labels", str(file))
    return image, label, _class_names(schema.metadata, label)


def _read(file: Path, columns: list[str]) -> pyarrow.Table:
    """Columns of a file, read in parts, so that a decompression bomb is refused in time."""
    import pyarrow
    from pyarrow import parquet

    most = int(os.environ.get("SECATEUR_PARQUET_BYTES", FILE_BYTES)) + 8 * file.stat().st_size
    with parquet.ParquetFile(file, memory_map=True) as opened:
        found = opened.metadata
        groups = [found.row_group(index) for index in range(found.num_row_groups)]
        size = sum(group.total_byte_size for group in groups)
        if max(size, 16 * found.num_rows) > most:
            raise _too_large(file, max(size, 16 * found.num_rows), most)
        batches, total = [], 0
        for batch in opened.iter_batches(_ROWS, columns=columns):
            batches.append(batch)
            total += batch.nbytes
            if total > most:
                raise _too_large(file, total, most)
        return pyarrow.Table.from_batches(batches, opened.schema_arrow.empty_table().select(columns).schema)


def _too_large(file: Path, size: int, most: int) -> DataError:
    return DataError(
        f"{file}: its {file.stat().st_size:,} bytes take {size:,} bytes or more in memory, expected at most {most:,}; "
        "leave it out, or allow more with the environment variable SECATEUR_PARQUET_BYTES"
    )


def _bytes_of(column: pyarrow.ChunkedArray, name: str, where: str) -> pyarrow.Array:
    """The encoded images of a column, as one array."""
    import pyarrow
    import pyarrow.compute

    if pyarrow.types.is_struct(column.type):
        if "bytes" not in [field.name for field in column.type]:
            raise DataError(f"{where}: column {name!r} has no field 'bytes'; expected encoded images")
        column = pyarrow.compute.struct_field(column, "bytes")
    if not (pyarrow.types.is_binary(column.type) or pyarrow.types.is_large_binary(column.type)):
        raise DataError(f"{where}: column {name!r}: expected encoded images (bytes), got {column.type}")
    return column.cast(pyarrow.large_binary()).combine_chunks()


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str] | None:
    """The class names that `datasets` writes into a Parquet file's metadata."""
    try:
        info = json.loads((metadata or {})[b"huggingface"])
        names = info["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if isinstance(names, dict):
        names = list(names.values())
    # Without names for every label, numbers are the names.
    return list(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


class Parquet:
    """Local Parquet files."""

    def read(self, request: Request) -> Raw:
        """The parts that the folder has."""
        folder = Path(request.path or ".")
        if not folder.exists():
            raise DataError(f"{missing(folder, 'file or folder')}; expected Parquet files in it").as_usage()
        found: dict[str, list[Path]] = {}
        files = (
            sorted(file for file in folder.rglob("*.parquet") if file.is_file())
            if folder.is_dir()
            else [folder]
        )
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


def assemble(columns: Mapping[str, Labelled], request: Request, where: str) -> Raw:
    """Number the labels of all splits alike and open each split; a split without labels (all -1) is left out."""
    columns = {
        split: column
        for split, column in columns.items()
        if split == "train" or not all(value in (-1, None) for value in column.values)
    }
    every = [value for column in columns.values() for value in column.values]
    if every and all(isinstance(value, str) for value in every):
        classes, numbers = classes_of([str(value) for value in every])
        parts = numbers.split([len(column.values) for column in columns.values()])
    else:
        try:
            if not all(isinstance(value, int) for value in every):
                raise TypeError("a label that is neither")
            parts = tuple(torch.tensor(column.values, dtype=torch.int64) for column in columns.values())
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise DataError(f"{where}: expected labels all integers or all strings, got others") from error
        names = next((column.names for column in columns.values() if column.names), None)
        classes = named_classes(parts, names, where)
    opened = {}
    for (split, column), labels in zip(columns.items(), parts):
        column.labels = labels
        opened[split] = open_source(column, request.size, request.channels, request.cache_dir)
    own = shape_in_file(columns["train"])
    return Raw(opened["train"], opened.get("validation"), opened.get("test"), classes, own)

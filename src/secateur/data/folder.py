"""`folder`: images in one folder per class, with or without folders `train`, `validation` and `test` above them.

    pets/cat/1.jpg, pets/dog/2.png, …     or     pets/train/cat/1.jpg, pets/test/dog/2.png, …

>>> import tempfile; from pathlib import Path; from PIL import Image; from secateur.data._kind import Request
>>> with tempfile.TemporaryDirectory() as root:
...     for name in ("cat", "dog"):
...         (Path(root) / name).mkdir(); Image.new("RGB", (4, 4)).save(Path(root) / name / "1.png")
...     raw = Folder().read(Request(path=root, cache_dir=root))
>>> raw.classes, raw.train.shape
(('cat', 'dog'), (3, 4, 4))
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from secateur.core.missing_files import missing
from secateur.data._kind import Raw, Request
from secateur.data.parquet import assemble, split_of
from secateur.errors import DataError

__all__ = ["Folder", "ImageFiles"]

_ENDINGS = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))


class ImageFiles:
    """The image files below a folder; a subclass gives each its label in `values`.

    Args:
        root: The folder.
        pattern: Which files, as `Path.glob` takes it.
    """

    names: Sequence[str] | None = None

    def __init__(self, root: Path, pattern: str = "**/*"):
        self.root = root
        self.files = sorted(p for p in root.glob(pattern) if p.suffix.lower() in _ENDINGS and p.is_file())
        self.values: Sequence[object] = [0] * len(self.files)
        self.labels = torch.zeros(len(self.files), dtype=torch.int64)

    def read(self, index: int) -> bytes:
        """The file of one image."""
        return self.files[index].read_bytes()

    def describe(self, index: int) -> str:
        """The file's path."""
        return str(self.files[index]) if self.files else str(self.root)

    def digest(self) -> str:
        """SHA-256 over every file's name and content."""
        whole = hashlib.sha256()
        for file in self.files:
            whole.update(f"{file.relative_to(self.root).as_posix()}\0".encode())
            with file.open("rb") as stream:
                whole.update(hashlib.file_digest(stream, "sha256").digest())
        return whole.hexdigest()


class _Files(ImageFiles):
    """The image files of one split, labelled by the folder they lie in."""

    def __init__(self, root: Path):
        super().__init__(root, "*/**/*")
        self.values = [file.relative_to(root).parts[0] for file in self.files]


class Folder:
    """A folder of images, one folder per class."""

    def read(self, request: Request) -> Raw:
        """The parts that the folder has; the folders' names in sorted order are the classes."""
        root = Path(request.path or ".")
        if not root.is_dir():
            raise DataError(
                f"{missing(root, 'folder')}; expected one with a folder of images per class"
            ).as_usage()
        splits = {split_of(child.name): child for child in sorted(root.iterdir()) if child.is_dir()}
        splits.pop(None, None)
        if "train" not in splits:
            splits = {"train": root}
        found = {str(split): _Files(folder) for split, folder in splits.items()}
        empty = [files.root for files in found.values() if not files.files]
        if empty:
            raise DataError(
                f"{empty[0]}: expected a folder per class with images in it (.png, .jpg, …), got none; for "
                "Parquet or another format give the folder that Hugging Face's `datasets` can load"
            )
        if len(set(found["train"].values)) < 2:
            raise DataError(
                f"{found['train'].root}: expected a folder for each of two classes or more, found images in "
                f"{found['train'].values[0]!r} alone"
            )
        return assemble(found, request, str(root))

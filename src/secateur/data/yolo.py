"""`yolo`: the images of a detection data set as ultralytics lays it out, each with the class of its first box.

    street/images/train/1.jpg, street/labels/train/1.txt, …

It provides examples, calibration data, and images for criteria that need them; detection itself is trained and measured
by the step `train_yolo`. A label file has a line for every box, which begins with the number of its class.

>>> import tempfile; from PIL import Image; from secateur.data._kind import Request
>>> with tempfile.TemporaryDirectory() as root:
...     for kind in ("images", "labels"):
...         (Path(root) / kind).mkdir()
...     Image.new("RGB", (4, 4)).save(Path(root) / "images" / "1.png")
...     _ = (Path(root) / "labels" / "1.txt").write_text("1 0.5 0.5 1 1")
...     raw = Yolo().read(Request(path=root, cache_dir=root))
>>> raw.classes, raw.train.labels
(('0', '1'), tensor([1]))
"""

from __future__ import annotations

from pathlib import Path

from secateur.data._kind import Raw, Request
from secateur.data.folder import ImageFiles
from secateur.data.parquet import assemble, split_of
from secateur.errors import DataError

__all__ = ["Yolo"]

_MOST = 4096  # characters that are looked at for a number


class _Labelled(ImageFiles):
    """The images of one split, with the class of each image's first box."""

    def __init__(self, root: Path, images: Path, whole: Path):
        super().__init__(images)
        self.values = [
            _first_class(whole / "labels" / file.relative_to(root).with_suffix(".txt")) for file in self.files
        ]


def _first_class(file: Path) -> int:
    """The number that a label file begins with; 0 where there is no file or no box."""
    words = _begin(file).split(maxsplit=1) if file.is_file() else []
    if not words:
        return 0
    try:
        return int(float(words[0]))
    except (ValueError, OverflowError) as error:
        raise DataError(
            f"{file}: expected lines that begin with the number of a class, got {words[0][:40]!r}"
        ) from error


def _begin(file: Path) -> str:
    """The first characters of a file; other bytes than UTF-8 become marks."""
    with file.open(encoding="utf-8", errors="replace") as opened:
        return opened.read(_MOST)


class Yolo:
    """A detection data set: a folder `images` and a folder `labels` beside it."""

    def read(self, request: Request) -> Raw:
        """The parts `train`, `val` and `test` of the folder `images`, or all of it as the training part."""
        whole = Path(request.path or ".")
        root = whole / "images"
        if not root.is_dir():
            raise DataError(
                f"{whole}: expected a folder images/ in it, and labels/ beside that; give data.path, the folder that "
                "the data set's yaml names as path"
            ).as_usage()
        splits = {split_of(child.name): child for child in sorted(root.iterdir()) if child.is_dir()}
        splits.pop(None, None)
        if "train" not in splits:
            splits = {"train": root}
        found = {str(split): _Labelled(root, folder, whole) for split, folder in splits.items()}
        empty = [files.root for files in found.values() if not files.files]
        if empty:
            raise DataError(f"{empty[0]}: expected images in it (.png, .jpg, …), got none")
        return assemble(found, request, str(whole))

"""`train_yolo`: train a YOLO model with ultralytics' own trainer, which reads no pickle and fetches nothing meanwhile.

>>> check_yolo_options({"epochs": 3, "optimizer": "SGD"})
>>> check_yolo_options({"pretrained": "other.pt"})
Traceback (most recent call last):
secateur.errors.OptionError: options: 'pretrained': expected a number, or a word for one of optimizer, ...
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from secateur.adapters.ultralytics import save_yolo, yolo_library, yolo_trainer
from secateur.core.masks import Masks
from secateur.errors import FormatError, OptionError

__all__ = ["check_yolo_data", "check_yolo_options", "train_yolo"]


def train_yolo(
    model: nn.Module, data: str | os.PathLike[str], masks: Masks | None = None, **options: object
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Train a YOLO model, cut or not, with ultralytics' trainer in a temporary folder.

    Args:
        model: The model; it is not changed.
        data: The yaml that describes the data set, as ultralytics reads it.
        masks: Masks to hold meanwhile.
        options: Arguments of `YOLO.train`, such as `epochs`, `imgsz`, `batch`.

    Returns:
        The weights of the best epoch, and what ultralytics measured of them on the validation images.

    Raises:
        FormatError: The yaml would have ultralytics run code or fetch files, or it cannot be read.
    """
    check_yolo_data(data)
    library = yolo_library("train_yolo", "ultralytics")
    with tempfile.TemporaryDirectory() as folder, _no_pickles():
        yolo = library.YOLO(save_yolo(model, Path(folder) / "model.pt", masks=masks))
        yolo.train(
            trainer=yolo_trainer(yolo.task),
            data=os.fspath(data),
            project=folder,
            name="run",
            exist_ok=True,
            **options,
        )
        measured = {name: float(value) for name, value in yolo.metrics.results_dict.items()}
        return {name: tensor.clone() for name, tensor in yolo.model.state_dict().items()}, measured


@contextlib.contextmanager
def _no_pickles() -> Iterator[None]:
    """Have ultralytics read no pickle that lies beside its data: labels are read again in place of their cache, and the
    checkpoint that tells on a GPU whether bf16 works, one of this folder if it has the name, by its restricted loader.
    """
    dataset = yolo_library("train_yolo", "ultralytics.data.dataset")
    trainer = yolo_library("train_yolo", "ultralytics.engine.trainer")
    cache, check = dataset.load_dataset_cache_file, trainer.check_amp
    dataset.load_dataset_cache_file, trainer.check_amp = _no_cache, functools.partial(_restricted, check)
    try:
        yield
    finally:
        dataset.load_dataset_cache_file, trainer.check_amp = cache, check


def _restricted(function: Callable[..., Any], *args: object) -> Any:
    """Call a function of ultralytics while its restricted loader reads every checkpoint."""
    tasks = yolo_library("train_yolo", "ultralytics.nn.tasks")
    before = getattr(tasks, "SAFE_LOAD", False)
    tasks.SAFE_LOAD = True
    try:
        return function(*args)
    finally:
        tasks.SAFE_LOAD = before


def _no_cache(path: object) -> NoReturn:
    """What ultralytics takes for a cache that is not there."""
    raise FileNotFoundError(f"{path}: a cache of labels is a pickle, which secateur has nobody read")


_MOST_YAML = 1 << 20
# Arguments of `YOLO.train` whose texts are words of ultralytics. Every other text is a file, or code to fetch.
_WORDS = ("optimizer", "copy_paste_mode", "auto_augment", "split")


def check_yolo_data(data: str | os.PathLike[str]) -> None:
    """Raise where the yaml of a data set has ultralytics run or fetch something: it executes a text `download`.

    Args:
        data: The file. A name that is no file is one of ultralytics' own, or a folder of images, and is not looked at.

    Raises:
        FormatError: It has `download`, or is no yaml.
    """
    path = Path(data)
    if not path.is_file():
        return
    yaml = yolo_library("the yaml of a data set", "yaml")
    try:
        if path.suffix not in (".yaml", ".yml") or path.stat().st_size > _MOST_YAML:
            raise ValueError(
                f"a name that ends in .yaml or .yml and at most {_MOST_YAML:,} bytes are expected"
            )
        # ultralytics drops bytes that are no UTF-8, and reads what is left
        text = path.read_text(encoding="utf-8")
        found = yaml.safe_load(text)
        if found != yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            # which ultralytics takes
            raise ValueError("its parsers do not agree on what it says")
        if not isinstance(found, dict):
            raise ValueError(f"expected keys such as path, train, val and names, got {type(found).__name__}")
    except (ValueError, RecursionError, TypeError, yaml.YAMLError) as error:
        raise FormatError(
            f"{path}: is no yaml of a data set ({' '.join(str(error).split())[:200]})"
        ) from None
    if found.get("download"):
        raise FormatError(
            f"{path}: has `download`, which ultralytics executes or fetches where an image is missing; fetch the "
            "images yourself and delete that line"
        )


def check_yolo_options(options: Mapping[str, object]) -> None:
    """Raise for arguments of `YOLO.train` that name a file or code: numbers, and words of ultralytics, remain.

    Args:
        options: The arguments by name, as a file gives them.

    Raises:
        OptionError: A value is, or holds, another text.
    """
    for name, value in options.items():
        inner = value if isinstance(value, list | tuple) else [value]
        plain = all(each is None or isinstance(each, bool | int | float) for each in inner)
        if not plain and not (name in _WORDS and isinstance(value, str)):
            raise OptionError(
                f"options: {name!r}: expected a number, or a word for one of {', '.join(_WORDS)}, got {value!r:.80}; a "
                "recipe names no other files for ultralytics, which would unpickle some; call train in Python"
            )

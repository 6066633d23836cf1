"""`sequences_of`, `sentences_of`: token numbers to calibrate on, from a text or from a file of numbers.

A text is read by the tokenizer in the checkpoint's folder: as one stream that is split into sequences of one length, or
line by line, as classifiers are fed. A .safetensors file holds the numbers as a tensor `input_ids`, one row for a
sequence.

>>> import tempfile, torch
>>> from safetensors.torch import save_file
>>> with tempfile.TemporaryDirectory() as folder:
...     save_file({"input_ids": torch.arange(12).reshape(3, 4)}, Path(folder) / "numbers.safetensors")
...     [batch["input_ids"].tolist() for batch in sequences_of(Path(folder) / "numbers.safetensors", folder, 2, 3)]
[[[0, 1, 2]], [[4, 5, 6]]]
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import torch

from secateur.container.arrays import to_tensor
from secateur.container.checkpoint import open_checkpoint
from secateur.core.json_text import is_count, parse
from secateur.core.missing_files import missing
from secateur.errors import DataError, OptionError
from secateur.streaming.tokenizers import read_tokenizer

__all__ = ["sentences_of", "sequences_of"]

_CHARACTERS = 16  # read for every token that is wanted, at most
_MOST_CONFIG = 1 << 20
_NUMBERS = "input_ids"


def sequences_of(
    path: str | os.PathLike[str], folder: str | os.PathLike[str], count: int, length: int
) -> list[dict[str, torch.Tensor]]:
    """Batches of one sequence each.

    Args:
        path: A text in UTF-8, or a .safetensors file with the tensor `input_ids`.
        folder: The checkpoint, whose tokenizer reads the text.
        count: The most sequences.
        length: The tokens of each; rows of a file of numbers are cut to it.

    Raises:
        DataError: The file cannot be read, holds too little, or a number that the model has no token for.
        OptionError: The folder has no tokenizer.
        MissingExtraError: transformers, which reads texts, is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"{missing(path)}; expected a text, or a .safetensors file with {_NUMBERS!r}"
        ).as_usage()
    rows = (
        _numbers(path)
        if path.suffix == ".safetensors"
        else _tokens(path, Path(folder), count * length, length)
    )
    rows = rows[:count, :length]
    _check_numbers(rows, path, Path(folder))
    return [{_NUMBERS: rows[index : index + 1]} for index in range(len(rows))]


def sentences_of(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    count: int,
    length: int = 128,
    *,
    batch_size: int = 8,
) -> list[dict[str, torch.Tensor]]:
    """Batches of sentences as the tokenizer prepares them, padded to the longest of their batch.

    Args:
        path: A text in UTF-8, one sentence a line; empty lines are left out.
        folder: The checkpoint, whose tokenizer reads the text.
        count: The most sentences.
        length: The most tokens of each; what is longer is cut.
        batch_size: How many sentences are in a batch.

    Raises:
        DataError: The file cannot be read, has no sentence, or a number comes out that the model has no token for.
        OptionError: The folder has no tokenizer.
        MissingExtraError: transformers, which reads texts, is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{missing(path)}; expected a text with a sentence in each line").as_usage()
    lines = [line.strip() for line in _text(path, _CHARACTERS * count * length).splitlines()]
    lines = [line for line in lines if line][:count]
    if not lines:
        raise DataError(f"{path}: expected a sentence in each line, found no text")
    tokenizer = _tokenizer(Path(folder))
    length = min(length, _positions(Path(folder)) or length)
    lines = [line for line in lines if tokenizer(line)[_NUMBERS]]
    if not lines:
        raise DataError(
            f"{path}: the tokenizer in {folder} makes no token of any line; use that of this model"
        )
    padding = getattr(tokenizer, "pad_token", None) is not None
    size = batch_size if padding else 1
    found: list[dict[str, torch.Tensor]] = []
    for start in range(0, len(lines), size):
        rows = tokenizer(
            lines[start : start + size],
            padding=padding,
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        _check_numbers(rows[_NUMBERS], path, Path(folder))
        found.append(dict(rows))
    return found


def _check_numbers(rows: torch.Tensor, path: Path, folder: Path) -> None:
    """Raise where a number is none of the model's tokens."""
    most = _vocabulary(folder)
    if int(rows.min()) < 0 or (most is not None and int(rows.max()) >= most):
        raise DataError(
            f"{path}: token numbers from {int(rows.min())} to {int(rows.max())}, the model has 0 to "
            f"{'?' if most is None else most - 1}; use the tokenizer of this model"
        )


def _numbers(path: Path) -> torch.Tensor:
    """The tensor of a file of numbers."""
    with open_checkpoint(path) as checkpoint:
        for number, entry in enumerate(checkpoint.entries):
            if entry.name == _NUMBERS:
                if entry.dtype not in ("I32", "I64") or len(entry.shape) != 2 or not entry.numel:
                    raise DataError(
                        f"{path}: {_NUMBERS!r}: expected whole numbers in rows (I64, two axes), got {entry.dtype} of "
                        f"shape {list(entry.shape)}"
                    )
                return to_tensor(entry, checkpoint.words(number)).long()
        names = ", ".join(entry.name[:40] for entry in checkpoint.entries[:3])
    raise DataError(f"{path}: expected a tensor {_NUMBERS!r}, found {names or 'none'}")


def _tokenizer(folder: Path) -> Any:
    """The tokenizer in a checkpoint's folder; no code of it runs."""
    try:
        return read_tokenizer(folder)
    except OptionError as error:
        raise OptionError(f"{error}; pass token numbers as a .safetensors file with {_NUMBERS!r}") from None


def _text(path: Path, characters: int) -> str:
    """The first characters of a text."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(characters)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected a text in UTF-8 ({error})") from None


def _tokens(path: Path, folder: Path, wanted: int, length: int) -> torch.Tensor:
    """The tokens of a text, in rows of one length."""
    tokenizer = _tokenizer(folder)
    text = _text(path, _CHARACTERS * wanted)
    found = cast(list[int], tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    if len(found) < length:
        raise DataError(
            f"{path}: {len(found):,} tokens, less than one sequence of {length:,}; pass a longer text, or a smaller "
            "length"
        )
    rows = len(found) // length
    return torch.tensor(found[: rows * length]).reshape(rows, length)


def _vocabulary(folder: Path) -> int | None:
    """How many tokens the model of a folder has, if its configuration says so."""
    return _configured(folder, "vocab_size")


def _positions(folder: Path) -> int | None:
    """The most tokens of a sequence of a folder's model, if its configuration says so."""
    return _configured(folder, "max_position_embeddings") or None


def _configured(folder: Path, key: str) -> int | None:
    """A number of a folder's configuration."""
    path = folder / "config.json"
    if not path.is_file() or path.stat().st_size > _MOST_CONFIG:
        return None
    found = parse(path.read_bytes(), str(path), DataError)
    size = found.get(key) if isinstance(found, dict) else None
    return size if isinstance(size, int) and is_count(size) else None

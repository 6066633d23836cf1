"""Read checkpoints tensor by tensor, without their model class.

A .safetensors file is read here, by its header; a .pt file by `torch.load(weights_only=True)`, which runs no code
from the file.

>>> import pathlib, tempfile, torch
>>> from safetensors.torch import save_file
>>> with tempfile.TemporaryDirectory() as folder:
...     path = pathlib.Path(folder) / "m.safetensors"
...     save_file({"w": torch.ones(2, 3)}, path)
...     with open_checkpoint(path) as checkpoint:
...         print([(entry.name, entry.shape) for entry in checkpoint.entries])
[('w', (2, 3))]
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Protocol

import numpy as np

from secateur.coding.room import Room, array
from secateur.container.format import FREE_MEMORY, MEMORY_PER_BYTE, Entry, problem_of
from secateur.core.file_endings import TORCH_SUFFIXES
from secateur.core.missing_files import missing
from secateur.core.safetensors_header import open_header
from secateur.errors import DataError

__all__ = ["Checkpoint", "Shard", "canonical_header", "open_checkpoint", "read_pt"]

"""The endings of files that `torch.save` writes."""

_TRAINING = re.compile("optim|lr_sched", re.IGNORECASE)  # how the names of what an optimizer keeps begin
_FREE_VALUES, _BYTES_PER_VALUE = 100_000, 16  # values that a .pt file may hold, and more for its bytes
_DEEPEST = 64


@dataclass(frozen=True)
class Shard:
    """One safetensors file of a checkpoint that is kept in several."""

    file: str
    header: bytes  # byte for byte
    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]


class Words(Protocol):
    """What reads the words of one tensor."""

    def __call__(self, index: int, room: Room | None = None) -> np.ndarray:
        """The words of tensor `index`, in a room if one is given."""
        ...


@dataclass
class Checkpoint:
    """The tensors of a file in the order of their data; `words(index)` reads one of them."""

    path: Path
    entries: list[Entry]
    words: Words
    header: bytes | None  # of a safetensors file, byte for byte
    metadata: Mapping[str, str]
    left_out: tuple[str, ...] = ()  # names of the values, or of a folder's files, that are not tensors
    shards: tuple[Shard, ...] = ()  # the files of a folder
    index: tuple[str, bytes] | None = None  # name and content of the folder's index


@contextlib.contextmanager
def open_checkpoint(path: str | os.PathLike[str], max_bytes: int | None = None) -> Iterator[Checkpoint]:
    """A .safetensors, .pt, .pth, .bin or .ckpt file.

    Args:
        path: The file.
        max_bytes: The most bytes of tensors to accept from a .pt file; by default 64 MiB and eight times its size.

    Raises:
        DataError: The file is not a checkpoint, or asks for more memory than allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"{missing(path)}; expected a .safetensors or .pt checkpoint, or a folder with an index"
        ).as_usage()
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            yield _safetensors(path, file)
    elif path.suffix in TORCH_SUFFIXES:
        yield _torch(path, max_bytes)
    else:
        hint = (
            "a .sct file is read by `inspect`, `unpack` and `load`"
            if path.suffix == ".sct"
            else "save it as one of these"
        )
        raise DataError(
            f"{path}: expected a .safetensors, .pt, .pth, .bin or .ckpt file, got {path.suffix!r}; {hint}"
        ).as_usage()


def canonical_header(entries: list[Entry], metadata: Mapping[str, str]) -> bytes:
    """The header safetensors writes for tensors in this order: JSON without spaces, filled to eight bytes."""
    head: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for entry in entries:
        head[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.nbytes],
        }
        at += entry.nbytes
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)


def _safetensors(path: Path, file: BufferedReader) -> Checkpoint:
    spans, metadata, header = open_header(path, file, DataError)
    begin = 8 + len(header)
    found = [Entry(name, dtype, shape) for name, (dtype, shape, _, _) in spans.items()]
    # Empty tensors share their place with the next one: stable sorting by both ends keeps them before it.
    found.sort(key=lambda entry: spans[entry.name][2:])
    at = 0
    for entry in found:
        problem = problem_of(entry)
        if problem:
            raise DataError(f"{path}: {problem}")
        if spans[entry.name][2:] != (at, at + entry.nbytes):
            raise DataError(
                f"{path}: tensor {entry.name!r} is expected at byte {at} of the data, "
                f"found at {spans[entry.name][2:]}"
            )
        at += entry.nbytes
    size = path.stat().st_size
    if begin + at != size:
        raise DataError(f"{path}: the tensors end at byte {begin + at}, the file at {size}")

    def words(index: int, room: Room | None = None) -> np.ndarray:
        entry = found[index]
        file.seek(begin + spans[entry.name][2])
        kind = np.dtype(f"u{entry.width}")
        raw = array(room, entry.numel, kind)
        if file.readinto(raw.data.cast("B")) != entry.nbytes:
            raise DataError(f"{path}: the file got shorter while it was read")
        if sys.byteorder != "little":
            raw.byteswap(inplace=True)
        return raw.reshape(entry.shape)

    return Checkpoint(path, found, words, header, metadata)


def read_pt(path: Path) -> object:
    """Read a file of `torch.save`, with tensors on the CPU; runs no code from the file.

    Args:
        path: The file.

    Raises:
        DataError: The file cannot be read, holds something else than tensors and plain values, or torch is older than
            2.10: such a torch can be made to run code by a `.pt` file in spite of `weights_only` (CVE-2026-24747).
    """
    import torch

    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < (2, 10):
        raise DataError(
            f"{path}: not read, because torch {torch.__version__} can be made to run code by a .pt file "
            "(CVE-2026-24747); expected torch 2.10 or newer: update torch, or give the weights as .safetensors"
        )
    try:
        # Files that torch has written since 1.6 are zip archives and can be mapped; older ones cannot.
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_zip(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except DataError:
        raise
    except (Exception, RecursionError) as error:  # unpickling errors have no common class
        raise DataError(
            f"{path}: could not be read with weights_only ({_reason(error)}); save its state dict: "
            "torch.save(model.state_dict(), ...)"
        ) from None


def _check_zip(path: Path) -> None:
    """Raise unless the entries of an archive are stored as they are, which is how torch writes them."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise DataError(
                    f"{path}: its entry {entry.filename[:80]!r} is compressed, which torch.save never does; it is not "
                    "read, because a few bytes may expand to any number of them"
                )


def _torch(path: Path, max_bytes: int | None) -> Checkpoint:
    import torch

    from secateur.container.arrays import entry_of, to_words

    size = path.stat().st_size
    tensors: dict[str, torch.Tensor] = {}
    left_out = []
    for name, value in _values(read_pt(path), _FREE_VALUES + size // _BYTES_PER_VALUE):
        if not isinstance(value, torch.Tensor):
            left_out.append(name)
        elif name in tensors:
            raise DataError(f"{path}: two tensors have the name {name!r}; rename one of them")
        else:
            tensors[name] = value
    if not tensors:
        raise DataError(f"{path}: holds no tensor")
    entries = [entry_of(name, tensor) for name, tensor in tensors.items()]
    total, most = sum(entry.nbytes for entry in entries), max_bytes
    if most is None:
        most = FREE_MEMORY + MEMORY_PER_BYTE * size
    if total > most:
        raise DataError(
            f"{path}: its tensors take {total:,} bytes, more than the {most:,} that a file of {size:,} bytes may ask "
            f"for; if you trust the file, allow it with max_bytes={total} (--max-bytes {total})"
        )

    def words(index: int, room: Room | None = None) -> np.ndarray:
        return to_words(entries[index].name, tensors[entries[index].name])[1]

    return Checkpoint(path, entries, words, None, {}, tuple(left_out))


def without_training(checkpoint: Checkpoint) -> Checkpoint:
    """A `.pt` checkpoint without what an optimizer or a scheduler keeps, where a model's weights are beside it.

    Args:
        checkpoint: Any checkpoint; one of another kind is given back as it is.
    """
    tops = [entry.name.partition(".")[0] for entry in checkpoint.entries]
    training = [place for place, top in enumerate(tops) if _TRAINING.match(top)]
    if checkpoint.header is not None or checkpoint.shards or not training or len(training) == len(tops):
        return checkpoint
    kept = [place for place in range(len(tops)) if place not in set(training)]
    words = checkpoint.words
    return replace(
        checkpoint,
        entries=[checkpoint.entries[place] for place in kept],
        words=lambda index, room=None: words(kept[index], room),
        left_out=(*(checkpoint.entries[place].name for place in training), *checkpoint.left_out),
    )


def _reason(error: Exception) -> str:
    """Why torch refuses a file, as a short phrase."""
    needed = re.search(r"GLOBAL ([\w.]+)", str(error))
    if needed:
        return f"it holds a {needed[1]}, and to make one would run code from the file"
    return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else 'no reason given'}"


def _values(value: object, most: int) -> Iterator[tuple[str, object]]:
    """Every value in nested mappings and lists, with the dotted path to it, in order; an error past `most` of them."""
    seen = 0
    waiting: list[tuple[str, object, int]] = [("", value, 0)]
    while waiting:
        name, value, depth = waiting.pop()
        seen += 1
        if seen > most:
            raise DataError(
                f"the values under {name[:80]!r}: more than {most:,} values, too many for its file"
            )
        inner: list[tuple[object, object]]
        if isinstance(value, Mapping):
            inner = list(value.items())
        elif isinstance(value, (list, tuple)):
            inner = list(enumerate(value))
        else:
            yield name or "tensor", value
            continue
        if depth == _DEEPEST:
            raise DataError(f"the values under {name[:80]!r} are nested more than {_DEEPEST} levels deep")
        start = f"{name}." if name else ""
        waiting += [(f"{start}{key}", each, depth + 1) for key, each in reversed(inner)]

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
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from secateur.container.format import DTYPES, Entry
from secateur.errors import DataError

__all__ = ["Checkpoint", "canonical_header", "open_checkpoint", "read_pt"]

_MOST_HEADER = 100 << 20


@dataclass
class Checkpoint:
    """The tensors of a file in the order of their data; `words(index)` reads one of them."""

    path: Path
    entries: list[Entry]
    words: Callable[[int], np.ndarray]
    header: bytes | None  # of a safetensors file, byte for byte
    metadata: Mapping[str, str]
    left_out: tuple[str, ...] = ()  # names of the values that are not tensors


@contextlib.contextmanager
def open_checkpoint(path: str | os.PathLike[str]) -> Iterator[Checkpoint]:
    """A .safetensors, .pt, .pth, .bin or .ckpt file."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; expected a .safetensors or .pt checkpoint")
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            yield _safetensors(path, file)
    elif path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        yield _torch(path)
    else:
        raise DataError(
            f"{path}: expected a .safetensors, .pt, .pth, .bin or .ckpt file, got {path.suffix!r}"
        )


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


def _safetensors(path: Path, file: BinaryIO) -> Checkpoint:
    size = path.stat().st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _MOST_HEADER):
        raise DataError(f"{path}: not a safetensors file: its header claims {length} of {size} bytes")
    header = file.read(length)
    try:
        fields = json.loads(header)
        metadata = fields.pop("__metadata__", {}) or {}
        spans = {name: tuple(f["data_offsets"]) for name, f in fields.items()}
        found = [Entry(name, f["dtype"], tuple(f["shape"])) for name, f in fields.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a safetensors file: its header cannot be read ({error})") from None
    # Empty tensors share their place with the next one: stable sorting by both ends keeps them before it.
    found.sort(key=lambda entry: spans[entry.name])
    at = 0
    for entry in found:
        if entry.dtype not in DTYPES:
            raise DataError(
                f"{path}: tensor {entry.name!r} has dtype {entry.dtype}, which .sct does not have"
            )
        if spans[entry.name] != (at, at + entry.nbytes):
            raise DataError(
                f"{path}: tensor {entry.name!r} is expected at byte {at} of the data, "
                f"found at {spans[entry.name]}"
            )
        at += entry.nbytes
    if 8 + length + at != size:
        raise DataError(f"{path}: the tensors end at byte {8 + length + at}, the file at {size}")

    def words(index: int) -> np.ndarray:
        entry = found[index]
        file.seek(8 + length + spans[entry.name][0])
        raw = file.read(entry.nbytes)
        kind = np.dtype(f"u{entry.width}")
        return np.frombuffer(raw, dtype=kind.newbyteorder("<")).astype(kind, copy=False).reshape(entry.shape)

    return Checkpoint(path, found, words, header, metadata)


def read_pt(path: Path) -> object:
    """What `torch.save` wrote, tensors on the CPU; without running code from the file."""
    import torch

    try:
        # Only what torch saves since 1.6 can be mapped; before, it was no zip archive.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # unpickling errors have no common class
        raise DataError(
            f"{path}: could not be read with weights_only ({_reason(error)}); save its state dict: "
            "torch.save(model.state_dict(), ...)"
        ) from None


def _torch(path: Path) -> Checkpoint:
    import torch

    from secateur.container.arrays import entry_of, to_words

    values = dict(_values(read_pt(path), ""))
    tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    left_out = tuple(name for name in values if name not in tensors)
    if not tensors:
        raise DataError(f"{path}: holds no tensor")
    entries = [entry_of(name, tensor) for name, tensor in tensors.items()]
    return Checkpoint(
        path, entries, lambda i: to_words(entries[i].name, tensors[entries[i].name])[1], None, {}, left_out
    )


def _reason(error: Exception) -> str:
    """Why torch refuses a file, as a short phrase."""
    needed = re.search(r"GLOBAL ([\w.]+)", str(error))
    if needed:
        return f"it holds a {needed[1]}, and to make one would run code from the file"
    return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else 'no reason given'}"


def _values(value: object, prefix: str) -> Iterator[tuple[str, object]]:
    """Every value in nested mappings and lists, with the dotted path to it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _values(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _values(inner, f"{prefix}.{number}" if prefix else str(number))
    else:
        yield prefix or "tensor", value

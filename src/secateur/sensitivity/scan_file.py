"""`ScanFile`: the values that a scan has measured so far, in a file, so that a stopped scan continues.

>>> import pathlib, tempfile
>>> from torch import nn
>>> model = nn.Linear(1, 1)
>>> with tempfile.TemporaryDirectory() as folder:
...     path = pathlib.Path(folder) / "scan.json"
...     ScanFile(path, model, ("l2", "filter")).add("dense", (0.5, None))
...     ScanFile(path, model, ("l2", "filter")).known
{'dense': (0.5, None)}
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.core.atomic_files import atomic_open
from secateur.core.json_text import parse
from secateur.errors import StoreError

__all__ = ["ScanFile"]

Value = tuple[float, float | None]
"""A value of the evaluation, and half the width of its 95 % interval where it has one."""


class ScanFile:
    """The values of one scan by the digest of their masks. Written atomically after each value.

    Args:
        path: The file; None keeps nothing.
        model: The model, whose weights the values belong to.
        settings: Everything else that the values depend on, as text.

    Raises:
        StoreError: The file is not a scan, or belongs to another one.
    """

    def __init__(self, path: str | os.PathLike[str] | None, model: nn.Module, settings: Sequence[str]):
        self.path = None if path is None else Path(path)
        self.known: dict[str, Value] = {}
        if self.path is None:
            return
        self._key = _key(model, settings)
        if self.path.exists():
            self.known = self._read(self.path)
        self._values = dict(self.known)

    def add(self, digest: str, value: Value) -> None:
        """Keep one value."""
        if self.path is None or digest in self._values:
            return
        self._values[digest] = value
        with atomic_open(self.path) as file:
            file.write(json.dumps({"scan": self._key, "values": self._values}).encode())

    def _read(self, path: Path) -> dict[str, Value]:
        try:
            data: Any = parse(path.read_bytes(), str(path), StoreError, constants=True)
            key = data["scan"]
            values = {
                str(digest): (float(value), None if width is None else float(width))
                for digest, (value, width) in data["values"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, StoreError):
            raise StoreError(
                f"{path}: expected the values of a scan, got something else; name another file"
            ) from None
        if key != self._key:
            raise StoreError(
                f"{path}: holds another scan (other weights, criterion, granularity or subset); name another file, or "
                "remove it"
            )
        return values


def _key(model: nn.Module, settings: Sequence[str]) -> str:
    """A digest of the settings and of every tensor of the model."""
    whole = hashlib.sha256("|".join(settings).encode())
    for name, value in model.state_dict().items():
        whole.update(name.encode())
        if isinstance(value, torch.Tensor):
            whole.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()

"""`Objects`: a folder of files named by the hash of their content; the store's database refers to them.

Writes are atomic: a temporary file, flushed to the disk, then a rename. Equal content is one file.

>>> import tempfile
>>> objects = Objects(tempfile.mkdtemp())
>>> name = objects.put(b"weights")
>>> objects.get(name), objects.put(b"weights") == name
(b'weights', True)
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from secateur.core.atomic_files import atomic_write, sweep
from secateur.errors import StoreError

__all__ = ["ObjectReader", "ObjectWriter", "Objects", "atomic_write"]


_NAME = re.compile(r"[0-9a-f]{64}")


class ObjectWriter(Protocol):
    """Keeps bytes under the hash of their content."""

    def put(self, data: bytes) -> str:
        """Keep these bytes; returns their name."""
        ...


class ObjectReader(Protocol):
    """Finds bytes by the hash of their content."""

    def get(self, name: str) -> bytes:
        """The bytes of that name."""
        ...


class Objects:
    """A folder of immutable files, each named by the SHA-256 of its bytes."""

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)

    def path(self, name: str) -> Path:
        """The file of the object of that name; a name that is no hash is refused, since it could be any path."""
        if not _NAME.fullmatch(name):
            raise StoreError(
                f"object {name[:80]!r}: expected the name of an object, 64 hexadecimal digits; the store is damaged or "
                "was changed; restore it from a copy, or name another folder with --store"
            )
        return self.folder / name[:2] / name[2:]

    def put(self, data: bytes) -> str:
        """Keep these bytes; returns their name."""
        name = hashlib.sha256(data).hexdigest()
        path = self.path(name)
        # An existing file is read, not trusted: a damaged object of the right size is written again.
        if not path.is_file() or path.stat().st_size != len(data) or path.read_bytes() != data:
            atomic_write(path, data)
        return name

    def get(self, name: str) -> bytes:
        """The bytes of that name, checked against it."""
        path = self.path(name)
        try:
            if not path.is_file():  # a pipe or a device, which would never end
                raise FileNotFoundError
            data = path.read_bytes()
        except OSError:
            raise StoreError(
                f"object {name[:12]} is missing from {self.folder.name}/; run the recipe again to compute it"
            ) from None
        found = hashlib.sha256(data).hexdigest()
        if found != name:
            raise StoreError(
                f"object {name[:12]} is damaged: expected content that hashes to its name, got {found[:12]} "
                f"({len(data):,} bytes); delete {self.folder.name}/{name[:2]}/{name[2:]} and run the recipe again"
            )
        return data

    def has(self, name: str) -> bool:
        """Whether the object is there."""
        return self.path(name).is_file()

    def names(self) -> Iterator[tuple[str, int]]:
        """Every object, with its size in bytes."""
        if not self.folder.is_dir():
            return
        for part in sorted(self.folder.iterdir()):
            if part.is_dir():
                for path in sorted(part.iterdir()):
                    if _NAME.fullmatch(part.name + path.name) and path.is_file():
                        yield part.name + path.name, path.stat().st_size

    def drop(self, name: str) -> None:
        """Delete an object; one that does not exist is no error."""
        self.path(name).unlink(missing_ok=True)

    def sweep_killed(self) -> None:
        """Delete temporary files of writers that no longer run."""
        if self.folder.is_dir():
            for part in self.folder.iterdir():
                if part.is_dir():
                    sweep(part, again=True)

    def sweep_scratch(self) -> int:
        """Delete temporary files of interrupted writes; returns the bytes freed."""
        freed = 0
        for path in self.folder.glob("*/.*.part"):
            freed += path.stat().st_size
            path.unlink(missing_ok=True)
        return freed

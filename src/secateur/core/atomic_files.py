"""Files written beside and renamed, so that nothing half-written ever bears the name asked for.

>>> import pathlib, tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     with atomic_open(pathlib.Path(folder) / "a.bin") as file:
...         _ = file.write(b"whole")
...     (pathlib.Path(folder) / "a.bin").read_bytes()
b'whole'

`atomic_write` does so with bytes that are there already, `atomic_path` for what some library writes by name.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from secateur.errors import OptionError

__all__ = ["atomic_open", "atomic_path", "atomic_write"]


@contextlib.contextmanager
def atomic_open(
    path: str | os.PathLike[str], source: str | os.PathLike[str] | None = None
) -> Iterator[BinaryIO]:
    """A file open for writing that takes the name `path` when the block ends well, and vanishes else; it may not be the
    name of its `source`.
    """
    path = Path(path)
    _check_target(path)
    if source is not None and path.exists() and path.samefile(source):
        raise OptionError(f"{path}: is the very file to read; name another one to write")
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise OptionError(
            f"{path}: nothing can be written beside it ({error.strerror}); name a file in a folder of yours"
        ) from None
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Another name in the same folder and with the same ending; what the block leaves there takes the name `path`
    when the block ends well, and vanishes else.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_path(Path(folder) / "a.onnx") as scratch:
    ...         _ = scratch.write_text("whole")
    ...     scratch.suffix, [file.name for file in Path(folder).iterdir()]
    ('.onnx', ['a.onnx'])
    """
    path = Path(path)
    _check_target(path)
    scratch = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.part{path.suffix}")
    try:
        yield scratch
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def atomic_write(path: Path, data: bytes) -> Path:
    """Write a file so that nobody ever sees half of it, into folders that are made where they are missing.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     target = atomic_write(Path(folder) / "a" / "b.bin", b"all of it")
    ...     target.read_bytes(), len(list(target.parent.iterdir()))
    (b'all of it', 1)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        file.write(data)
    _sync_folder(path.parent)
    return path


def _check_target(path: Path) -> None:
    """Raise where no file can take this name, before any work is done for it.

    >>> _check_target(Path("no/such/folder/a.bin"))
    Traceback (most recent call last):
    ...
    secateur.errors.OptionError: no/such/folder/a.bin: there is no folder no/such/folder; create it first
    """
    if path.is_dir():
        raise OptionError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise OptionError(f"{path}: there is no folder {path.parent}; create it first")


def _sync_folder(folder: Path) -> None:
    """Make a rename outlive a power cut, where the system lets a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders; its renames need no flush
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

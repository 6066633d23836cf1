"""Atomic writes: a temporary file in the same folder, then a rename.

>>> import pathlib, tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     with atomic_open(pathlib.Path(folder) / "a.bin") as file:
...         _ = file.write(b"whole")
...     (pathlib.Path(folder) / "a.bin").read_bytes()
b'whole'

`atomic_write` writes bytes that are already in memory; `atomic_path` serves libraries that write to a path.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from secateur.errors import OptionError

__all__ = [
    "atomic_open",
    "atomic_path",
    "atomic_write",
    "check_target",
    "process_runs",
    "sweep",
    "temporary_name",
]


@contextlib.contextmanager
def atomic_open(
    path: str | os.PathLike[str], source: str | os.PathLike[str] | None = None
) -> Iterator[BinaryIO]:
    """A file open for writing that is renamed to `path` when the block succeeds, and deleted when it fails.

    Args:
        path: The name of the finished file.
        source: A file that is being read and must not be overwritten.

    Raises:
        OptionError: `path` is a folder, its folder does not exist or cannot be written, or it is the source itself.
    """
    path = Path(path)
    check_target(path, source)
    sweep(path.parent)
    temporary = temporary_name(path)
    try:
        # The system itself takes the umask into account: asking for it would change it for all threads meanwhile.
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise OptionError(
            f"{path}: its folder cannot be written ({error.strerror}); name a file in another folder"
        ) from None
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        _name_file(error, path)
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name in the same folder with the same ending; the file written there is renamed to `path` when the
    block succeeds, and deleted when it fails.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_path(Path(folder) / "a.onnx") as scratch:
    ...         _ = scratch.write_text("whole")
    ...     scratch.suffix, [file.name for file in Path(folder).iterdir()]
    ('.onnx', ['a.onnx'])
    """
    path = Path(path)
    check_target(path)
    sweep(path.parent)
    scratch = temporary_name(path, path.suffix)
    try:
        yield scratch
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        _name_file(error, path)
        raise
    finally:
        scratch.unlink(missing_ok=True)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _name_file(error: BaseException, path: Path) -> None:
    """Name the file in an error about a full disk, which the system itself does not do when it writes."""
    if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
        error.filename = str(path)


def atomic_write(path: Path, data: bytes) -> Path:
    """Write a file atomically; missing folders are created.

    >>> import tempfile
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


def check_target(path: Path, source: str | os.PathLike[str] | None = None) -> None:
    """Raise if no file can have this name, before any work is done.

    Args:
        path: The name.
        source: A file that is being read and must not be overwritten.

    >>> check_target(Path("no/such/folder/a.bin"))
    Traceback (most recent call last):
    ...
    secateur.errors.OptionError: no/such/folder/a.bin: there is no folder no/such/folder; create it first
    """
    if path.is_dir():
        raise OptionError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise OptionError(f"{path}: there is no folder {path.parent}; create it first")
    if source is not None and path.exists() and path.samefile(source):
        raise OptionError(f"{path}: is the file that is read; name another one to write")


def _sync_folder(folder: Path) -> None:
    """Flush a rename to disk, so that it survives a power cut, where the system allows it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders; its renames need no flush
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_PATTERN = re.compile(
    r"\.secateur-([0-9a-f]{8})-(\d{1,10})-[0-9a-f]{32}(\.folder)?\.part(\.[A-Za-z0-9]{1,16})?"
)
_OLD = 3600.0  # seconds after which the temporary file of another machine counts as left behind
_swept: set[str] = set()


def temporary_name(path: Path, suffix: str = "", folder: bool = False) -> Path:
    """A name beside a file that says which machine and process writes it.

    Args:
        path: The file that will be written.
        suffix: The ending that a library asks for.
        folder: Whether it is a folder that is written.
    """
    kind = ".folder" if folder else ""
    return path.with_name(f".secateur-{_machine()}-{os.getpid()}-{uuid.uuid4().hex}{kind}.part{suffix}")


def _machine() -> str:
    """A short digest of the name of this machine: process numbers of others mean nothing here."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def sweep(folder: Path, *, again: bool = False) -> None:
    """Delete temporary files and folders that killed writers have left in a folder, once in a process.

    Only those with a name of our own pattern are considered. One of this machine was left behind if its process is
    gone; one of another machine if nothing has been written to it for an hour.
    """
    key = str(folder.absolute())
    if key in _swept and not again:
        return
    _swept.add(key)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _PATTERN.fullmatch(entry.name)
            if found is None:
                continue
            with contextlib.suppress(OSError):
                folder_expected = found[3] is not None
                if entry.is_dir(follow_symlinks=False) != folder_expected or entry.is_symlink():
                    continue
                here = found[1] == _machine()
                old = time.time() - entry.stat(follow_symlinks=False).st_mtime > _OLD
                if not process_runs(int(found[2])) if here else old:
                    if folder_expected:
                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        os.unlink(entry.path)


def process_runs(process: int) -> bool:
    """Whether a process of this number runs on this machine."""
    if os.name == "nt":  # there signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True

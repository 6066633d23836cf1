"""Resumable writing: a hidden folder beside the target holds the finished part and a journal. A job has a fingerprint:
a digest of its input and options. Called again with the same fingerprint, it continues after the last tensor in its
journal; with another, it starts from the beginning. The target is renamed to its name when everything is written. An
error deletes the hidden folder; a kill or Ctrl-C leaves it for the next call.

>>> import tempfile
>>> from secateur.core.atomic_files import atomic_write
>>> with tempfile.TemporaryDirectory() as folder:
...     try:
...         with resumable(Path(folder) / "a", "job 1") as job:
...             _ = atomic_write(job.folder / "part", b"half")
...             job.mark(1, [{"name": "w"}])
...             raise KeyboardInterrupt
...     except KeyboardInterrupt:
...         pass
...     with resumable(Path(folder) / "a", "job 1") as job:
...         print(job.done, job.rows, [file.name for file in job.folder.iterdir() if file.name == "part"])
...     with resumable(Path(folder) / "a", "job 2") as job:
...         print(job.done)
1 [{'name': 'w'}] ['part']
0
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from secateur.container.checkpoint import Checkpoint
from secateur.container.writer import Writer
from secateur.core.atomic_files import atomic_write, process_runs
from secateur.core.json_text import Json, is_count, parse
from secateur.errors import FormatError, OptionError

__all__ = [
    "WRITTEN",
    "Markable",
    "Marks",
    "ResumableJob",
    "fingerprint_of",
    "fingerprint_of_file",
    "resumable",
    "resumed_writer",
]

_JOURNAL, _OWNER = "journal.json", "owner"
WRITTEN = "written.sct"
"""The name of the .sct file in the folder of a job."""
_EVERY = 256 << 20  # bytes of tensors after which a .sct file being written is marked


@dataclass
class ResumableJob:
    """The finished part of a job, and the folder that holds it.

    Attributes:
        folder: The hidden folder, on the disk of the target.
        fingerprint: The digest of the job's input and options.
        done: How many tensors are finished.
        rows: The row of each of them for the report.
        state: The state from which the writer continues.
    """

    folder: Path
    fingerprint: str
    done: int = 0
    rows: list[dict[str, Json]] = field(default_factory=list)
    state: dict[str, Json] = field(default_factory=dict)

    def mark(self, done: int, rows: list[dict[str, Json]], state: Mapping[str, Json] | None = None) -> None:
        """Record the first `done` tensors as finished, after their bytes are on the disk.

        Args:
            done: How many tensors are finished.
            rows: The row of each for the report.
            state: The state from which the writer continues.
        """
        self.done, self.rows, self.state = done, list(rows), dict(state or {})
        text = {"fingerprint": self.fingerprint, "done": done, "rows": rows, "state": self.state}
        atomic_write(self.folder / _JOURNAL, json.dumps(text).encode())

    def restart(self) -> None:
        """Discard the finished part, and delete it."""
        self.done, self.rows, self.state = 0, [], {}
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != _OWNER:
                path.unlink()


def fingerprint_of_file(path: str | os.PathLike[str], job: str) -> str:
    """One file and what is asked for, as one digest: a file that was changed has another.

    Args:
        path: The file that is read.
        job: What decides what is written.
    """
    found = Path(path).stat()
    text = f"{job}\0{Path(path).name}\0{found.st_size}\0{found.st_mtime_ns}"
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint_of(checkpoint: Checkpoint, job: str) -> str:
    """One digest of the input and the options; a changed checkpoint has another.

    Args:
        checkpoint: The checkpoint that is read.
        job: The options that decide what is written.
    """
    whole = hashlib.sha256(job.encode())
    files = [checkpoint.path / shard.file for shard in checkpoint.shards] or [checkpoint.path]
    for path in files:
        found = path.stat()
        whole.update(f"\0{path.name}\0{found.st_size}\0{found.st_mtime_ns}".encode())
    for shard in checkpoint.shards:
        whole.update(shard.header)
    return whole.hexdigest()


@contextlib.contextmanager
def resumable(
    path: str | os.PathLike[str], fingerprint: str, counts: Sequence[str] = ()
) -> Iterator[ResumableJob]:
    """The job that writes `path`, continued if a call of the same fingerprint was killed.

    The block must move its result out of the folder, which is then deleted. It is also deleted by an error, and by
    Ctrl-C where nothing is marked yet.

    Args:
        path: The file or folder that is written.
        fingerprint: As `fingerprint_of` gives it.
        counts: The columns of a row that are whole numbers; a journal with other rows is not continued.

    Raises:
        OptionError: Another process is writing the same target, or there is no folder to write in.
    """
    path = Path(path).absolute()
    if not path.parent.is_dir():
        raise OptionError(f"{path}: there is no folder {path.parent}; create it first")
    label = hashlib.sha256(path.name.encode()).hexdigest()[:16]
    folder = path.parent / f".secateur-{label}.job"
    if folder.is_symlink():
        raise OptionError(f"{folder}: expected a folder of unfinished work, found a link; delete it")
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:  # one that was just made is this process's, also on disks that keep no modes
        _check_own(folder)
    except OSError as error:
        raise OptionError(
            f"{path}: its folder cannot be written ({error.strerror}); name a target in another folder"
        ) from None
    _check_plain(folder)
    owner = folder / _OWNER
    _check_owner(path, owner)
    owner.write_text(str(os.getpid()))
    job = ResumableJob(folder, fingerprint)
    _read_journal(job, counts)
    try:
        yield job
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except BaseException:  # Ctrl-C: the next call continues
        if not job.done:
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            owner.unlink()
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _check_own(folder: Path) -> None:
    """Raise if others can change a folder of unfinished work: what they put there would be taken for finished."""
    found = folder.lstat()
    own = not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)
    if not own or not stat.S_ISDIR(found.st_mode):
        raise OptionError(
            f"{folder}: expected a folder of unfinished work that is yours and that nobody else can write to, found "
            "another one; delete it, or name a target in another folder"
        )


def _check_plain(folder: Path) -> None:
    """Raise if a folder of unfinished work holds a link, a pipe or a device: what is written would go elsewhere."""
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            try:
                found = os.lstat(os.path.join(where, name))
            except FileNotFoundError:  # another process writes the same target, as `_check_owner` will find
                continue
            plain = stat.S_ISREG(found.st_mode) and found.st_nlink <= 1  # none: deleted meanwhile
            if not plain and not stat.S_ISDIR(found.st_mode):
                raise OptionError(
                    f"{os.path.join(where, name)}: expected a file of unfinished work, found a link or a device; "
                    f"delete the folder {folder}"
                )


def _check_owner(path: Path, owner: Path) -> None:
    """Raise if another running process writes the same target."""
    try:
        with open(owner, encoding="ascii") as file:
            number = int(file.read(20))
    except (OSError, ValueError):
        return
    if number != os.getpid() and process_runs(number):
        raise OptionError(
            f"{path}: process {number} is writing it; wait for it to end, or name another target (if no such process "
            f"is at work, delete {owner.parent})"
        )


def _read_journal(job: ResumableJob, counts: Sequence[str]) -> None:
    """Take over the finished part of an earlier call of the same fingerprint; else start from the beginning."""
    try:
        found = parse((job.folder / _JOURNAL).read_bytes(), "the journal")
    except (OSError, FormatError):
        found = None
    if isinstance(found, dict) and found.get("fingerprint") == job.fingerprint:
        done, rows, state = found.get("done"), found.get("rows"), found.get("state")
        if isinstance(done, int) and is_count(done) and isinstance(rows, list) and isinstance(state, dict):
            kept = [row for row in rows if isinstance(row, dict)]
            if len(kept) == len(rows) and _are_rows([row for row in kept if row], counts):
                job.done, job.state, job.rows = done, state, kept
                return
    job.restart()


def _are_rows(rows: Sequence[Mapping[str, Json]], counts: Sequence[str]) -> bool:
    """Whether these are rows of a report: the same columns in each, a name, these counts, and single values."""
    return all(
        row.keys() == rows[0].keys()
        and isinstance(row.get("name"), str)
        and all(is_count(row.get(column)) for column in counts)
        and not any(isinstance(value, list | dict) for value in row.values())
        for row in rows
    )


@contextlib.contextmanager
def resumed_writer(job: ResumableJob, checkpoint: Checkpoint) -> Iterator[tuple[Writer, bool]]:
    """A writer of the .sct file of a job, and whether it continues one that was begun.

    Args:
        job: The job; a block that ends leaves the file in `job.folder`, under the name `written.sct`.
        checkpoint: The input, which gives the names of the tensors already written.
    """
    path = job.folder / WRITTEN
    if job.done and not path.is_file():
        job.restart()
    with open(path, "r+b" if job.done else "w+b") as file:
        writer, begun = Writer(file), False
        if job.done:
            with contextlib.suppress(AssertionError, KeyError, ValueError):  # else the journal was damaged
                writer.resume(job.state, checkpoint.entries[: job.done])
                begun = True
            if not begun:
                job.done, job.rows = 0, []
                file.seek(0)
                file.truncate()
                writer = Writer(file)
        yield writer, begun
        file.flush()
        os.fsync(file.fileno())


class Markable(Protocol):
    """What writes tensors one after another."""

    @property
    def at_boundary(self) -> bool:
        """Whether every tensor so far is written, and the next begins a section."""
        ...

    def state(self) -> Mapping[str, Json]:
        """Flush everything to the disk; returns the state from which to continue."""
        ...


class Marks:
    """When what is being written is marked as done up to here: at the ends of sections.

    Args:
        job: The job.
        writer: What writes.
    """

    def __init__(self, job: ResumableJob, writer: Markable):
        self._job, self._writer = job, writer
        self._since = 0

    def wrote(self, done: int, nbytes: int, rows: list[dict[str, Json]]) -> None:
        """Note that a tensor was given to the writer.

        Args:
            done: How many tensors the writer has been given.
            nbytes: The bytes of this one.
            rows: The row of each for the report.
        """
        self._since += nbytes
        if self._since >= _EVERY and self._writer.at_boundary:
            self._job.mark(done, rows, self._writer.state())
            self._since = 0

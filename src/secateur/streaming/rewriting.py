"""`rewrite`: read a checkpoint tensor by tensor, change some of them, and write it; a killed run continues.

A folder becomes a folder of the same files with the same index, or one .sct file; a single .safetensors file becomes
another, or a .sct file. Finished parts are kept in a hidden folder beside the target until everything is written: whole
files of a folder, and a .sct file up to a mark (see `container.resuming`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secateur.container import format as sct
from secateur.container import tensors
from secateur.container.checkpoint import Checkpoint, Shard
from secateur.container.resuming import (
    WRITTEN,
    Marks,
    ResumableJob,
    fingerprint_of,
    resumable,
    resumed_writer,
)
from secateur.container.shards import ShardLayout, check_no_shard
from secateur.core.atomic_files import atomic_open, atomic_write
from secateur.core.json_text import Json
from secateur.core.new_folders import check_new_folder
from secateur.errors import DataError, OptionError

__all__ = [
    "Changed",
    "Progress",
    "RewrittenCheckpoint",
    "Row",
    "check_target",
    "copied_files",
    "little_endian",
    "named_folder",
    "rewrite",
]

Progress = Callable[[int, int, str], None]
"""Called with (bytes done, bytes in all, tensor) for every tensor."""
Row = dict[str, Json]
_COPIED = (".json", ".jinja", ".model", ".txt")
"""Endings of a folder's other files that are copied: configuration and tokenizer."""
_OUT = "out"


@dataclass(frozen=True, eq=False)
class Changed:
    """A tensor to be written, and its row for the report."""

    entry: sct.Entry
    words: np.ndarray
    row: Row


@dataclass(frozen=True)
class RewrittenCheckpoint:
    """The written checkpoint, and a row for every changed tensor.

    Attributes:
        path: The file or folder.
        size: Its bytes; of a folder, those of its tensors' files.
        source: The bytes of the files that were read.
        rows: One mapping for every tensor that was changed: its name, and the figures of the change.
        left_out: The files of the folder that were not copied.
    """

    path: Path
    size: int
    source: int
    rows: tuple[Row, ...]
    left_out: tuple[str, ...] = ()

    def table(self) -> str:
        """One line for every tensor that was changed."""
        if not self.rows:
            return "no tensor was changed"
        heads = [name for name in self.rows[0] if name != "name"]
        width = max(6, *(len(str(row["name"])) for row in self.rows))
        lines = [f"{'tensor':<{width}}" + "".join(f"  {head:>14}" for head in heads)]
        for row in self.rows:
            lines.append(
                f"{row['name']!s:<{width}}" + "".join(f"  {_shown(row[head]):>14}" for head in heads)
            )
        return "\n".join(lines)

    __str__ = table


def _shown(value: Json) -> str:
    return (
        f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    )


def check_target(checkpoint: Checkpoint, target: Path) -> None:
    """Raise unless a checkpoint can be written under this name.

    Args:
        checkpoint: The checkpoint that is read.
        target: The .sct file, the .safetensors file or the new folder.

    Raises:
        OptionError: There is something under this name, or a folder is to become one .safetensors file.
    """
    if target.suffix == ".sct":
        return
    if target.suffix == ".safetensors":
        if checkpoint.shards:
            raise OptionError(f"{target}: a folder becomes a folder or one .sct file; name one of these")
        if target.exists() and target.samefile(checkpoint.path):
            raise OptionError(f"{target}: is the file that is read; name another one to write")
        check_no_shard(target)
        return
    check_new_folder(target)
    if not checkpoint.shards:
        raise OptionError(
            f"{target}: expected a name that ends in .safetensors or .sct for {checkpoint.path.name}, one file; "
            "without an ending it names a folder"
        )


def rewrite(
    checkpoint: Checkpoint,
    target: str | os.PathLike[str],
    asked: str,
    changed: Callable[[Sequence[int]], Iterator[Changed]],
    progress: Progress | None = None,
    check: Callable[[Sequence[Row]], None] | None = None,
    counts: Sequence[str] = (),
) -> RewrittenCheckpoint:
    """Write a changed copy of a checkpoint.

    Args:
        checkpoint: The checkpoint that is read.
        target: The .sct file, the .safetensors file or the new folder.
        asked: The options that decide the bytes written; a call with another text starts from the beginning.
        changed: Returns the tensors of these numbers as they are to be written, in order.
        progress: Called for every tensor.
        check: Called with all rows before the target is renamed; an exception ends the job.
        counts: The columns of a row that are whole numbers.

    Returns:
        The written checkpoint, with a row for every tensor that has one.
    """
    target = Path(target)
    check_target(checkpoint, target)
    total = sum(entry.nbytes for entry in checkpoint.entries)

    def reported(numbers: Sequence[int], job_rows: list[Row]) -> Iterator[Changed]:
        done = sum(entry.nbytes for entry in checkpoint.entries[: numbers[0]]) if numbers else 0
        for one in changed(numbers):
            job_rows.append(one.row)
            yield one
            done += one.entry.nbytes
            if progress is not None:
                progress(done, total, one.entry.name)
        if check is not None:
            check([row for row in job_rows if row])

    kind = "sct" if target.suffix == ".sct" else "files"
    with resumable(target, fingerprint_of(checkpoint, f"{kind}\0{asked}"), counts) as job:
        rows, left_out = list(job.rows), checkpoint.left_out
        if kind == "sct":
            size = _write_sct(checkpoint, target, job, rows, reported)
        elif checkpoint.shards:
            size, left_out = _write_folder(checkpoint, target, job, rows, reported)
        else:
            size = _write_file(checkpoint, target, rows, reported)
    files = [checkpoint.path / shard.file for shard in checkpoint.shards] or [checkpoint.path]
    source = sum(file.stat().st_size for file in files)
    return RewrittenCheckpoint(target, size, source, tuple(row for row in rows if row), left_out)


_Reported = Callable[[Sequence[int], list[Row]], Iterator[Changed]]


def _write_file(checkpoint: Checkpoint, target: Path, rows: list[Row], reported: _Reported) -> int:
    """Write one .safetensors file with the header of the one read."""
    if checkpoint.header is None:
        raise DataError(
            f"{checkpoint.path}: expected a .safetensors file or a folder of them, to write {target.name}"
        )
    del rows[:]  # one file is written at once: nothing of it is kept from a killed run
    with atomic_open(target, source=checkpoint.path) as file:
        file.write(len(checkpoint.header).to_bytes(8, "little") + checkpoint.header)
        for one in reported(range(len(checkpoint.entries)), rows):
            file.write(little_endian(one.words).data)
        return file.tell()


def little_endian(words: np.ndarray) -> np.ndarray:
    """Words as safetensors stores them.

    Args:
        words: The elements of a tensor.
    """
    return np.ascontiguousarray(words.astype(words.dtype.newbyteorder("<"), copy=False))


def _write_folder(
    checkpoint: Checkpoint, target: Path, job: ResumableJob, rows: list[Row], reported: _Reported
) -> tuple[int, tuple[str, ...]]:
    """Write the files that are not written yet; gives the bytes of all, and the files that were not copied."""
    out = job.folder / _OUT
    out.mkdir(exist_ok=True)
    at, ends, todo = 0, [], []
    for shard in checkpoint.shards:
        at += len(shard.entries)
        ends.append(at)
        if at > job.done or not (out / shard.file).is_file():
            todo.append((shard, at))
    numbers = range(todo[0][1] - len(todo[0][0].entries), at) if todo else range(0)
    del rows[numbers.start if todo else at :]
    words = reported(numbers, rows)
    for shard, end in todo:
        _write_shard(out / shard.file, shard, words)
        job.mark(end, rows)
    for _ in words:  # its end, where the rows are checked
        raise AssertionError("a folder's files cover all tensors")
    left_out = copied_files(checkpoint, out)
    size = sum((out / shard.file).stat().st_size for shard in checkpoint.shards)
    if target.exists():
        target.rmdir()
    out.rename(target)
    return size, left_out


def named_folder(
    checkpoint: Checkpoint, folder: Path, target: Path, rows: Sequence[Row], left_out: tuple[str, ...]
) -> RewrittenCheckpoint:
    """Rename a finished folder to the target.

    Args:
        checkpoint: The folder that was read.
        folder: The finished folder.
        target: Its name.
        rows: The rows of the report.
        left_out: The names of files that were not copied.
    """
    before = sum((checkpoint.path / shard.file).stat().st_size for shard in checkpoint.shards)
    size = sum((folder / shard.file).stat().st_size for shard in checkpoint.shards)
    if target.exists():
        target.rmdir()
    folder.rename(target)
    return RewrittenCheckpoint(target, size, before, tuple(rows), left_out)


def copied_files(checkpoint: Checkpoint, out: Path) -> tuple[str, ...]:
    """Copy the index, the configuration and the tokenizer of a folder; gives the names of what was not copied.

    Args:
        checkpoint: The folder that is read.
        out: The folder that is written.
    """
    if checkpoint.index is not None:
        atomic_write(out / checkpoint.index[0], checkpoint.index[1])
    left_out = []
    for name in checkpoint.left_out:
        if Path(name).suffix in _COPIED and (checkpoint.path / name).is_file():
            shutil.copyfile(checkpoint.path / name, out / name)
        else:
            left_out.append(name)
    return tuple(left_out)


def _write_shard(path: Path, shard: Shard, words: Iterator[Changed]) -> None:
    with atomic_open(path) as file:
        file.write(len(shard.header).to_bytes(8, "little") + shard.header)
        for entry in shard.entries:
            one = next(words)
            assert one.entry == entry
            file.write(little_endian(one.words).data)


def _write_sct(
    checkpoint: Checkpoint, target: Path, job: ResumableJob, rows: list[Row], reported: _Reported
) -> int:
    """Write one .sct file, which keeps the layout of the files that were read."""
    with resumed_writer(job, checkpoint) as (writer, begun):
        del rows[job.done :]
        if not begun and checkpoint.shards:
            layout = ShardLayout(checkpoint.shards, checkpoint.index)
            writer.text("shards", tensors.text(layout.to_json().encode()))
        marks = Marks(job, writer)
        for one in reported(range(job.done, len(checkpoint.entries)), rows):
            stored = tensors.encode(one.entry, one.words, "mixed", writer.memory)
            writer.add(one.entry, np.ascontiguousarray(one.words).data, *stored)
            marks.wrote(len(rows), one.entry.nbytes, rows)
        writer.finish()
        size = writer.written
    os.replace(job.folder / WRITTEN, target)
    return size

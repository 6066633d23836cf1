"""`UnpackedFiles`: the safetensors files that a .sct file becomes, written tensor by tensor; resumable.

The files are in the folder of a `ResumableJob`. Names and sizes of the finished part are compared with those of the
.sct file; where they differ, the job starts from the beginning.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from secateur.container.format import Entry, Record
from secateur.container.reading import ReadingPoint
from secateur.container.resuming import ResumableJob
from secateur.core.json_text import Json, is_count

__all__ = ["OutFile", "UnpackedFiles"]

_OUT = "out"


@dataclass(frozen=True)
class OutFile:
    """A safetensors file to write.

    Attributes:
        name: Its name.
        header: Its header.
        entries: Its tensors, in order.
    """

    name: str
    header: bytes
    entries: Sequence[Entry]

    @property
    def begin(self) -> int:
        """Where its first tensor begins."""
        return 8 + len(self.header)

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.begin + sum(entry.nbytes for entry in self.entries)


class UnpackedFiles:
    """The files of a job, open at the tensor that is written next.

    Args:
        job: The job; it starts from the beginning unless its folder holds the files of its journal.
        files: The files, in the order of their tensors.
        heads: The records of the .sct file.
        at: The position of decoding; set to where the job continues.
    """

    def __init__(
        self, job: ResumableJob, files: Sequence[OutFile], heads: Sequence[Record], at: ReadingPoint
    ):
        self.folder = job.folder / _OUT
        self._files, self._heads, self._at = files, heads, at
        self._number = self._place = self._left = 0
        self._file: BinaryIO | None = None
        content = job.state.get("content")
        if not isinstance(content, int) or not is_count(content, (1 << 32) - 1):
            content = None
        if not job.done or content is None or not self._found(job.done):
            job.restart()
            content = 0
        self.folder.mkdir(exist_ok=True)
        at.first = self._number = job.done
        at.content = content
        self._go_to(job.done)

    def __enter__(self) -> UnpackedFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def _found(self, done: int) -> bool:
        """Whether the first `done` tensors are in the files, and the next begins a section."""
        if done > len(self._heads) or not self._begins_section(done):
            return False
        for file in self._files:
            here = file.entries[:done]
            path = self.folder / file.name
            if not path.is_file() or path.stat().st_size < file.begin + sum(one.nbytes for one in here):
                return False
            done -= len(here)
            if not done:
                return True
        return False

    def _begins_section(self, number: int) -> bool:
        return number in (0, len(self._heads)) or (
            self._heads[number].section != self._heads[number - 1].section
        )

    def _go_to(self, number: int) -> None:
        """Open the file of a tensor at its place; files that are complete before it are left as they are."""
        place, done = 0, number
        while place < len(self._files) and done and done >= len(self._files[place].entries):
            done -= len(self._files[place].entries)
            place += 1
        self._open(place, done)

    def _open(self, place: int, done: int) -> None:
        """Open a file at one of its tensors; a file without tensors is written, and the next one opened."""
        while place < len(self._files):
            file = self._files[place]
            at = file.begin + sum(one.nbytes for one in file.entries[:done])
            self._file = (self.folder / file.name).open("r+b" if done else "w+b")
            self._file.write(len(file.header).to_bytes(8, "little") + file.header)
            self._file.truncate(at)
            self._file.seek(at)
            self._place, self._left = place, len(file.entries) - done
            if self._left:
                return
            self._close()
            place, done = place + 1, 0

    def _close(self) -> None:
        """Close the open file, which is on the disk then."""
        self._sync()
        if self._file is not None:
            self._file.close()
            self._file = None

    def write(self, words: np.ndarray) -> None:
        """Write the next tensor.

        Args:
            words: Its elements.
        """
        assert self._file is not None
        self._file.write(np.ascontiguousarray(words.astype(words.dtype.newbyteorder("<"), copy=False)).data)
        self._number, self._left = self._number + 1, self._left - 1
        if not self._left:
            self._close()
            self._open(self._place + 1, 0)

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(file.size for file in self._files)

    # -- for `Marks` -----------------------------------------------------------------------------------
    @property
    def at_boundary(self) -> bool:
        """Whether decoding can begin with the next tensor."""
        return self._begins_section(self._number)

    def state(self) -> dict[str, Json]:
        """The checksum of the written tensors, after their bytes are on the disk."""
        self._sync()
        return {"content": self._at.content}

    def _sync(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def moved(self, target: Path, folder: bool) -> None:
        """Rename the finished file or folder.

        Args:
            target: The name.
            folder: Whether it is the folder's name, or that of the only file in it.
        """
        if not folder:
            os.replace(self.folder / self._files[0].name, target)
            return
        if target.exists():
            target.rmdir()
        self.folder.rename(target)

"""`pack` and `unpack`: a checkpoint, one file or a folder, to a .sct file and back, one tensor in memory at a time.

>>> import pathlib, tempfile, torch
>>> from safetensors.torch import save_file
>>> with tempfile.TemporaryDirectory() as folder:
...     folder = pathlib.Path(folder)
...     save_file({"w": torch.randn(100, 100)}, folder / "m.safetensors")
...     packed = pack(folder / "m.safetensors", folder / "m.sct", lossless=True)
...     back = unpack(folder / "m.sct", folder / "again.safetensors")
...     (folder / "m.safetensors").read_bytes() == (folder / "again.safetensors").read_bytes()
True
>>> packed.ratio > 1
True
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secateur.coding.indices import MixerBank
from secateur.coding.room import Pieces, Room
from secateur.container import format as sct
from secateur.container import tensors
from secateur.container.checkpoint import Checkpoint, canonical_header, without_training
from secateur.container.frame import Archive
from secateur.container.opened import opened
from secateur.container.reading import LEARNT, ReadingPoint, can_skip, words_of
from secateur.container.resuming import (
    WRITTEN,
    Marks,
    fingerprint_of,
    fingerprint_of_file,
    resumable,
    resumed_writer,
)
from secateur.container.shards import ShardLayout, check_no_shard, check_place, open_source
from secateur.container.unpacked_files import OutFile, UnpackedFiles
from secateur.container.worker_pool import TensorWorkers, worker_count
from secateur.container.writer import Writer
from secateur.core.atomic_files import atomic_write, check_target
from secateur.core.file_endings import check_ending
from secateur.core.json_text import parse, texts_of
from secateur.core.safetensors_header import read_header
from secateur.errors import FormatError, NonFiniteError, NothingToDoError, OptionError

__all__ = ["Packed", "Progress", "pack", "sharable", "shared_words", "unpack"]

Progress = Callable[[int, int, str], None]

_LEAST_SHARED = 256  # weights; a codebook would make a smaller tensor no smaller
_SAMPLE = 4096  # words of a tensor from which the number of distinct ones is judged


@dataclass(frozen=True)
class Packed:
    """The result of `pack` or `unpack`.

    Attributes:
        path: The file written.
        size: Its bytes.
        source: The bytes of the file read.
        tensors: How many tensors it holds.
        left_out: Names of the values of a .pt file, or of the files of a folder, that are not tensors, which a .sct
            file cannot hold; and, where weights are shared, of the tensors of an optimizer.
    """

    path: Path
    size: int
    source: int
    tensors: int
    left_out: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """Bytes read over bytes written."""
        return self.source / self.size


def pack(
    path_in: str | os.PathLike[str],
    path_out: str | os.PathLike[str],
    bits: int | None = None,
    lossless: bool = False,
    fast: bool = False,
    progress: Progress | None = None,
    method: str = "kmeans",
    workers: int | None = 1,
    *,
    max_bytes: int | None = None,
) -> Packed:
    """Convert a .safetensors or .pt checkpoint, or a folder of .safetensors files with their index, to a .sct file.

    Without `bits` every tensor comes back bit for bit, and a .safetensors file comes back byte for byte,
    as do the files of a folder and their index. One tensor is in memory at a time, with one worker.

    A killed call continues when it is called again with the same checkpoint, target and options.

    Several workers write the same bytes as one: threads code what is packed losslessly, processes what has few distinct
    values, which takes a hundred times as long. Processes take two or three seconds to start, so below about eight
    million weights one worker is as fast. A script that asks for processes needs `if __name__ == "__main__":`.

    Args:
        path_in: The checkpoint to read: .safetensors, .pt, .pth, .bin or .ckpt; or a folder that holds one .safetensors
            file, or several and an index (`model.safetensors.index.json`).
        path_out: The .sct file to write.
        bits: Share the weights of every float tensor with two or more axes, with 2**bits values a tensor; zeros stay
            zeros. What an optimizer keeps in a training checkpoint is left out.
        lossless: Say that nothing may be rounded; excludes `bits`.
        fast: Code indices by one table instead of learnt contexts: faster, and larger.
        progress: Called with (bytes done, bytes in all, tensor) for every tensor.
        method: How weights are shared: a name of `secateur.quantize`.
        workers: How many code at a time; None takes one a processor where there are enough tensors for that.
        max_bytes: The most bytes of tensors to accept from a .pt file, whose tensors may be views of few numbers; by
            default 64 MiB and eight times the file's size.

    Returns:
        The file written, its size and the size of the file read.

    Raises:
        DataError: The checkpoint cannot be read.
        NothingToDoError: `bits` is given and there is no tensor to share.
    """
    if lossless and bits is not None:
        raise OptionError(f"lossless and bits={bits} exclude each other; choose one")
    if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8):
        raise OptionError(f"bits: expected a whole number from 1 to 8, got {bits!r}")
    worker_count(workers, 0)
    with open_source(path_in, max_bytes) as checkpoint:
        if bits is not None:
            checkpoint = without_training(checkpoint)
        minor = 0 if bits is not None else tensors.minor_bytes(checkpoint.entries)
        job = _Job("fast" if fast else "mixed", bits, method, minor)
        sct.check_entries(checkpoint.entries)
        if bits is not None and not any(map(sharable, checkpoint.entries)):
            raise NothingToDoError(
                f"{path_in}: no float tensor with two axes and {_LEAST_SHARED} weights to share; leave bits "
                f"out"
            )
        size = _write_sct(checkpoint, Path(path_out), job, workers, progress)
        count, left_out = len(checkpoint.entries), checkpoint.left_out
        files = [Path(path_in, shard.file) for shard in checkpoint.shards] or [Path(path_in)]
        source = sum(file.stat().st_size for file in files)
    return Packed(Path(path_out), size, source, count, left_out)


def _write_sct(
    checkpoint: Checkpoint, path: Path, job: _Job, workers: int | None, progress: Progress | None
) -> int:
    """Write the file, or continue it; returns its bytes."""
    check_target(path, checkpoint.path)
    check_ending(path, "pack writes a .sct file", ".sct")
    total = sum(entry.nbytes for entry in checkpoint.entries)
    with resumable(path, fingerprint_of(checkpoint, repr(("pack", job)))) as kept:
        with resumed_writer(kept, checkpoint) as (writer, begun):
            if not begun:
                _write_texts(writer, checkpoint)
            done = sum(entry.nbytes for entry in checkpoint.entries[: kept.done])
            marks, number = Marks(kept, writer), kept.done
            for entry, words, stored in _encoded(
                checkpoint, job, writer, worker_count(workers, total), number
            ):
                writer.add(entry, np.ascontiguousarray(words).data, *stored)
                number, done = number + 1, done + entry.nbytes
                marks.wrote(number, entry.nbytes, [])
                if progress is not None:
                    progress(done, total, entry.name)
            writer.finish()
            size = writer.written
        os.replace(kept.folder / WRITTEN, path)
    return size


def _write_texts(writer: Writer, checkpoint: Checkpoint) -> None:
    """Write what it takes to write the checkpoint's files again."""
    if checkpoint.header is not None:
        _write_header(writer, checkpoint.header, checkpoint.entries, checkpoint.metadata)
    if checkpoint.shards:
        layout = ShardLayout(checkpoint.shards, checkpoint.index)
        writer.text("shards", tensors.text(layout.to_json().encode()))


_Stored = tuple[int, Sequence[bytes | Pieces]]
_Coded = tuple[sct.Entry, np.ndarray, _Stored]


@dataclass(frozen=True)
class _Job:
    """How every tensor is coded; sent to the workers."""

    coder: str
    bits: int | None
    method: str
    minor: int  # bytes up to which dense tensors are not looked at closely

    def tensor(
        self, entry: sct.Entry, words: np.ndarray, memory: MixerBank, room: Room | None = None
    ) -> _Coded:
        """Code one tensor, with its weights shared if asked; its parts are not joined if there is a room."""
        if self.bits is not None and sharable(entry):
            words = shared_words(entry, words, self.bits, self.method)
        method, parts = tensors.pieces_of(entry, words, self.coder, memory, room, self.minor)
        return entry, words, (method, parts if room is not None else [bytes(part) for part in parts])

    def section(self, group: list[tuple[sct.Entry, np.ndarray]]) -> list[_Coded]:
        """Code the tensors of one section, with a fresh memory."""
        memory = MixerBank()
        return [self.tensor(entry, words, memory) for entry, words in group]


def _encoded(checkpoint: Checkpoint, job: _Job, writer: Writer, workers: int, first: int) -> Iterator[_Coded]:
    """The tensors from `first` on, coded: one after the other, or several sections at a time by workers."""
    if workers == 1:
        room = Room()
        for index, entry in enumerate(checkpoint.entries[first:], first):
            room.clear()
            yield job.tensor(entry, checkpoint.words(index, room), writer.memory, room)
        return
    with TensorWorkers(workers) as pool:
        waiting: deque[Future[list[_Coded]]] = deque()
        for section in _sections(checkpoint.entries[first:]):
            numbers = [first + number for number in section]
            group = [(checkpoint.entries[i], checkpoint.words(i)) for i in numbers]
            slow = job.bits is not None or any(_few(entry, words, job.coder) for entry, words in group)
            waiting.append(pool.submit(slow, job.section, group))
            if len(waiting) > workers:  # at most workers + 1 sections are in memory
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _few(entry: sct.Entry, words: np.ndarray, coder: str) -> bool:
    """Whether a sample suggests few distinct words, which are coded as indices: by a process, as it takes long."""
    if tensors.dense_bytes(entry, words.reshape(-1), coder):
        return False
    sample = words.reshape(-1)[:: max(1, words.size // _SAMPLE)]
    return len(np.unique(sample)) * 4 < len(sample)


def _sections(entries: list[sct.Entry]) -> Iterator[list[int]]:
    """The tensors of each section, as the writer will cut them."""
    group: list[int] = []
    size = 0
    for index, entry in enumerate(entries):
        group.append(index)
        size += entry.nbytes
        if size >= sct.SECTION_SIZE:
            yield group
            group, size = [], 0
    if group:
        yield group


def _write_header(
    writer: Writer, header: bytes, entries: list[sct.Entry], metadata: Mapping[str, str]
) -> None:
    """The data from which the same header can be written again: the metadata of a plain one, else all of it."""
    if header == canonical_header(entries, metadata):
        text = (
            json.dumps(dict(metadata), separators=(",", ":"), ensure_ascii=False).encode()
            if metadata
            else b""
        )
        writer.text("metadata", tensors.text(text))
    else:
        writer.text("header", tensors.text(header))


def sharable(entry: sct.Entry) -> bool:
    """Whether `pack` shares the weights of a tensor, if asked: floats of two or more axes, and not too few."""
    return entry.dtype in ("F32", "F16", "BF16") and len(entry.shape) > 1 and entry.numel >= _LEAST_SHARED


def shared_words(entry: sct.Entry, words: np.ndarray, bits: int, method: str) -> np.ndarray:
    """The tensor with its weights replaced by the nearest of 2**bits values; zeros stay.

    Args:
        entry: Name, dtype and shape.
        words: Its elements as unsigned words.
        bits: 2**bits values.
        method: A name of `secateur.quantize`.

    Raises:
        NonFiniteError: A weight is NaN or infinite.
    """
    import torch

    from secateur import quantize
    from secateur.container.arrays import to_tensor, to_words

    tensor = to_tensor(entry, words)
    if not bool(torch.isfinite(tensor).all()):
        raise NonFiniteError(
            f"tensor {entry.name!r}: holds NaN or infinity; share finite weights, or pack lossless"
        )
    kept = tensor != 0
    weights = tensor[kept]
    if not weights.numel():
        return words
    palette = quantize.registry.make(method, bits=bits).palette(
        entry.name, weights, tensor.numel() - weights.numel(), seed=0
    )
    values = torch.from_numpy(palette.values).to(tensor.dtype)
    tensor[kept] = values[palette.assign(weights)]
    return to_words(entry.name, tensor)[1]


def unpack(
    path_in: str | os.PathLike[str],
    path_out: str | os.PathLike[str],
    progress: Progress | None = None,
    workers: int | None = 1,
    max_bytes: int | None = None,
) -> Packed:
    """Convert a .sct file to .safetensors; what was packed losslessly from .safetensors gets its bytes back.

    A file packed from a folder becomes a folder again: the same files and their index; or one file, if `path_out` ends
    in .safetensors. A killed call continues when it is called again.

    Several workers decode at a time: threads what is packed losslessly, processes what is shared. Processes take two or
    three seconds to start, which pays off from tens of millions of shared weights on.

    Args:
        path_in: The .sct file to read.
        path_out: The .safetensors file to write, or the new folder.
        progress: Called with (bytes done, bytes in all, tensor) for every tensor.
        workers: How many decode at a time; None takes one a processor where enough weights are shared for that.
        max_bytes: The most bytes of decoded tensors to accept; by default 64 MiB and eight times the file's size for
            one tensor, and 64 times its size for all of them.

    Returns:
        The file written, its size and the size of the file read.

    Raises:
        FormatError: The file is not a valid .sct file, or leaves its names to a model.
        OptionError: The name to write ends as torch's own files do, or nothing can be written there.
    """
    worker_count(workers, 0)
    if Path(path_out) != Path(path_in):  # which is refused below
        more = ", or read the .sct file with sc.load(...) and torch.save that"
        check_ending(path_out, "unpack writes safetensors", ".safetensors", more)
        check_no_shard(Path(path_out))
    with opened(path_in) as source:
        archive = Archive(source, max_bytes=max_bytes)
        if not archive.named:
            raise FormatError(
                f"{path_in}: the file leaves its names to a model; load it with sc.load(..., into=model) "
                f"instead"
            )
        entries = [record.entry for record in archive.heads]
        size = _write_unpacked(archive, entries, Path(path_in), Path(path_out), workers, progress)
    return Packed(Path(path_out), size, archive.size, len(entries))


def _write_unpacked(
    archive: Archive,
    entries: list[sct.Entry],
    path_in: Path,
    path_out: Path,
    workers: int | None,
    progress: Progress | None,
) -> int:
    """Write the file or the folder, or continue it; returns the bytes of the files with tensors."""
    layout = None
    if "shards" in archive.texts and path_out.suffix != ".safetensors":
        check_place(path_out)
        raw = tensors.read_text(archive.texts["shards"], "the layout of the shards", archive.limits.text)
        layout = ShardLayout.from_json(raw, entries)
        files = [OutFile(shard.file, shard.header, shard.entries) for shard in layout.shards]
    else:
        check_target(path_out, path_in)
        files = [OutFile("model.safetensors", _read_header(archive, entries), entries)]
    indexed = sum(record.entry.nbytes for record in archive.heads if record.method in LEARNT)
    total, done, at = sum(entry.nbytes for entry in entries), 0, ReadingPoint()
    asked = repr(("unpack", layout is None, archive.content))
    with resumable(path_out, fingerprint_of_file(path_in, asked)) as job:
        with UnpackedFiles(job, files, archive.heads, at) as written:
            marks = Marks(job, written) if can_skip(archive) else None
            done = sum(entry.nbytes for entry in entries[: at.first])
            for record, words in words_of(archive, worker_count(workers, indexed), at, Room()):
                written.write(words)
                if marks is not None:
                    marks.wrote(record.index + 1, record.entry.nbytes, [])
                done += record.entry.nbytes
                if progress is not None:
                    progress(done, total, record.entry.name)
        if layout is not None and layout.index is not None:
            atomic_write(written.folder / layout.index[0], layout.index[1])
        written.moved(path_out, layout is not None)
    return written.size


def _read_header(archive: Archive, entries: list[sct.Entry]) -> bytes:
    """The header of the safetensors file that an archive becomes."""
    if "header" not in archive.texts:
        raw = tensors.read_text(archive.texts.get("metadata", b"\0"), "the metadata", archive.limits.text)
        metadata = texts_of(parse(raw or b"{}", "the metadata"))
        if metadata is None:
            raise FormatError("the metadata is not a JSON object of texts")
        return canonical_header(entries, metadata)
    header = tensors.read_text(archive.texts["header"], "the safetensors header", archive.limits.text)
    claimed, _ = read_header(header, "the safetensors header", FormatError)
    at = 0
    for entry in entries:
        if claimed.pop(entry.name, None) != (entry.dtype, entry.shape, at, at + entry.nbytes):
            raise FormatError(f"the safetensors header does not fit tensor {entry.name!r}")
        at += entry.nbytes
    if claimed:
        raise FormatError(
            f"the safetensors header names tensors the file does not hold: {sorted(claimed)[:3]}"
        )
    return header

"""`inspect_checkpoint`: a summary of every tensor of a checkpoint, one tensor in memory at a time.

>>> import pathlib, tempfile, torch
>>> from safetensors.torch import save_file
>>> with tempfile.TemporaryDirectory() as folder:
...     path = pathlib.Path(folder) / "model.safetensors"
...     save_file({"w": torch.tensor([[0.0, 0.5], [0.0, -2.0]])}, path)
...     report = inspect_checkpoint(path)
>>> report.rows[0].zeros, report.rows[0].distinct, report.rows[0].largest
(2, 3, 2.0)
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from secateur.container.arrays import TORCH_DTYPES, to_tensor
from secateur.container.checkpoint import Checkpoint
from secateur.container.format import Entry
from secateur.container.shards import open_source
from secateur.core.terminal import printable
from secateur.streaming.in_flight import Item, in_flight, memory_limit, worker_limit
from secateur.streaming.rewriting import Progress

__all__ = ["CheckpointReport", "CheckpointTensor", "inspect_checkpoint"]

_FEW = 1 << 16  # distinct words up to which they are counted


@dataclass(frozen=True)
class CheckpointTensor:
    """One tensor of a checkpoint.

    Attributes:
        name: Its name.
        file: The file that holds it.
        dtype: Its dtype, as safetensors spells it.
        shape: Its shape.
        size: Its bytes.
        zeros: Elements that are zero.
        distinct: Distinct elements, where they are at most 65,536; else None.
        largest: The largest absolute value; None where there is none.
        finite: Whether no element is NaN or infinite.
    """

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    zeros: int
    distinct: int | None
    largest: float | None
    finite: bool


@dataclass(frozen=True)
class CheckpointReport:
    """All tensors of a checkpoint: `print(report)` shows the table, `to_json()` has everything.

    Attributes:
        path: The file or folder.
        size: The bytes of all tensors.
        rows: The tensors, in the order of their data.
        left_out: Files of the folder that hold no tensors of it.
    """

    path: Path
    size: int
    rows: tuple[CheckpointTensor, ...]
    left_out: tuple[str, ...] = ()

    @property
    def zeros(self) -> int:
        """Elements that are zero, in all tensors."""
        return sum(row.zeros for row in self.rows)

    def to_json(self) -> str:
        """Everything, as JSON."""
        head = {
            "folder" if self.path.is_dir() else "file": str(self.path),
            "tensor_bytes": self.size,
            "zeros": self.zeros,
            "left_out": list(self.left_out),
        }
        return json.dumps(head | {"tensors": [asdict(row) for row in self.rows]}, indent=2)

    def table(self) -> str:
        """Every tensor, as text."""
        lines = [("tensor", "shape", "dtype", "bytes", "zeros", "distinct", "largest", "file")]
        for row in self.rows:
            count = max(1, int(np.prod(row.shape, dtype=np.int64)))
            lines.append(
                (
                    printable(row.name),
                    "x".join(map(str, row.shape)) or "scalar",
                    row.dtype,
                    f"{row.size:,}",
                    f"{100 * row.zeros / count:.1f} %",
                    "many" if row.distinct is None else f"{row.distinct:,}",
                    ("-" if row.largest is None else f"{row.largest:.4g}")
                    + ("" if row.finite else " and NaN or inf"),
                    printable(row.file),
                )
            )
        lines.append(("total", "", "", f"{self.size:,}", "", "", "", ""))
        widths = [max(len(line[k]) for line in lines) for k in range(8)]
        left = (0, 1, 2, 7)
        return "\n".join(
            "  ".join(
                cell.ljust(width) if k in left else cell.rjust(width)
                for k, (cell, width) in enumerate(zip(line, widths))
            ).rstrip()
            for line in lines
        )

    __str__ = table


def inspect_checkpoint(
    source: str | os.PathLike[str],
    memory: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CheckpointReport:
    """Read a whole checkpoint, and summarize every tensor.

    Args:
        source: A folder of safetensors files with their index, or one .safetensors or .pt file.
        memory: The bytes that tensors in progress may take together; half of the free memory unless given.
        workers: How many tensors are processed at a time; one for each processor unless given.
        progress: Called with (bytes done, bytes in all, tensor) for every tensor.

    Returns:
        The tensors with their zeros, distinct values and largest values.

    Raises:
        DataError: The checkpoint cannot be read.
    """
    limits = memory_limit(memory), worker_limit(workers)
    with open_source(source) as checkpoint:
        files = [shard.file for shard in checkpoint.shards for _ in shard.entries]
        files = files or [checkpoint.path.name] * len(checkpoint.entries)
        items = (
            Item(
                4 * entry.nbytes + 8 * entry.numel,
                functools.partial(checkpoint.words, number),
                functools.partial(_row, entry, files[number]),
            )
            for number, entry in enumerate(checkpoint.entries)
        )
        rows, done, total = [], 0, _size(checkpoint)
        for row in in_flight(items, *limits):
            rows.append(row)
            done += row.size
            if progress is not None:
                progress(done, total, row.name)
        return CheckpointReport(Path(source), total, tuple(rows), checkpoint.left_out)


def _size(checkpoint: Checkpoint) -> int:
    return sum(entry.nbytes for entry in checkpoint.entries)


def _row(entry: Entry, file: str, words: np.ndarray) -> CheckpointTensor:
    flat = words.reshape(-1)
    tensor = to_tensor(entry, words).reshape(-1) if entry.dtype in TORCH_DTYPES else None
    zeros, largest, finite = flat.size - int(np.count_nonzero(flat)), None, True
    if tensor is not None and entry.floating and tensor.numel():
        wide = tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
        zeros = int(wide.numel() - torch.count_nonzero(wide))
        low, high = torch.aminmax(wide)
        largest = float(torch.maximum(low.abs(), high.abs()))
        finite = largest < float("inf")
        largest = largest if finite else None
    return CheckpointTensor(
        entry.name, file, entry.dtype, entry.shape, entry.nbytes, zeros, _distinct(flat), largest, finite
    )


def _distinct(flat: np.ndarray) -> int | None:
    """The number of distinct words, where they are few."""
    if flat.dtype.itemsize <= 2:
        counts = np.zeros(1 << (8 * flat.dtype.itemsize), dtype=bool)
        counts[flat] = True
        return int(np.count_nonzero(counts))
    sample = np.unique(flat[:: max(1, flat.size // 4096)])
    if len(sample) > 4000:  # a sample that hardly repeats itself
        return None
    found = np.unique(flat)
    return len(found) if len(found) <= _FEW else None

"""`inspect`: where every byte of a .sct file goes, by tensor and part, with entropy bounds for comparison.

>>> import pathlib, tempfile, torch
>>> from secateur.container.archive import save
>>> with tempfile.TemporaryDirectory() as folder:
...     _ = save({"w": torch.tensor([[0.0, 0.5], [1.0, 0.5]] * 40)}, pathlib.Path(folder) / "m.sct")
...     report = inspect(pathlib.Path(folder) / "m.sct")
>>> report.rows[0].way, report.accounted == report.size
('indexed', True)
>>> sorted(report.parts)
['checksums', 'codebooks', 'framing', 'indices', 'names']
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from secateur.coding import static
from secateur.coding.huffman import Huffman
from secateur.container import codebooks, tensors
from secateur.container import format as sct
from secateur.container.frame import Archive
from secateur.container.loading import entries_of
from secateur.container.opened import opened
from secateur.container.reading import words_of
from secateur.core.terminal import printable

if TYPE_CHECKING:
    from torch import nn

__all__ = ["FileReport", "TensorRow", "inspect"]

# part of a record -> the name under which `FileReport.parts` counts it
_COUNTED_AS = {
    "codebook": "codebooks",
    "multiples": "codebooks",
    "indices": "indices",
    "mask": "masks",
    "raw": "raw",
    "packed": "packed",
    "value": "constants",
    "back": "references",
    "dtype": "framing",
    "grid": "codebooks",
    "slices": "framing",
    "values": "codebooks",
}


@dataclass(frozen=True)
class TensorRow:
    """One tensor: what it is, how it is stored, and its bytes by part."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    way: str
    dense: int
    size: int
    parts: dict[str, int]
    zeros: int
    """Elements that are zero."""
    distinct: int | None
    """Distinct values, where the tensor is stored as indices."""
    entropy: int | None
    """Bytes of an ideal code that knows only how often each index occurs."""
    huffman: float | None
    """Bits per kept weight in a Huffman code of this tensor's indices."""


@dataclass(frozen=True)
class FileReport:
    """The whole file: `print(report)` shows the table, `to_json()` has everything."""

    path: Path
    version: int
    size: int
    dense: int
    parts: dict[str, int]
    rows: tuple[TensorRow, ...]
    texts: tuple[str, ...]
    known: bool = True
    """Whether names and shapes are known: a file may leave them to the model it was saved from."""

    @property
    def accounted(self) -> int:
        """The sum of all parts: the size of the file, always."""
        return sum(self.parts.values())

    @property
    def ratio(self) -> float | None:
        """Bytes of the tensors over bytes of the file; None where the tensors' shapes are not known."""
        return self.dense / self.size if self.known else None

    @property
    def entropy(self) -> int:
        """The sum of `entropy` over all tensors, in bytes."""
        return sum(row.entropy or 0 for row in self.rows)

    @property
    def formula(self) -> float | None:
        """The ratio as many papers compute it: 32 bits a weight over Huffman bits a kept weight.

        It leaves out masks, codebooks and everything else, so it is never a size on disk. Over the tensors stored as
        indices; None where there is none.
        """
        chosen = [row for row in self.rows if row.huffman is not None]
        bits = sum((row.dense // _width(row) - row.zeros) * (row.huffman or 0.0) for row in chosen)
        return sum(row.dense for row in chosen) * 8 / bits if bits else None

    def to_json(self) -> str:
        """Everything, as JSON."""
        out: dict[str, object] = {
            "file": str(self.path),
            "version": self.version,
            "file_bytes": self.size,
            "dense": self.dense if self.known else None,
            "ratio": self.ratio,
            "entropy": self.entropy,
            "formula": self.formula,
            "parts": self.parts,
            "texts": list(self.texts),
            "tensors": [asdict(row) | ({} if self.known else _UNKNOWN) for row in self.rows],
        }
        return json.dumps(out, indent=2)

    def table(self) -> str:
        """Every tensor and every part, as text."""
        head = ("tensor", "shape", "stored as", "dense", "bytes", "bound", "ratio")
        lines = [head]
        for row in self.rows:
            bound = f"{row.entropy:,}" if row.entropy is not None else "-"
            shape = ("x".join(map(str, row.shape)) or "scalar") if self.known else "?"
            way = row.way if row.distinct is None else f"{row.way} {row.distinct}"
            ratio = f"{row.dense / row.size:.2f}" if row.size and self.known else "-"
            dense = f"{row.dense:,}" if self.known else "?"
            lines.append((printable(row.name), shape, way, dense, f"{row.size:,}", bound, ratio))
        lines.append(("", "", "", "", "", "", ""))
        for part, size in sorted(self.parts.items(), key=lambda item: -item[1]):
            lines.append((part, "", "", "", f"{size:,}", "", f"{100 * size / self.size:.1f} %"))
        lines.append(
            (
                "file",
                "",
                f"version {self.version}",
                f"{self.dense:,}" if self.known else "?",
                f"{self.size:,}",
                "",
                f"{self.ratio:.2f}" if self.ratio is not None else "-",
            )
        )
        widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
        text = "\n".join(
            "  ".join(
                cell.ljust(w) if k < 3 else cell.rjust(w) for k, (cell, w) in enumerate(zip(line, widths))
            ).rstrip()
            for line in lines
        )
        if not self.known:
            return (
                f"{text}\nnames and shapes are left to the model the file was saved from: give it "
                "(--model NAME, or inspect(path, into=model)) to see them and what they hold"
            )
        notes = [f"indices: {self.parts.get('indices', 0):,} bytes, entropy bound {self.entropy:,}"]
        if self.formula is not None:
            notes.append(f"formula of the indexed tensors (no masks, codebooks, names): {self.formula:.2f}; ")
            notes[-1] += f"on disk, everything: {self.ratio:.2f}"
        return text + "\n" + "\n".join(notes)

    __str__ = table


_UNKNOWN = dict.fromkeys(("name", "dtype", "shape", "dense", "zeros"))


def _width(row: TensorRow) -> int:
    return sct.DTYPES[row.dtype][1]


def inspect(
    path: str | os.PathLike[str],
    into: nn.Module | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    max_bytes: int | None = None,
) -> FileReport:
    """Read a whole file, check it, and account for every byte.

    Args:
        path: The .sct file.
        into: A freshly built model, for a file that leaves names and shapes to the model. Without it such a file is
            accounted for too, but the content of its tensors is not known.
        progress: Called with (byte reached, bytes in all, tensor) for every tensor.
        max_bytes: The most bytes of decoded tensors to accept; by default 64 MiB and eight times the file's size for
            one tensor, and 64 times its size for all of them.

    Returns:
        The bytes of every tensor and every part; `print` shows a table.

    Raises:
        FormatError: The file is not a valid .sct file.
    """
    with opened(path) as file:
        archive = Archive(file, max_bytes=max_bytes)
        if into is not None and not archive.named:
            archive = Archive(file, entries_of(archive, into), max_bytes)
        parts: Counter[str] = Counter()
        rows = []
        known = archive.named or into is not None
        for record, words in words_of(archive) if known else ((record, None) for record in archive):
            rows.append(_row(record, words))
            parts["names"] += record.name_bytes
            parts["framing"] += record.frame_bytes
            for part, data in record.parts.items():
                parts[_COUNTED_AS[part]] += len(data)
            if progress is not None:
                progress(record.offset, archive.size, record.entry.name)
        in_records = sum(parts.values())
        texts = sum(len(key.encode()) + len(value) for key, value in archive.texts.items())
        parts["checksums"] += archive.checksums
        if archive.texts:
            parts["texts"] += texts
        numbers = len(archive.numbers or b"")
        if numbers:
            parts["numbers"] += numbers
        pads = sum(section.length for section in archive.sections if section.kind == sct.PAD)
        if pads:
            parts["padding"] += pads
        parts["framing"] += archive.size - in_records - texts - numbers - pads - parts["checksums"]
        return FileReport(
            Path(path),
            archive.version,
            archive.size,
            sum(row.dense for row in rows),
            {name: size for name, size in parts.items() if size},
            tuple(rows),
            tuple(archive.texts),
            known,
        )


def _row(record: sct.Record, words: np.ndarray | None) -> TensorRow:
    entry = record.entry
    distinct = entropy = huffman = None
    if words is not None and record.method in (sct.INDEXED, sct.SHORT) and entry.numel:
        values = tensors.values_of(record)
        few = codebooks.levels_of(words, entry, most=len(values))
        assert few is not None
        distinct, levels = len(few[0]), few[1].reshape(-1)
        entropy = -int(-static.entropy(levels) * entry.numel // 8)
        kept = levels[words.reshape(-1) != 0]
        huffman = Huffman.of(kept).average(kept) if kept.size else None
    return TensorRow(
        entry.name,
        entry.dtype,
        entry.shape,
        sct.METHODS[record.method][0],
        entry.nbytes if words is not None else 0,
        record.nbytes,
        {part: len(data) for part, data in record.parts.items()},
        int((words == 0).sum()) if words is not None else 0,
        distinct,
        entropy,
        huffman,
    )

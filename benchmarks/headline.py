"""The smallest files, loaded from the repository and evaluated: `python benchmarks/headline.py --data FOLDER`.

FOLDER holds `cifar10` and `mnist` as the data package reads them ($SECATEUR_DATA and ./data are looked into
without it). What is not at hand is said and passed over. Sizes and ratios need no data; the accuracies printed are
those of the models as they come out of the files, on all test images, beside what docs/headline.md records.

`--repack FILE --only NAME` writes the network of a file as compact as today's format can, with the same weights to the
bit; NAME says which of the networks it is.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import torch

from secateur import data, models
from secateur.container.compact_writer import CompactWriter
from secateur.container.frame import Archive
from secateur.container.loading import entries_of, load
from secateur.container.reading import lanes_of, words_of
from secateur.errors import SecateurError
from secateur.lab.training import evaluate

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "golden" / "headline"
HEAD = ("file", "data", "dense", "recorded", "now", "bytes", "ratio", "published best", "seconds")


def entries() -> dict[str, dict[str, Any]]:
    """What `index.toml` says of every file."""
    return tomllib.loads((FOLDER / "index.toml").read_text(encoding="utf-8"))


def network(entry: dict[str, Any]) -> torch.nn.Module:
    """The network a file belongs to, freshly built."""
    return models.build(entry["model"], **entry.get("options", {}))


def dense_bytes(model: torch.nn.Module) -> int:
    """Bytes of a model's parameters and buffers as they lie in memory."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def repacked(path: Path, entry: dict[str, Any]) -> bytes:
    """The content of a file that leaves its names to a model, as a compact file: the same streams and numbers."""
    with open(path, "rb") as file:
        archive = Archive(file)
        archive = Archive(file, entries_of(archive, network(entry)))
        if archive.texts:
            raise SystemExit(
                f"{path}: the file holds {', '.join(archive.texts)}, which a compact one cannot hold"
            )
        out = io.BytesIO()
        writer = CompactWriter(out, archive.names_from or (), archive.folded, archive.widths)
        if archive.numbers is not None:
            writer.lanes(lanes_of(archive))
        for record, words in words_of(archive):
            writer.add(
                record.entry, words.tobytes(), record.method, [bytes(part) for part in record.parts.values()]
            )
        writer.finish()
        return out.getvalue()


def line(name: str, entry: dict[str, Any], folder: str | None) -> tuple[str, ...]:
    """One line of the table."""
    began = time.perf_counter()
    model = network(entry)
    dense = dense_bytes(model)
    load(FOLDER / f"{name}.sct", into=model)
    size = (FOLDER / f"{name}.sct").stat().st_size
    try:
        path = None if folder is None else os.path.join(folder, entry["data"])
        images = data.load_for(model, entry["data"], path=path, validation=0.0, **entry.get("load", {}))
        accuracy = evaluate(model, images.test, device="cpu")["accuracy"]
        found = f"{accuracy:.2%}"
        least = 100 * entry["accuracy"] - 0.005  # what is recorded has two digits
        record(Figure(f"{name}: accuracy", 100 * accuracy, "%", least, "higher", 0.001))
    except SecateurError as error:
        print(f"{name}: {error}", file=sys.stderr)
        found = "no data"
    record(Figure(f"{name}: file", size, "bytes", tolerance=0, detail=f"{dense / size:.1f}x smaller"))
    return (
        name,
        entry["data"],
        f"{entry['dense']:.2%}",
        f"{entry['accuracy']:.2%}",
        found,
        f"{size:,}",
        f"{dense / size:.1f}x",
        entry["published"],
        f"{time.perf_counter() - began:.0f}",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder with cifar10 and mnist")
    parser.add_argument("--only", help="one file, by name")
    parser.add_argument(
        "--repack", type=Path, metavar="FILE", help="write this file again, as compact as can be"
    )
    options = parser.parse_args()
    chosen = {name: entry for name, entry in entries().items() if options.only in (None, name)}
    if not chosen:
        print(f"no file called {options.only!r}; there are {', '.join(entries())}", file=sys.stderr)
        return 2
    if options.repack is not None:
        data = repacked(options.repack, next(iter(chosen.values())))
        print(f"{options.repack.stat().st_size:,} bytes, now {len(data):,}")
        options.repack.write_bytes(data)
        return 0
    lines = [HEAD, *(line(name, entry, options.data) for name, entry in chosen.items())]
    widths = [max(len(row[at]) for row in lines) for at in range(len(HEAD))]
    for row in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())

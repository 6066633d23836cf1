"""Writes golden files: `python -m tests.golden.make`. Only for a new version of the format, and only what is new.

Golden files are a promise: every later release decodes them to the same bytes. The numbers in them come from a
generator of whole numbers, so that they can be made again anywhere.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
from attacks.hostile import bell, compact_sample, framed_sample, int8_sample, read, sample, sliced_sample

from secateur.container import codebooks, tensors
from secateur.container.format import Entry
from secateur.container.writer import Writer

FOLDER = Path(__file__).parent


def layers(coder: str) -> bytes:
    """A small network: convolutions, a depthwise one, a matrix, pruned and in even or uneven steps."""
    file = io.BytesIO()
    writer = Writer(file)
    shapes = [(32, 16, 3, 3), (16, 1, 5, 5), (24, 40, 1, 1), (10, 64), (8, 6, 7), (300,)]
    for number, shape in enumerate(shapes):
        values = bell(shape, 100 + number)
        coarse = np.round(values * (12 if number % 2 else 6)) / np.float32(8)
        if number % 3 == 2:
            coarse = np.sign(coarse) * np.sqrt(
                np.abs(coarse)
            )  # uneven steps; square roots are exact to the last bit
        if number != 3:
            coarse[np.abs(values) < 0.4] = 0
        words = coarse.astype(np.float32).view(np.uint32)
        entry = Entry(f"layer{number}.weight", "F32", shape)
        few = codebooks.few_levels(words, entry)
        assert few is not None
        way = tensors.indexed(entry, *few, coder, writer.memory)
        writer.add(entry, words.tobytes(), *way)
    writer.finish()
    return file.getvalue()


def files() -> dict[str, bytes]:
    """The golden files whose bytes depend on this release alone, made anew; a file names its version itself."""
    made = {f"layers-{coder}": layers(coder) for coder in ("fast", "mixed", "strong")}
    made["ways"], made["compact"], made["int8"] = sample(), compact_sample(), int8_sample()
    made["sliced"] = sliced_sample()
    return {f"v{data[4]}-{name}.sct": data for name, data in made.items()}


def frames() -> dict[str, bytes]:
    """Those that hold Zstandard frames, whose bytes may differ from build to build: only how they decode is pinned."""
    data = framed_sample()
    return {f"v{data[4]}-frames.sct": data}


def main() -> None:
    for name, data in (files() | frames()).items():
        if (FOLDER / name).exists():  # a promise
            continue
        (FOLDER / name).write_bytes(data)
        digests = FOLDER / f"{name.split('-')[0]}.json"
        told = json.loads(digests.read_text()) if digests.exists() else {}
        content = hashlib.sha256(b"".join(k.encode() + v for k, v in read(data).items())).hexdigest()
        told[name] = {"file": hashlib.sha256(data).hexdigest(), "content": content}
        digests.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Writes the golden files of the current version: `python -m tests.golden.make`. Only for a new version of the format.

Golden files are a promise: every later release decodes them to the same bytes. The numbers in them come from a
generator of whole numbers, so that they can be made again anywhere.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
from attacks.hostile import bell, read, sample

from secateur.container import codebooks, tensors
from secateur.container import format as sct
from secateur.container.format import Entry, Writer

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
    """Every golden file of the current version, made anew."""
    made = {f"layers-{coder}": layers(coder) for coder in ("fast", "mixed", "strong")}
    made["ways"] = sample()
    return {f"v{sct.VERSION}-{name}.sct": data for name, data in made.items()}


def main() -> None:
    digests = {}
    for name, data in files().items():
        (FOLDER / name).write_bytes(data)
        content = hashlib.sha256(b"".join(k.encode() + v for k, v in read(data).items())).hexdigest()
        digests[name] = {"file": hashlib.sha256(data).hexdigest(), "content": content}
    (FOLDER / f"v{sct.VERSION}.json").write_text(json.dumps(digests, indent=2) + "\n")


if __name__ == "__main__":
    main()

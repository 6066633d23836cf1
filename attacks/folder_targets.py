"""Attacks on folders of safetensors files with an index, and on their layout in a .sct file."""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes

from attacks import trees
from attacks.targets import Target, attempt, damaged_safetensors, scratch
from secateur.container import tensors
from secateur.container.format import ZERO, Entry
from secateur.container.pack import pack, unpack
from secateur.container.writer import Writer

_FOLDER = scratch("shards")
_SHARDS = {
    "model-00001-of-00002.safetensors": safetensors_bytes(
        {"a": torch.zeros(3, 2)}, metadata={"format": "pt"}
    ),
    "model-00002-of-00002.safetensors": safetensors_bytes({"b": torch.zeros(4)}, metadata={"format": "pt"}),
}
_INDEX: dict[str, Any] = {
    "metadata": {"total_size": 40},
    "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
}
_LAYOUT: dict[str, Any] = {
    "files": [{"file": name, "tensors": 1, "metadata": {"format": "pt"}} for name in _SHARDS],
    "index": {"file": "model.safetensors.index.json", "text": json.dumps(_INDEX)},
}


def joined(index: bytes, shards: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(part)) + part for part in (index, *shards))


def parted(data: bytes) -> list[bytes]:
    parts, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        parts.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return parts


def _make_folder(rng: random.Random) -> bytes:
    shards = list(_SHARDS.values())
    if rng.randrange(3):
        text = trees.text_of(trees.mutate(_INDEX, rng), rng).encode("utf-8", "surrogatepass")
        return joined(text, shards)
    victim = rng.randrange(2)
    shards[victim] = damaged_safetensors(shards[victim], rng)
    return joined(json.dumps(_INDEX).encode(), shards)


def _run_folder(data: bytes) -> str:
    """Pack the folder and unpack it again: the same files, or a refusal that writes nothing."""
    source, back, packed = _FOLDER / "in", _FOLDER / "out", _FOLDER / "folder.sct"
    index, *shards = parted(data)
    for folder in (source, back):
        shutil.rmtree(folder, ignore_errors=True)
    packed.unlink(missing_ok=True)
    source.mkdir()
    given = dict(zip(_SHARDS, shards, strict=True)) | {"model.safetensors.index.json": index}
    for name, content in given.items():
        (source / name).write_bytes(content)

    def read() -> None:
        pack(source, packed)
        unpack(packed, back)
        named = {*json.loads(index)["weight_map"].values(), "model.safetensors.index.json"}
        if {path.name: path.read_bytes() for path in back.iterdir()} != {name: given[name] for name in named}:
            raise AssertionError("the folder came back as something else")

    verdict = attempt(read)
    _nothing_beside({back} if verdict == "taken" else set())
    return verdict


def _make_layout(rng: random.Random) -> bytes:
    layout = json.loads(json.dumps(_LAYOUT))
    if rng.randrange(2):
        layout["index"]["text"] = trees.text_of(trees.mutate(_INDEX, rng), rng)
        text = json.dumps(layout)
    else:
        text = trees.text_of(trees.mutate(layout, rng), rng)
    return _sct(text.encode("utf-8", "surrogatepass"))


def _sct(layout: bytes) -> bytes:
    file = io.BytesIO()
    writer = Writer(file)
    writer.text("shards", tensors.text(layout))
    for entry in (Entry("a", "F32", (3, 2)), Entry("b", "F32", (4,))):
        writer.add(entry, bytes(entry.nbytes), ZERO, [])
    writer.finish()
    return file.getvalue()


def _run_layout(data: bytes) -> str:
    path, back = _FOLDER / "layout.sct", _FOLDER / "out"
    shutil.rmtree(back, ignore_errors=True)
    (_FOLDER / "in").mkdir(exist_ok=True)
    path.write_bytes(data)
    verdict = attempt(lambda: unpack(path, back))
    if verdict == "refused" and back.exists():
        raise AssertionError("a refused file left a folder")
    _nothing_beside({back} if verdict == "taken" else set())
    return verdict


def _nothing_beside(known: set[Path]) -> None:
    """Raise if the working folder holds anything that no attack put there."""
    usual = {_FOLDER / "in", _FOLDER / "folder.sct", _FOLDER / "layout.sct"}
    beside = set(_FOLDER.iterdir()) - known - usual
    if beside:
        raise AssertionError(f"files were left or written elsewhere: {sorted(path.name for path in beside)}")


TARGETS = [
    Target("sharded folder", _make_folder, _run_folder),
    Target("layout of shards", _make_layout, _run_layout),
]
HONEST = {
    "sharded folder": joined(json.dumps(_INDEX).encode(), list(_SHARDS.values())),
    "layout of shards": _sct(json.dumps(_LAYOUT).encode()),
}

"""What is attacked of trainings and scans: checkpoints, snapshots, weights, kept values, promises, saved datasets."""

from __future__ import annotations

import copy
import io
import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn

from attacks import hostile, trees
from attacks.folder_targets import joined, parted
from attacks.lab_targets import damaged
from attacks.targets import (
    PLAN,
    Target,
    attempt,
    damaged_pt,
    damaged_safetensors,
    fresh,
    into_model,
    scratch,
    with_text,
)
from secateur import data as datasets
from secateur.adapters.promises import _read as read_promise
from secateur.adapters.promises import promise
from secateur.adapters.served import ServeRequest
from secateur.container.archive import save
from secateur.core.masks import Masks
from secateur.lab.state import State, keep, revive
from secateur.lab.training import TrainingContext, TrainingOptions, train
from secateur.lab.training.snapshot import Snapshot
from secateur.lab.weights import load_weights
from secateur.quantize.share import share
from secateur.sensitivity.scan_file import ScanFile
from secateur.structure.cut.plan import ShrinkPlan

_FOLDER = scratch("training")


def _small() -> nn.Module:
    """A network that draws no random numbers."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3), nn.Linear(3, 10))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(0.1)
    return net


_NET = _small()
_DIGITS = datasets.load("digits", limit=20)


# -- a training's checkpoint, and its snapshot
def _options() -> TrainingOptions:
    return TrainingOptions(epochs=1, batch_size=8, optimizer="adam", save_at=1)


def _train(net: nn.Module, file: Path) -> Any:
    return train(net, _DIGITS, _options(), context=TrainingContext(checkpoint=file), device="cpu")


def _checkpoint() -> bytes:
    _train(copy.deepcopy(_NET), _FOLDER / "honest.safetensors")
    return (_FOLDER / "honest.safetensors").read_bytes()


_CHECKPOINT = _checkpoint()


def _with_about(data: bytes, rng: random.Random) -> bytes:
    """A checkpoint or a snapshot with a mutated text about itself, or a damaged file."""
    if not rng.randrange(2):
        return damaged_safetensors(data, rng)
    length = int.from_bytes(data[:8], "little")
    about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["about"])
    return with_text(data, "about", trees.text_of(trees.mutate(about, rng), rng))


def _same(net: nn.Module, before: Mapping[str, torch.Tensor]) -> bool:
    after = net.state_dict()
    return list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def _run_checkpoint(data: bytes) -> str:
    path, net = _FOLDER / "train.safetensors", copy.deepcopy(_NET)
    path.write_bytes(data)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    verdict = attempt(lambda: _train(net, path))
    if verdict == "refused" and not _same(net, before):
        raise AssertionError("a refused checkpoint changed the model")
    return verdict


def _snapshot() -> bytes:
    net = copy.deepcopy(_NET)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(2, 64)).sum().backward()
    optimizer.step()
    return Snapshot.take(net, optimizer, 3).to_bytes()


_SNAPSHOT = _snapshot()


def _run_snapshot(data: bytes) -> str:
    net = copy.deepcopy(_NET)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimizer = torch.optim.Adam(net.parameters())
    verdict = attempt(lambda: Snapshot.from_bytes(data).restore(net, optimizer))
    if verdict == "refused" and not _same(net, before):
        raise AssertionError("a refused snapshot changed the model")
    return verdict


# -- the state of a step, as a store keeps it
class _Objects:
    """Objects in a list, named by their numbers."""

    def __init__(self, held: list[bytes]):
        self.held = held

    def put(self, data: bytes) -> str:
        self.held.append(data)
        return str(len(self.held) - 1)

    def get(self, name: str) -> bytes:
        return self.held[int(name)]


def _kept() -> tuple[dict[str, Any], list[bytes]]:
    net, objects = fresh(), _Objects([])
    ShrinkPlan.from_dict(PLAN).apply_(net)
    weight = net.fc.weight.detach()
    book = {"fc.weight": share(nn.ModuleDict({"fc": net.fc}), 1).codebooks["fc.weight"]}
    state = State(
        net, Masks({"fc.weight": torch.ones_like(weight, dtype=torch.bool)}), book, json.dumps(PLAN)
    )
    return dict(keep(state, objects)), objects.held


_STORED, _OBJECTS = _kept()


def _make_state(rng: random.Random) -> bytes:
    parts = list(_OBJECTS)
    number = rng.randrange(len(parts))
    plain = parts[number][:1] in b"[{"
    parts[number] = _mutated(parts[number], rng) if plain else damaged_safetensors(parts[number], rng)
    return joined(b"", parts)


def _run_state(data: bytes) -> str:
    return attempt(lambda: revive(_STORED, _Objects(parted(data)[1:]), fresh))


# -- weights that are named in a recipe or on the command line
def _weights() -> dict[str, bytes]:
    state = fresh().state_dict()
    file = io.BytesIO()
    torch.save({"state_dict": state}, file)
    save(fresh(), _FOLDER / "w.sct")
    return {
        ".safetensors": safetensors_bytes(state),
        ".pt": file.getvalue(),
        ".sct": (_FOLDER / "w.sct").read_bytes(),
    }


_WEIGHTS = _weights()


def _make_weights(rng: random.Random) -> bytes:
    ending = rng.choice(list(_WEIGHTS))
    data = _WEIGHTS[ending]
    if ending == ".safetensors":
        return damaged_safetensors(data, rng)
    return damaged_pt(data, rng) if ending == ".pt" else hostile.mutate_within(data, rng)


def _run_weights(data: bytes) -> str:
    ending = ".sct" if data[:4] == _WEIGHTS[".sct"][:4] else ".pt" if data[:2] == b"PK" else ".safetensors"
    path = _FOLDER / f"weights{ending}"
    path.write_bytes(data)
    return into_model(lambda model: load_weights(model, path))


# -- the values that a scan keeps
def _scan() -> bytes:
    path = _FOLDER / "honest.json"
    kept = ScanFile(path, _NET, ("l2", "filter"))
    for digest, value in {"a" * 64: (0.5, 0.1), "b" * 64: (0.25, None)}.items():
        kept.add(digest, value)
    return path.read_bytes()


_SCAN = _scan()


def _mutated(text: bytes, rng: random.Random) -> bytes:
    return trees.text_of(trees.mutate(json.loads(text), rng), rng).encode("utf-8", "surrogatepass")


def _run_scan(data: bytes) -> str:
    path = _FOLDER / "scan.json"
    path.write_bytes(data)

    def read() -> None:
        kept = ScanFile(path, _NET, ("l2", "filter"))
        kept.add("c" * 64, (0.125, None))
        ScanFile(path, _NET, ("l2", "filter"))  # what was added is read again

    return attempt(read)


# -- a promise beside an artefact
def _promised() -> tuple[bytes, bytes]:
    artefact = _FOLDER / "m.onnx"
    artefact.write_bytes(b"model")
    promise(artefact, ServeRequest(artefact, "onnx"), {"x": torch.zeros(1, 2)}, {"y": torch.ones(1)})
    return tuple(path.read_bytes() for path in sorted(Path(f"{artefact}.check").iterdir()))  # type: ignore


_PROMISE = _promised()
_PROMISE_FILES = [path.name for path in sorted((_FOLDER / "m.onnx.check").iterdir())]


def _make_promise(rng: random.Random) -> bytes:
    parts = list(_PROMISE)
    for number, name in enumerate(_PROMISE_FILES):
        if name.endswith(".json") == bool(rng.randrange(3)):
            parts[number] = (
                _mutated(parts[number], rng)
                if name.endswith(".json")
                else damaged_safetensors(parts[number], rng)
            )
    return joined(parts[0], parts[1:])


def _run_promise(data: bytes) -> str:
    for name, content in zip(_PROMISE_FILES, parted(data), strict=True):
        (_FOLDER / "m.onnx.check" / name).write_bytes(content)
    return attempt(lambda: read_promise(_FOLDER / "m.onnx"))


# -- a dataset that was saved by `datasets`
def _saved() -> dict[str, bytes]:
    import datasets as library

    library.disable_progress_bars()
    image = {"bytes": _png(), "path": None}
    rows = library.Dataset.from_dict({"image": [image] * 4, "label": [0, 1, 0, 1]})
    rows.save_to_disk(str(_FOLDER / "saved"))
    return {path.name: path.read_bytes() for path in sorted((_FOLDER / "saved").iterdir())}


def _png() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (8, 8), 3).save(file, "PNG")
    return file.getvalue()


_SAVED = _saved()


def _make_saved(rng: random.Random) -> bytes:
    parts = dict(_SAVED)
    name = rng.choice(list(parts))
    parts[name] = _mutated(parts[name], rng) if name.endswith(".json") else damaged(parts[name], rng)
    first, *rest = parts.values()
    return joined(first, rest)


def _run_saved(data: bytes) -> str:
    folder = _FOLDER / "read"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in zip(_SAVED, parted(data), strict=True):
        (folder / name).write_bytes(content)
    verdict = attempt(lambda: datasets.load(str(folder), size=8, cache_dir=_FOLDER / "cache"))
    shutil.rmtree(_FOLDER / "cache", ignore_errors=True)
    return verdict


TARGETS = [
    Target("training", lambda rng: _with_about(_CHECKPOINT, rng), _run_checkpoint),
    Target("snapshot", lambda rng: _with_about(_SNAPSHOT, rng), _run_snapshot),
    Target("state of a step", _make_state, _run_state),
    Target("weights", _make_weights, _run_weights),
    Target("kept scan", lambda rng: _mutated(_SCAN, rng), _run_scan),
    Target("promise", _make_promise, _run_promise),
    Target("saved dataset", _make_saved, _run_saved),
]
HONEST = {
    "training": _CHECKPOINT,
    "snapshot": _SNAPSHOT,
    "state of a step": joined(b"", _OBJECTS),
    "weights": _WEIGHTS[".safetensors"],
    "kept scan": _SCAN,
    "promise": joined(_PROMISE[0], list(_PROMISE[1:])),
    "saved dataset": joined(next(iter(_SAVED.values())), list(_SAVED.values())[1:]),
}

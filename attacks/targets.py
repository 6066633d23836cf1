"""What is attacked: one target a reader, each a maker of hostile inputs and the reader that must refuse or take them.

A target's `run(data)` gives "refused" or "taken", and raises for anything else: an exception that is none of ours, a
model that a refused file changed, content that is not what the file says.
"""

from __future__ import annotations

import atexit
import copy
import io
import json
import os
import random
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn

from attacks import hostile, trees
from secateur.container import tensors
from secateur.container.archive import save
from secateur.container.arrays import entry_of
from secateur.container.format import ZERO, Entry
from secateur.container.inspection import inspect
from secateur.container.loading import load, load_int8
from secateur.container.pack import pack, unpack
from secateur.container.writer import Writer
from secateur.core.masks import Masks
from secateur.core.measurement import Measurement, Measurements
from secateur.errors import SecateurError
from secateur.sensitivity.scan_result import Cell, Scan
from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.shrunk_files import load_shrunk, save_shrunk


@dataclass(frozen=True)
class Target:
    name: str
    make: Callable[[random.Random], bytes]
    run: Callable[[bytes], str]


class Config:
    """A configuration as other libraries have them."""

    def __init__(self) -> None:
        self.hidden_size, self.name, self.head_dim, self._secret = 8, "tiny", None, 3

    def to_dict(self) -> dict[str, object]:
        return dict(vars(self))


class Net(nn.Module):
    """A model with all that a plan may touch, and much that it may not."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.width, self.ratio, self.flag, self.sizes = 8, 0.5, True, (8, 4)
        self.fc = nn.Linear(4, 8)
        self.inner = nn.ModuleDict({"norm": nn.LayerNorm(8), "heads": nn.MultiheadAttention(8, 2)})
        self.inner["norm"].config = self.config
        self.stack = nn.Sequential(nn.LayerNorm(8), nn.LayerNorm(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner["norm"](self.fc(x)).reshape(-1, 8)


_NET = Net()


def fresh() -> Net:
    """A model that draws no random numbers."""
    return copy.deepcopy(_NET)


_PLAIN = (int, tuple, str, float)
Seen = tuple[object, ...]


def seen(model: nn.Module) -> Seen:
    """What a model is: its modules, their classes and plain attributes, its tensors' bytes, its configuration."""
    out: list[object] = [repr(vars(model.config))]
    for name, module in model.named_modules():
        own = vars(module)
        out += [name, id(module), id(type(module)), tuple(own)]
        out += [value for value in own.values() if isinstance(value, _PLAIN)]
        for each in (*own["_parameters"].values(), *own["_buffers"].values()):
            out += [id(each), None if each is None else each.detach().numpy().tobytes()]
    return tuple(out)


PLAN: dict[str, Any] = {
    "format": "secateur-plan",
    "version": 1,
    "model": "Net",
    "keep": {"fc.weight": {"0": [0, 2, 4, 2]}, "fc.bias": {"0": [0, 2, 4, 2]}, "inner.norm.weight": {"0": [0, 2, 4, 2]},
             "inner.norm.bias": {"0": [0, 2, 4, 2]}},
    "shapes": {"fc.weight": [8, 4], "fc.bias": [8], "inner.norm.weight": [8], "inner.norm.bias": [8]},
    "attributes": {"fc": {"out_features": 4}, "inner.norm": {"normalized_shape": [4]},
                   "": {"width": 4, "config.hidden_size": 4, "config.head_dim": 2}},
    "rewrites": {"": [{"function": "reshape", "call": 0, "sizes": [[1, 4]]}],
                 "inner.heads": [{"function": "multi_head_attention", "call": -1, "sizes": [[0, 1], [1, 4]]}]},
}  # fmt: skip

_EMPTY = {**PLAN, "keep": {}, "attributes": {}, "rewrites": {}, "shapes": {}}
# What a plan may do besides: replace a layer by two smaller ones, and take entries out of a container.
PLANS = [
    PLAN,
    {**_EMPTY, "factors": {"fc": 2}, "spatial": []},
    {**_EMPTY, "version": 2, "layers": {"stack": ["1"]}},
]

# In memory where the system has such a folder: what is attacked is the reader, not the disk.
_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def scratch(name: str) -> Path:
    """A new folder, which is gone when the process ends."""
    folder = tempfile.mkdtemp(prefix=f"secateur-attack-{name}-", dir=_MEMORY)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


_FOLDER = scratch("files")


def _file(data: bytes, name: str) -> Path:
    path = _FOLDER / name
    with open(path, "wb", buffering=0) as file:
        file.write(data)
    return path


def _text(data: bytes) -> str:
    """An input as text; half characters stay what they are, other bytes do not."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace")


def attempt(read: Callable[[], object]) -> str:
    try:
        read()
    except SecateurError as error:
        if not str(error):
            raise AssertionError("a refusal must say what is wrong") from error
        return "refused"
    return "taken"


_FRESH: list[tuple[Net, Seen]] = []


def into_model(read: Callable[[nn.Module], object]) -> str:
    """Read into a fresh model, which must be as it was if the file is refused; then it serves the next file."""
    if not _FRESH:
        made = fresh()
        _FRESH.append((made, seen(made)))
    model, before = _FRESH[0]
    try:
        verdict = attempt(lambda: read(model))
    except BaseException:
        _FRESH.clear()
        raise
    if verdict == "taken":
        _FRESH.clear()
    elif seen(model) != before:
        _FRESH.clear()
        raise AssertionError("a refused file changed the model")
    return verdict


# -- .sct files ----------------------------------------------------------------------------------------------
_SAMPLES = [hostile.sample(), hostile.strong_sample(), hostile.framed_sample(), hostile.compact_sample()]
_SMALL = [*hostile.small_samples(), hostile.sliced_sample()]


def _make_sct(rng: random.Random) -> bytes:
    data = rng.choice(_SMALL if rng.randrange(12) else _SAMPLES)
    return rng.choice((hostile.mutate, hostile.mutate_within, hostile.mutate_within))(data, rng)


def _run_sct(data: bytes) -> str:
    path = _file(data, "a.sct")
    verdict = attempt(lambda: hostile.read(data))
    if verdict == "refused":
        attempt(lambda: inspect(path))
    else:
        inspect(path).table()
        attempt(lambda: load(path))
        attempt(lambda: unpack(path, _FOLDER / "a.safetensors"))
    return verdict


def _with_plan(plan: bytes) -> bytes:
    file = io.BytesIO()
    writer = Writer(file)
    writer.text("plan", tensors.text(plan))
    for name, shape in (
        ("fc.weight", (4, 4)),
        ("fc.bias", (4,)),
        ("inner.norm.weight", (4,)),
        ("inner.norm.bias", (4,)),
    ):
        entry = Entry(name, "F32", shape)
        writer.add(entry, bytes(entry.nbytes), ZERO, [])
    others = {"inner.heads": _NET.inner["heads"], "stack": _NET.stack}
    for name, value in [
        (f"{at}.{key}", each) for at, part in others.items() for key, each in part.state_dict().items()
    ]:
        entry = Entry(name, "F32", tuple(value.shape))
        writer.add(entry, bytes(entry.nbytes), ZERO, [])
    writer.finish()
    return file.getvalue()


def _nameless() -> bytes:
    path = _FOLDER / "n.sct"
    save(Net(), path, names="model")
    return path.read_bytes()


def _nameless_sections() -> bytes:
    """As files without names were before compact ones."""
    entries = [entry_of(name, value) for name, value in Net().state_dict().items()]
    file = io.BytesIO()
    writer = Writer(file, entries)
    for entry in entries:
        writer.add(entry, bytes(entry.nbytes), ZERO, [])
    writer.finish()
    return file.getvalue()


_HONEST = [_with_plan(json.dumps(PLAN).encode()), _nameless(), _nameless_sections()]


def _make_into(rng: random.Random) -> bytes:
    if rng.randrange(3):
        text = trees.text_of(trees.mutate(PLAN, rng), rng).encode("utf-8", "surrogatepass")
        return _with_plan(text)
    return rng.choice((hostile.mutate, hostile.mutate_within))(rng.choice(_HONEST), rng)


def _run_into(data: bytes) -> str:
    path = _file(data, "i.sct")
    return into_model(lambda model: load(path, into=model))


def _make_int8(rng: random.Random) -> bytes:
    if rng.randrange(3):
        text = trees.text_of(trees.mutate(hostile.INT8_LIST, rng), rng)
        return hostile.int8_sample(text.encode("utf-8", "surrogatepass"))
    return rng.choice((hostile.mutate, hostile.mutate_within))(_INT8, rng)


_INT8 = hostile.int8_sample()


class _Rows(nn.Module):
    """The model of the INT8 sample."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("0", nn.utils.skip_init(nn.Linear, 12, 4))  # draws no random numbers
        self.whole = nn.Parameter(torch.zeros(2, 3))


def _run_int8(data: bytes) -> str:
    path = _file(data, "q.sct")
    verdict = attempt(lambda: load(path))
    attempt(lambda: load_int8(path, into=_Rows()))
    return verdict


def _make_plan(rng: random.Random) -> bytes:
    return trees.text_of(trees.mutate(rng.choice(PLANS), rng), rng).encode("utf-8", "surrogatepass")


def _run_plan(data: bytes) -> str:
    text = _text(data)
    return into_model(lambda model: ShrinkPlan.from_json(text).apply_(model))


# -- safetensors ---------------------------------------------------------------------------------------------
def damaged_safetensors(data: bytes, rng: random.Random) -> bytes:
    """A mutated header with its length mended, or mutated bytes."""
    if not rng.randrange(4):
        return hostile.mutate(data, rng)
    length = int.from_bytes(data[:8], "little")
    header = trees.text_of(trees.mutate(json.loads(data[8 : 8 + length]), rng), rng).encode(
        "utf-8", "surrogatepass"
    )
    rest = data[8 + length :]
    return (
        len(header).to_bytes(8, "little")
        + header
        + (rest if rng.randrange(4) else rest[: rng.randrange(len(rest))])
    )


_MASKS = safetensors_bytes(
    {"fc.weight": torch.ones(8, 4, dtype=torch.bool), "fc.bias": torch.zeros(8, dtype=torch.bool)},
    metadata={"secateur-masks": "1"},
)
_WEIGHTS = safetensors_bytes(
    {
        "w": torch.arange(24.0).reshape(4, 6),
        "e": torch.zeros(0, 3),
        "h": torch.ones(5).half(),
        "i": torch.arange(3),
    },
    metadata={"made": "by hand"},
)


def _shrunk() -> bytes:
    model, plan = Net(), ShrinkPlan.from_dict(PLAN)
    plan.apply_(model)
    save_shrunk(model, plan, _FOLDER / "s.safetensors")
    return (_FOLDER / "s.safetensors").read_bytes()


_SHRUNK = _shrunk()


def _run_masks(data: bytes) -> str:
    path = _file(data, "m.safetensors")

    def read() -> None:
        masks = Masks.load(path)
        masks.check(fresh())
        masks.apply_(fresh())

    return attempt(read)


def _run_safetensors(data: bytes) -> str:
    path = _file(data, "w.safetensors")

    def read() -> None:
        pack(path, _FOLDER / "w.sct")
        unpack(_FOLDER / "w.sct", _FOLDER / "w2.safetensors")
        if (_FOLDER / "w2.safetensors").read_bytes() != data:
            raise AssertionError("what was packed came back as something else")

    return attempt(read)


def _make_shrunk(rng: random.Random) -> bytes:
    if not rng.randrange(2):
        return damaged_safetensors(_SHRUNK, rng)
    return with_text(_SHRUNK, "plan", trees.text_of(trees.mutate(PLAN, rng), rng))


def with_text(data: bytes, key: str, text: str) -> bytes:
    """A safetensors file with another text in its metadata."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"][key] = text
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + data[8 + length :]


def _run_shrunk(data: bytes) -> str:
    path = _file(data, "s.safetensors")
    return into_model(lambda model: load_shrunk(path, model))


# -- JSON ----------------------------------------------------------------------------------------------------
_SCAN = json.loads(
    Scan(
        (Cell("fc", 0.5, 8, 4, 16, 0.7, 0.01), Cell("fc", 0.75, 8, 6, 24, 0.4, estimate=0.2, time=0.9)),
        0.9,
        costs={"macs": {"fc": 32.0}},
    ).to_json()
)
_ROWS = json.loads(
    Measurements(
        [Measurement("macs", 7, "MAC", per_layer={"fc": 7}), Measurement("loss", 0.5, trials=(0.4, 0.6))]
    ).to_json()
)


def _run_scan(data: bytes) -> str:
    path = _file(data, "scan.json")
    return attempt(lambda: Scan.load(path))


def _run_measurements(data: bytes) -> str:
    return attempt(lambda: Measurements.from_json(_text(data)))


# -- .pt files -----------------------------------------------------------------------------------------------
def _pt() -> bytes:
    file = io.BytesIO()
    state = {
        "w": torch.arange(24.0).reshape(4, 6),
        "b": torch.ones(5).half(),
        "epoch": 3,
        "nested": {"list": [torch.ones(2)]},
    }
    torch.save(state, file)
    return file.getvalue()


_PT = _pt()


def damaged_pt(honest: bytes, rng: random.Random) -> bytes:
    """A .pt file with a mutated pickle, in an archive whose checksums are right, or with mutated bytes."""
    if not rng.randrange(4):
        return hostile.mutate(honest, rng)
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(honest)) as source, zipfile.ZipFile(file, "w") as target:
        entries = source.infolist()
        victim = (
            rng.choice(entries)
            if not rng.randrange(3)
            else next(e for e in entries if e.filename.endswith("data.pkl"))
        )
        for entry in entries:
            data = source.read(entry)
            target.writestr(
                entry.filename, hostile.mutate(data, rng) if entry is victim and len(data) > 8 else data
            )
    return file.getvalue()


def _run_pt(data: bytes) -> str:
    path = _file(data, "a.pt")
    return attempt(lambda: pack(path, _FOLDER / "p.sct"))


TARGETS = [
    Target("sct", _make_sct, _run_sct),
    Target("sct into a model", _make_into, _run_into),
    Target("int8 sct", _make_int8, _run_int8),
    Target("plan", _make_plan, _run_plan),
    Target("masks", lambda rng: damaged_safetensors(_MASKS, rng), _run_masks),
    Target("safetensors", lambda rng: damaged_safetensors(_WEIGHTS, rng), _run_safetensors),
    Target("shrunk model", _make_shrunk, _run_shrunk),
    Target(
        "scan",
        lambda rng: trees.text_of(trees.mutate(_SCAN, rng), rng).encode("utf-8", "surrogatepass"),
        _run_scan,
    ),
    Target(
        "measurements",
        lambda rng: trees.text_of(trees.mutate(_ROWS, rng), rng).encode("utf-8", "surrogatepass"),
        _run_measurements,
    ),
    Target("pt", lambda rng: damaged_pt(_PT, rng), _run_pt),
]
HONEST = {
    "sct into a model": _HONEST[0],
    "int8 sct": _INT8,
    "plan": json.dumps(PLAN).encode(),
    "masks": _MASKS,
    "safetensors": _WEIGHTS,
    "shrunk model": _SHRUNK,
    "scan": json.dumps(_SCAN).encode(),
    "measurements": json.dumps(_ROWS).encode(),
    "pt": _PT,
}

"""Every writer's output read back, over values that are unusual and allowed."""

from __future__ import annotations

import io
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from secateur.container import tensors
from secateur.container.archive import save
from secateur.container.arrays import TORCH_DTYPES
from secateur.container.format import Entry
from secateur.container.frame import Archive
from secateur.container.inspection import inspect
from secateur.container.loading import load
from secateur.container.pack import pack, unpack
from secateur.container.save_options import SaveOptions
from secateur.container.scalar_streams import decode, encode
from secateur.container.writer import Writer
from secateur.core.json_text import parse
from secateur.core.masks import Masks
from secateur.core.measurement import Measurement, Measurements
from secateur.sensitivity.scan_result import Cell, Scan
from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.cut.rewrite_data import Rewrite
from secateur.structure.cut.runs import Runs, runs_of

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))

names = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40),
    st.sampled_from(
        ["", ".", "..", "../../etc/passwd", "/", "a" * 4096, "ü" * 2048, "\x1b[2J", "__class__", "#0", "𝔴"]
    ),
)
shapes = st.one_of(
    st.lists(st.integers(0, 5), max_size=5).map(tuple),
    st.sampled_from([(), (0,), (1,) * 32, (0, 1 << 40), (3, 0, 2), (40, 7, 3, 3), (17,)]),
)
sizes = st.one_of(st.integers(0, 9), st.tuples(st.integers(0, 9), st.integers(1, 9)))
numbers = st.floats(width=32, allow_nan=True, allow_infinity=True)


@st.composite
def tensors_of(draw: st.DrawFn) -> torch.Tensor:
    """A tensor of any dtype whose bits are random, few, constant or zero, and perhaps a view."""
    dtype = TORCH_DTYPES[draw(st.sampled_from(sorted(TORCH_DTYPES)))]
    shape, kind = draw(shapes), draw(st.integers(0, 4))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    count = math.prod(shape) * dtype.itemsize
    raw = rng.integers(0, 2 if dtype == torch.bool else 256, count, dtype=np.uint8)
    if kind == 1:
        raw = np.zeros_like(raw)
    elif kind == 2 and count:
        raw = np.resize(raw[: dtype.itemsize * 3], count)
    elif kind == 3:
        raw[rng.random(count) < 0.7] = 0
    tensor = torch.from_numpy(raw).view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)
    if kind == 4 and tensor.dim() > 1:
        return tensor.transpose(0, 1)
    return tensor


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    bits = [
        each.contiguous().reshape(-1).view(torch.uint8) if each.numel() else each for each in (one, other)
    ]
    return bool(torch.equal(*bits))


@QUICK
@given(
    st.dictionaries(names, tensors_of(), min_size=1, max_size=5),
    st.sampled_from(["fast", "mixed", "strong"]),
)
def test_what_save_writes_load_and_inspect_read(state: dict[str, torch.Tensor], coder: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.sct"
        save(state, path, options=SaveOptions(coder=coder))
        found = load(path)
        report = inspect(path)
    assert list(found) == list(state)
    assert all(same(found[name], value) for name, value in state.items())
    assert report.accounted == report.size
    assert report.to_json()
    assert all(each.isprintable() or each == "\n" for each in report.table())


@QUICK
@given(
    st.dictionaries(names.filter(lambda name: name != "__metadata__"), tensors_of(), min_size=1, max_size=4),
    st.one_of(st.none(), st.dictionaries(names, names, max_size=3)),
)
def test_what_pack_writes_unpack_gives_back(
    state: dict[str, torch.Tensor], metadata: dict[str, str] | None
) -> None:
    plain = {
        name: value.contiguous().clone()
        for name, value in state.items()
        if math.prod(value.shape) or 0 in value.shape
    }
    plain = {name: value for name, value in plain.items() if value.dtype != torch.complex64}
    if not plain:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file(plain, folder / "a.safetensors", metadata)
        pack(folder / "a.safetensors", folder / "a.sct")
        unpack(folder / "a.sct", folder / "b.safetensors")
        assert (folder / "a.safetensors").read_bytes() == (folder / "b.safetensors").read_bytes()
        assert set(load_file(folder / "b.safetensors")) == set(plain)


@QUICK
@given(
    st.dictionaries(names.filter(lambda name: name != "__metadata__"), shapes, min_size=1, max_size=4),
    st.integers(0, 99),
)
def test_masks_come_back(given_shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = Masks(
        {name: torch.rand(shape, generator=generator) > 0.5 for name, shape in given_shapes.items()}
    )
    with tempfile.TemporaryDirectory() as folder:
        masks.save(Path(folder) / "m.safetensors")
        again = Masks.load(Path(folder) / "m.safetensors")
    assert again == masks


@QUICK
@given(
    st.lists(
        st.tuples(names, numbers, st.integers(0, 1 << 70), st.booleans(), st.one_of(st.none(), numbers)),
        max_size=4,
    ),
    st.floats(allow_nan=False),
    st.dictionaries(names, st.dictionaries(names, st.floats(allow_nan=False), max_size=2), max_size=2),
)
def test_scans_come_back(rows: list[tuple], dense: float, costs: dict[str, dict[str, float]]) -> None:
    cells = tuple(
        Cell(name, value, count, 0, count, value, interval, same)
        for name, value, count, same, interval in rows
    )
    scan = Scan(cells, dense, costs=costs)
    with tempfile.TemporaryDirectory() as folder:
        scan.save(Path(folder) / "s.json")
        assert repr(Scan.load(Path(folder) / "s.json")) == repr(scan)


@QUICK
@given(
    st.lists(
        st.tuples(names.filter(bool), st.one_of(st.integers(), st.floats(allow_infinity=False)), names),
        max_size=4,
    )
)
def test_measurements_come_back(rows: list[tuple]) -> None:
    table = Measurements(
        Measurement(name, value, unit, notes=(unit,), context={unit: value}) for name, value, unit in rows
    )
    again = Measurements.from_json(table.to_json())
    assert [(m.name, m.unit, m.notes) for m in again] == [(m.name, m.unit, m.notes) for m in table]
    assert all(a.value == b.value or math.isnan(b.value) for a, b in zip(again, table))


@QUICK
@given(st.sets(st.integers(0, 500), min_size=1))
def test_indices_come_back_as_runs(indices: set[int]) -> None:
    ascending = tuple(sorted(indices))
    runs = Runs.parse(runs_of(ascending))
    assert runs == ascending
    assert list(runs) == list(ascending) == np.asarray(runs).tolist()
    assert [runs[i] for i in range(len(runs))] == list(ascending)
    assert runs[-1] == max(indices)


@QUICK
@given(
    st.sets(st.integers(0, 7), min_size=1),
    st.lists(st.tuples(st.integers(0, 3), sizes), min_size=1, max_size=3),
)
def test_plans_come_back_through_a_file(kept: set[int], pairs: list[tuple]) -> None:
    model, stays = nn.Sequential(nn.Linear(4, 8)), tuple(sorted(kept))
    plan = ShrinkPlan(
        keep={"0.weight": {0: stays}, "0.bias": {0: stays}},
        attributes={"0": {"out_features": len(stays)}},
        rewrites={"": (Rewrite("reshape", 0, tuple(pairs)),)},
        shapes={"0.weight": (8, 4), "0.bias": (8,)},
    )
    assert ShrinkPlan.from_json(plan.to_json()) == plan
    small = plan.apply_(nn.Sequential(nn.Linear(4, 8)))
    with tempfile.TemporaryDirectory() as folder:
        save(small, Path(folder) / "a.sct", plan=plan)
        load(Path(folder) / "a.sct", into=model)
    assert torch.equal(model[0].weight, small[0].weight)
    assert model[0].out_features == len(stays)


@QUICK
@given(st.lists(st.integers(-4095, 4095), max_size=200))
def test_lanes_come_back(values: list[int]) -> None:
    data = encode(np.array(values, dtype=np.int64))
    assert decode(data, len(values)).tolist() == values


@QUICK
@given(st.binary(max_size=300), names.filter(bool))
def test_texts_come_back(text: bytes, key: str) -> None:
    file = io.BytesIO()
    writer = Writer(file)
    writer.text(key, tensors.text(text))
    writer.add(Entry("w", "U8", ()), b"\1", 3, [b"\1"])
    writer.finish()
    assert tensors.read_text(Archive(file).texts[key], key) == text


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@QUICK
@given(json_values)
def test_the_strict_parser_reads_what_python_writes(value: object) -> None:
    import json

    assert parse(json.dumps(value), "a value") == value

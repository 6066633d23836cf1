"""The compiled walks give the bytes of the numpy reference, decode them back, and refuse what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.coding import compiled, indices, mixed, mixing, native, planes, predicted_contexts
from secateur.errors import FormatError

needs_compiler = pytest.mark.skipif(
    not compiled.available(), reason="needs a C compiler: cc, or the extra fast"
)
SHAPES = [(3,), (7, 5), (40, 64), (16, 3, 3, 3), (9, 20, 1, 5), (5, 4, 9, 9), (1, 300), (64, 33), (2, 2, 2)]


@pytest.fixture(autouse=True)
def _every_length(monkeypatch):
    monkeypatch.setattr(compiled, "SHORTEST", 1)
    monkeypatch.setattr(compiled, "WORTH_IT", 1)
    monkeypatch.setattr(compiled, "LOADING", 0)


def levels_of(shape: tuple[int, ...], seed: int, size: int, spread: float) -> np.ndarray:
    """Laplacian levels, larger in some filters than in others, as weights are."""
    random = np.random.default_rng(seed)
    values = random.laplace(size=shape) * np.exp(random.normal(size=(shape[0], *[1] * (len(shape) - 1))))
    return np.clip(np.round(values * spread) + size // 2, 0, size - 1).astype(np.int64)


def both_ways(call):
    """What the compiled walk gives, and what numpy gives."""
    found = call()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "kernels", lambda: None)
        return found, call()


@needs_compiler
@settings(deadline=None, max_examples=120)
@given(
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 2**16),
    size=st.sampled_from([2, 3, 4, 7, 16, 33, 256, 1500]),
    spread=st.sampled_from([0.0, 0.4, 3.0, 200.0]),
    zero=st.sampled_from(["middle", "first", "last", "none"]),
    model=st.sampled_from(["mixed", "strong"]),
)
def test_bytes_and_levels_are_those_of_the_reference(shape, seed, size, spread, zero, model):
    levels = levels_of(shape, seed, size, spread)
    at = {"middle": size // 2, "first": 0, "last": size - 1, "none": None}[zero]
    found, reference = both_ways(lambda: indices.encode(levels, size, at, model))
    assert found == reference
    for decoded in both_ways(lambda: indices.decode(found, shape, size, at)):
        assert (decoded == levels).all()


@needs_compiler
@pytest.mark.parametrize("model", ["mixed", "strong"])
def test_what_one_tensor_taught_serves_the_next_alike(model):
    tensors = [
        levels_of(shape, seed, 16, 3.0)
        for seed, shape in enumerate([(64, 32, 3, 3), (50, 96), (64, 32, 3, 3)])
    ]

    def whole():
        memory = mixed.MixerBank()
        return [indices.encode(tensor, 16, 8, model, memory) for tensor in tensors]

    found, reference = both_ways(whole)
    assert found == reference
    # The memory can pass from one path to the other in the middle.
    memory = mixed.MixerBank()
    for k, (stream, tensor) in enumerate(zip(found, tensors)):
        with pytest.MonkeyPatch.context() as patch:
            if k == 1:
                patch.setattr(compiled, "kernels", lambda: None)
            assert (indices.decode(stream, tensor.shape, 16, 8, memory) == tensor).all()


@needs_compiler
def test_long_blocks_and_many_pieces(monkeypatch):
    monkeypatch.setattr(compiled, "_PIECE", 1 << 12)
    levels = levels_of((96, 50, 3, 3), 5, 16, 2.0)
    found, reference = both_ways(lambda: mixed.encode(levels, 8, 7, mixed.MixerBank(), grain=14))
    assert found == reference
    assert (mixed.decode(found, levels.shape, 8, 7, mixed.MixerBank()) == levels).all()


@needs_compiler
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**16), at=st.floats(0, 1), value=st.integers(0, 255), cut=st.booleans())
def test_a_broken_stream_is_refused_or_decoded_as_the_reference_does(seed, at, value, cut):
    levels = levels_of((40, 64), seed, 5, 1.0)
    data = bytearray(indices.encode(levels, 5, 2, "mixed"))
    place = min(int(at * len(data)), len(data) - 1)
    data = data[:place] if cut else data[:place] + bytes([value]) + data[place + 1 :]

    def tried():
        try:
            return indices.decode(bytes(data), levels.shape, 5, 2).tolist()
        except FormatError as error:
            return str(error)

    found, reference = both_ways(tried)
    assert found == reference


def test_it_can_be_switched_off(tmp_path):
    code = (
        "import numpy as np\nfrom secateur.coding import compiled, indices\ncompiled.LOADING = 0\n"
        "indices.encode(np.zeros((64, 2048), dtype=int), 3, 1)\nassert compiled.kernels() is None\n"
    )
    environment = {**os.environ, "SECATEUR_COMPILED": "0", "SECATEUR_CACHE": str(tmp_path)}
    environment["PYTHONPATH"] = ":".join(sys.path)
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert list(tmp_path.iterdir()) == []


@needs_compiler
def test_the_walk_is_compiled_only_where_a_process_codes_enough(monkeypatch):
    from secateur.coding.planes import layout

    monkeypatch.setattr(compiled, "WORTH_IT", 1 << 16)
    monkeypatch.setattr(compiled, "LOADING", 1 << 20)
    monkeypatch.setattr(compiled, "_coded", [0])
    monkeypatch.setattr(compiled, "SHORTEST", 1 << 8)
    monkeypatch.setattr(native, "is_loaded", lambda: False)
    monkeypatch.setattr(native, "cached", lambda: None)
    long, short, shortest = layout((256, 1024)), layout((128, 256)), layout((15, 17))
    assert [compiled.pays(long) for _ in range(5)] == [False, False, False, True, True]
    assert not compiled.pays(shortest)
    monkeypatch.setattr(compiled, "_coded", [0])
    monkeypatch.setattr(native, "cached", lambda: "there")
    assert [compiled.pays(short) for _ in range(3)] == [False, True, True]  # in the cache already
    monkeypatch.setattr(compiled, "_coded", [0])
    monkeypatch.setattr(native, "is_loaded", lambda: True)
    assert compiled.pays(short)
    assert not compiled.pays(shortest)
    monkeypatch.setattr(compiled, "LONGEST_BLOCK", 127)
    assert not compiled.pays(long)  # sums over a block could leave 64 bits


def test_the_call_names_every_member_of_the_walk_once():
    """What `walk` does not set would be a null pointer or a zero."""
    book = predicted_contexts.PredictedContexts(planes.layout((4, 4)), 2, {}, plain=False)
    seen = {}

    class Library:
        def secateur_walk(self, values, *_):
            seen.update({name: getattr(values._obj, name) for name, _ in values._obj._fields_})
            return 0

    mixers = [mixing.Mixer(1, (2,)), mixing.Mixer(1, (2,))]
    ones = (1, 1, True, 1, 1, 64, 11)
    compiled.walk(Library(), book, mixers, ones, np.zeros((1, 4, 4), dtype=np.int16), None)
    assert [name for name, value in seen.items() if not value] == ["decodes"]
    for kind in ("size", "value"):
        assert all(getattr(seen[kind], name) for name, _ in seen[kind]._fields_)

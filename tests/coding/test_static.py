"""Bytes coded by one table: what the compiled passes write and read is what Python's write and read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.coding import native, static
from secateur.errors import FormatError

needs_compiler = pytest.mark.skipif(
    native.compiler() is None or native.load() is None, reason="needs a C compiler: cc, or the extra fast"
)
LENGTHS = st.sampled_from([1, 2, 3, 60, 384, 1536, 4095, 4096, 4097, 9000])


def plane_of(seed: int, count: int, spread: float) -> np.ndarray:
    """Bytes of a narrow or a wide distribution; spread 0: one byte all along."""
    values = np.random.default_rng(seed).normal(100, spread, count)
    return np.clip(values, 0, 255).astype(np.uint8)


def with_python(call):
    """What a call gives without the library."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "is_loaded", lambda: False)
        return call()


@needs_compiler
@settings(deadline=None, max_examples=150)
@given(count=LENGTHS, seed=st.integers(0, 2**16), spread=st.sampled_from([0.0, 0.3, 3.0, 30.0, 1000.0]))
def test_the_compiled_stream_is_that_of_python(count, seed, spread):
    plane = plane_of(seed, count, spread)
    assert static._library(plane) is not None
    data = static.encode(plane, 256)
    assert data == with_python(lambda: static.encode(plane, 256))
    for decoded in (static.decode(data, count, 256), with_python(lambda: static.decode(data, count, 256))):
        assert decoded.tolist() == plane.tolist()
    assert static.entropy(plane) == pytest.approx(with_python(lambda: static.entropy(plane)), abs=1e-12)


@needs_compiler
@settings(deadline=None, max_examples=300)
@given(
    seed=st.integers(0, 2**16),
    spread=st.sampled_from([0.0, 0.3, 30.0]),
    at=st.floats(0, 1),
    value=st.integers(0, 255),
    way=st.sampled_from(["changed", "cut", "longer", "much longer", "more asked for"]),
)
def test_a_broken_stream_is_refused_or_read_alike(seed, spread, at, value, way):
    plane = plane_of(seed, 500, spread)
    data = static.encode(plane, 256)
    place = min(int(at * len(data)), len(data) - 1)
    broken = {
        "changed": data[:place] + bytes([value]) + data[place + 1 :],
        "cut": data[:place],
        "longer": data + bytes([value]),
        "much longer": data + bytes([value]) * 9,
        "more asked for": data,
    }[way]

    def tried():
        try:
            return static.decode(broken, 501 if way == "more asked for" else 500, 256).tolist()
        except FormatError as error:
            return str(error)

    assert tried() == with_python(tried)


@needs_compiler
def test_the_library_reads_what_it_can_by_itself(monkeypatch):
    plane = plane_of(1, 1536, 20.0)
    data = static.encode(plane, 256)
    monkeypatch.setattr(static, "Decoder", None)  # Python's would be called
    assert static.decode(data, 1536, 256).tolist() == plane.tolist()


@needs_compiler
def test_more_bytes_than_the_compiled_counters_hold_are_counted_by_numpy(monkeypatch):
    from secateur.coding import digits

    assert native.COUNTABLE == 1 << 32  # uint32_t in digits.c
    plane = plane_of(1, 5000, 20.0)
    expected, stream = static.entropy(plane), static.encode(plane, 256)
    used = []

    class Spy:
        def __getattr__(self, name):
            used.append(name)
            return getattr(native.load(), name)

    spy, load = Spy(), native.load()
    with monkeypatch.context() as patch:
        patch.setattr(native, "load", lambda: load)
        patch.setattr(static.native, "is_loaded", lambda: True)
        patch.setattr(digits, "_library", lambda words: spy)
        patch.setattr(native, "COUNTABLE", 5000)
        assert static._library(plane) is None
        assert static._library(plane[1:]) is not None
        assert digits._entropy(plane) == pytest.approx(expected, abs=1e-12)
        assert static.encode(plane, 256) == stream
        assert not used

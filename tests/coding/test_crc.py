"""The compiled checksum is zlib's, whatever the length, the place in memory and the checksum before."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.coding import crc, native


def built(folder, *options):
    """`crc.c` alone, compiled with these options."""
    made = folder / "crc.so"
    source = Path(native.__file__).with_name("crc.c")
    call = [*native.compiler(), *native._FLAGS, *options, "-o", str(made), str(source)]
    subprocess.run(call, check=True, capture_output=True)
    library = ctypes.CDLL(str(made))
    library.secateur_crc.restype, library.secateur_has_crc.restype = ctypes.c_uint32, ctypes.c_int64
    library.secateur_crc.argtypes = [ctypes.c_uint32, ctypes.c_void_p, ctypes.c_int64]
    return library


@pytest.fixture(autouse=True)
def _every_length(monkeypatch):
    monkeypatch.setattr(crc, "_LONG", 0)


needs_instruction = pytest.mark.skipif(
    native.compiler() is None or native.load() is None or not native.load().secateur_has_crc(),
    reason="needs a C compiler, and a processor that multiplies without carries",
)


@needs_instruction
@given(
    length=st.integers(0, 3000),
    first=st.integers(0, 70),
    value=st.integers(0, 2**32 - 1),
    seed=st.integers(0, 99),
)
def test_it_is_that_of_zlib(length, first, value, seed):
    data = np.random.default_rng(seed).integers(0, 256, first + length, dtype=np.uint8)[first:].data
    assert crc._library(0) is not None
    assert crc.crc32(data, value) == zlib.crc32(data, value)


@needs_instruction
@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs the options of one processor")
def test_sixteen_bytes_at_a_time_it_is_that_of_zlib(tmp_path):
    library = built(tmp_path, "-mpclmul", "-msse4.1", "-mno-avx512f")
    assert library.secateur_has_crc() == 1
    rng = np.random.default_rng(0)
    for length in (*range(600), *rng.integers(600, 5000, 300)):
        data = rng.integers(0, 256, int(length) + 1, dtype=np.uint8)[1:]
        value = int(rng.integers(0, 2**32))
        assert library.secateur_crc(value, data.ctypes.data, data.size) == zlib.crc32(data.data, value)


@pytest.mark.skipif(native.compiler() is None, reason="needs a C compiler")
def test_without_the_instruction_it_says_so(tmp_path):
    assert built(tmp_path).secateur_has_crc() == 0


@needs_instruction
@pytest.mark.parametrize("length", [0, 15, 16, 63, 64, 255, 256, 257, 511, 512, 100_001])
def test_bytes_that_are_all_alike(length):
    for byte in (b"\0", b"\xff"):
        assert crc.crc32(byte * length, 5) == zlib.crc32(byte * length, 5)


def test_without_the_library_it_is_zlibs(monkeypatch):
    monkeypatch.setattr(crc, "_library", lambda nbytes: None)
    words = np.arange(1000, dtype=np.uint32)
    assert crc.crc32(words.data, 7) == zlib.crc32(words.data, 7)

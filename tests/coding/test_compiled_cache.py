"""A cache of compiled loops that an earlier version left does not break coding: it is deleted and made anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import secateur
from secateur.coding import compiled

CODE = (
    "import numpy as np\n"
    "from secateur.coding import compiled, indices\n"
    "compiled.LOADING = 0\n"
    "levels = np.arange(1 << 16).reshape(256, 256) % 3\n"
    "data = indices.encode(levels, 3, 1)\n"
    "assert (indices.decode(data, levels.shape, 3, 1) == levels).all()\n"
)


@pytest.mark.slow
@pytest.mark.skipif(
    not compiled.available(), reason="needs numba: the extra fast, installed by `make extras`"
)
def test_a_stale_cache_is_deleted(tmp_path):
    source = str(Path(secateur.__file__).parents[1])
    environment = {
        "PYTHONPATH": ":".join([source, *sys.path]),
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PATH": "/usr/bin",
    }
    run = [sys.executable, "-c", CODE]
    subprocess.run(run, check=True, env=environment)
    (index,) = tmp_path.rglob("_kernels.walk-*.nbi")
    whole = index.read_bytes()
    assert b"Stream" in whole
    index.write_bytes(whole.replace(b"Stream", b"Sluice"))  # as if the class had had another name
    subprocess.run(run, check=True, env=environment)
    assert b"Sluice" not in index.read_bytes()

"""The compiled walk is loaded from the user's own cache only, whole; without a compiler numpy codes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import secateur
from secateur.coding import native

CODE = (
    "import numpy as np\n"
    "from secateur.coding import compiled, indices, native\n"
    "compiled.LOADING = 0\n"
    "levels = np.arange(1 << 16).reshape(256, 256) % 3\n"
    "data = indices.encode(levels, 3, 1)\n"
    "assert (indices.decode(data, levels.shape, 3, 1) == levels).all()\n"
    "print(native.load() is not None)\n"
)
needs_compiler = pytest.mark.skipif(
    native.compiler() is None, reason="needs a C compiler: cc, or `make extras`"
)


def code(cache: Path, **more: str) -> str:
    """What a process prints that codes with this cache: whether it has the compiled walk."""
    source = str(Path(secateur.__file__).parents[1])
    environment = {
        "PYTHONPATH": os.pathsep.join([source, *sys.path]),
        "PATH": os.environ["PATH"],
        "SECATEUR_CACHE": str(cache),
        **more,
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE], check=True, env=environment, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> tuple[Path, str]:
    """A cache with the compiled walk, and the name of its file."""
    cache = tmp_path_factory.mktemp("cache")
    assert code(cache) == "True"
    (path,) = (cache / "native").iterdir()
    assert path.parent.stat().st_mode & 0o777 == 0o700
    return cache, path.name


@pytest.fixture
def folder(filled, tmp_path, monkeypatch) -> Path:
    """A copy of that cache, which this process uses."""
    where = tmp_path / "native"
    where.mkdir(mode=0o700)
    (where / filled[1]).write_bytes((filled[0] / "native" / filled[1]).read_bytes())
    (where / filled[1]).chmod(0o700)
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    native.cached.cache_clear()
    yield where
    native.cached.cache_clear()


@needs_compiler
def test_a_second_process_compiles_nothing(filled):
    assert code(filled[0], CC=f"{native.compiler()[0]} --no-such-option") == "False"  # a key of its own
    before = (filled[0] / "native" / filled[1]).stat().st_mtime_ns
    assert code(filled[0]) == "True"
    assert (filled[0] / "native" / filled[1]).stat().st_mtime_ns == before


@needs_compiler
def test_what_is_whole_is_found(folder):
    assert native.cached() is not None


@needs_compiler
@pytest.mark.parametrize("at", [0, 5000, -1])
def test_a_changed_file_is_not_loaded_and_deleted(folder, at):
    (path,) = folder.iterdir()
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    assert native.cached() is None
    assert not path.exists()


@needs_compiler
@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_others_can_write_to_is_not_loaded(folder, what):
    (path,) = folder.iterdir()
    (folder if what == "folder" else path).chmod(0o777)
    assert native.cached() is None


@needs_compiler
@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_link_is_not_followed(folder, what):
    (path,) = folder.iterdir()
    of = folder if what == "folder" else path
    moved = of.rename(of.with_name("elsewhere"))
    of.symlink_to(moved)
    assert native.cached() is None


@needs_compiler
def test_a_cache_that_others_can_write_to_is_left_alone(folder):
    (path,) = folder.iterdir()
    path.unlink()
    folder.chmod(0o777)
    assert code(folder.parent) == "True"  # compiled for the one process
    assert list(folder.iterdir()) == []


def test_without_a_compiler_or_with_one_that_fails_numpy_codes(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    ours = importlib.util.find_spec("ziglang") is not None  # the extra's own compiler needs no PATH
    assert code(tmp_path, PATH=str(empty)) == str(ours)
    assert code(tmp_path / "other", CC="false") == "False"
    assert list((tmp_path / "other" / "native").iterdir()) == []

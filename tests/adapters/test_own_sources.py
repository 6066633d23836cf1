"""The files that a user's code is made of: all of their own that it imports, and nothing of a library."""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import os
import sys
import time
from pathlib import Path

import pytest

from secateur.adapters.functions import source_digest
from secateur.adapters.own_sources import own_sources
from secateur.errors import OptionError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An import path of its own; what tests import from it is forgotten."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write(folder, **files: str) -> None:
    """Files by the names of modules, with `__` for a folder, and their text."""
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    importlib.invalidate_caches()


NETS = {
    "osx_nets__top": "import json, torch\nfrom . import blocks\nfrom .parts.cell import Cell\nimport osx_free as f\n",
    "osx_nets__blocks": "def late():\n    from osx_nets import inside\n",
    "osx_nets__inside": "import importlib\nimportlib.import_module('.named', 'osx_nets')\nfrom .top import x\n",
    "osx_nets__named": "from numpy import *\n",
    "osx_nets__parts__cell": "from ..helpers import value\nfrom ... import nothing\n",
    "osx_nets__helpers": "import not_there\n__import__('osx_called')\n",
    "osx_nets__unused": "import osx_nets.top\n",
    "osx_free": "this is no Python\n",
    "osx_called": "",
}
REACHED = [
    "osx_called",
    "osx_free",
    "osx_nets",
    "osx_nets.blocks",
    "osx_nets.helpers",
    "osx_nets.inside",
    "osx_nets.named",
    "osx_nets.parts.cell",
    "osx_nets.top",
]


def test_imports_are_followed_through_the_users_own_files_alone(folder):
    write(folder, **NETS)
    (folder / "osx_nets" / "__init__.py").write_text("")  # `parts` is a folder without one
    found = own_sources("osx_nets.top")
    assert list(found) == REACHED
    assert not any(name.startswith("osx_") for name in sys.modules)  # nothing was imported for it
    text = (folder / "osx_nets" / "blocks.py").read_bytes()
    assert found["osx_nets.blocks"].digest == hashlib.sha256(text).hexdigest()


def test_a_compiled_extension_counts_by_its_bytes(folder):
    write(folder, osx_uses="import osx_fast\n")
    library = folder / f"osx_fast{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    library.write_bytes(b"\x7fELF one")
    importlib.invalidate_caches()
    before = own_sources("osx_uses")
    assert list(before) == ["osx_fast", "osx_uses"]
    library.write_bytes(b"\x7fELF two")
    assert own_sources("osx_uses")["osx_fast"].digest != before["osx_fast"].digest


@pytest.mark.parametrize("place", ["site-packages", "target"])
def test_an_installed_package_is_a_library_and_a_file_beside_it_is_not(folder, monkeypatch, place):
    libraries = folder / place
    write(libraries, osx_lib__part="", osx_alone="", osx_mine="")
    (libraries / "osx_lib" / "__init__.py").write_text("import osx_lib.part\n")
    record = libraries / "osx_lib-1.0.dist-info" / "RECORD"
    record.parent.mkdir()
    record.write_text("osx_lib/__init__.py,sha256=x,0\nosx_alone.py,sha256=x,0\n")
    monkeypatch.syspath_prepend(str(libraries))
    write(folder, osx_top="import osx_lib, osx_alone, osx_mine\n")
    assert list(own_sources("osx_top")) == (["osx_mine", "osx_top"] if place == "target" else ["osx_top"])
    assert list(own_sources("osx_lib")) == ["osx_lib"]  # named itself


def test_one_file_has_the_digest_it_always_had_and_several_depend_on_each(folder):
    write(folder, osx_one="def f(): pass\n", osx_two="import osx_part\ndef f(): pass\n", osx_part="x = 1\n")
    one = (folder / "osx_one.py").read_bytes()
    assert source_digest("osx_one:f", "model") == hashlib.sha256(one).hexdigest()
    before = source_digest("osx_two:f", "model")
    write(folder, osx_part="x = 2\n")
    with pytest.raises(OptionError, match=r"osx_part\.py has changed since this process imported it"):
        source_digest("osx_two:f", "model")
    sys.modules.pop("osx_two"), sys.modules.pop("osx_part")  # as in another process
    assert source_digest("osx_two:f", "model") != before
    write(folder, osx_part="x = 1\n", osx_apart="x = 3\n")
    sys.modules.pop("osx_two"), sys.modules.pop("osx_part")
    assert source_digest("osx_two:f", "model") == before


def test_a_module_of_a_named_package_counts_and_one_found_since_the_code_ran_is_no_change(folder):
    (folder / "lib").mkdir()
    write(
        folder,
        osx_judge=(
            "import sys\nfrom importlib import import_module\n"
            "def judge():\n"
            f"    sys.path.insert(0, {str(folder / 'lib')!r})\n"
            "    from osx_late import value\n"
            "    return value\n"
            "def other():\n"
            "    return import_module('.named', package='osx_nets'), import_module(name='osx_free')\n"
        ),
        lib__osx_late="value = 1\n",
        osx_nets__named="",
        osx_nets____init__="",
        osx_free="",
    )
    assert {"osx_nets.named", "osx_free"} <= set(own_sources("osx_judge"))
    before = source_digest("osx_judge:judge", "evaluate")
    try:
        assert sys.modules["osx_judge"].judge() == 1
        assert source_digest("osx_judge:judge", "evaluate") == before
    finally:
        sys.path.remove(str(folder / "lib"))


def test_a_function_of_no_file_has_no_digest():
    assert source_digest("sys:exit", "model") == ""


def _read_bytes(monkeypatch) -> list[str]:
    """The names of the files that are read from now on."""
    read: list[str] = []
    plain = Path.read_bytes

    def noted(path: Path) -> bytes:
        read.append(path.name)
        return plain(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    return read


def _hours_later(monkeypatch) -> None:
    """Time passes; the times of change of the files stay as they are."""
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 3_600_000_000_000)


def test_a_file_that_did_not_change_is_read_once(folder, monkeypatch):
    write(folder, once="import once_more", once_more="x = 1")
    read = _read_bytes(monkeypatch)
    _hours_later(monkeypatch)
    first = own_sources("once")
    assert sorted(read) == ["once.py", "once_more.py"]
    assert own_sources("once") == first
    assert own_sources("once_more")["once_more"] == first["once_more"]
    assert len(read) == 2
    write(folder, once_more="x = 2")  # as long as before
    assert own_sources("once")["once_more"].digest == hashlib.sha256(b"x = 2").hexdigest()
    assert sorted(read[2:]) == ["once_more.py"]


def test_a_change_of_which_size_and_time_say_nothing_is_seen(folder, monkeypatch):
    write(folder, moved="x = 1")
    _hours_later(monkeypatch)
    path = folder / "moved.py"
    before = path.stat()
    assert own_sources("moved")["moved"].digest == hashlib.sha256(b"x = 1").hexdigest()
    other = folder / "other.txt"
    other.write_text("x = 2")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)  # another file, of the same size and the same time of change
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert own_sources("moved")["moved"].digest == hashlib.sha256(b"x = 2").hexdigest()


def test_a_file_of_this_moment_is_read_each_time(folder, monkeypatch):
    """It may change again within a tick of the file system's clock, which leaves size and times as they were."""
    write(folder, fresh="x = 1")
    read = _read_bytes(monkeypatch)
    own_sources("fresh")
    own_sources("fresh")
    assert read == ["fresh.py", "fresh.py"]

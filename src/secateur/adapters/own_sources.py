"""`own_sources`: the files that code of the user's own is made of, so that outcomes in a store depend on all of them.

From the module that a user names, imports are followed through the text of the files, also those inside functions, to
every module of the user's own. Modules of Python, of secateur and of installed packages end the way; so does a compiled
extension, whose file counts by its bytes. Nothing is imported for it. A module whose name is put together only when
the code runs is not seen, nor is a file that the code reads. A process reads a file again where its size, its times of
change or the file itself under its path differ.

>>> list(own_sources("json"))  # a module that is named counts itself; what it imports is Python's own
['json']
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import sys
import sysconfig
import time
from collections.abc import Iterator
from functools import lru_cache
from importlib import machinery
from pathlib import Path
from typing import NamedTuple

__all__ = ["OwnSource", "own_sources"]

_INSTALLED = frozenset({"site-packages", "dist-packages"})
_LIBRARIES = frozenset({"secateur", "torch"})
"""Wherever they lie: a working copy is no code of the user's either."""

_TICK = 3_000_000_000  # nanoseconds; no file system's clock is coarser

_LOADERS = (
    (machinery.ExtensionFileLoader, machinery.EXTENSION_SUFFIXES),
    (machinery.SourceFileLoader, machinery.SOURCE_SUFFIXES),
    (machinery.SourcelessFileLoader, machinery.BYTECODE_SUFFIXES),
)


class OwnSource(NamedTuple):
    """A module's file, and the SHA-256 of its bytes."""

    path: Path
    digest: str


def own_sources(module: str) -> dict[str, OwnSource]:
    """The files of a module and of every module of the user's own that it reaches by imports.

    Args:
        module: The module that the user named. Its own file counts wherever it lies.

    Returns:
        Per module its file, in the order of the modules' names; modules without a file are left out.
    """
    found: dict[str, OwnSource] = {}
    waiting, seen = [module], {module}
    while waiting:
        name = waiting.pop()
        spec = _spec(name)
        if spec is None or (name != module and _is_library(spec)):
            continue
        package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
        reached = _above(name)
        if spec.has_location and spec.origin and os.path.isfile(spec.origin):
            digest, imports = _digest_and_imports(spec.origin)
            found[name] = OwnSource(Path(spec.origin), digest)
            reached |= {_absolute(written, package) for written in imports}
        new = {each for each in reached if each and each.partition(".")[0] not in _LIBRARIES} - seen
        seen |= new
        waiting += sorted(new)
    return dict(sorted(found.items()))


class _Read(NamedTuple):
    """What was read of a file: what the system said of it then, the SHA-256 of its bytes, and its imports."""

    stamp: tuple[int, ...]
    digest: str
    imports: frozenset[str]


_kept: dict[str, _Read] = {}


def _digest_and_imports(path: str) -> tuple[str, frozenset[str]]:
    """The SHA-256 of a file, and the imports in it where it is Python; read again only where it may have changed."""
    path = os.path.abspath(path)
    stamp = _stamp(path)
    kept = _kept.get(path)
    if kept is not None and kept.stamp == stamp:
        return kept.digest, kept.imports
    data = Path(path).read_bytes()
    read = _Read(
        stamp,
        hashlib.sha256(data).hexdigest(),
        _imports(data) if path.endswith((".py", ".pyw")) else frozenset(),
    )
    # Another change within a tick of the file system's clock would leave the same stamp.
    settled = time.time_ns() - max(stamp[-2:]) > _TICK
    if settled and _stamp(path) == stamp:
        _kept[path] = read
    else:
        _kept.pop(path, None)
    return read.digest, read.imports


def _stamp(path: str) -> tuple[int, ...]:
    """What changes with a file's bytes: which file it is, its size, and its times of change."""
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _above(name: str) -> set[str]:
    """The packages that a module lies in: importing it runs their files too."""
    parts = name.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts))}


@lru_cache(maxsize=4096)
def _imports(source: bytes) -> frozenset[str]:
    """What a file imports, as it is written: with leading dots where relative. `from a import b` may mean `a.b`."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()  # its bytes count all the same
    return frozenset(name for node in ast.walk(tree) for name in _written(node))


def _written(node: ast.AST) -> Iterator[str]:
    """The names of modules in one statement, or in a call of `import_module` or `__import__` with a plain text."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = "." * node.level + (node.module or "")
        yield base
        joint = "" if base.endswith(".") else "."
        yield from (f"{base}{joint}{alias.name}" for alias in node.names if alias.name != "*")
    elif isinstance(node, ast.Call):
        function = node.func
        called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if called in ("import_module", "__import__"):
            given = [
                *node.args[:2],
                *(each.value for each in node.keywords if each.arg in ("name", "package")),
            ]
            words = [
                each.value for each in given if isinstance(each, ast.Constant) and isinstance(each.value, str)
            ]
            if words and words[0].startswith(".") and len(words) > 1:
                yield _absolute(words[0], words[1])
            elif words:
                yield words[0]


def _absolute(written: str, package: str) -> str:
    """A module's full name; empty where it would lie above the outermost package.

    >>> _absolute("..c", "a.b"), _absolute(".", "a.b"), _absolute("c.d", "a.b"), _absolute("..c", "a")
    ('a.c', 'a.b', 'c.d', '')
    """
    tail = written.lstrip(".")
    level = len(written) - len(tail)
    if not level:
        return tail
    parts = package.split(".")
    if not package or level > len(parts):
        return ""
    base = ".".join(parts[: len(parts) - level + 1])
    return f"{base}.{tail}" if tail else base


def _spec(name: str) -> machinery.ModuleSpec | None:
    """Where a module is: that of the one in use, else found without importing the packages that it lies in."""
    spec: machinery.ModuleSpec | None = getattr(sys.modules.get(name), "__spec__", None)
    if spec is not None:
        return spec
    package = name.rpartition(".")[0]
    try:
        if not package:
            return importlib.util.find_spec(name)
        above = _spec(package)
        if above is None or above.submodule_search_locations is None:
            return None
        finders = (machinery.FileFinder(place, *_LOADERS) for place in above.submodule_search_locations)
        return next(filter(None, (finder.find_spec(name) for finder in finders)), None)
    except (ImportError, ValueError, AttributeError):
        return None  # of no spec, as `__main__`, or of a finder that fails: not a module that can be named


def _is_library(spec: machinery.ModuleSpec) -> bool:
    """Whether a module belongs to Python or to an installed package."""
    if not spec.has_location and spec.submodule_search_locations is None:
        return True  # built into Python
    places = (
        [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or ())
    )
    return any(_in_library(os.path.abspath(place), spec.name) for place in places)


@lru_cache(maxsize=4096)
def _in_library(place: str, name: str) -> bool:
    """Whether a file or folder is one of Python's, or of a package that was installed where it lies."""
    path = Path(place)
    if _INSTALLED & set(path.parts) or any(path.is_relative_to(folder) for folder in _python()):
        return True
    top = name.partition(".")[0]
    folder = next((above.parent for above in (path, *path.parents) if above.stem == top), path.parent)
    return top in _installed_in(folder)


@lru_cache(maxsize=1)
def _python() -> tuple[str, ...]:
    """The folders of Python's own modules."""
    folders = {os.path.dirname(os.__file__), *(sysconfig.get_path(key) for key in ("stdlib", "platstdlib"))}
    return tuple(sorted(folders | {os.path.realpath(folder) for folder in folders}))


@lru_cache(maxsize=256)
def _installed_in(folder: Path) -> frozenset[str]:
    """The packages that an installer put into a folder (`pip install --target`): those that its records name."""
    found = set()
    for record in folder.glob("*.dist-info/RECORD"):
        for line in record.read_text("utf-8", "replace").splitlines():
            first, slash, _ = line.strip('"').partition("/")
            found.add(first if slash else first.partition(".")[0])
    return frozenset(found)

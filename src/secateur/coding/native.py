"""The longest loops in machine code: `walk.c`, `digits.c`, `tables.c`, `crc.c`, compiled here and kept in a cache.

The compiler is `$CC`, or `cc`, `gcc` or `clang`, or the one of the extra `secateur[fast]` (ziglang). What it makes lies
in the user's cache (`$SECATEUR_CACHE`, else `$XDG_CACHE_HOME/secateur`), under a name made of the source, the compiler,
the processor and its own hash. A file is loaded only if its bytes have the hash of its name, and file and folder belong
to the user and nobody else can write to them. Without a compiler, or where the cache cannot be trusted, `load` gives
None, and numpy codes.

>>> load() is None or load().secateur_walk_bytes() == ctypes.sizeof(WalkArguments)
True
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["COUNTABLE", "Fit", "WalkArguments", "cached", "compiler", "is_loaded", "load"]

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("walk.c", "digits.c", "tables.c", "crc.c"))
# Sums of whole numbers may be taken in any order; nothing else may change a number.
_FLAGS = (
    *("-O2", "-ftree-vectorize", "-std=c99", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math"),
    *("-fno-signed-zeros", "-fassociative-math", "-ffp-contract=off"),
)
_SECONDS = 120  # until a compiler is given up


def _members(names: str, kind: type) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class Fit(ctypes.Structure):
    """The forecasts of one kind, as `walk.c` declares them."""

    _fields_ = [
        *_members("features starts weights sums room", ctypes.c_void_p),
        ("most", ctypes.c_int64),
    ]


class WalkArguments(ctypes.Structure):
    """Everything a walk reads and changes, as `walk.c` declares it."""

    _fields_ = [
        *_members("state words", ctypes.c_void_p),
        *_members("word_count decodes", ctypes.c_int64),
        *_members(
            "stretch squash doubts eight twelve fine surely mirror trust_size trust_value", ctypes.c_void_p
        ),
        *_members("last_odds prior calm heaviest most ridge", ctypes.c_int64),
        ("heaviest_fit", ctypes.c_double),
        ("fullest", ctypes.c_int64),
        *_members("counts begins cells strides weights whole energies", ctypes.c_void_p),
        ("contexts", ctypes.c_int64),
        ("size", Fit),
        ("value", Fit),
        *_members("signs sizes kernels by_filter by_channel known near", ctypes.c_void_p),
        *_members("taps filters channels", ctypes.c_int64),
        *_members("below above zero unary digits nodes rich rows", ctypes.c_int64),
        ("source", ctypes.c_void_p),
    ]


@cache
def compiler() -> tuple[str, ...] | None:
    """The command of a C compiler; None where there is none, and on Windows and 32-bit machines."""
    if os.name != "posix" or sys.maxsize < 2**32:
        return None
    given = shlex.split(os.environ.get("CC", ""))
    for command in (given, ["cc"], ["gcc"], ["clang"]):
        path = shutil.which(command[0]) if command else None
        if path is not None:
            return (path, *command[1:])
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-P", "-m", "ziglang", "cc")  # not a ziglang of the folder it runs in
    return None


def _processor() -> str:
    """What tells this machine's processor from others; empty where that is not known."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() if sys.platform == "darwin" else ""
    kinds = ("model name", "flags", "Features", "CPU part", "isa")
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)}))


@cache
def _name() -> str:
    """The beginning of the compiled file's name, made of all that its content depends on."""
    command = compiler()
    assert command is not None
    made_by = os.stat(command[0])
    parts = [
        *(source.read_text() for source in _SOURCES),
        *_FLAGS,
        *command,
        made_by.st_size,
        made_by.st_mtime_ns,
    ]
    parts += [platform.machine(), sys.platform, _processor()]
    return f"walk-{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}-"


def _folder() -> Path:
    given = os.environ.get("SECATEUR_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return (Path(given) if given else Path(home, "secateur")) / "native"


def _own(path: Path, kind: int) -> bool:
    """Whether a path is a file or folder (no link) of this user that nobody else can write to."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_IFMT(found.st_mode) == kind and found.st_uid == os.getuid() and not found.st_mode & 0o022


COUNTABLE = 1 << 32
"""Bytes from which `secateur_count`, whose counters have 32 bits, and what calls it are not used."""


@cache
def cached() -> Path | None:
    """The compiled file in the cache, if it is there whole; others that claim to be it are deleted."""
    if compiler() is None or not _own(_folder(), stat.S_IFDIR):
        return None
    for path in sorted(_folder().glob(f"{_name()}*.so")):
        if _own(path, stat.S_IFREG):
            if path.stem.endswith(hashlib.sha256(path.read_bytes()).hexdigest()):
                return path
            path.unlink(missing_ok=True)
    return None


def _compiled(folder: Path) -> Path | None:
    """The source compiled into a folder, atomically; None where the compiler fails."""
    command = compiler()
    assert command is not None
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch, "walk.so")
        # The extra's compiler keeps files of its own, else in the home, which need not be there.
        environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": scratch, "ZIG_LOCAL_CACHE_DIR": scratch}
        tuned = [["-march=native"], []] if _processor() else [[]]
        for more in tuned:
            call = [*command, *_FLAGS, *more, "-o", str(made), *map(str, _SOURCES), "-lm"]
            try:
                done = subprocess.run(
                    call, capture_output=True, timeout=_SECONDS, check=False, env=environment
                )
            except (OSError, subprocess.TimeoutExpired):
                return None
            if done.returncode == 0 and made.is_file():
                made.chmod(0o700)
                path = folder / f"{_name()}{hashlib.sha256(made.read_bytes()).hexdigest()}.so"
                os.replace(made, path)
                return path
    return None


def _opened(path: Path) -> ctypes.CDLL | None:
    """The library with its functions declared; None where it cannot be loaded or means something else."""
    try:
        library = ctypes.CDLL(str(path))
        library.secateur_walk_bytes.restype = library.secateur_walk.restype = ctypes.c_int64
        library.secateur_walk.argtypes = [ctypes.POINTER(WalkArguments), *[ctypes.c_int64] * 3]
        library.secateur_crc.restype, library.secateur_has_crc.restype = ctypes.c_uint32, ctypes.c_int64
        library.secateur_crc.argtypes = [ctypes.c_uint32, ctypes.c_void_p, ctypes.c_int64]
        library.secateur_count.restype = None
        library.secateur_count.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
        library.secateur_table_encode.restype = library.secateur_table_decode.restype = ctypes.c_int64
        library.secateur_table_encode.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
        library.secateur_table_decode.argtypes = [ctypes.c_void_p, ctypes.c_int64] * 2
        for function in (library.secateur_join, library.secateur_split):
            function.restype = None
            function.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), *[ctypes.c_int64] * 3]
    except (OSError, AttributeError):
        return None
    return library if library.secateur_walk_bytes() == ctypes.sizeof(WalkArguments) else None


@cache
def load() -> ctypes.CDLL | None:
    """The compiled library: from the cache, or compiled now; None where neither can be done."""
    if compiler() is None:
        return None
    if (path := cached()) is not None:
        return _opened(path)
    folder = _folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _own(folder, stat.S_IFDIR):
            made = _compiled(folder)
            return None if made is None else _opened(made)
        with tempfile.TemporaryDirectory() as scratch:  # no cache to be trusted: for this process only
            made = _compiled(Path(scratch))
            return None if made is None else _opened(made)
    except OSError:
        return None


def is_loaded() -> bool:
    """Whether this process has loaded the library already, so that using it costs nothing more."""
    return load.cache_info().currsize > 0 and load() is not None

"""Kills, I/O errors and want of memory in the middle of a run: `python -m attacks.faults` (or `make faults`).

A small recipe with every kind of step that changes a model runs in a forked process, which is killed at a random
instant, or whose n-th write, flush, rename or database statement fails, or which runs out of memory: at its n-th call
of a function, or at a random instant, from which on the system gives it no more. It is run again until it is done. Then
every step must have the same state hashes and the same measurements as a run that was left alone, every object must be
whole, and nothing may be left behind.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import ctypes
import errno
import io
import json
import os
import random
import resource
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch

from attacks.tiny_recipe import tiny
from secateur.core.out_of_memory import is_out_of_memory
from secateur.errors import SecateurError
from secateur.lab.engine import run
from secateur.lab.planning import plan
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store

RECIPE = tiny("""
[[step]]
kind = "train"
epochs = 2
lr = 0.05
[[step]]
kind = "prune"
criterion = "snip"
budget = 0.9
[[step]]
kind = "retrain"
epochs = 1
[[step]]
kind = "share"
bits = 2
start = "random"
[[step]]
kind = "measure"
what = ["accuracy", "params", "macs"]
""")


@dataclass
class Table:
    """What one kind of fault did.

    Attributes:
        kind: Its name.
        faults: How many kills or errors hit a run.
        named: How many of the errors reached the caller as a SecateurError, as an OSError, or as what Python and torch
            raise where there is no memory.
        runs: How many runs were completed after one or more of them.
        other: How many of those ended with other numbers, other bytes or a damaged object.
        foreign: Errors of another kind.
        leftovers: Files that were there after the completed run and are not after a run that was left alone.
    """

    kind: str
    faults: int = 0
    named: int = 0
    runs: int = 0
    other: int = 0
    foreign: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)

    def good(self) -> bool:
        """Whether every run came to the same numbers and left nothing."""
        return not (self.other or self.foreign or self.leftovers)

    def __str__(self) -> str:
        return (
            f"{self.kind:<22} {self.faults:>6} {self.named:>8} {self.runs:>6} {self.other:>14} "
            f"{len(self.foreign):>8} {len(self.leftovers):>10}"
        )


HEAD = f"{'fault':<22} {'faults':>6} {'named':>8} {'runs':>6} {'other numbers':>14} {'foreign':>8} {'leftovers':>10}"


class Faults:
    """The n-th operation of one kind fails, in this process, from now on.

    Args:
        kind: "write", "fsync", "rename", "open" or "sqlite".
        at: The number of the operation, from 1.
        code: The error number, such as `errno.ENOSPC`.
    """

    def __init__(self, kind: str, at: int, code: int):
        self.kind, self.at, self.code, self.count = kind, at, code, 0

    def _pass(self, kind: str) -> None:
        if kind == self.kind:
            self.count += 1
            if self.count == self.at:
                if kind == "sqlite":
                    raise sqlite3.OperationalError("disk I/O error")
                raise OSError(self.code, os.strerror(self.code))

    def _before(self, kind: str, function: Callable[..., object]) -> Callable[..., object]:
        def faulty(*args: object, **kwargs: object) -> object:
            self._pass(kind)
            return function(*args, **kwargs)

        return faulty

    def install(self) -> None:
        """Put the faulty layer around the functions that write."""
        os.fsync = self._before("fsync", os.fsync)  # type: ignore[assignment]
        os.replace = self._before("rename", os.replace)  # type: ignore[assignment]
        os.rename = self._before("rename", os.rename)  # type: ignore[assignment]
        opened, real, faults = os.open, builtins.open, self

        def low(path: object, flags: int, *rest: object, **named: object) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR):
                faults._pass("open")
            return opened(path, flags, *rest, **named)  # type: ignore[arg-type]

        class File(io.FileIO):
            def write(self, data: object) -> int:  # type: ignore[override]
                faults._pass("write")
                return super().write(data)  # type: ignore[arg-type]

        def high(file: object, mode: str = "r", *rest: object, **named: object) -> object:
            if "b" in mode and any(letter in mode for letter in "wxa+"):
                if not isinstance(file, int):
                    faults._pass("open")
                raw = File(file, mode.replace("b", "").replace("t", ""))  # type: ignore[arg-type]
                return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return real(file, mode, *rest, **named)  # type: ignore[call-overload]

        os.open, builtins.open, io.open, os.fdopen = low, high, high, high  # type: ignore[assignment]

        class Connection(sqlite3.Connection):
            def execute(self, *args: object) -> sqlite3.Cursor:  # type: ignore[override]
                faults._pass("sqlite")
                return super().execute(*args)  # type: ignore[arg-type]

        connect = sqlite3.connect
        sqlite3.connect = lambda *args, **named: connect(*args, factory=Connection, **named)  # type: ignore


class NoMemory:
    """A MemoryError at the n-th call from or to a function of secateur, in this process, from now on.

    Args:
        at: The number of the call, from 1; 0 counts only.
    """

    def __init__(self, at: int):
        self.at, self.count = at, 0

    def install(self) -> None:
        """Look at every call from now on, until one has failed."""
        sys.setprofile(self._look)

    def _look(self, frame: FrameType, event: str, given: object) -> None:
        if event in ("call", "c_call") and _SOURCES in frame.f_code.co_filename:
            self.count += 1
            if self.count == self.at:  # what a profile function raises ends it
                raise MemoryError


_SOURCES = f"{os.sep}secateur{os.sep}"


def _size_of(process: int) -> int:
    """The address space of a process, in bytes."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[0]) * resource.getpagesize()


def _from_the_system() -> None:
    """Have this process ask the system for memory at once, in place of what it has freed before."""
    libc = ctypes.CDLL(None)
    libc.malloc_trim(0)
    libc.mallopt(_MMAP_THRESHOLD, 1 << 12)


_MMAP_THRESHOLD = -3  # of malloc.h


def _kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)


def _as_before() -> None:
    """Give this process memory again, so that it can say what happened."""
    sys.setprofile(None)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class Trial:
    """The recipe, what it comes to when it is left alone, and attempts at it.

    Args:
        folder: Where the stores lie.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.recipe = Recipe.parse(RECIPE)
        run(self.recipe, Store(folder / "warm"))  # what is imported once
        start = time.perf_counter()
        assert self.attempt(folder / "alone")[0] == 0
        self.seconds = time.perf_counter() - start
        self.calls = self._calls(folder / "counted")
        self.numbers, self.files = self.result(folder / "alone"), self.names(folder / "alone")

    def _calls(self, where: Path) -> int:
        """How many calls `NoMemory` sees in a run that is left alone."""
        counter = NoMemory(0)
        counter.install()
        try:
            run(self.recipe, Store(where))
        finally:
            sys.setprofile(None)
        return counter.count

    def attempt(
        self,
        where: Path,
        patience: float | None = None,
        prepare: Callable[[], object] | None = None,
        late: Callable[[int], object] | None = None,
    ) -> tuple[int, str]:
        """Run the recipe in a forked process.

        Args:
            where: The store.
            patience: Seconds until `late` is called; None waits.
            prepare: Called in the process first.
            late: What is done to the process, by its number, when the seconds are over; None kills it. A process that
                does not end after that is killed.

        Returns:
            (0 done, 1 refused with a named error, 2 or more another error, below 0 ended by that signal; what it said).
        """
        said = self.folder / "said"
        said.write_text("")
        child = os.fork()
        if child == 0:
            self._child(where, prepare, os.open(said, os.O_WRONLY | os.O_TRUNC))
        end = time.perf_counter() + patience if patience is not None else None
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            if end is not None and time.perf_counter() >= end:
                (late or _kill)(child)
                # Python waits for ever for a thread that found no memory to begin.
                end, late = end + 20 + 20 * self.seconds, _kill
            time.sleep(0.002)
        return (-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)), said.read_text()

    def _child(self, where: Path, prepare: Callable[[], object] | None, said: int) -> NoReturn:
        """The forked process: run the recipe, write what error there was, and end."""
        code, text = 0, ""
        try:
            try:
                if prepare is not None:
                    prepare()
                run(self.recipe, Store(where))
            except BaseException as error:
                _as_before()
                code = 1 if isinstance(error, SecateurError | OSError) or is_out_of_memory(error) else 2
                text = repr(error) + "".join(traceback.format_exception(error)[-4:])
            os.write(said, text.encode()[:4000])
        except BaseException:  # even then this process must not go on as a second parent
            code = 3
        finally:
            os._exit(code)

    def result(self, where: Path) -> list[object]:
        """State hashes and measurements of every step; raises where an object is damaged."""
        store, found = Store(where), []
        for step in plan(self.recipe).trials[0].steps:
            outcome = store.outcome(step.key)
            assert outcome is not None
            for name in outcome.state.values():
                if str(name).startswith("object:"):
                    store.objects.get(str(name).removeprefix("object:"))
            rows = [row.to_dict() for row in outcome.measurements]
            found.append([dict(outcome.state), json.dumps(rows, sort_keys=True, default=str)])
        store.close()
        return found

    def names(self, where: Path) -> set[str]:
        """The files of a store; locks of runs are as many as there were runs."""
        return {
            str(path.relative_to(where))
            for path in where.rglob("*")
            if path.is_file()
            and path.suffix not in (".lock", ".sqlite-wal", ".sqlite-shm")
            and not path.name.endswith(("-wal", "-shm"))
        }

    def judge(self, where: Path, table: Table) -> None:
        """Compare a completed run with the one that was left alone."""
        table.runs += 1
        try:
            same = self.result(where) == self.numbers
        except (AssertionError, SecateurError) as error:
            table.foreign.append(f"after the run: {error!r}")
            same = False
        table.other += not same
        table.leftovers += sorted(self.names(where) - self.files)


def kills(trial: Trial, count: int, chance: random.Random) -> Table:
    """SIGKILL at random instants."""
    table, number = Table("SIGKILL"), 0
    while table.faults < count:
        where = trial.folder / f"kill-{number}"
        number += 1
        while True:
            patience = chance.uniform(0, trial.seconds * 0.8) if table.faults < count else None
            code, said = trial.attempt(where, patience)
            if code == -signal.SIGKILL:
                table.faults += 1
                continue
            if code:
                table.foreign.append(said)
            break
        trial.judge(where, table)
    return table


def _fault(trial: Trial, kind: str, most: int, chance: random.Random) -> dict[str, Any]:
    """How `Trial.attempt` lets one fault of a kind happen.

    Args:
        trial: The trial.
        kind: One of `KINDS`.
        most: Operations that are known to be there.
        chance: Draws which one fails.
    """
    code = chance.choice([errno.ENOSPC, errno.EIO])
    if kind == "MemoryError":
        return {"prepare": NoMemory(chance.randrange(1, trial.calls + 1)).install}
    if kind == "RLIMIT_AS":
        slack = int(2 ** chance.uniform(0, 20))

        def tight(process: int) -> None:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                most = _size_of(process) + slack
                resource.prlimit(process, resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

        return {
            "patience": chance.uniform(0, trial.seconds * 0.8),
            "late": tight,
            "prepare": _from_the_system,
        }
    if kind == "RLIMIT_FSIZE":
        limit = int(2 ** chance.uniform(9, 21))

        def prepare() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        return {"prepare": prepare}
    return {"prepare": Faults(kind, chance.randrange(1, most + 1), code).install}


def errors(trial: Trial, kind: str, count: int, chance: random.Random) -> Table:
    """The n-th operation of a kind fails, with n drawn anew each time, as far as there are operations."""
    table, number, most = Table(kind), 0, 8
    while table.faults < count and number < 4 * count + 8:
        where = trial.folder / f"{kind}-{number}"
        number += 1
        code, said = trial.attempt(where, **_fault(trial, kind, most, chance))
        if code == 0:  # there were fewer operations than that, or it was survived
            most = max(4, most - 1)
        else:
            most += 1
            table.faults += 1
            table.named += code == 1
            if code > 1 or (code < 0 and kind != "RLIMIT_AS"):  # C++ itself ends a process without memory
                table.foreign.append(said or f"ended with {code}")
            if code > 0 and (left := [path.name for path in where.rglob("*.part*")]):
                table.leftovers += left
            again, said = trial.attempt(where)
            if again:
                table.foreign.append(f"resumed: {said}")
                continue
        trial.judge(where, table)
    return table


KINDS = ("write", "fsync", "rename", "open", "sqlite", "RLIMIT_FSIZE", "MemoryError", "RLIMIT_AS")
ALL = ("SIGKILL", *KINDS)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=200, help="how many kills")
    options.add_argument("--errors", type=int, default=204, help="how many I/O errors, in all kinds together")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", nargs="+", choices=ALL, default=[*ALL], help="kinds; all unless given")
    given = options.parse_args(arguments)
    torch.set_num_threads(1)
    chance, tables = random.Random(given.seed), []
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder))
        print(f"a run that is left alone takes {trial.seconds:.2f} s", flush=True)
        print(HEAD, flush=True)
        for kind in given.only:
            each = -(-given.errors // len(KINDS))
            table = (
                kills(trial, given.kills, chance) if kind == "SIGKILL" else errors(trial, kind, each, chance)
            )
            tables.append(table)
            print(table, flush=True)
            for text in [*sorted(set(table.foreign))[:5], *sorted(set(table.leftovers))[:5]]:
                print("   ", text)
    return 0 if all(table.good() for table in tables) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Kills and I/O errors in the middle of a run: `python -m attacks.faults` (or `make faults`).

A small recipe with every kind of step that changes a model runs in a forked process, which is killed at a random
instant, or whose n-th write, flush, rename or database statement fails. It is run again until it is done. Then every
step must have the same state hashes and the same measurements as a run that was left alone, every object must be whole,
and nothing may be left behind.
"""

from __future__ import annotations

import argparse
import builtins
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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from attacks.tiny_recipe import tiny
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
        named: How many of the errors reached the caller as a SecateurError or an OSError.
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
        self.numbers, self.files = self.result(folder / "alone"), self.names(folder / "alone")

    def attempt(
        self, where: Path, patience: float | None = None, prepare: Callable[[], object] | None = None
    ) -> tuple[int, str]:
        """Run the recipe in a forked process.

        Args:
            where: The store.
            patience: Seconds until it is killed; None waits.
            prepare: Called in the process first.

        Returns:
            (0 done, 1 refused with an error of ours or of the system, 2 another error, -9 killed; what it said).
        """
        said = self.folder / "said"
        said.write_text("")
        child = os.fork()
        if child == 0:
            code, text = 0, ""
            keep = os.open(said, os.O_WRONLY | os.O_TRUNC)
            try:
                if prepare is not None:
                    prepare()
                run(self.recipe, Store(where))
            except (SecateurError, OSError) as error:
                code, text = 1, repr(error)
            except BaseException as error:
                code, text = 2, repr(error)
            os.write(keep, text.encode()[:2000]) if text else None
            os._exit(code)
        end = time.perf_counter() + patience if patience is not None else None
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            if end is not None and time.perf_counter() >= end:
                os.kill(child, signal.SIGKILL)
                status = os.waitpid(child, 0)[1]
                break
            time.sleep(0.002)
        return (-signal.SIGKILL if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)), said.read_text()

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


def errors(trial: Trial, kind: str, count: int, chance: random.Random) -> Table:
    """The n-th operation of a kind fails, with n drawn anew each time, as far as there are operations."""
    table, number, most = Table(kind), 0, 8
    while table.faults < count and number < 4 * count + 8:
        where = trial.folder / f"{kind}-{number}"
        number += 1
        code_number = chance.choice([errno.ENOSPC, errno.EIO])
        if kind == "RLIMIT_FSIZE":
            limit = int(2 ** chance.uniform(9, 21))

            def prepare(limit: int = limit) -> None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        else:
            faults = Faults(kind, chance.randrange(1, most + 1), code_number)
            prepare = faults.install  # type: ignore[assignment]
        code, said = trial.attempt(where, None, prepare)
        if code == 0:  # there were fewer operations than that, or it was survived
            most = max(4, most - 1)
        else:
            most += 1
            table.faults += 1
            table.named += code == 1
            if code != 1:
                table.foreign.append(said)
            if left := [path.name for path in where.rglob("*.part*")]:
                table.leftovers += left
            again, said = trial.attempt(where)
            if again:
                table.foreign.append(f"resumed: {said}")
                continue
        trial.judge(where, table)
    return table


KINDS = ("write", "fsync", "rename", "open", "sqlite", "RLIMIT_FSIZE")


def main(arguments: list[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=200, help="how many kills")
    options.add_argument("--errors", type=int, default=204, help="how many I/O errors, in all kinds together")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args(arguments)
    torch.set_num_threads(1)
    chance, tables = random.Random(given.seed), []
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder))
        print(f"a run that is left alone takes {trial.seconds:.2f} s", flush=True)
        print(HEAD, flush=True)
        for kind in ("SIGKILL", *KINDS):
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

"""Figures that were measured, kept as CSV: one file of `benchmarks/results/` for each benchmark, one row a figure.

A benchmark calls `record(Figure(...))` for each number that it prints; the row is appended at once, so a run that is
stopped keeps what it has found. The rows of one run share their date. `SECATEUR_RESULTS=FOLDER` writes elsewhere, and
`SECATEUR_RESULTS=` (empty) nowhere.

>>> Figure("held step", 1.03, "ratio", goal=1.02).met, Figure("speed", 6.2, "x", goal=5, better="higher").met
(False, True)
"""

from __future__ import annotations

import csv
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks" / "results"
STARTED = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Figure:
    """One number that a benchmark found."""

    name: str
    value: float
    unit: str = ""
    goal: float | None = None
    """The value that is at least to be reached; None where there is no goal."""
    better: Literal["lower", "higher"] = "lower"
    tolerance: float = 0.1
    """The share by which the figure may be worse than the last time before `check.py` reports it."""
    detail: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        if self.goal is None:
            return None
        return self.value <= self.goal if self.better == "lower" else self.value >= self.goal


@dataclass(frozen=True)
class Result:
    """One row of a file: a figure, and where it comes from."""

    date: str
    commit: str
    machine: str
    software: str
    load: str
    command: str
    name: str
    figure: float
    unit: str
    better: str
    tolerance: float
    goal: float | None
    met: bool | None
    detail: str

    @property
    def where(self) -> tuple[str, str, str]:
        """What two results must share to be compared."""
        return self.command, self.name, self.machine


COLUMNS = [field.name for field in fields(Result)]


def record(*figures: Figure, folder: Path | None = None) -> None:
    """Append figures to the file of the script that runs.

    Args:
        figures: What was found.
        folder: Where the files lie; by default what SECATEUR_RESULTS names, or benchmarks/results.

    Raises:
        ValueError: A figure is not a finite number.
    """
    named = os.environ.get("SECATEUR_RESULTS")
    if folder is None and named == "":
        return
    folder = folder or Path(named or FOLDER)
    for figure in figures:
        if not math.isfinite(figure.value):
            raise ValueError(
                f"{figure.name}: expected a finite number, got {figure.value}; record nothing instead"
            )
    script = Path(sys.argv[0])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{script.stem}.csv"
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        for figure in figures:
            writer.writerow(row_of(figure))


def row_of(figure: Figure) -> list[str]:
    """The cells of a figure found by the script that runs, in the order of `COLUMNS`."""
    goal = "" if figure.goal is None else f"{figure.goal:.6g}"
    met = {None: "", True: "yes", False: "no"}[figure.met]
    what = [
        figure.name,
        f"{figure.value:.6g}",
        figure.unit,
        figure.better,
        f"{figure.tolerance:g}",
        goal,
        met,
    ]
    return [STARTED, commit(), machine(), software(), load(), command(sys.argv), *what, figure.detail]


def commit() -> str:
    """The commit of the code, with a plus where files of src/ or benchmarks/ differ from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run(
        [*git, "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, check=False
    )
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", "src", "benchmarks/*.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    return (
        head.stdout.strip() + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else "unknown"
    )


def machine() -> str:
    """System, processor and its cores."""
    model = platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{platform.system()} {platform.machine()}, {model or 'unknown processor'}, {os.cpu_count()} cores"


def software() -> str:
    """The versions of Python and torch."""
    try:
        return f"Python {platform.python_version()}, torch {metadata.version('torch')}"
    except metadata.PackageNotFoundError:
        return f"Python {platform.python_version()}"


def load() -> str:
    """How many processes wanted a processor in the last minute; empty where the system does not say."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""


def command(words: Iterable[str]) -> str:
    """A command line without what belongs to one machine: absolute paths become PATH, threads are said.

    >>> command(["benchmarks/bench_core.py", "--data", "/home/me/cifar10", "--only=l1"])
    'python benchmarks/bench_core.py --data PATH --only=l1'
    """
    script, *arguments = words
    shown = []
    for word in arguments:
        option, equals, value = word.rpartition("=")
        shown.append(option + equals + ("PATH" if Path(value).is_absolute() else shlex.quote(value)))
    threads = os.environ.get("OMP_NUM_THREADS")
    start = f"OMP_NUM_THREADS={threads} " if threads else ""
    return " ".join([f"{start}python benchmarks/{Path(script).name}", *shown])


def read(path: Path) -> list[Result]:
    """The rows of one file, oldest first.

    Raises:
        ValueError: The header, or a cell, is not what this file's columns hold; names the line.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    if not rows or rows[0] != COLUMNS:
        raise ValueError(f"{path.name}: expected the header {','.join(COLUMNS)}")
    found = []
    for number, cells in enumerate(rows[1:], 2):
        if len(cells) != len(COLUMNS):
            raise ValueError(f"{path.name}, line {number}: expected {len(COLUMNS)} cells, got {len(cells)}")
        row = dict(zip(COLUMNS, cells))
        if row["better"] not in ("lower", "higher") or row["met"] not in ("", "yes", "no"):
            raise ValueError(
                f"{path.name}, line {number}: better is lower or higher, met is yes, no or empty"
            )
        numbers = {
            "figure": float(row["figure"]),
            "tolerance": float(row["tolerance"]),
            "goal": float(row["goal"]) if row["goal"] else None,
            "met": {"": None, "yes": True, "no": False}[row["met"]],
        }
        found.append(Result(**{**row, **numbers}))  # type: ignore[arg-type]
    return found


def read_all(folder: Path = FOLDER) -> dict[str, list[Result]]:
    """Every file of a folder: the benchmark's name -> its rows, oldest first."""
    return {path.stem: read(path) for path in sorted(folder.glob("*.csv"))}

"""What the benchmarks share: interleaved runs, medians, peak memory in a process of its own, and the table.

Times differ between machines and hours, so both sides run in turn in one process and only their ratio is
judged.
"""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record


@dataclass(frozen=True)
class Row:
    """One line: what, ours, the peer's, what their ratio may be at most, in which unit."""

    what: str
    ours: float
    peer: float
    goal: float
    unit: str = "ms"

    @property
    def ratio(self) -> float:
        """Ours over the peer's: below 1 is better."""
        return self.ours / self.peer

    @property
    def met(self) -> bool:
        """Whether the ratio is within the goal."""
        return self.ratio <= self.goal


def interleaved(
    ours: Callable[[Any], Any],
    peer: Callable[[Any], Any],
    repeats: int = 5,
    fresh: Callable[[], Any] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float]:
    """Median milliseconds of each, run in turn after a warm-up; `fresh` makes the argument, untimed.

    `clock=time.process_time` counts the processor's time over all threads, which busy neighbours move less.
    """
    spent: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for side, work in enumerate((ours, peer)):
            argument = fresh()
            gc.collect()
            start = clock()
            result = work(argument)
            elapsed = clock() - start
            del result, argument
            if turn:
                spent[side].append(elapsed * 1e3)
    return statistics.median(spent[0]), statistics.median(spent[1])


def peak_of(work: Callable[[], Any]) -> float:
    """By how many MiB the most memory ever in use grows while `work` runs in this process (Linux)."""
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # sets the high-water mark back to what is in use now
    before = _status("VmRSS")
    work()
    return max(0.0, (_status("VmHWM") - before) / 1024)


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key + ":"))


def peak_in_child(script: str, name: str) -> float | None:
    """`peak_of` the work a script does when called with `--peak NAME`; None where that cannot be measured."""
    done = subprocess.run(
        [sys.executable, script, "--peak", name], capture_output=True, text=True, check=False
    )
    return float(done.stdout) if done.returncode == 0 and done.stdout.strip() else None


def report(rows: list[Row], title: str) -> int:
    """Print the table and record its ratios; 0 when every goal is met, else 1."""
    print(title)
    width = max(len(row.what) for row in rows)
    print(f"{'':<{width}}  {'ours':>12}  {'peer':>12}  {'ratio':>8}  {'goal':>8}")
    for row in rows:
        verdict = "" if row.met else "  MISSED"
        print(
            f"{row.what:<{width}}  {row.ours:>8.1f} {row.unit:<3}  {row.peer:>8.1f} {row.unit:<3}  "
            f"{row.ratio:>8.3f}  {'<= ' + format(row.goal, '.3g'):>8}{verdict}"
        )
        detail = f"ours {row.ours:.6g} {row.unit}, peer {row.peer:.6g} {row.unit}"
        record(Figure(row.what, row.ratio, "ratio", row.goal, detail=detail))
    return 0 if all(row.met for row in rows) else 1

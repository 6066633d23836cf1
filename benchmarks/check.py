"""What got worse since the last time: `python benchmarks/check.py [FOLDER]`, or `make bench-check`.

Every figure of benchmarks/results/*.csv is compared with the one before it of the same command, name and machine. It is
worse if it moved to the wrong side by more than its own tolerance, or if it met its goal before and misses it now.
Leaves with 1 if any figure is worse, with 4 if there is no figure that was measured twice, else with 0.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from _results import FOLDER, Result, read_all


@dataclass(frozen=True)
class Change:
    """A figure of the newest run and the same figure of the run before."""

    benchmark: str
    before: Result
    now: Result

    @property
    def worse_by(self) -> float:
        """The share of the earlier figure by which the new one is worse; negative where it is better."""
        step = self.now.figure - self.before.figure
        return (step if self.now.better == "lower" else -step) / max(abs(self.before.figure), 1e-12)

    @property
    def worse(self) -> bool:
        """Whether it is worse beyond its tolerance, or lost its goal."""
        return self.worse_by > self.now.tolerance or (self.before.met is True and self.now.met is False)

    def __str__(self) -> str:
        before, now = self.before, self.now
        way = "worse" if self.worse_by > 0 else "better"
        goal = "" if now.met is None else f"; goal {now.goal:g} {'met' if now.met else 'MISSED'}"
        return (
            f"{self.benchmark}: {now.name}: {before.figure:g} ({before.commit}) to {now.figure:g} {now.unit} "
            f"({now.commit}), {abs(self.worse_by):.1%} {way}, tolerance {now.tolerance:.1%}{goal}\n    {now.command}"
        )


def changes(results: dict[str, list[Result]]) -> list[Change]:
    """For every figure that was measured in two runs at least, the two newest.

    Args:
        results: The rows of each benchmark, oldest first.
    """
    found = []
    for benchmark, rows in results.items():
        runs: dict[tuple[str, str, str], dict[str, Result]] = {}
        for row in rows:
            runs.setdefault(row.where, {})[row.date] = row
        for by_date in runs.values():
            if len(by_date) > 1:
                before, now = list(by_date.values())[-2:]
                found.append(Change(benchmark, before, now))
    return found


def main() -> int:
    """Compare, print what is worse, and count the rest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--all", action="store_true", help="print every comparison, not only what is worse")
    asked = parser.parse_args()
    results = read_all(asked.folder)
    found = changes(results)
    worse = [change for change in found if change.worse]
    for change in found if asked.all else worse:
        print(change)
    print(
        f"{len(found)} figures compared with the run before of the same command and machine: {len(worse)} worse "
        f"beyond their tolerance; {sum(map(len, results.values()))} rows of {len(results)} benchmarks"
    )
    if not found:
        print("no figure was measured twice: run a benchmark again", file=sys.stderr)
        return 4
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())

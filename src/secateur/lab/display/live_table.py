"""`LiveTable`: the live display of a sweep: the step of every running trial, how many are done, the best so far.

>>> best_of([("accuracy", 0.5, 1), ("accuracy", 0.9, 4)])
(0.9, 4)
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from secateur.core.terminal import unmarked
from secateur.lab.display.duration import duration
from secateur.lab.display.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console, Group

__all__ = ["LiveTable", "best_of", "short_names"]

_ROWS = 16  # running trials shown; a cluster has more of them than a terminal has lines


def best_of(found: Iterable[tuple[str, float, int]], name: str = "accuracy") -> tuple[float, int] | None:
    """The largest value of that name and its trial; the earliest of equals.

    >>> best_of([("macs", 5.0, 0)]) is None
    True
    """
    values = [(value, -trial) for what, value, trial in found if what == name]
    if not values:
        return None
    value, trial = max(values)
    return value, -trial


def short_names(settings: Sequence[Mapping[str, object]]) -> dict[str, str]:
    """The name of each axis in a row: its last word where that is unique.

    >>> short_names([{"train.lr": 0.1, "retrain.lr": 0.1}, {"prune.budget.sparsity": 0.5}])
    {'train.lr': 'train.lr', 'retrain.lr': 'retrain.lr', 'prune.budget.sparsity': 'sparsity'}
    """
    keys = list(dict.fromkeys(key for chosen in settings for key in chosen))
    last = {key: key.rpartition(".")[2] for key in keys}
    return {key: last[key] if list(last.values()).count(last[key]) == 1 else key for key in keys}


def _age(seconds: float) -> str:
    return duration(seconds) if seconds >= 59.5 else f"{seconds:.0f} s"


def _widths(rows: list[list[str]], width: int) -> list[int]:
    """The width of each column. On a narrow terminal the settings are cut first, then the progress; the step stays.

    >>> _widths([["trial", "x" * 40, "train", "epoch 1/9", "9 s"]], 60)
    [5, 30, 5, 9, 3]
    """
    found = [max(map(len, column)) for column in zip(*rows)]
    for index, least in ((1, 8), (3, 8)):
        over = sum(found) + 2 * (len(found) - 1) - width
        if over > 0:
            found[index] = max(min(least, found[index]), found[index] - over)
    return found


class LiveTable(Progress):
    """A table on standard error, redrawn four times a second: trial, settings, step, progress, time; then totals."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._running: dict[int, tuple[str, str, float]] = {}
        self._settings: Sequence[Mapping[str, object]] = []
        self._names: dict[str, str] = {}
        self._trials = self._steps = self._done_steps = self._finished = self._failed = 0
        self._best: tuple[float, int] | None = None
        self._since = time.monotonic()
        self._console = console or Console(stderr=True)
        # Last, because it calls `draw` at once.
        self._live = Live(
            get_renderable=self.draw,
            console=self._console,
            refresh_per_second=4,
            transient=True,
        )

    def begin(self, trials: int, steps: int, cached: int) -> None:
        """Open the display."""
        self._trials, self._steps, self._done_steps = trials, steps, cached
        self._since = time.monotonic()
        self._live.start()

    def plan(self, settings: Sequence[Mapping[str, object]]) -> None:
        """Remember the settings of the trials."""
        self._settings, self._names = settings, short_names(settings)

    def start(self, trial: int, label: str) -> None:
        """Add a row for the trial."""
        self._running[trial] = (label, "", time.monotonic())

    def epoch(self, trial: int, text: str) -> None:
        """Show how far the training is."""
        if trial in self._running:
            label, _, since = self._running[trial]
            self._running[trial] = (label, text, since)

    def done(self, trial: int, label: str, how: str, seconds: float, line: str) -> None:
        """Remove the row; the next step adds it again."""
        if how == "computed":
            self._done_steps += 1
            self._running.pop(trial, None)

    def found(self, trial: int, numbers: dict[str, float]) -> None:
        """Keep the best accuracy so far."""
        if "accuracy" in numbers:
            best = [("accuracy", numbers["accuracy"], trial)]
            if self._best is not None:
                best.append(("accuracy", *self._best))
            self._best = best_of(best)

    def finished(self, trial: int) -> None:
        """Count a finished trial."""
        self._finished += 1
        self._running.pop(trial, None)

    def failed(self, trial: int, label: str, message: str) -> None:
        """Print a line above the table."""
        self._failed += 1
        self._running.pop(trial, None)
        self._live.console.print(f"[red]failed[/] trial {trial + 1}, {unmarked(label)}: {unmarked(message)}")

    def end(self) -> None:
        """Close the display."""
        self._live.stop()

    def draw(self) -> Group:
        """The table as it is now."""
        from rich.console import Group
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=None, pad_edge=False)
        now = time.monotonic()
        rows = []
        for trial, (label, text, since) in list(self._running.items())[:_ROWS]:
            chosen = self._settings[trial] if trial < len(self._settings) else {}
            shown = ", ".join(
                f"{self._names.get(k, k)}={v if isinstance(v, str) else json.dumps(v)}"
                for k, v in chosen.items()
            )
            rows.append([str(trial + 1), shown, label, text, _age(now - since)])
        if len(self._running) > _ROWS:
            rows.append(["", f"and {len(self._running) - _ROWS} more", "", "", ""])
        if not self._running and self._finished + self._failed < self._trials:
            rows.append(["", "", "starting", "", _age(now - self._since)])
        heads = ["trial", "settings", "step", "progress", "time"]
        for head, width in zip(heads, _widths([heads, *rows], self._console.width)):
            right = head in ("trial", "time")
            table.add_column(head, justify="right" if right else "left", no_wrap=True, width=width)
        for row in rows:
            table.add_row(*map(unmarked, row))
        return Group(table, Text(self._summary()))

    def _summary(self) -> str:
        parts = [f"{self._finished} of {self._trials} trials", f"{self._done_steps} of {self._steps} steps"]
        if self._failed:
            parts.append(f"{self._failed} failed")
        if self._best is not None:
            parts.append(f"best accuracy {self._best[0]:.2%} (trial {self._best[1] + 1})")
        return ", ".join([*parts, _age(time.monotonic() - self._since)])

"""`Table`: the live display of a sweep: what each running trial is at, how many are done, and the best so far.

>>> best_of([("accuracy", 0.5, 1), ("accuracy", 0.9, 4)])
(0.9, 4)
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

from secateur.lab.progress import Progress

__all__ = ["Table", "best_of"]

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


class Table(Progress):
    """A table on standard error, redrawn four times a second: trial, settings, step, progress, time; then totals."""

    def __init__(self, console: Any = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._running: dict[int, list[Any]] = {}
        self._settings: list[dict[str, Any]] = []
        self._trials = self._steps = self._done_steps = self._finished = self._failed = 0
        self._best: tuple[float, int] | None = None
        self._since = time.monotonic()
        # Last: it draws at once.
        self._live = Live(
            get_renderable=self.draw,
            console=console or Console(stderr=True),
            refresh_per_second=4,
            transient=True,
        )

    def begin(self, trials: int, steps: int, cached: int) -> None:
        """Open the display."""
        self._trials, self._steps, self._done_steps = trials, steps, cached
        self._since = time.monotonic()
        self._live.start()

    def plan(self, settings: list[dict[str, Any]]) -> None:
        """Remember what tells the trials apart."""
        self._settings = settings

    def start(self, trial: int, label: str) -> None:
        """A row for it."""
        self._running[trial] = [label, "", time.monotonic()]

    def epoch(self, trial: int, text: str) -> None:
        """How far its training is."""
        if trial in self._running:
            self._running[trial][1] = text

    def done(self, trial: int, label: str, how: str, seconds: float, line: str) -> None:
        """Its row goes; the next step brings it back."""
        if how == "computed":
            self._done_steps += 1
            self._running.pop(trial, None)

    def found(self, trial: int, numbers: dict[str, float]) -> None:
        """Perhaps the best so far."""
        if "accuracy" in numbers:
            best = [("accuracy", numbers["accuracy"], trial)]
            if self._best is not None:
                best.append(("accuracy", *self._best))
            self._best = best_of(best)

    def finished(self, trial: int) -> None:
        """One more is done."""
        self._finished += 1
        self._running.pop(trial, None)

    def failed(self, trial: int, label: str, message: str) -> None:
        """A line above the table, which stays."""
        from rich.markup import escape

        self._failed += 1
        self._running.pop(trial, None)
        self._live.console.print(f"[red]failed[/] trial {trial + 1}, {escape(label)}: {escape(message)}")

    def end(self) -> None:
        """Close the display."""
        self._live.stop()

    def draw(self) -> Any:
        """The table as it stands."""
        from rich.console import Group
        from rich.markup import escape
        from rich.table import Table as Rich
        from rich.text import Text

        table = Rich(box=None, pad_edge=False)
        for head in ("trial", "settings", "step", "progress", "time"):
            table.add_column(head, justify="right" if head in ("trial", "time") else "left", no_wrap=True)
        now = time.monotonic()
        for trial, (label, text, since) in list(self._running.items())[:_ROWS]:
            chosen = self._settings[trial] if trial < len(self._settings) else {}
            told = ", ".join(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in chosen.items())
            table.add_row(str(trial + 1), escape(told), escape(label), escape(text), f"{now - since:.0f} s")
        if len(self._running) > _ROWS:
            table.add_row("", f"and {len(self._running) - _ROWS} more", "", "", "")
        return Group(table, Text(self._summary()))

    def _summary(self) -> str:
        parts = [f"{self._finished} of {self._trials} trials", f"{self._done_steps} of {self._steps} steps"]
        if self._failed:
            parts.append(f"{self._failed} failed")
        if self._best is not None:
            parts.append(f"best accuracy {self._best[0]:.2%} (trial {self._best[1] + 1})")
        return ", ".join([*parts, f"{time.monotonic() - self._since:.0f} s"])

"""`Progress`: how the lab tells what it is doing. Everything goes to standard error; results go to standard
output.

On a terminal a live display shows the steps and, inside a training, epoch, loss, accuracy and the time left.
Elsewhere one plain line is written per finished step.

>>> Progress().done(0, "train", "cached", 0.0, "")
"""

from __future__ import annotations

import math
import sys
from typing import Any

__all__ = ["LineProgress", "LiveProgress", "Progress", "display"]


class Progress:
    """What the engine calls; this one says nothing, the others inherit."""

    def begin(self, trials: int, steps: int, cached: int) -> None:
        """A run of so many trials and distinct steps begins, so many of which are known already."""

    def plan(self, settings: list[dict[str, Any]]) -> None:
        """The settings of every trial, told once after `begin`."""

    def start(self, trial: int, label: str) -> None:
        """A step of a trial starts to be computed."""

    def done(self, trial: int, label: str, how: str, seconds: float, line: str) -> None:
        """A step is done: `computed`, `cached`, or computed by another process (`shared`)."""

    def failed(self, trial: int, label: str, message: str) -> None:
        """A step failed."""

    def epoch(self, trial: int, text: str) -> None:
        """How far the training under way in a trial has come, where another process does it."""

    def found(self, trial: int, numbers: dict[str, float]) -> None:
        """What a step of a trial measured, by name."""

    def stop(self, trial: int, numbers: dict[str, float]) -> str:
        """Asked after every step: why the trial is to be given up, or nothing."""
        return ""

    def finished(self, trial: int) -> None:
        """A trial is done, all of it."""

    def training(self) -> Any:
        """What `secateur.lab.training.loop.train` reports its epochs to, or None."""
        return None

    def end(self) -> None:
        """The run is over."""


class LineProgress(Progress):
    """One line per finished step, for logs."""

    def begin(self, trials: int, steps: int, cached: int) -> None:
        """Remember whether trials need naming."""
        self._many = trials > 1

    def _write(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def _name(self, trial: int, label: str) -> str:
        return f"trial {trial + 1}: {label}" if getattr(self, "_many", False) else label

    def done(self, trial: int, label: str, how: str, seconds: float, line: str) -> None:
        """Say it, unless it cost nothing."""
        if how == "computed":
            self._write(f"{self._name(trial, label):<24} {seconds:7.1f} s  {line}".rstrip())
        elif not getattr(self, "_many", False):
            self._write(f"{self._name(trial, label):<24}  {how:>7}  {line}".rstrip())

    def failed(self, trial: int, label: str, message: str) -> None:
        """Say it."""
        self._write(f"{self._name(trial, label):<24}   failed  {message}")


class _Epochs:
    """Shows one training inside a `LiveProgress` display."""

    def __init__(self, live: LiveProgress):
        self._live = live
        self._task: Any = None
        self._steps = 1
        self._note = ""

    def start(self, epochs: int, steps: int, done: int) -> None:
        self._steps = max(1, steps)
        self._epochs = epochs
        self._task = self._live.bar.add_task(
            "  epochs",
            total=epochs * self._steps,
            completed=done * self._steps,
            note=f"epoch {done + 1}/{epochs}",
        )

    def step(self, epoch: int, step: int, loss: float) -> None:
        note = f"epoch {min(epoch, self._epochs)}/{self._epochs}  loss {loss:.3f}{self._note}"
        if math.isnan(loss):  # no training: a scan shows its values here
            note = f"{step} of {self._steps} values"
        self._live.bar.update(self._task, completed=(epoch - 1) * self._steps + step, note=note)

    def epoch(self, record: Any) -> None:
        accuracy = record.metrics.get("accuracy")
        self._note = f"  accuracy {accuracy:.1%}" if accuracy is not None else ""
        note = f"epoch {record.epoch}/{self._epochs}  loss {record.train_loss:.3f}{self._note}"
        self._live.bar.update(self._task, completed=record.epoch * self._steps, note=note)

    def finish(self) -> None:
        if self._task is not None:
            self._live.bar.remove_task(self._task)


class LiveProgress(Progress):
    """A rich display on a terminal: one bar for the steps, one for the training under way, a line per step
    done."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._console = Console(stderr=True)
        self.bar = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task: Any = None
        self._many = False

    def begin(self, trials: int, steps: int, cached: int) -> None:
        """Open the display."""
        self._many = trials > 1
        self.bar.start()
        self._task = self.bar.add_task("steps", total=steps, completed=cached, note="")

    def _name(self, trial: int, label: str) -> str:
        return f"trial {trial + 1}: {label}" if self._many else label

    def start(self, trial: int, label: str) -> None:
        """Show which step is under way."""
        self.bar.update(self._task, note=self._name(trial, label))

    def done(self, trial: int, label: str, how: str, seconds: float, line: str) -> None:
        """Move on, and leave a line above the bars."""
        from rich.markup import escape

        name = escape(f"{self._name(trial, label):<20}")
        if how == "computed":
            self.bar.advance(self._task)
            self.bar.console.print(f"[green]done[/]   {name} {seconds:6.1f} s  {escape(line)}")
        elif not self._many:
            self.bar.console.print(f"[dim]{how:<6} {name}           {escape(line)}[/]")

    def failed(self, trial: int, label: str, message: str) -> None:
        """Leave a line above the bars."""
        from rich.markup import escape

        name = escape(f"{self._name(trial, label):<20}")
        self.bar.console.print(f"[red]failed[/] {name} {escape(message)}")

    def training(self) -> Any:
        """A bar of epochs."""
        return _Epochs(self)

    def end(self) -> None:
        """Close the display."""
        self.bar.stop()


def display(quiet: bool = False, many: bool = False) -> Progress:
    """The progress that suits where standard error goes; `many` trials at once are shown as a table.

    >>> type(display(quiet=True)).__name__
    'Progress'
    """
    if quiet:
        return Progress()
    if many and sys.stderr.isatty():
        from secateur.lab.display.live_table import LiveTable

        return LiveTable()
    return LiveProgress() if sys.stderr.isatty() else LineProgress()

"""`Progress`: what the engine reports to; and two displays, plain lines and bars on a terminal.

>>> Progress().done(0, "train", "cached", 0.0, "")
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from secateur.core.terminal import say, unmarked

if TYPE_CHECKING:
    from rich.progress import TaskID

    from secateur.lab.training.options import EpochRecord
    from secateur.lab.training.progress import TrainingProgress

__all__ = ["LineProgress", "LiveProgress", "Progress"]


class Progress:
    """What the engine calls. This class shows nothing; displays inherit from it."""

    def begin(self, trials: int, steps: int, cached: int) -> None:
        """A run of `trials` trials and `steps` distinct steps begins; `cached` of the steps are in the store."""

    def plan(self, settings: Sequence[Mapping[str, object]]) -> None:
        """The settings of every trial; called once, after `begin`."""

    def start(self, trial: int, label: str) -> None:
        """A step of a trial starts to be computed."""

    def done(self, trial: int, label: str, how: str, seconds: float, line: str) -> None:
        """A step is done: `computed`, `cached`, or computed by another process (`shared`)."""

    def failed(self, trial: int, label: str, message: str) -> None:
        """A step failed."""

    def epoch(self, trial: int, text: str) -> None:
        """The progress of a training in another process."""

    def found(self, trial: int, numbers: dict[str, float]) -> None:
        """What a step of a trial measured, by name."""

    def stop(self, trial: int, numbers: dict[str, float]) -> str:
        """Asked after every step: why the trial is to be stopped, or an empty text."""
        return ""

    def finished(self, trial: int) -> None:
        """All steps of a trial are done."""

    def training(self) -> TrainingProgress | None:
        """What a training in this process reports its epochs to, or None."""
        return None

    def end(self) -> None:
        """The run is over."""


class LineProgress(Progress):
    """One line for every finished step, for logs."""

    _many = False

    def begin(self, trials: int, steps: int, cached: int) -> None:
        """Remember whether lines must name their trial."""
        self._many = trials > 1

    def _write(self, text: str) -> None:
        say(text, error=True, flush=True)

    def _name(self, trial: int, label: str) -> str:
        return f"trial {trial + 1}: {label}" if self._many else label

    def done(self, trial: int, label: str, how: str, seconds: float, line: str) -> None:
        """Print a line; of several trials, only for steps that were computed."""
        if how == "computed":
            self._write(f"{self._name(trial, label):<24} {seconds:7.1f} s  {line}".rstrip())
        elif not self._many:
            self._write(f"{self._name(trial, label):<24}  {how:>7}  {line}".rstrip())

    def failed(self, trial: int, label: str, message: str) -> None:
        """Print a line with the message."""
        self._write(f"{self._name(trial, label):<24}   failed  {message}")


class _Epochs:
    """Shows one training inside a `LiveProgress` display."""

    def __init__(self, live: LiveProgress):
        self._live = live
        self._task: TaskID | None = None
        self._steps = 1
        self._epochs = 1
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

    def _show(self, completed: int, note: str) -> None:
        if self._task is not None:
            self._live.bar.update(self._task, completed=completed, note=note)

    def step(self, epoch: int, step: int, loss: float) -> None:
        note = f"epoch {min(epoch, self._epochs)}/{self._epochs}  loss {loss:.3f}{self._note}"
        if math.isnan(loss):  # no training: a scan shows its values here
            note = f"{step} of {self._steps} values"
        self._show((epoch - 1) * self._steps + step, note)

    def epoch(self, record: EpochRecord) -> None:
        accuracy = record.metrics.get("accuracy")
        self._note = f"  accuracy {accuracy:.1%}" if accuracy is not None else ""
        note = f"epoch {record.epoch}/{self._epochs}  loss {record.train_loss:.3f}{self._note}"
        self._show(record.epoch * self._steps, note)

    def finish(self) -> None:
        if self._task is not None:
            self._live.bar.remove_task(self._task)


class LiveProgress(Progress):
    """A rich display on a terminal: a bar of steps, a bar of the current training, a line for every step done."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: TaskID | None = None
        self._many = False

    def begin(self, trials: int, steps: int, cached: int) -> None:
        """Open the display."""
        self._many = trials > 1
        self.bar.start()
        self._task = self.bar.add_task("steps", total=steps, completed=cached, note="")

    def _name(self, trial: int, label: str) -> str:
        return f"trial {trial + 1}: {label}" if self._many else label

    def start(self, trial: int, label: str) -> None:
        """Show which step is being computed."""
        if self._task is not None:
            self.bar.update(self._task, note=unmarked(self._name(trial, label)))

    def done(self, trial: int, label: str, how: str, seconds: float, line: str) -> None:
        """Move the bar, and print a line above it."""
        name = unmarked(f"{self._name(trial, label):<20}")
        if how == "computed":
            if self._task is not None:
                self.bar.advance(self._task)
            self.bar.console.print(f"[green]done[/]   {name} {seconds:6.1f} s  {unmarked(line)}")
        elif not self._many:
            self.bar.console.print(f"[dim]{how:<6} {name}           {unmarked(line)}[/]")

    def failed(self, trial: int, label: str, message: str) -> None:
        """Print a line above the bars."""
        name = unmarked(f"{self._name(trial, label):<20}")
        self.bar.console.print(f"[red]failed[/] {name} {unmarked(message)}")

    def training(self) -> TrainingProgress:
        """A bar of epochs."""
        return _Epochs(self)

    def end(self) -> None:
        """Close the display."""
        self.bar.stop()

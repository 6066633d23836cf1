"""How a training is watched: the `TrainingProgress` protocol, and bars on a terminal.

>>> watcher("auto") is None  # standard error is no terminal here
True
"""

from __future__ import annotations

import sys
from typing import Any, Protocol

from secateur.errors import OptionError
from secateur.lab.training.options import EpochRecord

__all__ = ["Bars", "TrainingProgress", "watcher"]


class TrainingProgress(Protocol):
    """What a front end implements to watch a training; its methods are called on the main process only."""

    def start(self, epochs: int, steps: int, done: int) -> None:
        """Training begins: so many epochs of so many steps, `done` of the epochs already done."""

    def step(self, epoch: int, step: int, loss: float) -> None:
        """A step is done (told a few times a second at most); `loss` is the epoch's mean so far."""

    def epoch(self, record: EpochRecord) -> None:
        """An epoch is done and, where there is a checkpoint, written."""

    def finish(self) -> None:
        """Training is over, also after an error."""


class Bars:
    """A rich bar on standard error: epoch, loss, accuracy, time left; and a line for every epoch done."""

    def __init__(self, console: Any = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Rich

        self._rich = Rich(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.4f}{task.fields[accuracy]}"),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
            transient=True,
        )
        self._task: Any = None
        self._steps = 1
        self._epochs = 1

    def start(self, epochs: int, steps: int, done: int) -> None:
        """Show the bar."""
        self._steps, self._epochs = steps, epochs
        self._rich.start()
        self._task = self._rich.add_task(
            "",
            total=epochs * steps,
            completed=done * steps,
            epoch=done + 1,
            epochs=epochs,
            loss=0.0,
            accuracy="",
        )

    def step(self, epoch: int, step: int, loss: float) -> None:
        """Move it."""
        self._rich.update(self._task, completed=(epoch - 1) * self._steps + step, epoch=epoch, loss=loss)

    def epoch(self, record: EpochRecord) -> None:
        """Leave a line above it."""
        shown = record.metrics.get("accuracy", record.train_accuracy)
        accuracy = "" if shown is None else f", accuracy {shown:.2%}"
        self._rich.update(self._task, completed=record.epoch * self._steps, accuracy=accuracy)
        metrics = "".join(f"  {name} {value:.4f}" for name, value in record.metrics.items())
        line = f"epoch {record.epoch:>3}/{self._epochs}  train loss {record.train_loss:.4f}{metrics}"
        self._rich.console.print(f"{line}  {record.seconds:.1f} s", highlight=False)

    def finish(self) -> None:
        """Take it away."""
        self._rich.stop()


def watcher(progress: TrainingProgress | str | None) -> TrainingProgress | None:
    """What was meant by `progress`: `auto` shows bars where standard error is a terminal, and nothing
    elsewhere."""
    if progress == "auto":
        return Bars() if sys.stderr.isatty() else None
    if isinstance(progress, str):
        raise OptionError(
            f"progress: expected 'auto', None or an object with start, step, epoch, finish; got {progress!r}"
        )
    return progress

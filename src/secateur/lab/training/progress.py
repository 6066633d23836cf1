"""`TrainingProgress`: what a display of a training implements; and `Bars`, one for terminals and notebooks.

>>> watcher("auto") is None  # here standard error is no terminal
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from secateur.core.terminal import shows_bars
from secateur.errors import OptionError
from secateur.lab.training.options import EpochRecord

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

__all__ = ["Bars", "TrainingProgress", "watcher"]


class TrainingProgress(Protocol):
    """What a display implements; its methods are called in the main process only."""

    def start(self, epochs: int, steps: int, done: int) -> None:
        """Training begins: `epochs` epochs of `steps` optimizer steps; `done` epochs were done before."""

    def step(self, epoch: int, step: int, loss: float) -> None:
        """Called after a step, at most a few times a second; `loss` is the mean of the epoch so far."""

    def epoch(self, record: EpochRecord) -> None:
        """An epoch is done, and in the checkpoint where there is one."""

    def finish(self) -> None:
        """Training is over; also called after an error."""


class Bars:
    """A rich bar on standard error: epoch, loss, accuracy, time left; and a line for every epoch done."""

    def __init__(self, console: Console | None = None) -> None:
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
        self._task: TaskID | None = None
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
        """Move the bar."""
        assert self._task is not None
        self._rich.update(self._task, completed=(epoch - 1) * self._steps + step, epoch=epoch, loss=loss)

    def epoch(self, record: EpochRecord) -> None:
        """Print a line above the bar."""
        shown = record.metrics.get("accuracy", record.train_accuracy)
        accuracy = "" if shown is None else f", accuracy {shown:.2%}"
        assert self._task is not None
        self._rich.update(self._task, completed=record.epoch * self._steps, accuracy=accuracy)
        metrics = "".join(f"  {name} {value:.4f}" for name, value in record.metrics.items())
        line = f"epoch {record.epoch:>3}/{self._epochs}  train loss {record.train_loss:.4f}{metrics}"
        self._rich.console.print(f"{line}  {record.seconds:.1f} s", highlight=False)

    def finish(self) -> None:
        """Remove the bar."""
        self._rich.stop()


def watcher(progress: TrainingProgress | str | None) -> TrainingProgress | None:
    """The display meant by `progress`: `auto` is bars on a terminal or in a notebook, else nothing."""
    if progress == "auto":
        return Bars() if shows_bars() else None
    if isinstance(progress, str):
        raise OptionError(
            f"progress: expected 'auto', None or an object with start, step, epoch, finish; got {progress!r}"
        )
    return progress

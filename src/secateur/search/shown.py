"""`shown`: the steps of a search without a recipe, on the display that runs of recipes use.

>>> class Lines(Progress):
...     def done(self, trial, label, how, seconds, line):
...         print(label, line)
>>> with shown(Lines(), 2) as steps, steps.step("attempt 1", "half of the weights") as step:
...     step.line = "kept"
attempt 1 kept
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from secateur.lab.display import Progress, progress_display

__all__ = ["StepDone", "Steps", "shown"]


@dataclass
class StepDone:
    """A step that is being made.

    Attributes:
        line: The result in a phrase, for the display.
    """

    line: str = ""


@dataclass
class Steps:
    """The steps of one search.

    Args:
        progress: The display; by default one that shows nothing.
    """

    progress: Progress = field(default_factory=Progress)

    def note(self, text: str) -> None:
        """Show what is being done now.

        Args:
            text: In a few words.
        """
        self.progress.start(0, text)

    @contextmanager
    def step(self, label: str, what: str = "") -> Iterator[StepDone]:
        """Show one step.

        Args:
            label: Its name.
            what: What is done in it, in a few words.
        """
        self.note(f"{label}: {what}" if what else label)
        begun, step = time.perf_counter(), StepDone()
        yield step
        self.progress.done(0, label, "computed", time.perf_counter() - begun, step.line)


@contextmanager
def shown(progress: Progress | bool, most: int) -> Iterator[Steps]:
    """Open a display for a search, and close it again whatever comes of the search.

    Args:
        progress: The display, or whether there is one.
        most: The most steps that there may be.
    """
    display = progress if isinstance(progress, Progress) else progress_display(quiet=not progress)
    display.begin(1, most, 0)
    try:
        yield Steps(display)
    finally:
        display.end()

"""The display: what a run shows while it works, on standard error; results go to standard output.

The engine calls the methods of a `Progress`; each display here inherits from it. `progress_display` chooses: bars for
one trial and a table for several on a terminal or in a notebook, plain lines elsewhere, nothing if `quiet` is set.
`preview` says before a run what it will compute and how long that will take.

The files in reading order: `progress` (the base class, lines, bars), `live_table` (many trials), `preview`, `duration`.

>>> type(progress_display(quiet=True)).__name__
'Progress'
"""

from __future__ import annotations

from secateur.core.terminal import shows_bars
from secateur.lab.display.duration import duration
from secateur.lab.display.progress import LineProgress, LiveProgress, Progress

__all__ = ["LineProgress", "LiveProgress", "Progress", "duration", "progress_display"]


def progress_display(quiet: bool = False, many: bool = False) -> Progress:
    """The display that suits standard error.

    Args:
        quiet: Show nothing.
        many: Several trials run at once; on a terminal they are shown as a table.

    Returns:
        A display that is not open yet.
    """
    if quiet:
        return Progress()
    if many and shows_bars():
        from secateur.lab.display.live_table import LiveTable

        return LiveTable()
    return LiveProgress() if shows_bars() else LineProgress()

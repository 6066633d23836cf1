"""How results are printed: tables on standard output, as wide as the terminal, or at their full width in a file.

>>> show_table(["name", "value"], [["macs", "651,200"]])
name  value
macs  651,200
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from secateur.core.json_text import finite
from secateur.core.terminal import printable, say, shows_bars, unmarked

__all__ = ["print_json", "progress_bar", "show_table", "written"]

OnProgress = Callable[[int, int, str], None]


def print_json(value: Mapping[str, object]) -> None:
    """Print one object of plain data as strict JSON, NaN as null; what is not printable is written as JSON writes its
    code.

    A list has a name in it (`measurements`, `runs`), so that more can stand beside it later; a file that was written is
    `file` with `file_bytes`, a folder `folder` with `folder_bytes`; `trial` counts from 0, and `trial_number` from 1.
    """
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    say("".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text))


def written(path: Path, size: int) -> dict[str, object]:
    """A file or a folder that was written, by its words, for `print_json`.

    >>> written(Path("small.sct"), 12)
    {'file': 'small.sct', 'file_bytes': 12}
    >>> list(written(Path.cwd(), 12))
    ['folder', 'folder_bytes']
    """
    kind = "folder" if path.is_dir() else "file"
    return {kind: str(path), f"{kind}_bytes": size}


def show_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], title: str = "", right: Iterable[int] = ()
) -> None:
    """Print a table: ruled on a terminal, plain columns elsewhere. `right` names the columns set to the
    right."""
    found = [[printable(str(cell), keep="\n") for cell in row] for row in rows]  # names may come from files
    at_right, head, title = set(right), [printable(name) for name in head], printable(title)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(title) if title else None, title_justify="left", header_style="bold")
        for index, name in enumerate(head):
            table.add_column(Text(name), justify="right" if index in at_right else "left", overflow="fold")
        for row in found:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)
        return
    if title:
        say(title)
    widths = [max(len(line[index]) for line in [list(head), *found]) for index in range(len(head))]
    for row in [list(head), *found]:
        cells = [f"{c:>{w}}" if i in at_right else f"{c:<{w}}" for i, (c, w) in enumerate(zip(row, widths))]
        say("  ".join(cells).rstrip())


@contextlib.contextmanager
def progress_bar(quiet: bool, *, counts: bool = False) -> Iterator[OnProgress | None]:
    """A progress bar on standard error, if that is a terminal; returns the function that a verb calls with
    (done, total, name).

    Args:
        quiet: Show none.
        counts: Count items instead of bytes.
    """
    if quiet or not shows_bars():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    amount = MofNCompleteColumn() if counts else DownloadColumn()
    columns = (TextColumn("{task.fields[name]}"), BarColumn(), amount, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", name="", total=None)
        yield lambda done, total, name: bars.update(task, completed=done, total=total, name=unmarked(name))

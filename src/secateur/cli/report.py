"""The verb `report`: runs of a store, as one page that works offline, with its figures and tables as files."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.flags import with_flags
from secateur.cli.options import STORE, AllowCode, OutputFlags, StoreFolder
from secateur.cli.output import print_json
from secateur.core.terminal import say

__all__ = ["VERBS"]


@with_flags
def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Runs to show side by side: numbers of the store, `last`, or folders of other stores, as FOLDER or "
            "FOLDER:NUMBER. Default: last.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder to write the report to.")] = Path("report"),
    title: Annotated[
        str | None, typer.Option("--title", help="The page's title; default: the runs'.")
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Also draw the stored weights and models.")
    ] = True,
    show: Annotated[
        bool, typer.Option("--open", help="Open the page in the browser when it is written.")
    ] = False,
    allow_code: AllowCode = False,
    store: StoreFolder = STORE,
    *,
    output: OutputFlags,
) -> None:
    """Write one self-contained page about a run, or about several side by side."""
    from secateur.lab.reporting import gather
    from secateur.lab.store import Store
    from secateur.report import Report

    found = []
    for word in runs or ["last"]:
        folder, which = _place(word, store)
        found.append(gather(Store(folder, create=False), which, pictures=pictures, allow_code=allow_code))
    made = Report(found, title)
    written = made.write(out)
    page = written[0]
    if show:
        webbrowser.open(page.resolve().as_uri())
    if output.json:
        print_json(
            {"file": str(page), "file_bytes": page.stat().st_size, "files": [str(path) for path in written]}
        )
        return
    say(made.headline)
    say(
        f"{page}: {page.stat().st_size:,} bytes, {len(made.figures)} figures; {len(written) - 1} files beside it"
    )


def _place(word: str, store: Path) -> tuple[Path, str]:
    """The store and the run that a word on the command line names.

    >>> _place("3", Path("runs"))
    (PosixPath('runs'), '3')
    >>> _place("old:2", Path("runs"))
    (PosixPath('old'), '2')
    """
    if word.isdigit() or word == "last":
        return store, word
    folder, colon, number = word.rpartition(":")
    if colon and (number.isdigit() or number == "last"):
        return Path(folder), number
    return Path(word), "last"


VERBS = (report,)

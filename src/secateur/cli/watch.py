"""The verb `watch`: the report of a running run, followed in the browser."""

from __future__ import annotations

import contextlib
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.flags import with_flags
from secateur.cli.options import STORE, OutputFlags
from secateur.cli.output import print_json
from secateur.core.terminal import say

__all__ = ["VERBS"]


@with_flags
def watch(
    store: Annotated[
        Path, typer.Argument(help="The store to follow.", envvar="SECATEUR_STORE", show_default="runs")
    ] = STORE,
    run: Annotated[str, typer.Option("--run", help="A run's number, or `last`.")] = "last",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="The port on 127.0.0.1; 0: any that is free.")
    ] = 0,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    *,
    output: OutputFlags,
) -> None:
    """Follow a run or a sweep in the browser: its report, made again while it is computed. Ctrl-C ends it."""
    from secateur.lab.watching import Watch

    watched = Watch(store, run, port)
    with contextlib.suppress(KeyboardInterrupt):
        if output.json:
            print_json({"url": watched.url})
        else:
            say(f"{watched.url} follows {store}; Ctrl-C ends it", flush=True)
        if show:
            webbrowser.open(watched.url)
        watched.serve()


VERBS = (watch,)

"""The application: all verbs, collected from the other files of this folder.

>>> app.info.name
'secateur'
"""

from __future__ import annotations

from typing import Annotated

import typer

from secateur.cli import (
    auto,
    blocks,
    checkpoints,
    compare,
    compress,
    export,
    factorise,
    files,
    measure,
    report,
    run,
    runs,
    scan,
    search,
    serve_check,
    shrink,
    smallest,
    study,
    watch,
    words,
)
from secateur.cli.sections import Sections
from secateur.core.terminal import say

__all__ = ["app"]

app = typer.Typer(
    name="secateur",
    cls=Sections,
    help="Prune, retrain, share, code and measure any PyTorch model, with the proof beside it.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 budget not met, 4 nothing to do, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        import secateur

        say(f"secateur {secateur.__version__}")
        raise typer.Exit()


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Prune, retrain, share, code and measure any PyTorch model, with the proof beside it."""


for module in (
    run,
    runs,
    compare,
    study,
    search,
    auto,
    smallest,
    export,
    serve_check,
    measure,
    shrink,
    compress,
    factorise,
    scan,
    report,
    watch,
    files,
    checkpoints,
    blocks,
    words,
):
    for verb in module.VERBS:
        app.command(name=verb.__name__.rstrip("_").replace("_", "-"))(verb)

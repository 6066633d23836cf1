"""`serve-check`: load an artefact by its runtime alone, and compare it with its promise.

>>> VERBS[0].__name__
'serve_check'
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.flags import with_flags
from secateur.cli.options import OutputFlags
from secateur.cli.output import print_json
from secateur.core.terminal import say

__all__ = ["VERBS"]


@with_flags
def serve_check(
    path: Annotated[
        Path, typer.Argument(help="A Hugging Face folder, or an .onnx file.", show_default=False)
    ],
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run the modelling file that the folder brings.")
    ] = False,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed calls.")] = 5,
    slowest: Annotated[
        float | None,
        typer.Option("--slowest", help="Fail if a call takes more than this many times the promised time."),
    ] = None,
    *,
    output: OutputFlags,
) -> None:
    """Load an artefact in a process that has its runtime and not secateur; compare outputs, bytes and time with its
    promise.
    """
    from secateur.adapters.promises import serve_check as check

    found = check(path, allow_code=allow_code, repeats=repeats, slowest=slowest)
    if output.json:
        plain = asdict(found)
        print_json({"file": str(plain.pop("path")), **plain, "holds": found.holds})
    else:
        say(found)
    if not found.holds:
        raise typer.Exit(1)


VERBS = (serve_check,)

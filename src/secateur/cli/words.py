"""Verbs that print the available names: `list`, `schema`.

>>> "magnitude" in dict(_described("criteria"))
True
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.flags import with_flags
from secateur.cli.options import Debug, OutputFlags
from secateur.cli.output import print_json, show_table
from secateur.core.terminal import say
from secateur.errors import UnknownNameError, near

__all__ = ["VERBS"]

_FOLDERS = {
    "criteria": "secateur.criteria",
    "granularities": "secateur.granularity",
    "budgets": "secateur.budget",
    "models": "secateur.models",
    "data": "secateur.data",
    "measures": "secateur.metrics",
    "sharing": "secateur.quantize",
    "sparsify": "secateur.sparsify",
    "allocation": "secateur.allocation",
    "steps": "secateur.lab.steps",
    "charts": "secateur.report.charts",
    "sinks": "secateur.report.sinks",
    "studies": "secateur.studies",
}
_TESTING_TIME = (
    "testing_time",
    "Seconds to evaluate a whole split; in a recipe's step `measure` alone.",
)


def _described(what: str) -> list[tuple[str, str]]:
    """(word, first sentence) of every plug-in of a kind."""
    if what == "studies":  # recipes, not modules
        return importlib.import_module(_FOLDERS[what]).described()
    folder = Path(importlib.import_module("secateur").__file__ or "").parent
    found = described(folder.joinpath(*_FOLDERS[what].split(".")[1:]))
    return [*found, _TESTING_TIME] if what == "measures" else found


def described(folder: Path) -> list[tuple[str, str]]:
    """(word, first sentence of its file, else of its class) of every plug-in of a folder, read without running it.

    Args:
        folder: The folder.
    """
    found = []
    for path in sorted(folder.glob("*.py")):
        if not path.stem.startswith("_"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            own = next((node for node in tree.body if isinstance(node, ast.ClassDef)), None)
            text = ast.get_docstring(tree) or (ast.get_docstring(own) if own is not None else "") or ""
            found.append((path.stem, " ".join(text.split("\n\n")[0].split())))
    return found


@with_flags
def list_(
    what: Annotated[str | None, typer.Argument(help=f"One of {', '.join(_FOLDERS)}; default: all.")] = None,
    *,
    output: OutputFlags,
) -> None:
    """List the available names: criteria, granularities, budgets, models, data, measures, methods of weight sharing,
    sparse training and allocation, steps, charts, sinks, studies."""
    if what is not None and what not in _FOLDERS:
        raise UnknownNameError(f"nothing to list under {what!r}: {near(what, _FOLDERS)}")
    found = {name: _described(name) for name in ([what] if what else _FOLDERS)}
    if output.json:
        print_json(
            {name: [{"name": word, "about": about} for word, about in rows] for name, rows in found.items()}
        )
        return
    show_table(["kind", "name", "about"], [[kind, *row] for kind, rows in found.items() for row in rows])


def schema(
    out: Annotated[
        Path | None, typer.Option("--out", help="File, or folder for recipe.schema.json, to write it to.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Print the JSON Schema of recipes, for editors."""
    from secateur.lab.recipe import schema as recipe_schema

    if out is None:
        print_json(recipe_schema())
        return
    import json

    from secateur.lab.objects import atomic_write

    path = out / "recipe.schema.json" if out.is_dir() else out
    atomic_write(path, json.dumps(recipe_schema(), indent=2).encode())
    say(path)


VERBS = (list_, schema)

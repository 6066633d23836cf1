"""Executes the notebooks in docs/notebooks and writes their outputs into them: `python docs/site/notebooks.py`.

Jupyter is not needed: a cell is Python; its output is what it prints, and what its last expression gives, as HTML or as
a chart (Vega-Lite) where the value can show itself so. Cells of one notebook run in one namespace, in a folder that is
deleted afterwards.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["FOLDER", "executed"]

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def executed(notebook: dict[str, Any]) -> dict[str, Any]:
    """The same notebook with the outputs of every cell of code.

    Args:
        notebook: A notebook of format 4, as JSON.
    """
    names: dict[str, Any] = {"__name__": "notebook"}
    number = 0
    cells = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                number += 1
                outputs = _run("".join(cell["source"]), names, number)
                cell = {**cell, "execution_count": number, "outputs": outputs}
            cells.append(cell)
    return {**notebook, "cells": cells}


def _run(source: str, names: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """The outputs of one cell."""
    body = ast.parse(source).body
    last = ast.Expression(body.pop().value) if body and isinstance(body[-1], ast.Expr) else None
    printed = io.StringIO()
    value = None
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), f"cell {number}", "exec"), names)
        if last is not None:
            value = eval(compile(last, f"cell {number}", "eval"), names)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        text = printed.getvalue().splitlines(keepends=True)
        outputs.append({"output_type": "stream", "name": "stdout", "text": text})
    if value is not None:
        data = {
            "output_type": "execute_result",
            "execution_count": number,
            "metadata": {},
            "data": _shown(value),
        }
        outputs.append(data)
    return outputs


def _shown(value: object) -> dict[str, Any]:
    """A value in the forms that a notebook shows."""
    if type(value).__module__.startswith("altair"):
        return {"application/vnd.vegalite.v6+json": value.to_dict(), "text/plain": ["a chart"]}
    shown: dict[str, Any] = {"text/plain": str(value).splitlines(keepends=True)}
    draw = getattr(value, "_repr_html_", None)
    if callable(draw):
        shown["text/html"] = draw().splitlines(keepends=True)
    return shown


def main() -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for path in sorted(FOLDER.glob("*.ipynb")):
        done = executed(json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path.name, f"{path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Executes the notebooks in docs/notebooks and writes their outputs into them: `python docs/site/notebooks.py`.

Jupyter is not needed: a cell is Python; its output is what it prints, and what its last expression gives, as HTML or as
a chart (Vega-Lite, and a picture for readers that run no scripts) where the value can show itself so. Cells of one
notebook run in one namespace, in a folder that is deleted afterwards.

The site shows each notebook as a page, with the outputs stored in it, so that it can be read without Python:

>>> cell = {"cell_type": "code", "source": ["1 + 1"], "outputs": [{"data": {"text/plain": ["2"]}}]}
>>> print(page({"cells": [cell]}, "sum")[0].split("to run it.")[1].strip())
```python
1 + 1
```
<BLANKLINE>
```text
2
```
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["FOLDER", "executed", "page"]

VEGA = "application/vnd.vegalite.v6+json"
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
        chart = value.to_dict()  # type: ignore[attr-defined]
        return {
            VEGA: chart,
            "image/png": base64.b64encode(_picture(chart, "light", "png")).decode(),
            "text/plain": ["a chart"],
        }
    shown: dict[str, Any] = {"text/plain": str(value).splitlines(keepends=True)}
    draw = getattr(value, "_repr_html_", None)
    if callable(draw):
        shown["text/html"] = draw().splitlines(keepends=True)
    return shown


def _picture(chart: dict[str, Any], theme: str, kind: str) -> bytes:
    """A chart drawn without a browser, as "svg" or "png"."""
    import vl_convert

    from secateur.report.theme import THEMES, vega_config

    config = {
        **vega_config(theme),
        "background": THEMES[theme]["page"],
        "padding": 12,
        "font": "DejaVu Sans, sans-serif",
    }
    bare = {key: value for key, value in chart.items() if key != "config"}
    svg: str = vl_convert.vegalite_to_svg(bare, config=config)
    if kind == "svg":
        return svg.encode()
    from PIL import Image

    small = io.BytesIO()
    drawn = Image.open(io.BytesIO(vl_convert.svg_to_png(svg, scale=1.25))).convert("RGB")
    drawn.quantize(32, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()


def page(notebook: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as a page of the site, with the outputs that it holds.

    Args:
        notebook: An executed notebook of format 4, as JSON.
        name: Its name, without the ending.

    Returns:
        The page as Markdown, and its charts, in both themes: the name of the file and its content.
    """
    lines: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        lines += [source, ""] if cell["cell_type"] == "markdown" else ["```python", source, "```", ""]
        if cell is notebook["cells"][0]:
            lines += [
                f"What each cell gave stands below it; [download the notebook]({name}.ipynb) to run it.",
                "",
            ]
            lines = lines if cell["cell_type"] == "markdown" else lines[-2:] + lines[:-2]
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text", [])})
            if VEGA in data:
                stem = f"{name}-{len(pictures) // 2 + 1}"
                for theme in ("light", "dark"):
                    pictures[f"{stem}-{theme}.svg"] = _picture(data[VEGA], theme, "svg")
                    words = f"Chart {len(pictures) // 2 + len(pictures) % 2} of the notebook"
                    lines += [f"![{words}]({stem}-{theme}.svg#only-{theme})"]
                lines += [""]
            elif "text/html" in data:
                lines += [f"<div>{''.join(data['text/html'])}</div>", ""]
            else:
                lines += ["```text", "".join(data["text/plain"]).rstrip("\n"), "```", ""]
    return "\n".join(lines), pictures


def main() -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for path in sorted(FOLDER.glob("*.ipynb")):
        done = executed(json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path.name, f"{path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())

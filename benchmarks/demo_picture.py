"""The picture of README.md and of the start page: `python benchmarks/demo_picture.py STORE`, of the demo's store.

Accuracy against bytes of the demo's last run, as its report draws it, but small enough for a phone: its letters are
legible where the picture is 350 pixels wide. Writes docs/images/demo.svg, and demo-dark.svg for the dark theme.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import vl_convert

from secateur.lab.store import Store
from secateur.report.charts.pareto import pareto
from secateur.report.theme import THEMES, vega_config

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
WIDTH, HEIGHT, LETTERS = 400, 230, 13


def picture(store: Path, theme: str) -> str:
    """The picture as SVG, in the colours of a theme."""
    kept = Store(store)
    figure = next(one for one in pareto(kept.measurements(kept.run("last").id)) if one.name == "pareto-bytes")
    spec = figure.spec(WIDTH)
    spec["height"] = HEIGHT
    config = {**vega_config(theme), "background": THEMES[theme]["page"], "padding": 8}
    for part in ("axis", "legend"):
        sizes = {"labelFontSize": LETTERS, "titleFontSize": LETTERS}
        config[part] = {**config.get(part, {}), **sizes}
    config["font"] = "DejaVu Sans, sans-serif"
    return str(vl_convert.vegalite_to_svg(spec, config=config))


def main() -> None:
    """Write both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    given = parser.parse_args()
    for name, theme in (("demo.svg", "light"), ("demo-dark.svg", "dark")):
        (IMAGES / name).write_text(picture(given.store, theme), encoding="utf-8")


if __name__ == "__main__":
    main()

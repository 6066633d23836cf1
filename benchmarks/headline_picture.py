"""The LeNets' files beside the published records: `python benchmarks/headline_picture.py > docs/images/headline.svg`.

Error on the MNIST test images against bytes (logarithmic). Ours are read from `tests/golden/headline/index.toml`; the
records are their authors' own figures (docs/headline.md says what they leave uncounted).
"""

from __future__ import annotations

import math
import sys
from typing import Any

import headline

# network, who, bytes, error in percent, and where its name stands: on which side of the mark, how much lower
RECORDS = (
    ("lenet5", "MIRACLE", 3030, 0.69, "start", 4),
    ("lenet5", "MIRACLE", 1520, 0.96, "end", 4),
    ("lenet5", "Oktay et al.", 2840, 1.0, "start", 4),
    ("lenet5", "Bayesian compression", 1_724_320 / 771, 1.0, "end", -8),
    ("lenet-300-100", "Oktay et al.", 8560, 1.9, "start", 4),
)
WIDTH, HEIGHT, LEFT, BOTTOM = 720, 400, 60, 350
LEAST, MOST, HIGHEST = 1000, 16000, 2.2
COLOURS = {"lenet5": "#1f77b4", "lenet-300-100": "#d2691e"}


def across(size: float) -> float:
    """Where so many bytes lie."""
    return LEFT + (WIDTH - LEFT - 30) * math.log(size / LEAST) / math.log(MOST / LEAST)


def up(error: float) -> float:
    """Where an error in percent lies."""
    return BOTTOM - (BOTTOM - 30) * error / HIGHEST


def text(x: float, y: float, words: str, anchor: str = "start", colour: str = "#555") -> str:
    """One line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>'


def picture(entries: dict[str, dict[str, Any]]) -> str:
    """The whole picture as SVG."""
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-size="12" '
        'font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for size in (1000, 2000, 4000, 8000, 16000):
        x = across(size)
        out += [
            f'<path d="M{x:.1f} 30V{BOTTOM}" stroke="#ddd"/>',
            text(x, BOTTOM + 18, f"{size:,}", "middle"),
        ]
    for error in (0, 0.5, 1.0, 1.5, 2.0):
        y = up(error)
        out += [
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - 30}" stroke="#ddd"/>',
            text(LEFT - 8, y + 4, f"{error} %", "end"),
        ]
    for network, who, size, error, side, lower in RECORDS:
        x, y, colour = across(size), up(error), COLOURS[network]
        out += [
            f'<path d="M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10" stroke="{colour}" stroke-width="2"/>',
            text(x + (10 if side == "start" else -10), y + lower, who, side),
        ]
    placed: list[tuple[float, float]] = []
    for entry in entries.values():
        if entry["model"] in COLOURS:
            x, y = across(entry["bytes"]), up(100 * (1 - entry["accuracy"]))
            crowded = any(abs(x - left) < 80 and abs(y - top) < 30 for left, top in placed)
            placed.append((x, y))
            colour = COLOURS[entry["model"]]
            out += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>',
                text(x, y + 20 if crowded else y - 10, f"{entry['bytes']:,} bytes", "middle", colour),
            ]
    out += [
        text(
            LEFT, 18, "LeNet-5: error on the MNIST test images, bytes of the file", colour=COLOURS["lenet5"]
        ),
        text(WIDTH - 30, 18, "LeNet-300-100", "end", COLOURS["lenet-300-100"]),
        text(
            LEFT, HEIGHT - 12, "dots: files in this repository; crosses: published, by their authors' count"
        ),
    ]
    return "\n".join([*out, "</svg>", ""])


if __name__ == "__main__":
    sys.stdout.write(picture(headline.entries()))

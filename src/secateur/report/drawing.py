"""A network as SVG, drawn with nothing but text: one row a block, one box a layer, wrapped to fit.

>>> block_of("layer1.0.downsample.0"), block_of("features.3"), block_of("conv1")
('layer1.0', 'features', '')
>>> picture = draw_network([DrawnLayer("conv1", "Conv2d", 16, 6, "a"), DrawnLayer("fc", "Linear", 10, 10)])
>>> picture.count("<title>"), "16 → 6" in picture
(3, True)

Colours are CSS variables with the light theme's as a fallback, so that one drawing serves both themes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from secateur.report.theme import FONT, THEMES

__all__ = ["DrawnLayer", "block_of", "draw_network", "standalone"]

_BOX, _GAP, _ROW = 168, 8, 40
_LEFT, _COLUMNS = 116, 4


@dataclass(frozen=True)
class DrawnLayer:
    """A layer: its width before and after, and the group that its channels are coupled in."""

    name: str
    kind: str
    before: int
    after: int
    group: str = ""


def block_of(name: str) -> str:
    """The row of a layer: the block that it is part of.

    Up to the first number that something follows, else the module it lies in.
    """
    found = re.match(r"^(.*?(?:^|\.)\d+)\.", name)
    return found.group(1) if found else name.rpartition(".")[0]


def draw_network(layers: Sequence[DrawnLayer], narrow: bool = False) -> str:
    """The drawing: 820 pixels wide, or 352 (a phone), and as high as it needs.

    Args:
        layers: The layers, in the order they are built.
        narrow: Two boxes a row instead of four, with the block's name above them instead of beside them.

    Returns:
        An SVG.

    >>> draw_network([DrawnLayer("conv1", "Conv2d", 16, 6)], narrow=True).count('width="352"')
    1
    """
    columns, left, above = (2, 0, 18) if narrow else (_COLUMNS, _LEFT, 0)
    wide = left + columns * (_BOX + _GAP)
    groups = list(dict.fromkeys(layer.group for layer in layers if layer.group))
    widest = max((layer.before for layer in layers), default=1)
    parts: list[str] = []
    y = 8
    for block, members in groupby(layers, key=lambda layer: block_of(layer.name)):
        own = list(members)
        letters = 44 if narrow else 18
        label = block if len(block) <= letters else "…" + block[1 - letters :]
        if block:
            parts.append(f'<text x="0" y="{y + (12 if narrow else 20)}" class="block">{escape(label)}</text>')
            y += above
        for index, layer in enumerate(own):
            row, column = divmod(index, columns)
            x = left + column * (_BOX + _GAP)
            parts.append(_box(layer, block, x, y + row * _ROW, widest, groups))
        y += math.ceil(len(own) / columns) * _ROW
        parts.append(f'<line x1="0" x2="{wide}" y1="{y - 2}" y2="{y - 2}" class="line"/>')
        y += 4 if narrow else 0
    title = f"{len(layers)} layers, {len(groups)} coupled groups"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {y + 4}" width="{wide}" '
        f'height="{y + 4}" role="img" class="network"><title>{escape(title)}</title>{_style("light", True)}'
        + "".join(parts)
        + "</svg>"
    )


def _style(theme: str, variables: bool) -> str:
    colours = THEMES[theme]

    def value(name: str) -> str:
        return f"var(--{name}, {colours[name]})" if variables else colours[name]

    return (
        "<style>"
        f".network text{{font-family:{FONT};fill:{value('text')};font-size:11px}}"
        f".network .block{{font-weight:600;font-size:12px}}.network .quiet{{fill:{value('quiet')}}}"
        f".network .line{{stroke:{value('grid')}}}.network .gone{{fill:{value('gone')}}}"
        f".network .kept{{fill:{value('accent')}}}"
        "</style>"
    )


def _box(layer: DrawnLayer, block: str, x: int, y: int, widest: int, groups: list[str]) -> str:
    short = layer.name.removeprefix(block + ".") if block else layer.name
    short = short if len(short) <= 15 else "…" + short[-14:]
    # Widths run over orders of magnitude: a square root keeps the narrow layers visible.
    full = max(4.0, (_BOX - 14) * math.sqrt(layer.before / widest))
    kept = full * layer.after / layer.before if layer.before else 0.0
    width = f"{layer.before} → {layer.after}" if layer.after != layer.before else f"{layer.before}"
    group = f", group {layer.group}" if layer.group else ""
    mark = ""
    if layer.group:
        hue = round(groups.index(layer.group) * 137.508) % 360  # the golden angle keeps neighbours apart
        mark = f'<rect x="{x}" y="{y + 4}" width="5" height="27" rx="2" fill="hsl({hue}, 60%, 52%)"/>'
    return (
        f"<g><title>{escape(layer.name)} ({escape(layer.kind)}): {width} wide{escape(group)}</title>{mark}"
        f'<text x="{x + 10}" y="{y + 14}">{escape(short)}</text>'
        f'<text x="{x + _BOX - 4}" y="{y + 14}" text-anchor="end" class="quiet">{width}</text>'
        f'<rect x="{x + 10}" y="{y + 20}" width="{full:.1f}" height="10" class="gone"/>'
        f'<rect x="{x + 10}" y="{y + 20}" width="{kept:.1f}" height="10" class="kept"/></g>'
    )


def standalone(svg: str) -> str:
    """The drawing as a file: colours written out, on white, for programs that know no CSS variables.

    >>> "var(" in standalone(draw_network([DrawnLayer("fc", "Linear", 10, 10)]))
    False
    """
    plain = svg.replace(_style("light", True), _style("light", False))
    head, _, rest = plain.partition("</title>")
    return f'{head}</title><rect width="100%" height="100%" fill="{THEMES["light"]["page"]}"/>{rest}'

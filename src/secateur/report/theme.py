"""Colours and fonts of charts, for light and dark pages.

The categories are those of Okabe and Ito, which colour-blind readers can tell apart; on a dark page the darkest
are lightened.

>>> contrast("#000000", "#ffffff")
21.0
>>> all(contrast(theme["text"], theme["page"]) >= 7 for theme in THEMES.values())
True
"""

from __future__ import annotations

from typing import Any

__all__ = ["FONT", "THEMES", "contrast", "vega_config"]

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"

THEMES: dict[str, dict[str, Any]] = {
    "light": {
        "page": "#ffffff",
        "text": "#1d2125",
        "quiet": "#555e66",
        "rule": "#d5dade",
        "grid": "#e9edf0",
        "accent": "#0b6e4f",
        "gone": "#b5432c",
        "category": ["#5b6770", "#0072b2", "#d55e00", "#009e73", "#b8508f", "#a37b00", "#3fa0d8", "#1d2125"],
        "ramp": ["#e4eff7", "#0072b2"],
    },
    "dark": {
        "page": "#15191c",
        "text": "#e8ebed",
        "quiet": "#a9b2b9",
        "rule": "#3a4248",
        "grid": "#272d32",
        "accent": "#5fc9a3",
        "gone": "#f08a70",
        "category": ["#a9b2b9", "#56b4e9", "#f28e4b", "#2fc79b", "#e08fc0", "#e3c04a", "#8fd0f5", "#f4f6f7"],
        "ramp": ["#22303a", "#56b4e9"],
    },
}


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, 1 to 21, as WCAG 2 defines it."""

    def light(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((light(one), light(other)), reverse=True)
    return round((bright + 0.05) / (dark + 0.05), 2)


def vega_config(name: str) -> dict[str, object]:
    """The Vega-Lite configuration of a theme.

    >>> vega_config("dark")["background"]
    'transparent'
    """
    theme = THEMES[name]
    text, muted = theme["text"], theme["quiet"]
    return {
        "background": "transparent",
        "font": FONT,
        "view": {"stroke": None, "continuousHeight": 300},
        "range": {"category": theme["category"], "ramp": theme["ramp"], "heatmap": theme["ramp"]},
        "axis": {**_AXIS, "gridColor": theme["grid"], "labelColor": muted, "titleColor": muted},
        "axisX": {"labelFlush": True},
        "axisY": _AXIS_Y,
        "legend": {**_LEGEND, "labelColor": text, "titleColor": muted},
        "header": {"labelColor": text, "labelFontSize": 12, "labelFontWeight": 600, "title": None},
        "title": {"color": text, "anchor": "start", "fontSize": 13},
        "text": {"color": text, "fontSize": 11},
        "rule": {"color": muted},
        "bar": {"cornerRadiusEnd": 1},
        "point": {"filled": True, "size": 70},
        "line": {"strokeWidth": 2},
        "area": {"line": False},
        "style": {"halo": {"stroke": theme["page"], "strokeWidth": 4, "strokeJoin": "round"}},
    }


_AXIS: dict[str, Any] = {
    "domain": False,
    "ticks": False,
    "labelFontSize": 11,
    "labelPadding": 6,
    "titleFontSize": 12,
    "titleFontWeight": 500,
    "titlePadding": 10,
    "labelLimit": 170,
}
# The title of the vertical axis is horizontal and above the axis, so that it can be read without turning the head.
_AXIS_Y: dict[str, Any] = {
    "titleAngle": 0,
    "titleAlign": "left",
    "titleAnchor": "end",
    "titleBaseline": "bottom",
    "titleX": 0,
    "titleY": -10,
}
_LEGEND: dict[str, Any] = {
    "orient": "top",
    "direction": "horizontal",
    "title": None,
    "labelFontSize": 12,
    "labelLimit": 260,
    "titleLimit": 320,
    "titleFontWeight": 500,
    "symbolType": "circle",
    "symbolOpacity": 1,
    "symbolFillOpacity": 1,
    "symbolSize": 90,
    "offset": 34,
    "columnPadding": 16,
}

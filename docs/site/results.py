"""The page of measured results, made from benchmarks/results/*.csv when the site is built: tables, and plots over time.

Plots are SVG inside the page, so they need no network and no script.
"""

from __future__ import annotations

import html
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from _results import FOLDER, Result, read_all

WIDTH, HEIGHT, EDGE = 260, 96, 18


def results_page(folder: Path = FOLDER) -> str:
    """Every benchmark: the newest figures by command, and a plot of each that was measured more than once.

    Args:
        folder: Where the CSV files lie.
    """
    results = read_all(folder)
    newest = [rows for commands in map(by_command, results.values()) for rows in commands.values()]
    figures = [row for rows in newest for row in latest(rows)]
    judged = [row for row in figures if row.met is not None]
    lines = [
        "# Measured results",
        "",
        f"{len(figures)} figures of {len(results)} benchmarks, the newest of each command. {len(judged)} have a goal: "
        f"{sum(row.met is True for row in judged)} meet it, {sum(row.met is False for row in judged)} miss it.",
        "",
        "Every row was written by the benchmark that it names, into `benchmarks/results/NAME.csv`: date,",
        "commit, machine, versions, load, command, figure, goal. `make bench-check` compares the newest run",
        "with the one before it of the same command and machine. A commit with a plus had changes that were",
        "not committed. The load counts the processes that wanted a processor: times of a loaded machine say",
        "less than those of a quiet one. Rows from before benchmarks wrote them were carried over from [the",
        "archive](archive/log.md); their commit is the one that entered them there.",
        "",
    ]
    for name, rows in results.items():
        lines += [f"## {name}", ""]
        for command, of_command in by_command(rows).items():
            lines += section(command, of_command)
    return "\n".join(lines)


def by_command(rows: list[Result]) -> dict[str, list[Result]]:
    """The rows of each command, oldest first."""
    found: dict[str, list[Result]] = {}
    for row in rows:
        found.setdefault(row.command, []).append(row)
    return found


def latest(rows: list[Result]) -> list[Result]:
    """The newest row of each figure."""
    return list({row.name: row for row in rows}.values())


def section(command: str, rows: list[Result]) -> list[str]:
    """The table of one command, and its plots."""
    lines = [
        f"`{command}`",
        "",
        "| figure | newest | goal | | before | commit | load | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    plots = []
    for row in latest(rows):
        history = list({each.date: each for each in rows if each.name == row.name}.values())
        before = f"{history[-2].figure:g}" if len(history) > 1 else ""
        sign = "≤" if row.better == "lower" else "≥"
        goal = "" if row.goal is None else f"{sign} {row.goal:g}"
        met = {None: "", True: "met", False: "**missed**"}[row.met]
        cells = [row.name, f"{row.figure:g} {row.unit}", goal, met, before]
        cells += [f"{row.commit}, {row.date[:10]}", row.load, row.detail]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        if len(history) > 1:
            plots.append(plot(row.name, history))
    return [*lines, "", *(['<div class="plots">', *plots, "</div>", ""] if plots else [])]


def plot(title: str, rows: list[Result]) -> str:
    """A figure over its runs as an SVG of one line: dots, a line between them, and the goal dashed.

    Args:
        title: What the figure is called.
        rows: Its rows, oldest first; two at least.
    """
    values = [row.figure for row in rows] + [row.goal for row in rows[-1:] if row.goal is not None]
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0

    def across(at: int) -> float:
        return EDGE + (WIDTH - 2 * EDGE) * at / (len(rows) - 1)

    def down(value: float) -> float:
        return HEIGHT - EDGE - (HEIGHT - 3 * EDGE) * (value - low) / span

    points = [(round(across(at), 1), round(down(row.figure), 1)) for at, row in enumerate(rows)]
    told = f"{title}: " + ", ".join(f"{row.figure:g} on {row.date[:10]}" for row in rows)
    parts = [
        f'<svg role="img" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-size="10" fill="currentColor"><title>{html.escape(told)}</title>',
        f'<text x="{EDGE}" y="11">{html.escape(title if len(title) < 44 else title[:42] + "…")}</text>',
    ]
    if rows[-1].goal is not None:
        at = round(down(rows[-1].goal), 1)
        parts.append(
            f'<line x1="{EDGE}" x2="{WIDTH - EDGE}" y1="{at}" y2="{at}" stroke="currentColor" '
            'stroke-dasharray="4 3" opacity=".6"/>'
        )
    line = " ".join(f"{x},{y}" for x, y in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#3f51b5" stroke-width="2"/>')
    parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="#3f51b5"/>' for x, y in points]
    for at, anchor in ((0, "start"), (-1, "end")):
        x = EDGE if at == 0 else WIDTH - EDGE
        text = f"{rows[at].figure:g}, {rows[at].date[2:10]}"
        parts.append(f'<text x="{x}" y="{HEIGHT - 3}" text-anchor="{anchor}">{text}</text>')
    return "".join([*parts, "</svg>"])

"""An `Explanation` as a table and as an SVG with one bar for each group."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secateur.structure.explain import Explanation

__all__ = ["as_svg", "as_table"]


def as_table(found: Explanation) -> str:
    """Groups, then locks, as aligned text."""
    head = ("group", "units", "members", "parameters", "MACs", "goes")
    rows = [
        (
            r.name,
            f"{r.count:,}",
            f"{len(r.members)}",
            f"{r.parameters:,}",
            f"{r.macs:,}",
            f"{r.removed:,}" if r.removed else "",
        )
        for r in found.groups
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        f"{found.model}: {found.parameters:,} parameters, {found.macs:,} MACs; {found.prunable:.1%} "
        f"of the parameters can be cut"
    ]
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        lines.append("  ".join(cells).rstrip())
    if found.budget is not None:
        lines.append(
            f"a budget of {found.budget:g} for each group removes {found.removed_parameters:,} parameters "
            f"({found.removed_parameters / max(1, found.parameters):.1%}) and {found.removed_macs:,} MACs "
            f"({found.removed_macs / max(1, found.macs):.1%})"
        )
    return "\n".join([*lines, *_asked_for_by_name(found), *_whole_layers(found), *_locked(found)])


def _asked_for_by_name(found: Explanation) -> list[str]:
    """The line of the bare parameters, if there are any."""
    named = [row.name for row in found.groups if row.by_name]
    if not named:
        return []
    shown = ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")
    return [f"bare parameters, cut only when asked for by PruneOptions(parameters=...): {shown}"]


def _whole_layers(found: Explanation) -> list[str]:
    """The layers that can be removed whole, on one line, and those that cannot, on one each."""
    leave = [row.name + (" (bypassed)" if row.bypassed else "") for row in found.layers if not row.reason]
    lines = [f"whole layers that can be removed (granularity 'layer'): {', '.join(leave)}"] if leave else []
    return lines + [
        f"whole layer {row.name} cannot be removed: {row.reason}" for row in found.layers if row.reason
    ]


def _locked(found: Explanation) -> list[str]:
    """What is locked, and what the forward does not use."""
    lines = ["locked:"] if found.locks else []
    for lock in found.locks:
        names = ", ".join(f"{name}[{axis}]" for name, axis in lock.axes[:3])
        more = f" and {len(lock.axes) - 3} more" if len(lock.axes) > 3 else ""
        where = lock.path or "the model"
        lines.append(f"  {lock.reason} ({lock.operator or 'tied'} in {where}): {names}{more}")
    if found.untouched:
        shown = ", ".join(found.untouched[:3])
        lines.append(f"not used by this forward: {shown}" + (" ..." if len(found.untouched) > 3 else ""))
    return lines


def as_svg(found: Explanation) -> str:
    """One bar for each group: its length is the number of its parameters, the dark part what a budget removes."""
    row_height, left, full = 22, 260, 420
    largest = max((row.parameters for row in found.groups), default=1) or 1
    height = 46 + row_height * max(1, len(found.groups))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + full + 150}" height="{height}" '
        'font-family="sans-serif" font-size="12" role="img">',
        f"<title>Groups of {escape(found.model)}</title>",
        f'<text x="8" y="20" font-size="14">{escape(found.model)}: {len(found.groups)} groups, '
        f"{found.prunable:.0%} of {found.parameters:,} parameters can be cut</text>",
    ]
    for index, row in enumerate(found.groups):
        y = 34 + index * row_height
        width = max(1.0, full * row.parameters / largest)
        gone = width * row.removed / row.count
        label = row.name if len(row.name) < 36 else "…" + row.name[-35:]
        members = ", ".join(f"{name}[{axis}]" for name, axis, _, _ in row.members)
        parts.append(
            f"<g><title>{escape(members)}</title>"
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(label)}</text>'
            f'<rect x="{left}" y="{y}" width="{width:.1f}" height="16" fill="#8fb8de"/>'
            f'<rect x="{left + width - gone:.1f}" y="{y}" width="{gone:.1f}" height="16" fill="#2f5d8a"/>'
            f'<text x="{left + width + 6:.1f}" y="{y + 13}">{row.count} units, {row.parameters:,} parameters</text></g>'
        )
    parts.append("</svg>")
    return "\n".join(parts)

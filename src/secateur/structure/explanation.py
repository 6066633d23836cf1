"""`Explanation`: what can be cut of a model and what cannot, as values, a table, JSON, and an SVG of the groups."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from secateur.core.html_table import html_table
from secateur.structure.groups.labels import fold_first

__all__ = ["Explanation", "GroupRow", "LayerRow", "LockRow"]


@dataclass(frozen=True)
class GroupRow:
    """One group of channels that are removed together.

    Attributes:
        name: The layer whose outputs the channels are.
        count: The number of units.
        members: The parameter axes it cuts: (parameter, axis, role, slices for each unit).
        parameters: The number of parameter elements in its slices.
        macs: The multiply-accumulates that are removed with all of its units.
        removed: The number of units that the budget removes.
        by_name: Whether it is cut only when its parameters are asked for by name, by `PruneOptions(parameters=...)`.
        norm_group: Channels of a unit, where it is a group of a norm (`nn.GroupNorm`) and removed as one; else 0.
    """

    name: str
    count: int
    members: tuple[tuple[str, int, str, int], ...]
    parameters: int
    macs: int
    removed: int = 0
    by_name: bool = False
    norm_group: int = 0


@dataclass(frozen=True)
class LockRow:
    """One reason why axes are locked: the operator and module it comes from, and the axes it holds."""

    reason: str
    operator: str
    path: str
    positions: int
    axes: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class LayerRow:
    """One block that is added to its input.

    Attributes:
        name: The block.
        parameters: The number of its parameters.
        reason: Why it cannot be removed whole; empty if it can.
        bypassed: Whether it is bypassed when it is removed, because a norm follows its addition.
    """

    name: str
    parameters: int
    reason: str = ""
    bypassed: bool = False


@dataclass(frozen=True)
class Explanation:
    """Groups and locks of a model, as values, as a table, as JSON, as a drawing.

    Attributes:
        model: The class of the model.
        parameters: The number of its parameters.
        macs: Multiply-accumulates of one forward on the example.
        groups: The groups that can be cut. locks: The axes that cannot, and why.
        untouched: Parameters that the forward did not use.
        prunable: The share of parameters with at least one axis that can be cut.
        budget: The share of each group to remove, where one was given.
        removed_parameters: The parameters that this budget removes.
        removed_macs: The multiply-accumulates that this budget removes.
        layers: The blocks that can be removed whole, and those that cannot and why.
    """

    model: str
    parameters: int
    macs: int
    groups: tuple[GroupRow, ...]
    locks: tuple[LockRow, ...]
    untouched: tuple[str, ...]
    prunable: float
    budget: float | None = None
    removed_parameters: int = 0
    removed_macs: int = 0
    layers: tuple[LayerRow, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def to_json(self) -> str:
        """The explanation as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def table(self) -> str:
        """The explanation as text: groups, then locks."""
        return _as_table(self)

    def svg(self) -> str:
        """The groups as a drawing."""
        return _as_svg(self)

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        """Groups and locks in a notebook."""
        budget = self.budget is not None
        groups = html_table(
            ("group", "units", "parameters", "MACs", *(["goes"] if budget else [])),
            (
                (row.name, f"{row.count:,}", f"{row.parameters:,}", f"{row.macs:,}")
                + ((f"{row.removed:,}",) if budget else ())
                for row in self.groups
            ),
        )
        for line in _norm_groups(self):
            groups += f"<p>{escape(line)}</p>"
        if budget:
            groups += f"<p>{_removed(self)}</p>"
        locks = html_table(
            ("locked because", "where", "axes"),
            (
                (row.reason, row.path, ", ".join(f"{name}[{axis}]" for name, axis in row.axes))
                for row in self.locks
            ),
        )
        return groups + (locks if self.locks else "")


def _as_table(found: Explanation) -> str:
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
        lines.append(_removed(found))
    return "\n".join(
        [*lines, *_norm_groups(found), *_asked_for_by_name(found), *_whole_layers(found), *_locked(found)]
    )


def _removed(found: Explanation) -> str:
    """What the budget removes, in one sentence."""
    return (
        f"a budget of {found.budget:g} for each group removes {found.removed_parameters:,} parameters "
        f"({found.removed_parameters / max(1, found.parameters):.1%}) and {found.removed_macs:,} MACs "
        f"({found.removed_macs / max(1, found.macs):.1%})"
    )


def _norm_groups(found: Explanation) -> list[str]:
    """The line of the groups whose units are groups of a norm, if there are any."""
    named = [f"{row.name} ({row.norm_group} channels)" for row in found.groups if row.norm_group]
    if not named:
        return []
    shown = ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")
    return [f"a unit is a group of a norm, whose channels are removed together: {shown}"]


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
        lines.append(
            f"  {lock.reason} ({lock.operator or 'tied'} in {where}): {names}{more}{fold_first(lock.path)}"
        )
    if found.untouched:
        shown = ", ".join(found.untouched[:3])
        lines.append(f"not used by this forward: {shown}" + (" ..." if len(found.untouched) > 3 else ""))
    return lines


def _as_svg(found: Explanation) -> str:
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

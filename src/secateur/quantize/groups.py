"""Which tensors have one codebook: each its own, all one, or groups named by patterns.

>>> from torch import nn
>>> from secateur.core.targets import select
>>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
>>> [(label, [t.name for t in members]) for label, members in codebook_groups(model, select(model), [["0", "1"]])]
[('0+1', ['0.weight', '1.weight']), ('2.weight', ['2.weight'])]
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from secateur.core.targets import Pattern, Target, matches, patterns_of
from secateur.errors import OptionError, PatternError, near

__all__ = ["Groups", "codebook_groups"]

Groups = str | Sequence[Pattern | Sequence[Pattern]]
"""Which tensors have one codebook: "tensor", "channel", "model", or groups, each a pattern or several."""


def codebook_groups(
    model: nn.Module, targets: Sequence[Target], per: Groups
) -> list[tuple[str, list[Target]]]:
    """Find which tensors have one codebook together.

    Args:
        model: The model.
        targets: The tensors that are shared.
        per: "tensor", "channel", "model", or groups of patterns.

    Returns:
        (label, members) of each group: those asked for first, then every other tensor alone, in the model's order.

    Raises:
        OptionError: `per` is none of these, or a tensor is in two groups.
        PatternError: A pattern matches no tensor that is shared.
    """
    if isinstance(per, str):
        if per == "model":
            return [("model", list(targets))]
        if per in ("tensor", "channel"):
            return [(target.name, [target]) for target in targets]
        raise OptionError(
            f"per: expected 'tensor', 'channel', 'model' or a list of groups of patterns, got {per!r}"
        )
    groups: list[tuple[str, list[Target]]] = []
    owner: dict[str, str] = {}
    for entry in per:
        patterns = patterns_of(entry)
        label = "+".join(p if isinstance(p, str) else p.__name__ for p in patterns)
        members = _members(model, targets, patterns)
        for member in members:
            if member.name in owner:
                raise OptionError(
                    f"per: {member.name} is in the groups {owner[member.name]!r} and {label!r}; expected "
                    f"one group each"
                )
            owner[member.name] = label
        groups.append((label, members))
    return groups + [(target.name, [target]) for target in targets if target.name not in owner]


def _members(model: nn.Module, targets: Sequence[Target], patterns: Sequence[Pattern]) -> list[Target]:
    """The targets that any of the patterns matches, each once."""
    modules = dict(model.named_modules())
    members: list[Target] = []
    for pattern in patterns:
        hits = [t for t in targets if matches(pattern, t.layer, t.name, modules[t.layer])]
        if not hits:
            raise PatternError(
                f"per: pattern {pattern!r} matches no tensor that is shared: "
                f"{near(str(pattern), [t.layer for t in targets])}"
            )
        members += [hit for hit in hits if hit not in members]
    return members

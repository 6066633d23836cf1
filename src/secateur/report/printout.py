"""print(model) before and after, side by side, with the changed lines marked.

>>> [(row.kind, row.before, row.after) for row in side_by_side("a\\nb(3)\\nc", "a\\nb(2)\\nc")]
[('same', 'a', 'a'), ('changed', 'b(3)', 'b(2)'), ('same', 'c', 'c')]
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

__all__ = ["Pair", "folded", "side_by_side"]


@dataclass(frozen=True)
class Pair:
    """One line of both: `kind` is same, changed, removed, added or folded."""

    kind: str
    before: str
    after: str


def side_by_side(before: str, after: str) -> list[Pair]:
    """The lines of two texts, matched."""
    one, two = before.splitlines(), after.splitlines()
    if len(one) == len(two):  # widths changed, the structure did not: line for line is what a reader expects
        return [Pair("same" if a == b else "changed", a, b) for a, b in zip(one, two)]
    pairs: list[Pair] = []
    for kind, i1, i2, j1, j2 in difflib.SequenceMatcher(None, one, two, autojunk=False).get_opcodes():
        if kind == "equal":
            pairs += [Pair("same", a, b) for a, b in zip(one[i1:i2], two[j1:j2])]
            continue
        both = min(i2 - i1, j2 - j1)
        pairs += [Pair("changed", a, b) for a, b in zip(one[i1 : i1 + both], two[j1 : j1 + both])]
        pairs += [Pair("removed", a, "") for a in one[i1 + both : i2]]
        pairs += [Pair("added", "", b) for b in two[j1 + both : j2]]
    return pairs


def folded(pairs: list[Pair], around: int = 2) -> list[Pair]:
    """The same with long stretches that did not change folded into one line.

    >>> [p.before for p in folded([Pair("same", str(k), str(k)) for k in range(9)])]
    ['9 lines that are the same']
    """
    near = {k + d for k, pair in enumerate(pairs) if pair.kind != "same" for d in range(-around, around + 1)}
    shown: list[Pair] = []
    hidden: list[Pair] = []

    def close() -> None:
        if len(hidden) > 3:
            text = f"{len(hidden)} lines that are the same"
            shown.append(Pair("folded", text, text))
        else:
            shown.extend(hidden)
        hidden.clear()

    for k, pair in enumerate(pairs):
        if k in near:
            close()
            shown.append(pair)
        else:
            hidden.append(pair)
    close()
    return shown

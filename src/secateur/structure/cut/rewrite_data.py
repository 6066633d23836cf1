"""`Rewrite`: other sizes for one call of a module's forward, as plain data; read, checked, and joined over two cuts.

>>> first, second = Rewrite("reshape", 0, ((1, (1, 2)),)), Rewrite("reshape", 0, ((1, (3, 4)),))
>>> one_after_the_other([first], [second])[0].sizes
((1, (3, 8)),)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from torch import nn

from secateur.errors import PlanError
from secateur.structure.cut.call_sites import Site
from secateur.structure.trace.calls import ATTENTION, PIECES, SHAPED, SIZED
from secateur.structure.trace.fixed_count_norms import COUNTED

__all__ = ["BY_PLACE", "HEADS", "NUMBER", "Rewrite", "check_rewrites", "joined", "one_after_the_other"]


BY_PLACE = 1 << 20
"""The first number of rewrites that are known by their place in the source alone; no forward makes so many calls."""
HEADS = "multi_head_attention"
NUMBER = "number"

Value = int | float | tuple[int, ...]

_MOST_SIZE = 1 << 40  # no size, position or call number of a plan is larger
_DEEPEST = 32  # functions from a forward to a call
# How many sizes the functions have that are not one size per position: at least, at most.
_SIZES_OF = {ATTENTION: (2, 2), NUMBER: (2, 2), HEADS: (2, 4), "narrow": (2, 2), "mean": (3, 3)}


@dataclass(frozen=True)
class Rewrite:
    """Other sizes for one call of a module's forward, as plain data.

    The meaning of a position and a value depends on the function. For shapes a position is that within the shape, and
    the value a size, or (a, b) for a/b of the size that the forward asks for. For splits the values are the pieces in
    order; for pad a position is that within its list; for subscripts one within the index, with a value (start, stop,
    step). For attention, whose calls are not counted (`call` is -1), the values are the size of a head before and now:
    without an explicit scale it is scaled as before. For a number they are its value computed from the new width, and
    from the old one: wherever it multiplies or divides by the first, the second is used.

    Attributes:
        function: The name of the function that is called.
        call: The number of size-taking calls that the forward makes before this one; from `BY_PLACE` on that of none.
        sizes: (position, value) pairs.
        site: The place of the call in the source, if it can be edited there.
    """

    function: str
    call: int
    sizes: tuple[tuple[int, Any], ...]
    site: Site | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        data: dict[str, Any] = {
            "function": self.function,
            "call": self.call,
            "sizes": [[position, value] for position, value in self.sizes],
        }
        if self.site is not None:
            data["site"] = [list(step) for step in self.site]
        return data

    @classmethod
    def from_dict(cls, data: object) -> Rewrite:
        """The inverse of `to_dict`, checked.

        Args:
            data: Plain data.

        Raises:
            ValueError: A value is not one that this function takes.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("sizes"), list):
            raise ValueError("expected a call as an object with function, call and sizes")
        function, call = data.get("function"), data.get("call")
        if not isinstance(function, str) or not _is_whole(call) or not data["sizes"]:
            raise ValueError("expected a call with the name of a function, its number and its sizes")
        sizes = tuple(_position_and_value(function, pair) for pair in data["sizes"])
        return cls(function, call, sizes, _site(data.get("site")))

    def __str__(self) -> str:
        return f"{self.function} call {self.call}: {dict(self.sizes)}"


def _position_and_value(function: str, pair: object) -> tuple[int, Value]:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not _is_whole(pair[0]):
        raise ValueError(f"a size of {function[:40]}: expected a position and a value, got {str(pair)[:80]}")
    return pair[0], _value(function, pair[1])


def _value(function: str, value: object) -> Value:
    """A value as it must be for a function."""
    if isinstance(value, (list, tuple)):
        if len(value) != (3 if function == "__getitem__" else 2) or not all(map(_is_whole, value)):
            raise ValueError(
                f"a size of {function[:40]}: expected a number or a fraction, got {str(value)[:80]}"
            )
        if function != "__getitem__" and (value[0] < 0 or value[1] < 1):
            raise ValueError(f"a size of {function[:40]}: expected a fraction above 0, got {value}")
        return tuple(value)
    if _is_whole(value) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"a size of {function[:40]}: expected a number, got {str(value)[:80]!r}")


def _site(value: object) -> Site | None:
    """A site as it must be: (name, digest, index) for each function on the way."""
    if not value:
        return None
    if not isinstance(value, (list, tuple)) or len(value) > _DEEPEST:
        raise ValueError("expected a site as a list of functions")
    for step in value:
        if not isinstance(step, (list, tuple)) or [type(each) for each in step] != [str, str, int]:
            raise ValueError("expected a function of a site as its name, a digest and an index")
    return tuple((name, digest, index) for name, digest, index in value)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MOST_SIZE


def check_rewrites(path: str, module: nn.Module, items: Sequence[Rewrite]) -> None:
    """Raise a `PlanError` unless these are rewrites that a module can be given.

    Args:
        path: The module's name in the model.
        module: The module.
        items: Its rewrites.
    """
    for item in items:
        if item.function not in SIZED and item.function not in (ATTENTION, NUMBER, HEADS, *COUNTED):
            raise PlanError(
                f"the plan rewrites a call of {item.function[:80]!r}, which is not one that takes sizes"
            )
        if not _takes(item):
            raise PlanError(
                f"the plan rewrites a call of {item.function} of {path!r} with sizes that it cannot take"
            )
        if item.function == HEADS and not isinstance(module, nn.MultiheadAttention):
            raise PlanError(
                f"the plan gives {path!r} fewer heads: expected nn.MultiheadAttention, got {type(module).__name__}"
            )


def _takes(item: Rewrite) -> bool:
    """Whether a function takes sizes of this number and kind."""
    least, most = _SIZES_OF.get(item.function, (2, 2) if item.function in COUNTED else (1, _MOST_SIZE))
    values = [value for _, value in item.sizes]
    if not least <= len(values) <= most:
        return False
    if item.function == "__getitem__":
        return all(isinstance(value, tuple) and len(value) == 3 for value in values)
    if item.function == NUMBER:
        return not any(isinstance(value, tuple) for value in values)
    if item.function == HEADS:
        return all(isinstance(value, int) and value > 0 for value in values)
    tuples = [value for value in values if isinstance(value, tuple)]
    if any(isinstance(value, float) for value in values) or (tuples and item.function not in SHAPED):
        return False
    return all(len(value) == 2 and value[1] > 0 for value in tuples)


def joined(before: Mapping[int, Rewrite], new: Mapping[int, Rewrite]) -> dict[int, Rewrite]:
    """The rewrites of a module that is cut again: the later cut's sizes of a call are combined with the earlier
    ones.
    """
    table = dict(before)
    placed = {item.site: call for call, item in before.items() if item.site is not None}
    for call, item in new.items():
        call = call if item.site is None else placed.get(item.site, call)
        if item.function in COUNTED:
            first, call = _counting_on(before, table, item)
            table[call] = first
            continue
        old = table.get(call)
        if old is not None and call >= BY_PLACE and old.site != item.site:
            old, call = None, max(table) + 1
        if old is None or old.function != item.function:
            table[call] = replace(item, call=call)
        elif item.function == NUMBER:
            table[min(table) - 1] = item
        elif item.function in PIECES:
            table[call] = item
        else:
            sizes = dict(old.sizes)
            for position, value in item.sizes:
                sizes[position] = _over(sizes.get(position), value, item.function)
            table[call] = Rewrite(item.function, call, tuple(sorted(sizes.items())), item.site)
    return table


def _over(old: Value | None, new: Value, function: str) -> Value:
    """A later value of a size combined with an earlier one: a fraction refers to the earlier result."""
    if function not in SHAPED or old is None or not isinstance(new, tuple):
        return new
    if not isinstance(old, tuple):
        return int(old) * new[0] // new[1]
    up, down = old[0] * new[0], old[1] * new[1]
    return up // math.gcd(up, down), down // math.gcd(up, down)


def _counting_on(
    known: Mapping[int, Rewrite], table: Mapping[int, Rewrite], item: Rewrite
) -> tuple[Rewrite, int]:
    """Fixed counts of an earlier cut, which keep their original number; and the number of their call."""
    (_, before), *rest = item.sizes
    for call, old in known.items():
        if old.function == item.function and old.sizes[1][1] == before and old.sizes[2:] == item.sizes[2:]:
            return Rewrite(item.function, call, (old.sizes[0], *rest)), call
    return item, min([-1, *table]) - 1


def one_after_the_other(first: Sequence[Rewrite], second: Sequence[Rewrite]) -> tuple[Rewrite, ...]:
    """The rewrites of a module that was cut twice, as one cut.

    Args:
        first: The rewrites of the first cut.
        second: Those of the second, made for the module as the first left it.

    Returns:
        Rewrites with the same effect on the original module.

    >>> thinner, fewer = Rewrite(HEADS, -1, ((0, 3), (1, 2), (2, 4))), Rewrite(HEADS, -1, ((0, 1), (1, 2)))
    >>> one_after_the_other([thinner], [fewer])[0].sizes
    ((0, 1), (1, 2), (2, 4))
    """
    heads = [item for item in (*first, *second) if item.function == HEADS]
    if heads:
        # The size that heads are scaled as (2) stays from cut to cut; that of values (3) is in the last cut.
        merged = {position: value for item in heads for position, value in item.sizes if position == 2}
        merged |= dict(heads[-1].sizes)
        heads = [Rewrite(HEADS, -1, tuple(sorted(merged.items())))]
    before, after = (
        {item.call: item for item in items if item.function != HEADS} for items in (first, second)
    )
    return (*heads, *joined(before, after).values())

"""Rewrites: where a forward has widths written into it, the calls that use them get the new ones.

Some forwards compute a size from something else than the tensor at hand (`x.reshape(B, N, C)` after heads left), and no
attribute can be set to help. Such a module keeps its class (a subclass of it, in fact) and its parameters; while its
forward runs, the n-th size-taking call is given the sizes of the plan. Only the positions that were cut are
replaced, so
the batch and the length stay free.

>>> import torch
>>> from torch import nn
>>> class Fixed(nn.Module):
...     def forward(self, x):
...         return x.reshape(x.shape[0], 8)
>>> module = Fixed()
>>> rewrite_(module, (Rewrite("reshape", 0, ((1, 6),)),))
>>> module(torch.zeros(5, 2, 3)).shape, isinstance(module, Fixed)
(torch.Size([5, 6]), True)
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from secateur.errors import PlanError
from secateur.structure.cut.fixed_count_norms import COUNTED, counting, named_alike

__all__ = ["SIZED", "Rewrite", "rewrite_", "rewritten"]

SHAPED = frozenset(
    [
        "view",
        "reshape",
        "expand",
        "unflatten",
        "repeat",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "zeros",
        "ones",
        "full",
        "empty",
    ]
)
PIECES = frozenset(["split", "chunk", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split"])
ATTENTION = "scaled_dot_product_attention"
NUMBER = "number"
SIZED = SHAPED | PIECES | {"pad", "__getitem__", "narrow"}


@dataclass(frozen=True)
class Rewrite:
    """The `call`-th size-taking call of a module's forward: which function it is, and (position, value) to put in.

    For shapes a position is an axis; for splits the pieces in order; for pad the entries of its list; for slices the
    position within the index, with a value (start, stop, step). For attention, whose calls are not counted (`call` is
    -1), they are the size of a head before and now: without a scale of its own it is scaled as before. For a number,
    they are what the forward works out from a width now, and what it was: wherever it multiplies or divides by the one,
    the other is put in.
    """

    function: str
    call: int
    sizes: tuple[tuple[int, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"function": self.function, "call": self.call, "sizes": [[p, v] for p, v in self.sizes]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Rewrite:
        """The inverse of `to_dict`."""
        sizes = tuple((int(p), tuple(v) if isinstance(v, list) else _number(v)) for p, v in data["sizes"])
        return cls(str(data["function"]), int(data["call"]), sizes)

    def __str__(self) -> str:
        return f"{self.function} call {self.call}: {dict(self.sizes)}"


def _number(value: Any) -> int | float:
    return value if isinstance(value, float) and math.isfinite(value) else int(value)


def name_of(func: Any) -> str:
    """The plain name of a torch function: `reshape`, `__getitem__`, `pad`."""
    return getattr(func, "__name__", "")


def with_sizes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], item: Rewrite) -> Any:
    """Make the call with the sizes of the rewrite."""
    name, new = item.function, dict(item.sizes)
    if name in PIECES:
        pieces = [value for _, value in item.sizes]
        dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
        return torch.split(args[0], pieces, dim)
    if name == "pad":
        pad = list(args[1] if len(args) > 1 else kwargs["pad"])
        for position, value in new.items():
            pad[position] = value
        kwargs = {key: value for key, value in kwargs.items() if key != "pad"}
        return func(args[0], pad, *args[2:], **kwargs)
    if name == "__getitem__":
        index = list(args[1]) if isinstance(args[1], tuple) else [args[1]]
        for position, value in new.items():
            index[position] = slice(*value)
        return func(args[0], tuple(index))
    if name == "narrow":
        return torch.narrow(args[0], args[1], new[0], new[1])
    if name == "unflatten":
        sizes = list(args[2] if len(args) > 2 else kwargs["sizes"])
        dim = args[1] if len(args) > 1 else kwargs["dim"]
        for position, value in new.items():
            sizes[position] = value
        return func(args[0], dim, tuple(sizes))
    first = 0 if name in ("zeros", "ones", "full", "empty") else 1
    flat = len(args) > first and not isinstance(args[first], (tuple, list))
    key = next((key for key in ("size", "shape", "sizes") if key in kwargs), None)
    if key is not None:
        sizes = list(kwargs[key])
    else:
        sizes = list(args[first:]) if flat else list(args[first])
    for position, value in new.items():
        sizes[position] = value
    if key is not None:
        return func(*args, **{**kwargs, key: tuple(sizes)})
    rest = () if flat else args[first + 1 :]
    return func(*args[:first], tuple(sizes), *rest, **kwargs)


class _Sizes(TorchFunctionMode):
    """While it is active, the calls named by the rewrites get their sizes."""

    def __init__(self, module: nn.Module, table: Mapping[int, Rewrite]):
        super().__init__()
        self.module, self.table = module, table
        self.count = 0
        self.counted = [item for item in table.values() if item.function in COUNTED]
        self.numbers = [
            (item.sizes[0][1], item.sizes[1][1]) for item in table.values() if item.function == NUMBER
        ]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.numbers and any(word in name_of(func) for word in ("mul", "div")):
            args = tuple(self._as_before(arg) for arg in args)
        for counts in self.counted if counting() else ():
            if name_of(func) in named_alike(counts.function):
                made = COUNTED[name_of(func)](func, args, kwargs, *(value for _, value in counts.sizes))
                if made is not None:
                    return made
        if -1 in self.table and name_of(func) == ATTENTION and kwargs.get("scale") is None:
            (_, before), (_, now) = self.table[-1].sizes
            query = args[0] if args else kwargs["query"]
            if query.shape[-1] == now:
                return func(*args, **{**kwargs, "scale": before**-0.5})
        if name_of(func) in SIZED and not _in_a_hook(sys._getframe(1), self.module):
            item = self.table.get(self.count)
            self.count += 1
            if item is not None and item.function == name_of(func):
                return with_sizes(func, args, kwargs, item)
        return func(*args, **kwargs)

    def _as_before(self, value: Any) -> Any:
        """A number that is worked out from a width, as it was before the cut."""
        if isinstance(value, float):
            for now, before in self.numbers:
                if value == now:
                    return before
        return value


_MODULE_FILE = nn.Module._call_impl.__code__.co_filename


def _in_a_hook(frame: FrameType | None, module: nn.Module) -> bool:
    """Whether a call within a module's forward was made by a hook of one of its parts, not by their forwards.

    Both are run by the part's own call, which has the hook it is running in hand. Hooks come and go without the
    forward changing, so their calls are not counted.
    """
    while frame is not None:
        caller = frame.f_back
        if frame.f_code in _WRAPPERS and frame.f_locals.get("self") is module:
            return False
        if caller is not None and caller.f_code.co_filename == _MODULE_FILE and "hook" in caller.f_locals:
            hook = caller.f_locals["hook"]
            hook = getattr(hook, "func", hook)  # functools.partial
            code = getattr(hook, "__code__", None) or getattr(type(hook).__call__, "__code__", None)
            if code is frame.f_code:
                return True
        frame = caller
    return False


_WRAPPERS: set[Any] = set()
_CLASSES: dict[type, type] = {}


def _restore(base: Any, state: dict[str, Any]) -> nn.Module:
    """Rebuild a rewritten module from its base class (used by copy and pickle)."""
    kind: Any = rewritten(base)
    module: nn.Module = kind.__new__(kind)
    module.__dict__.update(state)
    return module


def rewritten(base: type) -> type:
    """The subclass of a module class whose forward runs under its rewrites."""
    if base not in _CLASSES:

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            with _Sizes(self, self._secateur_sizes):
                return base.forward(self, *args, **kwargs)  # type: ignore[attr-defined]

        _WRAPPERS.add(forward.__code__)

        def reduce(self: Any, protocol: int) -> Any:
            return _restore, (base, dict(self.__dict__))

        made = type(
            base.__name__, (base,), {"forward": forward, "__reduce_ex__": reduce, "_secateur_base": base}
        )
        made.__module__, made.__qualname__ = base.__module__, base.__qualname__
        _CLASSES[base] = made
    return _CLASSES[base]


def _joined(before: Mapping[int, Rewrite], new: Mapping[int, Rewrite]) -> dict[int, Rewrite]:
    """The rewrites of a module that is cut again: what the later cut says of a call goes over the earlier."""
    table = dict(before)
    for call, item in new.items():
        if item.function in COUNTED:
            first, call = _counting_on(before, table, item)
            table[call] = first
            continue
        old = table.get(call)
        if old is None or old.function != item.function:
            table[call] = item
        elif item.function == NUMBER:
            table[min(table) - 1] = item
        elif item.function in PIECES:
            table[call] = item
        else:
            sizes = {**dict(old.sizes), **dict(item.sizes)}
            table[call] = Rewrite(item.function, call, tuple(sorted(sizes.items())))
    return table


def _counting_on(
    known: Mapping[int, Rewrite], table: Mapping[int, Rewrite], item: Rewrite
) -> tuple[Rewrite, int]:
    """What counted before this cut goes on counting what it did at first; and under which number."""
    (_, before), *rest = item.sizes
    for call, old in known.items():
        if old.function == item.function and old.sizes[1][1] == before and old.sizes[2:] == item.sizes[2:]:
            return Rewrite(item.function, call, (old.sizes[0], *rest)), call
    return item, min([-1, *table]) - 1


def rewrite_(module: nn.Module, items: tuple[Rewrite, ...]) -> None:
    """Give a module its rewrites, in place."""
    for item in items:
        if item.function == "multi_head_attention":
            from secateur.structure.cut.heads import fewer_heads_

            fewer_heads_(module, *(value for _, value in item.sizes))
            continue
        if item.function not in SIZED and item.function not in (ATTENTION, NUMBER, *COUNTED):
            raise PlanError(
                f"the plan rewrites a call of {item.function!r}, which is not one that takes sizes"
            )
    table = {item.call: item for item in items if item.function != "multi_head_attention"}
    if not table:
        return
    module._secateur_sizes = _joined(getattr(module, "_secateur_sizes", {}), table)  # type: ignore[assignment]
    if not hasattr(type(module), "_secateur_base"):
        module.__class__ = rewritten(type(module))

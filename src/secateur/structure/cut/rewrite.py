"""Rewrites: where a forward has a hard-coded width, the call that uses it gets the new one. Some forwards compute a
size from something else than the tensor itself (`x.reshape(B, N, C)` after heads are removed), and no attribute can be
set to help. Such a module becomes a subclass of its class with the same parameters, in which that one call is given
other sizes. Only positions that the cut changed are replaced: a width by its new value, a size that depends on the
input (batch times heads) by a fraction of what the forward asks for. So batch, image size and length are not fixed.

Where the source of the forward can be read, the subclass has that source with other sizes (`call_sites`). Where it
cannot, the original forward runs under a mode that counts its size-taking calls and changes the n-th.

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

import ast
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType, ModuleType
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from secateur.errors import PlanError
from secateur.structure.cut.call_sites import HELPER, Site, edited, resized
from secateur.structure.trace.calls import ATTENTION, MADE, PIECES, SHAPED, SIZED, name_of
from secateur.structure.trace.fixed_count_norms import COUNTED, counting, named_alike

__all__ = [
    "HEADS",
    "NUMBER",
    "Rewrite",
    "RewrittenClass",
    "check_rewrites",
    "class_key",
    "one_after_the_other",
    "rewrite_",
]

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
        call: The number of size-taking calls that the forward makes before this one.
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


def with_sizes(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], item: Rewrite
) -> Any:
    """Make a call with the sizes of a rewrite.

    Args:
        function: The function that the forward called.
        args: The arguments it gave.
        kwargs: The keywords it gave.
        item: The rewrite.

    Returns:
        The result of the function.
    """
    name, new = item.function, dict(item.sizes)
    if name in PIECES:
        dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
        return torch.split(args[0], [value for _, value in item.sizes], dim)
    if name == "pad":
        pad = resized(args[1] if len(args) > 1 else kwargs["pad"], *item.sizes)
        return function(
            args[0], pad, *args[2:], **{key: value for key, value in kwargs.items() if key != "pad"}
        )
    if name == "__getitem__":
        index = list(args[1]) if isinstance(args[1], tuple) else [args[1]]
        for position, value in new.items():
            index[position] = slice(*value)
        return function(args[0], tuple(index))
    if name == "narrow":
        return torch.narrow(args[0], args[1], new[0], new[1])
    if name == "unflatten":
        sizes = args[2] if len(args) > 2 else kwargs["sizes"]
        return function(args[0], args[1] if len(args) > 1 else kwargs["dim"], resized(sizes, *item.sizes))
    return _with_shape(function, args, kwargs, item)


def _with_shape(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], item: Rewrite
) -> Any:
    """Make a call that takes a shape: as keyword, as one argument, or as all remaining arguments."""
    key = next((key for key in ("size", "shape", "sizes") if key in kwargs), None)
    if key is not None:
        return function(*args, **{**kwargs, key: resized(kwargs[key], *item.sizes)})
    first = 0 if item.function in MADE else 1
    if isinstance(args[first], (tuple, list)):
        return function(*args[:first], resized(args[first], *item.sizes), *args[first + 1 :], **kwargs)
    return function(*args[:first], resized(args[first:], *item.sizes), **kwargs)


class _Sizes(TorchFunctionMode):
    """While it is active, the calls named by the rewrites of a module get their sizes."""

    def __init__(self, module: nn.Module, table: Mapping[int, Rewrite]):
        super().__init__()
        self.module, self.table = module, table
        self.count = 0
        self.counted = [item for item in table.values() if item.function in COUNTED]
        self.sized = any(item.function in SIZED for item in table.values())
        self.numbers = [
            (item.sizes[0][1], item.sizes[1][1]) for item in table.values() if item.function == NUMBER
        ]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if self.numbers and ("mul" in name or "div" in name):
            args = tuple([self._as_before(arg) for arg in args])
        if self.counted and (torch.compiler.is_compiling() or counting()):
            made = self._counted_as_before(name, func, args, kwargs)
            if made is not None:
                return made
        if -1 in self.table and name == ATTENTION and kwargs.get("scale") is None:
            before, now = (value for _, value in self.table[-1].sizes)
            query = args[0] if args else kwargs["query"]
            if query.shape[-1] == now:
                return func(*args, **{**kwargs, "scale": before**-0.5})
        if self.sized and name in SIZED:
            item = self._item()
            if item is not None and item.function == name:
                return with_sizes(func, args, kwargs, item)
        return func(*args, **kwargs)

    def _counted_as_before(
        self, name: str, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> torch.Tensor | None:
        """A mean or a norm over a cut axis, with the count it had before; None if it is over another axis."""
        for counts in self.counted:
            if name in named_alike(counts.function):
                made: torch.Tensor | None = COUNTED[name](
                    func, args, kwargs, *[value for _, value in counts.sizes]
                )
                if made is not None:
                    return made
        return None

    def _item(self) -> Rewrite | None:
        """The rewrite of the size-taking call that is being made, if there is one."""
        # torch.compile cannot look at frames, and does not trace through hooks that it has not compiled.
        if not torch.compiler.is_compiling() and _in_a_hook(sys._getframe(2), self.module):
            return None
        self.count += 1
        return self.table.get(self.count - 1)

    def _as_before(self, value: object) -> object:
        """A number that is computed from a width, with its value before the cut."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            for now, before in self.numbers:
                if value == now:
                    return before
        return value


_MODULE_FILE = nn.Module._call_impl.__code__.co_filename


def _in_a_hook(frame: FrameType | None, module: nn.Module) -> bool:
    """Whether a call within a module's forward was made by a hook of one of its parts, not by their forwards.

    Both are run by the part's own call, whose frame holds the running hook. Hooks are added and removed without a
    change of the forward, so their calls are not counted.
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


class RewrittenClass:
    """The subclass of a module class whose forward has other sizes.

    Its source is edited where every rewrite has a site that still fits; else it runs under a mode. Every model that is
    cut or loaded has its own classes: with a shared class one model could change how another runs. A copy of a module
    has the class of its original; a pickled one gets a new class.

    Args:
        base: The class.
        table: The rewrites by `Rewrite.call`.
    """

    def __init__(self, base: type, table: Mapping[int, Rewrite]):
        self.base, self.table = base, dict(table)
        methods = None
        if _all_sited(table):
            edits = [(item.site, partial(_edit, item)) for item in table.values() if item.site is not None]
            methods = edited(base, edits)

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            with _Sizes(self, self._secateur_sizes):
                return base.forward(self, *args, **kwargs)  # type: ignore[attr-defined]

        def reduce(module: Any, protocol: int) -> Any:
            return _restore, (self, dict(module.__dict__))

        if methods is None:
            _WRAPPERS.add(forward.__code__)
            methods = {"forward": forward}  # type: ignore[dict-item]
        names = {**methods, "__reduce_ex__": reduce, "_secateur_base": base}
        self.made = type(base.__name__, (base,), names)
        self.made.__module__, self.made.__qualname__ = base.__module__, base.__qualname__

    def __reduce__(self) -> tuple[type[RewrittenClass], tuple[type, dict[int, Rewrite]]]:
        return RewrittenClass, (self.base, self.table)

    def __deepcopy__(self, memo: dict[int, object]) -> RewrittenClass:
        return self


def _all_sited(table: Mapping[int, Rewrite]) -> bool:
    return all(item.site is not None and item.function in SIZED for item in table.values())


def class_key(base: type, table: Mapping[int, Rewrite]) -> tuple[object, ...]:
    """The key by which two modules of a model have the same rewritten class.

    Args:
        base: The class.
        table: The rewrites by `Rewrite.call`.
    """
    return base, tuple(sorted(table.values(), key=lambda item: item.call)) if _all_sited(table) else None


def _restore(kind: RewrittenClass | type, state: dict[str, Any]) -> nn.Module:
    """Rebuild a rewritten module, for copy and pickle; pickles of earlier releases hold the base class."""
    if not isinstance(kind, RewrittenClass):
        kind = RewrittenClass(kind, state["_secateur_sizes"])
    made: Any = kind.made
    module: nn.Module = made.__new__(made)
    module.__dict__.update(state)
    return module


# -- calls in the source ---------------------------------------------------------------------------------
def _edit(item: Rewrite, node: ast.expr, scope: Mapping[str, Any]) -> ast.expr | None:
    """A call expression with the sizes of a rewrite; None where it is written in a way that cannot be edited."""
    if item.function == "__getitem__":
        return _edited_subscript(item, node)
    if not isinstance(node, ast.Call) or _called(node) != item.function:
        return None  # a site in a plan may point anywhere
    if any(keyword.arg is None for keyword in node.keywords):
        return None
    method = isinstance(node.func, ast.Attribute) and not (
        isinstance(node.func.value, ast.Name) and isinstance(scope.get(node.func.value.id), ModuleType)
    )
    first = 0 if method or item.function in MADE else 1  # of the arguments after the tensor itself
    if item.function in PIECES:
        return _edited_pieces(item, node, method)
    if item.function == "narrow":
        if len(node.args) != first + 3 or node.keywords:
            return None
        node.args[first + 1 :] = [_constant(value) for _, value in item.sizes]
        return node
    return _edited_call(item, node, first)


def _edited_call(item: Rewrite, node: ast.Call, first: int) -> ast.expr | None:
    """A call whose sizes are one argument or several, from argument `first` on."""
    keys = {"pad": ("pad",), "unflatten": ("sizes",)}.get(item.function, ("size", "shape", "sizes"))
    keyword = next((keyword for keyword in node.keywords if keyword.arg in keys), None)
    if keyword is not None:
        keyword.value = _edited_sizes(item, keyword.value)
        return node
    first += 1 if item.function == "unflatten" else 0
    if len(node.args) <= first:
        return None
    one = len(node.args) == first + 1 or item.function in ("pad", "unflatten", "full", "new_full")
    if one or isinstance(node.args[first], (ast.Tuple, ast.List)):
        node.args[first] = _edited_sizes(item, node.args[first])
        return node
    if any(isinstance(each, ast.Starred) for each in node.args[first:]):
        whole = ast.Tuple(node.args[first:], ast.Load())
        node.args[first:] = [_edited_sizes(item, whole)]
        return node
    for position, value in item.sizes:
        if first + position >= len(node.args):
            return None
        node.args[first + position] = _edited_size(node.args[first + position], value)
    return node


def _called(node: ast.Call) -> str:
    """The name under which an expression calls a function."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _edited_pieces(item: Rewrite, node: ast.Call, method: bool) -> ast.expr | None:
    """`x.chunk(2, 1)` or `torch.chunk(x, 2, 1)` as `x.split([4, 3], 1)`."""
    arguments = list(node.args) if method else node.args[1:]
    if not method and not node.args:
        return None
    dim: ast.expr = arguments[1] if len(arguments) > 1 else ast.Constant(0)
    dim = next((keyword.value for keyword in node.keywords if keyword.arg == "dim"), dim)
    assert not method or isinstance(node.func, ast.Attribute)
    source = node.func.value if method and isinstance(node.func, ast.Attribute) else node.args[0]
    pieces = ast.List([_constant(value) for _, value in item.sizes], ast.Load())
    return ast.Call(ast.Attribute(source, "split", ast.Load()), [pieces, dim], [])


def _edited_subscript(item: Rewrite, node: ast.expr) -> ast.expr | None:
    """`x[:, :8]` with other bounds."""
    if not isinstance(node, ast.Subscript):
        return None
    whole = isinstance(node.slice, ast.Tuple)
    index = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
    for position, (start, stop, _) in item.sizes:
        if position >= len(index) or not isinstance(index[position], ast.Slice):
            return None
        index[position] = ast.Slice(_constant(start), _constant(stop), None)
    node.slice = ast.Tuple(index, ast.Load()) if whole else index[0]
    return node


def _edited_sizes(item: Rewrite, node: ast.expr) -> ast.expr:
    """An expression for several sizes: its elements if it is written as a tuple or list, else its value."""
    if isinstance(node, (ast.Tuple, ast.List)) and not any(isinstance(e, ast.Starred) for e in node.elts):
        for position, value in item.sizes:
            node.elts[position] = _edited_size(node.elts[position], value)
        return node
    changes: list[ast.expr] = []
    for position, value in item.sizes:
        pair = (
            ast.Tuple([_constant(part) for part in value], ast.Load()) if isinstance(value, tuple) else None
        )
        changes.append(ast.Tuple([_constant(position), pair or _constant(value)], ast.Load()))
    return ast.Call(ast.Name(HELPER, ast.Load()), [node, *changes], [])


def _edited_size(node: ast.expr, value: Value) -> ast.expr:
    """An expression for one size."""
    if not isinstance(value, tuple):
        return _constant(value)
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return _constant(node.value * value[0] // value[1])
    times = ast.BinOp(node, ast.Mult(), _constant(value[0])) if value[0] != 1 else node
    return ast.BinOp(times, ast.FloorDiv(), _constant(value[1])) if value[1] != 1 else times


def _constant(value: int | float) -> ast.expr:
    """A number as an expression; a negative one as a unary minus, which TorchScript requires."""
    return ast.UnaryOp(ast.USub(), ast.Constant(-value)) if value < 0 else ast.Constant(value)


# -- several rewrites of one module ------------------------------------------------------------------------------------
def _joined(before: Mapping[int, Rewrite], new: Mapping[int, Rewrite]) -> dict[int, Rewrite]:
    """The rewrites of a module that is cut again: the later cut's sizes of a call are combined with the earlier
    ones.
    """
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
    return (*heads, *_joined(before, after).values())


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


def rewrite_(
    module: nn.Module,
    items: Sequence[Rewrite],
    classes: dict[tuple[object, ...], RewrittenClass] | None = None,
) -> None:
    """Give a module its rewrites, in place.

    Args:
        module: The module; its class becomes a subclass of its present one.
        items: The rewrites.
        classes: The classes that modules of the same model have been given so far, by `class_key`.

    Raises:
        PlanError: A rewrite is of a function that takes no such sizes.
    """
    check_rewrites("", module, items)
    for item in items:
        if item.function == HEADS:
            from secateur.structure.cut.heads import fewer_heads_

            fewer_heads_(module, *(value for _, value in item.sizes))
    table = {item.call: item for item in items if item.function != HEADS}
    if not table:
        return
    sizes = _joined(getattr(module, "_secateur_sizes", {}), table)
    module._secateur_sizes = sizes  # type: ignore[assignment]
    base = getattr(type(module), "_secateur_base", type(module))
    classes = {} if classes is None else classes
    key = class_key(base, sizes)
    if key not in classes:
        classes[key] = RewrittenClass(base, sizes)
    module.__class__ = classes[key].made

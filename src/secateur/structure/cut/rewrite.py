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

import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from secateur.core.torch_calls import Arguments, Function, Keywords
from secateur.structure.cut.call_sites import edited, resized
from secateur.structure.cut.edited_calls import EditedCall
from secateur.structure.cut.rewrite_data import HEADS, NUMBER, Rewrite, check_rewrites, joined
from secateur.structure.trace.calls import ATTENTION, MADE, PIECES, SIZED, name_of
from secateur.structure.trace.fixed_count_norms import COUNTED, counting, named_alike

__all__ = ["RewrittenClass", "class_key", "rewrite_"]


def with_sizes(function: Function, args: Arguments, kwargs: Keywords, item: Rewrite) -> Any:
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


def _with_shape(function: Function, args: Arguments, kwargs: Keywords, item: Rewrite) -> Any:
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
        self, func: Function, types: object, args: Arguments = (), kwargs: Keywords | None = None
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
        self, name: str, func: Function, args: Arguments, kwargs: Keywords
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
            edits = [(item.site, EditedCall(item)) for item in table.values() if item.site is not None]
            methods = edited(base, edits)

        def forward(self: Any, *args: Arguments, **kwargs: Keywords) -> Any:
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
    sizes = joined(getattr(module, "_secateur_sizes", {}), table)
    module._secateur_sizes = sizes  # type: ignore[assignment]
    base = getattr(type(module), "_secateur_base", type(module))
    classes = {} if classes is None else classes
    key = class_key(base, sizes)
    if key not in classes:
        classes[key] = RewrittenClass(base, sizes)
    module.__class__ = classes[key].made

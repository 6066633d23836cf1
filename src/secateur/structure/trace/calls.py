"""Size-taking calls: the calls of a forward that take sizes in Python, matched with the operators each became.
`x.view(b, 8, -1)` or `x[:, :8]` may have a hard-coded width that is wrong once channels are removed. Such calls are
recorded with a forward, with their place in the source, so that a cut can give each one its new sizes.

>>> import torch
>>> ops, stack = [], [""]
>>> with CallRecorder(ops, stack) as calls:
...     _ = torch.zeros(5, 2, 3).reshape(5, 6)
>>> [(call.function, call.sizes) for call in calls.found]
[('zeros', (5, 2, 3)), ('reshape', (5, 6))]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from secateur.core.torch_calls import Arguments, Function, Keywords

__all__ = ["ATTENTION", "MADE", "PIECES", "SHAPED", "SIZED", "CallRecorder", "FunctionCall", "name_of"]

MADE = frozenset(["zeros", "ones", "full", "empty"])
"""Functions whose sizes come first: they make a tensor instead of taking one."""

SHAPED = MADE | {
    "view",
    "reshape",
    "expand",
    "unflatten",
    "repeat",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
}
"""Functions that take a shape."""

PIECES = frozenset(["split", "chunk", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split"])
"""Functions that split an axis."""

ATTENTION = "scaled_dot_product_attention"

SIZED = SHAPED | PIECES | {"pad", "__getitem__", "narrow"}
"""Every function that takes sizes."""

Chain = tuple[tuple[CodeType, int], ...]


def name_of(function: object) -> str:
    """The plain name of a torch function: `reshape`, `__getitem__`, `pad`.

    Args:
        function: A function as a torch function mode receives it. torch.compile passes `operator.getitem` for a
            subscript.

    >>> import operator
    >>> name_of(torch.Tensor.reshape), name_of(operator.getitem)
    ('reshape', '__getitem__')
    """
    name: str = getattr(function, "__name__", "")
    return "__getitem__" if name == "getitem" else name


@dataclass
class FunctionCall:
    """One size-taking call.

    Attributes:
        function: Its name.
        first: Index of the first operator it became.
        last: Index after the last one.
        numbers: (module path, number of size-taking calls that module's forward had made before), innermost first.
        sizes: The sizes it was given, where it takes a shape.
        dim: The axis that `unflatten` was given.
        index: The index that a subscript was given.
        shape: The shape of the tensor it was called on.
        chain: Its place in the source: (code, instruction) from the module's forward to the call itself.
    """

    function: str
    first: int
    last: int
    numbers: tuple[tuple[str, int], ...]
    sizes: tuple[int, ...] | None = None
    dim: int = 0
    index: tuple[Any, ...] = ()
    shape: tuple[int, ...] = field(default=())
    chain: Chain = ()

    def position_of(self, axis: int, rank: int) -> int | None:
        """Which entry of a subscript's index is the slice of an axis.

        Args:
            axis: The axis.
            rank: The number of axes of the tensor.

        Returns:
            The position within the index; None where there is none or it is no slice.
        """
        current = 0
        used = sum(1 for item in self.index if item is not None and item is not Ellipsis)
        for position, item in enumerate(self.index):
            if item is None:
                continue
            if item is Ellipsis:
                current += rank - used
                continue
            if current == axis:
                return position if isinstance(item, slice) else None
            current += 1
        return None


class CallRecorder(TorchFunctionMode):
    """Records every size-taking call while it is active.

    Args:
        ops: The operators recorded so far; the list grows meanwhile.
        stack: The dotted names of the modules that are running, innermost last.
    """

    def __init__(self, ops: Sequence[object], stack: list[str]):
        super().__init__()
        self.ops, self.stack = ops, stack
        self.found: list[FunctionCall] = []
        self.counts: dict[str, int] = {}
        self.hooked = 0

    def enter(self, path: str) -> None:
        """Count a module's calls from 0: its forward begins.

        Args:
            path: The module's dotted name.
        """
        self.counts[path] = 0

    def hook(self, entered: int) -> None:
        """Note that a user's hooks begin or end; their calls are not counted.

        Args:
            entered: 1 where they begin, -1 where they end.
        """
        self.hooked += entered

    def __torch_function__(
        self, func: Function, types: object, args: Arguments = (), kwargs: Keywords | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if name not in SIZED:
            if name == ATTENTION and any(isinstance(arg, torch.Tensor) and not arg.numel() for arg in args):
                # torch divides by the number of heads; a wrong size that is being tried must not end the process
                raise ValueError("attention over a tensor that has no elements")
            return func(*args, **kwargs)
        numbers = []
        if not self.hooked:  # a hook may be removed later, so it must not shift the count
            for path in dict.fromkeys(reversed(self.stack)):
                number = self.counts.get(path, 0)
                self.counts[path] = number + 1
                numbers.append((path, number))
        first = len(self.ops)
        call = FunctionCall(name, first, first, tuple(numbers), chain=_chain(sys._getframe(1)))
        _describe(call, args, kwargs)
        self.found.append(call)
        try:
            return func(*args, **kwargs)
        finally:
            call.last = max(len(self.ops), first)


_WRAPPERS = tuple(
    str(code.co_filename)
    for code in (
        torch.overrides.handle_torch_function.__code__,
        torch.Tensor.split.__code__,
        torch.functional.split.__code__,
        nn.functional.gumbel_softmax.__code__,
    )
)
_MODULE_FILE = nn.Module._call_impl.__code__.co_filename


def _chain(frame: FrameType | None) -> Chain:
    """From the running module's forward down to the call: (code, instruction) of each function on the way.

    Torch's own functions around the call itself are left out.
    """
    found: list[tuple[CodeType, int]] = []
    while frame is not None and frame.f_code.co_filename != _MODULE_FILE:
        if found or frame.f_code.co_filename not in _WRAPPERS:
            found.append((frame.f_code, frame.f_lasti))
            if len(found) > 8:
                return ()
        frame = frame.f_back
    return tuple(reversed(found)) if frame is not None else ()


def _describe(call: FunctionCall, args: Arguments, kwargs: Keywords) -> None:
    """Read the sizes from the arguments."""
    if args and isinstance(args[0], torch.Tensor):
        call.shape = tuple(args[0].shape)
    if call.function == "__getitem__":
        call.index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return
    if call.function == "unflatten":
        call.dim = args[1] % len(call.shape)
        sizes: Any = args[2] if len(args) > 2 else kwargs.get("sizes")
    else:
        rest = args[0 if call.function in MADE else 1 :]
        sizes = rest[0] if rest and isinstance(rest[0], (tuple, list)) else rest
        for key in ("size", "shape"):
            sizes = kwargs.get(key, sizes)
    try:
        call.sizes = tuple(int(size) for size in sizes)
    except (TypeError, ValueError):
        call.sizes = None

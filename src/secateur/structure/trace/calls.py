"""Calls: the size-taking calls a forward makes, as Python wrote them, matched with the operators they became.

>>> import torch
>>> ops, stack = [], [""]
>>> with CallRecorder(ops, stack) as calls:
...     _ = torch.zeros(5, 2, 3).reshape(5, 6)
>>> [(call.function, call.sizes) for call in calls.found]
[('zeros', (5, 2, 3)), ('reshape', (5, 6))]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from secateur.structure.cut.rewrite import ATTENTION, SIZED, name_of

__all__ = ["CallRecorder", "FunctionCall"]


@dataclass
class FunctionCall:
    """One call: its function, the sizes it was given, and the operators (first to last) it became.

    `numbers` are (module path, how many size-taking calls that module's forward had made before), innermost first.
    """

    function: str
    first: int
    last: int
    numbers: tuple[tuple[str, int], ...]
    sizes: tuple[int, ...] | None = None
    dim: int = 0
    index: tuple[Any, ...] = ()
    shape: tuple[int, ...] = field(default=())

    def fixed(self, position: int) -> bool:
        """Whether a size was given as it is on a position that a cut width can have moved."""
        assert self.sizes is not None
        return 1 < position < len(self.sizes)

    def position_of(self, axis: int, rank: int) -> int | None:
        """Which entry of a slice's index speaks of an axis."""
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
    """Notes every size-taking call while a forward is recorded; `ops` and `stack` are the recorder's."""

    def __init__(self, ops: Sequence[Any], stack: list[str]):
        super().__init__()
        self.ops, self.stack = ops, stack
        self.found: list[FunctionCall] = []
        self.counts: dict[str, int] = {}
        self.hooked = 0

    def enter(self, path: str) -> None:
        """A module's forward begins: its calls are counted from 0."""
        self.counts[path] = 0

    def hook(self, entered: int) -> None:
        """A user's hooks begin (1) or are done (-1)."""
        self.hooked += entered

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if name not in SIZED:
            if name == ATTENTION and any(isinstance(arg, torch.Tensor) and not arg.numel() for arg in args):
                # torch divides by the number of heads; a wrong size that is being tried must not end the process
                raise ValueError("attention over a tensor that has no elements")
            return func(*args, **kwargs)
        numbers = []
        if not self.hooked:  # a hook may be there today and gone tomorrow: its calls are nobody's
            for path in dict.fromkeys(reversed(self.stack)):
                number = self.counts.get(path, 0)
                self.counts[path] = number + 1
                numbers.append((path, number))
        first = len(self.ops)
        call = FunctionCall(name, first, first, tuple(numbers))
        _describe(call, args, kwargs)
        self.found.append(call)
        try:
            return func(*args, **kwargs)
        finally:
            call.last = max(len(self.ops), first)


def _describe(call: FunctionCall, args: Any, kwargs: Any) -> None:
    """Read the sizes off the arguments."""
    if args and isinstance(args[0], torch.Tensor):
        call.shape = tuple(args[0].shape)
    if call.function == "__getitem__":
        call.index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return
    if call.function == "unflatten":
        call.dim = args[1] % len(call.shape)
        sizes = args[2] if len(args) > 2 else kwargs.get("sizes")
    else:
        rest = args[0 if call.function in ("zeros", "ones", "full", "empty") else 1 :]
        sizes = rest[0] if rest and isinstance(rest[0], (tuple, list)) else rest
        for key in ("size", "shape"):
            sizes = kwargs.get(key, sizes)
    try:
        call.sizes = tuple(int(size) for size in sizes)
    except (TypeError, ValueError):
        call.sizes = None

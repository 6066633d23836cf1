"""`SumFinder`, `Addend`: where a layer's output is added to what goes around the layer, a residual connection.

What goes around has errors of its own, from the layers before. A layer whose output is added to it can compensate for
them, too: its target is then what makes the *sum* the dense model's. That is right only where nothing else reads the
output: all else expects the dense layer's own. `SumFinder` looks at a pass of the dense model for such sums, also
behind dropout, reshaping or a batch norm, whose scale of each channel it notes. `Sources` gives the tensor that will be
added, in another pass over the same inputs, before it is.

>>> from torch import nn
>>> class Block(nn.Module):
...     def __init__(self):
...         super().__init__()
...         self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)
...
...     def forward(self, x):
...         y = self.one(x)
...         return y + self.two(torch.relu(y))
>>> from secateur.compensation.calls import Names
>>> from secateur.compensation.walking import Walk
>>> block, finder = Block(), SumFinder(())
>>> with Walk(block, Names(block), (torch.ones(1, 2),), {}, watch=finder) as walk:
...     _ = walk.finish()
>>> {name: addend.key for name, addend in finder.addends().items()}
{'two.weight': ('one.weight', 0)}
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import torch
from torch.nn import functional

from secateur.compensation.calls import Call, NormCall
from secateur.core.nested import tensors_in

__all__ = ["Addend", "CallWatch", "Key", "Sources", "SumFinder"]

Key: TypeAlias = tuple[str, int]
"""Where a pass has made a tensor: the name of the last layer before, and how many functions came after it. Inputs of
the pass have an empty name and numbers below zero."""

_SUMS = frozenset(
    [torch.add, torch.Tensor.add, torch.Tensor.add_, torch.Tensor.__add__]
    + [torch.Tensor.__radd__, torch.Tensor.__iadd__]
)
_SAME = frozenset([functional.dropout, functional.dropout2d, torch.Tensor.contiguous, torch.Tensor.clone])
"""Functions that, in evaluation, give the numbers that they get."""
_VIEWS = frozenset([torch.Tensor.view, torch.Tensor.reshape, torch.reshape])
_LEAST_SCALE = 0.1
"""Channels whose scale is below this share of the median stay as they are: their weights would have to be large."""


class CallWatch(Protocol):
    """What sees every function of a pass."""

    def saw(
        self,
        call: Call | NormCall | None,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
    ) -> None:
        """Called after a function, with the layer that it is, where it is one."""
        ...


@dataclass(frozen=True, eq=False)
class Addend:
    """What a layer's output is added to.

    Attributes:
        key: Where the pass makes it.
        scale: What each channel of the output is multiplied by before; None for nothing.
        axis: The axis of the channels, with `scale`.
    """

    key: Key
    scale: torch.Tensor | None = None
    axis: int = 1

    def shift(self, dense: torch.Tensor, student: torch.Tensor, shape: torch.Size) -> torch.Tensor | None:
        """What the layer's target grows by, in its output's shape; None where the tensors do not fit or are equal."""
        if dense is student or dense.shape != student.shape or dense.numel() != shape.numel():
            return None
        away = (dense - student).reshape(shape)
        if self.scale is None:
            return away
        size = self.scale.abs()
        if not bool(size.any()):
            return None
        used = (size > 0) & (size >= _LEAST_SCALE * size[size > 0].median())
        inverse = torch.where(used, 1 / torch.where(used, self.scale, 1.0), 0.0)
        return away * inverse.reshape([-1 if axis == self.axis else 1 for axis in range(len(shape))])


class _Places:
    """Counts the functions of a pass, by the last layer before each."""

    def __init__(self) -> None:
        self._last, self._count = "", 0

    def next(self, call: Call | NormCall | None) -> Key:
        self._last, self._count = (self._last, self._count + 1) if call is None else (call.name, 0)
        return self._last, self._count


class Sources:
    """The tensors of a pass that a layer's output will be added to, by their keys, as long as they live."""

    def __init__(self, keys: frozenset[Key], inputs: object):
        self._keys, self._places = keys, _Places()
        self._known: dict[Key, weakref.ref[torch.Tensor]] = {}
        for index, tensor in enumerate(tensors_in(inputs)):
            self._note(("", -1 - index), tensor)

    def saw(
        self,
        call: Call | NormCall | None,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
    ) -> None:
        """Note a tensor that is wanted."""
        self._note(self._places.next(call), result)

    def _note(self, key: Key, tensor: Any) -> None:
        if key in self._keys and isinstance(tensor, torch.Tensor):
            self._known[key] = weakref.ref(tensor)

    def get(self, key: Key) -> torch.Tensor | None:
        """The tensor; None where the pass has not made it, or has forgotten it."""
        known = self._known.get(key)
        return None if known is None else known()


@dataclass(frozen=True, eq=False)
class _Output:
    """A tensor that is a layer's output but for a scale: the layer, a norm behind it, when the layer was called."""

    tensor: weakref.ref[torch.Tensor]
    names: tuple[str, ...]
    time: int
    scale: torch.Tensor | None = None
    axis: int = 1


class SumFinder:
    """Finds, in one pass, the layers and norms whose outputs are added to a tensor that was there before them."""

    def __init__(self, inputs: object):
        self._found: dict[str, Addend] = {}
        self._elsewhere: set[str] = set()  # names whose outputs are read by something besides a sum
        self._read: set[int] = set()  # outputs that one function has read
        self._places, self._time = _Places(), 0
        self._made: dict[int, tuple[weakref.ref[torch.Tensor], Key, int]] = {}
        self._outputs: dict[int, _Output] = {}
        for index, tensor in enumerate(tensors_in(inputs)):
            self._made[id(tensor)] = weakref.ref(tensor), ("", -1 - index), 0

    def addends(self, output: object = None) -> dict[str, Addend]:
        """What outputs are added to, and nothing else reads, by the names of weights and of running means.

        Args:
            output: What the pass has given, which its caller reads.
        """
        for tensor in tensors_in(output):
            self._note_reader(tensor, whole=False)
        return {name: addend for name, addend in self._found.items() if name not in self._elsewhere}

    def saw(
        self,
        call: Call | NormCall | None,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
    ) -> None:
        """Follow a function."""
        self._time += 1
        key = self._places.next(call)
        if function is torch.Tensor.__setitem__:
            self._outputs.pop(id(args[0]), None)
        # a shape, for example, reads no number
        given = tensors_in([args, kwargs]) if tensors_in(result) else []
        output, whole = None, False
        if isinstance(result, torch.Tensor):
            output = self._followed(call, function, args, kwargs, result)
            added = function in _SUMS and len(args) == 2 and not kwargs and self._added(args, result)
            whole = added or (output is not None and not isinstance(call, Call))
        for tensor in given:
            self._note_reader(tensor, whole)
        if not isinstance(result, torch.Tensor):
            return
        self._outputs.pop(id(result), None)
        self._read.discard(id(result))
        if output is not None:
            self._outputs[id(result)] = replace(output, tensor=weakref.ref(result))
        self._made[id(result)] = weakref.ref(result), key, self._time

    def _followed(
        self,
        call: Call | NormCall | None,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: torch.Tensor,
    ) -> _Output | None:
        """What the result is of a layer's output, if it still is that."""
        if isinstance(call, Call):
            return _Output(weakref.ref(result), (call.name,), self._time)
        before = self._of(args[0] if args else kwargs.get("input"))
        if before is None:
            return None
        if isinstance(call, NormCall):
            scale = None if before.scale is not None else _scale(function, args, kwargs)
            return None if scale is None else replace(before, names=(*before.names, call.name), scale=scale)
        given = before.tensor()
        if given is None:
            return None
        if function in _SAME:
            return before if given.shape == result.shape else None
        if function in _VIEWS and before.scale is None:
            alike = given.shape[-1:] == result.shape[-1:] and max(given.dim(), result.dim()) < 4
            return before if alike else None
        return None

    def _note_reader(self, tensor: torch.Tensor, whole: bool) -> None:
        """Count a function that reads a tensor; `whole` says that it is a sum, or gives the same numbers on."""
        output = self._of(tensor)
        if output is None:
            return
        if not whole or id(tensor) in self._read:
            self._elsewhere.update(output.names)
        self._read.add(id(tensor))

    def _added(self, args: tuple[Any, ...], result: torch.Tensor) -> bool:
        """Note a sum of two tensors, one of which is an output and the other was there before it; whether it is one."""
        found = False
        for one, other in (args, args[::-1]):
            if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
                continue
            output, (made, key, time) = self._of(one), self._made.get(id(other), (None, ("", 0), 0))
            if output is None or made is None or made() is not other:
                continue
            if one.shape == other.shape == result.shape and time < output.time:
                found = True
                for name in output.names:
                    self._found.setdefault(name, Addend(key, output.scale, output.axis))
        return found

    def _of(self, tensor: Any) -> _Output | None:
        """What is known of this very tensor."""
        known = self._outputs.get(id(tensor)) if isinstance(tensor, torch.Tensor) else None
        return known if known is not None and known.tensor() is tensor else None


def _scale(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> torch.Tensor | None:
    """What a batch norm in evaluation multiplies each channel by."""
    if function is not functional.batch_norm:
        return None
    order = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = {**dict(zip(order, args)), **kwargs}
    scale = (given["running_var"] + given.get("eps", 1e-5)).rsqrt()
    weight = given.get("weight")
    return scale if weight is None else scale * weight

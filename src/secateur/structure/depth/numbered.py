"""`held_by_number`: the blocks that a forward counts on by their number: without them it computes something else.

A forward may ask for layer 3 of a list, for what the third layer gave, or for the scale that belongs to the third. If a
layer before it leaves, it reads another one. So the model without a block is recorded too, and its outputs have to be
made of the same operators, parameters and inputs as those of the model in which the block's output is its input.

>>> import torch
>>> from torch import nn
>>> from secateur.structure.depth.blocks import find_blocks
>>> class Residual(nn.Module):
...     def __init__(self):
...         super().__init__()
...         self.fc = nn.Linear(4, 4)
...     def forward(self, x):
...         return x + self.fc(x)
>>> class Tapped(nn.Module):
...     def __init__(self):
...         super().__init__()
...         self.layers = nn.ModuleList(Residual() for _ in range(4))
...     def forward(self, x):
...         given = []
...         for layer in self.layers:
...             x = layer(x)
...             given.append(x)
...         return x + given[1]
>>> found = find_blocks(Tapped(), torch.zeros(1, 4))
>>> [block.path for block in found.found], [each.path for each in found.refused]
(['layers.2', 'layers.3'], ['layers.0', 'layers.1'])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from secateur.structure.depth.entries import take_out_
from secateur.structure.trace.trace import Op, TensorRef, Trace, trace, traceable_copy

__all__ = ["BY_NUMBER", "COUNTED_ON", "Stream", "held_by_number"]

COUNTED_ON = "the forward does not run without it"
BY_NUMBER = "without it the forward reads other layers than before: it asks for them, or for what they give, by number"


@dataclass(frozen=True)
class Stream:
    """Where the stream enters and leaves a block in a recorded forward.

    Attributes:
        path: The block's dotted name.
        taken: The id of the tensor that it takes in.
        given: The id of the tensor that it gives.
        first: The index of its first operator.
        last: The index of its last one.
    """

    path: str
    taken: int
    given: int
    first: int
    last: int

    @property
    def container(self) -> str:
        """The dotted name of the container that holds the block."""
        return self.path.rpartition(".")[0]


def held_by_number(
    model: nn.Module, example: object, found: Trace, streams: Sequence[Stream]
) -> Mapping[str, str]:
    """The blocks that cannot leave because of how the forward asks for layers, each with the reason.

    Args:
        model: The model; it is not changed.
        example: What it is called with.
        found: Its recorded forward.
        streams: The blocks that could leave otherwise.
    """
    without = _Without(model, example, found)
    tapped = _tapped(found, streams)
    kinds: dict[tuple[object, ...], list[Stream]] = {}
    for stream in streams:
        owner, _, attribute = stream.container.rpartition(".")
        if isinstance(model.get_submodule(stream.container), nn.ModuleList):
            kinds.setdefault((type(model.get_submodule(owner)), attribute), []).append(stream)
        elif stream.container in tapped or stream.container not in found.entered:
            kinds.setdefault((stream.container,), []).append(stream)
    reasons: dict[str, str] = {}
    # one block of each kind of list is tried, and all of them where that is not enough
    for same in kinds.values():
        reason = without.reason(same[0])
        if reason == COUNTED_ON == without.reason(same[-1]):  # as where each is asked for by its number
            reasons.update({stream.path: reason for stream in same})
        elif reason or any(stream.container in tapped for stream in same):
            each_has = {stream.path: without.reason(stream) for stream in same}
            reasons.update({path: why for path, why in each_has.items() if why})
    return reasons


def _tapped(found: Trace, streams: Sequence[Stream]) -> set[str]:
    """The containers of which others read what a block gives that is not the last one."""
    last = {stream.container: stream for stream in streams}
    given = {stream.given: stream for stream in streams if stream is not last[stream.container]}
    tapped: set[str] = set()
    for op in found.ops:
        for ref in op.refs():
            stream = given.get(ref.id)
            if (
                stream is not None
                and op.index > stream.last
                and not op.path.startswith(stream.container + ".")
            ):
                tapped.add(stream.container)
    return tapped


class _Without:
    """The recorded forward beside that of the model without a block."""

    def __init__(self, model: nn.Module, example: object, found: Trace):
        self.model = model
        self.example = example
        self.found = found
        self.numbers: dict[object, int] = {}
        self.known: dict[str, str] = {}

    def reason(self, stream: Stream) -> str:
        """Why a block cannot leave; empty if it can."""
        if stream.path not in self.known:
            self.known[stream.path] = self._reason(stream)
        return self.known[stream.path]

    def _reason(self, stream: Stream) -> str:
        mode = self.found.mode
        copied, names = traceable_copy(self.model, mode)
        keys = copied.get_submodule(stream.container)._modules
        gone = stream.path.rpartition(".")[2]
        take_out_(copied, {stream.container: [key for key in keys if key != gone]})
        left = trace(copied, self.example, mode=mode, partial=True, ready=names)
        if left.error is not None:
            return COUNTED_ON
        # on real tensors a forward may go another way because of other values; the proof decides there
        same = mode == "real" or self._outputs(self.found, stream) == self._outputs(left, None)
        return "" if same else BY_NUMBER

    def _outputs(self, found: Trace, bypassed: Stream | None) -> list[int]:
        """A number for each output: equal for two that are made in the same way from the same tensors."""
        at: dict[int, int] = {}
        for place, ref in enumerate(found.inputs):
            at[ref.id] = self._number(("input", place))
        for name, ref in found.parameters.items():
            at[ref.id] = self._number(("parameter", name))
        entered = -1
        for op in found.ops:
            if bypassed is not None and bypassed.first <= op.index <= bypassed.last:
                if op.index == bypassed.first:
                    entered = at.get(bypassed.taken, -1)
                if op.index == bypassed.last:
                    at[bypassed.given] = entered
                continue
            key = self._made_by(op, at)
            for place, ref in enumerate(op.results()):
                at[ref.id] = self._number((key, place))
        return [at.get(ref.id, -1) for ref in found.outputs]

    def _made_by(self, op: Op, at: Mapping[int, int]) -> int:
        return self._number((str(op.overload), self._key(op.args, at), self._key(op.kwargs, at)))

    def _key(self, value: object, at: Mapping[int, int]) -> object:
        if isinstance(value, TensorRef):
            return "tensor", at.get(value.id, -1), value.shape
        if isinstance(value, (list, tuple)):
            return tuple(self._key(item, at) for item in value)
        if isinstance(value, dict):
            return tuple((key, self._key(item, at)) for key, item in value.items())
        return repr(value)

    def _number(self, key: object) -> int:
        return self.numbers.setdefault(key, len(self.numbers))

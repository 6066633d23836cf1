"""Branches: calls of a forward that the example does not reach and a larger input does.

A forward may shift its windows only where an image has several of them, or pad only what is not a multiple of a window.
The example of a cut may be too small for that, and then its recording lacks calls that have a hard-coded width. So the
model is recorded on a larger input as well, on meta tensors, which costs no compute. Where it makes other calls there,
the channels are followed through that recording too, and the cut model is repaired for it.

>>> import torch
>>> from torch import nn
>>> from secateur.structure.groups.couplings import analyse
>>> model, x = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)), torch.zeros(1, 2)
>>> branch_of(analyse(model, x), model, x) is None
True
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from secateur.core.nested import map_tensors, tensors_in
from secateur.execution.example import Example
from secateur.structure.groups.couplings import Structure
from secateur.structure.groups.rules import Follower
from secateur.structure.trace.calls import FunctionCall
from secateur.structure.trace.other_shapes import larger_examples, larger_recordings, path_taken
from secateur.structure.trace.trace import Trace, trace

__all__ = ["Branch", "branch_of", "branching_example", "refused_larger"]

_TIMES, _A_LITTLE = (4, 2), (1.25, 1.5, 2)
"""How large a larger input is: so large that other branches are likely, and the smallest that is worth a try."""
_MORE = 1.25
"""How large the second of the larger inputs is, beside the first: where their sizes differ, they follow the input."""


@dataclass(frozen=True, eq=False)
class Branch:
    """A larger input on which a forward makes other calls.

    Attributes:
        example: The input.
        trace: The recording of the model on it.
        calls: The calls of the model on yet another input, by which sizes that follow the input are told.
    """

    example: Example
    trace: Trace
    calls: tuple[FunctionCall, ...]

    def structure(self, structure: Structure, alive: np.ndarray) -> tuple[Structure, np.ndarray] | None:
        """The structure of this recording with the channels of another, and which of its labels remain.

        Args:
            structure: The structure of the example's recording.
            alive: For every label of it, whether it remains.

        Returns:
            None where a channel that leaves means something else here.
        """
        labels, count = structure.labels.copy(), structure.labels.count
        follower = Follower(self.trace, labels, structure.follower.across_norm)
        for name, ref in self.trace.parameters.items():
            first = structure.trace.parameters.get(name)
            if first is None or first.shape != ref.shape:
                return None
            follower.layouts[ref.id] = structure.follower.of(first)
        follower.run()
        labels.settle()
        roots = labels.without_locks()
        leaving = np.zeros(labels.count, bool)
        leaving[roots[:count][~alive]] = True
        remains = ~leaving[roots]
        tied = not np.array_equal(remains[:count], alive)
        if tied or any(
            not remains[lock.labels].all() for lock in labels.locks[len(structure.labels.locks) :]
        ):
            return None
        made = Structure(self.trace, follower, labels, structure.groups, structure.slots)
        return made, remains


_KNOWN: weakref.WeakKeyDictionary[Trace, Branch | None] = weakref.WeakKeyDictionary()


def branch_of(structure: Structure, model: nn.Module, example: Example) -> Branch | None:
    """The larger input on which a model makes calls that it does not make on the example; None where there is none.

    Args:
        structure: The structure of the model on the example.
        model: The model; it is not changed.
        example: The example.
    """
    recorded = structure.trace
    if recorded not in _KNOWN:
        _KNOWN[recorded] = _branch(recorded, model, example) if recorded.mode == "meta" else None
    return _KNOWN[recorded]


def _branch(recorded: Trace, model: nn.Module, example: Example) -> Branch | None:
    found = _larger(model, example)
    if found is None or _places(found[1].calls) <= _places(recorded.calls):
        return None
    larger, made = found
    for other in _others(larger):
        calls = trace(model, other, mode="meta", partial=True)
        if calls.error is None and _places(made.calls) <= _places(calls.calls):
            return Branch(larger, made, tuple(calls.calls))
    return None


def _larger(model: nn.Module, example: Example) -> tuple[Example, Trace] | None:
    """A larger input that a model accepts, and its recording on meta tensors; None where it accepts none."""
    return next((found for times in _TIMES for found in larger_recordings(model, example, times)), None)


def branching_example(
    model: nn.Module, example: Example, known: Sequence[frozenset[object]], much: bool = False
) -> Example | None:
    """The smallest of a few larger inputs on which a model runs something that it does not run on others.

    Args:
        model: The model; it is not changed.
        example: An input that it accepts.
        known: What it runs on other inputs (`path_taken`); what it runs on the example is recorded.
        much: Whether a much larger input is taken where none a little larger will do.

    Returns:
        None where it runs nothing else, or only on inputs that are much larger.
    """
    found = _larger(model, example)
    if found is None:
        return None
    new = path_taken(found[1]).difference(*known)
    if not new or not (new := new - path_taken(trace(model, example, mode="meta", partial=True))):
        return None
    for times in _A_LITTLE:
        for larger, taken in larger_recordings(model, example, times):
            if path_taken(taken) & new:
                return larger
    return found[0] if much else None


def refused_larger(
    model: nn.Module, small: nn.Module, example: Example
) -> tuple[Example, Exception | None] | None:
    """A larger input that a model accepts and a cut one does not, and its error; None where there is none.

    Both are recorded on meta tensors: this compares the shapes of outputs, and nothing is computed.

    Args:
        model: The model; it is not changed.
        small: The cut model; it is not changed.
        example: An input that both accept.
    """

    def refused(larger: Example, wanted: Trace) -> tuple[Example, Exception | None] | None:
        got = trace(small, larger, mode="meta", partial=True)
        alike = [each.shape for each in got.outputs] == [each.shape for each in wanted.outputs]
        if got.error is None and alike:
            return None
        return larger, got.error if isinstance(got.error, Exception) else None

    found = _larger(model, example)
    far = None if found is None else refused(*found)
    if far is None:
        return None
    for times in _A_LITTLE:
        for larger, wanted in larger_recordings(model, example, times):
            near = refused(larger, wanted)
            if near is not None:
                return near
    return far


def _others(larger: Example) -> Iterator[Example]:
    """Inputs about as large that differ in all sizes, batches included; the last in all but these."""
    rows = next((tensor.shape[0] for tensor in tensors_in(larger) if tensor.dim()), 0)
    for other in larger_examples(larger, _MORE):
        yield map_tensors(lambda each: _repeated(each, rows), other)
        yield other


def _repeated(tensor: object, rows: int) -> object:
    """A tensor with one row more, where its rows are those of the batch."""
    return tensor if not tensor.dim() or tensor.shape[0] != rows else tensor[[*range(rows), 0]]  # type: ignore


def _places(calls: Sequence[FunctionCall]) -> set[tuple[object, object]]:
    """The places of size-taking calls: their modules, and where in the source they are."""
    return {(call.numbers[0][0], call.chain) for call in calls if call.numbers and call.chain}

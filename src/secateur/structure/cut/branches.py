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
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from torch import nn

from secateur.execution.example import Example, Training
from secateur.structure.groups.couplings import Structure
from secateur.structure.groups.labels import Lock
from secateur.structure.groups.rules import Follower
from secateur.structure.trace.calls import FunctionCall
from secateur.structure.trace.in_training import training_run
from secateur.structure.trace.other_shapes import (
    larger_examples,
    larger_recordings,
    path_taken,
    rows_of,
    with_rows,
)
from secateur.structure.trace.trace import Trace, trace

__all__ = [
    "Branch",
    "Followed",
    "LargerInputs",
    "branch_of",
    "branching_example",
    "larger_inputs",
    "refused_larger",
    "refused_training",
    "training_branch",
]

_TIMES, _A_LITTLE = (4, 2), (1.25, 1.5, 2)
"""How large a larger input is: so large that other branches are likely, and the smallest that is worth a try."""
_MORE = 1.25
"""How large the second of the larger inputs is, beside the first: where their sizes differ, they follow the input."""


@dataclass(frozen=True, eq=False)
class Branch:
    """A larger input on which a forward makes other calls.

    Attributes:
        example: The input.
        trace: The recording of the model on it; in training, where that is the branch.
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
        found = self.followed(structure, alive)
        return None if found is None or found.lock is not None else (found.structure, found.remains)

    def followed(self, structure: Structure, alive: np.ndarray) -> Followed | None:
        """The channels of another recording, followed through this one.

        Args:
            structure: The structure of the example's recording.
            alive: For every label of it, whether it remains.

        Returns:
            None where this recording has parameters of other shapes.
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
        made = Structure(self.trace, follower, labels, structure.groups, structure.slots)
        found = Followed(made, remains, roots, alive)
        for lock in labels.locks[len(structure.labels.locks) :]:
            if not remains[lock.labels].all():
                return replace(found, lock=found.mapped(lock))
        tied = np.flatnonzero(remains[:count] != alive)
        if tied.size:
            return replace(found, lock=found.mapped(self._tied(found, structure.trace, tied)))
        return found

    def _tied(self, found: Followed, recorded: Trace, tied: np.ndarray) -> Lock:
        """The lock for channels that this recording ties to others, with the first operator of its own that they
        reach.
        """
        before, roots = path_taken(recorded), np.unique(found.roots[tied])
        for op in self.trace.ops:
            if (op.path, op.name) in before:
                continue
            parts = [
                part
                for ref in (*op.refs(), *op.results())
                for part in found.structure.follower.of(ref).fields
            ]
            if any(np.isin(found.roots[part.labels], roots).any() for part in parts):
                return Lock(tied, "its positions are tied to others that stay", op.name, op.path)
        return Lock(tied, "its positions are tied to others that stay")


@dataclass(frozen=True, eq=False)
class Followed:
    """The channels of one recording, followed through another.

    Attributes:
        structure: The structure of the other recording.
        remains: Which of its labels remain.
        roots: The class of each of its labels, locks left out.
        alive: Which labels of the first structure remain.
        lock: The labels of the first structure that cannot leave, as they mean something else here; None where all can.
    """

    structure: Structure
    remains: np.ndarray
    roots: np.ndarray
    alive: np.ndarray
    lock: Lock | None = None

    def mapped(self, lock: Lock) -> Lock:
        """A lock on labels of the other structure as one on those labels of the first that leave with them.

        Args:
            lock: The lock.
        """
        gone = ~self.alive & np.isin(self.roots[: self.alive.size], self.roots[lock.labels])
        return replace(lock, labels=np.flatnonzero(gone))


@dataclass(frozen=True, eq=False)
class _LargerInput:
    """What a model does on a larger input: which of `larger_examples` it is, and what its recording comes to."""

    times: float
    number: int
    path: frozenset[object]
    shapes: tuple[tuple[int, ...], ...]

    def of(self, example: Example) -> Example:
        """This larger input, made of the values of an example."""
        return next(islice(larger_examples(example, self.times), self.number, None))


class LargerInputs:
    """The larger inputs that a model accepts, each recorded once, when it is first asked for.

    Planning and proof ask for the same ones. Recordings are large, so what is kept of them is the path and the shapes
    of the outputs, and the whole recording where the forward branches.

    Args:
        recorded: The recording of the model on its example; None where there is none.
    """

    def __init__(self, recorded: Trace | None):
        self.path = None if recorded is None else path_taken(recorded)
        self.places = set() if recorded is None else _places(recorded.calls)
        self.branch: Branch | None = None
        self._found: dict[float, list[_LargerInput]] = {}
        self._far: tuple[_LargerInput | None] | None = None

    def far(self, model: nn.Module, example: Example) -> _LargerInput | None:
        """A much larger input; None where the model accepts none."""
        if self._far is None:
            self._far = (None,)
            for times in _TIMES:
                for number, taken in larger_recordings(model, example, times):
                    self._far = (_larger_input(times, number, taken),)
                    self.branch = self._branch(model, self._far[0], example, taken)
                    return self._far[0]
        return self._far[0]

    def near(self, model: nn.Module, example: Example) -> Iterator[_LargerInput]:
        """The inputs that are a little larger, the smallest first."""
        for times in _A_LITTLE:
            if times not in self._found:
                self._found[times] = [
                    _larger_input(times, number, taken)
                    for number, taken in larger_recordings(model, example, times)
                ]
            yield from self._found[times]

    def _branch(
        self, model: nn.Module, far: _LargerInput | None, example: Example, taken: Trace
    ) -> Branch | None:
        if far is None or _places(taken.calls) <= self.places:
            return None
        larger = far.of(example)
        for other in _others(larger):
            calls = trace(model, other, mode="meta", partial=True)
            if calls.error is None and _places(taken.calls) <= _places(calls.calls):
                return Branch(larger, taken, tuple(calls.calls))
        return None


def _larger_input(times: float, number: int, taken: Trace) -> _LargerInput:
    return _LargerInput(times, number, path_taken(taken), tuple(ref.shape for ref in taken.outputs))


_KNOWN: weakref.WeakKeyDictionary[Trace, LargerInputs] = weakref.WeakKeyDictionary()


def larger_inputs(recorded: Trace | None) -> LargerInputs:
    """The larger inputs of a model, the same object for the same recording.

    Args:
        recorded: The recording of the model on its example; None where there is none.
    """
    if recorded is None:
        return LargerInputs(None)
    if recorded not in _KNOWN:
        _KNOWN[recorded] = LargerInputs(recorded)
    return _KNOWN[recorded]


def branch_of(structure: Structure, model: nn.Module, example: Example) -> Branch | None:
    """The larger input on which a model makes calls that it does not make on the example; None where there is none.

    Args:
        structure: The structure of the model on the example.
        model: The model; it is not changed.
        example: The example.
    """
    if structure.trace.mode != "meta":
        return None
    found = larger_inputs(structure.trace)
    found.far(model, example)
    return found.branch


def training_branch(
    recorded: Trace, model: nn.Module, example: Example, training: Training = True
) -> Branch | None:
    """The forward in training, where it runs something that the forward in evaluation mode does not.

    Args:
        recorded: The recording in evaluation mode.
        model: The model; it is not changed.
        example: The example.
        training: What the model is called with in training: True for the example, False for no call.

    Returns:
        None where dropout is all that training adds, or where the model does not run in training on this example.
    """
    if training is False:
        return None
    known = _TRAINED.get(recorded)
    if known is None or known[0] is not training:
        known = _TRAINED[recorded] = training, _training_branch(recorded, model, example, training)
    return known[1]


_TRAINED: weakref.WeakKeyDictionary[Trace, tuple[Training, Branch | None]] = weakref.WeakKeyDictionary()


def _training_branch(
    recorded: Trace, model: nn.Module, example: Example, training: Training
) -> Branch | None:
    found = training_run(recorded, model, example, training)
    if found is None or not found.extra:
        return None
    calls: tuple[FunctionCall, ...] = ()
    for other in _others(found.example):
        taken = trace(model, other, training=True, mode=found.trace.mode, partial=True)
        if taken.error is None:
            calls = tuple(taken.calls)
            break
    return Branch(found.example, found.trace, calls)


def branching_example(
    model: nn.Module,
    example: Example,
    known: Sequence[frozenset[object]],
    much: bool = False,
    inputs: LargerInputs | None = None,
) -> Example | None:
    """The smallest of a few larger inputs on which a model runs something that it does not run on others.

    Args:
        model: The model; it is not changed.
        example: An input that it accepts.
        known: What it runs on other inputs (`path_taken`); what it runs on the example is recorded.
        much: Whether a much larger input is taken where none a little larger will do.
        inputs: Its larger inputs as far as they have been recorded; None where they have not.

    Returns:
        None where it runs nothing else, or only on inputs that are much larger.
    """
    inputs = inputs or LargerInputs(None)
    far = inputs.far(model, example)
    if far is None:
        return None
    new = far.path.difference(*known)
    if new and inputs.path is None:
        inputs.path = path_taken(trace(model, example, mode="meta", partial=True))
    if not new or not (new := new - (inputs.path or frozenset())):
        return None
    for larger in inputs.near(model, example):
        if larger.path & new:
            return larger.of(example)
    return far.of(example) if much else None


def refused_larger(
    model: nn.Module, small: nn.Module, example: Example, inputs: LargerInputs | None = None
) -> tuple[Example, Exception | None] | None:
    """A larger input that a model accepts and a cut one does not, and its error; None where there is none.

    Both are recorded on meta tensors: this compares the shapes of outputs, and nothing is computed.

    Args:
        model: The model; it is not changed.
        small: The cut model; it is not changed.
        example: An input that both accept.
        inputs: The larger inputs of the model as far as they have been recorded; None where they have not.
    """
    inputs = inputs or LargerInputs(None)

    def refused(larger: _LargerInput) -> tuple[Example, Exception | None] | None:
        got = trace(small, larger.of(example), mode="meta", partial=True)
        if got.error is None and tuple(each.shape for each in got.outputs) == larger.shapes:
            return None
        return larger.of(example), got.error if isinstance(got.error, Exception) else None

    far = inputs.far(model, example)
    found = None if far is None else refused(far)
    if found is None:
        return None
    return next(filter(None, map(refused, inputs.near(model, example))), found)


def refused_training(small: nn.Module, branch: Branch) -> tuple[Trace, bool]:
    """The recording of a cut model in training, and whether it fails there or gives outputs of other shapes.

    Args:
        small: The cut model; it is not changed.
        branch: The forward of the dense model in training.
    """
    got = trace(small, branch.example, training=True, mode=branch.trace.mode, partial=True)
    want = [ref.shape for ref in branch.trace.outputs]
    return got, got.error is not None or [ref.shape for ref in got.outputs] != want


def _others(larger: Example) -> Iterator[Example]:
    """Inputs about as large that differ in all sizes, batches included; the last in all but these."""
    rows = rows_of(larger)
    for other in larger_examples(larger, _MORE):
        yield with_rows(other, rows, rows + 1)
        yield other


def _places(calls: Sequence[FunctionCall]) -> set[tuple[object, object]]:
    """The places of size-taking calls: their modules, and where in the source they are."""
    return {(call.numbers[0][0], call.chain) for call in calls if call.numbers and call.chain}

"""Other shapes that a model accepts: a batch of another size, images of another size, sequences of another length.

They are found by trying. The example's tensors are repeated or cropped along their axes and the model is recorded on
them without compute (on meta tensors); a shape that raises no error is accepted. Where it is the meta tensors that it
fails on, it is run on real ones: a forward that keeps what it made for the last input looks at values for any other
size, and at none for that one. Axes of equal size change together, so that token ids and their mask, or height and
width, stay consistent.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
>>> [(found.what, shapes_of(found.example)) for found in other_shapes(model, torch.zeros(2, 3, 16, 16))]
[('batch', ((1, 3, 12, 8),)), ('size', ((2, 3, 8, 12),)), ('size', ((2, 3, 24, 24),))]
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import nn

from secateur.core.nested import map_tensors, tensors_in
from secateur.execution.example import Example
from secateur.execution.fast_copy import collector_paused
from secateur.structure.trace.calls import FunctionCall
from secateur.structure.trace.refused import Refused
from secateur.structure.trace.trace import Trace, trace

__all__ = [
    "OtherShape",
    "larger_examples",
    "larger_recordings",
    "other_shapes",
    "path_taken",
    "rows_of",
    "shapes_of",
    "with_rows",
]

_MOST_SIZES, _MOST_ATTEMPTS, _SMALL, _MOST_ELEMENTS = 3, 5, 128, 8_000_000
_VIEWS = frozenset(
    [
        "clone",
        "_to_copy",
        "detach",
        "alias",
        "copy_",
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "expand",
    ]
)
"""Operators that occur or not depending on strides."""


@dataclass(frozen=True, eq=False)
class OtherShape:
    """An example of another shape that the model accepts.

    Attributes:
        what: "batch" or "size": which axes differ.
        example: The example.
        calls: The size-taking calls that the model's forward made on it.
        path: What its forward ran, as `path_taken` gives it.
    """

    what: str
    example: Example
    calls: tuple[FunctionCall, ...]
    path: frozenset[object] = frozenset()


def path_taken(found: Trace) -> frozenset[object]:
    """The path that a forward took: its size-taking calls by place, and its operators by module, how often left out.

    Args:
        found: The recording of the forward.
    """
    calls = {(call.numbers[0][0], call.chain) for call in found.calls if call.numbers and call.chain}
    operators = {(op.path, op.name) for op in found.ops if op.name not in _VIEWS}
    return frozenset(calls | operators)


def shapes_of(example: Example) -> tuple[tuple[int, ...], ...]:
    """The shapes of an example's tensors, in order.

    Args:
        example: The example.
    """
    return tuple(tuple(tensor.shape) for tensor in tensors_in(example))


def other_shapes(
    model: nn.Module, example: Example, mode: str = "meta", refused: list[Refused] | None = None
) -> list[OtherShape]:
    """The examples of other shapes that a model accepts: at most one of another batch size, and a few of other sizes.

    Args:
        model: The model; it is not changed.
        example: An example it runs on.
        mode: How the forward is recorded: "meta" or "real", as `trace` takes it.
        refused: A list that what was tried and refused is added to, where no shape of its kind was accepted; or None.

    Returns:
        The accepted examples; an empty list for a model that takes one shape only.
    """
    # Tensors on meta hold no memory that the collector could free.
    with collector_paused() if mode == "meta" else nullcontext():
        return _accepted(model, example, mode, [] if refused is None else refused)


def larger_examples(example: Example, times: float) -> Iterator[Example]:
    """The example with larger images or longer sequences: all sizes together, then each size alone.

    Args:
        example: The example.
        times: How many times as large; images from 64 pixels on stay at multiples of 32, as most backbones ask.
            Inputs of more than eight million elements are left out: what follows channels takes memory with size.

    >>> [tuple(each.shape) for each in larger_examples(torch.zeros(2, 3, 16, 16), 4)]
    [(2, 3, 64, 64)]
    """
    groups = _sizes(example)[:_MOST_SIZES]
    for chosen in [*([groups] if len(groups) > 1 else []), *([group] for group in groups)]:
        if _elements_of(example, chosen, times) > _MOST_ELEMENTS:
            continue
        made = example
        for axes, size in chosen:
            made = _of_sizes(made, axes, (_times(size, times),) * 2)
        yield made


def _elements_of(
    example: Example, groups: Sequence[tuple[Mapping[int, tuple[int, ...]], int]], times: float
) -> float:
    """How many elements the example has once the axes of some groups are larger."""
    total = 0.0
    for position, tensor in enumerate(tensors_in(example)):
        factor = 1.0
        for axes, size in groups:
            factor *= (_times(size, times) / size) ** len(axes.get(position, ()))
        total += tensor.numel() * factor
    return total


def larger_recordings(model: nn.Module, example: Example, times: float) -> Iterator[tuple[int, Trace]]:
    """The recordings, on meta tensors, of those of `larger_examples` that a model accepts, each with its number.

    Args:
        model: The model; it is not changed.
        example: An example it runs on.
        times: How many times as large.
    """
    # larger values would only be copied
    bare = map_tensors(partial(torch.empty_like, device="meta"), example)
    trials = _Trials(model, bare, "meta")
    for number, larger in enumerate(larger_examples(bare, times)):
        found = trials.recorded(larger)
        if found is not None:
            yield number, found


def _times(size: int, times: float) -> int:
    larger = math.ceil(size * times)
    return -(-larger // 32) * 32 if size >= 64 else larger


def _accepted(model: nn.Module, example: Example, mode: str, refused: list[Refused]) -> list[OtherShape]:
    found: list[OtherShape] = []
    trials = _Trials(model, example, mode)
    for axes, sizes in _sizes(example)[:_MOST_SIZES]:
        many = len(found)
        for attempts in _other_sizes(example, axes, sizes):
            accepted = next(filter(None, (trials.attempt("size", each) for each in attempts)), None)
            if accepted is not None:
                found.append(accepted)
        if len(found) == many:
            refused += trials.refused
        trials.refused.clear()
    # The other batch is one of the smallest images or sequences accepted: it costs least to run.
    small = min([example, *(other.example for other in found)], key=_elements)
    # Its images are taller than wide where those of the other sizes are wider than tall.
    turned = map_tensors(_turned, small)
    tall = () if shapes_of(turned) == shapes_of(small) else _other_batches(turned)
    for batch in (*tall, *_other_batches(small), *_other_batches(example)):
        accepted = trials.attempt("batch", batch)
        if accepted is not None:
            return [accepted, *found]
    refused += trials.refused
    return found


def _turned(tensor: torch.Tensor) -> torch.Tensor:
    """Images that are wider than tall, turned; any other tensor as it is."""
    wide = tensor.is_floating_point() and tensor.dim() == 4 and tensor.shape[-1] > tensor.shape[-2]
    return tensor.transpose(-1, -2).contiguous() if wide else tensor


def _elements(example: Example) -> int:
    return sum(tensor.numel() for tensor in tensors_in(example))


def rows_of(example: Example) -> int:
    """The size of the first axis of the first tensor that has one.

    Args:
        example: The example.
    """
    return next((int(tensor.shape[0]) for tensor in tensors_in(example) if tensor.dim()), 0)


class _Trials:
    """Examples of other shapes, tried on one model.

    Not accepted is a size at which the forward takes parts of one input for inputs of their own, as
    `x.view(-1, channels * height * width)` does with an image twice as large: it runs, and its outputs mean nothing.
    """

    def __init__(self, model: nn.Module, example: Example, mode: str):
        self.model, self.example, self.mode = model, example, mode
        self.refused: list[Refused] = []

    def attempt(self, what: str, example: Example) -> OtherShape | None:
        """The example, if the model accepts it."""
        found = self.recorded(example)
        return None if found is None else OtherShape(what, example, tuple(found.calls), path_taken(found))

    def recorded(self, example: Example) -> Trace | None:
        """The recording of the model on the example, if it accepts it."""
        found = trace(self.model, example, mode=self.mode, partial=True)
        if self.mode == "meta" and _of_meta(found.error) and not any(t.is_meta for t in tensors_in(example)):
            found = trace(self.model, example, mode="real", partial=True)
        refused = found.error is not None or self._parted(found, rows_of(example))
        if refused:
            self.refused.append(Refused.by(shapes_of(example), found.error))
        return None if refused else found

    def _parted(self, found: Trace, rows: int) -> bool:
        """Whether outputs have several rows for each row of the input, of those that have one on the example."""
        many = {
            place
            for place, ref in enumerate(found.outputs)
            if ref.shape and rows and ref.shape[0] > rows and ref.shape[0] % rows == 0
        }
        return bool(many & self._by_rows) if many else False

    @cached_property
    def _by_rows(self) -> set[int]:
        outputs = trace(self.model, self.example, mode=self.mode, partial=True).outputs
        rows = rows_of(self.example)
        return {place for place, ref in enumerate(outputs) if ref.shape and ref.shape[0] == rows}


def _of_meta(error: BaseException | None) -> bool:
    """Whether an error is that of a tensor without values, which says nothing about the shape."""
    return isinstance(error, (RuntimeError, NotImplementedError)) and "meta" in str(error).lower()


def _other_batches(example: Example) -> Iterator[Example]:
    """The example with another number of rows: one row if it has several, else two, else three."""
    rows = rows_of(example)
    for new in (1, 2, 3):
        if new != rows and rows:
            yield with_rows(example, rows, new)


def with_rows(example: Example, rows: int, new: int) -> Example:
    """The example with another number of rows: in each tensor that has as many as the batch.

    Args:
        example: The example.
        rows: How many rows its batch has.
        new: How many it is to have.

    >>> with_rows((torch.zeros(2, 3), torch.zeros(5)), 2, 1)[0].shape
    torch.Size([1, 3])
    """
    return map_tensors(partial(_with_rows, rows, new), example) if rows else example


def _with_rows(rows: int, new: int, tensor: torch.Tensor) -> torch.Tensor:
    return _taken(tensor, {0: new}) if tensor.dim() and tensor.shape[0] == rows else tensor


def _sizes(example: Example) -> list[tuple[dict[int, tuple[int, ...]], int]]:
    """Groups of axes of one size, batches left out: ({position of a tensor: its axes}, size)."""
    groups: dict[int, dict[int, tuple[int, ...]]] = {}
    for position, tensor in enumerate(tensors_in(example)):
        # axis 1 of images holds their channels
        first = 2 if tensor.is_floating_point() and tensor.dim() >= 4 else 1
        for axis in range(first, tensor.dim()):
            if tensor.shape[axis] > 1:
                axes = groups.setdefault(int(tensor.shape[axis]), {})
                axes[position] = (*axes.get(position, ()), axis)
    return [(axes, size) for size, axes in groups.items()]


def _other_sizes(
    example: Example, axes: Mapping[int, tuple[int, ...]], size: int
) -> Iterator[Iterator[Example]]:
    """The example with those axes of other sizes, as lists of attempts of which one each is wanted.

    Of an image, first with sides that differ. A sequence is made shorter and also longer, because a forward may cache a
    table for the longest one that it has seen; and so is a small image, which may otherwise shrink to one pixel inside.
    """
    image = len(axes) == 1 and len(next(iter(axes.values()))) == 2
    half, more = size // 2, size - size // 4
    if size >= 64:
        half, more = half // 32 * 32, more // 32 * 32
    longer = [(size + size // 2,) * 2, (2 * size, 2 * size)]
    if not image:
        attempts = [[(half, half), (size // 2, size // 2), (size - 1, size - 1)], longer]
    else:
        # multiples of 32 that differ
        first = [(64, 96)] if size >= 128 else [(32, 64)] if half == more else []
        attempts = [[*first, (half, more), (half, half), (size // 2, size // 2), *longer]]
        attempts += [longer] if size < _SMALL else []
    for pairs in attempts:
        wanted = [pair for pair in dict.fromkeys(pairs) if min(pair) >= 2 and pair != (size, size)]
        yield (_of_sizes(example, axes, pair) for pair in wanted[:_MOST_ATTEMPTS])


def _of_sizes(example: Example, axes: Mapping[int, tuple[int, ...]], pair: tuple[int, int]) -> Example:
    """The example with the first of those axes of each tensor as long as the first number, the others as the second."""
    position = -1

    def change(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal position
        position += 1
        mine = axes.get(position, ())
        return _taken(tensor, {axis: pair[min(index, 1)] for index, axis in enumerate(mine)})

    return map_tensors(change, example)


def _taken(tensor: torch.Tensor, sizes: Mapping[int, int]) -> torch.Tensor:
    """A tensor cropped or repeated along axes, so that its values stay those of the example."""
    for axis, size in sizes.items():
        index = torch.arange(size, device=tensor.device) % tensor.shape[axis]
        tensor = tensor.index_select(axis, index)
    return tensor

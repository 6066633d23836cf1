"""Free axes: which sizes of a model's inputs may change, found by trying other ones.

A file has the sizes of the example in it, but for the axes that were free when the model was recorded. The first axis
counts the examples. Of inputs with two or three axes (tokens, masks, audio, time series, frames of a video) every
further axis is tried at half and at twice its size: alone, and where the model refuses that, together with the others
of that size. Heights and widths of images stay as they are unless they are named, as files of one size are faster.

>>> import torch
>>> model = nn.Conv1d(3, 4, 5, padding=2).eval()
>>> wanted, _ = axes_of(model, torch.zeros(2, 3, 40))
>>> [(each.name, each.places, each.sizes) for each in wanted]
[('batch', ((0, 0),), (6,)), ('length', ((0, 2),), (20,))]
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils import _pytree as pytree

from secateur.core.nested import map_tensors, tensors_in
from secateur.core.out_of_memory import raise_if_out_of_memory
from secateur.errors import DataError, OptionError, UnknownNameError, near
from secateur.execution.calling import call
from secateur.execution.example import Example, call_arguments
from secateur.execution.undisturbed import undisturbed

__all__ = [
    "DynamicAxes",
    "FreeAxis",
    "axes_of",
    "has_length",
    "input_names",
    "larger",
    "named_places",
    "resized",
    "runs",
]

Place = tuple[int, int]
"""An input's position among the tensors, and one of its axes."""
DynamicAxes = Mapping[str, "Iterable[int] | Mapping[int, str]"]
"""By the name of an input its free axes, as numbers or with a name for each."""
T = TypeVar("T")


@dataclass(frozen=True)
class FreeAxis:
    """Axes of the inputs whose size may change; of several places it changes in all of them.

    Attributes:
        name: What it is called in a file: "batch", "length", "height", "width", or as was asked for.
        places: The axes: (position of the input, axis).
        sizes: For each of them another size that the model takes.
    """

    name: str
    places: tuple[Place, ...]
    sizes: tuple[int, ...]

    def other(self, example: T) -> T:
        """The example with the other size."""
        return (
            larger(example) if self.name == "batch" else resized(example, dict(zip(self.places, self.sizes)))
        )

    def changed(self, example: T, size: Callable[[int], int]) -> T:
        """The example with each of the sizes changed by a function."""
        tensors = tensors_in(example)
        return resized(
            example, {(which, axis): size(tensors[which].shape[axis]) for which, axis in self.places}
        )


def axes_of(
    model: nn.Module, example: Example, named: Mapping[Place, str] | None = None
) -> tuple[tuple[FreeAxis, ...], tuple[FreeAxis, ...]]:
    """The axes of a model's inputs whose sizes may change.

    Args:
        model: The model, on the CPU and in evaluation mode.
        example: What it is called with.
        named: Axes that were asked for, each with its name.

    Returns:
        (those to leave free, the batch first; those of images, which the model takes in other sizes as well).

    Raises:
        DataError: The model takes no other size of an axis that was asked for.
    """
    tensors, named = tensors_in(example), named or {}
    names = dict(named)
    for which, tensor in enumerate(tensors):
        for axis in range(1, tensor.dim()):
            if tensor.shape[axis] > 1:
                names.setdefault((which, axis), axis_name(tensor, axis))
    found = _tried(model, example, names)
    for place in named:
        if place[1] and not any(place in each.places for each in found):
            which, axis = place
            raise DataError(
                f"dynamic_axes: {type(model).__name__} runs neither with half nor with twice the size "
                f"{tensors[which].shape[axis]} of {input_names(model, example)[which]!r}, axis {axis}, so that it "
                "cannot be free; leave it out, or name the axes that must change with it as well"
            )
    batch = tuple((which, 0) for which in range(len(tensors)))
    wanted: list[FreeAxis] = []
    images: list[FreeAxis] = []
    if tensors and all(tensor.dim() for tensor in tensors):
        wanted.append(FreeAxis("batch", batch, tuple(3 * tensor.shape[0] for tensor in tensors)))
    for each in found:
        asked = any(place in named for place in each.places)
        plain = all(tensors[which].dim() <= 3 for which, _ in each.places)
        (wanted if asked or plain else images).append(each)
    return tuple(wanted), tuple(images)


def _tried(model: nn.Module, example: Example, names: Mapping[Place, str]) -> list[FreeAxis]:
    """The axes that the model takes in another size, alone or together with those of the same size that it refuses."""
    tensors = tensors_in(example)
    found: list[FreeAxis] = []
    refused: dict[int, list[Place]] = {}
    with undisturbed(model), torch.no_grad():
        for place, name in names.items():
            size = tensors[place[0]].shape[place[1]]
            other = _taken(model, example, [place], size) if place[1] else None
            if other is not None:
                found.append(FreeAxis(name, (place,), (other,)))
            elif place[1]:
                refused.setdefault(size, []).append(place)
        for size, places in refused.items():
            together = (
                _taken(model, example, places, size) if len({which for which, _ in places}) > 1 else None
            )
            if together is not None:
                found.append(FreeAxis(names[places[0]], tuple(places), (together,) * len(places)))
    return found


def _taken(model: nn.Module, example: Example, places: Sequence[Place], size: int) -> int | None:
    """Another size of some axes that the model takes; far from theirs, as rounding makes room for a few more."""
    sizes = [size // 2, 2 * size, size - 1 if size <= 4 else 1]
    fits = (each for each in sizes if each > 1 and runs(model, resized(example, dict.fromkeys(places, each))))
    return next(fits, None)


def runs(model: Callable[..., object], example: Example) -> bool:
    """Whether a model takes an example.

    Args:
        model: The model.
        example: What it is called with.
    """
    try:
        call(model, example)
    except Exception as error:  # the model's code may raise anything
        raise_if_out_of_memory(error)
        return False
    return True


def resized(example: T, sizes: Mapping[Place, int]) -> T:
    """The example with other sizes of some axes: cut, or repeated and cut.

    Args:
        example: The example; it is not changed.
        sizes: The size of each axis that changes.
    """
    count = iter(range(len(tensors_in(example))))

    def one(tensor: torch.Tensor) -> torch.Tensor:
        which = next(count)
        for (wanted, axis), size in sizes.items():
            if wanted == which:
                times = -(-size // max(tensor.shape[axis], 1))
                tensor = torch.cat([tensor] * times, axis).narrow(axis, 0, size)
        return tensor

    return map_tensors(one, example)


def larger(example: T, noise: torch.Generator | None = None) -> T:
    """The example with three times as many rows. Offsets, as of `nn.EmbeddingBag`, go on rising.

    Args:
        example: The example; it is not changed.
        noise: What to draw noise from, which floats get.
    """

    def one(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.dim():
            return tensor
        if _offsets(tensor):
            return torch.cat([tensor, tensor + tensor[-1], tensor + 2 * tensor[-1]])
        more = torch.cat([tensor, tensor.flip(0), tensor])
        if noise is not None and torch.is_floating_point(more):
            more = more + 0.1 * torch.randn(more.shape, generator=noise, dtype=more.dtype)
        return more

    return map_tensors(one, example)


def _offsets(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds where groups of rows begin: whole numbers in one row that start at 0 and never fall."""
    whole = tensor.dtype in (torch.int32, torch.int64)
    return (
        whole
        and tensor.dim() == 1
        and len(tensor) > 1
        and int(tensor[0]) == 0
        and bool((tensor.diff() >= 0).all())
        and int(tensor[-1]) > 0
    )


def has_length(tensor: torch.Tensor) -> bool:
    """Whether an input's second axis may be a length: it is of whole numbers in rows, as tokens are.

    Args:
        tensor: The input.
    """
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    return whole and tensor.dim() == 2 and tensor.shape[1] > 1


def axis_name(tensor: torch.Tensor, axis: int) -> str:
    """What an axis is called unless it was given a name.

    Args:
        tensor: The input.
        axis: Its axis.
    """
    if axis == 0:
        return "batch"
    return {1: "width", 2: "height"}.get(tensor.dim() - axis, "length") if tensor.dim() > 3 else "length"


def input_names(model: nn.Module, example: Example) -> list[str]:
    """A name for every tensor of an example: the argument of the model's forward, and within it the key.

    Args:
        model: The model.
        example: What it is called with.
    """
    args, kwargs = call_arguments(example)
    try:
        parameters = [
            each.name
            for each in inspect.signature(model.forward).parameters.values()
            if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        parameters = []
    parameters += [f"input_{place}" for place in range(len(parameters), len(args))]
    names: dict[int, str] = {}
    for name, value in (*zip(parameters, args), *kwargs.items()):
        for path, leaf in pytree.tree_flatten_with_path(value)[0]:
            inner = ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
            names[id(leaf)] = f"{name}.{inner}" if inner else name
    return [names.get(id(each), f"input_{place}") for place, each in enumerate(tensors_in((args, kwargs)))]


def named_places(model: nn.Module, example: Example, asked: DynamicAxes) -> dict[Place, str]:
    """The axes that were asked for by the names of inputs, each with its own name.

    Args:
        model: The model.
        example: What it is called with.
        asked: By the name of an input its axes.

    Raises:
        UnknownNameError: No input has that name.
        OptionError: An input has no such axis.
    """
    names, tensors = input_names(model, example), tensors_in(example)
    found: dict[Place, str] = {}
    for name, axes in asked.items():
        if name not in names:
            raise UnknownNameError(f"dynamic_axes: no input {name!r}: {near(name, names)}")
        which = names.index(name)
        called: dict[Any, Any] = dict(axes) if isinstance(axes, Mapping) else dict.fromkeys(axes)
        for axis, word in called.items():
            if not isinstance(axis, int) or isinstance(axis, bool) or not 0 <= axis < tensors[which].dim():
                raise OptionError(
                    f"dynamic_axes: {name!r} has the shape {tuple(tensors[which].shape)}: expected axes from 0 to "
                    f"{tensors[which].dim() - 1}, got {axis!r}; give {{{name!r}: [1]}}, or {{{name!r}: {{1: 'time'}}}}"
                )
            found[which, axis] = str(word) if word is not None else axis_name(tensors[which], axis)
    return found

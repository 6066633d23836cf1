"""A mark on models whose tensors were cut: the shapes of before, so that `save` knows what a plan has to begin with.

It is plain data in an attribute of the module: copies and pickles keep it, and state dicts do not show it.

>>> model = nn.Linear(2, 2)
>>> shapes_before(model) is None
True
>>> mark_cut(model, None, {"weight": (4, 2)})
>>> mark_cut(model, shapes_before(model), {"weight": (3, 2), "bias": (4,)})
>>> shapes_before(model)
{'weight': (4, 2), 'bias': (4,)}
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from secateur.core.user_warnings import warn

__all__ = ["layers_kept", "mark_cut", "shapes_before", "unmark_cut", "unmarked", "warn_of_plan"]

Shapes = Mapping[str, tuple[int, ...]]
Layers = Mapping[str, Sequence[str]]
_MARK, _LAYERS = "_secateur_shapes_before", "_secateur_layers_kept"


def mark_cut(model: nn.Module, earlier: Shapes | None, shapes: Shapes, layers: Layers | None = None) -> None:
    """Mark a model as cut.

    Args:
        model: The model after the cut.
        earlier: The mark of the model before the cut, which had been cut before, by the names of now; None where it had
            not.
        shapes: The shapes before this cut, of the tensors that it cut.
        layers: The entries that remain of lists of layers after all cuts, by the names before the first.
    """
    vars(model)[_MARK] = {name: tuple(shape) for name, shape in {**shapes, **(earlier or {})}.items()}
    vars(model)[_LAYERS] = {path: tuple(keys) for path, keys in (layers or {}).items()}


def unmark_cut(model: nn.Module) -> None:
    """Take the mark off a model that needs no plan, such as one whose configuration states its widths."""
    vars(model).pop(_MARK, None)
    vars(model).pop(_LAYERS, None)


@contextmanager
def unmarked(model: nn.Module) -> Iterator[None]:
    """Without its mark, for a file that nobody loads, such as one that is written to see how large it is.

    >>> model = nn.Linear(2, 2)
    >>> mark_cut(model, None, {"weight": (4, 2)})
    >>> with unmarked(model):
    ...     print(shapes_before(model))
    None
    >>> shapes_before(model)
    {'weight': (4, 2)}
    """
    marks = {name: vars(model)[name] for name in (_MARK, _LAYERS) if name in vars(model)}
    unmark_cut(model)
    try:
        yield
    finally:
        vars(model).update(marks)


def layers_kept(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The entries that remain of lists of layers, where cuts removed some; empty where none did."""
    found = vars(model).get(_LAYERS)
    return found if isinstance(found, dict) else {}


def shapes_before(model: nn.Module) -> dict[str, tuple[int, ...]] | None:
    """The shapes of the cut tensors before they were cut; None where the model bears no mark."""
    found = vars(model).get(_MARK)
    return found if isinstance(found, dict) else None


def warn_of_plan(
    model: nn.Module, shapes: Shapes | None, path: str | os.PathLike[str], layers: Layers | None = None
) -> None:
    """Warn where a model was cut, and a file of it lacks its plan or has that of the last of several cuts.

    Args:
        model: The model that is written.
        shapes: The shapes before the cut as the file's plan has them; None where the file has no plan.
        path: The file.
        layers: The entries that remain of lists of layers, as the file's plan has them.
    """
    before = shapes_before(model)
    if before is None:
        return
    if shapes is None:
        warn(
            f"{path}: {type(model).__name__} was cut and no plan= was given, so that the file cannot be loaded into a "
            "freshly built model; pass plan=small.plan (after several cuts first.plan.then(second.plan)), or save "
            "model.state_dict() if no plan is wanted"
        )
        return
    kept = {name: tuple(keys) for name, keys in (layers or {}).items()}
    left = next((name for name, keys in layers_kept(model).items() if kept.get(name) != keys), None)
    if left is not None:
        warn(
            f"{path}: layers of {left or 'the model'!r} left in an earlier cut, of which the plan says nothing, so "
            "that the file cannot be loaded into a freshly built model; give the plans of all cuts: "
            "sc.save(model, path, plan=first.plan.then(second.plan))"
        )
        return
    behind = next((name for name in before if name not in shapes), None)
    if behind is not None:
        warn(
            f"{path}: {behind!r} had shape {before[behind]} before an earlier cut, of which the plan says nothing, so "
            "that the file cannot be loaded into a freshly built model; give the plans of all cuts: "
            "sc.save(model, path, plan=first.plan.then(second.plan))"
        )
        return
    for name, shape in shapes.items():
        if tuple(shape) != before.get(name, tuple(shape)):
            warn(
                f"{path}: the plan cuts {name!r} of shape {tuple(shape)}, which had shape {before[name]} before the "
                "first cut, so that the file cannot be loaded into a freshly built model; give the plans of all cuts: "
                "sc.save(model, path, plan=first.plan.then(second.plan))"
            )
            return

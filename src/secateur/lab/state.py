"""`State`: what passes from one step of a recipe to the next, and how it is kept as objects of the store.

A state is always written and read back between two steps, also when both run in one process: what a resumed
run starts from is then by construction what an undisturbed one starts from.

>>> import tempfile, torch
>>> from secateur.lab.objects import Objects
>>> objects = Objects(tempfile.mkdtemp())
>>> stored = keep(State(torch.nn.Linear(2, 1)), objects)
>>> again = revive(stored, objects, lambda: torch.nn.Linear(2, 1))
>>> stored["weights"].startswith("object:"), again.masks is None
(True, True)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import nn

from secateur.core.codebook import Codebook
from secateur.core.masks import Masks
from secateur.errors import StoreError
from secateur.lab.objects import Objects

__all__ = ["State", "keep", "revive"]


@dataclass
class State:
    """A model with what is known of it. `plan` is what shrinking cut, as JSON; `files` are those the steps
    have written."""

    model: nn.Module
    masks: Masks | None = None
    codebooks: dict[str, Codebook] = field(default_factory=dict)
    plan: str | None = None
    files: dict[str, bytes] = field(default_factory=dict)


def _bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Tensors as safetensors bytes; cloned, because tied weights share memory, which the format refuses."""
    return write_tensors(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    )


def keep(state: State, objects: Objects) -> dict[str, Any]:
    """Write a state; returns the names of its objects, as the store keeps them."""

    def put(data: bytes) -> str:
        return f"object:{objects.put(data)}"

    weights = {
        name: value for name, value in state.model.state_dict().items() if isinstance(value, torch.Tensor)
    }
    stored: dict[str, Any] = {"weights": put(_bytes(weights))}
    if state.masks is not None:
        stored["masks"] = put(_bytes(state.masks))
    if state.codebooks:
        parts, rest = _take_apart(state.codebooks)
        stored["codebooks"] = put(_bytes(parts))
        stored["codebook_fields"] = put(json.dumps(rest).encode())
    if state.plan is not None:
        stored["plan"] = put(state.plan.encode())
    if state.files:
        stored["files"] = {name: put(data) for name, data in state.files.items()}
    return stored


def _take_apart(books: Mapping[str, Codebook]) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Codebooks as tensors and, in order, the rest of their fields."""
    tensors: dict[str, torch.Tensor] = {}
    rest = []
    for name, book in books.items():
        values = {field.name: getattr(book, field.name) for field in fields(book)}
        tensors |= {
            f"{name}:{key}": value for key, value in values.items() if isinstance(value, torch.Tensor)
        }
        rest.append({key: value for key, value in values.items() if not isinstance(value, torch.Tensor)})
    return tensors, rest


def _put_together(tensors: Mapping[str, torch.Tensor], rest: list[dict[str, Any]]) -> dict[str, Codebook]:
    """The inverse of `_take_apart`."""
    books = {}
    for one in rest:
        name = one["name"]
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in one.items()}
        values |= {key.rpartition(":")[2]: v for key, v in tensors.items() if key.rpartition(":")[0] == name}
        books[name] = Codebook(**values)
    return books


def revive(stored: Mapping[str, Any], objects: Objects, build: Callable[[], nn.Module]) -> State:
    """The inverse of `keep`, on a freshly built model."""

    def get(name: str) -> bytes:
        return objects.get(name.removeprefix("object:"))

    model = build()
    state = State(model)
    if "plan" in stored:
        from secateur.structure.cut.plan import ShrinkPlan

        state.plan = get(stored["plan"]).decode()
        ShrinkPlan.from_json(state.plan).apply_(model)
    try:
        model.load_state_dict(read_tensors(get(stored["weights"])))
    except RuntimeError as error:
        raise StoreError(
            f"the stored weights do not fit a fresh {type(model).__name__} ({str(error).splitlines()[0]}); "
            "was the "
            "model's code changed? Change the recipe's seed or name another --store to compute it anew"
        ) from error
    order = {name: index for index, (name, _) in enumerate(model.named_parameters(remove_duplicate=False))}
    if "masks" in stored:
        masks = read_tensors(get(stored["masks"]))
        state.masks = Masks(
            {name: masks[name] for name in sorted(masks, key=lambda name: order.get(name, 0))}
        )
    if "codebooks" in stored:
        rest = json.loads(get(stored["codebook_fields"]))
        state.codebooks = _put_together(read_tensors(get(stored["codebooks"])), rest)
    state.files = {name: get(place) for name, place in stored.get("files", {}).items()}
    return state

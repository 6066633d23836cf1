"""`State`: what passes from one step of a recipe to the next; `keep` writes it as objects, `revive` reads it.

A state is always written and read between two steps, also within one process, so that a resumed run starts from the
same state as one that was not interrupted.

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
from secateur.core.json_text import parse
from secateur.core.masks import Masks
from secateur.core.out_of_memory import raise_if_out_of_memory
from secateur.errors import SecateurError, StoreError
from secateur.lab.objects import ObjectReader, ObjectWriter
from secateur.lab.outcomes import Table

__all__ = ["State", "keep", "revive"]


@dataclass
class State:
    """A model and what belongs to it.

    Args:
        model: The network.
        masks: The weights that are held at zero, or None.
        codebooks: The shared tensors' codebooks, by tensor.
        plan: What shrinking cut, as the JSON of a `ShrinkPlan`.
        files: Files that steps have written, by name.
        snapshot: A training as it was at one step, to rewind to: the bytes of a `Snapshot`.
    """

    model: nn.Module
    masks: Masks | None = None
    codebooks: dict[str, Codebook] = field(default_factory=dict)
    plan: str | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    snapshot: bytes | None = None


def _bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Tensors as safetensors bytes; cloned, because the format refuses tensors that share memory."""
    return write_tensors(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    )


def keep(state: State, objects: ObjectWriter) -> Table:
    """Write a state as objects.

    Args:
        state: The state.
        objects: Where its bytes go.

    Returns:
        The names of the objects, as an `Outcome` has them.
    """

    def put(data: bytes) -> str:
        return f"object:{objects.put(data)}"

    weights = {
        name: value for name, value in state.model.state_dict().items() if isinstance(value, torch.Tensor)
    }
    stored: Table = {"weights": put(_bytes(weights))}
    if state.masks is not None:
        stored["masks"] = put(_bytes(state.masks))
    if state.codebooks:
        parts, rest = _take_apart(state.codebooks)
        stored["codebooks"] = put(_bytes(parts))
        stored["codebook_fields"] = put(json.dumps(rest).encode())
    if state.plan is not None:
        stored["plan"] = put(state.plan.encode())
    if state.snapshot is not None:
        stored["snapshot"] = put(state.snapshot)
    if state.files:
        stored["files"] = {name: put(data) for name, data in state.files.items()}
    return stored


def _take_apart(books: Mapping[str, Codebook]) -> tuple[dict[str, torch.Tensor], list[Table]]:
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


def _put_together(tensors: Mapping[str, torch.Tensor], rest: list[Table]) -> dict[str, Codebook]:
    """The inverse of `_take_apart`."""
    books = {}
    for one in rest:
        name = one["name"]
        values: Table = {k: tuple(v) if isinstance(v, list) else v for k, v in one.items()}
        values |= {key.rpartition(":")[2]: v for key, v in tensors.items() if key.rpartition(":")[0] == name}
        books[name] = Codebook(**values)
    return books


def revive(stored: Mapping[str, Any], objects: ObjectReader, build: Callable[[], nn.Module]) -> State:
    """The inverse of `keep`.

    Args:
        stored: The names of the objects.
        objects: Where their bytes come from.
        build: Builds the model that the weights are put into.

    Returns:
        The state.

    Raises:
        StoreError: An object is missing or damaged, or the weights do not fit the model.
    """

    model = build()
    try:
        return _revived(stored, objects, model)
    except SecateurError:
        raise
    except Exception as error:  # whatever the bytes of a changed store lead to
        raise_if_out_of_memory(error)
        raise StoreError(
            f"a stored state: expected what secateur writes, got something else ({type(error).__name__}: {error}); the "
            "store is damaged or was changed; restore it from a copy, or name another folder with --store"
        ) from error


def _revived(stored: Mapping[str, Any], objects: ObjectReader, model: nn.Module) -> State:
    """The state, on this model."""

    def get(name: str) -> bytes:
        return objects.get(name.removeprefix("object:"))

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
            "was the model's code changed? Change the recipe's seed or name another --store to compute it again"
        ) from error
    order = {name: index for index, (name, _) in enumerate(model.named_parameters(remove_duplicate=False))}
    if "masks" in stored:
        masks = read_tensors(get(stored["masks"]))
        state.masks = Masks(
            {name: masks[name] for name in sorted(masks, key=lambda name: order.get(name, 0))}
        )
    if "codebooks" in stored:
        rest: Any = parse(
            get(stored["codebook_fields"]), "the fields of codebooks", StoreError, constants=True
        )
        state.codebooks = _put_together(read_tensors(get(stored["codebooks"])), rest)
    if "snapshot" in stored:
        state.snapshot = get(stored["snapshot"])
    state.files = {name: get(place) for name, place in stored.get("files", {}).items()}
    return state

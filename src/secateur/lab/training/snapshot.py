"""`Snapshot`: a training as it was at one optimizer step, to which a later one rewinds (lottery tickets).

>>> model = nn.Linear(2, 1)
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
>>> saved = Snapshot.take(model, optimizer, step=7)
>>> before = model.weight.tolist(); _ = model.weight.data.zero_()
>>> Snapshot.from_bytes(saved.to_bytes()).restore(model); model.weight.tolist() == before
True
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.core.json_text import is_count, parse
from secateur.core.out_of_memory import raise_if_out_of_memory
from secateur.errors import OptionError, StoreError
from secateur.lab.outcomes import Table
from secateur.lab.training import checkpoint as checkpoints

__all__ = ["Snapshot"]

_FORMAT = "secateur-snapshot"
_AGAIN = "the store is damaged or was changed; train again with another seed or --store"


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Weights, optimizer's state and random state before an optimizer step.

    Args:
        step: Optimizer steps made before.
        tensors: `model/`, `optimizer/` and `random` by name.
        numbers: The optimizer's state that is no tensor.
    """

    step: int
    tensors: Mapping[str, torch.Tensor]
    numbers: Table

    @classmethod
    def take(cls, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> Snapshot:
        """Copy the state of a training.

        Args:
            model: The network.
            optimizer: Its optimizer.
            step: Optimizer steps made before.
        """
        state, numbers = checkpoints.optimizer_tensors(optimizer)
        weights = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
        copied = {name: tensor.detach().to("cpu", copy=True) for name, tensor in {**state, **weights}.items()}
        return cls(step, {**copied, "random": torch.get_rng_state()}, numbers)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Put the weights back, and the optimizer's state where one is given.

        Args:
            model: The network; it must have the shapes it had.
            optimizer: An optimizer of the same kind, over the same parameters.

        Raises:
            OptionError: The network has other tensors than the snapshot.
            StoreError: The optimizer's state is not one of these parameters. Model and optimizer are as they were.
        """
        weights = checkpoints.under("model/", self.tensors)
        now = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        other = [name for name, tensor in weights.items() if now.get(name) != tuple(tensor.shape)]
        if other or len(now) != len(weights):
            raise OptionError(
                f"rewind: {other[0] if other else 'the network'!r} has another shape than in the snapshot; rewind "
                "before the model is shrunk"
            )
        if optimizer is not None:
            try:
                checkpoints.load_optimizer(optimizer, self.tensors, self.numbers)
            except ValueError as error:
                raise StoreError(f"a training's snapshot: {error}; {_AGAIN}") from error
        model.load_state_dict(dict(weights))

    def digest(self) -> str:
        """A hash of the step and of all tensors."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """The snapshot as one safetensors file."""
        from safetensors.torch import save

        about = json.dumps({"step": self.step, "numbers": self.numbers}, sort_keys=True)
        plain = {name: tensor.contiguous().clone() for name, tensor in sorted(self.tensors.items())}
        return save(plain, metadata={"format": _FORMAT, "about": about})

    @classmethod
    def from_bytes(cls, data: bytes) -> Snapshot:
        """The inverse of `to_bytes`.

        Args:
            data: The result of `to_bytes`.

        Raises:
            StoreError: The bytes are not a snapshot.
        """
        from safetensors.torch import load

        try:
            head: Any = parse(data[8 : 8 + int.from_bytes(data[:8], "little")], "its header")
            head = head["__metadata__"]
            about: Any = parse(head["about"], "what it says of itself", constants=True)
            step, numbers = about["step"], about["numbers"]
            if head["format"] != _FORMAT or not is_count(step) or not isinstance(numbers, dict):
                raise ValueError(f"format {head['format']!r}")
            return cls(step, load(data), numbers)
        except Exception as error:  # whatever the bytes of a changed store lead to
            raise_if_out_of_memory(error)
            raise StoreError(
                f"a training's snapshot: expected what secateur writes, got something else ({type(error).__name__}: "
                f"{error}); {_AGAIN}"
            ) from error

"""`FirstCall`: what a model is called with the first time, as an example.

>>> model = nn.Linear(2, 1)
>>> first = FirstCall(model)
>>> first.then(lambda example: print(example.shape))
>>> _ = model(torch.ones(3, 2))
torch.Size([3, 2])
>>> first.then(lambda example: print(example.shape))
torch.Size([3, 2])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from secateur.core.nested import map_tensors
from secateur.errors import DataError
from secateur.execution.devices import device_of
from secateur.execution.example import Example, read_batch, with_defaults

__all__ = ["FirstCall"]

Work = Callable[[Example], None]


class FirstCall:
    """Waits for a model's first call, and keeps a copy of its arguments, without labels that are keywords of the call.

    Args:
        model: The model; one hook is on it until it is called, or until `close`.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.example: Example = None
        self._waiting: list[Work] = []
        # a compiled model's hooks run while it is compiled
        called: Any = torch.compiler.disable(self._called)
        self._hook: Any = model.register_forward_pre_hook(called, with_kwargs=True)

    def then(self, work: Work) -> None:
        """Do something with the example: now where it is known, else at the start of the first call.

        Args:
            work: Called with the example.
        """
        if self._hook is None:
            work(self.example)
        else:
            self._waiting.append(work)

    def close(self) -> None:
        """Wait no longer."""
        if self._hook is not None:
            self._hook.remove()
        self._hook, self._waiting = None, []

    def _called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        waiting = self._waiting
        self.close()  # the work may call the model
        with torch.no_grad():
            copied = map_tensors(lambda tensor: tensor.detach().clone(), (args, kwargs))
        self.example = _example(self.model, *copied)
        # a trainer's autocast is around its own call only
        with torch.no_grad(), torch.autocast(device_of(self.model).type, enabled=False):
            for work in waiting:
                work(self.example)


def _example(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Example:
    """A call as an example: a tuple, or one dict of keywords."""
    if not kwargs:
        return args[0] if len(args) == 1 and not isinstance(args[0], (tuple, dict)) else args
    if args:
        named, _ = with_defaults(model, args)
        if not named:
            raise DataError(
                f"{type(model).__name__} is called with {len(args)} arguments that have no names beside "
                f"{sorted(kwargs)}: what it is called with cannot be taken from a call; give example="
            )
        kwargs = {**named, **kwargs}
    return read_batch(kwargs, 0, labels_apart=True, model=model).example

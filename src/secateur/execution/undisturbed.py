"""`undisturbed`: run a model without leaving a trace on it, on its gradients or on the global random state.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5))
>>> before = torch.get_rng_state()
>>> with undisturbed(model, mode="train"):
...     _ = model(torch.ones(4, 2) * 5)
>>> model[0].running_mean.tolist(), torch.equal(torch.get_rng_state(), before)
([0.0, 0.0], True)
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from secateur.errors import OptionError

__all__ = ["MODES", "PlainState", "check_mode", "kept_random_state", "undisturbed"]

_ValueT = TypeVar("_ValueT")

MODES = ("as_found", "train", "eval")


def check_mode(mode: str) -> None:
    """Raise an `OptionError` unless `mode` is one of `MODES`.

    >>> check_mode("training")
    Traceback (most recent call last):
    ...
    secateur.errors.OptionError: mode: expected one of 'as_found', 'train', 'eval', got 'training'
    """
    if mode not in MODES:
        raise OptionError(f"mode: expected one of {', '.join(map(repr, MODES))}, got {mode!r}")


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Restore the random state of torch (CPU, CUDA, MPS), numpy and Python, however the block is left.

    >>> before = random.getstate()
    >>> with kept_random_state():
    ...     _ = random.random()
    >>> random.getstate() == before
    True
    """
    restore: list[Callable[[], object]] = []
    cpu, numbers, python = torch.get_rng_state(), np.random.get_state(), random.getstate()
    restore.append(lambda: torch.set_rng_state(cpu))
    restore.append(lambda: np.random.set_state(numbers))
    restore.append(lambda: random.setstate(python))
    # A CUDA context that does not exist yet is not created for this: nothing could have drawn from it.
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        cuda = torch.cuda.get_rng_state_all()
        restore.append(lambda: torch.cuda.set_rng_state_all(cuda))
    if torch.backends.mps.is_available():
        mps = torch.mps.get_rng_state()
        restore.append(lambda: torch.mps.set_rng_state(mps))
    try:
        yield
    finally:
        for step in restore:
            step()


@contextmanager
def undisturbed(model: nn.Module, *, mode: str = "as_found", weights: bool = False) -> Iterator[nn.Module]:
    """A block that may run the model forward and backward; everything is restored on leaving.

    Restored, also when the block raises: every parameter's `.grad` (None included; inside the block it is
    None) and `requires_grad`, every buffer's values and identity (batch norm's running statistics), train or
    eval mode of every submodule, what a forward writes into plain attributes (`PlainState`), and the random
    state of torch, numpy and Python. With `weights=True` the parameters' values too, at the cost of a copy of
    them. `mode` is the mode of the model: "as_found", "train" or "eval".

    Gradients are recorded inside even when the caller has switched them off.
    """
    check_mode(mode)
    found = _FoundState(model, weights)
    with kept_random_state(), torch.inference_mode(False), torch.enable_grad():
        try:
            for parameter in found.parameters:
                parameter.grad = None
            if mode != "as_found":
                _switch(model, mode == "train")
            yield model
        finally:
            with torch.no_grad():
                found.put_back()


def _switch(model: nn.Module, training: bool) -> None:
    """Train or eval mode; what torch.export made keeps that of its export, which cannot be asked for."""
    try:
        model.train(training)
    except NotImplementedError as error:
        if training:
            raise OptionError(
                f"model: {type(model).__name__} was made by torch.export, whose mode is fixed, and train mode is "
                "needed; pass the Python model it was made from"
            ) from error


_OWN = frozenset(vars(nn.Module()))
"""Attributes of every module: its parameters, buffers, children and hooks, and its mode."""


_DICTS = (dict, OrderedDict, defaultdict, Counter)


class PlainState:
    """The plain attributes of a model's modules as they were found, to put them back after a forward.

    A forward may keep what it made for the last input (anchors, tables of positions, a mask), and take it again for an
    input of the same shape. A later run must not depend on that. Lists, dicts, sets and Python's other collections get
    their items back as well; tensors are not copied.

    Args:
        model: The model.

    >>> class Counting(nn.Module):
    ...     seen = 0
    ...     def forward(self, x):
    ...         self.seen += 1
    ...         return x
    >>> model = Counting()
    >>> state = PlainState(model)
    >>> _ = model(torch.zeros(1))
    >>> state.put_back()
    >>> model.seen
    0
    """

    def __init__(self, model: nn.Module):
        self._found = [
            (module, {key: value for key, value in vars(module).items() if key not in _OWN})
            for module in model.modules()
            if not isinstance(module, LazyModuleMixin)  # its first forward makes it what it is
        ]
        held = [value for _, plain in self._found for value in plain.values()]
        self._lists = [(value, list(value)) for value in held if type(value) in (list, deque)]
        self._sets = [(value, value.copy()) for value in held if type(value) is set]
        self._dicts = [(value, value.copy()) for value in held if type(value) in _DICTS]

    def put_back(self) -> None:
        """Restore them."""
        for module, found in self._found:
            now = vars(module)
            for key in [key for key in now if key not in found and key not in _OWN]:
                del now[key]
            for key, value in found.items():
                if key not in now or now[key] is not value:
                    now[key] = value
        for items, listed in self._lists:
            if len(items) != len(listed) or any(a is not b for a, b in zip(items, listed)):
                items.clear()
                items.extend(listed)
        for chosen, elements in self._sets:
            if chosen != elements:
                chosen.clear()
                chosen.update(elements)
        for table, before in self._dicts:
            _put_back(table, before)


class _FoundState:
    """A model's modes, parameters, buffers and gradients as they were found; with `weights` a copy of the values."""

    def __init__(self, model: nn.Module, weights: bool):
        modules = list(model.modules())
        self._plain = PlainState(model)
        self._modules = [
            (module, module.training, dict(module._parameters), dict(module._buffers)) for module in modules
        ]
        buffers = [buffer for *_, held in self._modules for buffer in held.values() if buffer is not None]
        self._values = {id(buffer): buffer.detach().clone() for buffer in buffers}
        held = [p for _, _, slots, _ in self._modules for p in slots.values() if p is not None]
        self.parameters = list({id(parameter): parameter for parameter in held}.values())
        self._gradients = [(p, p.grad, p.requires_grad) for p in self.parameters]
        self._copies = [(p, p.detach().clone()) for p in self.parameters] if weights else []

    def put_back(self) -> None:
        """Restore everything."""
        self._plain.put_back()
        for module, training, slots, held in self._modules:
            module.training = training
            _put_back(module._parameters, slots)
            _put_back(module._buffers, held)
            self._put_back_values(held)
        for parameter, copy in self._copies:
            parameter.copy_(copy)
        for parameter, gradient, flag in self._gradients:
            parameter.requires_grad_(flag)
            parameter.grad = gradient

    def _put_back_values(self, held: dict[str, torch.Tensor | None]) -> None:
        for buffer in held.values():
            # On an accelerator a comparison would wait for all that runs there; a copy does not.
            if buffer is None or (
                buffer.device.type == "cpu" and torch.equal(buffer, self._values[id(buffer)])
            ):
                continue
            buffer.copy_(self._values[id(buffer)])


def _put_back(slots: dict[str, _ValueT], found: dict[str, _ValueT]) -> None:
    """Restore a module's dictionary, unless nothing was replaced or moved."""
    if len(slots) == len(found) and all(
        now is then and value is before for (now, value), (then, before) in zip(slots.items(), found.items())
    ):
        return
    slots.clear()
    slots.update(found)

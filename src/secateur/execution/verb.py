"""`verb`: a decorator with the guarantees of every verb that is given a model.

- Verbs of one process run one after another: they set and restore state of the whole process (random state,
  torch's default type and number of threads). Called from several threads they wait for each other.
- A model, or a part of it, that a verb in one thread is working on is refused to a verb in another thread.
- A verb that fails or is interrupted leaves the model's modules, modes, hooks, buffers and gradients, the random state
  and torch's settings as it found them. Weights that it changed it restores itself.

>>> from torch import nn
>>> @verb
... def halve(model: nn.Module) -> None:
...     model.train(False)
...     raise ValueError("no")
>>> model = nn.Linear(1, 1)
>>> try:
...     halve(model)
... except ValueError:
...     print(model.training)
True
"""

from __future__ import annotations

import functools
import gc
import inspect
import os
import random
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from torch import nn

from secateur.core.interrupts import InterruptsDeferred, boundary, uninterrupted
from secateur.errors import ModelInUseError, near
from secateur.execution.arguments import Arguments
from secateur.execution.fast_copy import collector_paused

__all__ = ["verb"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def verb(function: Callable[_P, _R], name: str | None = None) -> Callable[_P, _R]:
    """Make a function a verb: see the module.

    Args:
        function: One with a parameter `model` or `into`, or two models `a` and `b` or `before` and `after`; see
            `Arguments` for what is accepted as a model.
        name: Its name in errors, if not the function's.
    """
    parameters = inspect.signature(function).parameters
    arguments, known = Arguments(function), set(parameters)
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())

    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if not takes_any and kwargs.keys() - known:
            _refuse_keyword(function, sorted(kwargs.keys() - known), known)
        given, named = arguments.read(args, kwargs)
        door = _Door(name or function.__name__, arguments.models(given, named))
        try:
            door.open()
            while not door.first():
                pass
            door.look()
            result = function(*given, **named)
            door.done = True
            return result
        finally:
            door.close()

    return functools.wraps(function)(boundary(call))


def _refuse_keyword(function: Callable[..., object], wrong: list[str], known: set[str]) -> None:
    """Raise a `TypeError` that says where an argument belongs, if it is a field of the verb's options."""
    text = f"{function.__name__}() got an unexpected keyword argument {wrong[0]!r}"
    options = str(function.__annotations__.get("options", "")).partition(" |")[0]
    kind = inspect.unwrap(function).__globals__.get(options)
    if kind is not None and wrong[0] in getattr(kind, "__dataclass_fields__", {}):
        raise TypeError(f"{text}; it is one of the options: pass options=sc.{options}({wrong[0]}=...)")
    raise TypeError(f"{text}; {near(wrong[0], known)}")


_claims: dict[int, tuple[int, str]] = {}  # by the identity of a module: (thread, verb)
_turn = threading.RLock()
_guard = threading.Lock()


def _forked() -> None:
    """A forked process has this one thread only: what other threads held is free."""
    global _turn, _guard
    _turn, _guard = threading.RLock(), threading.Lock()
    _claims.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class _Door:
    """One call of a verb: its claim on its models, its turn, and the state to restore if it fails."""

    def __init__(self, name: str, models: list[nn.Module]):
        self.name, self.models = name, models
        self.done = False
        self._deferred = InterruptsDeferred()
        self._claimed: list[int] = []
        self._has_turn = False
        self._process: _Process | None = None
        self._found: list[_Modules] = []

    @uninterrupted
    def open(self) -> None:
        """Claim the models for this thread."""
        self._deferred.__enter__()
        me = threading.get_ident()
        with _guard:
            parts = {id(module): model for model in self.models for module in model.modules()}
            for part, model in parts.items():
                thread, other = _claims.get(part, (me, ""))
                if thread != me:
                    raise ModelInUseError(
                        f"{self.name}: expected a model that no other thread is working on, got "
                        f"{type(model).__name__}, on which {other} is running in another thread; wait for it, or "
                        "give each thread a copy (copy.deepcopy(model))"
                    )
            self._claimed = [part for part in parts if part not in _claims]
            _claims.update((part, (me, self.name)) for part in self._claimed)

    @uninterrupted
    def first(self) -> bool:
        """Whether it is this thread's turn; waits a little for it. Ctrl-C is handled between two calls."""
        self._has_turn = _turn.acquire(timeout=0.1)
        return self._has_turn

    @uninterrupted
    def look(self) -> None:
        """Record the state."""
        self._process = _Process()
        with collector_paused():
            self._found = [_Modules(model) for model in self.models]

    @uninterrupted
    def close(self) -> None:
        """Restore everything if the verb failed; give the turn to the next one."""
        try:
            if not self.done:
                for found in self._found:
                    found.put_back()
                if self._process is not None:
                    self._process.put_back()
        finally:
            if self._has_turn:
                _turn.release()
            with _guard:
                for part in self._claimed:
                    _claims.pop(part, None)
            self._deferred.__exit__()


class _Process:
    """Settings and random states of this process and thread."""

    def __init__(self) -> None:
        self._torch, self._numpy, self._python = (
            torch.get_rng_state(),
            np.random.get_state(),
            random.getstate(),
        )
        self._dtype, self._threads = torch.get_default_dtype(), torch.get_num_threads()
        self._gradients, self._fast = torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled()
        self._collects = gc.isenabled()

    def put_back(self) -> None:
        torch.set_rng_state(self._torch)
        np.random.set_state(self._numpy)
        random.setstate(self._python)
        torch.set_default_dtype(self._dtype)
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        torch.set_grad_enabled(self._gradients)
        torch.backends.mha.set_fastpath_enabled(self._fast)
        (gc.enable if self._collects else gc.disable)()


_EMPTY: dict[str, object] = {}


class _Modules:
    """What every module of a model holds (attributes, hooks, slots), flags and gradients, and the buffers' values."""

    def __init__(self, model: nn.Module):
        self._modules = []
        for module in model.modules():
            held = vars(module)
            inner = [
                (value, value.copy() if value else _EMPTY)
                for key, value in held.items()
                if key[:1] == "_" and isinstance(value, dict)
            ]
            self._modules.append((module, type(module), held.copy(), inner))
        tensors = {
            id(t): t for module, *_ in self._modules for t in module._parameters.values() if t is not None
        }
        self._flags = [(tensor, tensor.requires_grad, tensor.grad) for tensor in tensors.values()]
        self._values = [
            (buffer, buffer.detach().clone())
            for module, *_ in self._modules
            for buffer in module._buffers.values()
            if buffer is not None
        ]

    @torch.no_grad()
    def put_back(self) -> None:
        for module, kind, held, inner in self._modules:
            if type(module) is not kind:
                module.__class__ = kind
            _refill(vars(module), held)
            for now, found in inner:
                _refill(now, found)
        for tensor, flag, gradient in self._flags:
            if tensor.requires_grad is not flag:
                tensor.requires_grad_(flag)
            tensor.grad = gradient
        for buffer, value in self._values:
            if buffer.device.type != "meta" and not torch.equal(buffer, value):
                buffer.copy_(value)


def _refill(now: dict[str, object], found: dict[str, object]) -> None:
    """Restore a dictionary in place, unless nothing changed."""
    if list(now) == list(found) and all(now[key] is value for key, value in found.items()):
        return
    now.clear()
    now.update(found)

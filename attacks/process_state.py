"""A snapshot of the state of this process: what no file may change, besides the value that is returned.

`snapshot()` has one entry a thing: classes and the defaults of their methods, random generators, settings, the
environment, open descriptors, files. `changes(before, after)` names what differs.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import sys
import threading
import types
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn

State = dict[str, object]


def classes() -> list[type]:
    """Every module class that is known by now, and those of secateur and of configurations."""
    found: dict[type, None] = dict.fromkeys([object, type, dict, nn.Module, nn.Parameter, torch.Tensor])
    waiting: list[type] = [nn.Module]
    while waiting:
        kind = waiting.pop()
        for each in kind.__subclasses__():
            if each not in found:
                found[each] = None
                waiting.append(each)
    for name, module in list(sys.modules.items()):
        if name.startswith("secateur."):
            found.update((each, None) for each in vars(module).values() if isinstance(each, type))
    return list(found)


# What Python itself writes into a protocol's class at the first isinstance() that asks for it; and, empty,
# `__annotations__`.
_LAZY = ("__protocol_attrs__", "__non_callable_proto_members__")


def _of_class(kind: type) -> tuple[object, ...]:
    out: list[object] = [kind.__bases__]
    for name, value in sorted(vars(kind).items(), key=lambda pair: str(pair[0])):
        if name in ("__doc__", "__weakref__", "__dict__", "__abstractmethods__", "_abc_impl"):
            continue
        if name in _LAZY or (name == "__annotations__" and not value):
            continue
        out += [name, id(value)]
        if isinstance(value, types.FunctionType):
            out += [id(value.__code__), repr(value.__defaults__), repr(value.__kwdefaults__)]
    return tuple(out)


def snapshot(folders: Iterable[Path] = (), kinds: Iterable[type] | None = None) -> State:
    """The state now; `kinds` are the classes to look at (all that are known, if None)."""
    state: State = {}
    for kind in classes() if kinds is None else kinds:
        state[f"class {kind.__module__}.{kind.__qualname__} {id(kind)}"] = _of_class(kind)
    state["torch random"] = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()
    state["numpy random"] = hashlib.sha256(repr(np.random.get_state()).encode()).hexdigest()
    state["random"] = hash(random.getstate())
    state["torch settings"] = (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_default_device(),
    )
    state["numpy settings"] = tuple(sorted(np.geterr().items()))
    state["path"] = tuple(sys.path)
    state["recursion limit"] = sys.getrecursionlimit()
    state["environment"] = tuple(sorted(os.environ.items()))
    state["folder"] = os.getcwd()
    state["threads"] = threading.active_count()
    state["warnings"] = len(warnings.filters)
    state["umask"] = next(
        (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Umask")), ""
    )
    state["descriptors"] = tuple(sorted(_descriptors()))
    for folder in folders:
        state[f"files of {folder.name}"] = tuple(
            sorted((str(f.relative_to(folder)), f.stat().st_size) for f in folder.rglob("*"))
        )
    return state


# The classes that a plan can come near to.
_NEAR = (nn.Module, nn.Linear, nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d, nn.MultiheadAttention)


def fingerprint() -> State:
    """What of the state can be looked at after every single input: a few microseconds each."""
    numpy: np.random.MT19937 = np.random.mtrand._rand._bit_generator  # type: ignore[attr-defined]
    return {
        "torch random": torch.get_rng_state().numpy().tobytes(),
        "numpy random": ctypes.string_at(numpy.ctypes.state_address, 625 * 4),  # `get_state` copies for 30 us
        "random": random.getstate(),
        "torch settings": (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()),
        "path": len(sys.path),
        "recursion limit": sys.getrecursionlimit(),
        "environment": len(os.environ),
        "folder": os.getcwd(),
        "threads": threading.active_count(),
        "warnings": len(warnings.filters),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "classes": tuple(
            (
                len(vars(kind)),
                id(kind.__init__),
                id(kind.__init__.__defaults__),
                id(getattr(kind, "forward", 0)),
            )
            for kind in _NEAR
        ),
    }


def _descriptors() -> Iterable[str]:
    for each in os.listdir("/proc/self/fd"):
        try:
            yield f"{each} {os.readlink(f'/proc/self/fd/{each}')}"
        except OSError:  # the one that lists them
            continue


def changes(before: State, after: State) -> list[str]:
    """What differs. Classes that are new are no change, nor are the descriptors of the listing itself."""
    found = [name for name, value in before.items() if name in after and after[name] != value]
    return found + [name for name in before if name not in after and not name.startswith("class ")]

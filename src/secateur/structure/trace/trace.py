"""`trace`: the operators that a model runs, with shapes and the parameters they read, from one forward pass.

The model is copied with meta tensors for weights, so that nothing is computed, and run once under a dispatch mode. The
copy is then discarded. A forward that reads values, which meta tensors do not have, is run on the real weights, which
are shared, not copied, unless it runs in training.

>>> import torch
>>> from torch import nn
>>> found = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.zeros(1, 3, 8, 8))
>>> [(op.name, op.path) for op in found.ops]
[('convolution', '0'), ('relu', '1')]
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.core.nested import map_tensors, tensors_in
from secateur.core.out_of_memory import raise_if_out_of_memory
from secateur.errors import TraceError
from secateur.execution.calling import call
from secateur.execution.fast_copy import copy_module, is_atom, tensors_of
from secateur.execution.undisturbed import kept_random_state
from secateur.structure.trace.calls import CallRecorder, FunctionCall
from secateur.structure.trace.fixed_count_norms import uncounted
from secateur.structure.trace.meta_shapes import META_SHAPES

__all__ = [
    "Op",
    "TensorRef",
    "Trace",
    "trace",
    "traceable_copy",
]


@dataclass(eq=False, slots=True)
class TensorRef:
    """A tensor seen in the trace. `name` is the parameter or buffer it is, `role` input, parameter, buffer or value."""

    id: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    role: str = "value"
    name: str = ""
    op: int = -1


@dataclass(eq=False, slots=True)
class Op:
    """One operator call: arguments with `TensorRef`s in place of tensors, and the module it ran in."""

    index: int
    name: str
    overload: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: Any
    path: str
    _refs: list[TensorRef] | None = None
    _results: list[TensorRef] | None = None

    def refs(self) -> list[TensorRef]:
        """The tensors among the arguments."""
        if self._refs is None:
            self._refs = list(_refs((self.args, self.kwargs)))
        return self._refs

    def results(self) -> list[TensorRef]:
        """The tensors among the outputs."""
        if self._results is None:
            self._results = list(_refs(self.outputs))
        return self._results

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or by name."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)


@dataclass(eq=False)
class Trace:
    """The operators of one forward, the tensors that went in and came out, and how the run was made; `entered` are the
    modules that were called.
    """

    ops: list[Op] = field(default_factory=list)
    inputs: list[TensorRef] = field(default_factory=list)
    outputs: list[TensorRef] = field(default_factory=list)
    parameters: dict[str, TensorRef] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    mode: str = "meta"
    training: bool = False
    modules: dict[str, str] = field(default_factory=dict)
    calls: list[FunctionCall] = field(default_factory=list)
    entered: frozenset[str] = frozenset()
    error: BaseException | None = None
    error_path: str = ""


def _refs(value: Any) -> Iterator[TensorRef]:
    if type(value) is TensorRef:
        yield value
    elif is_atom(value):
        return
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _refs(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _refs(item)


def _loose_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Tensors that modules keep as plain attributes, also one level down in lists and dicts."""
    for module in model.modules():
        for name, value in vars(module).items():
            if name in _OWN or is_atom(value):
                continue
            if isinstance(value, (list, tuple, dict)):
                if len(value) >= 1000:
                    continue
                for item in value.values() if isinstance(value, dict) else value:
                    if isinstance(item, torch.Tensor):
                        yield item
            elif isinstance(value, torch.Tensor):
                yield value


_OWN = frozenset(vars(nn.Module()))
"""Attributes of every module: its parameters, buffers, children and hooks."""


def traceable_copy(
    model: nn.Module, mode: str = "meta", training: bool = False
) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A copy of the model without copied weights, and its tensors by name.

    `mode` "meta" gives tensors without storage; "real" shares the parameters and copies only buffers, which a forward
    may change. A forward in training may change parameters as well (averages, a momentum encoder): it gets copies.
    """
    memo: dict[int, Any] = {}
    names: dict[str, torch.Tensor] = {}
    kept: list[torch.Tensor] = []

    def stand_in(tensor: torch.Tensor, parameter: bool, share: bool) -> torch.Tensor:
        source = tensor.detach()
        if mode == "meta":
            new = torch.empty_strided(source.shape, source.stride(), dtype=source.dtype, device="meta")
        else:
            new = source.view_as(source) if share else source.clone()
        if parameter:
            new = nn.Parameter(new, requires_grad=tensor.requires_grad and new.is_floating_point())
        kept.append(tensor)
        return new

    for name, tensor in tensors_of(model).items():
        if id(tensor) not in memo:
            whole = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = stand_in(tensor, whole, whole and not training)
        names[name] = memo[id(tensor)]
    for tensor in _loose_tensors(model):
        if id(tensor) not in memo:
            memo[id(tensor)] = stand_in(tensor, isinstance(tensor, nn.Parameter), False)
    try:
        copied = copy_module(model, memo)
    except Exception as error:
        raise_if_out_of_memory(error)
        raise TraceError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}); shrink works "
            f"on a copy, so make "
            "the model deep-copyable"
        ) from error
    return copied.train(training) if training != model.training or training else copied.eval(), names


class _Recorder(TorchDispatchMode):
    """Records every operator."""

    def __init__(self, found: Trace, stack: list[str]):
        super().__init__()
        self.found = found
        self.stack = stack
        self.count = 0
        self.meta = found.mode == "meta"

    def ref(self, tensor: torch.Tensor, op: int = -1) -> TensorRef:
        """The record of a tensor; a new one if it is seen for the first time."""
        found = tensor.__dict__.get("_secateur_ref")
        if found is None:
            found = tensor._secateur_ref = self._new(tensor, op)  # type: ignore[attr-defined]
        return found

    def _new(self, tensor: torch.Tensor, op: int) -> TensorRef:
        known = TensorRef(self.count, tuple(tensor.shape), tensor.dtype, op=op)
        self.count += 1
        return known

    def _refer(self, value: Any, op: int) -> Any:
        if is_atom(value):
            return value
        if isinstance(value, torch.Tensor):
            known = self.ref(value, op)
            if op >= 0 and known.shape != tuple(value.shape):
                # transposed or resized in place: one of its own
                known = value._secateur_ref = self._new(value, op)  # type: ignore[attr-defined]
            return known
        if isinstance(value, (list, tuple)):
            return [self._refer(item, op) for item in value]
        if isinstance(value, dict):
            return {key: self._refer(item, op) for key, item in value.items()}
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        ops = self.found.ops
        index = len(ops)
        seen = tuple([self._refer(arg, -1) for arg in args])
        named = {key: self._refer(value, -1) for key, value in kwargs.items()} if kwargs else {}
        quick = META_SHAPES.get(func) if self.meta else None
        result = func(*args, **kwargs) if quick is None else quick(*args, **kwargs)
        name = _NAMES.get(func)
        if name is None:
            name = _NAMES[func] = func._schema.name.removeprefix("aten::")
        ops.append(Op(index, name, func, seen, named, self._refer(result, index), self.stack[-1]))
        return result


_NAMES: dict[Any, str] = {}


@contextmanager
def _paths(model: nn.Module, stack: list[str], calls: CallRecorder) -> Iterator[None]:
    """Keep the dotted name of the running module on top of the stack."""

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            stack.append(name)
            calls.enter(name)

        return hook

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        stack.pop()

    def begin(module: nn.Module, *rest: Any) -> None:
        calls.hook(1)

    def end(module: nn.Module, *rest: Any) -> None:
        calls.hook(-1)

    # Inserted by hand: removable handles cost more than the hooks themselves.
    modules = list(model.named_modules())
    for name, module in modules:
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            if hooks:  # a user's: marked off at both ends
                hooks[_FIRST], hooks[_LAST] = begin, end
                hooks.move_to_end(_FIRST, last=False)
        module._forward_pre_hooks[_HOOK] = enter(name)
        module._forward_pre_hooks.move_to_end(_HOOK, last=False)
        module._forward_hooks[_HOOK] = leave
    try:
        yield
    finally:
        for _, module in modules:
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                for key in (_HOOK, _FIRST, _LAST):
                    hooks.pop(key, None)


_HOOK, _FIRST, _LAST = -1, -2, -3  # handles count from 0


def trace(
    model: nn.Module,
    example: Any,
    *,
    training: bool = False,
    mode: str | None = None,
    partial: bool = False,
    ready: dict[str, torch.Tensor] | None = None,
) -> Trace:
    """Record one forward. `partial` gives back what was recorded up to an error instead of raising it.

    With `ready` (tensors by name) the model is such a stand-in already, and is run as it is.
    """
    modes = (mode,) if mode else ("meta", "real")
    problems = []
    for attempt in modes:
        found = _run(model, example, attempt, training, ready=ready)
        if found.error is None or partial:
            return found
        problems.append(f"on {attempt} tensors: {type(found.error).__name__}: {str(found.error)[:300]}")
        cause = found.error
    if isinstance(example, (str, os.PathLike)):
        raise TraceError(
            f"example: expected a tensor of one batch, as {type(model).__name__} is called with it, got the text "
            f"{str(example)!r}; read that file into a tensor first"
        ) from cause
    if any(type(part).__module__ == "numpy" for part in _parts(example)):
        raise TraceError(
            f"example: expected tensors, as {type(model).__name__} is called with them, got numpy.ndarray; give "
            "torch.from_numpy(example)"
        ) from cause
    raise TraceError(
        f"the forward pass of {type(model).__name__} could not be recorded with this example ("
        + "; ".join(problems)
        + "); check that model(example) runs: a tuple means several arguments, a dict keywords"
    ) from cause


def _parts(example: Any) -> list[Any]:
    """The arguments of an example."""
    if isinstance(example, dict):
        return list(example.values())
    return list(example) if isinstance(example, (tuple, list)) else [example]


@contextmanager
def _gate_by_gate() -> Iterator[None]:
    """Recurrent layers on real tensors as plain operators, not as one of oneDNN's, which cannot be followed."""
    settings = torch.backends.mkldnn
    was = settings.enabled
    settings.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        settings.enabled = was


def _run(
    model: nn.Module,
    example: Any,
    mode: str,
    training: bool,
    ready: dict[str, torch.Tensor] | None = None,
) -> Trace:
    copied, names = traceable_copy(model, mode, training) if ready is None else (model, ready)
    stack = [""]
    found = Trace(
        mode=mode, training=training, modules={n: type(m).__name__ for n, m in model.named_modules()}
    )
    recorder = _Recorder(found, stack)
    fast = torch.backends.mha.get_fastpath_enabled()
    buffers = {name for name, tensor in names.items() if not isinstance(tensor, nn.Parameter)}
    for name, tensor in names.items():
        ref = recorder.ref(tensor)
        if ref.name:
            found.aliases[name] = ref.name
            continue
        ref.role, ref.name = ("buffer" if name in buffers else "parameter"), name
        found.parameters[name] = ref
    device = "meta" if mode == "meta" else next((t.device for t in names.values()), torch.device("cpu"))

    def place(tensor: torch.Tensor) -> torch.Tensor:
        new = (
            torch.empty_like(tensor, device="meta") if mode == "meta" else tensor.detach().to(device).clone()
        )
        ref = recorder.ref(new)
        ref.role = "input"
        found.inputs.append(ref)
        return new

    try:
        torch.backends.mha.set_fastpath_enabled(False)
        moved = map_tensors(place, example)
        calls = CallRecorder(found.ops, stack)
        found.calls = calls.found
        with ExitStack() as contexts:
            contexts.enter_context(kept_random_state())
            contexts.enter_context(torch.no_grad())
            contexts.enter_context(uncounted())
            contexts.enter_context(_gate_by_gate())
            contexts.enter_context(_paths(copied, stack, calls))
            if mode == "meta":
                contexts.enter_context(torch.device("meta"))
            contexts.enter_context(recorder)
            contexts.enter_context(calls)
            output = call(copied, moved)
        found.entered = frozenset(calls.counts)
        for tensor in tensors_in(output):
            found.outputs.append(recorder.ref(tensor))
    except Exception as error:
        raise_if_out_of_memory(error)
        found.error, found.error_path = error, stack[-1]
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return found

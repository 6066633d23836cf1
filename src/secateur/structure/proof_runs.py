"""One run of a model for a proof: a copy in float64, an input, a mode; outputs or the error it raised.

>>> import torch
>>> from torch import nn
>>> run(double_copy(nn.Linear(4, 2)), torch.ones(3, 4), "no_grad", torch.float64).outputs[0].dtype
torch.float64
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from secateur.core.nested import map_tensors, tensors_in
from secateur.core.out_of_memory import raise_if_out_of_memory
from secateur.execution.calling import call
from secateur.execution.devices import device_of
from secateur.execution.example import Example, call_arguments
from secateur.execution.fast_copy import collector_paused, copy_module
from secateur.execution.undisturbed import PlainState, undisturbed
from secateur.structure.cut.plan import ShrinkPlan, cut_tensor
from secateur.structure.depthwise import depthwise_sums

__all__ = ["ModelRun", "disturb_", "double_copy", "random_fills", "run"]


@dataclass
class ModelRun:
    """The result of a model for one input in one mode: outputs, or the error it raised; and in how many graphs.

    `selected` names the operators whose choice was given to both models, where their own could not be compared. In
    training, `shapes_only` says whether random numbers were drawn, and `reached` names the parameters that gradients
    reach. `seed` is what the random numbers start from.
    """

    outputs: list[torch.Tensor] = field(default_factory=list)
    error: Exception | None = None
    graphs: int = 0
    selected: tuple[str, ...] = ()
    shapes_only: bool = False
    reached: frozenset[str] = frozenset()
    seed: int = 0


@torch.no_grad()
@collector_paused()
def double_copy(
    model: nn.Module,
    masks: Mapping[str, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.float64,
    fill: Mapping[str, torch.Tensor] | None = None,
) -> nn.Module:
    """A copy in another precision and evaluation mode. The weights are converted on the way, not copied twice.

    Args:
        model: The model; it is not changed.
        masks: The masks to apply, by parameter name.
        dtype: The precision.
        fill: Values to use in place of a parameter's own, by name.

    Returns:
        The copy. Its parameters ask for gradients as those of the model do.
    """
    memo: dict[int, Any] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        mask = None if masks is None else masks.get(name)
        if id(tensor) not in memo:
            value = tensor.detach() if fill is None or name not in fill else fill[name]
            value = value.to(dtype) if value.is_floating_point() else value.clone()
            if value.data_ptr() == tensor.data_ptr():
                value = value.clone()
            asks = tensor.requires_grad and value.is_floating_point()
            memo[id(tensor)] = nn.Parameter(value, asks) if isinstance(tensor, nn.Parameter) else value
        if mask is not None:
            memo[id(tensor)].data.masked_fill_(~mask.to(tensor.device), 0.0)
    return copy_module(model, memo).eval().to(dtype)


def random_fills(
    model: nn.Module, masks: Mapping[str, torch.Tensor], plan: ShrinkPlan
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Random values for parameters that are all 0, masked; and the same, cut, for the shrunk model."""
    generator = torch.Generator().manual_seed(0)
    dense: dict[str, torch.Tensor] = {}
    small: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not bool(parameter.any()):
            value = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(
                parameter.device
            )
            if name in masks:
                value = value * masks[name].to(parameter.device)
            dense[name] = value
            after = plan.name_after(name)
            if after is not None:
                small[after] = cut_tensor(value, plan.keep[after]) if after in plan.keep else value
    return dense, small


@torch.no_grad()
def disturb_(model: nn.Module) -> nn.Module:
    """Change every weight in place by a millionth of a millionth of its value: what rounding errors may grow to."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(parameter * noise.to(parameter) * _DISTURBANCE)
    return model


_DISTURBANCE = 1e-12


@contextmanager
def _settings(dtype: torch.dtype, fast: bool) -> Iterator[None]:
    """torch's default type, and whether its encoder layers take their fast path; the random state is restored."""
    was = torch.backends.mha.get_fastpath_enabled()
    state, default = torch.random.get_rng_state(), torch.get_default_dtype()
    try:
        torch.backends.mha.set_fastpath_enabled(was and fast)
        torch.set_default_dtype(dtype)
        yield
    finally:
        torch.set_default_dtype(default)
        torch.random.set_rng_state(state)
        torch.backends.mha.set_fastpath_enabled(was)


def run(
    model: nn.Module, example: Example, mode: str, dtype: torch.dtype, fast: bool = True, seed: int = 0
) -> ModelRun:
    """Run a model on an input in a mode; an exception is part of the result.

    What the forward keeps in plain attributes is forgotten, so that no run depends on the one before.
    """
    device, plain = device_of(model), PlainState(model)

    def placed(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach().to(device)
        return tensor.to(dtype, copy=True) if tensor.is_floating_point() else tensor.clone()

    found = ModelRun(seed=seed)
    with _settings(dtype, fast):
        inputs = map_tensors(placed, example)
        torch.manual_seed(seed)
        try:
            outputs = _MODES[mode](model, inputs, found)
        except Exception as error:
            raise_if_out_of_memory(error)
            found.error = error
            return found
        finally:
            plain.put_back()
    found.outputs = [tensor.detach() for tensor in tensors_in(outputs)]
    return found


def _eager(model: nn.Module, inputs: Example, found: ModelRun) -> object:
    # Nothing is differentiated: tensors saved for a backward pass are freed at once.
    dropping = torch.autograd.graph.saved_tensors_hooks(_dropped, _dropped)
    with torch.enable_grad(), dropping, depthwise_sums(model):
        return call(model, inputs)


def _dropped(value: Any) -> Any:
    return None


def _no_grad(model: nn.Module, inputs: Example, found: ModelRun) -> object:
    with torch.no_grad(), depthwise_sums(model):
        return call(model, inputs)


def _compiled(model: nn.Module, inputs: Example, found: ModelRun) -> object:
    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        found.graphs += 1
        return graph.forward

    torch.compiler.reset()
    try:
        with torch.no_grad():
            return call(torch.compile(model, backend=backend), inputs)
    finally:
        torch.compiler.reset()


def _exported(model: nn.Module, inputs: Example, found: ModelRun) -> object:
    args, kwargs = call_arguments(inputs)
    with torch.no_grad():
        program = torch.export.export(model, tuple(args), kwargs)
        torch.manual_seed(0)
        return program.module()(*args, **kwargs)


def _train(model: nn.Module, inputs: Example, found: ModelRun) -> object:
    """The forward in training, torch's dropout layers at 0, and where its gradients go.

    The model is afterwards as it was, also where the forward fails midway: later runs do not see its statistics.
    """
    with undisturbed(model, mode="train", weights=True):
        torch.manual_seed(found.seed)
        np.random.seed(found.seed)
        random.seed(found.seed)
        before = _random_state()
        for module in model.modules():
            if isinstance(module, _DropoutNd):
                module.p = 0.0
        with torch.autograd.graph.saved_tensors_hooks(_dropped, _dropped), depthwise_sums(model):
            outputs = call(model, inputs)
        found.shapes_only = _random_state() != before
        found.reached = _reached(model, outputs)
        # An output may be a buffer or a weight itself, whose values are put back.
        return [tensor.detach().clone() for tensor in tensors_in(outputs)]


def _reached(model: nn.Module, outputs: object) -> frozenset[str]:
    """The parameters that a backward pass would reach: the leaves of the graph that gradients flow through."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    waiting: list[Any] = [tensor.grad_fn for tensor in tensors_in(outputs) if tensor.grad_fn is not None]
    seen, found = set(waiting), set()
    while waiting:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found.add(names.get(id(leaf), ""))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return frozenset(found - {""})


def _random_state() -> tuple[object, ...]:
    """What all random numbers come from: torch's, numpy's and Python's generators."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states.append(torch.mps.get_rng_state())
    bits = tuple(state.cpu().numpy().tobytes() for state in states)
    return bits, repr(np.random.get_state(legacy=False)), random.getstate()


_MODES: dict[str, Callable[[nn.Module, Example, ModelRun], object]] = {
    "eager": _eager,
    "no_grad": _no_grad,
    "compile": _compiled,
    "export": _exported,
    "train": _train,
}

"""`macs`: multiply-accumulates of one forward pass, dense and of the non-zero weights, by layer and in total.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 10))
>>> table = macs(model, torch.zeros(1, 3, 4, 4))
>>> table["macs"].value, table["macs"].per_layer
(1184, {'0': 864, '3': 320})
>>> model[3].weight.data[:5] = 0.0
>>> macs(model, torch.zeros(1, 3, 4, 4))["macs_nonzero"].value
1024

The operators are counted as torch runs them on the example, one after the other. An operator without a rule is named in
the notes instead of counted as 0.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import TypeAlias

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.core.masks import Masks
from secateur.core.measurement import Measurement, Measurements
from secateur.core.model_kinds import check_kind, unwrapped
from secateur.execution.calling import call, describe, evaluating, fused_attention_off
from secateur.execution.example import Example, call_arguments
from secateur.execution.operator_costs import RULES, Cost, is_free, operator_name

__all__ = ["macs", "uses"]

MORE_ROWS = ("macs_nonzero",)

_Operator: TypeAlias = torch._ops.OpOverload

_NAMED = 3  # layers named of an operator that could not be counted

DEFINITION = (
    "multiply-accumulates (one = 1) of convolutions, matrix products and attention; element-wise operations, "
    "norms, softmax, pooling and look-ups are 0"
)


def macs(
    model: nn.Module, example: Example, *, masks: Masks | None = None, bias: bool = False
) -> Measurements:
    """Multiply-accumulates on the whole batch of `example`: dense, and of the non-zero weights alone.

    Padding is counted like any other input.

    Args:
        model: The model.
        example: What it is called with.
        masks: Counted as if applied.
        bias: Whether to count one more for every output that adds a bias, unless a mask removes the bias.
    """
    model = _followed(model)
    if masks is not None:
        masks.check(model)
    swapped = {} if masks is None else _masked_parameters(model, masks)
    counter = _Count(model, swapped, masks, bias)
    with counter.layers(), evaluating(model, example) as inputs, fused_attention_off(), counter:
        if swapped:
            functional_call(model, swapped, *call_arguments(inputs))
        else:
            call(model, inputs)
    plus = " + 1 per bias output" if bias else "; biases are not counted"
    where = f"{DEFINITION}{plus}; example {describe(example)}"
    notes = counter.notes()
    pruned = f"as macs, weights that are zero{' or masked' if masks else ''} left out"
    return Measurements(
        [
            Measurement("macs", counter.total(0), "MAC", where, per_layer=counter.by_layer(0), notes=notes),
            Measurement("macs_nonzero", counter.total(1), "MAC", pruned, per_layer=counter.by_layer(1)),
        ]
    )


def uses(model: nn.Module, example: Example) -> tuple[dict[str, float], int]:
    """How many multiply-accumulates each element of a parameter takes part in.

    The count under any masks is then a sum: uses times kept elements, plus the rest.

    Args:
        model: The model.
        example: What it is called with.

    Returns:
        (uses by parameter name, multiply-accumulates without a parameter, such as those of attention).

    >>> uses(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)), torch.zeros(1, 1, 4, 4))
    ({'0.weight': 4.0, '2.weight': 1.0}, 0)
    """
    model = _followed(model)
    counter = _Uses(model)
    with counter.layers(), evaluating(model, example) as inputs, fused_attention_off(), counter:
        call(model, inputs)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return {name: macs / sizes[name] for name, macs in counter.by_parameter.items()}, counter.rest


class _Count(TorchDispatchMode):
    """Adds up the cost of every operator, by the layer that runs it."""

    def __init__(self, model: nn.Module, swapped: dict[str, torch.Tensor], masks: Masks | None, bias: bool):
        super().__init__()
        self.bias = bias
        self.masks = masks
        self.counts: dict[str, list[int]] = {}
        self.unknown: Counter[tuple[str, str]] = Counter()
        self._stack: list[str] = [""]
        self._names = {module: name for name, module in model.named_modules()}
        self._owner: dict[int, str] = {}
        self._nonzero: dict[tuple[object, ...], int] = {}
        # Storages whose content follows from the parameters alone: a weight that was cast, normalised or masked on
        # its way to the operator is still a weight. The tensors are kept alive, so that no address is used twice.
        self._constant: dict[int, torch.Tensor] = {}
        for name, tensor in (*model.named_parameters(), *swapped.items()):
            self._owner[tensor.data_ptr()] = name
            self._constant[_storage(tensor)] = tensor
        for buffer in model.buffers():
            self._constant[_storage(buffer)] = buffer

    @contextlib.contextmanager
    def layers(self) -> Iterator[None]:
        """Follow which layer is running."""

        def enter(module: nn.Module, args: object) -> None:
            self._stack.append(self._names.get(module, self._stack[-1]))

        def leave(module: nn.Module, args: object, output: object) -> None:
            self._stack.pop()

        handles = [
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(
        self,
        function: _Operator,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Run an operator and add its cost."""
        kwargs = kwargs or {}
        rule = RULES.get(operator_name(function))
        tensors = [item for item in pytree.tree_leaves((args, kwargs)) if torch.is_tensor(item)]
        free = rule is None and is_free(function, tensors)
        if rule is None and not free:
            # Under torch.inference_mode composite operators arrive whole; their parts can be counted.
            with self:
                parts = function.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
            self.unknown[str(function.overloadpacket), self._stack[-1]] += 1
        out = function(*args, **kwargs)
        if rule is not None:
            for cost in rule(args, kwargs, out[0] if isinstance(out, (tuple, list)) else out):
                self._add(cost)
        elif self.bias and operator_name(function) == "add":
            self._added_bias(tensors, out)
        self._follow(function, args, tensors, out)
        return out

    def _follow(
        self, function: _Operator, args: tuple[object, ...], tensors: list[torch.Tensor], out: object
    ) -> None:
        """Remember whether the result still depends on the parameters alone."""
        constant = bool(tensors) and all(_storage(tensor) in self._constant for tensor in tensors)
        if not constant and function._schema.is_mutable:
            for argument, value in zip(function._schema.arguments, args):
                if (
                    argument.alias_info is not None
                    and argument.alias_info.is_write
                    and torch.is_tensor(value)
                ):
                    self._constant.pop(_storage(value), None)
        if constant:
            for item in pytree.tree_leaves(out):
                if torch.is_tensor(item):
                    self._constant.setdefault(_storage(item), item)

    def _add(self, cost: Cost) -> None:
        weight = next((w for w in cost.weights if _storage(w) in self._constant), None)
        dense = alive = cost.macs
        if weight is not None and weight.numel():
            alive = cost.macs // weight.numel() * self._nonzeros(weight)
        if self.bias and cost.bias is not None:
            dense += cost.bias_outputs
            alive += self._kept_bias(cost.bias, cost.bias_outputs)
        self._book(weight if weight is not None else cost.bias, dense, alive)

    def _added_bias(self, tensors: list[torch.Tensor], out: torch.Tensor) -> None:
        """A linear layer whose input is not contiguous adds its bias as a step of its own."""
        for tensor in tensors:
            name = self._owner.get(tensor.data_ptr(), "")
            layer = self._layer_of(tensor)
            if tensor.dim() == 1 and name.rpartition(".")[2].endswith("bias") and layer in self.counts:
                self._book(tensor, out.numel(), self._kept_bias(tensor, out.numel()))

    def _book(self, weight: torch.Tensor | None, dense: int, alive: int) -> None:
        entry = self.counts.setdefault(self._layer_of(weight), [0, 0])
        entry[0] += dense
        entry[1] += alive

    def _layer_of(self, weight: torch.Tensor | None) -> str:
        """The layer that owns the weight, though another may run it (attention runs its out_proj's)."""
        running = self._stack[-1]
        name = self._owner.get(weight.data_ptr()) if weight is not None else None
        if name is None:
            return running
        owner = name.rpartition(".")[0]
        return owner if owner.startswith(running) else running

    def _nonzeros(self, weight: torch.Tensor) -> int:
        key = (weight.data_ptr(), tuple(weight.shape), weight.stride(), weight._version)
        if key not in self._nonzero:
            self._constant.setdefault(_storage(weight), weight)
            self._nonzero[key] = int(torch.count_nonzero(weight))
        return self._nonzero[key]

    def _kept_bias(self, bias: torch.Tensor, outputs: int) -> int:
        name = self._owner.get(bias.data_ptr(), "")
        if self.masks is None or name not in self.masks or not bias.numel():
            return outputs
        return outputs // bias.numel() * int(self.masks[name].sum())

    def total(self, which: int) -> int:
        """The sum over the layers: 0 dense, 1 of the non-zero weights."""
        return sum(entry[which] for entry in self.counts.values())

    def by_layer(self, which: int) -> dict[str, int]:
        """The same by layer, in the order they ran."""
        return {name or "(model)": entry[which] for name, entry in self.counts.items()}

    def notes(self) -> tuple[str, ...]:
        """The operators that could not be counted, and where they ran: one line for an operator of many layers."""
        found: dict[str, dict[str, int]] = {}
        for (operator, layer), times in self.unknown.items():
            found.setdefault(operator, {})[layer or "the model itself"] = times
        lines = []
        for operator, layers in found.items():
            if len(layers) <= _NAMED:
                lines += [
                    f"{operator}, {n} time{'s' if n > 1 else ''} in {name}" for name, n in layers.items()
                ]
                continue
            named = list(layers)[:_NAMED]
            lines.append(
                f"{operator}, {sum(layers.values())} times in {', '.join(named)} and {len(layers) - _NAMED} more"
            )
        return tuple(f"not counted: {line}" for line in lines)


class _Uses(_Count):
    """Counts by parameter instead of by layer."""

    def __init__(self, model: nn.Module):
        super().__init__(model, {}, None, False)
        self.by_parameter: dict[str, int] = {}
        self.rest = 0
        self._origin = {_storage(parameter): name for name, parameter in model.named_parameters()}

    def _add(self, cost: Cost) -> None:
        name = next((self._origin[_storage(w)] for w in cost.weights if _storage(w) in self._origin), None)
        if name is None:
            self.rest += cost.macs
        else:
            self.by_parameter[name] = self.by_parameter.get(name, 0) + cost.macs

    def _follow(
        self, function: _Operator, args: tuple[object, ...], tensors: list[torch.Tensor], out: object
    ) -> None:
        """A tensor computed from one parameter alone (cast, normalised) counts as that parameter."""
        super()._follow(function, args, tensors, out)
        names = {self._origin.get(_storage(tensor)) for tensor in tensors if tensor.dim() > 1}
        name = names.pop() if len(names) == 1 else None
        if name is not None and all(_storage(tensor) in self._constant for tensor in tensors):
            for item in pytree.tree_leaves(out):
                if torch.is_tensor(item):
                    self._origin.setdefault(_storage(item), name)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


# what it makes must have a version counter, which tensors of inference mode lack
@torch.inference_mode(False)
def _masked_parameters(model: nn.Module, masks: Masks) -> dict[str, torch.Tensor]:
    """Masked copies of the parameters, to call the model with; the parameters themselves are not changed."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {
        name: parameters[name].detach().masked_fill(~mask.to(parameters[name].device), 0.0)
        for name, mask in masks.items()
    }


def _followed(model: nn.Module) -> nn.Module:
    """The model whose operators are counted: of a compiled one, the model inside, whose operators are visible."""
    inner = unwrapped(model)
    check_kind(inner, hooks=False)
    return inner

"""A recorded forward pass as steps: what each reads, how it computes, and whose parameters it uses.

A convolution or a linear layer is one step with the batch norm and the ReLU behind it (`Product`); everything else is
called as the model calls it.

>>> import torch
>>> from torch import fx, nn
>>> model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2)).eval()
>>> steps, start, end = steps_of(model, fx.Tracer().trace(model))
>>> [(type(step).__name__, step.name, step.apart) for step in steps], start, end
([('Product', '_2', False), ('GraphStep', '_3', True)], 'input_1', '_3')
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

__all__ = ["GraphStep", "NotRecorded", "Product", "Values", "lasting", "steps_of"]

_IN_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
_RELU = (F.relu, torch.relu, F.relu_, torch.relu_)
_APART: tuple[type[nn.Module], ...] = (
    nn.MaxPool2d,
    nn.AdaptiveAvgPool2d,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.SiLU,
    nn.GELU,
    nn.Hardswish,
)
_APART += (nn.Dropout, nn.Identity)
Values = dict[str, Any]


class NotRecorded(Exception):
    """Raised when a forward pass cannot be expressed as steps."""


@dataclass
class GraphStep:
    """One step: what it reads, how it computes, and the modules and tensors whose parameters it uses."""

    name: str
    reads: tuple[str, ...]
    run: Callable[[Values, bool], Any]
    owners: tuple[Any, ...] = ()
    # channel-wise: each output channel depends on the same input channel only, and is constant if that is
    apart: bool = False
    prepared: dict[Any, Any] = field(default_factory=dict)  # derived from the present parameters

    def parameters(self) -> set[int]:
        """The identities of the parameters it uses."""
        found: set[int] = set()
        for owner in self.owners:
            tensors = owner.parameters() if isinstance(owner, nn.Module) else [owner]
            found |= {id(tensor) for tensor in tensors}
        return found


class Product(GraphStep):
    """A convolution or a linear layer, with the batch norm and the ReLU that were folded into it."""

    def __init__(
        self, name: str, source: str, layer: nn.Conv2d | nn.Linear, norm: nn.BatchNorm2d | None, relu: bool
    ):
        super().__init__(name, (source,), self._run, (layer,) if norm is None else (layer, norm))
        self.source, self.layer, self.norm, self.relu = source, layer, norm, relu

    def weights(self, half: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias with the norm in them, computed once for the present parameters."""
        if half not in self.prepared:
            self.prepared[half] = self._folded(half)
        found: tuple[torch.Tensor, torch.Tensor | None] = self.prepared[half]
        return found

    def _folded(self, half: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        layer, norm = self.layer, self.norm
        weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
        if norm is not None:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            scale = torch.rsqrt(norm.running_var + norm.eps)
            scale = scale if norm.weight is None else scale * norm.weight.detach()
            weight = weight * scale[:, None, None, None]
            shift = -norm.running_mean if bias is None else bias - norm.running_mean
            bias = shift * scale if norm.bias is None else shift * scale + norm.bias.detach()
        if half:
            weight, bias = weight.bfloat16(), None if bias is None else bias.bfloat16()
        return lasting(weight), bias

    def _run(self, values: Values, half: bool) -> Any:
        return self.applied(values[self.source], *self.weights(half), half)

    def applied(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, half: bool
    ) -> torch.Tensor:
        """The step with this weight and bias."""
        if half and x.dtype != torch.bfloat16:
            x = x.bfloat16()
        if isinstance(self.layer, nn.Linear):
            result = F.linear(x, weight, bias)
        else:
            result = self.layer._conv_forward(x, weight, bias)
        return result.relu_() if self.relu else result

    def gone(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Which rows of the weight are zero, and the constant value of their outputs."""
        if "gone" not in self.prepared:
            weight, bias = self.weights(False)
            rows = ~weight.flatten(1).any(1)
            left = torch.zeros(int(rows.sum())) if bias is None else bias[rows]
            self.prepared["gone"] = rows, left.relu() if self.relu else left
        found: tuple[torch.Tensor, torch.Tensor] = self.prepared["gone"]
        return found

    def emptied(self, output: torch.Tensor) -> torch.Tensor:
        """The step's output, computed from its earlier output, where only whole rows of its weights became zero."""
        gone, left = self.gone()
        output, left = output.clone(), left.to(output.dtype)
        if isinstance(self.layer, nn.Linear):
            output[..., gone] = left
        else:
            output[:, gone] = left[:, None, None]
        return output


def steps_of(model: nn.Module, graph: fx.Graph) -> tuple[list[GraphStep], str, str]:
    """The graph as steps, and the names of its input and its output."""
    modules = dict(model.named_modules())
    start, end, steps = "", "", []
    done: set[fx.Node] = set()
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node in done:
            continue
        if node.op == "placeholder":
            if start:
                if not node.users:
                    continue
                raise NotRecorded("it takes more than one input")
            start = node.name
        elif node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                raise NotRecorded("it returns more than one tensor")
            end = node.args[0].name
        elif node.op == "get_attr":
            continue  # it is read where it is used
        elif node.op == "call_module" and type(modules[str(node.target)]) in (nn.Conv2d, nn.Linear):
            chain = _chain(node, modules)
            done.update(chain)
            steps.append(_product(chain, modules))
        else:
            steps.append(_other(node, model, modules, order))
    return steps, start, end


def _reads(node: fx.Node) -> tuple[str, ...]:
    return tuple(one.name for one in node.all_input_nodes if one.op != "get_attr")


def _attribute(model: nn.Module, node: fx.Node) -> tuple[nn.Module, str]:
    """Where a tensor that the forward pass reads directly is found."""
    path, _, name = str(node.target).rpartition(".")
    return model.get_submodule(path), name


def _chain(node: fx.Node, modules: dict[str, nn.Module]) -> list[fx.Node]:
    """A convolution with the batch norm and the ReLU that alone read it, or a linear layer with its ReLU."""
    chain = [node]
    if isinstance(modules[str(node.target)], nn.Conv2d):
        after = _only_user(chain[-1])
        norm = modules.get(str(after.target)) if after is not None and after.op == "call_module" else None
        if after is not None and type(norm) is nn.BatchNorm2d and norm.running_mean is not None:
            chain.append(after)
    after = _only_user(chain[-1])
    if after is not None and _is_relu(after, modules):
        chain.append(after)
    return chain


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].args[:1] == (node,) else None


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(modules[str(node.target)]) is nn.ReLU
    if node.op == "call_method":
        return node.target in ("relu", "relu_")
    return node.op == "call_function" and node.target in _RELU


def _product(chain: list[fx.Node], modules: dict[str, nn.Module]) -> GraphStep:
    """The step of a convolution or a linear layer, with what was folded into it."""
    layer = modules[str(chain[0].target)]
    norm = modules[str(chain[1].target)] if len(chain) > 1 and chain[1].op == "call_module" else None
    relu = len(chain) > 1 and _is_relu(chain[-1], modules)
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    return Product(
        chain[-1].name,
        _reads(chain[0])[0],
        layer,
        norm if isinstance(norm, nn.BatchNorm2d) else None,
        relu,
    )


def _other(
    node: fx.Node, model: nn.Module, modules: dict[str, nn.Module], order: dict[fx.Node, int]
) -> GraphStep:
    """Any other module, function or method, called as the model calls it; operations in place work on a copy."""
    writes = False
    if node.op == "call_module":
        module = modules[str(node.target)]
        writes = bool(getattr(module, "inplace", False))
        function: Callable[..., Any] = module
        owners: tuple[Any, ...] = (module,)
    elif node.op == "call_method":
        name = "reshape" if node.target == "view" else str(node.target)
        writes = name.endswith("_")

        def function(one: object, *args: Any, **kwargs: Any) -> Any:
            return getattr(one, name)(*args, **kwargs)

        owners = ()
    else:
        target: Any = node.target
        function, owners = _IN_PLACE.get(target, target), ()
        given = bool(node.kwargs.get("inplace", False)) or True in node.args
        writes = target in _IN_PLACE or getattr(target, "__name__", "").endswith("_") or given
        if "out" in node.kwargs or target is operator.setitem:
            raise NotRecorded(f"{node.name} writes into a tensor it was given")
        writes = writes and target not in _IN_PLACE
    changed = _written(node)
    if changed is not None and any(order[user] > order[node] for user in changed.users):
        raise NotRecorded(f"{node.name} changes a value that is read again later")

    direct = {one.name: _attribute(model, one) for one in node.all_input_nodes if one.op == "get_attr"}
    owners += tuple(getattr(owner, name) for owner, name in direct.values())

    def value_of(values: Values, one: fx.Node) -> Any:
        return getattr(*direct[one.name]) if one.name in direct else values[one.name]

    def run(values: Values, half: bool) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda one: value_of(values, one))
        if writes and args and isinstance(args[0], torch.Tensor):
            args = (args[0].clone(), *args[1:])
        return function(*args, **kwargs)

    apart = node.op == "call_module" and type(modules[str(node.target)]) in _APART
    return GraphStep(node.name, _reads(node), run, owners, apart)


def _written(node: fx.Node) -> fx.Node | None:
    """The value an operation changes in place, by its name (`add_`, `+=`) alone."""
    named = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    inward = node.op == "call_function" and node.target in _IN_PLACE
    if (inward or (node.op != "call_module" and named.endswith("_"))) and node.args:
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    return None


def lasting(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the memory format of the steps: channels last."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

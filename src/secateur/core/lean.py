"""`Lean`: a classifier's outputs with one part of the model changed, in fewer steps than the model itself takes.

A scan runs the same images through the same model with one layer changed, a hundred times over. `Lean` records the
forward pass once as a list of steps, keeps for every batch the values that cross the step under test, and runs what
comes after it alone: with batch norm folded into the convolution before it, channels last, and, if asked, in bfloat16.
What it computes is the model's output up to rounding. It never is the model's output to the last bit: whoever needs
that compares margins with the rounding (`secateur.measure._certain` does) and asks the model where they are too small.

>>> import torch
>>> from torch import nn
>>> _ = torch.manual_seed(0)
>>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
>>> images = [torch.randn(5, 3, 4, 4), torch.randn(2, 3, 4, 4)]
>>> lean = record(model, images, limit=1 << 20)
>>> [step.name for step in lean.steps]  # three modules in one step, then the two others
['_2', '_3', '_4']
>>> with torch.no_grad(), lean.changing(["4.weight"]):
...     _ = model[4].weight.mul_(2.0)
...     lean.refresh()
...     found, wanted = lean.outputs(1), model(images[1])
>>> torch.allclose(found, wanted, atol=1e-6), lean.first_kept
(True, 2)
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

__all__ = ["Lean", "Step", "record"]

_IN_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
_RELU = (F.relu, torch.relu, F.relu_, torch.relu_)
Values = dict[str, Any]


@dataclass
class Step:
    """One step: what it reads, how it computes, and the modules and tensors whose parameters it uses."""

    name: str
    reads: tuple[str, ...]
    run: Callable[[Values, bool], Any]
    owners: tuple[Any, ...] = ()
    prepared: dict[bool, Any] = field(default_factory=dict)  # by "in bfloat16"
    # the step's output from the one it had, where nothing but whole rows of its weights became zero since
    emptied: Callable[[torch.Tensor], torch.Tensor] | None = None

    def parameters(self) -> set[int]:
        """The identities of the parameters it uses."""
        found: set[int] = set()
        for owner in self.owners:
            tensors = owner.parameters() if isinstance(owner, nn.Module) else [owner]
            found |= {id(tensor) for tensor in tensors}
        return found


def record(model: nn.Module, batches: Sequence[torch.Tensor], limit: int = 1 << 30) -> Lean | str:
    """The model's forward pass as steps, or the reason why it cannot be recorded. The model is in evaluation mode."""
    reason = _refused(model, batches)
    if reason:
        return reason
    try:
        graph = fx.Tracer().trace(model)
        steps, start, end = _steps(model, graph)
    except _NotRecorded as error:
        return str(error)
    except Exception as error:  # whatever the model's code does with what is not yet a number
        return f"its forward pass cannot be recorded ({type(error).__name__})"
    return Lean(model, steps, start, end, batches, limit)


class _NotRecorded(Exception):
    """A forward pass with something in it that steps cannot stand for."""


def _refused(model: nn.Module, batches: Sequence[torch.Tensor]) -> str:
    """Why not even to try."""
    tensors = [*model.parameters(), *batches]
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return "it is not on the CPU"
    if any(tensor.dtype != torch.float32 for tensor in tensors):
        return "it does not compute in float32"
    for module in model.modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{type(module).__name__} has forward hooks"
        if module.training:
            return "it is in training mode"
    return ""


class Lean:
    """The recorded steps of one model, and what is kept of the batches. `peak` is the most bytes ever kept."""

    def __init__(
        self,
        model: nn.Module,
        steps: list[Step],
        start: str,
        end: str,
        batches: Sequence[torch.Tensor],
        limit: int,
    ):
        self.model = model
        self.steps = steps
        self.batches = list(batches)
        self.limit = limit
        self.peak = 0
        self.skipped = 0  # steps answered from what is kept
        self.first_kept = 0  # the step under test: what comes before it is not run again
        self._start, self._end = start, end
        self._last = {name: i for i, step in enumerate(steps) for name in step.reads}
        self._last[end] = len(steps)
        self._touched: list[Step] = []
        self._emptied: Step | None = None
        # per batch: the values that cross the step under test, or None where the limit has no room
        self._kept: list[Values | None] = [None] * len(self.batches)

    def position(self, names: Sequence[str]) -> int:
        """The first step that uses one of these parameters; behind all steps where none does."""
        wanted = {id(self.model.get_parameter(name)) for name in names}
        used = (i for i, step in enumerate(self.steps) if wanted & step.parameters())
        return next(used, len(self.steps))

    @contextmanager
    def changing(self, names: Sequence[str], rows: bool = False) -> Iterator[None]:
        """Inside, the model may differ from the one recorded in these parameters; tell by `refresh` when it does.

        `rows` promises that the one parameter named is a weight of which whole rows become zero, and nothing else
        changes: then its layer is not run again either, as the other rows' outputs are what they were.
        """
        wanted = {id(self.model.get_parameter(name)) for name in names}
        self._touched = [step for step in self.steps if wanted & step.parameters()]
        if rows and len(names) == len(self._touched) == 1 and self._touched[0].emptied is not None:
            self._emptied = self._touched[0]
        self._keep_until(self.position(names) + (self._emptied is not None))
        try:
            yield
        finally:
            self.refresh()
            self._touched, self._emptied = [], None

    def forget(self) -> None:
        """Drop all that is kept: the model is another one from here on."""
        self._kept, self.first_kept = [None] * len(self.batches), 0
        for step in self.steps:
            step.prepared.clear()

    def refresh(self) -> None:
        """The parameters under test have other values now."""
        for step in self._touched:
            step.prepared.clear()

    def outputs(self, batch: int, half: bool = False) -> torch.Tensor:
        """The model's outputs on a batch; with `half` what comes after the step under test is done in bfloat16."""
        kept = self._kept[batch]
        if kept is None:
            values = self._run({self._start: _lasting(self.batches[batch])}, 0, self.first_kept, False)
        else:
            self.skipped += self.first_kept
            values = dict(kept)
        return self._tail(values, half)

    def gathered(self, chosen: Sequence[tuple[int, torch.Tensor]]) -> torch.Tensor:
        """The model's outputs on chosen rows of several batches, in float32, computed as one batch where that goes."""
        parts: list[Values] = []
        for batch, rows in chosen:
            kept, count = self._kept[batch], len(self.batches[batch])
            if kept is None:
                part = self._run(
                    {self._start: _lasting(self.batches[batch][rows])}, 0, self.first_kept, False
                )
                count, rows = len(rows), torch.arange(len(rows))
            else:
                part = kept
            if not all(isinstance(v, torch.Tensor) and v.dim() and len(v) == count for v in part.values()):
                return torch.cat([self.outputs(batch)[rows] for batch, rows in chosen])
            parts.append({name: value[rows] for name, value in part.items()})
        joined = {name: _lasting(torch.cat([part[name] for part in parts])) for name in parts[0]}
        return self._tail(joined, False)

    def _tail(self, values: Values, half: bool) -> torch.Tensor:
        if self._emptied is not None and self._emptied.emptied is not None:
            name = self._emptied.name
            values = {**values, name: self._emptied.emptied(values[name])}
        if half:
            values = {name: _halved(value) for name, value in values.items()}
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            return self._run(values, self.first_kept, len(self.steps), half)[self._end].float()

    def _run(self, values: Values, begin: int, end: int, half: bool) -> Values:
        """Run steps; a value is let go once nothing later reads it."""
        for index in range(begin, end):
            step = self.steps[index]
            values[step.name] = step.run(values, half)
            for name in step.reads:
                if self._last[name] <= index:
                    values.pop(name, None)
        return values

    def _keep_until(self, position: int) -> None:
        """Keep, for every batch, the values that cross this step; asked in rising order nothing is run twice."""
        if position < self.first_kept:
            self._kept, self.first_kept = [None] * len(self.batches), 0
        held = 0
        for index, kept in enumerate(self._kept):
            if kept is None:
                if held >= self.limit:
                    continue
                values = self._run({self._start: _lasting(self.batches[index])}, 0, position, False)
            else:
                values = self._run(dict(kept), self.first_kept, position, False)
            self._kept[index] = None
            size = sum(_bytes(value) for value in values.values())
            if held + size <= self.limit:
                self._kept[index] = values
                held += size
        self.first_kept = position
        self.peak = max(self.peak, held)


# -- the steps ---------------------------------------------------------------------------------------------------
def _steps(model: nn.Module, graph: fx.Graph) -> tuple[list[Step], str, str]:
    """The graph as steps, and the names of what goes in and what comes out."""
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
                raise _NotRecorded("it takes more than one input")
            start = node.name
        elif node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                raise _NotRecorded("it returns more than one tensor")
            end = node.args[0].name
        elif node.op == "get_attr":
            continue  # read where it is used
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


def _product(chain: list[fx.Node], modules: dict[str, nn.Module]) -> Step:
    """The step of a convolution or a linear layer, with what was folded into it."""
    layer = modules[str(chain[0].target)]
    norm = modules[str(chain[1].target)] if len(chain) > 1 and chain[1].op == "call_module" else None
    norm = norm if isinstance(norm, nn.BatchNorm2d) else None
    relu = len(chain) > 1 and _is_relu(chain[-1], modules)
    source = _reads(chain[0])[0]
    assert isinstance(layer, (nn.Conv2d, nn.Linear))

    def prepared(half: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
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
        return (_lasting(weight) if weight.dim() == 4 else weight), bias

    def run(values: Values, half: bool) -> Any:
        if half not in step.prepared:
            step.prepared[half] = prepared(half)
        weight, bias = step.prepared[half]
        x = values[source]
        if half and x.dtype != torch.bfloat16:
            x = x.bfloat16()
        if isinstance(layer, nn.Linear):
            result = F.linear(x, weight, bias)
        else:
            result = layer._conv_forward(x, weight, bias)
        return result.relu_() if relu else result

    def emptied(output: torch.Tensor) -> torch.Tensor:
        if False not in step.prepared:
            step.prepared[False] = prepared(False)
        weight, bias = step.prepared[False]
        gone = ~weight.flatten(1).any(1)
        left = torch.zeros(int(gone.sum())) if bias is None else bias[gone]
        left = left.relu() if relu else left
        output = output.clone()
        if isinstance(layer, nn.Linear):
            output[..., gone] = left
        else:
            output[:, gone] = left[:, None, None]
        return output

    owners = (layer,) if norm is None else (layer, norm)
    step = Step(chain[-1].name, (source,), run, owners, emptied=emptied)
    return step


def _other(node: fx.Node, model: nn.Module, modules: dict[str, nn.Module], order: dict[fx.Node, int]) -> Step:
    """Any other module, function or method, called as the model calls it; what it writes into is a copy."""
    writes = False
    if node.op == "call_module":
        module = modules[str(node.target)]
        writes = bool(getattr(module, "inplace", False))
        function: Callable[..., Any] = module
        owners: tuple[Any, ...] = (module,)
    elif node.op == "call_method":
        name = "reshape" if node.target == "view" else str(node.target)
        writes = name.endswith("_")

        def function(one: Any, *args: Any, **kwargs: Any) -> Any:
            return getattr(one, name)(*args, **kwargs)

        owners = ()
    else:
        target: Any = node.target
        function, owners = _IN_PLACE.get(target, target), ()
        given = bool(node.kwargs.get("inplace", False)) or True in node.args
        writes = target in _IN_PLACE or getattr(target, "__name__", "").endswith("_") or given
        if "out" in node.kwargs or target is operator.setitem:
            raise _NotRecorded(f"{node.name} writes into a tensor it was given")
        writes = writes and target not in _IN_PLACE
    changed = _written(node)
    if changed is not None and any(order[user] > order[node] for user in changed.users):
        raise _NotRecorded(f"{node.name} changes a value that is read again later")

    direct = {one.name: _attribute(model, one) for one in node.all_input_nodes if one.op == "get_attr"}
    owners += tuple(getattr(owner, name) for owner, name in direct.values())

    def value_of(values: Values, one: fx.Node) -> Any:
        return getattr(*direct[one.name]) if one.name in direct else values[one.name]

    def run(values: Values, half: bool) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda one: value_of(values, one))
        if writes and args and isinstance(args[0], torch.Tensor):
            args = (args[0].clone(), *args[1:])
        return function(*args, **kwargs)

    return Step(node.name, _reads(node), run, owners)


def _written(node: fx.Node) -> fx.Node | None:
    """The value an operation changes in place, by its name (`add_`, `+=`) alone."""
    named = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    inward = node.op == "call_function" and node.target in _IN_PLACE
    if (inward or (node.op != "call_module" and named.endswith("_"))) and node.args:
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    return None


# -- values ------------------------------------------------------------------------------------------------------
def _lasting(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _halved(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value


def _bytes(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0

"""`find_blocks`: which blocks of a model can be removed whole, found in the recorded forward; and why others cannot.

A block is an entry of an `nn.Sequential` or `nn.ModuleList` that takes one tensor of the stream and returns one of the
same shape, with at least one addition between them. Two kinds can be removed:

    residual     where all parameters of the block are 0, every branch is 0 and the output is the input, exactly.
    normalised   where every branch is 0, norms or activations of the input are left (a transformer layer that
                 normalises after the addition). Zeros do not stand for it; it is bypassed: its output is its input.

>>> import torch
>>> from torch import nn
>>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
>>> model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
>>> [(block.path, block.kind) for block in find_blocks(model, torch.zeros(1, 5, 8)).found][:2]
[('layers.0', 'normalised'), ('layers.1', 'normalised')]
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from secateur.execution.fast_copy import modules_of
from secateur.structure.depth.numbered import Stream, held_by_number
from secateur.structure.depth.zeros import (
    BATCH_NORMS,
    GROUP_NORMS,
    LAYER_NORMS,
    VIEWS,
    WEIGHT_NORMS,
    divides_by_zero,
    gives_zero,
    plain_name,
)
from secateur.structure.trace.trace import Op, TensorRef, Trace, trace

__all__ = [
    "NORMALISED",
    "RESIDUAL",
    "Refusal",
    "RemovableBlock",
    "RemovableBlocks",
    "entries_of",
    "find_blocks",
]

RESIDUAL, NORMALISED = "residual", "normalised"


@dataclass(frozen=True)
class RemovableBlock:
    """One block that can be removed whole.

    Attributes:
        path: The module's dotted name, such as "layer1.2".
        kind: "residual", where zeros for weights make it the identity; or "normalised", where it is bypassed.
        parameters: The names of its parameters, without those that a weight norm divides by their length: of zeros that
            makes no numbers, and the scale beside them is enough.
        shape: The shape of its input and output on the example.
    """

    path: str
    kind: str
    parameters: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def container(self) -> str:
        """The dotted name of the container that holds the block."""
        return self.path.rpartition(".")[0]


@dataclass(frozen=True)
class Refusal:
    """A block with an addition that cannot be removed, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class RemovableBlocks:
    """The blocks of a model that can be removed whole, in its order, and those that cannot."""

    found: tuple[RemovableBlock, ...]
    refused: tuple[Refusal, ...]


def find_blocks(model: nn.Module, example: object) -> RemovableBlocks:
    """Find the blocks of a model that can be removed whole.

    Args:
        model: The model; it is not changed.
        example: What it is called with.

    Returns:
        The innermost blocks that can be removed, and those that cannot, with the reason.

    Raises:
        TraceError: The forward could not be recorded with this example.
    """
    entries = entries_of(model)
    attributes = _attributes_of(model, entries)
    if not entries and not attributes:
        return RemovableBlocks((), ())
    recorded = _Recorded(trace(model, example))
    named = dict(model.named_parameters(remove_duplicate=False))
    first = dict(model.named_parameters())
    own_of = _inside_each(named, {*entries, *attributes})
    found: list[RemovableBlock] = []
    refused: list[Refusal] = []
    for path in entries:
        own = own_of.get(path, ())
        answer = recorded.judged(path, own, named)
        if isinstance(answer, RemovableBlock):
            found.append(
                replace(answer, parameters=tuple(name for name in answer.parameters if name in first))
            )
        elif answer is not None:
            refused.append(answer)
    for path in attributes:
        if isinstance(recorded.judged(path, own_of.get(path, ()), named), RemovableBlock):
            refused.append(Refusal(path, AN_ATTRIBUTE))
    streams = [recorded.streams[block.path] for block in found]
    held = held_by_number(model, example, recorded.found, streams)
    refused += [Refusal(block.path, held[block.path]) for block in found if block.path in held]
    return _innermost([block for block in found if block.path not in held], refused)


def _inside_each(names: Iterable[str], paths: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The names that lie inside each of the modules, in their order; one pass over the names."""
    found: dict[str, list[str]] = {}
    for name in names:
        path = name.rpartition(".")[0]
        while path:
            if path in paths:
                found.setdefault(path, []).append(name)
            path = path.rpartition(".")[0]
    return {path: tuple(inside) for path, inside in found.items()}


def _innermost(found: Sequence[RemovableBlock], refused: Sequence[Refusal]) -> RemovableBlocks:
    """The blocks without a block inside, and the refusals that concern neither a part of one nor the whole around
    it.
    """
    inner = [block for block in found if not any(_inside(other.path, block.path) for other in found)]
    paths = [block.path for block in inner]
    return RemovableBlocks(
        tuple(inner),
        tuple(
            each
            for each in refused
            if not any(_inside(each.path, path) or _inside(path, each.path) for path in paths)
            and not any(_inside(other.path, each.path) for other in refused)
        ),
    )


AN_ATTRIBUTE = "it is an attribute of its owner; expected an entry of an nn.Sequential or nn.ModuleList"


def _inside(path: str, outer: str) -> bool:
    return path.startswith(outer + ".")


def entries_of(model: nn.Module) -> list[str]:
    """The entries of containers that have parameters.

    Args:
        model: The model.
    """
    return [
        f"{path}.{key}" if path else key
        for path, module in modules_of(model).items()
        if isinstance(module, (nn.Sequential, nn.ModuleList))
        for key, entry in module._modules.items()
        if entry is not None and next(entry.parameters(), None) is not None
    ]


def _attributes_of(model: nn.Module, entries: Sequence[str]) -> list[str]:
    """The modules with parts and parameters that are no entries of containers, nor inside one, nor around one."""
    modules = modules_of(model)
    return [
        path
        for path, module in modules.items()
        if path
        and not isinstance(module, (nn.Sequential, nn.ModuleList))
        and next(module.children(), None) is not None
        and next(module.parameters(), None) is not None
        and not any(path == each or _inside(path, each) or _inside(each, path) for each in entries)
    ]


class _Recorded:
    """A recorded forward, by block."""

    def __init__(self, found: Trace):
        self.found = found
        self.users: dict[int, list[int]] = {}
        self.makers: dict[int, list[int]] = {}
        for op in found.ops:
            for ref in op.refs():
                self.users.setdefault(ref.id, []).append(op.index)
            for ref in op.results():
                self.makers.setdefault(ref.id, []).append(op.index)
        self.outputs = {ref.id for ref in found.outputs}
        self.streams: dict[str, Stream] = {}

    @cached_property
    def ops_of(self) -> dict[str, list[Op]]:
        """The operators that ran inside each module, by its path."""
        by_path: dict[str, list[Op]] = {}
        for op in self.found.ops:
            path = op.path
            while path:
                by_path.setdefault(path, []).append(op)
                path = path.rpartition(".")[0]
        return by_path

    def judged(
        self, path: str, own: Sequence[str], named: Mapping[str, nn.Parameter]
    ) -> RemovableBlock | Refusal | None:
        """A block, the reason why it is not removable, or None if it adds nothing to its input."""
        ops = self.ops_of.get(path, [])
        if not any(_adds(op) for op in ops):
            return None
        reason = self._entangled(path, ops, own, named)
        if reason:
            return Refusal(path, reason)
        outputs = self._left(ops)
        if len(outputs) != 1:
            return Refusal(path, f"expected one tensor that others read, got {len(outputs)}")
        out = outputs[0]
        inputs = self._taken(ops, out)
        if not inputs:
            return Refusal(path, f"no input has the shape of its output {out.shape}")
        gone = self._without_directions(own, ops)
        zeros = {ref.id for ref in map(self._parameter, gone) if ref is not None}
        for kind in (RESIDUAL, NORMALISED):
            for ref in inputs:
                walk = _Walk(self, ops, ref, zeros, kind)
                if walk.endless:
                    return Refusal(path, f"with zeros for its weights {walk.endless} divides by 0")
                if walk.ends_in(out):
                    self.streams[path] = Stream(path, ref.id, out.id, ops[0].index, ops[-1].index)
                    return RemovableBlock(path, kind, gone, out.shape)
        return Refusal(
            path, "with zeros for its weights its output is not its input: the shortcut has its own layers"
        )

    def _parameter(self, name: str) -> TensorRef | None:
        return self.found.parameters.get(self.found.aliases.get(name, name))

    def _without_directions(self, own: Sequence[str], ops: Sequence[Op]) -> tuple[str, ...]:
        """The parameters of a block but for those that a weight norm divides by their length."""
        directions = {op.args[0].id for op in ops if plain_name(op) in WEIGHT_NORMS}
        refs = [(name, self._parameter(name)) for name in own]
        return tuple(name for name, ref in refs if ref is None or ref.id not in directions)

    def _entangled(
        self, path: str, ops: Sequence[Op], own: Sequence[str], named: Mapping[str, nn.Parameter]
    ) -> str:
        """Why a block cannot be removed by itself; empty if it can."""
        if ops[-1].index - ops[0].index != len(ops) - 1:
            return "it runs more than once in a forward"
        mine = {id(named[name]) for name in own}
        inside = set(own)
        shared = next((n for n, each in named.items() if id(each) in mine and n not in inside), None)
        if shared is not None:
            return f"it shares a parameter with {shared!r}"
        first, last = ops[0].index, ops[-1].index
        for name in own:
            ref = self._parameter(name)
            used = [] if ref is None else self.users.get(ref.id, [])
            if any(not first <= index <= last for index in used):
                return f"{name!r} is read outside it"
            layered = len(used) > 1 and ref is not None and len(ref.shape) > 1
            if layered and len({self.found.ops[index].name for index in used}) == 1:
                return "it runs more than once in a forward"
        return ""

    def _left(self, ops: Sequence[Op]) -> list[TensorRef]:
        """The tensors that a block makes or changes and others read."""
        last = ops[-1].index
        found: dict[int, TensorRef] = {}
        for op in ops:
            for ref in op.results():
                if ref.id in self.outputs or any(index > last for index in self.users.get(ref.id, ())):
                    found[ref.id] = ref
        return [ref for ref in found.values() if ref.role not in ("parameter", "buffer")]

    def _taken(self, ops: Sequence[Op], out: TensorRef) -> list[TensorRef]:
        """The tensors from outside that have the shape and the type of the output."""
        first = ops[0].index
        found: dict[int, TensorRef] = {}
        for op in ops:
            for ref in op.refs():
                inside = self.makers.get(ref.id, [first])[0] >= first and ref.role != "input"
                fits = ref.shape == out.shape and ref.dtype == out.dtype
                if fits and not inside and ref.role in ("value", "input") and ref.dtype.is_floating_point:
                    found[ref.id] = ref
        return list(found.values())

    def never_negative(self, ref: TensorRef, before: int, depth: int = 0) -> bool:
        """Whether no value of a tensor, as it is before an operator, is below 0."""
        op = self._maker(ref, before)
        if op is None or depth > _DEEP:
            return False
        name, refs = plain_name(op), op.refs()
        if name in ("relu", "relu6", "sigmoid", "softmax", "_softmax", "abs", "square", "exp", "hardsigmoid"):
            return True
        if name == "hardtanh":
            return bool(op.arg(1, "min_val", -1) >= 0)
        if name in ("add", "mul", "cat", "max_pool2d_with_indices", "avg_pool2d", *VIEWS):
            values = [each for each in refs if each.role in ("value", "input")]
            return bool(values) and all(self.never_negative(each, op.index, depth + 1) for each in values)
        return False

    def unchanged_by(self, op: Op, ref: TensorRef, before: int) -> bool:
        """Whether an activation changes nothing of a tensor: of one that is never negative, or that is its own
        output.
        """
        if plain_name(op) == "relu":
            return self.never_negative(ref, before)
        maker = self._maker(ref, before)
        while maker is not None and plain_name(maker) in VIEWS and maker.refs():
            maker = self._maker(maker.refs()[0], maker.index)
        bounded = plain_name(op) in ("hardtanh", "clamp")
        return (
            bounded
            and maker is not None
            and plain_name(maker) == plain_name(op)
            and maker.args[1:] == op.args[1:]
        )

    def _maker(self, ref: TensorRef, before: int) -> Op | None:
        made = [index for index in self.makers.get(ref.id, ()) if index < before]
        return self.found.ops[made[-1]] if made else None


_DEEP = 200


def _adds(op: Op) -> bool:
    """Whether an operator adds two computed tensors of one shape."""
    if plain_name(op) != "add" or len(op.args) < 2:
        return False
    a, b = op.args[:2]
    if not isinstance(a, TensorRef) or not isinstance(b, TensorRef):
        return False
    return (
        a.shape == b.shape
        and len(a.shape) > 1
        and a.role in ("value", "input")
        and b.role in ("value", "input")
    )


class _Walk:
    """The effect of a block on its input when the block's parameters are 0, operator by operator.

    With kind "normalised", norms and activations of the input are followed as well, whatever their parameters are.
    """

    def __init__(
        self, recorded: _Recorded, ops: Sequence[Op], start: TensorRef, zeros: Iterable[int], kind: str
    ):
        self.recorded = recorded
        self.kind = kind
        self.start = start
        self.first = ops[0].index
        self.zero = set(zeros)
        self.endless = ""  # the operator that makes no number of a 0
        self.same = {
            start.id: 0
        }  # tensors that equal the input, or norms of it, with the number of additions passed
        for op in ops:
            self._step(op)

    def ends_in(self, out: TensorRef) -> bool:
        """Whether the output is the input, or a norm of it past an addition of 0."""
        passed = self.same.get(out.id)
        return passed is not None and (passed > 0 or self.kind == RESIDUAL)

    def _step(self, op: Op) -> None:
        results = op.results()
        if not results:
            return
        if divides_by_zero(op, lambda ref: ref.id in self.zero):
            self.endless = plain_name(op)
        carried = self._carried(op, results[0])
        is_zero = carried is None and gives_zero(op, lambda ref: ref.id in self.zero)
        for ref in results:
            self.zero.discard(ref.id)
            self.same.pop(ref.id, None)
            if is_zero:
                self.zero.add(ref.id)
        if carried is not None:
            self.same[results[0].id] = carried

    def _carried(self, op: Op, result: TensorRef) -> int | None:
        """The number of additions passed if an operator passes the input on; else None."""
        name, args = plain_name(op), op.args
        if not args or not isinstance(args[0], TensorRef):
            return None
        if name in ("add", "sub") and isinstance(args[1], TensorRef):
            return self._added(op, args[0], args[1], result)
        passed = self.same.get(args[0].id)
        if passed is None:
            return None
        if name in ("mul", "div"):
            return passed if isinstance(args[1], (int, float)) and args[1] == 1 else None
        if name in VIEWS:
            return passed if result.dtype == args[0].dtype else None
        if name in ("slice", "expand"):
            return passed if result.shape == args[0].shape else None
        if self.kind == RESIDUAL and name in _ACTIVATIONS:
            return passed if self.recorded.unchanged_by(op, self.start, self.first) else None
        if self.kind == NORMALISED and (name in _NORMS or name in _ACTIVATIONS):
            return passed if result.shape == args[0].shape else None
        return None

    def _added(self, op: Op, a: TensorRef, b: TensorRef, result: TensorRef) -> int | None:
        """x + 0, 0 + x or x - 0, of the result's shape."""
        if b.id in self.zero and a.id in self.same and a.shape == result.shape:
            return self.same[a.id] + 1
        plain = plain_name(op) == "add" and op.arg(2, "alpha", 1) == 1
        if plain and a.id in self.zero and b.id in self.same and b.shape == result.shape:
            return self.same[b.id] + 1
        return None


_NORMS = BATCH_NORMS | LAYER_NORMS | GROUP_NORMS
_ACTIVATIONS = frozenset(
    {"relu", "hardtanh", "gelu", "silu", "hardswish", "leaky_relu", "elu", "clamp", "tanh", "mish"}
)

"""Make a proof: run masked and shrunk model on the same inputs, in float64, and compare every output.

By default the example is run as it is, and fresh values of another batch size and of another image size or length,
where the dense model accepts them; each with gradients recorded and without, the large ones in one of the two. An input
that the dense model accepts and the shrunk one does not fails the proof.

>>> import torch
>>> from torch import nn
>>> import secateur as sc
>>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
>>> x = torch.randn(4, 4)
>>> small = sc.shrink(model, sc.prune(model, granularity="channel", budget=0.5, example=x), x)
>>> [(case.what, case.shapes, case.mode) for case in small.proof.cases][:3]
[('example', ((4, 4),), 'eager'), ('example', ((4, 4),), 'no_grad'), ('batch', ((1, 4),), 'eager')]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from secateur.core.nested import map_tensors, tensors_in
from secateur.core.out_of_memory import raise_if_out_of_memory
from secateur.errors import ProofError
from secateur.execution.calling import call
from secateur.execution.devices import device_of
from secateur.execution.example import Example, call_arguments
from secateur.execution.fast_copy import copy_module
from secateur.structure.cut.plan import ShrinkPlan, cut_tensor
from secateur.structure.depth.bypass import bypass_
from secateur.structure.depthwise import depthwise_sums
from secateur.structure.proof import Proof, ProofCase, ProofOptions, Shapes
from secateur.structure.selections import Selections, largest_difference
from secateur.structure.trace.other_shapes import other_shapes, shapes_of

__all__ = ["DenseRun", "ShapeProofError", "double_copy", "prove"]

_EXTRA, _DEAR = 1.5, 2.0
"""How many times the example's elements may be run beside it; and how many by one other input."""


class ShapeProofError(ProofError):
    """The proof holds for the example, and fails for an input of another shape.

    Attributes:
        example: That input.
        what: A description of the failure.
    """

    def __init__(self, text: str, example: Example, what: str):
        super().__init__(text)
        self.example, self.what = example, what


@dataclass(frozen=True)
class _Input:
    """An input and the modes it is to be run in; `spare` is another one to use where the dense model refuses it."""

    what: str
    example: Example
    modes: tuple[str, ...]
    spare: Example = None

    @property
    def shapes(self) -> Shapes:
        return shapes_of(self.example)


@dataclass
class _ModelRun:
    """The result of a model for one input in one mode: outputs, or the error it raised; and in how many graphs.

    `selected` names the operators whose choice was given to both models, where their own could not be compared.
    """

    outputs: list[torch.Tensor] = field(default_factory=list)
    error: Exception | None = None
    graphs: int = 0
    selected: tuple[str, ...] = ()


# -- the models --------------------------------------------------------------------------------------------------------
@torch.no_grad()
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


def _fills(
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


# -- the inputs --------------------------------------------------------------------------------------------------------
def _varied(example: Example) -> Example:
    """The example, with random values for tensors of one value: `torch.zeros` would hide most differences."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        if (
            not tensor.is_floating_point()
            or not tensor.numel()
            or bool((tensor != tensor.flatten()[0]).any())
        ):
            return tensor
        generator = torch.Generator().manual_seed(0)
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)

    return map_tensors(change, example)


def _fresh(example: Example) -> Example:
    """The example with other values, drawn from its own, so that they are as valid as those.

    Masks and lists of whole numbers (lengths, offsets) depend on their order, and do not change.
    """
    generator = torch.Generator().manual_seed(1)

    def change(tensor: torch.Tensor) -> torch.Tensor:
        real = tensor.is_floating_point() or tensor.is_complex()
        if not tensor.numel() or not (real or (tensor.dim() > 1 and bool((tensor > 1).any()))):
            return tensor
        chosen = torch.randint(tensor.numel(), (tensor.numel(),), generator=generator).to(tensor.device)
        return tensor.flatten()[chosen].reshape(tensor.shape)

    return map_tensors(change, example)


def _inputs(model: nn.Module, example: Example, options: ProofOptions, traced: str) -> list[_Input]:
    """The inputs to run and the modes of each."""
    example = _varied(example)
    found = [_Input("example", example, options.modes)]
    if not options.other_shapes:
        return found
    others = [
        _Input(each.what, _fresh(each.example), options.modes, each.example)
        for each in other_shapes(model, example, traced)
    ]
    if not others:
        others = [_Input("fresh", _fresh(example), options.modes, example)]
    return [*found, *others] if options.every else _affordable([*found, *others])


def _affordable(inputs: Sequence[_Input]) -> list[_Input]:
    """The inputs, the example first, each in as many modes as keep all further runs about as cheap as the first.

    Every input is run in its last mode (without gradients), as far as that is affordable; then the cheapest in the
    other modes as well.
    """
    size = max(1, _elements(inputs[0]))
    costs = [_elements(each) / size for each in inputs]
    modes = [list(inputs[0].modes[:1]), *([] for _ in inputs[1:])]
    left = _EXTRA
    for index in range(1, len(inputs)):
        if costs[index] <= max(left, _DEAR if index == 1 else 0.0):
            modes[index].append(inputs[index].modes[-1])
            left -= costs[index]
    for index in sorted(range(len(inputs)), key=lambda index: (costs[index], index)):
        for mode in inputs[index].modes if modes[index] else ():
            if mode not in modes[index] and costs[index] <= left:
                modes[index].append(mode)
                left -= costs[index]
    return [
        replace(each, modes=tuple(mode for mode in each.modes if mode in chosen))
        for each, chosen in zip(inputs, modes)
        if chosen
    ]


def _elements(each: _Input) -> int:
    return sum(tensor.numel() for tensor in tensors_in(each.example))


# -- running -----------------------------------------------------------------------------------------------------------
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


def _run(model: nn.Module, example: Example, mode: str, dtype: torch.dtype, fast: bool = True) -> _ModelRun:
    """Run a model on an input in a mode; an exception is part of the result."""
    device = device_of(model)

    def placed(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach().to(device)
        return tensor.to(dtype, copy=True) if tensor.is_floating_point() else tensor.clone()

    found = _ModelRun()
    with _settings(dtype, fast):
        inputs = map_tensors(placed, example)
        torch.manual_seed(0)
        try:
            outputs = _MODES[mode](model, inputs, found)
        except Exception as error:
            raise_if_out_of_memory(error)
            found.error = error
            return found
    found.outputs = [tensor.detach() for tensor in tensors_in(outputs)]
    return found


def _eager(model: nn.Module, inputs: Example, found: _ModelRun) -> object:
    # Nothing is differentiated: tensors saved for a backward pass are freed at once.
    dropping = torch.autograd.graph.saved_tensors_hooks(_dropped, _dropped)
    with torch.enable_grad(), dropping, depthwise_sums(model):
        return call(model, inputs)


def _dropped(value: Any) -> Any:
    return None


def _no_grad(model: nn.Module, inputs: Example, found: _ModelRun) -> object:
    with torch.no_grad(), depthwise_sums(model):
        return call(model, inputs)


def _compiled(model: nn.Module, inputs: Example, found: _ModelRun) -> object:
    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        found.graphs += 1
        return graph.forward

    torch.compiler.reset()
    try:
        with torch.no_grad():
            return call(torch.compile(model, backend=backend), inputs)
    finally:
        torch.compiler.reset()


def _exported(model: nn.Module, inputs: Example, found: _ModelRun) -> object:
    args, kwargs = call_arguments(inputs)
    with torch.no_grad():
        program = torch.export.export(model, tuple(args), kwargs)
        torch.manual_seed(0)
        return program.module()(*args, **kwargs)


_MODES: dict[str, Callable[[nn.Module, Example, _ModelRun], object]] = {
    "eager": _eager,
    "no_grad": _no_grad,
    "compile": _compiled,
    "export": _exported,
}


# -- comparing ---------------------------------------------------------------------------------------------------------
def _difference(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> tuple[float, float]:
    """(largest absolute difference, largest absolute value) of two lists of outputs of the same shapes."""
    absolute = scale = 0.0
    for a, b in zip(left, right, strict=True):
        apart, largest = largest_difference(a, b)
        absolute, scale = max(absolute, apart), max(scale, largest)
    return absolute, scale


def _over(absolute: float, scale: float) -> float:
    return absolute / scale if scale > 0 else absolute


def _unsupported(error: Exception | None) -> bool:
    """Whether an error says that an operator has no float64 form."""
    return isinstance(error, (RuntimeError, NotImplementedError)) and (
        "ouble" in str(error) or "loat64" in str(error)
    )


class _WideTypeError(Exception):
    """An operator of the model has no float64 form."""


@dataclass
class _Prover:
    """One proof in the making.

    Attributes:
        model: The dense model.
        small: The shrunk model.
        masks: The masks of the dense model.
        dtype: The precision in which both are run.
        tolerance: The largest error that counts as equal.
        equality: Whether a larger error is a failure.
        fills: Values to use for parameters that are 0, of the dense model and of the shrunk one.
        bypassed: The blocks whose output is their input in the dense model.
    """

    model: nn.Module
    small: nn.Module
    masks: Mapping[str, torch.Tensor]
    dtype: torch.dtype
    tolerance: float
    equality: bool
    fills: tuple[Mapping[str, torch.Tensor] | None, Mapping[str, torch.Tensor] | None] = (None, None)
    bypassed: tuple[str, ...] = ()

    def dense(self) -> nn.Module:
        """The masked dense model in the precision of the proof."""
        made = double_copy(self.model, self.masks, self.dtype, self.fills[0])
        bypass_(made, self.bypassed)
        return made

    def compare(self, inputs: Sequence[_Input]) -> list[tuple[_Input, str, _ModelRun, float, float]]:
        """Run the dense model on all inputs, then the shrunk one: only one copy in float64 exists at a time. Yields
        (input, mode, the dense model's result, largest difference, largest output).
        """
        dense = self.dense()
        wanted = [self._accepted(dense, each, mode) for each in inputs for mode in each.modes]
        del dense
        small = double_copy(self.small, None, self.dtype, self.fills[1])
        found = []
        for each, mode, want in (one for one in wanted if one is not None):
            got = _run(small, each.example, mode, self.dtype)
            if got.error is not None and _unsupported(got.error) and self.dtype == torch.float64:
                raise _WideTypeError from got.error
            found.append((each, mode, want, *self._checked(each, mode, want, got)))
        return found

    def _accepted(self, dense: nn.Module, each: _Input, mode: str) -> tuple[_Input, str, _ModelRun] | None:
        """The dense model's result for an input, or None if it does not accept it in this mode."""
        want = _run(dense, each.example, mode, self.dtype)
        if want.error is not None and each.spare is not None:
            each = _Input(each.what, each.spare, each.modes)
            want = _run(dense, each.example, mode, self.dtype)
        if want.error is None:
            return each, mode, want
        if _unsupported(want.error) and self.dtype == torch.float64:
            raise _WideTypeError from want.error
        if each.what == "example" and mode in ("eager", "no_grad"):
            raise ProofError(
                f"the masked {_name(self.model)} does not run on the example "
                f"({_said(want.error)}); the model is unchanged"
            ) from want.error
        return None

    def _checked(self, each: _Input, mode: str, want: _ModelRun, got: _ModelRun) -> tuple[float, float]:
        """The largest difference and the largest output, or an error that says where the two models differ."""
        where = f"on {' and '.join(map(str, each.shapes)) or 'the example'} [{mode}]"
        if got.error is not None:
            self._fail(
                each, f"does not run {where}, which the dense one does ({_said(got.error)})", got.error
            )
        if got.graphs > want.graphs:
            self._fail(each, f"compiles into {got.graphs} graphs {where}, the dense one into {want.graphs}")
        shapes = [[tuple(t.shape) for t in run.outputs] for run in (got, want)]
        absolute, scale = (
            _difference(want.outputs, got.outputs) if shapes[0] == shapes[1] else (math.inf, 0.0)
        )
        if mode in ("eager", "no_grad") and (_over(absolute, scale) > self.tolerance or not scale):
            chosen = self._with_one_choice(each, mode, want)
            if chosen is not None and _over(*chosen) <= self.tolerance:
                return chosen
            if chosen is not None and not scale and self.equality:
                self._fail(
                    each,
                    f"does not select from what the masked one does {where} ({', '.join(want.selected)}): largest "
                    f"difference {_over(*chosen):.3e} of the largest value, expected at most {self.tolerance:.0e}",
                )
        if shapes[0] != shapes[1]:
            self._fail(each, f"gives outputs of shapes {shapes[0]}, the masked one {shapes[1]}, {where}")
        if mode == "no_grad" and _over(absolute, scale) > self.tolerance:
            absolute, scale = min((absolute, scale), self._without_fast_path(each, mode, got))
        if self.equality and _over(absolute, scale) > self.tolerance:
            self._fail(
                each,
                f"does not compute what the masked one does {where}: largest difference "
                f"{_over(absolute, scale):.3e} of the largest output, expected at most {self.tolerance:.0e}",
            )
        return absolute, scale

    def _without_fast_path(self, each: _Input, mode: str, got: _ModelRun) -> tuple[float, float]:
        """The difference from the dense model run without torch's fast path; infinity where that cannot be compared.

        The fast path of torch's encoder layers gives zeros where a padding mask says so, the other one does not.
        """
        dense = self.dense()
        plain = _run(dense, each.example, mode, self.dtype, False)
        shapes = [[tuple(t.shape) for t in run.outputs] for run in (plain, got)]
        if plain.error is not None or shapes[0] != shapes[1]:
            return math.inf, 0.0
        return _difference(plain.outputs, got.outputs)

    def _with_one_choice(self, each: _Input, mode: str, want: _ModelRun) -> tuple[float, float] | None:
        """The largest difference and output where both models are given the selections that the dense one makes.

        The tensors that they select from are compared as well; infinity where they do not select alike. None where the
        forward selects nothing.
        """
        chosen = Selections()
        dense = self.dense()
        with chosen:
            first = _run(dense, each.example, mode, self.dtype)
        if first.error is not None or not chosen.names:
            return None
        del dense
        chosen.replay = True
        small = double_copy(self.small, None, self.dtype, self.fills[1])
        with chosen:
            second = _run(small, each.example, mode, self.dtype)
        shapes = [[t.shape for t in run.outputs] for run in (first, second)]
        want.selected = chosen.names
        if second.error is not None or shapes[0] != shapes[1] or not chosen.complete:
            return math.inf, 1.0
        absolute, scale = _difference(first.outputs, second.outputs)
        if not scale:
            return max(absolute, chosen.error) * max(chosen.largest, 1.0), max(chosen.largest, 1.0)
        return max(absolute, chosen.error * scale), scale

    def _fail(self, each: _Input, what: str, error: Exception | None = None) -> None:
        text = f"the shrunk {_name(self.model)} {what}; the model is unchanged."
        if each.what in ("example", "fresh"):
            raise ProofError(
                f"{text} Run sc.explain(model, example) and leave out the layers it names with skip=, or raise the "
                "tolerance of proof=sc.ProofOptions(...)."
            ) from error
        raise ShapeProofError(
            f"{text} If inputs of this shape never occur, leave them out with "
            "proof=sc.ProofOptions(other_shapes=False).",
            each.example,
            f"the shrunk {_name(self.model)} {what}",
        ) from error


def _name(model: nn.Module) -> str:
    return type(model).__name__


def _said(error: Exception | None) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}"


@dataclass(frozen=True)
class DenseRun:
    """How the dense model is run for a proof.

    Attributes:
        traced: How it can be recorded: "meta", or "real" where its forward looks at values.
        bypassed: The blocks whose output is their input, as the shrunk model does not have them and zeros do not stand
            for that.
    """

    traced: str = "meta"
    bypassed: tuple[str, ...] = ()


def prove(
    model: nn.Module,
    small: nn.Module,
    masks: Mapping[str, torch.Tensor],
    example: Example,
    options: ProofOptions | None = None,
    equality: bool = True,
    plan: ShrinkPlan | None = None,
    how: DenseRun | None = None,
) -> Proof:
    """Run both models on the same inputs, with the same random state, and compare every output.

    Where a forward selects (top-k, boxes that do not overlap, thresholds) and the two outputs cannot be compared, both
    get the dense model's selections, the tensors selected from are compared, and the proof says so. Where an operator
    of the model has no float64 form, float32 is used, and the proof says so. Where the output is 0 everywhere (a head
    that starts as zeros), parameters that are all 0 get the same random values in both.

    Args:
        model: The dense model; it is not changed.
        small: The shrunk model; it is not changed.
        masks: The masks of the dense model.
        example: What both are called with.
        options: The inputs and modes; None for the usual.
        equality: False where no equality can hold; then the error is only measured.
        plan: How the shrunk model was cut, to fill parameters that are 0.
        how: How the dense model is run; None for the usual.

    Returns:
        The proof.

    Raises:
        ProofError: The shrunk model does not compute what the masked one does, or does not run.
        ShapeProofError: Likewise, for an input of another shape than the example's only.
    """
    options = options or ProofOptions()
    how = how or DenseRun()
    inputs = _inputs(model, example, options, how.traced)
    prover = _Prover(model, small, masks, torch.float64, options.tolerance, equality, bypassed=how.bypassed)
    try:
        found = prover.compare(inputs)
    except _WideTypeError:
        prover.dtype, prover.tolerance = torch.float32, max(options.tolerance, 1e-4)
        found = prover.compare(inputs)
    filled: tuple[str, ...] = ()
    if plan is not None and not any(
        bool(tensor.any()) for _, _, want, *_ in found for tensor in want.outputs
    ):
        fills = _fills(model, masks, plan)
        if fills[0]:
            prover.fills, filled = fills, tuple(fills[0])
            found = prover.compare(inputs)
    return _proof_of(prover, found, filled)


def _proof_of(
    prover: _Prover, found: Sequence[tuple[_Input, str, _ModelRun, float, float]], filled: tuple[str, ...]
) -> Proof:
    """The proof that the comparisons of all inputs add up to: the largest difference, and every case."""
    cases = tuple(
        ProofCase(each.what, each.shapes, mode, _over(absolute, scale))
        for each, mode, _, absolute, scale in found
    )
    _, _, want, absolute, scale = max(found, key=lambda one: _over(*one[3:]))
    dtype = str(prover.dtype).removeprefix("torch.")
    error = _over(absolute, scale)
    selected = tuple(dict.fromkeys(name for _, _, run, *_ in found for name in run.selected))
    outputs = len(want.outputs)
    return Proof(
        error,
        absolute,
        scale,
        prover.tolerance,
        outputs,
        prover.equality,
        dtype,
        filled,
        cases,
        selected=selected,
        bypassed=prover.bypassed,
    )

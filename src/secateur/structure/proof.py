"""`Proof`: masked and shrunk model run on the same input in float64, and the largest difference between them.

>>> Proof(error=3e-16, absolute=1e-15, scale=4.0, tolerance=1e-6, outputs=1).holds
True
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.core.nested import map_tensors, tensors_in
from secateur.errors import ProofError
from secateur.execution.calling import call
from secateur.execution.fast_copy import copy_module
from secateur.structure.cut.plan import ShrinkPlan, cut_tensor

__all__ = ["Proof", "double_copy", "prove"]


@dataclass(frozen=True)
class Proof:
    """How far the shrunk model's outputs are from the masked model's.

    `error` is the largest absolute difference over the largest output (`absolute` over `scale`). `equality` is False
    where axes were cut across a normalisation on request: then no equality can hold, and the error is only told.
    `filled` are parameters of zeros that were given random values in both, because the output was 0 with them.
    """

    error: float
    absolute: float
    scale: float
    tolerance: float
    outputs: int
    equality: bool = True
    dtype: str = "float64"
    filled: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        if not self.equality:
            return (
                "no equality: axes were cut across a normalisation; "
                f"outputs differ by {self.error:.2e} of the largest output"
            )
        word = "equal" if self.holds else "NOT equal"
        return (
            f"{word}: largest difference {self.error:.2e} of the largest output "
            f"({self.dtype}, tolerance {self.tolerance:.0e})"
        )


@torch.no_grad()
def double_copy(
    model: nn.Module,
    masks: Mapping[str, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.float64,
    fill: Mapping[str, torch.Tensor] | None = None,
) -> nn.Module:
    """A copy in float64 and eval mode, masked where asked. The weights are converted on the way, not copied twice."""
    memo: dict[int, Any] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        mask = None if masks is None else masks.get(name)
        if id(tensor) not in memo:
            value = tensor.detach() if fill is None or name not in fill else fill[name]
            value = value.to(dtype) if value.is_floating_point() else value.clone()
            if value.data_ptr() == tensor.data_ptr():
                value = value.clone()
            memo[id(tensor)] = (
                nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value
            )
        if mask is not None:
            memo[id(tensor)].data.masked_fill_(~mask.to(tensor.device), 0.0)
    twin = copy_module(model, memo).eval()
    return twin.to(dtype)


def _example_in(dtype: torch.dtype, example: Any, model: nn.Module) -> Any:
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach().to(device)
        if not tensor.is_floating_point():
            return tensor.clone()
        if tensor.numel() and bool((tensor == tensor.flatten()[0]).all()):
            # An example of one value, such as torch.zeros, would hide most differences.
            generator = torch.Generator().manual_seed(0)
            return torch.randn(tensor.shape, generator=generator, dtype=dtype).to(device)
        return tensor.to(dtype)

    return map_tensors(change, example)


@torch.no_grad()
def _outputs(
    model: nn.Module,
    small: nn.Module,
    masks: Mapping[str, torch.Tensor],
    example: Any,
    dtype: torch.dtype,
    fills: tuple[Mapping[str, torch.Tensor] | None, Mapping[str, torch.Tensor] | None] = (None, None),
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What both give out, in this precision, from the same inputs and the same random state."""
    inputs = _example_in(dtype, example, model)
    outputs = []
    fast = torch.backends.mha.get_fastpath_enabled()
    state = torch.random.get_rng_state()
    default = torch.get_default_dtype()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        torch.set_default_dtype(dtype)
        for source, hide, fill in ((model, masks, fills[0]), (small, None, fills[1])):
            twin = double_copy(source, hide, dtype, fill)
            torch.manual_seed(0)
            outputs.append(tensors_in(call(twin, map_tensors(torch.clone, inputs))))
            del twin
    finally:
        torch.set_default_dtype(default)
        torch.random.set_rng_state(state)
        torch.backends.mha.set_fastpath_enabled(fast)
    return outputs[0], outputs[1]


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
            small[name] = cut_tensor(value, plan.keep[name]) if name in plan.keep else value
    return dense, small


def prove(
    model: nn.Module,
    small: nn.Module,
    masks: Mapping[str, torch.Tensor],
    example: Any,
    tolerance: float,
    equality: bool,
    plan: ShrinkPlan | None = None,
) -> Proof:
    """Run both in float64 on the example, with the same random state, and compare every output.

    Where an operator of the model has no float64 form, float32 is used, and the proof says so. Where the output is 0
    everywhere (a head that starts as zeros), parameters that are all 0 get the same random values in both.
    """
    dtype = torch.float64
    try:
        outputs = _outputs(model, small, masks, example, dtype)
    except (RuntimeError, NotImplementedError) as failure:
        if "ouble" not in str(failure) and "loat64" not in str(failure):
            raise ProofError(
                f"masked and shrunk {type(model).__name__} could not both run on the example "
                f"({type(failure).__name__}: {str(failure)[:300]}); the model is untouched"
            ) from failure
        dtype, tolerance = torch.float32, max(tolerance, 1e-4)
        outputs = _outputs(model, small, masks, example, dtype)
    filled: tuple[str, ...] = ()
    if plan is not None and not any(bool(tensor.any()) for pair in outputs for tensor in pair):
        fills = _fills(model, masks, plan)
        if fills[0]:
            outputs, filled = _outputs(model, small, masks, example, dtype, fills), tuple(fills[0])
    left, right = outputs
    shapes = [tuple(t.shape) for t in left], [tuple(t.shape) for t in right]
    if shapes[0] != shapes[1]:
        raise ProofError(
            f"the shrunk {type(model).__name__} gives outputs of shapes {shapes[1]}, the masked one "
            f"{shapes[0]}; the model is "
            "untouched"
        )
    absolute = scale = 0.0
    for a, b in zip(left, right):
        if not (a.is_floating_point() or a.is_complex()):
            absolute = max(absolute, float((a != b).any())) if a.numel() else absolute
            continue
        a, b = a.double(), b.double()
        finite = torch.isfinite(a)
        if not torch.equal(finite, torch.isfinite(b)):
            absolute = float("inf")
            continue
        if finite.any():
            absolute = max(absolute, float((a - b)[finite].abs().max()))
            scale = max(scale, float(a[finite].abs().max()))
    error = absolute / scale if scale > 0 else absolute
    proof = Proof(
        error, absolute, scale, tolerance, len(left), equality, str(dtype).removeprefix("torch."), filled
    )
    if equality and not proof.holds:
        raise ProofError(
            f"the shrunk {type(model).__name__} does not compute what the masked one does: largest "
            f"difference {error:.3e} of the "
            f"largest output, expected at most {tolerance:.0e}; the model is untouched. Run "
            f"sc.explain(model, example) and "
            "leave out the layers it names with skip=, or raise tolerance=."
        )
    return proof

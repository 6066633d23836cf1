"""Setting the pruned part of weights, gradients and optimizer state to exactly 0.0, as fast as the device can.

>>> weight = nn.Parameter(torch.tensor([1.0, float("nan")]))
>>> pruned = Pruned(weight, torch.tensor([False, True]), copy=False)
>>> ZeroingBatch([weight], [(weight, pruned)]).zero()
>>> weight.tolist()
[1.0, 0.0]
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["Pruned", "ZeroingBatch", "sharded_like"]

_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_PLAIN = (torch.Tensor, nn.Parameter)
_place = torch.Tensor.data_ptr
_SMALL = 1 << 18  # up to here a launch costs more than the weights it touches


class Pruned:
    """One parameter, which of its weights are removed, and the hook on its gradient."""

    def __init__(self, parameter: torch.Tensor, removed: torch.Tensor, copy: bool):
        self.parameter = parameter
        self.removed = removed
        self.copy = copy
        self.seen = -1
        self.handle: Any = None
        self._forms: dict[Any, torch.Tensor] = {}

    def removed_on(self, device: torch.device) -> torch.Tensor:
        """Which weights are removed, on a given device."""
        if self.removed.device == device:
            return self.removed
        if device not in self._forms:
            self._forms[device] = self.removed.to(device)
        return self._forms[device]

    def kept_as(self, word: torch.dtype, device: torch.device) -> torch.Tensor:
        """1 where a weight is kept and 0 where it is removed, as whole numbers or truth values."""
        if (word, device) not in self._forms:
            self._forms[word, device] = (~self.removed_on(device)).to(word)
        return self._forms[word, device]

    def factor(self, tensor: torch.Tensor, *, batched: bool = False) -> torch.Tensor | None:
        """The factor for the bits of a tensor, where multiplying is faster than filling: ten times on a processor,
        and on a GPU where many small tensors take one launch.

        Small tensors have it in their own width, which is fastest; large ones as truth values, which is small.
        """
        if (
            type(tensor) not in _PLAIN
            or not tensor.is_floating_point()
            or tensor.element_size() not in _WORDS
        ):
            return None
        small = tensor.numel() <= _SMALL
        if tensor.device.type != "cpu" and not (batched and small and tensor.is_cuda):
            return None
        return self.kept_as(_WORDS[tensor.element_size()] if small else torch.bool, tensor.device)

    def hook(self, arrived: list[int]) -> None:
        """Zero the gradient of the pruned weights from now on, if the parameter has one; `arrived[0]` counts them."""
        if self.handle is not None or self.copy or not self.parameter.requires_grad:
            return

        if type(self.parameter) not in _PLAIN and hasattr(self.parameter, "placements"):
            self.handle = self.parameter.register_post_accumulate_grad_hook(_after_reduction(self, arrived))
            return
        # The usual kind of gradient, checked once: with many small layers every check costs.
        keep, dtype, device = self.factor(self.parameter), self.parameter.dtype, self.parameter.device
        word = _WORDS.get(self.parameter.element_size())

        def on_gradient(gradient: torch.Tensor) -> torch.Tensor:
            arrived[0] += 1
            if (
                keep is not None
                and type(gradient) is torch.Tensor
                and gradient.dtype is dtype
                and gradient.device == device
                and not gradient.requires_grad
                and gradient.layout is torch.strided
            ):
                return (gradient.view(word) * keep).view(dtype)  # type: ignore[arg-type]
            return _without(gradient, self)

        self.handle = self.parameter.register_hook(on_gradient)

    def zero_gradient(self) -> None:
        """Zero the pruned weights' part of the gradient that is there already."""
        if self.parameter.grad is not None:
            self.parameter.grad = _without(self.parameter.grad, self)

    def unhook(self) -> None:
        """Remove the hook."""
        if self.handle is not None:
            self.handle.remove()
            self.handle = None


def _after_reduction(weight: Pruned, arrived: list[int]) -> Callable[[torch.Tensor], None]:
    """A hook for a sharded parameter, which fully_shard calls once its part of the summed gradient is there."""

    def on_gradient(parameter: torch.Tensor) -> None:
        arrived[0] += 1
        if parameter.grad is not None:
            parameter.grad.detach().masked_fill_(weight.removed, 0.0)

    return on_gradient


def sharded_like(parameter: torch.Tensor, removed: torch.Tensor) -> torch.Tensor:
    """A mask laid out as the parameter is: for one that fully_shard has sharded, the part of this process.

    Args:
        parameter: The parameter.
        removed: Which of its weights are removed: the whole mask, the same in every process.
    """
    if not hasattr(parameter, "placements"):
        return removed
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(removed.contiguous(), parameter.device_mesh, parameter.placements)


def _without(gradient: torch.Tensor, weight: Pruned) -> torch.Tensor:
    """The gradient with the pruned weights' part at 0.0, also where it was NaN."""
    if gradient.is_sparse:  # nn.Embedding(sparse=True): some rows only
        gradient = gradient.coalesce()
        indices = gradient.indices()
        removed = weight.removed_on(gradient.device)
        values = gradient.values().masked_fill(removed[tuple(indices)], 0.0)
        return torch.sparse_coo_tensor(
            indices, values, gradient.shape, is_coalesced=True, check_invariants=False
        )
    # A gradient that will itself be differentiated must stay a number.
    keep = weight.factor(gradient) if not gradient.requires_grad else None
    if keep is None:
        return gradient.masked_fill(weight.removed_on(gradient.device), 0.0)
    return (gradient.view(_WORDS[gradient.element_size()]) * keep).view(gradient.dtype)


class ZeroingBatch:
    """The tensors to be zeroed together, prepared once: their bits as whole numbers, and 1 or 0 for each.

    Integer products know neither NaN nor -0.0: a pruned weight becomes +0.0 whatever it was, a kept one keeps its
    bits. `watched` are the tensors it was made for; it is valid while they and their memory are the same.
    """

    def __init__(self, watched: list[torch.Tensor], pairs: list[tuple[torch.Tensor, Pruned]]):
        self._watched = watched
        self._places = [tensor.data_ptr() for tensor, _ in pairs if type(tensor) in _PLAIN]
        self._plain = [tensor for tensor, _ in pairs if type(tensor) in _PLAIN]
        self._bits: dict[tuple[torch.device, torch.dtype], tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        self._filled: list[tuple[torch.Tensor, torch.Tensor]] = []
        for tensor, weight in pairs:
            keep = weight.factor(tensor, batched=True)
            if keep is None:
                self._filled.append((tensor, weight.removed_on(tensor.device)))
            else:
                bits, keeps = self._bits.setdefault((tensor.device, keep.dtype), ([], []))
                bits.append(tensor.detach().view(_WORDS[tensor.element_size()]))
                keeps.append(keep)

    def fits(self, tensors: list[torch.Tensor]) -> bool:
        """Whether these are the tensors it was made for."""
        return (
            len(tensors) == len(self._watched)
            and all(map(operator.is_, tensors, self._watched))
            and list(map(_place, self._plain)) == self._places
        )

    def zero(self) -> None:
        """Set the pruned part of each tensor to exactly 0.0: one call, and on a GPU one launch, where launches cost."""
        for bits, keeps in self._bits.values():
            torch._foreach_mul_(bits, keeps)
        for tensor, removed in self._filled:
            tensor.detach().masked_fill_(removed, 0.0)

"""`memory`: the most bytes held at once by a model and its forward pass.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(10, 100), nn.Linear(100, 1))
>>> memory(model, torch.zeros(4, 10))["memory"].per_layer
{'weights and buffers': 4804, 'forward': 1616}

1616 = the 4 x 100 numbers between the layers and the 4 x 1 at the end, alive together for a moment, 4 bytes
each.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.core.measurement import Measurement, Measurements
from secateur.execution.calling import call, describe, evaluating
from secateur.execution.devices import device_of, sync
from secateur.execution.example import Example

__all__ = ["memory"]

DEFINITION = (
    "bytes of weights and buffers + the most that a forward pass allocates beside them, without gradients"
)


def memory(model: nn.Module, example: Example) -> Measurements:
    """Peak bytes of a forward pass in evaluation mode: weights included, the input not.

    On CUDA the allocator's own peak; elsewhere the exact sum of the tensors alive after every operator, which
    leaves out scratch space inside an operator.

    Args:
        model: The model.
        example: What it is called with.
    """
    device = device_of(model)
    resident = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        resident[storage._cdata] = storage.nbytes()
    held = sum(resident.values())
    with evaluating(model, example) as inputs:
        if device.type == "cuda":
            extra, how = _cuda_peak(model, inputs, device), "the CUDA allocator's peak"
        else:
            counter = _Alive()
            with counter:
                output = call(model, inputs)
            del output
            extra, how = (
                counter.peak,
                "the sum of the tensors alive after every operator; scratch inside operators not seen",
            )
    return Measurements(
        [
            Measurement(
                "memory",
                held + extra,
                "bytes",
                f"{DEFINITION}; example {describe(example)}",
                per_layer={"weights and buffers": held, "forward": extra},
                notes=(f"forward: {how}",),
            )
        ]
    )


def _cuda_peak(model: nn.Module, inputs: Example, device: torch.device) -> int:
    call(model, inputs)  # libraries allocate workspaces at their first use; those are not counted
    sync(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    output = call(model, inputs)
    sync(device)
    del output
    return torch.cuda.max_memory_allocated(device) - before


class _Alive(TorchDispatchMode):
    """Adds up the storages that operators allocate, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        function: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Run an operator and count what it allocated."""
        for item in pytree.tree_leaves((args, kwargs)):
            if torch.is_tensor(item) and item.layout == torch.strided:
                self._known.add(item.untyped_storage()._cdata)  # there before: a weight, the input
        out = function(*args, **(kwargs or {}))
        for item in pytree.tree_leaves(out):
            if torch.is_tensor(item) and item.layout == torch.strided:
                self._made(item.untyped_storage())
        self.peak = max(self.peak, self.now)
        return out

    def _made(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

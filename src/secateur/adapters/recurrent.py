"""`whole_recurrent`: LSTM and GRU layers are recorded as one operator each, for sequences of any length.

torch works out the shapes of a recurrent layer by going through its time steps, and so `torch.export` takes their
number for fixed: a file then takes sequences of the example's length alone. The shapes do not need the steps.

>>> layer, x = torch.nn.LSTM(4, 8, batch_first=True).eval(), torch.zeros(2, 7, 4)
>>> axes = {"input": {1: torch.export.Dim("length")}}
>>> with whole_recurrent():
...     program = torch.export.export(layer, (x,), dynamic_shapes=axes, strict=False)
>>> program.module()(torch.zeros(2, 9, 4))[0].shape
torch.Size([2, 9, 8])
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch._ops import OpOverload

__all__ = ["whole_recurrent"]

_Shapes: TypeAlias = "Callable[..., tuple[Tensor, ...]]"


def _lstm(x: Tensor, hx: Sequence[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Empty outputs in the shapes of an LSTM's; the last of the arguments but one is whether it has two directions."""
    return _sequence(x, hx[0], rest[-2]), torch.empty_like(hx[0]), torch.empty_like(hx[1])


def _gru(x: Tensor, hx: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Empty outputs in the shapes of a GRU's."""
    return _sequence(x, hx, rest[-2]), torch.empty_like(hx)


def _sequence(x: Tensor, hidden: Tensor, bidirectional: bool) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1], hidden.shape[2] * (2 if bidirectional else 1)))


_SHAPES: dict[str, _Shapes] = {"lstm": _lstm, "gru": _gru}


@contextlib.contextmanager
def whole_recurrent() -> Iterator[None]:
    """While it lasts, recording takes the shapes of recurrent layers from their sizes; eager calls are as always, and
    so is what other threads record. A second thread waits.
    """
    with _one_thread, contextlib.ExitStack() as undo:
        for name, shapes in _SHAPES.items():
            operator = getattr(torch.ops.aten, name).input
            known = dict(operator.py_kernels)
            undo.callback(_put, operator, known)
            # asked when the model is recorded
            _put(operator, {key: _here(shapes, kernel) for key, kernel in known.items()})
            if operator in decomposition_table:  # asked when an exporter goes through the recording
                undo.callback(decomposition_table.__setitem__, operator, decomposition_table[operator])
                decomposition_table[operator] = _here(shapes, decomposition_table[operator])
        yield


_one_thread = threading.RLock()


def _here(shapes: _Shapes, elsewhere: Callable[..., Any]) -> Callable[..., Any]:
    """The first function in this thread, the other one in all others."""
    me = threading.get_ident()

    def chosen(*args: Any, **kwargs: Any) -> Any:
        return (shapes if threading.get_ident() == me else elsewhere)(*args, **kwargs)

    return chosen


def _put(operator: OpOverload, kernels: Mapping[torch._C.DispatchKey, Callable[..., object]]) -> None:
    """Give an operator these functions for recording."""
    operator.py_kernels.clear()
    operator.py_kernels.update(kernels)
    operator._dispatch_cache.clear()  # noqa: SLF001 -- else the functions before are called

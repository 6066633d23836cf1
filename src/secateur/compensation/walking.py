"""`Walk`: one forward pass that stops before every call of a layer, and continues on demand.

The pass runs in a thread of its own, and never at the same time as its caller: either the caller runs or the pass does.
So all batches of a calibration set can wait at one layer until it has its new weights, and nothing is computed twice. A
pass keeps the live tensors of its forward: in memory, or what is too much for that in files (`WaitingTensors`).

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
>>> with Walk(model, Names(model), (torch.ones(1, 2),), {}) as walk:
...     while walk.call is not None:
...         print(walk.call.name, tuple(walk.run().shape))
...         walk.advance()
0.weight (1, 2)
2.weight (1, 1)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from secateur.compensation.calls import Call, Names, NormCall
from secateur.compensation.sums import CallWatch
from secateur.compensation.waiting import Made, WaitingTensors

__all__ = ["Walk"]

_attention = FunctionType(
    functional.multi_head_attention_forward.__code__,
    {**functional.multi_head_attention_forward.__globals__, "has_torch_function": lambda _: False},
    "multi_head_attention_forward",
    functional.multi_head_attention_forward.__defaults__,
)
"""Attention of `nn.MultiheadAttention` as torch computes it, but visible to a mode: torch passes the whole function
to the mode, this one its projections, which are layers.
"""


class _AbandonedError(BaseException):
    """Unwinds a pass that is no longer wanted; not an `Exception`, so that no model catches it."""


class _Stops(TorchFunctionMode):
    """A mode that passes every call of a layer to the walk; everything else runs as usual."""

    def __init__(self, walk: Walk):
        super().__init__()
        self.walk = walk

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.multi_head_attention_forward:
            with self:
                return _attention(*args, **kwargs)
        call = self.walk.names.read(func, args, kwargs)
        if call is None:
            result = func(*args, **kwargs)
        else:
            result = self.walk._stop(call, lambda: func(*args, **kwargs))  # noqa: SLF001 - the walk's own mode
        if self.walk.made is not None:
            self.walk.made.note((args, kwargs), result)
        if self.walk.watch is not None:
            self.walk.watch.saw(call, func, args, kwargs, result)
        return result


class Walk:
    """A forward pass of `model`, stopped before the call `call`; None when it is over.

    `run()` computes the call with the weights as they are now, `advance()` passes the result to the forward and
    continues to the next call. Leaving the context abandons the rest of the pass. With `waiting`, what the pass holds
    at a stop is counted there and may be moved to a file. `watch` sees every function of the pass.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Names,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        waiting: WaitingTensors | None = None,
        watch: CallWatch | None = None,
    ):
        self.names = names
        self.watch = watch
        self.made = None if waiting is None else Made()
        self._waiting = waiting
        self.call: Call | NormCall | None = None
        self.output: Any = None
        self._compute: Callable[[], Any] | None = None
        self._result: Any = None
        self._ready = False
        self._error: BaseException | None = None
        self._abandoned = False
        self._ours, self._theirs = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._work, args=(model, args, dict(kwargs)), daemon=True)

    def _work(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The pass itself, in its own thread."""
        self._theirs.acquire()
        try:
            if not self._abandoned:
                with torch.no_grad(), _Stops(self):
                    self.output = model(*args, **kwargs)
        except BaseException as error:  # passed to the caller's thread, which raises it
            self._error = error
        self.call = self._compute = None
        self._ours.release()

    def _stop(self, call: Call | NormCall, compute: Callable[[], Any]) -> Any:
        """Wait before a call until the caller has run it."""
        self.call, self._compute = call, compute
        self._ours.release()
        self._theirs.acquire()
        if self._abandoned:
            raise _AbandonedError
        result, self._result = self._result, None
        return result

    def _go_on(self) -> None:
        """Let the pass run to its next stop, or to its end."""
        self._theirs.release()
        self._ours.acquire()
        if self._error is not None and not isinstance(self._error, _AbandonedError):
            error, self._error = self._error, None
            raise error
        if self._waiting is not None and self.made is not None:
            with torch.no_grad():
                self._waiting.paused(id(self), self.made)

    def run(self) -> torch.Tensor:
        """The result of the call at which the pass is stopped; computed once."""
        assert self._compute is not None
        if not self._ready:
            with torch.no_grad():
                self._result = self._compute()
            self._ready = True
        return self._result

    def advance(self) -> None:
        """Continue to the next call."""
        self.run()
        self._ready = False
        self._go_on()

    def finish(self) -> Any:
        """Run the rest of the pass; returns its output."""
        while self.call is not None:
            self.advance()
        return self.output

    def close(self) -> None:
        """Abandon the pass, wherever it is stopped."""
        if self._thread.is_alive():
            self._abandoned = True
            self._theirs.release()
            self._thread.join()

    def __enter__(self) -> Walk:
        self._thread.start()  # here, where no Ctrl-C comes between the start and the block that ends it
        try:
            self._go_on()
        except BaseException:
            self.close()  # the pass may wait already
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""`PrefixCache`: repeat one evaluation with one part of a model changed, without recomputing what comes before it.

A scan evaluates the same data under many masks of one layer. Everything the model computes before that layer first
runs is the same each time. `PrefixCache` keeps the outputs of the modules that had finished by then, call by call, and
returns them instead of running those modules. It returns the tensor that was computed, so the result is equal bit for
bit. A call that is not known to repeat is computed again.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
>>> data = [torch.randn(4, 3) for _ in range(2)]
>>> def total(model):
...     with torch.no_grad():
...         return float(sum(model(x).sum() for x in data))
>>> with PrefixCache(model) as cache:
...     dense = cache.first(lambda: total(model))
...     with cache.before(["2.weight"]):
...         again = [cache.run(lambda: total(model)) for _ in range(3)]
>>> again == [dense] * 3, cache.skipped  # the second and third run skip two modules on two batches
(True, 8)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from secateur.core.fetching import fetched
from secateur.core.torch_calls import Arguments, Function, Keywords

__all__ = ["PrefixCache"]

T = TypeVar("T")
Key = tuple[str, int]  # a module's name, and the number of its call within one forward pass


class PrefixCache:
    """A cache of what a model computes before the part under test. A context manager; the model is not changed.

    `limit` bounds the bytes kept; calls beyond it are computed in full. `skipped` counts the module calls answered
    from memory, `peak` the most bytes kept at one time. On a device other than the CPU, inputs are compared without
    waiting for it: one number is fetched after each evaluation. If some inputs had changed, the evaluation is repeated
    in full and the cache is not used again.
    """

    def __init__(self, model: nn.Module, limit: int = 1 << 30):
        self.model = model
        self.limit = limit
        self.skipped = 0
        self.peak = 0
        self._bytes = 0
        self._names: dict[nn.Module, str] = {}
        self._open = False
        # set by `first`
        self._order: list[bytes] = []  # per call: a digest of the sequence of module calls
        self._inputs: list[list[torch.Tensor]] = []
        self._first_use: dict[
            int, tuple[int, Key]
        ] = {}  # storage of a parameter -> (when, in which module call)
        # per part under test
        self._kept: dict[int, dict[Key, Any]] = {}  # call -> outputs to return
        self._next: dict[int, dict[Key, Any]] = {}  # the same, being collected for the part under test
        self._repeats = True  # no input is known to have changed
        self._trigger: Key | None = None
        self._live: set[Key] | None = None
        self._mutated: set[Key] = set()
        # within one evaluation
        self._differs: list[
            torch.Tensor
        ] = []  # for inputs on a device: whether they are not those of `first`
        # within one forward pass
        self._call = -1
        self._pass: _Pass | None = None

    # -- setting up ----------------------------------------------------------------------------------------------
    def __enter__(self) -> PrefixCache:
        self._open = True
        for name, module in self.model.named_modules():
            if module in self._names or isinstance(module, torch.jit.ScriptModule):
                continue
            self._names[module] = name
            module.__dict__["forward"] = self._wrap(module, name, module.forward)
        return self

    def __exit__(self, *error: object) -> None:
        for module in self._names:
            module.__dict__.pop("forward", None)
        self._names.clear()
        self._drop()
        self._inputs.clear()
        self._open = False

    def _drop(self) -> None:
        self._kept, self._next, self._bytes = {}, {}, 0

    # -- the three ways to run -----------------------------------------------------------------------------------
    def first(self, run: Callable[[], T]) -> T:
        """Run the evaluation on the unchanged model, and record which calls are made in which order."""
        self._order, self._inputs, self._first_use = [], [], {}
        self._repeats = True
        return self._evaluate(run, "learn")

    @contextmanager
    def before(self, parameters: Sequence[str]) -> Iterator[None]:
        """A block in which the model differs from that of `first` only in these parameters.

        Use the parts in the order in which the model runs them (`position`): outputs kept for one part are reused for
        the next.
        """
        self._trigger, self._next, self._live = None, {}, None
        self._mutated_next: set[Key] = set()
        uses = [self._first_use.get(_storage(self.model.get_parameter(name))) for name in parameters]
        known = [use for use in uses if use is not None]
        if known and len(known) == len(uses):
            self._trigger = min(known)[1]
        self._collected = False
        try:
            yield
        finally:
            self._trigger = None

    def position(self, parameters: Sequence[str]) -> int:
        """When the first of these parameters is first used, to sort parts by; unused ones come last."""
        uses = [self._first_use.get(_storage(self.model.get_parameter(name))) for name in parameters]
        return min((use[0] for use in uses if use is not None), default=1 << 60)

    def run(self, run: Callable[[], T]) -> T:
        """Run the evaluation inside `before`: from the cache if it is filled, else fill it."""
        if self._trigger is None or not self._repeats:
            return self._evaluate(run, "plain")
        if not self._collected:
            result = self._evaluate(run, "collect")
            if self._changed():
                return self._evaluate(run, "plain")
            self._kept, self._next, self._collected = self._next, {}, True
            self._mutated = self._mutated_next
            self._bytes = sum(_size(kept) for kept in self._kept.values())
            return result
        result = self._evaluate(run, "cache")
        return self._evaluate(run, "plain") if self._changed() else result

    def _changed(self) -> bool:
        """Whether inputs on a device were not those of `first`: then nothing that was kept may be used."""
        differs, self._differs = self._differs, []
        if differs and any(fetched(differs)):
            self._repeats = False
            self._drop()
        return not self._repeats

    def _evaluate(self, run: Callable[[], T], way: str) -> T:
        self._call, self._way, self._differs = -1, way, []
        try:
            return run()
        finally:
            self._pass, self._way = None, "plain"

    # -- one forward pass ----------------------------------------------------------------------------------------
    def _wrap(self, module: nn.Module, name: str, forward: Function) -> Function:
        def replayed(*args: Arguments, **kwargs: Keywords) -> Any:
            if self._way == "plain":
                return forward(*args, **kwargs)
            if self._pass is None:
                if module is not self.model:
                    return forward(*args, **kwargs)  # the evaluation runs a part of the model by itself
                return self._root(forward, args, kwargs)
            return self._inside(self._pass, module, name, forward, args, kwargs)

        return replayed

    def _root(self, forward: Function, args: Arguments, kwargs: Keywords) -> Any:
        self._call += 1
        tensors = [item for item in tree_flatten((args, kwargs))[0] if isinstance(item, torch.Tensor)]
        repeatable = self._repeatable()
        if self._way == "learn":
            self._inputs.append([tensor.detach().clone() for tensor in tensors] if repeatable else [])
        elif not repeatable or not self._same_inputs(tensors):
            return self._plainly(forward, args, kwargs)
        watch = self._way == "learn" and self._call == 0
        taint = self._way == "collect" and self._call == 0
        collect = taint or self._has_room()
        current = self._pass = _Pass(
            kept=self._kept.get(self._call, {}),
            trigger=self._trigger if collect else None,
            live=None if taint else self._live,
        )
        mode = _OperatorWatch(current, taint) if watch or taint else nullcontext()
        try:
            with mode:
                result = forward(*args, **kwargs)
        finally:
            self._pass = None
        if self._way == "learn":
            self._order.append(current.sequence())
            if watch:
                self._first_use = dict(current.first_use)
        elif collect and current.reached:
            self._collect(current, mode, result)
        return result

    def _collect(self, current: _Pass, mode: object, result: object) -> None:
        """Keep the outputs of the call; of the first call also which outputs are still used."""
        if isinstance(mode, _OperatorWatch):
            self._live = mode.live(result)
            self._mutated_next = current.mutated()
        self._store(current)

    def _has_room(self) -> bool:
        """Whether outputs are collected, after the first call, and there is memory left for them."""
        return self._way == "collect" and self._live is not None and self._bytes < self.limit

    def _repeatable(self) -> bool:
        """Whether the same inputs give the same outputs: in evaluation mode throughout, without gradients."""
        return not torch.is_grad_enabled() and not any(module.training for module in self.model.modules())

    def _plainly(self, forward: Function, args: Arguments, kwargs: Keywords) -> Any:
        way, self._way = self._way, "plain"
        try:
            return forward(*args, **kwargs)
        finally:
            self._way = way

    def _same_inputs(self, tensors: list[torch.Tensor]) -> bool:
        if self._call >= len(self._inputs) or self._order[self._call] != self._order[0]:
            return False
        known = self._inputs[self._call]
        return len(known) == len(tensors) > 0 and all(
            a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and self._equal(a, b)
            for a, b in zip(known, tensors, strict=True)
        )

    def _equal(self, one: torch.Tensor, other: torch.Tensor) -> bool:
        """Whether two tensors are equal; on a device it is taken for granted until `_changed` asks."""
        if one.device.type == "cpu":
            return torch.equal(one, other)
        self._differs.append((one != other).any())
        return True

    def _store(self, current: _Pass) -> None:
        """Keep the outputs that are used after the trigger; of the others only the shape."""
        assert self._live is not None
        kept = {
            key: value if key in self._live else tree_map_only(torch.Tensor, _shape_only, value)
            for key, value in current.frozen.items()
        }
        size = _size(kept)
        older = _size(self._kept.pop(self._call, {}))
        if self._bytes - older + size <= self.limit:
            self._next[self._call] = kept
            self._bytes += size - older
            self.peak = max(self.peak, self._bytes)
        else:
            self._bytes -= older

    def _inside(
        self,
        current: _Pass,
        module: nn.Module,
        name: str,
        forward: Function,
        args: Arguments,
        kwargs: Keywords,
    ) -> Any:
        key = current.enter(name)
        if key in current.kept:
            self.skipped += 1
            value = current.kept[key]
            if key in self._mutated:
                value = tree_map_only(torch.Tensor, torch.clone, value)
            return current.leave(key, value, value)
        result = forward(*args, **kwargs)
        copy = None
        if current.collecting and (current.live is None or key in current.live):
            # A copy, not the tensor: a later operation may write into it.
            copy = tree_map_only(torch.Tensor, lambda t: t if t.is_meta else t.detach().clone(), result)
        return current.leave(key, result, copy if copy is not None else result)


class _Pass:
    """The state of one forward pass: the module calls, and the outputs finished so far."""

    def __init__(self, kept: dict[Key, Any], trigger: Key | None, live: set[Key] | None):
        self.kept = kept
        self.trigger = trigger
        self.live = live
        self.reached = False
        self.frozen: dict[Key, Any] = {}
        self.first_use: dict[int, tuple[int, Key]] = {}
        self.clock = 0
        self.stack: list[tuple[Key, int]] = [(("", 0), 0)]
        self.done: list[tuple[Key, Any]] = []
        self.finished: dict[Key, tuple[Any, list[int]]] = {}
        self._counts: dict[str, int] = {}
        self._hash = hashlib.sha256()

    @property
    def collecting(self) -> bool:
        """Whether outputs are still being gathered."""
        return self.trigger is not None and not self.reached

    def enter(self, name: str) -> Key:
        """A module is called."""
        self._counts[name] = self._counts.get(name, 0) + 1
        key = (name, self._counts[name])
        self._hash.update(f"{key};".encode())
        if key == self.trigger:
            self.reached = True
            self.frozen = dict(self.done)
        self.stack.append((key, len(self.done)))
        return key

    def leave(self, key: Key, result: Any, copy: Any) -> Any:
        """A module has finished: its output replaces those of the modules it called."""
        _, mark = self.stack.pop()
        if self.collecting:
            del self.done[mark:]
            self.done.append((key, copy))
            versions = [
                t._version for t in tree_flatten(result)[0] if isinstance(t, torch.Tensor) and not t.is_meta
            ]
            self.finished[key] = (result, versions)
        return result

    def mutated(self) -> set[Key]:
        """The kept outputs that something wrote into after they were finished."""
        found = set()
        for key in self.frozen:
            result, versions = self.finished[key]
            tensors = [t for t in tree_flatten(result)[0] if isinstance(t, torch.Tensor) and not t.is_meta]
            if [t._version for t in tensors] != versions:
                found.add(key)
        return found

    def sequence(self) -> bytes:
        """A digest of the module calls made, in order."""
        return self._hash.digest()


class _OperatorWatch(TorchDispatchMode):
    """Sees every operator: when each parameter is first used, and which finished outputs still reach the result."""

    def __init__(self, current: _Pass, taint: bool):
        super().__init__()
        self.current = current
        self.taint = taint
        self._from: dict[int, frozenset[Key]] = {}  # storage -> finished outputs it was made from
        self._hold: list[Any] = []  # keeps storages alive, so that none is reused and mistaken for another
        self._seen: set[Key] = set()
        self._alive: set[Key] = set()

    def __torch_dispatch__(
        self, func: Function, types: object, args: Arguments = (), kwargs: Keywords | None = None
    ) -> Any:
        current = self.current
        inputs = [t for t in tree_flatten((args, kwargs or {}))[0] if isinstance(t, torch.Tensor)]
        if not self.taint:
            current.clock += 1
            for tensor in inputs:
                current.first_use.setdefault(_storage(tensor), (current.clock, current.stack[-1][0]))
            return func(*args, **(kwargs or {}))
        self._adopt()
        sources = frozenset().union(*(self._from.get(_storage(t), frozenset()) for t in inputs))
        if current.reached:
            self._alive |= sources
        result = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor):
                self._from[_storage(tensor)] = sources | (
                    self._from.get(_storage(tensor), frozenset())
                    if _storage(tensor) in self._from
                    else frozenset()
                )
                self._hold.append(tensor)
        return result

    def _adopt(self) -> None:
        """Give the outputs finished since the last operator their own origin."""
        for key, (result, _) in self.current.finished.items():
            if key not in self._seen:
                self._seen.add(key)
                for tensor in tree_flatten(result)[0]:
                    if isinstance(tensor, torch.Tensor):
                        self._from[_storage(tensor)] = frozenset([key])
                        self._hold.append(tensor)

    def live(self, result: Any) -> set[Key]:
        """The finished outputs that an operator after the trigger, or the result, was made from."""
        self._adopt()
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor):
                self._alive |= self._from.get(_storage(tensor), frozenset())
        return self._alive


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _size(kept: dict[Key, Any]) -> int:
    storages = {
        _storage(t): t.untyped_storage().nbytes()
        for t in tree_flatten(list(kept.values()))[0]
        if isinstance(t, torch.Tensor) and not t.is_meta
    }
    return sum(storages.values())


def _shape_only(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, device="meta")

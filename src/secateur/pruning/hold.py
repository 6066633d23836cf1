"""`hold`: keep pruned weights at exactly 0.0 through any training loop.

>>> import torch
>>> from torch import nn
>>> from secateur.core.masks import Masks
>>> model = nn.Linear(2, 1, bias=False)
>>> masks = Masks({"weight": torch.tensor([[True, False]])})
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
>>> with hold(model, masks, optimizer):
...     for _ in range(3):
...         optimizer.zero_grad()
...         model(torch.ones(4, 2)).sum().backward()
...         optimizer.step()
>>> model.weight[0, 1].item(), optimizer.state[model.weight]["momentum_buffer"][0, 1].item()
(0.0, 0.0)
>>> list(model.state_dict())
['weight']

Where a block is not possible, as in the callbacks of a trainer, use the object:

>>> held = hold(model, masks, optimizer)
>>> held.update(masks)  # other masks from here on: gradual pruning
>>> held.close()

How it works: the gradient of a pruned weight is zeroed when it is computed, so clipping, scaling and an optimizer with
a memory of its own (LBFGS) never see it; after every optimizer step the weights and the optimizer's state of the same
shape are zeroed; a forward pass that finds the weights changed by anything else (a loop that subtracts by hand, a
checkpoint loaded into a submodule) zeroes them first. Nothing is parametrized: parameters, buffers and keys do not
change.

Masks belong to names. Where another parameter takes a name (`load_state_dict(..., assign=True)`, a layer that is
replaced), that one is held from then on: it is found when weights are loaded, in a forward pass, in an optimizer step
and at the end. One of another shape is an error.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from secateur.core.interrupts import InterruptsDeferred, uninterrupted
from secateur.core.masks import Masks, as_masks
from secateur.core.model_kinds import module_of, unwrapped
from secateur.core.parameters import parameters_of
from secateur.core.user_warnings import warn
from secateur.core.wrapped_layers import adapters_of, model_with
from secateur.errors import MaskMismatchError, OptionError
from secateur.execution.verb import verb
from secateur.pruning.replaced import Places, called_with_others, named_now
from secateur.pruning.zeroing import Pruned, ZeroingBatch, sharded_like

__all__ = ["Held", "hold"]


@uninterrupted
def hold(
    model: nn.Module,
    masks: Masks | Mapping[str, torch.Tensor],
    optimizer: object = None,
    *,
    copies: nn.Module | Iterable[nn.Module] = (),
) -> Held:
    """Hold the masks on the model from now on: in a `with` block, or until `close()`.

    Args:
        model: The model; it may be wrapped by DistributedDataParallel, accelerate or torch.compile, or sharded by
            fully_shard (FSDP2): then each process holds its part of every mask. Its layers may be wrapped by adapters,
            as LoRA of PEFT does, after the masks were made: `q_proj.weight` is found as `q_proj.base_layer.weight`.
        masks: The masks, by the names of the parameters.
        optimizer: Checked at once to train the masked weights: one made before the model was copied or shrunk would
            retrain nothing. Without it, every torch optimizer that steps these weights is followed anyway.
        copies: Other models with the same names that stay masked too, such as a
            `torch.optim.swa_utils.AveragedModel`.

    Raises:
        MaskMismatchError: The masks do not fit the model, or the optimizer trains none of the masked weights.
    """
    # Ctrl-C waits from here until the hooks are removed, in `close` or at the end of the block: one that came
    # between this function and the block would leave the model held.
    deferred = InterruptsDeferred()
    deferred.__enter__()
    try:
        held = _start_holding(model, masks, optimizer, copies)
    except BaseException:
        deferred.__exit__()
        raise
    held.deferred = deferred
    return held


class Held:
    """Masks in force on a model. Made by `hold`; ends with its `with` block or with `close()`.

    Args:
        model: See `hold`, as for the rest.
        masks: The masks to hold.
        optimizer: The optimizer that is checked.
        copies: Other models that stay masked too.
    """

    def __init__(
        self,
        model: nn.Module,
        masks: Masks | Mapping[str, torch.Tensor],
        optimizer: object = None,
        *,
        copies: nn.Module | Iterable[nn.Module] = (),
    ):
        self.masks = as_masks(masks)
        outer = module_of(model)
        self.model = _inner(outer, self.masks)
        beside = outer is not self.model and unwrapped(outer) is not self.model
        self.called = (self.model, outer) if beside else (self.model,)
        """The model, and the one around it that calls the model's forward past its hooks, as PEFT's does."""
        self.copies = [
            _inner(copy, self.masks) for copy in ([copies] if isinstance(copies, nn.Module) else copies)
        ]
        self.steps = 0
        """How many optimizer steps on these weights have been followed."""
        self._depth = 0
        self.deferred = InterruptsDeferred()
        """The context in which signals wait while hooks are added and removed."""
        self._open = False
        self._mask_gradients = True
        self._gradients = [0]
        self._moved = False  # by something that is no torch optimizer
        self._steps_before = 0  # how many there were when parameters were last replaced
        self._places: list[Places] = []
        self._handles: list[Any] = []
        self._weights: list[Pruned] = []
        self._optimizers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._batches: weakref.WeakKeyDictionary[Any, ZeroingBatch] = weakref.WeakKeyDictionary()
        self._own = ZeroingBatch([], [])
        self._collect()
        if optimizer is not None:
            _check_optimizer(optimizer, self.model, [w.parameter for w in self._weights if not w.copy])
        self._start(optimizer)

    # -- the block -------------------------------------------------------------------------------------------
    def __enter__(self) -> Held:
        if not self._open:
            raise OptionError("this hold was closed; start a new one with sc.hold(model, masks, optimizer)")
        if self._depth == 0:
            self.deferred.__enter__()
        self._depth += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            try:
                self._close(complain=kind is None)
            except MaskMismatchError:
                if error is None:  # else what went wrong in the block is told
                    raise
            finally:
                self.deferred.__exit__()

    @uninterrupted
    def close(self, complain: bool = True) -> None:
        """Stop holding: the hooks are removed, the weights are left masked. Closing twice is harmless.

        Args:
            complain: Warn if gradients were computed and no optimizer stepped a masked tensor.

        Raises:
            MaskMismatchError: A masked parameter was replaced by one of another shape, or is gone.
        """
        with self.deferred:
            self._close(complain)

    def _close(self, complain: bool) -> None:
        if not self._open:
            return
        stepped = self.steps > self._steps_before
        dead = self._gradients[0] and not (stepped or self._moved or self._changed())
        try:
            self.apply()
        finally:
            self._open = False
            for handle in self._handles:
                handle.remove()
            self._handles.clear()
            for weight in self._weights:
                weight.unhook()
        if dead and complain:
            warn(
                f"{type(self.model).__name__} was held for {self._gradients[0]} gradients, but no optimizer "
                f"stepped any of its {len(self._weights)} masked tensors: it was not trained. Was the "
                "optimizer made for another model, or before this one was copied or shrunk? Make it again from "
                "model.parameters()",
            )

    # -- while the masks are held --------------------------------------------------------------------------
    def update(self, masks: Masks | Mapping[str, torch.Tensor]) -> None:
        """Hold these masks from now on; tensors they do not name keep theirs.

        A weight that is kept again starts at 0.0 with an empty optimizer state.
        """
        if not self._open:
            raise OptionError("this hold was closed; start a new one with sc.hold(model, masks, optimizer)")
        new = masks if isinstance(masks, Masks) else Masks(masks)
        for model in (self.model, *self.copies):
            new.check(model, wrapped=True)
        before, self.masks = self.masks, Masks({**self.masks, **new})
        try:
            self._collect()
        except MaskMismatchError:
            self.masks = before
            raise
        self._zero()
        for optimizer in list(self._optimizers):
            self._clean(optimizer, restart=True)

    def mask_gradients(self, on: bool) -> None:
        """Zero the gradients of removed weights (the default), or let them through.

        Removed weights stay 0 either way, because every optimizer step is followed. A method that regrows removed
        weights by their gradients, such as RigL, lets the gradients of one step through and reads them.

        Args:
            on: Whether they are zeroed from now on.
        """
        self._mask_gradients = on
        for weight in self._weights:
            weight.unhook()
        if on:
            self._hook()

    def apply(self) -> None:
        """Zero the pruned weights of the model and of its copies now.

        Raises:
            MaskMismatchError: A masked parameter was replaced by one of another shape, or is gone.
        """
        try:
            self._follow()
        finally:
            self._zero()

    # -- inside ----------------------------------------------------------------------------------------------
    @torch.no_grad()
    def _zero(self) -> None:
        tensors: list[torch.Tensor] = [weight.parameter for weight in self._weights]
        if not self._own.fits(tensors):
            self._own = ZeroingBatch(tensors, list(zip(tensors, self._weights)))
        self._own.zero()
        for weight in self._weights:
            weight.seen = weight.parameter._version

    def _collect(self) -> None:
        """One `Pruned` for each parameter object, however many names it has; the hooks on gradients go along."""
        found: dict[int, Pruned] = {}
        places: list[Places] = []
        shapes = {name: self.masks.shape(name) for name in self.masks}
        for at, model in enumerate((self.model, *self.copies)):
            named = named_now(model, shapes, self._places[at].named if self._places else None)
            places.append(Places(model, named))
            for name, each in named.items():
                parameter = each.parameter
                removed = sharded_like(parameter, ~self.masks[name].to(parameter.device))
                if id(parameter) in found:
                    found[id(parameter)].removed |= removed
                else:
                    found[id(parameter)] = Pruned(parameter, removed, copy=model is not self.model)
        for weight in self._weights:
            weight.unhook()
        self._weights, self._places = list(found.values()), places
        self._own = ZeroingBatch([], [])
        self._batches.clear()
        if self._open and self._mask_gradients:
            self._hook()

    def _replaced(self) -> bool:
        return any(places.changed() for places in self._places)

    def _follow(self) -> None:
        """Hold the parameters that have the names now, where some were replaced."""
        if not self._replaced():
            return
        before = {id(weight.parameter) for weight in self._weights}
        self._collect()
        self._gradients[0], self._steps_before, self._moved = 0, self.steps, False
        for weight in self._weights:
            if self._mask_gradients and not weight.copy and id(weight.parameter) not in before:
                weight.zero_gradient()
        self._zero()

    def _start(self, optimizer: object) -> None:
        self._open = True
        try:
            self._handles.append(register_optimizer_step_pre_hook(_Hook(self, "_before_step")))
            self._handles.append(register_optimizer_step_post_hook(_Hook(self, "_after_step")))
            for model in (self.model, *self.copies):
                self._handles.append(model.register_load_state_dict_post_hook(_Hook(self, "_after_load")))
            for model in (*self.called, *self.copies):
                self._handles.append(model.register_forward_pre_hook(_Hook(self, "_before_forward")))
            self._hook()
            self._zero()
            for found in _optimizers_within(optimizer):
                self._optimizers.add(found)
                self._clean(found, restart=True)
        except BaseException:
            self._close(complain=False)
            raise

    def _hook(self) -> None:
        for weight in self._weights:
            weight.hook(self._gradients)

    def _changed(self) -> bool:
        # torch counts the in-place changes of every tensor; reading the count costs next to nothing.
        return any(weight.parameter._version != weight.seen for weight in self._weights)

    def _before_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        if not self._replaced():
            return
        mine = {
            id(one) for one in (*self.model.parameters(), *(weight.parameter for weight in self._weights))
        }
        if any(id(one) in mine for group in optimizer.param_groups for one in group["params"]):
            self._follow()

    def _after_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        if optimizer not in self._batches:  # else it was found to step these weights before
            mine = {id(weight.parameter) for weight in self._weights if not weight.copy}
            if not any(
                id(parameter) in mine for group in optimizer.param_groups for parameter in group["params"]
            ):
                return
        self.steps += 1
        self._optimizers.add(optimizer)
        self._clean(optimizer)
        for weight in self._weights:  # a weight that was frozen when the block began may train by now
            if weight.handle is None and self._mask_gradients:
                weight.hook(self._gradients)

    @torch.no_grad()
    def _clean(self, optimizer: torch.optim.Optimizer, restart: bool = False) -> None:
        """Zero the pruned weights and their optimizer state."""
        state = optimizer.state
        tensors: list[torch.Tensor] = []
        for weight in self._weights:
            if not weight.copy:
                tensors.append(weight.parameter)
                remembered = state.get(weight.parameter)  # once: a tensor as a key is slow to look up
                if remembered:
                    tensors += [v for v in remembered.values() if isinstance(v, torch.Tensor)]
        batch = self._batches.get(optimizer)
        if batch is None or not batch.fits(tensors):
            batch = self._batches[optimizer] = ZeroingBatch(tensors, self._masked(state))
        batch.zero()
        for weight in self._weights:
            if not weight.copy:
                weight.seen = weight.parameter._version
        if restart and isinstance(optimizer, LBFGS):
            # Its memory is one vector over all parameters that describes the unpruned surface: it is reset.
            for entry in state.values():
                if "n_iter" in entry:
                    entry["n_iter"] = 0

    def _masked(self, state: Mapping[Any, Any]) -> list[tuple[torch.Tensor, Pruned]]:
        """The masked weights that an optimizer steps, and its state of the same shape for each."""
        pairs: list[tuple[torch.Tensor, Pruned]] = []
        for weight in self._weights:
            parameter = weight.parameter
            if not weight.copy:
                pairs.append((parameter, weight))
                for key, value in state[parameter].items() if parameter in state else ():
                    if torch.is_tensor(value) and key != "step" and value.shape == parameter.shape:
                        pairs.append((value, weight))
        return pairs

    def _before_forward(self, module: nn.Module, args: object) -> None:
        if torch.compiler.is_compiling():
            return  # a compiled forward stays one graph; the step and the load are followed anyway
        if self._replaced() and not called_with_others():
            self._follow()
        if self._changed():
            self._moved = True
            self._zero()

    def _after_load(self, module: nn.Module, keys: object) -> None:
        self.apply()


@uninterrupted
def _made(
    model: nn.Module,
    masks: Masks | Mapping[str, torch.Tensor],
    optimizer: object,
    copies: nn.Module | Iterable[nn.Module],
) -> Held:
    return Held(model, masks, optimizer, copies=copies)


_start_holding = verb(_made, "hold")


class _Hook:
    """A hook that belongs to one `Held` and to one model alone.

    A copy of the model (copy.deepcopy, pickle) takes its hooks along. Such a copy is not held: the hook is
    not copied deeply, becomes inert when pickled, and removes itself from a module that is not its own.
    """

    def __init__(self, held: Held | None, method: str):
        self.held = held
        self.method = method

    def __call__(self, *args: Any) -> Any:
        held = self.held
        subject = args[0]
        if getattr(subject, "_is_replica", False):  # of nn.DataParallel: it shares the hooks of the model
            return None
        if isinstance(subject, nn.Module) and (
            held is None or not any(subject is model for model in (*held.called, *held.copies))
        ):
            for hooks in (subject._forward_pre_hooks, subject._load_state_dict_post_hooks):
                for key in [key for key, hook in hooks.items() if hook is self]:
                    del hooks[key]
            return None
        return None if held is None else getattr(held, self.method)(*args)

    def __deepcopy__(self, memo: object) -> _Hook:
        return self

    def __reduce__(self) -> Any:
        return _Hook, (None, self.method)


def _inner(model: nn.Module, masks: Masks) -> nn.Module:
    """The model that the masks are for: the given one, or the one inside DDP, torch.compile or PEFT's model."""
    inner = model_with(model, masks)
    masks.check(inner, wrapped=True)
    return inner


def _optimizers_within(optimizer: object) -> list[Any]:
    """The optimizer itself, or the one inside a wrapper such as accelerate's."""
    if optimizer is None:
        return []
    inner = getattr(optimizer, "optimizer", None)
    return _optimizers_within(inner) if isinstance(inner, Optimizer) else [optimizer]


def _check_optimizer(optimizer: object, model: nn.Module, masked: list[torch.Tensor]) -> None:
    """Raise unless the optimizer trains at least one of the masked weights; warn if it looks stale."""
    groups = getattr(optimizer, "param_groups", None)
    if groups is None:
        raise OptionError(
            "optimizer: expected a torch optimizer (something with param_groups), got "
            f"{type(optimizer).__name__}; leave it out and every optimizer that steps the model is followed"
        )
    given = {id(parameter) for group in groups for parameter in group["params"]}
    own = {id(parameter) for parameter in model.parameters()}
    kind, name = type(optimizer).__name__, type(model).__name__
    missing = [p for p in masked if id(p) not in given and p.requires_grad]
    trained = any(id(parameter) in given for parameter in masked)
    added = adapters_of(model)
    adapters = {id(parameter) for each, parameter in parameters_of(model).items() if each in added}
    beside = bool(given & adapters) and not any(parameter.requires_grad for parameter in masked)
    if not (trained or beside):
        raise MaskMismatchError(
            f"optimizer: {kind} holds none of the {len(masked)} masked tensors of {name} "
            f"({len(given & own)} of its {len(given)} tensors are this model's), so it would train nothing "
            "that is held. It was made for another model, or before this one was copied or shrunk; make it again "
            "from model.parameters()"
        )
    if missing and given - own:
        warn(
            f"optimizer: {kind} lacks {len(missing)} of the {len(masked)} masked tensors of {name} and holds "
            f"{len(given - own)} tensors that are not this model's; if the model was shrunk or changed "
            "since, make it again from model.parameters()",
        )

"""Training a codebook: the centroids are the parameters, and each gets the sum of its weights' gradients.

Inside `CodebookTraining` a shared weight is not a parameter but `values[indices]`, computed when the layer reads it. So
autograd sums the gradients of a centroid's weights, and optimizers, AMP, gradient accumulation and clipping, or
DistributedDataParallel (wrap the model inside the block) see ordinary parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from secateur.core.codebook import Codebook
from secateur.core.scores import check_finite
from secateur.errors import MaskMismatchError, NothingToDoError, OptionError, near
from secateur.quantize.rate_distortion import assign_by_rate, check_rate

__all__ = ["CodebookTraining"]


class _Lookup(torch.autograd.Function):
    """`values[indices]`; backwards, gradients are summed per value and passed on to latent weights.

    The second gradient, for latent weights, is the straight-through estimate.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: torch.Tensor,
        latent: torch.Tensor | None,
        indices: torch.Tensor,
        kept: torch.Tensor | None,
        there: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(indices, kept, there)
        ctx.count, ctx.dtype = values.numel(), values.dtype
        weight = values[indices]
        return weight if there is None else torch.where(there, weight, torch.zeros_like(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        indices, kept, there = ctx.saved_tensors
        gradient = gradients[0]
        if kept is not None:
            gradient = torch.where(kept, gradient, torch.zeros_like(gradient))
        # a latent weight at zero may become non-zero again
        latent = gradient if ctx.needs_input_grad[1] else None
        summed = None
        if ctx.needs_input_grad[0]:
            if there is not None and there is not kept:
                gradient = torch.where(there, gradient, torch.zeros_like(gradient))
            # Thousands of gradients are summed: in half precision most would be rounded away.
            wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
            summed = torch.zeros(ctx.count, dtype=wide, device=gradient.device)
            summed = summed.index_add(0, indices.reshape(-1), gradient.reshape(-1).to(wide)).to(ctx.dtype)
        return summed, latent, None, None, None


class _Slot:
    """One shared tensor while it is trained: its weight, its indices, and the centroids it uses."""

    def __init__(
        self,
        name: str,
        book: Codebook,
        weight: nn.Parameter,
        kept: torch.Tensor | None,
        centroids: nn.Parameter,
        rate: float,
    ):
        self.name = name
        self.book = book
        self.weight = weight
        self.centroids = centroids
        self.first = 1 if book.reserved else 0
        device = weight.device
        indices = book.indices.to(device).long() - self.first
        if book.reserved and kept is None:
            kept = book.indices.to(device) != 0
        indices = self._like_weight(indices)
        kept = None if kept is None else self._like_weight(kept)
        self.kept = self.there = kept.to(device) if kept is not None else None
        if rate and book.reserved:
            # A weight that the rate set to zero may become non-zero again while its latent value is known; a masked one
            # has none.
            self.kept = (weight.detach() != 0) | (book.indices.to(device) != 0)
        self.indices = indices.clamp_(min=0)
        self.latent = False
        self.rate = rate

    def _like_weight(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor in the weight's memory format, so that looked-up weights have it too."""
        if self.weight.dim() == 4 and self.weight.is_contiguous(memory_format=torch.channels_last):
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor.contiguous()

    def tensor(self) -> torch.Tensor:
        """The weight as it is now."""
        latent = self.weight if self.latent else None
        weight: torch.Tensor = _Lookup.apply(self.centroids, latent, self.indices, self.kept, self.there)
        return weight

    @torch.no_grad()
    def remake(self) -> None:
        """Assign every latent weight to its nearest centroid; half way, to the lower one.

        With a rate, to the one of least squared error and price together; to zero too, where weights are masked.
        """
        if self.rate:
            self._remake_by_rate()
            return
        wide = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        values, order = torch.sort(self.centroids.detach().to(wide))
        cuts = values[:-1] + (values[1:] - values[:-1]) / 2
        self.indices = self._like_weight(
            order[torch.bucketize(self.weight.detach().to(wide).contiguous(), cuts)]
        )

    def _remake_by_rate(self) -> None:
        weights, first = self.weight.detach(), self.first
        values = self.centroids.detach()
        before = self.indices + first
        if first:
            assert self.there is not None
            values, before = torch.cat([values.new_zeros(1), values]), before.masked_fill(~self.there, 0)
        kept = weights if self.kept is None else weights[self.kept]
        unit = float(kept.square().mean()) if kept.numel() else 0.0
        zero = 0 if first else None
        found = assign_by_rate(
            weights, values, zero, self.rate * unit, start=before, kept=self.kept, rounds=1
        )
        if first:
            self.there = self._like_weight(found != 0)
        self.indices = self._like_weight((found - first).clamp_(min=0))

    @torch.no_grad()
    def codebook(self) -> Codebook:
        """The codebook as it is now, its centroids in ascending order."""
        check_finite(
            f"trained centroids of {self.name!r}",
            self.centroids,
            "lower the learning rate: a centroid's gradient is the sum over all its weights",
        )
        values, order = torch.sort(self.centroids.detach() + 0.0)
        place = torch.empty_like(order)
        place[order] = torch.arange(order.numel(), device=order.device)
        indices = place[self.indices] + self.first
        if self.first:
            values = torch.cat([values.new_zeros(1), values])
        if self.there is not None:
            indices = torch.where(self.there, indices, torch.zeros_like(indices))
        return Codebook(
            self.name,
            values.to(self.book.values.device),
            indices.contiguous().to(self.book.indices.dtype).to(self.book.indices.device),
            group=self.book.group,
            reserved=self.book.reserved,
        )


class CodebookTraining:
    """A context in which the centroids of some codebooks are a model's parameters. `Shared.train` makes it.

    `codebooks()` gives the codebooks at any time; `remake()` assigns every weight again.

    Args:
        model: The model.
        codebooks: Codebooks by parameter name.
        masks: True where a weight is kept, by parameter name.
        optimizer: An optimizer made before, in whose groups the centroids stand for the weights.
        remake_every: Assign every weight again after this many optimizer steps; None keeps assignments.
        rate: The cost of a bit when weights are assigned again.

    Attributes:
        centroids: The trained values, by the parameter's name or its group's.
    """

    def __init__(
        self,
        model: nn.Module,
        codebooks: Mapping[str, Codebook],
        masks: Mapping[str, torch.Tensor],
        optimizer: torch.optim.Optimizer | None = None,
        remake_every: int | None = None,
        rate: float = 0.0,
    ):
        if remake_every is not None and remake_every < 1:
            raise OptionError(f"remake_every: expected at least 1 step, got {remake_every}")
        check_rate(rate)
        if rate and remake_every is None:
            raise OptionError(
                f"rate: a price of bits ({rate:g}) moves weights between values; give remake_every= too"
            )
        for name, book in codebooks.items():
            if book.bound:
                raise OptionError(
                    f"{name}: {book.bound} cannot be trained; share with method='kmeans' and per='tensor', "
                    "'model' or groups"
                )
        self.model = model
        self.optimizer = optimizer
        self.remake_every = remake_every
        self.rate = rate
        self.centroids: dict[str, nn.Parameter] = {}
        self._slots = self._make_slots(codebooks, masks)
        self._homes: list[tuple[nn.Module, str, type, _Slot]] = []
        self._steps = 0
        self._hook: RemovableHandle | None = None
        self._follower: RemovableHandle | None = None
        self._followed = 0
        self._swapped: list[tuple[dict[str, list[nn.Parameter]], list[nn.Parameter]]] = []
        self._open = False

    def _make_slots(
        self, codebooks: Mapping[str, Codebook], masks: Mapping[str, torch.Tensor]
    ) -> dict[int, _Slot]:
        """One slot per tensor, by the identity of the parameter, so that tied layers share one."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        slots: dict[int, _Slot] = {}
        for name, book in codebooks.items():
            if name not in parameters:
                wrapped = f"module.{name}" in parameters
                hint = "give the model itself, and wrap it inside the block, not before" if wrapped else ""
                raise MaskMismatchError(
                    f"codebook of {name!r}: {type(self.model).__name__} has no such parameter; "
                    f"{hint or near(name, parameters)}"
                )
            weight = parameters[name]
            if tuple(weight.shape) != tuple(book.indices.shape):
                raise MaskMismatchError(
                    f"codebook of {name!r}: expected shape {tuple(book.indices.shape)}, got "
                    f"{tuple(weight.shape)} in "
                    f"{type(self.model).__name__}; are these the codebooks of another model?"
                )
            key = book.group or name
            if key not in self.centroids:
                values = book.values[1:] if book.reserved and book.values.numel() > 1 else book.values
                if book.reserved and book.values.numel() == 1:
                    continue  # every weight is masked: there is nothing to train
                self.centroids[key] = nn.Parameter(values.detach().to(weight.device, weight.dtype).clone())
            slots[id(weight)] = _Slot(name, book, weight, masks.get(name), self.centroids[key], self.rate)
        if not slots:
            raise NothingToDoError("no codebook has a centroid to train: every weight is masked")
        return slots

    # -- the block -----------------------------------------------------------------------------------------
    def __enter__(self) -> CodebookTraining:
        if self._open:
            raise OptionError("this training is open already; make another with shared.train(model)")
        for module in self.model.modules():
            for leaf, parameter in list(module._parameters.items()):
                if parameter is not None and id(parameter) in self._slots:
                    slot = self._slots[id(parameter)]
                    if isinstance(module, nn.RNNBase):
                        self._leave()
                        raise OptionError(
                            f"{slot.name}: a recurrent layer keeps its own list of weights, so its centroids "
                            "cannot be trained; leave it out with options=ShareOptions(skip=...)"
                        )
                    self._move_in(module, leaf, slot)
        self._open = True
        self._swap_in_optimizer()
        if self.remake_every is not None:
            self._hook = self.model.register_forward_pre_hook(self._count_steps)
            self._follower = register_optimizer_step_post_hook(self._follow)
            self._versions = self._version()
        return self

    def _move_in(self, module: nn.Module, leaf: str, slot: _Slot) -> None:
        """Register the centroids in place of the weight, and make the weight a property computed from them."""
        home = type(module)
        if self.remake_every is None:
            del module._parameters[leaf]
        else:
            slot.latent = True
        module._parameters[f"{leaf}_centroids"] = slot.centroids
        # As torch's parametrizations do: a class for this one module, with the weight as a property.
        names = {
            leaf: property(lambda _self: slot.tensor()),
            "__module__": home.__module__,
            "__qualname__": home.__qualname__,
        }
        module.__class__ = type(home.__name__, (home,), names)
        self._homes.append((module, leaf, home, slot))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        problem: Exception | None = None
        try:
            books = self.codebooks()
            for slot in self._slots.values():
                with torch.no_grad():
                    slot.weight.copy_(books[slot.name].tensor())
        except Exception as found:
            problem = found
        self._leave()
        if problem is not None and error is None:
            raise problem

    def _leave(self) -> None:
        """Restore every layer: its class, and its parameter under its name."""
        for module, leaf, home, slot in reversed(self._homes):
            module.__class__ = home
            order = list(module._parameters)
            del module._parameters[f"{leaf}_centroids"]
            if leaf not in module._parameters:
                # Weights come before biases in a state dict: put the parameter back in its place.
                rest = {name: module._parameters.pop(name) for name in order if name in module._parameters}
                module._parameters[leaf] = slot.weight
                module._parameters.update(rest)
        self._homes.clear()
        for group, parameters in self._swapped:
            group["params"] = parameters
        if self.optimizer is not None:
            for parameter in self.centroids.values():
                self.optimizer.state.pop(parameter, None)
        self._swapped.clear()
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if self._follower is not None:
            self._follower.remove()
            self._follower = None
        self._open = False

    def _swap_in_optimizer(self) -> None:
        """Put centroids in place of weights in the optimizer's groups until the block is left."""
        if self.optimizer is None:
            return
        added: set[int] = set()
        for group in self.optimizer.param_groups:
            before, after = group["params"], []
            for parameter in before:
                slot = self._slots.get(id(parameter))
                if slot is None or slot.latent:
                    after.append(parameter)
                if slot is not None and id(slot.centroids) not in added:
                    added.add(id(slot.centroids))
                    after.append(slot.centroids)
            self._swapped.append((group, before))
            group["params"] = after
        if not added:
            for group, before in self._swapped:
                group["params"] = before
            self._swapped.clear()
            names = ", ".join(slot.name for slot in self._slots.values())
            self._leave()
            raise OptionError(
                f"the optimizer holds none of the shared parameters ({names}); was it made for "
                "another copy of the "
                "model? make it from model.parameters(), or inside the block from training.parameters()"
            )

    # -- inside the block ----------------------------------------------------------------------------------
    def parameters(self) -> Iterator[nn.Parameter]:
        """The centroids, for an optimizer of their own."""
        return iter(self.centroids.values())

    def codebooks(self) -> dict[str, Codebook]:
        """The codebooks as they are now; one that diverged is an error that names it."""
        return {slot.name: slot.codebook() for slot in self._slots.values()}

    def remake(self) -> None:
        """Assign every weight to its nearest centroid again."""
        if self.remake_every is None:
            raise OptionError(
                "the assignments of this training are frozen; give remake_every= to shared.train"
            )
        for slot in self._slots.values():
            slot.remake()

    def _follow(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        mine = {id(parameter) for parameter in self.centroids.values()}
        if any(id(parameter) in mine for group in optimizer.param_groups for parameter in group["params"]):
            self._followed += 1

    def _version(self) -> int:
        # An optimizer step writes parameters in place, which autograd counts. Fused optimizers bypass autograd, so
        # the steps of torch's optimizers are counted as well.
        return self._followed + sum(parameter._version for parameter in self.centroids.values())

    def _count_steps(self, module: nn.Module, inputs: object) -> None:
        version = self._version()
        if version != self._versions:
            self._versions = version
            self._steps += 1
            assert self.remake_every is not None
            if self._steps % self.remake_every == 0:
                self.remake()

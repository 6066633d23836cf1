"""Training for bytes: weights are whole multiples of a learnt step, trained for accuracy and for their bits at once.

A weight is `step * level`. The level is the latent weight over the step, rounded; a gradient passes the rounding as if
it were not there (straight-through). Every weight is also pulled towards zero, by the price of a bit times the bits
that a level less saves, and by no less than a quarter of the mean over all levels down to zero. Bits are those of
`Prices`: what the file's coder would spend, estimated from how many weights of the same output, input and tap (the
position in the kernel) are not zero now. So a weight in a nearly empty row is pulled harder than one in a full row, and
whole neurons are removed first. With `biases` the biases of these layers are pulled towards zero in the same way, by
what they cost when they are rounded to that number of bits.

The price is not given: it rises while the levels take more bytes than the schedule wants, and falls while they take
fewer. The schedule is a cubic from the bytes at the start to `target` at `until` of all steps, and constant after that.
A file shrinks by itself while the learning rate falls, and hardly grows again at any price: so `ahead` more than the
schedule is wanted at the highest rate, and that many times less as the rate is below it or, where it stays high, as the
end is near. And the price follows the bytes the faster the lower the rate is, because a step then moves the levels
less. With `ahead` 0 neither is done.

>>> from torch import nn
>>> model = nn.Linear(4, 2)
>>> with torch.no_grad():
...     _ = model.weight.copy_(torch.tensor([[0.9, -0.2, 0.1, 2.2], [0.0, 0.0, -1.1, 0.0]]))
>>> with LatentTraining(model, LatentOptions(target=10, steps=100, scale=1.0)) as training:
...     levels = training.levels()["weight"]
>>> levels.tolist(), bool((model.weight != 0).sum() == 3)
([[1, 0, 0, 2], [0, 0, -1, 0]], True)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from secateur.core.targets import select
from secateur.errors import NothingToDoError, OptionError
from secateur.quantize.prices import magnitude_bits, nonzero_bits

__all__ = ["LatentOptions", "LatentTraining"]

_HALF = 0.5  # latents nearer to zero than half a step are zero
_REFUGE = 0.25  # of the mean bits of a level, that the step from a level to the next costs at least
_EVERY = 10  # optimizer steps between two estimates of the bits
# How the logarithm of the price follows that of bytes over bytes wanted: its sum over all steps, and itself.
_SLOW, _FAST = 10.0, 8.0
_MOST_FAST = math.log(100.0)  # the second of the two multiplies or divides the price by at most this
_LOW_RATE = 0.05  # of the highest rate: below it the price follows no faster
# The numbers of the controller: steps done, bytes at the start, bytes of the file over those of the levels, the slow
# part of the price, the highest learning rate so far, and the rate now as a share of it.
_DONE, _START, _RATIO, _SLOW_PART, _HIGHEST, _RATE = range(6)
_PRICES = (1e-9, 1e-2)  # the least and the highest price of a bit


@dataclass(frozen=True)
class LatentOptions:
    """How a model is trained for bytes.

    Attributes:
        target: Bytes to reach, of the whole file.
        steps: Optimizer steps of the whole training.
        until: Share of the steps after which the schedule is at the target.
        most: The largest level; levels are -most..most.
        scale: The first step of a tensor, in root mean squares of its weights that are not zero.
        price: The price of a bit at the start, in units of the loss.
        biases: Bits that the file rounds biases to; None where they are not rounded, and then they cost nothing here.
        ahead: Share of the bytes that is wanted beyond the schedule while the learning rate is at its highest; 0 for a
            schedule and a price that do not look at the rate.
    """

    target: int
    steps: int
    until: float = 0.7
    most: int = 3
    scale: float = 0.7
    price: float = 1e-6
    biases: int | None = None
    ahead: float = 0.3

    def __post_init__(self) -> None:
        for name, value, good in (
            ("target: expected at least 1 byte", self.target, self.target >= 1),
            ("steps: expected at least 1", self.steps, self.steps >= 1),
            ("until: expected a share 0 < until <= 1", self.until, 0 < self.until <= 1),
            ("most: expected 1 to 100 levels", self.most, 1 <= self.most <= 100),
            ("scale: expected a number above 0", self.scale, self.scale > 0 and math.isfinite(self.scale)),
            ("ahead: expected a share 0 <= ahead <= 1", self.ahead, 0 <= self.ahead <= 1),
            ("price: expected a number above 0", self.price, self.price > 0 and math.isfinite(self.price)),
            (
                "biases: expected 2 to 12 bits, or None",
                self.biases,
                self.biases is None or 2 <= self.biases <= 12,
            ),
        ):
            if not good:
                raise OptionError(f"{name}, got {value}")

    def wanted(self, step: int, start: float) -> float:
        """The bytes that the schedule wants at a step.

        Args:
            step: Optimizer steps done.
            start: Bytes at the start.

        >>> options = LatentOptions(target=100, steps=10, until=0.5)
        >>> [round(options.wanted(step, 900.0)) for step in (0, 1, 5, 9)]
        [900, 510, 100, 100]
        """
        left = 1.0 - min(1.0, step / (self.steps * self.until))
        return self.target + max(0.0, start - self.target) * left**3


class _Rounded(torch.autograd.Function):
    """`step * level`; backwards, straight through to the latent, and summed for the logarithm of the step."""

    @staticmethod
    def forward(ctx: Any, latent: torch.Tensor, log_step: torch.Tensor, most: int) -> torch.Tensor:
        step = log_step.exp()
        weight = _levels(latent, step, most) * step
        ctx.save_for_backward(weight)
        return weight

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return gradients[0], (gradients[0] * weight).sum(), None


def _levels(latent: torch.Tensor, step: torch.Tensor, most: int) -> torch.Tensor:
    ratio = latent / step
    level = ratio.round().clamp(-most, most)
    return torch.where(ratio.abs() < _HALF, torch.zeros_like(level), level)


class _Latent(nn.Module):
    """The parametrization of one tensor: its step is a parameter, the latent is the original."""

    def __init__(self, weight: torch.Tensor, options: LatentOptions):
        super().__init__()
        kept = weight.detach()[weight.detach() != 0]
        size = float(kept.double().square().mean().sqrt()) if kept.numel() else 1.0
        self.log_step = nn.Parameter(weight.new_tensor(math.log(size * options.scale)))
        self.most = options.most
        self.slopes: torch.Tensor | None = None

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        weight: torch.Tensor = _Rounded.apply(latent, self.log_step, self.most)
        return weight

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight

    def levels(self, latent: torch.Tensor) -> torch.Tensor:
        """The levels as whole numbers."""
        return _levels(latent.detach(), self.log_step.detach().exp(), self.most).to(torch.int16)

    def estimate(self, latent: torch.Tensor) -> float:
        """Bits of all levels; the slopes of the bits are kept for `pull`."""
        levels = self.levels(latent).abs().long()
        there = levels > 0
        nonzero, zeroed = nonzero_bits(there)
        sizes = magnitude_bits(levels, self.most).to(nonzero)
        bits = torch.where(there, nonzero + sizes[levels], zeroed)
        below = (latent.detach() / self.log_step.detach().exp()).abs().floor().clamp(max=self.most).long()
        self.slopes = _slopes(below, nonzero, zeroed, sizes)
        return float(bits.sum())

    def pull(self, latent: nn.Parameter, price: float) -> None:
        """Add the gradient of the bits to that of the latent."""
        if latent.grad is not None and self.slopes is not None:
            slope = self.slopes * torch.sign(latent.detach()) * (price / self.log_step.detach().exp())
            latent.grad.add_(slope.to(latent.grad))


def _slopes(
    below: torch.Tensor, nonzero: torch.Tensor, zeroed: torch.Tensor, sizes: torch.Tensor
) -> torch.Tensor:
    """Bits per level between each level `below` and the next, of every weight.

    Those of the next level alone, or a quarter of the mean over all levels from zero on where that is more: a second
    level that costs no more than the first would otherwise be a refuge from the price.
    """
    first = (nonzero + sizes[1] - zeroed).clamp(min=0)
    steps = torch.cat([sizes[1:] - sizes[:-1], sizes.new_zeros(1)])
    above = (below + 1).clamp(max=len(sizes) - 1)
    mean = (nonzero + sizes[above] - zeroed).clamp(min=0) / above
    return torch.where(below == 0, first, torch.maximum(steps[below], _REFUGE * mean))


class _Biases:
    """Biases that are rounded to one grid of equal steps for the whole file: what they cost, and its pull."""

    def __init__(self, biases: list[nn.Parameter], bits: int):
        self.biases, self.fineness = biases, 2.0 ** (3 - bits)
        self.slopes: torch.Tensor | None = None
        self.step = 0.0

    def _ratio(self) -> torch.Tensor:
        """The distance of every bias from zero in steps; a step is a share of the root mean square, as in the file."""
        values = torch.cat([bias.detach().reshape(-1) for bias in self.biases])
        self.step = float(values.double().square().mean().sqrt()) * self.fineness
        return values.abs() / self.step if self.step else torch.zeros_like(values)

    def estimate(self) -> float:
        """Bits of all biases; the slopes of the bits are kept for `pull`."""
        ratio = self._ratio()
        levels = ratio.round().long()
        sizes = magnitude_bits(levels, max(1, int(levels.max()))).to(ratio)
        nonzero, zeroed = nonzero_bits(levels > 0)
        below = ratio.floor().long().clamp(max=len(sizes) - 1)
        self.slopes = _slopes(below, nonzero, zeroed, sizes)
        return float(torch.where(levels > 0, nonzero + sizes[levels], zeroed).sum())

    def pull(self, price: float) -> None:
        """Add the gradient of the bits to those of the biases."""
        if self.slopes is None or not self.step:
            return
        parts = self.slopes.split([bias.numel() for bias in self.biases])
        for bias, slope in zip(self.biases, parts):
            if bias.grad is not None:
                pulled = slope.reshape(bias.shape) * torch.sign(bias.detach()) * (price / self.step)
                bias.grad.add_(pulled.to(bias.grad))

    def settle(self) -> None:
        """Make those zero that the file would round to zero."""
        parts = self._ratio().split([bias.numel() for bias in self.biases])
        for bias, ratio in zip(self.biases, parts):
            with torch.no_grad():
                bias[(ratio < _HALF).reshape(bias.shape)] = 0.0


class LatentTraining:
    """A block in which a model's weights are multiples of learnt steps, trained for accuracy and bytes.

    The model is trained inside the block with any loop; an optimizer is made inside it, from `model.parameters()`. When
    the block is left, the weights are parameters again, with the values they had inside; biases that the file would
    round to zero are zero then. Everything that the block needs to continue after an interruption is in the model's
    state dict.

    Args:
        model: The model; every weight with two or more axes that `select` finds is trained.
        options: The target and how to reach it.
        only: Layers to train so, by name or pattern; None for all.
        skip: Layers to leave alone.

    Raises:
        NothingToDoError: There is no such weight, or all are zero.
        OptionError: A weight belongs to two layers.
    """

    def __init__(
        self,
        model: nn.Module,
        options: LatentOptions,
        only: str | tuple[str, ...] | None = None,
        skip: str | tuple[str, ...] | None = None,
    ):
        self.model, self.options = model, options
        self.names = [target.name for target in select(model, only, skip)]
        _check_tied(model, self.names)
        if not any(bool((model.get_parameter(name) != 0).any()) for name in self.names):
            raise NothingToDoError(f"{type(model).__name__}: no weight to train for bytes that is not zero")
        paths = [name.rpartition(".")[0] for name in self.names]
        found = [model.get_submodule(path)._parameters.get("bias") for path in paths]
        biases = [bias for bias in found if bias is not None and options.biases is not None]
        self._biases = _Biases(biases, options.biases) if biases and options.biases is not None else None
        self.bits = 0.0
        self._done = 0
        self._hook: RemovableHandle | None = None
        self._owners: dict[str, tuple[nn.Module, str]] = {}
        self._orders: dict[str, list[str]] = {}

    # -- the block
    def __enter__(self) -> LatentTraining:
        for name in self.names:
            path, _, leaf = name.rpartition(".")
            owner = self.model.get_submodule(path)
            self._orders.setdefault(path, list(owner._parameters))
            latent = _Latent(getattr(owner, leaf), self.options)
            parametrize.register_parametrization(owner, leaf, latent, unsafe=True)
            self._owners[name] = (owner, leaf)
        # In the model's state dict, so that a checkpoint holds them.
        first = self._parts(self.names[0])[0]
        price = math.log(self.options.price)
        numbers = torch.tensor([0.0, 0.0, 1.0, price, 0.0, 1.0], dtype=torch.float64)
        first.register_buffer("controller", numbers)
        self._controller = first
        self._estimate()
        self._hook = register_optimizer_step_pre_hook(self._before_step)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if self._biases is not None and error is None:
            self._biases.settle()
        for owner, leaf in self._owners.values():
            parametrize.remove_parametrizations(owner, leaf, leave_parametrized=True)
        self._owners.clear()
        for path, order in self._orders.items():
            # Weights come before biases in a state dict: put every parameter back in its place.
            parameters = self.model.get_submodule(path)._parameters
            for name in order:
                parameters[name] = parameters.pop(name)
        self._orders.clear()

    def _parts(self, name: str) -> tuple[_Latent, nn.Parameter]:
        path, _, leaf = name.rpartition(".")
        latents = self.model.get_submodule(f"{path}.parametrizations" if path else "parametrizations")
        found = latents.get_submodule(leaf)
        return found.get_submodule("0"), found.get_parameter("original")  # type: ignore[return-value]

    @property
    def _numbers(self) -> torch.Tensor:
        return self._controller.get_buffer("controller")

    # -- the state of the block
    def levels(self) -> dict[str, torch.Tensor]:
        """The level of every weight, by tensor name."""
        return {name: part.levels(latent) for name, (part, latent) in self._all()}

    def _all(self) -> list[tuple[str, tuple[_Latent, nn.Parameter]]]:
        return [(name, self._parts(name)) for name in self._owners]

    def state(self) -> dict[str, torch.Tensor]:
        """The model's tensors by the names they have outside the block, as they would be saved now."""
        found: dict[str, torch.Tensor] = {}
        for name, value in self.model.state_dict().items():
            path, _, rest = name.rpartition("parametrizations.")
            if not _ and not rest:
                found[name] = value
                continue
            leaf, _, part = rest.partition(".")
            if path + leaf not in self._owners:
                found[name] = value
            elif part == "original":
                found[path + leaf] = getattr(*self._owners[path + leaf]).detach()
        return found

    @property
    def estimated_bytes(self) -> float:
        """Estimated bytes of the file: those of the levels, in proportion to the last file measured."""
        return self.bits / 8 * float(self._numbers[_RATIO])

    @property
    def price(self) -> float:
        """The price of a bit now, in units of the loss."""
        fast = min(max(_FAST * self._over(), -_MOST_FAST), _MOST_FAST)
        return min(max(math.exp(float(self._numbers[_SLOW_PART]) + fast), _PRICES[0]), _PRICES[1])

    def _over(self) -> float:
        """The logarithm of the bytes over those wanted now; larger where the rate is low, as a step moves less."""
        numbers, options = self._numbers, self.options
        rate = float(numbers[_RATE]) if options.ahead else 1.0
        done = int(numbers[_DONE])
        after = options.steps * (1.0 - options.until)  # steps left when the schedule is at the target
        left = min(1.0, max(0.0, options.steps - done) / max(after, 1.0))
        wanted = options.wanted(done, float(numbers[_START])) * (1.0 + options.ahead * min(rate, left))
        return math.log(max(self.estimated_bytes, 1.0) / max(wanted, 1.0)) / max(rate, _LOW_RATE)

    def measured(self, size: int) -> float:
        """Correct the estimate by a file just written; returns the estimate as it was before.

        Args:
            size: Bytes of the file.
        """
        self._estimate()
        believed = self.estimated_bytes
        numbers = self._numbers
        numbers[_RATIO] = size / max(self.bits / 8, 1.0)
        if numbers[_START] == 0:
            numbers[_START] = size
        return believed

    # -- every step
    def _estimate(self) -> None:
        self.bits = sum(part.estimate(latent) for _, (part, latent) in self._all())
        if self._biases is not None:
            self.bits += self._biases.estimate()

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        mine = {id(latent) for _, (_, latent) in self._all()}
        rates = [g["lr"] for g in optimizer.param_groups if any(id(one) in mine for one in g["params"])]
        if not rates:
            return
        numbers = self._numbers
        numbers[_HIGHEST] = max(float(numbers[_HIGHEST]), *map(float, rates))
        numbers[_RATE] = max(map(float, rates)) / float(numbers[_HIGHEST]) if numbers[_HIGHEST] else 1.0
        resumed, self._done = int(numbers[_DONE]) != self._done, int(numbers[_DONE])
        if resumed or self._done % _EVERY == 0:
            self._estimate()
        if self._done % _EVERY == 0:
            if numbers[_START] == 0:
                numbers[_START] = self.estimated_bytes
            numbers[_SLOW_PART] += _SLOW * _EVERY / self.options.steps * self._over()
            numbers[_SLOW_PART] = numbers[_SLOW_PART].clamp(*(math.log(price) for price in _PRICES))
        price = self.price
        for _, (part, latent) in self._all():
            part.pull(latent, price)
        if self._biases is not None:
            self._biases.pull(price)
        numbers[_DONE] += 1
        self._done += 1


def _check_tied(model: nn.Module, names: list[str]) -> None:
    """Raise for a weight that two layers share: each would get a copy of its own."""
    every = list(model.named_parameters(remove_duplicate=False))
    for name in names:
        weight = model.get_parameter(name)
        others = [other for other, one in every if one is weight and other != name]
        if others:
            raise OptionError(
                f"{name}: {others[0]} is the same tensor, which cannot be trained for bytes; leave it out with skip="
            )

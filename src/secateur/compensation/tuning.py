"""`Tuning` and `tune`: gradient steps that reduce the error left by least squares, still without labels.

The compressed model is trained to give the dense model's outputs, and the outputs of its blocks, on the calibration
inputs (distillation: Hinton et al. 2015; on block outputs: Romero et al. 2015). Masks are held, batch norm keeps its
statistics, dropout is off. Data that differs each time it is read (augmented images) is read again in each pass, which
prevents overfitting to a small calibration set.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn

from secateur.compensation.batches import reread, without_padding
from secateur.compensation.progress import Advance, Progress
from secateur.core.fetching import fetched
from secateur.core.nested import tensors_in
from secateur.core.targets import select
from secateur.errors import NonFiniteError, OptionError
from secateur.execution.example import Batch
from secateur.execution.processors import warn_of_slow_bfloat16

__all__ = ["FewValues", "Tuning", "blocks_of", "tune"]

_KEPT_BYTES = 1 << 30
"""Outputs of the dense model that are kept for the next pass, at most."""


class FewValues(Protocol):
    """Keeps weights at few distinct values, around every step of the optimizer."""

    def before_step(self) -> None:
        """Called after the backward pass, on the gradients."""

    def after_step(self) -> None:
        """Called after the step, on the weights."""


@dataclass(frozen=True)
class Tuning:
    """How the second stage works.

    Args:
        passes: the number of passes over the data.
        lr: the largest step of Adam, as a share of a tensor's root mean square; it rises over the first steps and falls
            by a cosine.
        blocks: the weight of the blocks' outputs relative to the model's own; 0 compares the model's outputs alone.
        precision: "fp32", or "bf16" for forward and backward under autocast.
        compare: what of the model's output is compared: a function of the output and of the inputs (a dict of keywords,
            a tuple of arguments or the one argument) that gives a tensor, or several in a list, tuple or dict; by
            default all of the output. An embedding, for example: what the model is used for.

    Raises:
        OptionError: for an option out of range.
    """

    passes: int = 10
    lr: float = 0.05
    blocks: float = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    compare: Callable[[Any, Any], Any] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.passes, bool) or not isinstance(self.passes, int) or self.passes < 1:
            raise OptionError(f"passes of Tuning: expected a whole number above 0, got {self.passes!r}")
        if not 0 < self.lr < math.inf:
            raise OptionError(f"lr of Tuning: expected a number above 0, got {self.lr!r}")
        if not 0 <= self.blocks < math.inf:
            raise OptionError(f"blocks of Tuning: expected a number of at least 0, got {self.blocks!r}")
        if self.precision not in ("fp32", "bf16"):
            raise OptionError(f"precision of Tuning: expected 'fp32' or 'bf16', got {self.precision!r}")


def blocks_of(model: nn.Module) -> list[str]:
    """The names of the modules whose outputs are compared: innermost entries of lists that hold several weights.

    Residual blocks and transformer layers are entries of an `nn.Sequential` or `nn.ModuleList`, whatever their class.

    >>> block = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    >>> blocks_of(nn.Sequential(nn.Linear(2, 2), block, nn.ReLU()))
    ['1']
    """
    weighty = {target.layer for target in select(model)}
    entries = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Sequential, nn.ModuleList)):
            entries += [f"{name}.{child}".lstrip(".") for child, _ in module.named_children()]

    def inside(entry: str) -> int:
        return sum(layer == entry or layer.startswith(entry + ".") for layer in weighty)

    found = [entry for entry in entries if inside(entry) >= 2]
    return [entry for entry in found if not any(other.startswith(entry + ".") for other in found)]


def tune(
    dense: nn.Module,
    student: nn.Module,
    data: Iterable[Any],
    batches: Sequence[Batch],
    masks: Mapping[str, torch.Tensor],
    options: Tuning,
    progress: Progress | None = None,
    values: FewValues | None = None,
) -> str:
    """Train `student`, in place, to reproduce the outputs of `dense`; returns the result as a sentence.

    Args:
        dense: the model whose outputs are the targets; in evaluation mode.
        student: the model to train; in evaluation mode, masks applied.
        data: the calibration data, read again in each pass where that is possible.
        batches: the same as first read: they replace an exhausted iterator, and the result is judged on them.
        masks: which weights remain, by name; the others stay zero.
        options: passes, step size and so on.
        progress: called after each pass.
        values: what keeps weights at few distinct values.

    Returns:
        One sentence with the error before and after. If the error did not fall, the student is unchanged.
    """
    judged = batches[:: max(1, len(batches) // 8)]
    state = {name: tensor.detach().clone() for name, tensor in student.state_dict().items()}
    before = _judge(dense, student, judged, options)
    pair = _Pair(dense, student, options, blocks_of(dense) if options.blocks else [])
    _passes(pair, data, batches, masks, values, progress)
    after = _judge(dense, student, judged, options)
    if not after < before:
        student.load_state_dict(state)
        return f"tuning did not lower the error of the outputs ({before:.4g} to {after:.4g}) and was undone"
    return f"tuning lowered the error of the outputs from {before:.4g} to {after:.4g} of their variance"


def _passes(
    pair: _Pair,
    data: Iterable[Any],
    batches: Sequence[Batch],
    masks: Mapping[str, torch.Tensor],
    values: FewValues | None,
    progress: Progress | None,
) -> None:
    """All passes of Adam over the data."""
    options, parameters = pair.options, dict(pair.student.named_parameters())
    optimizer = _optimizer(pair.student, options.lr)
    held = [(parameters[name], mask.to(parameters[name].device)) for name, mask in masks.items()]
    expected, steps, began = len(batches), 0, time.monotonic()
    base = [group["lr"] for group in optimizer.param_groups]
    again = isinstance(data, (list, tuple))  # the same batches in each pass: what the dense model gives, too
    with pair.watching():
        for turn in range(options.passes):
            losses: list[torch.Tensor] = []
            for index, batch in enumerate(batches if again else reread(data, batches, pair.dense)):
                share = (turn + min(1.0, index / expected)) / options.passes
                rate = 0.5 * (1 + math.cos(math.pi * share)) * min(1.0, (steps + 1) / 20)
                for group, lr in zip(optimizer.param_groups, base, strict=True):
                    group["lr"] = lr * rate
                loss = pair.loss(batch, index if again else None)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                if values is not None:
                    values.before_step()
                optimizer.step()
                _hold(held)
                if values is not None:
                    values.after_step()
                losses.append(loss.detach())
                steps += 1
            expected = max(1, len(losses))  # a pass may have another number of batches than the first reading
            mean = sum(fetched(losses)) / expected
            if not math.isfinite(mean):
                raise NonFiniteError(
                    f"tuning: the error of pass {turn + 1} is {mean}; take a smaller step, such as "
                    f"Tuning(lr={options.lr / 4:g})"
                )
            if progress is not None:
                left = (time.monotonic() - began) / (turn + 1) * (options.passes - turn - 1)
                progress(Advance("pass", f"pass {turn + 1}", turn + 1, options.passes, left))


def _optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Adam with a separate step for every tensor, as a share of its size."""
    groups = []
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            live = parameter.detach()[parameter.detach() != 0]
            size = float(live.float().square().mean().sqrt()) if live.numel() else 0.0
            size = min(max(size, 0.01), 0.1)
            groups.append({"params": [parameter], "lr": lr * size})
    return torch.optim.Adam(groups)


def _hold(held: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Set removed weights back to exactly zero."""
    with torch.no_grad():
        for parameter, mask in held:
            parameter.mul_(mask)


class _Pair:
    """The two models side by side; what the dense one gives is kept for batches that come again."""

    def __init__(self, dense: nn.Module, student: nn.Module, options: Tuning, watched: Sequence[str]):
        self.dense = dense
        self.student = student
        self.options = options
        self._watched = watched
        self._theirs: list[torch.Tensor] = []
        self._ours: list[torch.Tensor] = []
        self._kept: dict[int, tuple[Any, list[torch.Tensor]]] = {}
        self._room = _KEPT_BYTES
        self._device = next(student.parameters()).device.type
        if options.precision == "bf16":
            warn_of_slow_bfloat16(self._device)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While the outputs of the blocks are noted."""
        with ExitStack() as stack:
            self._ours = stack.enter_context(_outputs(self.student, self._watched))
            self._theirs = stack.enter_context(_outputs(self.dense, self._watched))
            yield

    def _goal(self, batch: Batch, index: int | None) -> tuple[Any, list[torch.Tensor]]:
        """What the dense model gives, and its blocks; computed once for a batch that has an index."""
        if index is not None and index in self._kept:
            return self._kept[index]
        self._theirs.clear()
        with torch.no_grad(), self._cast():
            found = compared(self.options, self.dense(*batch.args, **batch.kwargs), batch), list(self._theirs)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(list(found)))
        if index is not None and size <= self._room:
            self._kept[index], self._room = found, self._room - size
        return found

    def _cast(self) -> torch.autocast:
        # Without the cache: inside another autocast it would keep the weights of the first step for all steps.
        wanted = self.options.precision == "bf16"
        return torch.autocast(self._device, torch.bfloat16, enabled=wanted, cache_enabled=False)

    def loss(self, batch: Batch, index: int | None) -> torch.Tensor:
        """The error of the outputs, and of the blocks' outputs, each as a share of its variance."""
        goal, theirs = self._goal(batch, index)
        self._ours.clear()
        with self._cast():
            got = compared(self.options, self.student(*batch.args, **batch.kwargs), batch)
        loss = difference(goal, got, batch)
        if theirs and len(theirs) == len(self._ours):
            # experts may get other tokens than in the dense model, so that their outputs are no targets
            alike = [(a, b) for a, b in zip(theirs, self._ours, strict=True) if a.shape == b.shape]
            if alike:
                parts = [difference(a, b, batch) for a, b in alike]
                loss = loss + self.options.blocks * torch.stack(parts).mean()
        return loss


def compared(options: Tuning, output: Any, batch: Batch) -> Any:
    """What of an output is compared."""
    return output if options.compare is None else options.compare(output, batch.example)


def difference(goal: Any, got: Any, batch: Batch) -> torch.Tensor:
    """The mean squared difference of all floating-point tensors, each divided by its variance; padding left out."""
    parts = []
    for one, two in zip(tensors_in(goal), tensors_in(got), strict=True):
        if not one.is_floating_point() or one.shape != two.shape:
            continue
        one, two = (without_padding(each.float(), batch) for each in (one, two))
        spread = (one - one.mean()).square().mean().clamp_min(1e-12)
        parts.append((one - two).square().mean() / spread)
    if not parts:
        raise OptionError(
            "tuning: the model's outputs hold no floating-point tensor to compare; leave tune= out"
        )
    return torch.stack(parts).mean()


def _judge(dense: nn.Module, student: nn.Module, batches: Sequence[Batch], options: Tuning) -> float:
    """The mean error of the outputs over some batches."""
    found = []
    with torch.no_grad():
        for batch in batches:
            one, two = (
                compared(options, model(*batch.args, **batch.kwargs), batch) for model in (dense, student)
            )
            found.append(difference(one, two, batch))
    return sum(fetched(found)) / len(found)


@contextmanager
def _outputs(model: nn.Module, names: Sequence[str]) -> Iterator[list[torch.Tensor]]:
    """A list that fills with the outputs of the named modules whenever the model runs."""
    found: list[torch.Tensor] = []

    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        first = next((t for t in tensors_in(output) if t.is_floating_point()), None)
        if first is not None:
            found.append(first)

    handles = [model.get_submodule(name).register_forward_hook(note) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()

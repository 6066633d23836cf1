"""Activation: how often, or how strongly, a layer's output is active on data without labels.

Hu et al. 2016, "Network Trimming" (the average percentage of zeros, APoZ); Molchanov et al. 2017, "Pruning
Convolutional Neural Networks for Resource Efficient Inference" (mean activation).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from secateur.core.context import Context
from secateur.core.scores import Scores
from secateur.core.targets import Target
from secateur.criteria import Criterion
from secateur.criteria._outputs import layers_of, norm_after, spread
from secateur.errors import DataError, OptionError
from secateur.execution.example import read_batch
from secateur.execution.gradients import accumulator_dtype, batches, explained, move
from secateur.execution.undisturbed import undisturbed

__all__ = ["Activation"]

_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "none": lambda x: x,
}


@dataclass(frozen=True)
class Activation(Criterion):
    """A statistic of each output of a layer over examples and positions; a unit scores the mean over its weights.

    Outputs are read after the batch norm that directly takes them, if there is one, and through `function`: the
    non-linearity that follows in the model. Embeddings and bare parameters have no score.

    Args:
        of: "apoz" scores the share of values that are not zero (1 - APoZ), "mean" the mean absolute value.
        function: "relu", "gelu", "silu" or "none".

    >>> from secateur.core.targets import select
    >>> model = nn.Linear(1, 2, bias=False); _ = model.weight.data.copy_(torch.tensor([[1.0], [-3.0]]))
    >>> context = Context(data=[torch.tensor([[1.0], [2.0], [3.0], [-4.0]])])
    >>> [Activation(of).scores(model, select(model), context)["weight"].flatten().tolist() for of in ("apoz", "mean")]
    [[0.75, 0.25], [1.5, 3.0]]
    """

    needs_data: ClassVar[bool] = True
    needs_loss: ClassVar[bool] = False
    rescore: ClassVar[bool] = True
    of_layers: ClassVar[bool] = True
    of_outputs: ClassVar[bool] = True

    of: str = "apoz"
    function: str = "relu"

    def __post_init__(self) -> None:
        if self.of not in ("apoz", "mean"):
            raise OptionError(f"of: expected 'apoz' or 'mean', got {self.of!r}")
        if self.function not in _FUNCTIONS:
            raise OptionError(f"function: expected one of {', '.join(_FUNCTIONS)}, got {self.function!r}")

    def scores(self, model: nn.Module, targets: Sequence[Target], context: Context) -> Scores:
        """The statistic of each weight's output."""
        layers = layers_of(targets)
        reference = next(model.parameters())
        with undisturbed(model, mode="eval"), torch.no_grad():
            counted = _Statistics(model, layers, self)
            first: Any = None
            for index, raw in enumerate(batches("activation", context)):
                batch = read_batch(raw, index, labels_apart=True, model=model)
                call = move((batch.args, batch.kwargs), reference.device, reference.dtype)
                with explained(f"activation: {type(model).__name__} failed on batch {index}", *call):
                    if first is None:
                        first = call
                        counted.watch(norm_after(model, layers, call))
                    model(*call[0], **call[1])
            counted.close()
        return Scores(spread(counted.means(), layers))

    def reduce(self, units: torch.Tensor) -> torch.Tensor:
        """The mean over a unit's weights."""
        return units.float().mean(dim=1) if units.dtype.itemsize < 4 else units.mean(dim=1)


class _Statistics:
    """Sums over the outputs of layers while the model runs."""

    def __init__(self, model: nn.Module, layers: Mapping[str, Target], rule: Activation):
        self.model, self.layers, self.rule = model, layers, rule
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}
        self._handles: list[Any] = []

    def watch(self, norms: Mapping[str, str]) -> None:
        """Record the output of every layer, or of the norm after it."""
        for layer in self.layers:
            module = self.model.get_submodule(norms.get(layer, layer))
            self._handles.append(module.register_forward_hook(self._hook(layer)))

    def _hook(self, layer: str) -> Any:
        target, function = self.layers[layer], _FUNCTIONS[self.rule.function]
        # after it, a convolution's positions
        channels = -1 if target.kind == "linear" else 1 - len(target.shape)

        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            active = function(output).movedim(channels, 0).flatten(1)
            value = (active != 0) if self.rule.of == "apoz" else active.abs()
            total = value.to(accumulator_dtype(value.device)).sum(1)
            self.sums[layer] = self.sums[layer] + total if layer in self.sums else total
            self.counts[layer] = self.counts.get(layer, 0) + active.shape[1]

        return hook

    def close(self) -> None:
        """Stop recording."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def means(self) -> dict[str, torch.Tensor]:
        """The mean by output of every layer."""
        silent = [layer for layer in self.layers if layer not in self.sums]
        if silent:
            raise DataError(
                f"activation: {', '.join(map(repr, silent[:5]))}: never run as a layer on this data, so its outputs "
                "are unknown; leave it out with skip=[...]"
            )
        return {layer: (total / self.counts[layer]).float() for layer, total in self.sums.items()}

"""Distillation terms that compare layers of student and teacher, in addition to their output probabilities. One file
each. In go the outputs of a layer of the student and of one of the teacher, for the same images; out comes a scalar
that is added to the loss, times `weight`. Training steps take a list of them as `distill`.

>>> registry.make("features", weight=2.0).compare(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]])).item()
2.0
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from secateur.errors import OptionError, PatternError, near
from secateur.registry import Registry

__all__ = ["Distillation", "Recorded", "recorded", "registry"]


@dataclass(frozen=True)
class Distillation(ABC):
    """The base class of all terms: a frozen value with `compare`.

    Args:
        layers: Names of layers, alike in both networks, or a table of the student's names to the teacher's; none: the
            outputs of the networks.
        weight: The weight of the term in the loss; the term is averaged over the layers.
    """

    layers: Mapping[str, str] | Sequence[str] = ()
    weight: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.layers, str):
            object.__setattr__(self, "layers", (self.layers,))
        pairs = (
            self.layers.items() if isinstance(self.layers, Mapping) else ((one, one) for one in self.layers)
        )
        object.__setattr__(self, "layers", tuple(pairs))
        if not self.weight > 0:
            raise OptionError(f"distill: weight: expected a number above 0, got {self.weight}")

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The pairs of a student's and a teacher's layer; ("", "") means the outputs."""
        return tuple(self.layers) or (("", ""),)  # type: ignore[arg-type]

    @abstractmethod
    def compare(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """How far the student's layer is from the teacher's: a scalar.

        Args:
            student: The output of the student's layer.
            teacher: The output of the teacher's layer for the same images.
        """

    def _same(self, student: torch.Tensor, teacher: torch.Tensor, what: str) -> None:
        """Raise unless shapes agree."""
        if student.shape != teacher.shape:
            raise OptionError(
                f"distill: {what}: expected equal shapes, got {tuple(student.shape)} of the student and "
                f"{tuple(teacher.shape)} of the teacher; name other layers, or take similarity"
            )


class Recorded:
    """The outputs of the named layers of a network in its last forward pass."""

    def __init__(self) -> None:
        self.outputs: dict[str, torch.Tensor] = {}

    def of(self, layer: str) -> torch.Tensor:
        """The output of a layer."""
        if layer not in self.outputs:
            raise OptionError(
                f"distill: layer {layer!r} did not run, or its output is not a tensor; name another one"
            )
        return self.outputs[layer]


@contextmanager
def recorded(model: nn.Module, layers: Sequence[str], whose: str) -> Iterator[Recorded]:
    """Record the outputs of layers while the block runs.

    Args:
        model: The network.
        layers: The names of the layers.
        whose: The network, for the error's text.

    Raises:
        PatternError: There is no such layer.
    """
    found = Recorded()
    modules = dict(model.named_modules())

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, torch.Tensor):
                found.outputs[name] = first

        return hook

    for name in layers:
        if name not in modules:
            raise PatternError(f"distill: the {whose} has no layer {name!r}: {near(name, list(modules))}")
    handles = [modules[name].register_forward_hook(note(name)) for name in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


registry = Registry(
    __name__,
    __path__,
    "distillation",
    base="secateur.lab.training.distill:Distillation",
    suffix="Distillation",
)


def __getattr__(name: str) -> object:
    return registry.attribute(name)

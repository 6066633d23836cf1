"""The inputs of a proof: the example, and others of other shapes, each with the modes it is run in.

>>> import torch
>>> from torch import nn
>>> [(each.what, each.shapes) for each in proof_inputs(nn.Linear(4, 2), torch.randn(3, 4), ProofOptions(), "meta")]
[('example', ((3, 4),)), ('batch', ((1, 4),))]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from secateur.core.nested import map_tensors, tensors_in
from secateur.execution.example import Example, own_call
from secateur.structure.cut.branches import LargerInputs, branching_example
from secateur.structure.proof import ProofOptions, Shapes
from secateur.structure.trace.flags import flag_runs
from secateur.structure.trace.in_training import reads_training, training_examples
from secateur.structure.trace.other_shapes import other_shapes, shapes_of
from secateur.structure.trace.refused import Refused
from secateur.structure.trace.trace import Trace

__all__ = ["ProofInput", "affordable", "proof_inputs"]


_EXTRA, _DEAR = 1.5, 2.0
"""How many times the example's elements may be run beside it; and how many by one other input."""


@dataclass(frozen=True)
class ProofInput:
    """An input and the modes it is to be run in; `spare` is another one to use where the dense model refuses it.

    `own_call` says whether it is what the user says that the model is called with in training; `recorded` is the
    recording of a flag the other way round, and `flag` that flag and its value.
    """

    what: str
    example: Example
    modes: tuple[str, ...]
    spare: Example = None
    own_call: bool = False
    recorded: Trace | None = None
    flag: str = ""

    @property
    def shapes(self) -> Shapes:
        """The shapes of its tensors."""
        return shapes_of(self.example)


def _varied(example: Example) -> Example:
    """The example, with random values for tensors of one value: `torch.zeros` would hide most differences."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        if (
            not tensor.is_floating_point()
            or not tensor.numel()
            or bool((tensor != tensor.flatten()[0]).any())
        ):
            return tensor
        generator = torch.Generator().manual_seed(0)
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)

    return map_tensors(change, example)


def _fresh(example: Example) -> Example:
    """The example with other values, drawn from its own, so that they are as valid as those.

    Masks and lists of whole numbers (lengths, offsets) depend on their order, and do not change.
    """
    generator = torch.Generator().manual_seed(1)

    def change(tensor: torch.Tensor) -> torch.Tensor:
        real = tensor.is_floating_point() or tensor.is_complex()
        if not tensor.numel() or not (real or (tensor.dim() > 1 and bool((tensor > 1).any()))):
            return tensor
        chosen = torch.randint(tensor.numel(), (tensor.numel(),), generator=generator).to(tensor.device)
        return tensor.flatten()[chosen].reshape(tensor.shape)

    return map_tensors(change, example)


def proof_inputs(
    model: nn.Module,
    example: Example,
    options: ProofOptions,
    traced: str,
    larger: LargerInputs | None = None,
    refused: list[Refused] | None = None,
    recorded: Trace | None = None,
) -> list[ProofInput]:
    """The inputs to run and the modes of each.

    Args:
        model: The dense model; it is not changed.
        example: What it is called with.
        options: The options of the proof.
        traced: How the model can be recorded: "meta" or "real".
        larger: Its larger inputs as far as they have been recorded; None where they have not.
        refused: A list that the shapes are added to which the model does not accept; or None.
        recorded: Its recording on the example; None where there is none.
    """
    flagged = flag_runs(recorded, model, example) if recorded is not None and options.other_shapes else ()
    example = _varied(example)
    further = [
        ProofInput("flag", _varied(each.example), options.modes, recorded=each.trace, flag=each.said)
        for each in flagged
    ]
    further += training_input(model, example, options)
    found = [ProofInput("example", example, options.modes)]
    if not options.other_shapes:
        return [*found, *further]
    shapes = other_shapes(model, example, traced, refused)
    others = [ProofInput(each.what, _fresh(each.example), options.modes, each.example) for each in shapes]
    if not others:
        others = [ProofInput("fresh", _fresh(example), options.modes, example)]
    made = [*found, *others] if options.every else affordable([*found, *others])
    known = [each.path for each in shapes]
    branching = None
    if traced == "meta":
        branching = branching_example(model, example, known, options.every, larger)
    made += further
    if branching is None:
        return made
    modes = options.modes if options.every else options.modes[-1:]
    return [*made, ProofInput("size", _fresh(branching), modes, branching)]


def training_input(model: nn.Module, example: Example, options: ProofOptions) -> Iterator[ProofInput]:
    """The input of the check in training: none where it is not asked for, or is no other than in evaluation mode."""
    if own_call(options.training):
        yield ProofInput("training", options.training, ("train",), own_call=True)
    elif options.training and options.every and "train" not in options.modes and reads_training(model):
        first, *others = training_examples(example)
        yield ProofInput("training", first, ("train",), others[0] if others else None)


def affordable(inputs: Sequence[ProofInput]) -> list[ProofInput]:
    """The inputs, the example first, each in as many modes as keep all further runs about as cheap as the first.

    Every input is run in its last mode (without gradients), as far as that is affordable; then the cheapest in the
    other modes as well.
    """
    size = max(1, _elements(inputs[0]))
    costs = [_elements(each) / size for each in inputs]
    modes = [list(inputs[0].modes[:1]), *([] for _ in inputs[1:])]
    left = _EXTRA
    for index in range(1, len(inputs)):
        if costs[index] <= max(left, _DEAR if index == 1 else 0.0):
            modes[index].append(inputs[index].modes[-1])
            left -= costs[index]
    for index in sorted(range(len(inputs)), key=lambda index: (costs[index], index)):
        for mode in inputs[index].modes if modes[index] else ():
            if mode not in modes[index] and costs[index] <= left:
                modes[index].append(mode)
                left -= costs[index]
    return [
        replace(each, modes=tuple(mode for mode in each.modes if mode in chosen))
        for each, chosen in zip(inputs, modes)
        if chosen
    ]


def _elements(each: ProofInput) -> int:
    return sum(tensor.numel() for tensor in tensors_in(each.example))

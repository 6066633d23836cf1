"""`bypass_`: let blocks of a model return their input as their output, in place, by hooks.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
>>> x = torch.randn(1, 2)
>>> taken_off = bypass_(model, ["1"])
>>> torch.equal(model(x), model[0](x))
True
>>> taken_off(); torch.equal(model(x), model[0](x))
False
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from secateur.core.nested import map_tensors, tensors_in

__all__ = ["bypass_", "stream_of"]


def bypass_(model: nn.Module, paths: Iterable[str]) -> Callable[[], None]:
    """Let blocks return their input: the first output of a block is replaced by its input of the same shape.

    torch's encoders around these blocks make no nested tensor of a padded batch meanwhile: only layers without hooks
    take one.

    Args:
        model: The model; hooks are put on its blocks.
        paths: The dotted names of the blocks.

    Returns:
        A function that removes the hooks.
    """
    handles, blocks = [], list(paths)
    nesting = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.TransformerEncoder)
        and getattr(module, "use_nested_tensor", False)
        and any(not name or path.startswith(f"{name}.") for path in blocks)
    ]
    for encoder in nesting:
        encoder.use_nested_tensor = False
    for path in blocks:
        block, kept = model.get_submodule(path), _Kept()
        handles.append(block.register_forward_pre_hook(kept.before, with_kwargs=True))
        handles.append(block.register_forward_hook(kept.after))

    def take_off() -> None:
        for handle in handles:
            handle.remove()
        for encoder in nesting:
            encoder.use_nested_tensor = True

    return take_off


def stream_of(
    inputs: Iterable[torch.Tensor], output: object
) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """The input and the output of a block that form the stream: the first two floating-point tensors of one shape.

    Args:
        inputs: The tensors that the block was called with.
        output: Its output.
    """
    given = [each for each in inputs if each.is_floating_point()]
    for out in tensors_in(output):
        for each in given:
            if out.is_floating_point() and each.shape == out.shape:
                return each, out
    return None, None


class _Kept:
    """The inputs of a block until it has run; by thread, because several passes may run at once."""

    def __init__(self) -> None:
        self.inputs: dict[int, list[torch.Tensor]] = {}

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        copies = [each.clone() for each in tensors_in([list(args), kwargs])]  # a block may write to its input
        self.inputs[threading.get_ident()] = copies

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        taken, given = stream_of(self.inputs.pop(threading.get_ident(), []), output)
        return output if taken is None else map_tensors(lambda each: taken if each is given else each, output)

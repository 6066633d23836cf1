"""`check_connected`: raise, before any training, if masks disconnect the network.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
>>> crossed = Masks({"0.weight": torch.tensor([[True, True], [False, False]]),
...                  "2.weight": torch.tensor([[False, True], [False, True]])})
>>> for collapse in find_collapsed(model, crossed, example=torch.ones(1, 2)):
...     print(collapse)
2: no signal comes out of it: its remaining weights read only removed outputs
"""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.core.masks import Masks, count_true
from secateur.core.nested import tensors_in
from secateur.core.out_of_memory import raise_if_out_of_memory
from secateur.core.user_warnings import warn
from secateur.errors import CollapseError, TraceError
from secateur.execution.calling import fused_attention_off
from secateur.execution.fast_copy import copy_module, tensors_of
from secateur.execution.verb import verb
from secateur.structure.depth.blocks import NORMALISED, RemovableBlock
from secateur.structure.depth.leaving import dropped_blocks

__all__ = [
    "FAINT",
    "Collapse",
    "check_connected",
    "find_collapsed",
    "raise_if_disconnected",
    "rescale_",
    "signal_left",
]

FAINT = 1e-6
"""Below this share of its signal a network does not learn: gradients fall below the epsilon of optimizers."""

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (*_CONV, nn.Linear, nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True)
class Collapse:
    """One layer disconnected by a mask: `kind` is "empty" (no weight remains) or "silent" (no signal comes out).

    `fatal` says that the network's output no longer depends on its input because of it. A silent layer in a
    branch beside a shortcut is not fatal.
    """

    layer: str
    kind: str
    fatal: bool = True

    def __str__(self) -> str:
        if self.kind == "empty":
            return f"{self.layer}: nothing is left of it"
        return f"{self.layer}: no signal comes out of it: its remaining weights read only removed outputs"


def find_collapsed(model: nn.Module, masks: Masks, example: object = None) -> list[Collapse]:
    """Every layer that the masks disconnect, in the model's order; raises nothing.

    Without an `example` only layers without weights are found. With one (a tensor, a tuple of arguments
    or a dict of keywords) a copy of the model is run on ones with weights of 1 and 0, so that a layer is found silent
    when every path to it is cut, and blocks that are removed whole do not count as layers without weights. Shapes alone
    matter in the example, not its numbers.
    """
    return _collapsed(model, masks, example)[0]


def _collapsed(
    model: nn.Module, masks: Masks, example: object
) -> tuple[list[Collapse], tuple[RemovableBlock, ...]]:
    """The layers that the masks disconnect, and the blocks that are removed whole."""
    masks.check(model)
    # A tensor that never held a weight has lost none.
    empty = [
        name
        for name, mask in masks.items()
        if not _is_bias(name) and mask.numel() > 0 and count_true(mask) == 0
    ]
    # Blocks that are removed whole pass on their input.
    leave = _leaving(model, masks, example) if empty and example is not None else ()
    whole = {name for block in leave for name in block.parameters}
    empty = [name for name in empty if name not in whole]
    found = [Collapse(name, "empty") for name in empty]
    if example is None:
        return found, leave
    return found + _silent(model, masks, example, leave, empty), leave


def _silent(
    model: nn.Module, masks: Masks, example: object, leave: Sequence[RemovableBlock], empty: Sequence[str]
) -> list[Collapse]:
    """The layers that no signal reaches or leaves.

    Args:
        model: The model.
        masks: The masks.
        example: What the model is called with.
        leave: The blocks that are removed whole: their layers are not judged.
        empty: The masks that keep nothing: their layers are named already.
    """
    signal = {
        layer: alive
        for layer, alive in _signal(model, masks, example).items()
        if not any(f"{layer}.".startswith(f"{block.path}.") for block in leave)
    }
    quiet = [layer for layer, alive in signal.items() if not alive]
    if quiet:
        # A layer that is silent without any mask as well (zeros by design) is no evidence.
        dense = _signal(model, None, example)
        quiet = [layer for layer in quiet if dense.get(layer, False)]
    if not quiet:
        return []
    fatal = quiet[-1] == list(signal)[-1]
    emptied = {name.rpartition(".")[0] for name in empty}
    return [Collapse(layer, "silent", fatal) for layer in quiet if layer not in emptied]


def _leaving(model: nn.Module, masks: Masks, example: object) -> tuple[RemovableBlock, ...]:
    """The blocks that are removed whole; none if the forward cannot be recorded."""
    try:
        return dropped_blocks(model, masks, example)
    except TraceError:
        return ()


@verb
def check_connected(model: nn.Module, masks: Masks, example: object = None) -> None:
    """Raise a `CollapseError` if masks leave a layer without weights, or no path from input to output.

    A layer without output is accepted where a shortcut around it still passes a signal.

    Args:
        model: The model; it is not changed.
        masks: The masks to check.
        example: An input. With it the forward pass is followed: see `find_collapsed`.

    Raises:
        CollapseError: The masks disconnect the network.

    >>> model = nn.Linear(2, 2)
    >>> check_connected(model, Masks({"weight": torch.zeros(2, 2, dtype=torch.bool)}))
    Traceback (most recent call last):
    ...
    secateur.errors.CollapseError: the masks disconnect the network: nothing is left of 'weight'. Keep some
    of ...
    """
    raise_if_disconnected(model, masks, example)


def raise_if_disconnected(model: nn.Module, masks: Masks, example: object = None) -> None:
    """The work of `check_connected`, for verbs that call it: they have recorded the model's state already."""
    found, leave = _collapsed(model, masks, example)
    past = [block.path for block in leave if block.kind == NORMALISED]
    if past:
        warn(
            f"a norm or activation follows the addition in {_listed(past)}: zeros there do not give the model that "
            "shrink makes; shrink before retraining, or work on sc.bypassed(model, masks, example)",
        )
    empty = [collapse.layer for collapse in found if collapse.kind == "empty"]
    silent = [collapse.layer for collapse in found if collapse.kind == "silent" and collapse.fatal]
    parts = []
    if empty:
        parts.append(f"nothing is left of {_listed(empty)}")
    if silent:
        after = f" (nor of {len(silent) - 1} layers after it)" if len(silent) > 1 else ""
        parts.append(f"no signal from the input comes out of {silent[0]!r}{after}")
    if not parts:
        return
    raise CollapseError(
        f"the masks disconnect the network: {'; '.join(parts)}. Keep some of every layer with at_least=1, ask "
        "for a smaller sparsity, or use criterion='synflow' with schedule=Exponential(100), which avoids this; "
        "allow_collapse=True accepts the masks"
    )


@torch.no_grad()
def signal_left(model: nn.Module, masks: Masks, inputs: torch.Tensor, rescale: bool = False) -> float:
    """How much the outputs of these inputs differ from each other under the masks, as a share of the same without
    masks. With `rescale`, for the network after `rescale_`.

    A network whose layers are all connected may still give the same output for every input: every layer that loses
    weights weakens the signal, and in a deep one without normalisation nothing measurable remains. Below `FAINT` the
    gradients are too small for training.

    >>> _ = torch.manual_seed(0)
    >>> layers = [nn.Linear(50, 50, bias=False) for _ in range(12)]
    >>> model = nn.Sequential(*layers)
    >>> masks = Masks({f"{i}.weight": torch.rand(50, 50) < 0.1 for i in range(12)})
    >>> 1e-8 < signal_left(model, masks, torch.randn(8, 50)) < 1e-4
    True
    >>> 0.1 < signal_left(model, masks, torch.randn(8, 50), rescale=True) < 10
    True
    """
    masks.check(model)
    probe = copy.deepcopy(model).eval()

    def spread() -> float:
        outputs = probe(inputs)
        first = outputs if isinstance(outputs, torch.Tensor) else next(iter(tensors_in(outputs)))
        return float(first.double().std(dim=0).mean())

    dense = spread()
    if rescale:
        rescale_(probe, masks)
    masks.apply_(probe)
    return spread() / dense if dense > 0 else 0.0


@torch.no_grad()
def rescale_(model: nn.Module, masks: Masks) -> None:
    """Scale the weights that each tensor will keep so that their sum of squares is that of the whole tensor; before
    masking. A layer's outputs then keep about their size, so that a network pruned before training can learn.

    >>> layer = nn.Linear(2, 1, bias=False); _ = layer.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
    >>> rescale_(layer, Masks({"weight": torch.tensor([[True, False]])})); layer.weight.data
    tensor([[5.0000, 6.6667]])
    """
    masks.check(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        weight = parameters[name]
        wide = weight.detach().to(torch.float32 if weight.device.type == "mps" else torch.float64).square()
        kept = float((wide * mask.to(weight.device)).sum())
        if kept > 0:
            weight.mul_((float(wide.sum()) / kept) ** 0.5)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(repr(name) for name in names[:8]) + more


def _is_bias(name: str) -> bool:
    """Whether a parameter is a bias: all biases may be removed, because a bias is not a path."""
    return name.rpartition(".")[2].endswith("bias")


@torch.no_grad()
def _signal(model: nn.Module, masks: Masks | None, example: object) -> dict[str, bool]:
    """Whether anything but zero comes out of each layer, in the order the layers ran, when ones go in.

    Overflow is avoided by mapping every output to 0 or 1. Normalisation would turn equal numbers into zeros, so it is
    skipped; biases are 0, so that only the input can make a signal.
    """
    probe = _probe(model, masks)
    signal = _Signal()
    for name, module in probe.named_modules():
        if isinstance(module, _LAYERS) or _is_conv1d(module):
            module.register_forward_hook(signal.watch(name))
        elif _is_norm(module):
            module.register_forward_hook(_pass_by)
        else:
            module.register_forward_hook(signal.flatten)
    try:
        args, kwargs = _call(example, next(probe.parameters()).device)
        with fused_attention_off():  # its padded batches are nested tensors, which few operators take
            probe(*args, **kwargs)
    except Exception as error:
        raise_if_out_of_memory(error)
        reason = textwrap.shorten(str(error), 200, placeholder=" ...")
        warn(
            f"the paths through {type(model).__name__} could not be followed, only its layers were checked one by "
            f"one: the forward pass on the example failed ({type(error).__name__}: {reason})",
        )
        return {}
    return signal.alive


def _probe(model: nn.Module, masks: Masks | None) -> nn.Module:
    """A copy of the model with weights of 1 and 0 in place of its own, which are never copied."""
    memo: dict[int, Any] = {}
    for name, tensor in tensors_of(model).items():
        if id(tensor) in memo or not isinstance(tensor, nn.Parameter):
            continue
        new = torch.empty_like(tensor, requires_grad=False)
        if masks is not None and name in masks:
            new.copy_(masks[name])
        else:
            new.fill_(0.0 if _is_bias(name) else 1.0)
        memo[id(tensor)] = nn.Parameter(new, requires_grad=tensor.requires_grad)
    return copy_module(model, memo).eval()


def _binary(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.ne(0).to(tensor.dtype) if tensor.is_floating_point() else tensor


class _Signal:
    """The hooks that map outputs to 0 and 1. `alive` says of each layer, in the order they ran, whether a 1 came out.

    The output of a module is often that of its last part, which is mapped already. Unless it was changed in place since
    then, it is left as it is.
    """

    def __init__(self) -> None:
        self.alive: dict[str, bool] = {}
        self._mapped: tuple[torch.Tensor | None, int | None] = None, None

    def watch(self, name: str) -> Any:
        """The hook of a layer."""

        def hook(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
            output = self._map(output)
            # A layer used several times is alive when it is alive once; it counts where it ran last.
            self.alive[name] = self.alive.pop(name, False) or bool(torch.count_nonzero(output))
            return output

        return hook

    def flatten(self, module: nn.Module, args: object, output: object) -> Any:
        """The hook of a module that is no layer."""
        return self._map(output) if isinstance(output, torch.Tensor) else None

    def _map(self, output: torch.Tensor) -> torch.Tensor:
        mapped, version = self._mapped
        if output is mapped and version is not None and output._version == version:
            return output
        output = _binary(output)
        self._mapped = output, None if output.is_inference() else output._version
        return output


def _pass_by(module: nn.Module, args: tuple[object, ...], output: object) -> torch.Tensor | None:
    if args and isinstance(args[0], torch.Tensor) and isinstance(output, torch.Tensor):
        return args[0] if args[0].shape == output.shape else _binary(output)
    return None


def _is_norm(module: nn.Module) -> bool:
    """A normalisation by its class's name, as every library has its own; never a wrapper of other layers."""
    return "norm" in type(module).__name__.lower() and not any(
        isinstance(inner, _LAYERS) or _is_conv1d(inner) for inner in module.modules()
    )


def _is_conv1d(module: nn.Module) -> bool:
    """The linear layer of transformers' GPT-2."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _call(example: object, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example as (arguments, keywords), with ones for every floating-point number."""

    def ones(value: object) -> Any:
        if isinstance(value, torch.Tensor):
            value = value.to(device)
            return torch.ones_like(value) if value.is_floating_point() else value
        if isinstance(value, (tuple, list)):
            return type(value)(ones(item) for item in value)
        return value

    if isinstance(example, Mapping):
        return (), {key: ones(value) for key, value in example.items()}
    if isinstance(example, (tuple, list)):
        return tuple(ones(item) for item in example), {}
    return (ones(example),), {}

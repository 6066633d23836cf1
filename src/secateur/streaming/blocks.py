"""`BlockModel`: a model on the meta device of which one block at a time has weights, read from a checkpoint.

The blocks of a transformer are the items of its largest `nn.ModuleList`. The other layers (embeddings, norms) are
loaded when they are called. One pass with stubs in place of the blocks records how each of them is called; after that a
block is run by itself, on the outputs of the block before it.

>>> from torch import nn
>>> class Net(nn.Module):
...     def __init__(self):
...         super().__init__()
...         self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
>>> blocks_of(Net())
'layers'
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.container.arrays import to_tensor
from secateur.container.checkpoint import Checkpoint
from secateur.core.out_of_memory import raise_if_out_of_memory
from secateur.errors import MaskMismatchError, MissingExtraError, OptionError, near
from secateur.execution.example import Batch
from secateur.streaming.skeleton import OTHER_MODEL
from secateur.streaming.tied import names_of, with_ties
from secateur.structure.hf.auto_classes import auto_class
from secateur.structure.hf.hub_code import check_attention

__all__ = ["BlockCall", "BlockModel", "blocks_of", "meta_model"]

_HIDDEN = "hidden_states"
_LANGUAGE = "AutoModelForCausalLM"


def meta_model(folder: str | os.PathLike[str]) -> nn.Module:
    """The model that a Hugging Face folder is of, with its parameters on the meta device; no code of the folder runs.

    Args:
        folder: The folder, with its config.json.

    Raises:
        OptionError: There is no config.json, or transformers does not know the model.
        MissingExtraError: transformers is not installed.
    """
    if not (Path(folder) / "config.json").is_file():
        raise OptionError(
            f"{folder}: has no config.json that says which model it is; pass the model on the meta device: "
            "sc.BlockOptions(model=model)"
        )
    try:
        import transformers
    except ImportError:
        raise MissingExtraError(
            "reading a Hugging Face folder needs transformers: pip install 'secateur[transformers]'"
        ) from None
    from accelerate import init_empty_weights

    try:
        config = transformers.AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        check_attention(config, str(folder))
        kind = getattr(transformers, _builder(config, str(folder)))
        with init_empty_weights(include_buffers=False):
            model: nn.Module = kind.from_config(config, trust_remote_code=False)
    except OptionError:  # of `check_attention`
        raise
    except Exception as error:  # transformers raises whatever the values of a changed file lead to
        raise_if_out_of_memory(error)
        raise OptionError(
            f"{folder}: transformers makes no model of its config.json ({str(error)[:200]}); pass the "
            "model on the meta device: sc.BlockOptions(model=model)"
        ) from None
    return model.eval()


def _builder(config: Any, where: str) -> str:
    """The AutoModel class of a configuration; that of language models for a class that transformers does not have."""
    try:
        return auto_class(config, where, default=_LANGUAGE)
    except OptionError:
        return _LANGUAGE


def blocks_of(model: nn.Module) -> str:
    """The name of the list of blocks: the `nn.ModuleList` with the most weights.

    Args:
        model: The model.

    Raises:
        OptionError: The model has no such list.
    """
    sizes = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module)
    }
    if not sizes:
        raise OptionError(
            f"{type(model).__name__} keeps no blocks in an nn.ModuleList; name the list: sc.BlockOptions(blocks=...)"
        )
    return max(sizes, key=lambda name: sizes[name])


@dataclass(frozen=True)
class BlockCall:
    """The call of one block on one batch, without the hidden states.

    Attributes:
        args: The arguments; the hidden states take the place of the first, if there are any.
        kwargs: The keywords.
        size: The number of examples.
        valid: The tokens that are not padding; None for all.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    size: int
    valid: torch.Tensor | None

    def batch(self, hidden: torch.Tensor) -> Batch:
        """The call with these hidden states.

        Args:
            hidden: What the block before it gave.
        """
        if self.args:
            return Batch((hidden, *self.args[1:]), dict(self.kwargs), None, self.size, self.valid)
        return Batch((), {**self.kwargs, _HIDDEN: hidden}, None, self.size, self.valid)


class _StopError(Exception):
    """Ends a pass after its last needed layer."""


class _Stub(nn.Module):
    """Replaces a block: records its call, and returns the hidden states in the block's form."""

    def __init__(self, block: nn.Module, note: Callable[[tuple[Any, ...], Mapping[str, Any]], object]):
        super().__init__()
        self.__dict__["_block"], self.__dict__["_note"] = block, note

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Record the call."""
        return self.__dict__["_note"](args, kwargs)


class BlockModel:
    """A model whose weights stay in their checkpoint.

    Args:
        model: The model on the meta device; its buffers that no checkpoint holds have values.
        checkpoint: The weights.
        blocks: The name of the list of blocks; found unless given.

    Raises:
        MaskMismatchError: A weight of the model is not in the checkpoint, or has another shape there.
        OptionError: `blocks` is not a list of modules.
    """

    def __init__(self, model: nn.Module, checkpoint: Checkpoint, blocks: str | None = None):
        self.model = model = with_ties(model)
        self.prefix = blocks_of(model) if blocks is None else blocks
        found = dict(model.named_modules()).get(self.prefix)
        if not isinstance(found, nn.ModuleList):
            raise OptionError(f"blocks: expected the name of an nn.ModuleList, got {self.prefix!r}")
        self.blocks = list(found)
        self._checkpoint = checkpoint
        self._numbers = {entry.name: number for number, entry in enumerate(checkpoint.entries)}
        for index, block in enumerate(self.blocks):
            for name, parameter in block.named_parameters():
                self._check(f"{self.prefix}.{index}.{name}", tuple(parameter.shape))
        self._shared = names_of(model)

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        number = self._numbers.get(name)
        there = None if number is None else self._checkpoint.entries[number].shape
        if there != shape:
            raise MaskMismatchError(
                f"tensor {name!r}: the model has it in shape {shape}, the checkpoint "
                f"{'not at all' if there is None else f'in {there}'}; {near(name, self._numbers)}. {OTHER_MODEL}"
            )

    def number(self, name: str) -> int:
        """The position of a tensor in the checkpoint.

        Args:
            name: Its name.
        """
        return self._numbers[name]

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor, read from the checkpoint; one that layers share has any of its names there.

        Args:
            name: Its name.
        """
        names = [one for one in (name, *self._shared.get(name, ())) if one in self._numbers]
        number = self._numbers[names[0]] if names else None
        if number is None:
            raise MaskMismatchError(
                f"tensor {name!r} is not in the checkpoint; {near(name, self._numbers)}. {OTHER_MODEL}"
            )
        return to_tensor(self._checkpoint.entries[number], self._checkpoint.words(number))

    def block(self, index: int) -> nn.Module:
        """A copy of a block with its weights.

        Args:
            index: Which block.
        """
        block = copy.deepcopy(self.blocks[index])
        for layer, module in block.named_modules():
            self._load(f"{self.prefix}.{index}.{layer}" if layer else f"{self.prefix}.{index}", module)
        return block.eval()

    def _load(self, name: str, module: nn.Module) -> None:
        """Read the weights and the buffers that a module itself has on the meta device."""
        start = f"{name}." if name else ""
        for leaf, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.is_meta:
                weight = nn.Parameter(self.tensor(start + leaf), requires_grad=False)
                module.register_parameter(leaf, weight)
        for leaf, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta:
                module.register_buffer(leaf, self.tensor(start + leaf))

    @contextmanager
    def _with_stubs(
        self, note: Callable[[int, tuple[Any, ...], Mapping[str, Any]], object]
    ) -> Iterator[nn.Module]:
        """A copy of the layers around the blocks, with stubs for the blocks; its weights are read when they are
        used.
        """
        stubs = nn.ModuleList(
            _Stub(block, functools.partial(note, index)) for index, block in enumerate(self.blocks)
        )
        memo: dict[int, Any] = {id(block): stub for block, stub in zip(self.blocks, stubs)}
        outer = copy.deepcopy(self.model, memo)
        handles = []
        for name, module in outer.named_modules():
            if not name.startswith(f"{self.prefix}.") and (module._parameters or module._buffers):
                load = functools.partial(self._load, name)
                handles.append(module.register_forward_pre_hook(functools.partial(_before, load)))
        config: Any = getattr(outer, "config", None)
        if getattr(config, "use_cache", None):
            config.use_cache = False  # keys and values of earlier tokens are of no use here
        try:
            yield outer
        finally:
            for handle in handles:
                handle.remove()

    def calls(self, batches: Sequence[Batch]) -> tuple[list[list[BlockCall]], list[torch.Tensor]]:
        """How every block is called on every batch, and the hidden states that enter the first.

        Args:
            batches: The inputs of the model.
        """
        found: list[list[BlockCall]] = [[] for _ in self.blocks]
        first: list[torch.Tensor] = []
        kind: list[bool] = []  # whether blocks give a tuple

        def note(index: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> object:
            hidden = args[0] if args else kwargs[_HIDDEN]
            if index == 0:
                first.append(hidden)
                if not kind:
                    kind.append(isinstance(self.block(0)(*args, **kwargs), tuple))
            rest = {key: value for key, value in kwargs.items() if key != _HIDDEN or args}
            batch = batches[len(first) - 1]
            found[index].append(BlockCall(args, rest, batch.size, _valid(batch)))
            if index == len(self.blocks) - 1:
                raise _StopError
            return (hidden,) if kind[0] else hidden

        with torch.no_grad(), self._with_stubs(note) as outer:
            for batch in batches:
                try:
                    outer(*batch.args, **batch.kwargs)
                except _StopError:
                    continue
                raise OptionError(
                    f"{type(self.model).__name__}: a pass did not come to the last block of {self.prefix!r}; name the "
                    "list of blocks that every input passes: sc.BlockOptions(blocks=...)"
                )
        # A stub passes on its hidden states; they are those of the first block, and are not kept.
        return [
            [replace(call, args=call.args[:1] and (None, *call.args[1:])) for call in row] for row in found
        ], first


def _before(load: Callable[[nn.Module], None], module: nn.Module, _: object) -> None:
    """A forward pre-hook."""
    load(module)


def _valid(batch: Batch) -> torch.Tensor | None:
    """Which tokens are not padding, by the batch."""
    for name, value in batch.kwargs.items():
        if name.endswith("attention_mask") and torch.is_tensor(value) and value.dim() == 2:
            return value
    return None

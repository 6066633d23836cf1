"""`Masks`: which weights remain. One boolean tensor per parameter, True where the weight is kept.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
>>> masks = Masks({"0.weight": torch.tensor([[True, False], [True, True]])})
>>> _ = masks.apply_(model)
>>> model[0].weight[0, 1].item(), masks.sparsity
(0.0, 0.25)
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from secateur.core.atomic_files import atomic_open
from secateur.core.file_endings import check_ending
from secateur.core.lines import Lines
from secateur.core.missing_files import missing
from secateur.core.model_kinds import module_of, unwrapped
from secateur.core.parameters import parameters_of
from secateur.core.safetensors_header import open_header
from secateur.core.wrapped_layers import model_with, with_earlier_names
from secateur.errors import (
    FormatError,
    MaskMismatchError,
    NothingToDoError,
    OptionError,
    UnknownNameError,
    near,
)

__all__ = ["MaskSummary", "Masks", "as_masks", "count_true"]

_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_FORMAT, _VERSION = "secateur-masks", "1"  # one entry of metadata: safetensors writes several in any order


@dataclass(frozen=True)
class MaskSummary:
    """One row of `Masks.summary()`: a tensor, how many weights it has and how many are kept."""

    name: str
    shape: tuple[int, ...]
    numel: int
    kept: int

    @property
    def sparsity(self) -> float:
        """The share removed."""
        return 1.0 - self.kept / self.numel if self.numel else 0.0


class Masks(Mapping[str, torch.Tensor]):
    """A read-only mapping from parameter name to a boolean tensor; True = kept.

    A mask of whole filters may be an expanded view that takes no memory (use `reshape`, not `view`).

    Args:
        tensors: By parameter name a boolean tensor, or a product of one line per axis.
    """

    __slots__ = ("_lines", "_tensors")

    def __init__(self, tensors: Mapping[str, torch.Tensor | Lines]):
        if not tensors:
            raise NothingToDoError(
                "masks over no tensor at all would change nothing; name at least one parameter"
            )
        self._lines = {name: (value, -1) for name, value in tensors.items() if isinstance(value, Lines)}
        self._tensors: dict[str, torch.Tensor | None] = dict.fromkeys(tensors)
        for name, tensor in tensors.items():
            if name in self._lines:
                continue
            if not torch.is_tensor(tensor):
                raise MaskMismatchError(
                    f"mask of {name!r}: expected a boolean tensor (True = kept), got {type(tensor).__name__}"
                )
            if tensor.dtype != torch.bool:
                raise MaskMismatchError(
                    f"mask of {name!r}: expected a boolean tensor (True = kept), got {tensor.dtype}; "
                    "write `tensor != 0`"
                )
            self._tensors[name] = tensor.detach()

    def lines(self, name: str) -> Lines | None:
        """The kept slices along each axis of a mask of whole slices that has not been written to since; else None.

        They show which channels are removed without reading the whole mask.
        """
        lines, version = self._lines.get(name, (None, 0))
        tensor = self._tensors.get(name)
        return lines if tensor is None or tensor._version == version else None

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a mask."""
        return self._lines[name][0].shape if name in self._lines else tuple(self[name].shape)

    # -- mapping ---------------------------------------------------------------------------------------------
    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name]
        if tensor is None:
            lines, _ = self._lines[name]
            tensor = self._tensors[name] = lines.mask()
            self._lines[name] = lines, tensor._version
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        return set(self) == set(other) and all(torch.equal(self[n].cpu(), other[n].cpu()) for n in self)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Masks({len(self)} tensors, {self.numel:,} weights, sparsity {self.sparsity:.4f})"

    # -- counts ----------------------------------------------------------------------------------------------
    @property
    def numel(self) -> int:
        """How many weights the masks cover."""
        return sum(math.prod(self.shape(name)) for name in self)

    @property
    def kept(self) -> int:
        """How many of them are kept."""
        return sum(count_true(tensor) for tensor in self.values())

    @property
    def sparsity(self) -> float:
        """The share removed of the weights the masks cover."""
        return 1.0 - self.kept / self.numel if self.numel else 0.0

    def summary(self) -> list[MaskSummary]:
        """One row per tensor, in order."""
        return [MaskSummary(n, tuple(t.shape), t.numel(), count_true(t)) for n, t in self.items()]

    def table(self) -> str:
        """The summary as text, one line per tensor and a total."""
        rows = self.summary()
        width = max(len("total"), *(len(row.name) for row in rows))
        lines = [f"{'tensor':<{width}}  {'weights':>12}  {'kept':>12}  sparsity"]
        lines += [f"{r.name:<{width}}  {r.numel:>12,}  {r.kept:>12,}  {r.sparsity:.4f}" for r in rows]
        lines.append(f"{'total':<{width}}  {self.numel:>12,}  {self.kept:>12,}  {self.sparsity:.4f}")
        return "\n".join(lines)

    def digest(self) -> str:
        """A hash of names, shapes and bits: equal masks, equal digest, on any device."""
        whole = hashlib.sha256()
        for name in sorted(self):
            tensor = self[name].cpu().contiguous()
            whole.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
            whole.update(tensor.numpy().tobytes())
        return whole.hexdigest()

    # -- the model they belong to ----------------------------------------------------------------------------
    def check(self, model: nn.Module, *, wrapped: bool = False) -> None:
        """Raise a `MaskMismatchError` unless every mask fits a parameter of the model by name and shape.

        Devices need not agree: a mask follows its parameter.

        Args:
            model: The model.
            wrapped: Whether names from before layers were wrapped count, as `hold` takes them for models of PEFT.
        """
        model = module_of(model)
        if wrapped:
            self._check(model, with_earlier_names(parameters_of(model_with(model, self))))
        else:
            self._check(model, self._parameters_of(model))

    def _check(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        for name in self:
            if name not in parameters:
                if f"{name}_orig" in parameters:
                    raise MaskMismatchError(
                        f"mask of {name!r}: the model holds torch.nn.utils.prune's {name}_orig instead; "
                        "read it with Masks.from_torch_prune(model), or make it permanent with "
                        "torch.nn.utils.prune.remove"
                    )
                if name in with_earlier_names(parameters):
                    raise MaskMismatchError(
                        f"mask of {name!r}: {type(model).__name__} has this layer wrapped, as LoRA of PEFT does; only "
                        "sc.hold takes masks from before that. For the rest take the model as it was, or merge the "
                        "adapters into it first (merge_and_unload)"
                    )
                raise MaskMismatchError(
                    f"mask of {name!r}: {type(model).__name__} has no such parameter; "
                    f"{near(name, parameters)}"
                )
            if tuple(parameters[name].shape) != self.shape(name):
                raise MaskMismatchError(
                    f"mask of {name!r}: expected shape {tuple(parameters[name].shape)} as in "
                    f"{type(model).__name__}, got {self.shape(name)}; are these the masks of another model?"
                )

    def to(self, device: torch.device | str) -> Masks:
        """The same masks on another device."""
        return Masks({name: tensor.to(device) for name, tensor in self.items()})

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> nn.Module:
        """Set every removed weight to exactly 0.0, in place, after all masks are checked; returns the model."""
        model = module_of(model)
        parameters = self._parameters_of(model)
        self._check(model, parameters)
        for name, mask in self.items():
            _zero_(parameters[name].detach(), mask)
        return model

    def _parameters_of(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters that the masks name: of the model, or of the one inside torch.compile and its like."""
        found = parameters_of(model)
        if any(name in found for name in self):
            return found
        return parameters_of(unwrapped(model))

    def apply(self, model: nn.Module) -> nn.Module:
        """A masked copy of the model; the model itself is not changed."""
        model = module_of(model)
        self.check(model)
        return self.apply_(copy.deepcopy(model))

    # -- algebra ---------------------------------------------------------------------------------------------
    def merge(self, other: Masks) -> Masks:
        """The masks that keep a weight only where both keep it; a tensor in one of them only is taken over.

        >>> a = Masks({"w": torch.tensor([True, False])}); b = Masks({"w": torch.tensor([False, True])})
        >>> a.merge(b)["w"]
        tensor([False, False])
        """
        merged = dict(self.items())
        for name, mask in other.items():
            if name in merged:
                if merged[name].shape != mask.shape:
                    raise MaskMismatchError(
                        f"mask of {name!r}: cannot merge shapes {tuple(merged[name].shape)} and "
                        f"{tuple(mask.shape)}; are these the masks of another model?"
                    )
                merged[name] = merged[name] & mask.to(merged[name].device)
            else:
                merged[name] = mask
        return Masks(merged)

    __and__ = merge

    def invert(self) -> Masks:
        """The masks with kept and removed exchanged.

        >>> Masks({"w": torch.tensor([True, False])}).invert()["w"]
        tensor([False,  True])
        """
        return Masks({name: ~mask for name, mask in self.items()})

    __invert__ = invert

    # -- from and to elsewhere -------------------------------------------------------------------------------
    @classmethod
    def ones(cls, model: nn.Module, names: Iterable[str] | None = None) -> Masks:
        """Masks that keep everything, for all parameters or the named ones.

        Args:
            model: The model whose parameters are masked.
            names: The parameters; None means all.
        """
        return cls({name: torch.ones_like(p, dtype=torch.bool) for name, p in _named(model, names).items()})

    @classmethod
    def of_zeros(cls, model: nn.Module, names: Iterable[str] | None = None) -> Masks:
        """Masks read off a model that is already pruned: every weight that is exactly 0 counts as removed.

        Args:
            model: The pruned model.
            names: The parameters; None means all.

        >>> model = nn.Linear(2, 1, bias=False)
        >>> model.weight.data = torch.tensor([[0.0, 3.0]])
        >>> Masks.of_zeros(model)["weight"]
        tensor([[False,  True]])
        """
        return cls({name: p.detach() != 0 for name, p in _named(model, names).items()})

    @classmethod
    def from_torch_prune(cls, model: nn.Module) -> Masks:
        """Read the masks of `torch.nn.utils.prune` (the `*_mask` buffers) under the parameters' own names."""
        found = {}
        buffers = dict(model.named_buffers(remove_duplicate=False))
        for name, _ in model.named_parameters(remove_duplicate=False):
            if name.endswith("_orig"):
                plain = name.removesuffix("_orig")
                if f"{plain}_mask" in buffers:
                    found[plain] = buffers[f"{plain}_mask"] != 0
        if not found:
            raise NothingToDoError(
                f"{type(model).__name__} holds no torch.nn.utils.prune mask; use Masks.of_zeros(model) for "
                "a model whose pruning was made permanent"
            )
        return cls(found)

    def to_torch_prune_(self, model: nn.Module) -> nn.Module:
        """Put the masks on the model as `torch.nn.utils.prune` holds them, in place."""
        from torch.nn.utils import prune as torch_prune

        self.check(model)
        for name, mask in self.items():
            layer, _, leaf = name.rpartition(".")
            module = model.get_submodule(layer)
            torch_prune.custom_from_mask(module, leaf, mask.to(getattr(module, leaf).device))
        return model

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the masks as a safetensors file, atomically."""
        from safetensors.torch import save

        # Clones: safetensors refuses two names for one memory, and masks of tied weights may share theirs.
        check_ending(path, "Masks.save writes a safetensors file", ".safetensors")
        data = save(
            {name: mask.cpu().contiguous().clone() for name, mask in self.items()},
            metadata={_FORMAT: _VERSION},
        )
        with atomic_open(path) as file:
            file.write(data)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str = "cpu") -> Masks:
        """Read masks that `save` wrote.

        Args:
            path: The file.
            device: Where to put the masks.

        Raises:
            FormatError: The file does not exist, or is not a file of masks.
        """
        if not Path(path).is_file():
            raise FormatError(f"{missing(path)}; write one with masks.save(path)").as_usage()
        with open(path, "rb") as file:
            try:
                spans, metadata, _ = open_header(path, file, FormatError)
            except FormatError as error:
                raise FormatError(f"{error}; write one with masks.save(path)") from error
            if _FORMAT not in metadata:
                raise FormatError(
                    f"{path}: expected a file written by Masks.save (safetensors with {_FORMAT} in its "
                    f"metadata), got metadata {str(dict(metadata))[:200]}"
                )
            if metadata[_FORMAT] != _VERSION:
                raise FormatError(
                    f"{path}: expected version {_VERSION} of {_FORMAT}, got {metadata[_FORMAT][:80]!r}; write it "
                    "again with this version"
                )
            wrong = next((name for name, span in spans.items() if span[0] != "BOOL"), None)
            if wrong is not None or not spans:
                got = f"{spans[wrong][0][:40]} under {wrong[:80]!r}" if wrong is not None else "none at all"
                raise FormatError(f"{path}: expected boolean tensors as Masks.save writes them, got {got}")
            data = file.read()
        at, tensors = 0, {}
        for name, (_, shape, start, end) in sorted(spans.items(), key=lambda item: item[1][2:]):
            if start != at or end - start != math.prod(shape):
                raise FormatError(
                    f"{path}: mask {name[:80]!r} does not have the bytes of shape {list(shape)}"
                )
            tensors[name], at = _booleans(path, name, data[start:end], shape), end
        if at != len(data):
            raise FormatError(
                f"{path}: its masks have {at} bytes, the file {len(data)}: it was cut short or damaged"
            )
        return cls({name: tensors[name].to(device) for name in spans})


def as_masks(value: object) -> Masks:
    """The masks that are meant: masks themselves, or a mapping from parameter name to a boolean tensor.

    Args:
        value: What was given.

    Raises:
        OptionError: It is neither.

    >>> as_masks(None)
    Traceback (most recent call last):
    secateur.errors.OptionError: masks: expected the masks that sc.prune returns, got NoneType; pass these
    """
    if isinstance(value, Masks):
        return value
    if isinstance(value, Mapping):
        return Masks(value)
    raise OptionError(
        f"masks: expected the masks that sc.prune returns, got {type(value).__name__}; pass these"
    )


def _booleans(path: str | os.PathLike[str], name: str, data: bytes, shape: tuple[int, ...]) -> torch.Tensor:
    """A boolean tensor from bytes that must be 0 or 1."""
    if len(data) != math.prod(shape):
        raise FormatError(f"{path}: expected mask {name[:80]!r}, found the end: the file was cut short")
    if len(data) != data.count(0) + data.count(1):
        raise FormatError(f"{path}: mask {name[:80]!r} holds bytes other than 0 and 1")
    if not data:
        return torch.zeros(shape, dtype=torch.bool)
    return torch.frombuffer(bytearray(data), dtype=torch.bool).reshape(shape)


def _named(model: nn.Module, names: Iterable[str] | None) -> dict[str, torch.Tensor]:
    """The parameters of these names, or all of them."""
    if names is None:
        return dict(model.named_parameters())
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in (wanted := list(names)):
        if name not in parameters:
            raise UnknownNameError(
                f"{type(model).__name__} has no parameter {name!r}: {near(name, parameters)}"
            )
    return {name: parameters[name] for name in wanted}


def count_true(mask: torch.Tensor) -> int:
    """How many elements of a boolean tensor are True.

    >>> count_true(torch.tensor([[True], [False]]).expand(2, 3))
    3
    """
    if mask.numel() == 0:
        return 0
    compact = _compact(mask)
    # On the CPU count_nonzero is many times faster than a sum; other devices may lack it.
    found = int(torch.count_nonzero(compact)) if compact.device.type == "cpu" else int(compact.sum())
    return found * (mask.numel() // compact.numel())


def _compact(mask: torch.Tensor) -> torch.Tensor:
    """A mask with its expanded axes narrowed to length 1; it broadcasts to the mask."""
    for axis, stride in enumerate(mask.stride()):
        if stride == 0 and mask.shape[axis] > 1:
            mask = mask.narrow(axis, 0, 1)
    return mask


def _zero_(weight: torch.Tensor, mask: torch.Tensor) -> None:
    """Set a weight to exactly 0.0 where the mask is False, in place.

    Not by multiplying floating-point numbers: 0 * NaN is NaN and -1 * 0 is -0.0, neither of which is a zero.
    """
    mask = _compact(mask).to(weight.device)
    if weight.device.type == "cpu" and weight.is_floating_point() and weight.element_size() in _WORDS:
        # Multiply the bits, as integers, by 1 or 0: several times faster on the CPU than masked_fill_.
        weight.view(_WORDS[weight.element_size()]).mul_(mask)
    else:
        weight.masked_fill_(~mask, 0.0)

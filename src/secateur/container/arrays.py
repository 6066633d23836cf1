"""Convert torch tensors to the unsigned words that the file format stores, and back.

>>> import torch
>>> entry, words = to_words("w", torch.tensor([1.0, -2.0]))
>>> entry.dtype, words.dtype.name
('F32', 'uint32')
>>> to_tensor(entry, words)
tensor([ 1., -2.])
"""

from __future__ import annotations

import numpy as np
import torch

from secateur.container.format import Entry
from secateur.errors import OptionError

__all__ = ["TORCH_DTYPES", "entry_of", "to_tensor", "to_words"]

TORCH_DTYPES: dict[str, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}
_SPELLED = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def entry_of(name: str, tensor: torch.Tensor) -> Entry:
    """Name, dtype and shape of a tensor as the file writes them."""
    if tensor.layout is not torch.strided:
        raise OptionError(
            f"tensor {name!r}: layout {tensor.layout} cannot be stored; make it dense first: tensor.to_dense()"
        )
    if tensor.is_meta:
        raise OptionError(f"tensor {name!r}: is on the meta device and has no values; load the values first")
    if tensor.dtype not in _SPELLED:
        raise OptionError(
            f"tensor {name!r}: dtype {tensor.dtype} cannot be stored; convert it to one of "
            f"{', '.join(sorted(_SPELLED.values()))}"
        )
    return Entry(name, _SPELLED[tensor.dtype], tuple(tensor.shape))


def to_words(name: str, tensor: torch.Tensor) -> tuple[Entry, np.ndarray]:
    """The tensor's bytes as unsigned words of its element size."""
    entry = entry_of(name, tensor)
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.dtype == torch.complex64:
        flat = torch.view_as_real(flat).reshape(-1)
    raw = flat.view(torch.uint8).numpy() if flat.numel() else np.zeros(0, dtype=np.uint8)
    return entry, raw.view(f"u{entry.width}").reshape(entry.shape)


def to_tensor(entry: Entry, words: np.ndarray) -> torch.Tensor:
    """A tensor that owns its memory."""
    raw = torch.from_numpy(np.ascontiguousarray(words).reshape(-1).view(np.uint8).copy())
    if not entry.numel:
        return torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype])
    return raw.view(TORCH_DTYPES[entry.dtype]).reshape(entry.shape)

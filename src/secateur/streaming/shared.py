"""`share_checkpoint`: few distinct values per tensor, one tensor in memory at a time.

>>> import pathlib, tempfile, torch
>>> from safetensors.torch import load_file, save_file
>>> with tempfile.TemporaryDirectory() as folder:
...     source, target = (pathlib.Path(folder) / name for name in ("in.safetensors", "out.safetensors"))
...     save_file({"fc.weight": torch.randn(64, 64)}, source)
...     done = share_checkpoint(source, target, bits=2)
...     len(load_file(target)["fc.weight"].unique())
4
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from secateur import quantize
from secateur.container.arrays import to_tensor
from secateur.container.checkpoint import Checkpoint
from secateur.container.format import Entry
from secateur.container.pack import sharable, shared_words
from secateur.container.shards import open_source
from secateur.core.targets import Pattern
from secateur.errors import NothingToDoError, OptionError
from secateur.streaming.in_flight import Item, in_flight, memory_limit, worker_limit
from secateur.streaming.pruned import StreamOptions
from secateur.streaming.rewriting import Changed, Progress, RewrittenCheckpoint, Row, check_target, rewrite
from secateur.streaming.skeleton import targets_in

__all__ = ["share_checkpoint"]

_SHARING = 40  # bytes of memory that sharing takes for each weight, besides the weights


def share_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    bits: int = 5,
    *,
    method: str = "kmeans",
    skip: Pattern | Sequence[Pattern] | None = None,
    options: StreamOptions | None = None,
    progress: Progress | None = None,
) -> RewrittenCheckpoint:
    """Write a checkpoint whose tensors have few distinct values; one tensor in memory at a time.

    Zeros stay zeros, so a pruned checkpoint stays pruned. A .sct file stores the indices of the values; a folder keeps
    the dtypes, so that every library loads it, and shrinks when it is packed.

    Args:
        source: A folder of safetensors files with their index, or one .safetensors file.
        target: A new folder, which gets the same files; or a .sct file, which holds everything. For a .safetensors
            file: another one.
        bits: 2**bits values for each tensor, 1 to 8.
        method: How the values are found: a name of `sc.quantize`.
        skip: Layers that are left alone, by name or glob.
        options: Which other tensors take part, and how much memory and how many threads are used.
        progress: Called with (bytes done, bytes in all, tensor) for every tensor.

    Returns:
        The written checkpoint, with the distinct values and the mean squared change of every shared tensor.

    Raises:
        DataError: The checkpoint cannot be read.
        OptionError: An option is wrong, or the target exists.
        NothingToDoError: No tensor can be shared.
    """
    asked = options or StreamOptions()
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise OptionError(f"bits: expected a whole number from 1 to 8, got {bits!r}")
    quantize.registry.make(method, bits=bits)
    with open_source(source) as checkpoint:
        check_target(checkpoint, Path(target))
        chosen = set(targets_in(checkpoint.entries, asked.model, asked.only, skip, asked.parameters)[1])
        chosen = {entry.name for entry in checkpoint.entries if entry.name in chosen and sharable(entry)}
        if not chosen:
            raise NothingToDoError(f"{source}: no float tensor with enough weights to share takes part")
        limits = memory_limit(asked.memory), worker_limit(asked.workers)
        changed = functools.partial(_changed, checkpoint, frozenset(chosen), bits, method, limits)
        text = repr(("share", bits, method, sorted(chosen)))
        return rewrite(checkpoint, target, text, changed, progress, counts=("weights", "values"))


def _changed(
    checkpoint: Checkpoint,
    chosen: frozenset[str],
    bits: int,
    method: str,
    limits: tuple[int, int],
    numbers: Sequence[int],
) -> Iterator[Changed]:
    """The tensors of these numbers, shared where they take part."""
    items = (
        Item(
            _cost(entry, entry.name in chosen),
            functools.partial(checkpoint.words, number),
            functools.partial(_shared, entry, bits if entry.name in chosen else None, method),
        )
        for number, entry in ((number, checkpoint.entries[number]) for number in numbers)
    )
    return in_flight(items, *limits)


def _cost(entry: Entry, shares: bool) -> int:
    return 3 * entry.nbytes + (_SHARING * entry.numel if shares else 0)


def _shared(entry: Entry, bits: int | None, method: str, words: np.ndarray) -> Changed:
    """One tensor, shared with 2**bits values, or as it is."""
    if bits is None:
        return Changed(entry, words, {})
    new = shared_words(entry, words, bits, method)
    values = int(torch.unique(to_tensor(entry, new)).numel())
    row: Row = {
        "name": entry.name,
        "weights": entry.numel,
        "values": values,
        "distortion": _distortion(entry, words, new),
    }
    return Changed(entry, new, row)


def _distortion(entry: Entry, before: np.ndarray, after: np.ndarray) -> float:
    """The mean squared change, summed in slices so that no copy of the whole is made."""
    total, flat, other = 0.0, before.reshape(-1), after.reshape(-1)
    step = 1 << 22
    for start in range(0, flat.size, step):
        part = Entry(entry.name, entry.dtype, (min(step, flat.size - start),))
        away = to_tensor(part, flat[start : start + step]).double()
        away -= to_tensor(part, other[start : start + step]).double()
        total += float(away @ away)
    return total / max(1, flat.size)

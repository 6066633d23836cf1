"""`shrink_checkpoint`: cut channels and heads out of a transformer larger than memory, block by block.

Every block is pruned, refitted, cut and proved by itself, on its inputs in the model. Every group of a block loses the
same share, so all blocks keep the same widths and the plain configuration can state them: the written folder loads
with `from_pretrained` wherever the source does. The weights are those of `sc.prune`, `sc.compensate` and
`sc.shrink` on the model in memory.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from secateur.budget import Budget, BudgetLike
from secateur.budget.per_tensor import PerTensor
from secateur.container.arrays import to_words
from secateur.container.checkpoint import Checkpoint, Shard, canonical_header
from secateur.container.format import Entry
from secateur.container.resuming import ResumableJob, fingerprint_of, resumable
from secateur.container.shards import open_source
from secateur.core.atomic_files import atomic_open, atomic_write
from secateur.core.json_text import parse
from secateur.core.targets import Pattern
from secateur.criteria import CriterionLike
from secateur.criteria import registry as criteria
from secateur.errors import OptionError, SecateurError, StoreError
from secateur.granularity import Granularity, GranularityLike
from secateur.granularity import registry as granularities
from secateur.pruning.prune import budget_of
from secateur.streaming.block_runs import BlockProgress
from secateur.streaming.block_work import COUNTS, BlockDone, BlockWork
from secateur.streaming.blocks import BlockModel
from secateur.streaming.compensated import (
    BlockOptions,
    block_run,
    block_targets,
    blocks_in,
    check_new_folder,
    job_text,
    read_data,
)
from secateur.streaming.rewriting import RewrittenCheckpoint, copied_files, little_endian, named_folder
from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.hf.configs import fitted_config

__all__ = ["shrink_checkpoint"]

_OUT, _BLOCKS = "out", "blocks"
_CUT = ("channel", "head", "head_size")
_T = TypeVar("_T")


def shrink_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    data: Iterable[object],
    criterion: CriterionLike = "l2",
    budget: BudgetLike = 0.5,
    *,
    skip: Pattern | Sequence[Pattern] | None = None,
    options: BlockOptions | None = None,
    progress: BlockProgress | None = None,
) -> RewrittenCheckpoint:
    """Cut channels or heads out of the blocks of a checkpoint, with one block in memory at a time.

    The width between the blocks stays, and so do embeddings and the output head. A killed run continues from the block
    it was at.

    Args:
        source: A folder of safetensors files with their index and config.json.
        target: A new folder, which gets files of the same names, and a config.json with the new widths.
        data: Batches of sequences without labels: tensors of token numbers, or dicts of keywords. One short one is
            enough if neither the criterion nor the refit needs data.
        criterion: How weights are scored.
        budget: The share of the channels, or heads, of every group that is removed.
        skip: Layers that are left alone, by name, glob or class.
        options: What is removed as one unit ("channel" unless given), which layers take part, whether the remaining
            weights are refitted (unless compensate=False), the proof, and the cluster.
        progress: Called with (blocks done, blocks in all).

    Returns:
        The written checkpoint, with a row for every block: its weights before and after, the squared error of its
        outputs on the data as a share, and the largest difference in its proof.

    Raises:
        ProofError: A block without its removed channels computes something else than with these at zero.
        OptionError: An option is wrong, the target exists, or the configuration cannot state the new widths.
        DataError: The checkpoint cannot be read, or the data holds no batch.
        NothingToDoError: No layer of a block takes part, or nothing would be removed.
    """
    asked = options or BlockOptions()
    grain, share = _grain(asked.granularity or "channel"), _share(budget)
    rule = criteria.make(criterion)
    with open_source(source) as checkpoint:
        check_new_folder(checkpoint, Path(target))
        _check_configuration(asked.model)
        blocks = blocks_in(source, checkpoint, asked)
        batches = read_data("shrink_checkpoint", data, checkpoint)
        targets = block_targets(blocks, checkpoint, asked, skip)
        work = BlockWork(rule, grain, targets, {"": share}, asked.solving, True, asked.proof, asked.seed)
        text = job_text("shrink", work, share, asked, batches)
        with resumable(target, fingerprint_of(checkpoint, text), COUNTS) as job:
            cut = _CutBlocks(checkpoint, blocks, job)
            rows = block_run(source, blocks, work, asked, job).run(batches, cut, progress)
            return named_folder(checkpoint, cut.folder, Path(target), rows, cut.assemble())


def _check_configuration(model: nn.Module | None) -> None:
    """Raise where a given model has no configuration."""
    if model is not None and not hasattr(getattr(model, "config", None), "to_dict"):
        raise OptionError(
            f"{type(model).__name__}: has no configuration to write the new widths into; load the model and use "
            "sc.shrink"
        )


def _grain(granularity: GranularityLike) -> Granularity:
    """The granularity as a value; one whose units can be cut out."""
    grain: Granularity = granularities.make(granularity)
    if not any(isinstance(grain, granularities.get(word)) for word in _CUT):
        raise OptionError(
            f"granularity {grain} leaves shapes as they are: sc.compensate_checkpoint writes its zeros; to cut widths, "
            f"take one of {', '.join(_CUT)}"
        )
    return grain


def _share(budget: BudgetLike) -> Budget:
    """The budget as a value; one that takes the same share of every group."""
    found = budget_of(budget)
    if not isinstance(found, PerTensor):
        raise OptionError(
            f"{found} may give blocks different widths, which no plain configuration can state; take a share of every "
            "group, such as 0.5"
        )
    return found


@dataclass
class _CutBlocks:
    """The cut blocks: a file and a plan each in the folder of the job, until all are finished."""

    checkpoint: Checkpoint
    blocks: BlockModel
    job: ResumableJob

    def __post_init__(self) -> None:
        self.folder = self.job.folder / _OUT
        (self.job.folder / _BLOCKS).mkdir(exist_ok=True)

    def _file(self, index: int, ending: str) -> Path:
        return self.job.folder / _BLOCKS / f"{index}.{ending}"

    # -- for `BlockRun` --------------------------------------------------------------------------------
    def begin(self) -> None:
        """Nothing: tensors outside the blocks are copied at the end."""

    def write(self, index: int, done: BlockDone) -> None:
        """Write a block and its plan. After the first, check that the configuration can state such widths.

        Args:
            index: Which block.
            done: Its result.
        """
        assert done.plan is not None
        save_file(
            {name: value.contiguous() for name, value in done.state.items()}, self._file(index, "safetensors")
        )
        atomic_write(self._file(index, "json"), done.plan.to_json().encode())
        if index == 0 and len({_shapes(block) for block in self.blocks.blocks}) == 1:
            self.config([done.plan] * len(self.blocks.blocks))

    # -- the end -------------------------------------------------------------------------------------------------
    def config(self, plans: Sequence[ShrinkPlan]) -> object:
        """The configuration with the new widths.

        Args:
            plans: The plan of every block.

        Raises:
            OptionError: It cannot state them.
        """
        model = self.blocks.model
        small = copy.deepcopy(model)
        for index, plan in enumerate(plans):
            plan.apply_(small.get_submodule(f"{self.blocks.prefix}.{index}"))
        size = getattr(model.config, "head_dim", None) or 1
        widths = set()
        for plan in plans[:1]:
            for name, axes in plan.keep.items():
                pairs = [(plan.shapes[name][axis], len(kept)) for axis, kept in axes.items()]
                widths |= {*pairs, *((a // size, b // size) for a, b in pairs if a % size == b % size == 0)}
        found, unsaid = fitted_config(model, small, sorted(widths))
        if found is None:
            why = unsaid or "no configuration states their widths"
            raise OptionError(
                f"{self.checkpoint.path}: the blocks can be cut, but {why}; "
                "load the model and use sc.shrink, or take another granularity"
            )
        return found

    def assemble(self) -> tuple[str, ...]:
        """Write the files of the checkpoint with the new shapes; returns the names of files not copied.

        Raises:
            StoreError: What an interrupted call kept of a block cannot be read, or does not fit.
        """
        config = self.config([self._plan(index) for index in range(len(self.blocks.blocks))])
        self.folder.mkdir(exist_ok=True)
        left_out = copied_files(self.checkpoint, self.folder)
        sizes = [self._write(shard) for shard in self.checkpoint.shards]
        if self.checkpoint.index is not None:
            name, text = self.checkpoint.index
            atomic_write(
                self.folder / name, _new_index(text, sum(a for a, _ in sizes), sum(b for _, b in sizes))
            )
        data = cast(Mapping[str, object], config.to_dict())  # type: ignore[attr-defined]
        atomic_write(
            self.folder / "config.json", (json.dumps(data, indent=2, sort_keys=True) + "\n").encode()
        )
        return left_out

    def _plan(self, index: int) -> ShrinkPlan:
        try:
            return ShrinkPlan.from_json(self._file(index, "json").read_bytes().decode())
        except (OSError, UnicodeDecodeError, SecateurError) as error:
            raise self._useless(error) from error

    def _useless(self, reason: object) -> StoreError:
        return StoreError(
            f"{self.checkpoint.path}: what an interrupted call kept of it cannot be used ({reason}) and is deleted; "
            "run the same command again: it begins with the first block"
        )

    def _write(self, shard: Shard) -> tuple[int, int]:
        """Write one file; returns the bytes and the number of its elements."""
        entries = [Entry(one.name, one.dtype, self._shape(one)) for one in shard.entries]
        header = canonical_header(entries, shard.metadata)
        with atomic_open(self.folder / shard.file) as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for entry in entries:
                words = self._words(entry.name)
                if words.nbytes != entry.nbytes:
                    raise self._useless(f"{entry.name} has another type of numbers")
                file.write(little_endian(words).data)
        return sum(one.nbytes for one in entries), sum(one.numel for one in entries)

    def _place(self, name: str) -> tuple[int, str] | None:
        """The block of a tensor and its name within it; None outside the blocks."""
        inside = name.removeprefix(f"{self.blocks.prefix}.")
        number, _, rest = inside.partition(".")
        return (
            (int(number), rest)
            if inside != name and number.isdecimal() and self._holds(int(number), rest)
            else None
        )

    def _holds(self, index: int, name: str) -> bool:
        return self._file(index, "safetensors").is_file() and name in dict(
            _tensors(self.blocks.blocks[index])
        )

    def _shape(self, entry: Entry) -> tuple[int, ...]:
        place = self._place(entry.name)
        if place is None:
            return entry.shape
        return self._kept(place, lambda file, name: tuple(file.get_slice(name).get_shape()))

    def _words(self, name: str) -> np.ndarray:
        place = self._place(name)
        if place is None:
            return self.checkpoint.words(self.blocks.number(name))
        return self._kept(place, lambda file, own: to_words(name, file.get_tensor(own))[1])

    def _kept(self, place: tuple[int, str], get: Callable[[Any, str], _T]) -> _T:
        """What is kept of one tensor of a block."""
        try:
            with safe_open(str(self._file(place[0], "safetensors")), framework="pt") as file:
                return get(file, place[1])
        except (SafetensorError, OSError, KeyError, ValueError, SecateurError) as error:
            raise self._useless(error) from error


def _tensors(block: nn.Module) -> Iterator[tuple[str, object]]:
    yield from block.named_parameters()
    yield from block.named_buffers()


def _shapes(block: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, tuple(parameter.shape)) for name, parameter in block.named_parameters())


def _new_index(text: bytes, size: int, count: int) -> bytes:
    """The index with the new numbers of bytes and of parameters, where it has them."""
    found = parse(text, "the index")
    assert isinstance(found, dict)
    metadata = found.get("metadata")
    if isinstance(metadata, dict):
        new = {"total_size": size, "total_parameters": count}
        found["metadata"] = {**metadata, **{key: new[key] for key in new if key in metadata}}
    return (json.dumps(found, indent=2) + "\n").encode()

"""`compensate_checkpoint`: prune a model larger than memory on data, and refit the remaining weights, block by block.

One block at a time has its weights in memory. On its inputs in the dense model the criterion scores its weights; then
its layers are solved on the inputs that the pruned model gives them, with the dense model's outputs as targets, as
`sc.compensate` does; then both models' outputs of the block are the inputs of the next. The numbers are those of
`sc.prune` and `sc.compensate` on the model in memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import nn

from secateur.budget import Budget, BudgetLike, Candidates, Selection
from secateur.compensation.batches import read_all
from secateur.compensation.solver import LeastSquares
from secateur.container.arrays import to_words
from secateur.container.checkpoint import Checkpoint
from secateur.container.resuming import ResumableJob, fingerprint_of, resumable
from secateur.container.shards import open_source
from secateur.core.context import Context
from secateur.core.nested import tensors_in
from secateur.core.targets import Pattern, Target
from secateur.criteria import CriterionLike
from secateur.criteria import registry as criteria
from secateur.errors import NothingToDoError, OptionError
from secateur.execution.example import Batch
from secateur.granularity import Granularity, GranularityLike
from secateur.granularity import registry as granularities
from secateur.pruning.prune import budget_of
from secateur.streaming.block_runs import BlockCluster, BlockProgress, BlockRun
from secateur.streaming.block_work import COUNTS, BlockDone, BlockWork
from secateur.streaming.blocks import BlockModel, meta_model
from secateur.streaming.pruned import ALONE
from secateur.streaming.rewriting import (
    RewrittenCheckpoint,
    check_target,
    copied_files,
    little_endian,
    named_folder,
)
from secateur.streaming.skeleton import targets_in
from secateur.structure.proof import ProofLike

__all__ = [
    "BlockOptions",
    "block_run",
    "block_targets",
    "blocks_in",
    "check_new_folder",
    "compensate_checkpoint",
    "job_text",
    "read_data",
]

_OUT = "out"


@dataclass(frozen=True, eq=False)
class BlockOptions:
    """Which layers of the blocks take part, and how they are run.

    Attributes:
        only: Layers that take part, by name, glob or class; all linear layers of the blocks unless given.
        model: The model on the meta device; that of the folder's config.json unless given, which needs transformers.
        blocks: The name of the list of blocks; the largest `nn.ModuleList` unless given.
        solver: How layers are solved; `LeastSquares()` unless given.
        granularity: What is removed as one unit. `compensate_checkpoint` takes "element" (the default), "filter",
            "kernel" or "block"; `shrink_checkpoint` takes "channel" (the default), "head" or "head_size".
        compensate: Whether the remaining weights are refitted; False prunes only.
        inputs: "pruned": a block is fitted to the outputs of the pruned blocks before it. "dense": to those of the
            dense model, so that blocks are independent; the error is larger.
        cluster: A Ray cluster whose workers process a block each; needs inputs="dense". None processes them here.
        proof: What `shrink_checkpoint` proves of every block: None for the usual, modes, or `ProofOptions`.
        seed: For criteria that draw at random, and for which rows of very many are used.

    >>> BlockOptions(compensate=False).seed
    0
    """

    only: Pattern | Sequence[Pattern] | None = None
    model: nn.Module | None = None
    blocks: str | None = None
    solver: LeastSquares | None = None
    granularity: GranularityLike | None = None
    compensate: bool = True
    inputs: str = "pruned"
    cluster: BlockCluster | None = None
    proof: ProofLike = None
    seed: int = 0

    @property
    def solving(self) -> LeastSquares | None:
        """How layers are solved; None where they are not."""
        return (self.solver or LeastSquares()) if self.compensate else None

    def __post_init__(self) -> None:
        if self.inputs not in ("pruned", "dense"):
            raise OptionError(f"inputs: expected 'pruned' or 'dense', got {self.inputs!r}")
        if self.cluster is not None and self.inputs != "dense":
            raise OptionError(
                "cluster: a block that is fitted to the outputs of the blocks before it has to wait for them; "
                "pass inputs='dense' as well"
            )


def compensate_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    data: Iterable[object],
    criterion: CriterionLike = "wanda",
    budget: BudgetLike = 0.5,
    *,
    skip: Pattern | Sequence[Pattern] | None = None,
    options: BlockOptions | None = None,
    progress: BlockProgress | None = None,
) -> RewrittenCheckpoint:
    """Prune the blocks of a checkpoint on data and compensate, with one block in memory at a time.

    Embeddings and the output head are not changed. Memory holds one block twice, the second moments of one layer's
    inputs, and the block's activations for all of the data. A killed run continues from the block it was at.

    Args:
        source: A folder of safetensors files with their index and config.json.
        target: A new folder, which gets the same files.
        data: Batches of a few hundred sequences without labels: tensors of token numbers, or dicts of keywords.
        criterion: How weights are scored: "wanda", "obs", or one without data.
        budget: The share of every tensor, or a budget that decides about each tensor alone.
        skip: Layers that are left alone, by name, glob or class.
        options: Which layers take part, and how they are run.
        progress: Called with (blocks done, blocks in all).

    Returns:
        The written checkpoint, with a row for every layer: its weights, those kept, and the squared error of its
        outputs before and after, as shares.

    Raises:
        OptionError: An option is wrong, or the target exists.
        DataError: The checkpoint cannot be read, or the data holds no batch.
        NothingToDoError: No layer of a block takes part.
    """
    asked = options or BlockOptions()
    grain = _grain(asked.granularity or "element")
    rule = criteria.make(criterion)
    with open_source(source) as checkpoint:
        check_new_folder(checkpoint, Path(target))
        blocks = blocks_in(source, checkpoint, asked)
        batches = read_data("compensate_checkpoint", data, checkpoint)
        targets = block_targets(blocks, checkpoint, asked, skip)
        budgets = _budgets(budget, blocks, targets, grain)
        work = BlockWork(rule, grain, targets, budgets, asked.solving, seed=asked.seed)
        text = job_text("compensate", work, budget, asked, batches)
        with resumable(target, fingerprint_of(checkpoint, text), COUNTS) as job, ExitStack() as stack:
            files = _OutFiles(job.folder / _OUT, checkpoint, blocks, stack)
            rows = block_run(source, blocks, work, asked, job).run(batches, files, progress)
            stack.close()
            left_out = copied_files(checkpoint, files.folder)
            return named_folder(checkpoint, files.folder, Path(target), rows, left_out)


def check_new_folder(checkpoint: Checkpoint, target: Path) -> None:
    """Raise unless blocks can be written under this name.

    Args:
        checkpoint: The checkpoint that is read.
        target: The folder.

    Raises:
        OptionError: It is the name of a file, or of something that exists.
    """
    if target.suffix in (".sct", ".safetensors"):
        raise OptionError(
            f"{target}: blocks are written into a folder; name a new one, and pack it afterwards"
        )
    check_target(checkpoint, target)


def blocks_in(source: str | os.PathLike[str], checkpoint: Checkpoint, asked: BlockOptions) -> BlockModel:
    """The model that was given, or that of the folder's config.json, with the weights of the checkpoint.

    Args:
        source: The folder.
        checkpoint: The weights.
        asked: The model, and the name of its blocks, if given.
    """
    return BlockModel(
        asked.model if asked.model is not None else meta_model(source), checkpoint, asked.blocks
    )


def block_run(
    source: str | os.PathLike[str],
    blocks: BlockModel,
    work: BlockWork,
    asked: BlockOptions,
    job: ResumableJob,
) -> BlockRun:
    """The run over all blocks with these options.

    Args:
        source: The folder.
        blocks: The model.
        work: The work on every block.
        asked: The inputs of blocks, and where they are processed.
        job: The finished part.
    """
    own, dense = asked.model is not None, asked.inputs == "dense"
    return BlockRun(Path(source), blocks, own, work, dense, asked.cluster, job)


def read_data(verb: str, data: Iterable[object], checkpoint: Checkpoint) -> list[Batch]:
    """The batches of data, floating-point numbers in the type of most of the weights.

    Args:
        verb: Who asks, for errors.
        data: The batches.
        checkpoint: The weights.
    """
    return read_all(verb, data, _AnyCall(1, 1, dtype=_dtype(checkpoint)))


class _AnyCall(nn.Linear):
    """Stands for a model that is not loaded: it has the type of its weights, and takes any arguments."""

    def forward(self, *args: object, **keywords: object) -> torch.Tensor:
        """Never called."""
        raise NotImplementedError


def job_text(
    verb: str, work: BlockWork, budget: BudgetLike, asked: BlockOptions, batches: Sequence[Batch]
) -> str:
    """All options that affect the written bytes, as one text; a call with another text is another job.

    Args:
        verb: The verb.
        work: The work on every block.
        budget: How much is removed.
        asked: Which layers take part, and how they are run.
        batches: The data.
    """
    choice = (work.rule, work.grain, budget_of(budget), sorted(work.targets), work.solver, asked.blocks)
    return repr(
        (verb, *choice, asked.compensate, asked.inputs, asked.seed, repr(work.proof), _digest(batches))
    )


def _dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The type of most of the weights, to which inputs other than token numbers are converted."""
    kinds = [entry.dtype for entry in checkpoint.entries if entry.dtype in ("F32", "F16", "BF16")]
    names = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return names[max(set(kinds), key=kinds.count)] if kinds else torch.float32


def _digest(batches: Sequence[Batch]) -> str:
    """The data as one digest: other data is another job."""
    whole = hashlib.sha256()
    for batch in batches:
        for tensor in tensors_in([*batch.args, batch.kwargs]):
            whole.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            whole.update(to_words("data", tensor)[1].tobytes())
    return whole.hexdigest()


def block_targets(
    blocks: BlockModel,
    checkpoint: Checkpoint,
    asked: BlockOptions,
    skip: Pattern | Sequence[Pattern] | None,
) -> dict[str, Target]:
    """The weights of linear layers and convolutions within the blocks that the patterns match.

    Args:
        blocks: The model.
        checkpoint: The weights.
        asked: Which layers take part.
        skip: Which layers do not.

    Raises:
        NothingToDoError: None does.
    """
    inside = f"{blocks.prefix}."
    _, found = targets_in(checkpoint.entries, blocks.model, asked.only, skip, None)
    targets = {
        name: target
        for name, target in found.items()
        if name.startswith(inside) and target.kind not in ("embedding", "parameter")
    }
    if not targets:
        raise NothingToDoError(f"no linear layer or convolution of the blocks {blocks.prefix!r} takes part")
    return targets


def _budgets(
    budget: BudgetLike, blocks: BlockModel, targets: Mapping[str, Target], grain: Granularity
) -> Mapping[str, Budget]:
    """The budget that decides about each tensor."""
    lists = []
    for target in targets.values():
        for units in grain.units(blocks.model, [target], Context()):
            scores = torch.empty(units.count, device="meta")
            lists.append(Candidates(units, scores, shapes={target.name: target.shape}))
    rule = budget_of(budget)
    apart = rule.apart(Selection(tuple(lists), blocks.model, tuple(targets.values())))
    if apart is None:
        raise OptionError(
            f"{rule} compares units of several tensors, which one block at a time cannot; take a share per tensor"
        )
    return apart


def _grain(granularity: GranularityLike) -> Granularity:
    """The granularity as a value, if it cuts a tensor without looking at others."""
    grain: Granularity = granularities.make(granularity)
    if not any(isinstance(grain, granularities.get(word)) for word in ALONE):
        raise OptionError(
            f"granularity {grain} follows the forward of a whole model; block by block take one of {', '.join(ALONE)}"
        )
    return grain


class _OutFiles:
    """The files of a checkpoint being written, each tensor at its place."""

    def __init__(self, folder: Path, checkpoint: Checkpoint, blocks: BlockModel, stack: ExitStack):
        self._places: list[tuple[BinaryIO, int]] = []
        self.folder, self._checkpoint, self._blocks = folder, checkpoint, blocks
        folder.mkdir(exist_ok=True)
        for shard in checkpoint.shards:
            path = folder / shard.file
            begun = path.is_file()
            file = stack.enter_context(path.open("r+b" if begun else "w+b"))
            at = 8 + len(shard.header)
            if not begun:
                file.write(len(shard.header).to_bytes(8, "little") + shard.header)
            for entry in shard.entries:
                self._places.append((file, at))
                at += entry.nbytes
            file.truncate(at)

    def _put(self, number: int, words: np.ndarray) -> None:
        """Write the tensor of this number."""
        file, at = self._places[number]
        file.seek(at)
        file.write(little_endian(words).data)

    def begin(self) -> None:
        """Write the tensors outside the blocks."""
        inside = f"{self._blocks.prefix}."
        for number, entry in enumerate(self._checkpoint.entries):
            if not entry.name.startswith(inside):
                self._put(number, self._checkpoint.words(number))

    def write(self, index: int, done: BlockDone) -> None:
        """Write a block, and bring it to the disk.

        Args:
            index: Which block.
            done: Its result.
        """
        prefix = f"{self._blocks.prefix}.{index}."
        for name, value in done.state.items():
            self._put(self._blocks.number(f"{prefix}{name}"), to_words(name, value)[1])
        for file in dict.fromkeys(file for file, _ in self._places):
            file.flush()
            os.fsync(file.fileno())

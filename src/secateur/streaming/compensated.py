"""`compensate_checkpoint`: prune a model larger than memory on data, and refit the remaining weights, block by block.

One block at a time has its weights in memory. On its inputs in the dense model the criterion scores its weights; then
its layers are solved on the inputs that the pruned model gives them, with the dense model's outputs as targets, as
`sc.compensate` does; then both models' outputs of the block are the inputs of the next. The numbers are those of
`sc.prune` and `sc.compensate` on the model in memory.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from secateur.budget import BudgetLike, Candidates, Selection
from secateur.compensation.batches import read_all
from secateur.compensation.fitting import FittedLayer, Setting, fit
from secateur.compensation.solver import LeastSquares
from secateur.container.arrays import to_words
from secateur.container.checkpoint import Checkpoint
from secateur.container.resuming import ResumableJob, fingerprint_of, resumable
from secateur.container.shards import open_source
from secateur.core.context import Context
from secateur.core.masks import Masks
from secateur.core.nested import tensors_in
from secateur.core.targets import Pattern, Target
from secateur.criteria import Criterion, CriterionLike
from secateur.criteria import registry as criteria
from secateur.errors import NothingToDoError, OptionError
from secateur.execution.example import Batch
from secateur.granularity import Granularity, GranularityLike
from secateur.granularity import registry as granularities
from secateur.pruning.prune import budget_of
from secateur.pruning.scoring import unit_scores
from secateur.pruning.unit_masks import masks_of
from secateur.streaming.blocks import BlockModel, meta_model
from secateur.streaming.pruned import ALONE
from secateur.streaming.rewriting import RewrittenCheckpoint, Row, check_target, copied_files, little_endian
from secateur.streaming.skeleton import targets_in

__all__ = ["BlockOptions", "compensate_checkpoint"]

_OUT = "out"
BlockProgress = Callable[[int, int], None]
"""Called with (blocks done, blocks in all)."""


@dataclass(frozen=True, eq=False)
class BlockOptions:
    """Which layers of the blocks take part, and how they are run.

    Attributes:
        only: Layers that take part, by name, glob or class; all linear layers of the blocks unless given.
        model: The model on the meta device; that of the folder's config.json unless given, which needs transformers.
        blocks: The name of the list of blocks; the largest `nn.ModuleList` unless given.
        solver: How layers are solved; `LeastSquares()` unless given.
        granularity: What is removed as one unit: "element", "filter", "kernel" or "block".
        compensate: Whether the remaining weights are refitted; False prunes only.
        seed: For criteria that draw at random, and for which rows of very many are used.

    >>> BlockOptions(compensate=False).seed
    0
    """

    only: Pattern | Sequence[Pattern] | None = None
    model: nn.Module | None = None
    blocks: str | None = None
    solver: LeastSquares | None = None
    granularity: GranularityLike = "element"
    compensate: bool = True
    seed: int = 0


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
    if Path(target).suffix in (".sct", ".safetensors"):
        raise OptionError(
            f"{target}: blocks are written into a folder; name a new one, and pack it afterwards"
        )
    with open_source(source) as checkpoint:
        check_target(checkpoint, Path(target))
        model = asked.model if asked.model is not None else meta_model(source)
        blocks = BlockModel(model, checkpoint, asked.blocks)
        batches = read_all("compensate_checkpoint", data, nn.Linear(1, 1, dtype=_dtype(checkpoint)))
        choice = _Choice.of(blocks, checkpoint, criteria.make(criterion), asked, skip)
        choice.decide(budget)
        text = repr(
            (
                "compensate",
                choice.rule,
                choice.grain,
                budget_of(budget),
                sorted(choice.targets),
                (asked.blocks, asked.solver, asked.compensate, asked.seed),
                _digest(batches),
            )
        )
        with resumable(target, fingerprint_of(checkpoint, text)) as job:
            return _Run(blocks, checkpoint, batches, choice, asked, job).written(Path(target), progress)


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


@dataclass
class _Choice:
    """Which tensors of the blocks are pruned, and how."""

    rule: Criterion
    grain: Granularity
    targets: dict[str, Target]
    seed: int
    selection: Selection
    budgets: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        blocks: BlockModel,
        checkpoint: Checkpoint,
        rule: Criterion,
        asked: BlockOptions,
        skip: Pattern | Sequence[Pattern] | None,
    ) -> _Choice:
        """The linear layers and convolutions within the blocks that the patterns match."""
        inside, grain = f"{blocks.prefix}.", _grain(asked.granularity)
        _, found = targets_in(checkpoint.entries, blocks.model, asked.only, skip, None)
        targets = {
            name: target
            for name, target in found.items()
            if name.startswith(inside) and target.kind not in ("embedding", "parameter")
        }
        if not targets:
            raise NothingToDoError(
                f"no linear layer or convolution of the blocks {blocks.prefix!r} takes part"
            )
        lists = []
        for target in targets.values():
            for units in grain.units(blocks.model, [target], Context()):
                lists.append(
                    Candidates(
                        units, torch.empty(units.count, device="meta"), shapes={target.name: target.shape}
                    )
                )
        selection = Selection(tuple(lists), blocks.model, tuple(targets.values()))
        return cls(rule, grain, targets, asked.seed, selection, {})

    def decide(self, budget: BudgetLike) -> None:
        """The budget that decides about each tensor."""
        rule = budget_of(budget)
        apart = rule.apart(self.selection)
        if apart is None:
            raise OptionError(
                f"{rule} compares units of several tensors, which one block at a time cannot; take a share per tensor"
            )
        self.budgets = apart

    def masks(self, prefix: str, block: nn.Module, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """The masks of a block by the names within it."""
        inside = {
            name.removeprefix(prefix): target
            for name, target in self.targets.items()
            if name.startswith(prefix)
        }
        local = {name: _renamed(target, prefix) for name, target in inside.items()}
        if not local:
            return {}
        context = Context(data=list(batches), seed=self.seed)
        targets = list(local.values())
        units = [unit for target in targets for unit in self.grain.units(block, [target], context)]
        scores = unit_scores(self.rule, block, targets, units, context)
        chosen = {}
        for unit in units:
            budget = self.budgets.get(f"{prefix}{unit.name}")
            here = Candidates(unit, scores[unit.name], shapes={unit.name: local[unit.name].shape})
            selection = Selection((here,), block, (local[unit.name],), context)
            chosen[unit.name] = (
                torch.ones(unit.count, dtype=torch.bool)
                if budget is None
                else budget.choose(selection)[unit.name]
            )
        return dict(masks_of(block, units, chosen, None))


def _grain(granularity: GranularityLike) -> Granularity:
    """The granularity as a value, if it cuts a tensor without looking at others."""
    grain: Granularity = granularities.make(granularity)
    if not any(isinstance(grain, granularities.get(word)) for word in ALONE):
        raise OptionError(
            f"granularity {grain} follows the forward of a whole model; block by block take one of {', '.join(ALONE)}"
        )
    return grain


def _renamed(target: Target, prefix: str) -> Target:
    """A target under the names within its block."""
    fields = asdict(target) | {
        "name": target.name.removeprefix(prefix),
        "layer": target.layer.removeprefix(prefix),
    }
    return Target(**fields)


class _OutFiles:
    """The files of a checkpoint being written, each tensor at its place."""

    def __init__(self, folder: Path, checkpoint: Checkpoint, stack: ExitStack):
        self._places: list[tuple[BinaryIO, int]] = []
        self._checkpoint = checkpoint
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

    def write(self, number: int, words: np.ndarray) -> None:
        """Write the tensor of this number."""
        file, at = self._places[number]
        file.seek(at)
        file.write(little_endian(words).data)

    def flush(self) -> None:
        """Flush everything to the disk."""
        for file in dict.fromkeys(file for file, _ in self._places):
            file.flush()
            os.fsync(file.fileno())


@dataclass
class _Run:
    """One call, from block to block."""

    blocks: BlockModel
    checkpoint: Checkpoint
    batches: Sequence[Batch]
    choice: _Choice
    asked: BlockOptions
    job: ResumableJob

    def written(self, target: Path, progress: BlockProgress | None) -> RewrittenCheckpoint:
        """Write all blocks, then rename the folder."""
        out, rows = self.job.folder / _OUT, list(self.job.rows)
        count = len(self.blocks.blocks)
        with ExitStack() as stack:
            files = _OutFiles(out, self.checkpoint, stack)
            calls, first = self.blocks.calls(self.batches)
            dense, student = self._hidden(first)
            if not self.job.done:
                self._copy_rest(files)
            for index in range(self.job.done, count):
                with torch.no_grad():
                    at = [call.batch(hidden) for call, hidden in zip(calls[index], dense)]
                    now = [call.batch(hidden) for call, hidden in zip(calls[index], student)]
                    dense, student, found = self._block(index, at, now, files)
                rows += found
                files.flush()
                self._mark(index + 1, rows, dense, student)
                if progress is not None:
                    progress(index + 1, count)
        left_out = copied_files(self.checkpoint, out)
        size = sum((out / shard.file).stat().st_size for shard in self.checkpoint.shards)
        source = sum((self.checkpoint.path / shard.file).stat().st_size for shard in self.checkpoint.shards)
        if target.exists():
            target.rmdir()
        out.rename(target)
        return RewrittenCheckpoint(target, size, source, tuple(rows), left_out)

    def _copy_rest(self, files: _OutFiles) -> None:
        """Write the tensors outside the blocks."""
        inside = f"{self.blocks.prefix}."
        for number, entry in enumerate(self.checkpoint.entries):
            if not entry.name.startswith(inside):
                files.write(number, self.checkpoint.words(number))

    def _block(
        self, index: int, at: list[Batch], now: list[Batch], files: _OutFiles
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[Row]]:
        """Prune and solve one block; gives both models' outputs of it."""
        prefix = f"{self.blocks.prefix}.{index}."
        block = self.blocks.block(index)
        masks = self.choice.masks(prefix, block, at)
        student = copy.deepcopy(block)
        if masks:
            Masks(masks).apply_(student)
        setting = Setting(
            block,
            student,
            at,
            dict(masks),
            frozenset(),
            torch.device("cpu"),
            self.asked.seed,
            student_batches=now,
        )
        rows: list[Row] = []
        if self.asked.compensate:
            layers = fit(setting, self.asked.solver or LeastSquares())
            rows = [_row(prefix, layer) for layer in layers]
            assert setting.outputs is not None
            outputs = setting.outputs
        else:
            outputs = [block(*b.args, **b.kwargs) for b in at], [student(*b.args, **b.kwargs) for b in now]
            rows = [
                {"name": f"{prefix}{name}", "weights": mask.numel(), "kept": int(mask.sum())}
                for name, mask in masks.items()
            ]
        for name, value in student.state_dict().items():
            files.write(self.blocks.number(f"{prefix}{name}"), to_words(name, value)[1])
        dense, changed = ([each[0] if isinstance(each, tuple) else each for each in part] for part in outputs)
        return dense, changed, rows

    # -- resuming ----------------------------------------------------------------------------------------------
    def _hidden(self, first: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The inputs of the next block in both models: read from an interrupted call, else those of the first block."""
        if not self.job.done:
            return first, list(first)
        with safe_open(str(self.job.folder / f"hidden-{self.job.done}.safetensors"), framework="pt") as file:
            count = len(first)
            return (
                [file.get_tensor(f"dense.{index}") for index in range(count)],
                [file.get_tensor(f"student.{index}") for index in range(count)],
            )

    def _mark(
        self, done: int, rows: list[Row], dense: list[torch.Tensor], student: list[torch.Tensor]
    ) -> None:
        """Record the finished blocks, and keep the inputs of the next one."""
        kept = {f"dense.{index}": each.contiguous() for index, each in enumerate(dense)}
        kept |= {f"student.{index}": each.contiguous() for index, each in enumerate(student)}
        save_file(kept, self.job.folder / f"hidden-{done}.safetensors")
        self.job.mark(done, rows)
        (self.job.folder / f"hidden-{done - 1}.safetensors").unlink(missing_ok=True)


def _row(prefix: str, layer: FittedLayer) -> Row:
    return {
        "name": f"{prefix}{layer.name}",
        "weights": layer.numel,
        "kept": layer.kept,
        "before": layer.before,
        "after": layer.after,
    }

"""`BlockRun`: process the blocks of a model one after another, or several at a time on a Ray cluster; resumable.

By default the inputs of a block are the outputs of the changed blocks before it, so blocks are processed in order.
With inputs of the dense model they are independent: the dense model runs from block to block, and the work on each is
a task. The result is the same wherever a task runs.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from secateur.container.resuming import ResumableJob
from secateur.container.shards import open_source
from secateur.errors import MissingExtraError, OptionError, StoreError
from secateur.execution.example import Batch
from secateur.streaming.block_work import BlockDone, BlockWork, Hidden
from secateur.streaming.blocks import BlockCall, BlockModel, meta_model
from secateur.streaming.rewriting import Row

__all__ = ["BlockCluster", "BlockProgress", "BlockRun", "BlockWriter"]

BlockProgress = Callable[[int, int], None]
"""Called with (blocks done, blocks in all)."""


@dataclass(frozen=True)
class BlockCluster:
    """A Ray cluster that processes blocks.

    Attributes:
        address: Its address; None starts one on this machine.
        cpus: Cores for one block.
        memory_gib: Memory for one block in GiB; 0: not counted.
        at_a_time: The most blocks at a time; None for as many as the cores of the cluster allow.
    """

    address: str | None = None
    cpus: float = 1
    memory_gib: float = 0
    at_a_time: int | None = None

    def __post_init__(self) -> None:
        if self.cpus <= 0 or self.memory_gib < 0 or (self.at_a_time is not None and self.at_a_time < 1):
            raise OptionError(
                f"BlockCluster: expected cpus above 0, memory_gib from 0 and at_a_time from 1, got {self}"
            )


class BlockWriter(Protocol):
    """Stores the finished blocks."""

    def begin(self) -> None:
        """Write the tensors outside the blocks."""
        ...

    def write(self, index: int, done: BlockDone) -> None:
        """Write a block to the disk."""
        ...


@dataclass
class BlockRun:
    """One call for all blocks.

    Attributes:
        source: The folder.
        blocks: The model.
        own: Whether the user gave the model; False where it is that of the folder's config.json.
        work: The work on every block.
        dense_inputs: Whether the inputs of blocks are those of the dense model.
        cluster: The cluster that processes them; None for this process.
        job: The finished part.
    """

    source: Path
    blocks: BlockModel
    own: bool
    work: BlockWork
    dense_inputs: bool
    cluster: BlockCluster | None
    job: ResumableJob

    def run(self, batches: Sequence[Batch], writer: BlockWriter, progress: BlockProgress | None) -> list[Row]:
        """Process all unfinished blocks; returns the rows of all.

        Args:
            batches: The inputs of the model.
            writer: Stores the blocks.
            progress: Called for every block.
        """
        count = len(self.blocks.blocks)
        calls, first = self.blocks.calls(batches)
        hidden = self._hidden(first)
        rows = list(self.job.rows)
        if not self.job.done:
            writer.begin()
        results = (
            self._here(calls, hidden) if self.cluster is None else self._there(self.cluster, calls, hidden)
        )
        for index, done in enumerate(results, self.job.done):
            rows += done.rows
            writer.write(index, done)
            self._mark(index + 1, rows, done)
            if progress is not None:
                progress(index + 1, count)
        return rows

    def _here(
        self, calls: Sequence[Sequence[BlockCall]], hidden: tuple[Hidden, Hidden]
    ) -> Iterator[BlockDone]:
        dense, student = hidden
        for index in range(self.job.done, len(calls)):
            at, now = _batches(calls[index], dense), _batches(calls[index], student)
            done = self.work.run(f"{self.blocks.prefix}.{index}.", self.blocks.block(index), at, now)
            if self.dense_inputs:
                done = replace(done, student=done.dense)
            yield done
            dense, student = done.dense, done.student

    def _there(
        self, cluster: BlockCluster, calls: Sequence[Sequence[BlockCall]], hidden: tuple[Hidden, Hidden]
    ) -> Iterator[BlockDone]:
        """The same with Ray tasks, several of them submitted ahead."""
        with _ray(cluster) as ray:
            yield from self._tasks(ray, cluster, calls, hidden)

    def _tasks(
        self,
        ray: Any,
        cluster: BlockCluster,
        calls: Sequence[Sequence[BlockCall]],
        hidden: tuple[Hidden, Hidden],
    ) -> Iterator[BlockDone]:
        memory = {"memory": int(cluster.memory_gib * 2**30)} if cluster.memory_gib else {}
        task = ray.remote(num_cpus=cluster.cpus, max_retries=3, **memory)(_block_task)
        most = cluster.at_a_time or max(1, int(ray.cluster_resources().get("CPU", 1) // cluster.cpus))
        model = self.blocks.model if self.own else None
        where = (str(self.source), self.blocks.prefix, model, torch.get_num_threads())
        waiting: deque[object] = deque()
        dense, _ = hidden
        for index in range(self.job.done, len(calls)):
            if len(waiting) > most:
                yield ray.get(waiting.popleft())
            at = _batches(calls[index], dense)
            waiting.append(task.remote(self.work, where, index, at))
            if index + 1 < len(calls):
                with torch.no_grad():
                    dense = _outputs(self.blocks.block(index), at)
        while waiting:
            yield ray.get(waiting.popleft())

    # -- resuming ----------------------------------------------------------------------------------------------
    def _hidden(self, first: Hidden) -> tuple[Hidden, Hidden]:
        """The inputs of the next block in both models: read from an interrupted call, else those of the first block.

        Raises:
            StoreError: What it kept cannot be read, or does not fit; it is deleted with the error.
        """
        if not self.job.done:
            return first, list(first)
        try:
            return self._read(first)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise StoreError(
                f"{self.source}: what an interrupted call kept of it cannot be used ({error}) and is deleted; run the "
                "same command again: it begins with the first block"
            ) from error

    def _read(self, first: Hidden) -> tuple[Hidden, Hidden]:
        """The inputs that an interrupted call kept; raises where they are not those of the next block."""
        if self.job.done > len(self.blocks.blocks):
            raise ValueError(f"{self.job.done} blocks of {len(self.blocks.blocks)} are done")
        with safe_open(str(self.job.folder / f"hidden-{self.job.done}.safetensors"), framework="pt") as file:
            kept = [
                [file.get_tensor(f"{name}.{index}") for index in range(len(first))]
                for name in ("dense", "dense" if self.dense_inputs else "student")
            ]
        pairs = [pair for each in kept for pair in zip(each, first)]
        if any((one.shape, one.dtype) != (other.shape, other.dtype) for one, other in pairs):
            raise ValueError("the inputs have other shapes, or other numbers")
        return kept[0], kept[1]

    def _mark(self, number: int, rows: list[Row], done: BlockDone) -> None:
        """Record the finished blocks, and keep the inputs of the next one."""
        kept = {f"dense.{index}": each.contiguous() for index, each in enumerate(done.dense)}
        if not self.dense_inputs:
            kept |= {f"student.{index}": each.contiguous() for index, each in enumerate(done.student)}
        save_file(kept, self.job.folder / f"hidden-{number}.safetensors")
        self.job.mark(number, rows)
        (self.job.folder / f"hidden-{number - 1}.safetensors").unlink(missing_ok=True)


def _batches(calls: Sequence[BlockCall], hidden: Hidden) -> list[Batch]:
    return [call.batch(each) for call, each in zip(calls, hidden)]


def _outputs(block: nn.Module, batches: Sequence[Batch]) -> Hidden:
    """The outputs of a block, for every batch."""
    found = [block(*batch.args, **batch.kwargs) for batch in batches]
    return [each[0] if isinstance(each, tuple) else each for each in found]


def _block_task(
    work: BlockWork, where: tuple[str, str, nn.Module | None, int], index: int, at: Sequence[Batch]
) -> BlockDone:
    """Process one block in a worker of the cluster; its weights are read from the folder."""
    source, prefix, model, threads = where
    torch.set_num_threads(threads)  # the order of additions may depend on it
    with open_source(source) as checkpoint:
        blocks = BlockModel(meta_model(source) if model is None else model, checkpoint, prefix)
        done = work.run(f"{prefix}.{index}.", blocks.block(index), at, at)
    return replace(done, student=done.dense)


@contextmanager
def _ray(cluster: BlockCluster) -> Iterator[ModuleType]:
    """Ray, connected to the cluster; one that was started here is shut down afterwards."""
    try:
        import ray
    except ImportError:
        raise MissingExtraError(
            "working on blocks on a cluster needs Ray: pip install 'secateur[ray]'"
        ) from None
    own = not ray.is_initialized()
    if own:
        here: dict[str, Any] = {} if cluster.address else {"include_dashboard": False}
        ray.init(
            address=cluster.address or "local",
            logging_level=logging.ERROR,
            log_to_driver=False,
            configure_logging=False,
            **here,
        )
    try:
        yield ray
    finally:
        if own:
            ray.shutdown()

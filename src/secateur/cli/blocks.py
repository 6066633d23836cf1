"""`compensate`: prune a transformer larger than memory on data, block by block, and refit or cut it.

>>> [verb.__name__ for verb in VERBS]
['compensate']
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.checkpoints import OnlyLayers, SkippedLayers, print_written
from secateur.cli.cluster import Address, EngineChoice, EngineOption
from secateur.cli.flags import with_flags
from secateur.cli.options import ProgressFlags
from secateur.cli.output import progress_bar
from secateur.errors import OptionError

if TYPE_CHECKING:
    from secateur.streaming.compensated import BlockOptions

__all__ = ["VERBS"]

_CUT = ("channel", "head", "head_size")


@dataclass(frozen=True)
class SequenceFlags:
    """The sequences to calibrate on."""

    calibrate: Annotated[
        Path,
        typer.Option(
            "--calibrate",
            metavar="FILE",
            help="A text, read by the folder's tokenizer; or a .safetensors file with `input_ids` in rows.",
            show_default=False,
        ),
    ]
    sequences: Annotated[int, typer.Option("--sequences", min=1, help="How many sequences are used.")] = 128
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="The tokens of each sequence.")] = 512


@dataclass(frozen=True)
class BlockFlags:
    """What is removed, and how blocks are processed."""

    criterion: Annotated[
        str, typer.Option("--criterion", help="How a weight is scored: wanda, obs, or one without data.")
    ] = "wanda"
    granularity: Annotated[
        str,
        typer.Option(
            "--granularity",
            help="What is removed as one unit: element, filter, kernel or block leave zeros; channel, head and "
            "head_size are cut out, and the configuration gets the new widths.",
        ),
    ] = "element"
    budget: Annotated[
        float, typer.Option("--budget", help="Share of the units of every tensor to remove.")
    ] = 0.5
    only: OnlyLayers = None
    skip: SkippedLayers = None
    rounds: Annotated[
        int, typer.Option("--rounds", min=0, help="Rounds of solving a large layer, at most; 0 only prunes.")
    ] = 60
    dense_inputs: Annotated[
        bool,
        typer.Option(
            "--dense-inputs", help="Solve blocks on the dense model's inputs: they depend on none before."
        ),
    ] = False
    engine: EngineOption = EngineChoice.local
    address: Address = None
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of criteria that draw.")] = 0

    def options(self) -> BlockOptions:
        """The same as options of the verbs."""
        from secateur.compensation.solver import LeastSquares
        from secateur.streaming.block_runs import BlockCluster
        from secateur.streaming.compensated import BlockOptions

        ray = self.engine is EngineChoice.ray
        if ray and not self.dense_inputs:
            raise OptionError("--engine ray needs --dense-inputs: else a block waits for the ones before it")
        if self.address is not None and not ray:
            raise OptionError("--address is of --engine ray; add that, or leave it out")
        return BlockOptions(
            self.only or None,
            solver=LeastSquares(rounds=self.rounds) if self.rounds else None,
            granularity=self.granularity,
            compensate=self.rounds > 0,
            inputs="dense" if self.dense_inputs else "pruned",
            cluster=BlockCluster(self.address) if ray else None,
            seed=self.seed,
        )


@with_flags
def compensate(
    source: Annotated[
        Path, typer.Argument(help="A folder with an index and config.json.", show_default=False)
    ],
    target: Annotated[Path, typer.Argument(help="The new folder to write.", show_default=False)],
    data: SequenceFlags,
    blocks: BlockFlags,
    *,
    output: ProgressFlags,
) -> None:
    """Prune a transformer on sequences, one block in memory at a time, and refit the rest. A killed run continues."""
    from secateur.streaming.compensated import compensate_checkpoint
    from secateur.streaming.sequences import sequences_of
    from secateur.streaming.shrunk import shrink_checkpoint

    options, skip = blocks.options(), blocks.skip or None
    batches = sequences_of(data.calibrate, source, data.sequences, data.tokens)
    verb = shrink_checkpoint if blocks.granularity in _CUT else compensate_checkpoint
    with progress_bar(output.quiet, counts=True) as bar:
        done = verb(
            source,
            target,
            batches,
            blocks.criterion,
            blocks.budget,
            skip=skip,
            options=options,
            progress=None if bar is None else lambda done, count: bar(done, count, "blocks"),
        )
    weights = sum(int(str(row["weights"])) for row in done.rows)
    kept = sum(int(str(row["kept"])) for row in done.rows)
    what = "blocks cut and proved" if verb is shrink_checkpoint else "layers"
    print_written(done, output, f"{kept:,} of {weights:,} weights kept in {len(done.rows)} {what}")


VERBS = (compensate,)

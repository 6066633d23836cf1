"""Verbs on checkpoints larger than memory: `prune`, `share`. No model class is needed.

>>> [verb.__name__ for verb in VERBS]
['prune', 'share']
>>> bytes_of("1.5GB"), bytes_of("512MiB"), bytes_of(None)
(1500000000, 536870912, None)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.flags import with_flags
from secateur.cli.options import ProgressFlags
from secateur.cli.output import print_json, progress_bar, written
from secateur.core.terminal import printable, say
from secateur.errors import OptionError

if TYPE_CHECKING:
    from secateur.streaming.pruned import StreamOptions
    from secateur.streaming.rewriting import RewrittenCheckpoint

__all__ = ["VERBS", "Memory", "OnlyLayers", "SkippedLayers", "bytes_of", "print_written"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="BYTES",
        help="Memory for the tensors that are loaded at a time, such as 2GB. Default: half of the free memory.",
    ),
]
OnlyLayers = Annotated[
    list[str] | None, typer.Option("--only", help="Layers that take part, by name or glob. Repeatable.")
]
SkippedLayers = Annotated[
    list[str] | None, typer.Option("--skip", help="Layers to leave alone, by name or glob. Repeatable.")
]
_Source = Annotated[
    Path, typer.Argument(help="A folder with an index, or a .safetensors file.", show_default=False)
]
_Target = Annotated[
    Path,
    typer.Argument(help="What to write: a new folder, a .safetensors or a .sct file.", show_default=False),
]


def bytes_of(text: str | None) -> int | None:
    """A number of bytes with its unit: KB, MB and GB count in thousands, KiB, MiB and GiB in 1,024.

    Args:
        text: Such as 2GB; None gives None.
    """
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)", text.strip())
    if found is None or found[2].upper() not in _UNITS:
        raise OptionError(f"--memory: expected a number of bytes such as 800MB or 2GB, got {text!r}")
    return int(float(found[1]) * _UNITS[found[2].upper()])


@dataclass(frozen=True)
class StreamFlags:
    """Which tensors take part, and how much memory and how many processes are used."""

    only: OnlyLayers = None
    skip: SkippedLayers = None
    memory: Memory = None
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, help="Tensors worked on at a time. Default: one for each processor."
        ),
    ] = None

    def options(self, seed: int = 0) -> StreamOptions:
        """The same as options of the verbs."""
        from secateur.streaming.pruned import StreamOptions

        return StreamOptions(self.only or None, seed=seed, memory=bytes_of(self.memory), workers=self.workers)


@dataclass(frozen=True)
class ChoiceFlags:
    """Which weights are removed."""

    criterion: Annotated[str, typer.Option("--criterion", help="How a weight is scored, without data.")] = (
        "magnitude"
    )
    granularity: Annotated[
        str, typer.Option("--granularity", help="What is cut as one unit: element, filter, kernel or block.")
    ] = "element"
    budget: Annotated[float, typer.Option("--budget", help="Share of the units to remove.")] = 0.5
    overall: Annotated[
        bool, typer.Option("--overall", help="All tensors compete; default: the share of each tensor.")
    ] = False
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of criteria that draw.")] = 0


@with_flags
def prune(
    source: _Source, target: _Target, choice: ChoiceFlags, *, stream: StreamFlags, output: ProgressFlags
) -> None:
    """Set weights of a checkpoint to zero, one tensor in memory at a time. A killed run continues when the command is
    run again.
    """
    from secateur.budget.overall import Overall
    from secateur.streaming.pruned import prune_checkpoint

    with progress_bar(output.quiet) as on_progress:
        done = prune_checkpoint(
            source,
            target,
            choice.criterion,
            choice.granularity,
            Overall(choice.budget) if choice.overall else choice.budget,
            skip=stream.skip or None,
            options=stream.options(choice.seed),
            progress=on_progress,
        )
    weights = sum(int(str(row["weights"])) for row in done.rows)
    kept = sum(int(str(row["kept"])) for row in done.rows)
    print_written(done, output, f"{kept:,} of {weights:,} weights kept in {len(done.rows)} tensors")


@with_flags
def share(
    source: _Source,
    target: _Target,
    bits: Annotated[int, typer.Option("--bits", min=1, max=8, help="2**bits values a tensor.")] = 5,
    method: Annotated[str, typer.Option("--method", help="How the values are found.")] = "kmeans",
    *,
    stream: StreamFlags,
    output: ProgressFlags,
) -> None:
    """Give the tensors of a checkpoint few distinct values, one tensor in memory at a time. A killed run continues."""
    from secateur.streaming.shared import share_checkpoint

    with progress_bar(output.quiet) as on_progress:
        done = share_checkpoint(
            source,
            target,
            bits,
            method=method,
            skip=stream.skip or None,
            options=stream.options(),
            progress=on_progress,
        )
    weights = sum(int(str(row["weights"])) for row in done.rows)
    print_written(done, output, f"{weights:,} weights shared in {len(done.rows)} tensors")


def print_written(done: RewrittenCheckpoint, output: ProgressFlags, summary: str) -> None:
    """Print what was written.

    Args:
        done: What a verb wrote.
        output: As a table or as JSON.
        summary: The end of the line.
    """
    if output.json:
        print_json(
            {
                **written(done.path, done.size),
                "source_bytes": done.source,
                "left_out": list(done.left_out),
                "tensors": list(done.rows),
            }
        )
        return
    say(f"{done.path}: {done.size:,} bytes from {done.source:,}; {summary}")
    if done.left_out:
        first, more = ", ".join(map(printable, done.left_out[:3])), len(done.left_out) - 3
        say(f"not copied: {first}{f' and {more} more' if more > 0 else ''}")


VERBS = (prune, share)

"""`scan`: the accuracy that each layer of a model costs when it alone is pruned.

>>> ScanFlags(levels="0.25,0.5").sparsities()
(0.25, 0.5)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.cluster import Address, EngineChoice, EngineOption
from secateur.cli.flags import with_flags
from secateur.cli.given import InputFlags
from secateur.cli.options import Evaluate, OutputFlags, TrialsOrNone, own_criterion, repetitions_of
from secateur.cli.output import print_json
from secateur.core.terminal import say, shows_bars
from secateur.errors import OptionError

if TYPE_CHECKING:
    from torch import nn

    from secateur.lab.engines.worker_pool import WorkerPool
    from secateur.sensitivity.scan_result import Scan

__all__ = ["VERBS"]


@dataclass(frozen=True)
class ScanFlags:
    """What is pruned at which levels, and how it is evaluated."""

    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Accuracy is measured on the test images of this dataset, or of data of your own, module:function; "
            "digits unless --evaluate is given.",
        ),
    ] = None
    evaluate: Evaluate = None
    granularity: Annotated[str, typer.Option("--granularity", help="What is cut as one unit.")] = "filter"
    criterion: Annotated[
        str, typer.Option("--criterion", help="How a weight is scored: a name, or module:Class of your own.")
    ] = "l2"
    levels: Annotated[str, typer.Option("--levels", help="Sparsities: a,b,c or first:last:step.")] = (
        "0.1:0.9:0.1"
    )
    skip: Annotated[list[str] | None, typer.Option("--skip", help="Layers to leave alone. Repeatable.")] = (
        None
    )
    subset: Annotated[
        int | None,
        typer.Option("--subset", min=1, help="Number of images to use, with intervals; default: all."),
    ] = None
    estimate: Annotated[
        str | None,
        typer.Option("--estimate", help="A first-order criterion to print beside the values: taylor."),
    ] = None
    repetitions: Annotated[
        int,
        typer.Option(
            "--repetitions", min=0, help="Also time every cell's shrunk model, this many times (channel)."
        ),
    ] = 0
    trials: TrialsOrNone = None
    quick: Annotated[
        bool,
        typer.Option(
            "--quick/--plain",
            help="The same numbers by a faster forward pass; uncertain images are checked again.",
        ),
    ] = True

    def sparsities(self) -> tuple[float, ...]:
        """The levels as numbers."""
        from secateur.lab.recipe import axis_values

        try:
            values: object = (
                self.levels
                if self.levels.count(":") == 2
                else [float(part) for part in self.levels.split(",")]
            )
        except ValueError:
            raise OptionError(
                f"--levels {self.levels}: expected numbers with commas between them, or first:last:step"
            ) from None
        return tuple(axis_values("levels", values, "--levels"))


@dataclass(frozen=True)
class AllotFlags:
    """The use of the scan: one level for every layer."""

    floor: Annotated[
        float | None,
        typer.Option(
            "--floor", help="Also choose levels: the highest level that keeps this accuracy, per layer."
        ),
    ] = None
    keep: Annotated[
        float | None,
        typer.Option("--keep", help="Also choose levels: the best accuracy at this share of the cost."),
    ] = None
    cost: Annotated[
        str,
        typer.Option(
            "--cost", help="What --keep is a share of: macs, params, size, latency (--repetitions)."
        ),
    ] = "macs"

    def check(self) -> None:
        """Refuse two rules at once."""
        if self.floor is not None and self.keep is not None:
            raise OptionError("--floor and --keep are two rules to choose levels; give only one of them")

    def show(self, found: Scan) -> None:
        """Print the level of every layer, if that was asked for."""
        if self.floor is not None:
            say(f"\n{found.allocate(floor=self.floor).table()}")
        elif self.keep is not None:
            say(f"\n{found.allocate(keep=self.keep, cost=self.cost).table()}")


@dataclass(frozen=True)
class ScanWorkFlags:
    """Where the work is done, and where its results are kept."""

    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            "--jobs",
            "-j",
            min=1,
            help="Processes that share the layers. Default: for a long scan, threads on all cores within the memory.",
        ),
    ] = None
    engine: EngineOption = EngineChoice.local
    address: Address = None
    out: Annotated[Path | None, typer.Option("--out", help="Write the scan as JSON to this file.")] = None
    resume: Annotated[
        Path | None,
        typer.Option("--resume", help="A file that keeps the values, so that a stopped scan continues."),
    ] = None

    def check(self) -> None:
        """Refuse the address of a cluster that is not used."""
        if self.address and self.engine is EngineChoice.local:
            raise OptionError(
                f"--address {self.address}: belongs to --engine ray; on one machine layers are distributed by "
                "--jobs only; leave it out, or give --engine ray"
            )

    def pool(self) -> WorkerPool | None:
        """The processes that share the layers, or None for this process only."""
        from secateur.lab.engines.worker_pool import WorkerPool

        if self.engine is EngineChoice.ray:
            return WorkerPool.ray(self.address, self.workers if self.workers and self.workers > 1 else None)
        return WorkerPool.local(self.workers) if self.workers and self.workers > 1 else None


@with_flags
def scan(
    model: InputFlags, flags: ScanFlags, allot: AllotFlags, work: ScanWorkFlags, output: OutputFlags
) -> None:
    """How much accuracy each layer costs when it alone is pruned, at every level; the model does not change."""
    from torch.nn import functional

    from secateur.sensitivity.scan import ScanOptions
    from secateur.sensitivity.scan import scan as look

    allot.check()
    work.check()
    if model.weights is None:
        say("warning: no weights were given, so those scanned are random", error=True)
    net = model.build()
    judge, example = _judged(net, model, flags)
    found = look(
        net,
        judge,
        flags.granularity,
        flags.sparsities(),
        criterion=own_criterion(flags.criterion),
        skip=flags.skip,
        example=example,
        options=ScanOptions(
            subset=flags.subset,
            estimate=flags.estimate,
            loss=functional.cross_entropy if flags.estimate else None,
            repetitions=repetitions_of(flags.repetitions, flags.trials),
            quick=flags.quick,
            workers=work.workers if work.workers == 1 else None,
            engine=work.pool(),
            resume=work.resume,
            progress=_show_progress,
            seed=model.seed or 0,
        ),
    )
    if work.out is not None:
        found.save(work.out)
    if output.json:
        print_json(asdict(found))
        return
    say(found)
    allot.show(found)


def _judged(net: nn.Module, model: InputFlags, flags: ScanFlags) -> tuple[Any, Any]:
    """What the scan is evaluated by (batches, or the user's function), and one input."""
    from secateur import data as datasets
    from secateur.lab.judging import score_by

    judge = partial(score_by, name=flags.evaluate or "", verb="scan")
    if flags.evaluate is not None and flags.data is None:
        return partial(judge, split=None), model.example(net)
    images = datasets.load_for(net, flags.data or "digits")
    example = images.example if model.input_ is None else model.example(net)
    if flags.evaluate is not None:
        return partial(judge, split=images.test), example
    return list(images.test.batches(256)), example


def _show_progress(done: int, total: int, left: float) -> None:
    """One line on a terminal, written over."""
    if shows_bars():
        end = "\n" if done == total else ""
        say(f"\r{done} of {total} values, {left:.0f} s left ", end=end, error=True)


VERBS = (scan,)

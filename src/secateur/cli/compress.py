"""`compress`: the fastest or smallest form of a trained model that loses at most `--lost` of its accuracy.

>>> VERBS[0].__name__
'compress'
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.auto import Goal
from secateur.cli.calibrating import CalibrationFlags
from secateur.cli.flags import with_flags
from secateur.cli.given import InputFlags
from secateur.cli.options import Evaluate, ProgressFlags, own_criterion
from secateur.cli.output import print_json, written
from secateur.core.terminal import say
from secateur.errors import OptionError

if TYPE_CHECKING:
    from torch import nn

    from secateur.data import Split
    from secateur.search.compressed import Compressed

__all__ = ["VERBS"]

_Judge = Callable[["nn.Module"], Any]


@dataclass(frozen=True)
class CompressFlags:
    """What is to be small, what may be lost, and how that is judged."""

    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Judge by the accuracy on the test images of this dataset, or of data of your own, module:function: "
            "every second image decides, the others judge the result once.",
        ),
    ] = None
    evaluate: Evaluate = None
    lost: Annotated[
        float | None,
        typer.Option(
            "--lost",
            help="What may be lost, in the unit of what judges: 0.01, a point of accuracy, without --keep.",
        ),
    ] = None
    keep: Annotated[
        float | None,
        typer.Option(
            "--keep",
            help="The best model of a given size: the share of multiply-accumulates (fast) or bytes (small) that may "
            "remain.",
        ),
    ] = None
    goal: Annotated[Goal, typer.Option("--goal", help="fast: fewer channels; small: a small file.")] = (
        Goal.fast
    )
    tries: Annotated[int, typer.Option("--tries", min=1, help="Number of shares to try.")] = 6
    allocation: Annotated[
        str,
        typer.Option(
            "--allocation",
            help="uniform: all layers alike; scan: by measured sensitivity; between: the mean of both; best: any.",
        ),
    ] = "uniform"
    criterion: Annotated[
        str | None, typer.Option("--criterion", help="How weights are scored: a name, or module:Class.")
    ] = None
    skip: Annotated[list[str] | None, typer.Option("--skip", help="Layers to leave alone. Repeatable.")] = (
        None
    )
    round_to: Annotated[
        int | None, typer.Option("--round-to", min=1, help="Keep widths at a multiple of this (fast).")
    ] = None
    bits: Annotated[
        list[int] | None,
        typer.Option(
            "--bits", min=1, max=8, help="Bits of a shared weight (small). Repeatable; else 3, then 4."
        ),
    ] = None

    def check(self, out: Path, folder: bool) -> None:
        """Refuse options that have no effect, and a place that nothing could be written to.

        Args:
            out: What is written.
            folder: Whether that is a folder.
        """
        if self.goal is Goal.small and folder:
            raise OptionError(f"{out}: --goal small writes one file; expected a name that ends in .sct")
        if self.goal is Goal.small and self.round_to is not None:
            raise OptionError("--round-to is for --goal fast, which removes channels; leave it out")
        if self.goal is Goal.fast and self.bits is not None:
            raise OptionError("--bits is for --goal small, which shares weights; leave it out")

    def judges(self, net: nn.Module) -> tuple[_Judge, _Judge | None]:
        """What decides, and what judges once at the end.

        Args:
            net: The model, whose inputs say how the data is read.
        """
        from secateur import data as datasets
        from secateur.lab.judging import evaluator

        if self.data is None:
            if self.evaluate is None:
                raise OptionError(
                    "compress: expected something that judges; give --data (a dataset with labels) or --evaluate "
                    "module:function"
                )
            return evaluator(self.evaluate, None), None
        decides, last = datasets.load_for(net, self.data).test.halves()
        return self._judge(decides), self._judge(last)

    def _judge(self, split: Split) -> _Judge:
        from secateur.lab.judging import evaluator
        from secateur.lab.training import evaluate

        if self.evaluate is not None:
            return evaluator(self.evaluate, split)
        return lambda model: {"accuracy": evaluate(model, split)["accuracy"]}


@with_flags
def compress(
    model: InputFlags,
    flags: CompressFlags,
    out: Annotated[
        Path,
        typer.Option("--out", help="A .sct file; or, of a Hugging Face model, a new folder (fast)."),
    ] = Path("small.sct"),
    *,
    calibration: CalibrationFlags,
    output: ProgressFlags,
) -> None:
    """Prune a trained model as far as the accuracy allows, with the reason for every decision, and write it. Nothing is
    trained; --calibrate refits the remaining weights."""
    from secateur.cli.small_files import check_out, is_folder, write_folder
    from secateur.container.archive import save
    from secateur.core.file_endings import check_ending
    from secateur.search.compress import compress as search
    from secateur.search.compressed import CompressOptions

    if not is_folder(out):
        check_ending(out, "compress writes a .sct file", ".sct")
    flags.check(out, is_folder(out))
    calibration.check()
    net, earlier = model.build_cut()
    check_out(out, net)
    example, (judge, test) = model.example(net), flags.judges(net)
    found = search(
        net,
        example,
        judge,
        goal=flags.goal.value,
        lost=flags.lost,
        data=list(calibration.inputs(net, model.folder())) if calibration.wanted else None,
        options=CompressOptions(
            attempts=flags.tries,
            keep=flags.keep,
            allocation=flags.allocation,
            criterion=None if flags.criterion is None else own_criterion(flags.criterion),
            skip=flags.skip,
            round_to=flags.round_to,
            bits=tuple(flags.bits or (3, 4)),
            tune=calibration.calibrate_passes or None,
            test=test,
            plan=earlier,
            progress=not output.quiet,
            seed=model.seed or 0,
        ),
    )
    size = (
        write_folder(found.model, out, example, model.folder()).size
        if is_folder(out)
        else save(found, out).size
    )
    if output.json:
        print_json({**_plain(found), **written(out, size)})
        return
    say(found)
    say(f"{out}: {size:,} bytes")
    if not model.trained():
        say("warning: no weights were given, so those of the file are random", error=True)


def _plain(found: Compressed) -> dict[str, object]:
    """The result as plain data."""
    attempts = [
        {
            "keep": one.keep,
            "accuracy": one.accuracy,
            "holds": one.holds,
            "file_bytes": one.bytes,
            "why": one.why,
        }
        for one in found.attempts
    ]
    rows = [*found.before.within({"variant": "dense"}), *found.after.within({"variant": "result"})]
    return {
        "goal": found.goal,
        "dense": found.dense,
        "limit": found.limit if math.isfinite(found.limit) else None,
        "attempts": attempts,
        "measurements": [row.to_dict() for row in [*rows, *found.speed, *found.test]],
    }


VERBS = (compress,)

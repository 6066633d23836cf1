"""`measure`: the cost, time and accuracy of a model given by name, each number with its definition.

>>> VERBS[0].__name__
'measure'
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.flags import with_flags
from secateur.cli.given import InputFlags, ModelFlags
from secateur.cli.options import Device, Evaluate, OutputFlags, Trials, repetitions_of
from secateur.cli.output import print_json, show_table
from secateur.core.terminal import say

if TYPE_CHECKING:
    from torch import nn

    from secateur.core.measurement import Measurements
    from secateur.data import Data

__all__ = ["AS_COUNTED", "VERBS"]

AS_COUNTED = 0.9
"""A speed-up of at least this share of the ratio of multiply-accumulates needs no explanation."""


@dataclass(frozen=True)
class MeasureFlags:
    """What is measured, on what."""

    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Also measure accuracy on the test images of this dataset, or of data of your own, module:function.",
        ),
    ] = None
    evaluate: Evaluate = None
    what: Annotated[
        str | None, typer.Option("--what", help="Only these measures, with commas between them.")
    ] = None
    batch: Annotated[int, typer.Option("--batch", min=1, help="Inputs of one timed forward pass.")] = 1
    repetitions: Annotated[int, typer.Option("--repetitions", min=1, help="Timed repetitions.")] = 25
    trials: Trials = None
    explained: Annotated[
        bool, typer.Option("--why/--no-why", help="Of a shrunk model: where the time goes, layer by layer.")
    ] = True

    def names(self) -> list[str] | None:
        """The measures that were named, or None for all."""
        return self.what.split(",") if self.what else None

    def timed(self) -> bool:
        """True if the time of a forward pass is measured."""
        return self.what is None or "latency" in self.what.split(",")


@with_flags
def measure(model: InputFlags, flags: MeasureFlags, device: Device = None, *, output: OutputFlags) -> None:
    """Parameters, multiply-accumulates, bytes, time, memory and accuracy of a model, each with its definition. For a
    shrunk model (a .sct file that holds its plan) also what it gained over the dense one, and why it is not faster."""
    from secateur.adapters.two_of_four import has_two_of_four, two_of_four
    from secateur.core.measurement import Measurements
    from secateur.execution.devices import device_word

    where = device_word(device.value if device is not None else "cpu")
    net = model.build().to(where)
    found = _measured(net, model, flags, where)
    gain = _against_dense(net, model, flags, where) if flags.explained and flags.timed() else None
    if output.json:
        rows = [item.to_dict() for item in Measurements(found)]
        print_json({"measurements": rows} if gain is None else {"measurements": rows, "against_dense": gain})
        return
    show_table(["measure", "value", "definition"], list(found.rows()), right=(1,))
    for item in found:
        for note in item.notes:
            say(f"  {item.name}: {note}")
    if has_two_of_four(net):
        say(
            two_of_four(
                net,
                model.example(net, flags.batch),
                repetitions=repetitions_of(flags.repetitions, flags.trials),
            )
        )
    if gain is not None:
        say(
            f"\nagainst the dense model: {gain['fewer']:.2f}x fewer multiply-accumulates, {gain['faster_text']}"
        )
        say(gain["why"] or "time fell as the count did")


def _measured(net: nn.Module, model: InputFlags, flags: MeasureFlags, where: str) -> Measurements:
    """The measures that were asked for; accuracy where test images, or a function that judges, were named."""
    from secateur import data as datasets
    from secateur.core.measurement import Measurements
    from secateur.lab.judging import evaluator
    from secateur.lab.training import evaluate
    from secateur.metrics import measure as take
    from secateur.metrics.accuracy import RETURNED

    timing: dict[str, Any] = (
        {"repetitions": repetitions_of(flags.repetitions, flags.trials)} if flags.timed() else {}
    )
    if flags.data is None:
        judge = None if flags.evaluate is None else evaluator(flags.evaluate, None)
        return take(net, model.example(net, flags.batch), judge, what=flags.names(), **timing)
    images = datasets.load_for(net, flags.data)
    example = images.test.first(flags.batch)[0] if model.input_ is None else model.example(net, flags.batch)
    if flags.evaluate is not None:
        judge = evaluator(flags.evaluate, images.test)
        return take(net, example, judge, what=flags.names(), **timing)
    found = take(
        net, example, lambda one: evaluate(one, images.test, device=where), what=flags.names(), **timing
    )
    return Measurements(
        replace(row, definition=f"{row.name} on {_described(images)}") if row.definition == RETURNED else row
        for row in found
    )


def _described(images: Data) -> str:
    """How many images, of which size, and how they were normalised; of other inputs how many, of which shape."""
    shape = "x".join(map(str, images.shape))
    if not images.std:
        return f"the {len(images.test):,} test inputs of {images.name} ({shape}), as they are"
    mean, deviation = (", ".join(f"{value:.4g}" for value in values) for values in (images.mean, images.std))
    return (
        f"the {len(images.test):,} test images of {images.name} ({shape}), each channel of the pixels in 0..1 less its "
        f"mean ({mean}) over its deviation ({deviation})"
    )


def _against_dense(
    net: nn.Module, model: InputFlags, flags: MeasureFlags, where: str
) -> dict[str, Any] | None:
    """What a shrunk model gained over the dense model of the same name; None if `net` is the dense model."""
    from secateur.metrics import measure as take
    from secateur.metrics import why
    from secateur.metrics.latency import compare

    dense = ModelFlags(model.model, None, model.option, model.seed).build().to(where)
    shapes = [{key: tuple(value.shape) for key, value in one.state_dict().items()} for one in (dense, net)]
    if shapes[0] == shapes[1]:
        return None
    example = model.example(net, flags.batch)
    counts = [float(take(one, example, what="macs")["macs"].value) for one in (dense, net)]
    fewer = counts[0] / max(1.0, counts[1])
    times = compare(
        dense,
        net,
        example,
        repetitions=repetitions_of(flags.repetitions, flags.trials),
        names=("dense", "shrunk"),
    )
    speedup = times["speedup"]
    reason = str(why(dense, net, example, times=times)) if speedup.value < AS_COUNTED * fewer else ""
    return {
        "fewer": fewer,
        "faster": speedup.value,
        "faster_text": f"{speedup.text()} as fast",
        "why": reason,
    }


VERBS = (measure,)

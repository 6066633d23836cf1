"""Verbs on a model given by name: `measure`, `explain`, `shrink`, `scan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.cluster import Address, EngineChoice, EngineOption
from secateur.cli.given import ModelName, ModelOptions, Weights, example_of, model_of
from secateur.cli.options import Debug, Device, Example, Json, Seed
from secateur.cli.output import print_json, show_table
from secateur.errors import OptionError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["VERBS"]

_AS_COUNTED = 0.9  # a speed-up of at least this share of the MACs' ratio needs no explanation


def measure(
    model: ModelName,
    weights: Weights = None,
    option: ModelOptions = None,
    input_: Example = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Also measure accuracy on the test images of this.")
    ] = None,
    what: Annotated[
        str | None, typer.Option("--what", help="Only these measures, with commas between them.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Inputs of one timed forward pass.")] = 1,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Timed repetitions.")] = 25,
    explained: Annotated[
        bool, typer.Option("--why/--no-why", help="Of a shrunk model: where the time goes, layer by layer.")
    ] = True,
    device: Device = None,
    seed: Seed = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Parameters, multiply-accumulates, bytes, time, memory and accuracy of a model, each with its definition. For a
    shrunk model (a .sct file that holds its plan) also what it gained over the dense one, and why it is no faster."""
    from secateur import data as datasets
    from secateur.adapters.two_of_four import has_two_of_four, two_of_four
    from secateur.core.measurement import Measurements
    from secateur.execution.devices import device_word
    from secateur.lab.training import evaluate
    from secateur.metrics import measure as take

    where = device_word(device.value if device is not None else "cpu")
    net = model_of(model, weights, option, seed).to(where)
    given = what.split(",") if what else None
    timed: dict[str, Any] = {"trials": trials} if given is None or "latency" in given else {}
    if data is None:
        found = take(net, example_of(model, net, input_, seed, batch), what=given, **timed)
    else:
        images = datasets.load_for(net, data)
        example = (
            images.test.first(batch)[0] if input_ is None else example_of(model, net, input_, seed, batch)
        )
        found = take(net, example, lambda one: evaluate(one, images.test, device=where), what=given, **timed)
    gain = None
    if explained and (given is None or "latency" in given):
        dense = _dense_of(net, model, option, seed, where)
        if dense is not None:
            gain = _gain(dense, net, example_of(model, net, input_, seed, batch), trials)
    if json:
        rows = [item.to_dict() for item in Measurements(found)]
        print_json(rows if gain is None else {"measurements": rows, "against_dense": gain})
        return
    show_table(["measure", "value", "definition"], list(found.rows()), right=(1,))
    for item in found:
        for note in item.notes:
            print(f"  {item.name}: {note}")
    if has_two_of_four(net):
        print(two_of_four(net, example_of(model, net, input_, seed, batch), trials=trials))
    if gain is not None:
        print(
            f"\nagainst the dense model: {gain['fewer']:.2f}x fewer multiply-accumulates, {gain['faster_text']}"
        )
        print(gain["why"] or "time fell as the count did")


def _dense_of(
    net: nn.Module, name: str, option: list[str] | None, seed: int | None, where: Any
) -> nn.Module | None:
    """The dense model of that name, if `net` is one of its shrunk copies."""
    dense = model_of(name, None, option, seed).to(where)
    shapes = [{key: tuple(value.shape) for key, value in one.state_dict().items()} for one in (dense, net)]
    return dense if shapes[0] != shapes[1] else None


def _gain(dense: nn.Module, small: nn.Module, example: Any, trials: int) -> dict[str, Any]:
    """How much less a shrunk model computes, how much faster it is, and why that is not as much."""
    from secateur.metrics import measure as take
    from secateur.metrics import why
    from secateur.metrics.latency import compare

    counts = [float(take(one, example, what="macs")["macs"].value) for one in (dense, small)]
    fewer = counts[0] / max(1.0, counts[1])
    speedup = compare(dense, small, example, trials=trials, names=("dense", "shrunk"))["speedup"]
    told = str(why(dense, small, example)) if speedup.value < _AS_COUNTED * fewer else ""
    return {"fewer": fewer, "faster": speedup.value, "faster_text": f"{speedup.text()} as fast", "why": told}


def explain(
    model: ModelName,
    weights: Weights = None,
    option: ModelOptions = None,
    input_: Example = None,
    budget: Annotated[
        float | None, typer.Option("--budget", help="Also tell what removing this share would do.")
    ] = None,
    svg: Annotated[Path | None, typer.Option("--svg", help="Draw the groups into this file.")] = None,
    across_norm: Annotated[
        bool, typer.Option("--across-norm", help="Also axes that cross a LayerNorm.")
    ] = False,
    head_size: Annotated[
        bool, typer.Option("--head-size", help="Attention heads become smaller, not fewer.")
    ] = False,
    seed: Seed = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Which channels live or die together, which cannot leave, and why. Nothing is touched."""
    from secateur.lab.objects import atomic_write
    from secateur.structure.shrink import explain as look

    net = model_of(model, weights, option, seed)
    found = look(
        net, example_of(model, net, input_, seed), budget, across_norm=across_norm, head_size=head_size
    )
    if svg is not None:
        atomic_write(svg, found.svg().encode())
    print(found.to_json() if json else found.table())


def _coupled(asked: list[str] | None, share: float, across_norm: bool) -> list[tuple[Any, float]]:
    """The granularities of `shrink` with the share each removes; with both, each keeps to its own groups."""
    from secateur.granularity.channel import Channel
    from secateur.granularity.head import Head
    from secateur.granularity.head_size import HeadSize

    shares: dict[str, float] = {}
    for item in asked or ["channel"]:
        name, _, number = item.partition("=")
        try:
            shares[name] = float(number) if number else share
        except ValueError:
            shares[""] = share
    if not shares.keys() <= {"channel", "head", "head_size"}:
        raise OptionError(
            f"--granularity: expected channel, head or head_size, each with a share where it has its own, as in "
            f"head=0.25; got {' '.join(asked or ())!r}"
        )
    if shares.keys() >= {"head", "head_size"}:
        raise OptionError(
            "--granularity: expected head or head_size, got both; shrink with head, then the result with head_size"
        )
    whole = not shares.keys() & {"head", "head_size"}
    kinds = {
        "channel": Channel(across_norm=across_norm, heads=whole),
        "head": Head(),
        "head_size": HeadSize(),
    }
    return [(kinds[name], number) for name, number in shares.items()]


def shrink(
    model: ModelName,
    weights: Weights = None,
    out: Annotated[
        Path, typer.Option("--out", help="The small model: a .sct file that holds plan and weights.")
    ] = Path("small.sct"),
    budget: Annotated[
        float, typer.Option("--budget", help="Share of the channels of every group that go.")
    ] = 0.5,
    criterion: Annotated[
        str, typer.Option("--criterion", help="What a channel is worth, from its weights.")
    ] = "l2",
    skip: Annotated[
        list[str] | None, typer.Option("--skip", help="Layers to leave alone. Repeatable.")
    ] = None,
    granularity: Annotated[
        list[str] | None,
        typer.Option(
            "--granularity",
            help="channel, head or head_size, with its own share as in head=0.25. Repeatable.",
        ),
    ] = None,
    at_least: Annotated[int, typer.Option("--at-least", min=1, help="Units of every group that stay.")] = 1,
    round_to: Annotated[
        int | None, typer.Option("--round-to", min=1, help="Keep widths at a multiple.")
    ] = None,
    across_norm: Annotated[
        bool, typer.Option("--across-norm", help="Also axes that cross a LayerNorm.")
    ] = False,
    option: ModelOptions = None,
    input_: Example = None,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Timed repetitions.")] = 25,
    seed: Seed = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Cut channels out of a model, prove that it computes what the masked one does, and write it as one
    file."""
    import sys

    from secateur.container.archive import save
    from secateur.core.measurement import Measurements
    from secateur.metrics import measure as take
    from secateur.metrics.latency import compare
    from secateur.pruning.prune import prune
    from secateur.structure.shrink import shrink as cut

    net = model_of(model, weights, option, seed)
    example = example_of(model, net, input_, seed)
    masks = None
    for grain, share in _coupled(granularity, budget, across_norm):
        found = prune(
            net, criterion, grain, share, skip=skip, example=example, at_least=at_least, seed=seed or 0
        )
        masks = found if masks is None else masks.merge(found)
    assert masks is not None
    small = cut(net, masks, example, round_to=round_to, at_least=at_least, across_norm=across_norm)
    saved = save(small.model, out, plan=small.plan)
    before, after = (take(one, example, what=["params", "macs", "size"]) for one in (net, small.model))
    times = compare(net, small.model, example, trials=trials, names=("before", "after"))
    if json:
        rows = [*before.within({"variant": "before"}), *after.within({"variant": "after"}), *times]
        print_json(
            {
                "file": str(out),
                "file_bytes": saved.size,
                "proof": {
                    "error": small.proof.error,
                    "tolerance": small.proof.tolerance,
                    "holds": small.proof.holds,
                },
                "measurements": [item.to_dict() for item in Measurements(rows)],
            }
        )
        return
    print(small)
    rows = [[name, before[name].text(), after[name].text()] for name in ("params", "macs", "size")]
    rows.append(["latency", times[0].text(), times[1].text()])
    print()
    show_table(["", "before", "after"], rows, right=(1, 2))
    print(f"\ntimes as fast: {times['speedup'].text()}; {out}: {saved.size:,} bytes")
    for note in times["speedup"].notes:
        print(f"  {note}")
    fewer = float(before["macs"].value) / max(1.0, float(after["macs"].value))
    if times["speedup"].value < _AS_COUNTED * fewer:
        from secateur.metrics import why

        print(why(net, small.model, example).summary())
    if weights is None:
        print("warning: no weights were given, so those of the file are random", file=sys.stderr)


def scan(
    model: ModelName,
    weights: Weights = None,
    data: Annotated[
        str, typer.Option("--data", help="Accuracy is measured on the test images of this.")
    ] = "digits",
    granularity: Annotated[str, typer.Option("--granularity", help="What is cut as one piece.")] = "filter",
    criterion: Annotated[str, typer.Option("--criterion", help="What a weight is worth.")] = "l2",
    levels: Annotated[
        str, typer.Option("--levels", help="Sparsities: a,b,c or first:last:step.")
    ] = "0.1:0.9:0.1",
    skip: Annotated[
        list[str] | None, typer.Option("--skip", help="Layers to leave alone. Repeatable.")
    ] = None,
    subset: Annotated[
        int | None, typer.Option("--subset", min=1, help="Only so many images, with intervals.")
    ] = None,
    floor: Annotated[
        float | None,
        typer.Option("--floor", help="Also allot: the highest level that keeps this accuracy, per layer."),
    ] = None,
    keep: Annotated[
        float | None, typer.Option("--keep", help="Also allot: the best accuracy at this share of the cost.")
    ] = None,
    cost: Annotated[
        str, typer.Option("--cost", help="What --keep is a share of: macs, params, size, latency (--trials).")
    ] = "macs",
    estimate: Annotated[
        str | None,
        typer.Option("--estimate", help="A first-order criterion to stand beside the values: taylor."),
    ] = None,
    trials: Annotated[
        int,
        typer.Option("--trials", min=0, help="Also read the time of every cell's shrunk model (channel)."),
    ] = 0,
    quick: Annotated[
        bool, typer.Option("--quick/--plain", help="The same numbers by a shorter way, margins checked.")
    ] = True,
    workers: Annotated[
        int, typer.Option("--workers", "--jobs", "-j", min=1, help="Processes that share the layers.")
    ] = 1,
    engine: EngineOption = EngineChoice.local,
    address: Address = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the scan as JSON to this file.")] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Keeps the values found; a stopped scan goes on.")
    ] = None,
    option: ModelOptions = None,
    seed: Seed = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """How much accuracy each layer costs when it alone is pruned, at every level; the model stays as it is."""
    import sys

    from torch.nn import functional

    from secateur import data as datasets
    from secateur.lab.engines.worker_pool import WorkerPool
    from secateur.lab.recipe import axis_values
    from secateur.sensitivity.scan import scan as look

    if floor is not None and keep is not None:
        raise OptionError("--floor and --keep are two ways to allot; give one of them")
    if address and engine is EngineChoice.local:
        raise OptionError(
            f"--address {address}: belongs to --engine ray; here layers are shared out by --jobs"
        )
    if weights is None:
        print("warning: no weights were given, so those scanned are random", file=sys.stderr)
    net = model_of(model, weights, option, seed)
    images = datasets.load_for(net, data)
    try:
        values = levels if levels.count(":") == 2 else [float(part) for part in levels.split(",")]
    except ValueError:
        raise OptionError(
            f"--levels {levels}: expected numbers with commas between them, or first:last:step"
        ) from None

    def told(done: int, total: int, left: float) -> None:
        if sys.stderr.isatty():
            print(
                f"\r{done} of {total} values, {left:.0f} s left ",
                end="\n" if done == total else "",
                file=sys.stderr,
            )

    crew = None
    if engine is EngineChoice.ray:
        crew = WorkerPool.ray(address, workers if workers > 1 else None)
    elif workers > 1:
        crew = WorkerPool.local(workers)
    found = look(
        net,
        list(images.test.batches(256)),
        granularity,
        axis_values("levels", values, "--levels"),
        criterion=criterion,
        skip=skip,
        subset=subset,
        example=images.example,
        estimate=estimate,
        loss=functional.cross_entropy if estimate else None,
        trials=trials,
        quick=quick,
        engine=crew,
        resume=resume,
        progress=told,
        seed=seed or 0,
    )
    if out is not None:
        found.save(out)
    if json:
        print(found.to_json())
        return
    print(found)
    if floor is not None or keep is not None:
        chosen = found.allocate(floor=floor) if floor is not None else found.allocate(keep=keep, cost=cost)
        print()
        print(chosen.table())


VERBS = (measure, explain, shrink, scan)

"""Verbs on the channels of a model given by name: `explain`, `shrink`.

>>> [verb.__name__ for verb in VERBS]
['explain', 'shrink']
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from secateur.cli.calibrating import CalibrationFlags
from secateur.cli.flags import with_flags
from secateur.cli.given import InputFlags
from secateur.cli.measure import AS_COUNTED
from secateur.cli.options import Evaluate, OutputFlags, Trials, own_criterion, repetitions_of
from secateur.cli.output import print_json, show_table, written
from secateur.core.terminal import say
from secateur.errors import OptionError

if TYPE_CHECKING:
    from torch import nn

    from secateur.budget import Budget
    from secateur.core.masks import Masks
    from secateur.core.measurement import Measurement, Measurements
    from secateur.criteria import CriterionLike
    from secateur.granularity import Granularity
    from secateur.structure.proof import Proof, ProofOptions

__all__ = ["VERBS"]

_Training = Annotated[
    bool,
    typer.Option(
        "--training/--no-training",
        help="Whether the small model has to run in training too; without, what only training asks for locks nothing.",
    ),
]
_AcrossNorm = Annotated[bool, typer.Option("--across-norm", help="Also axes that cross a LayerNorm.")]


@with_flags
def explain(
    model: InputFlags,
    budget: Annotated[
        float | None, typer.Option("--budget", help="Also print what removing this share would do.")
    ] = None,
    svg: Annotated[Path | None, typer.Option("--svg", help="Draw the groups into this file.")] = None,
    across_norm: _AcrossNorm = False,
    head_size: Annotated[
        bool, typer.Option("--head-size", help="Attention heads become smaller, not fewer.")
    ] = False,
    training: _Training = True,
    *,
    output: OutputFlags,
) -> None:
    """Which channels are coupled, which cannot be removed, and why. Nothing is changed."""
    from secateur.lab.objects import atomic_write
    from secateur.structure.shrink import explain as look

    net = model.build()
    example = model.example(net)
    found = look(net, example, budget, across_norm=across_norm, head_size=head_size, training=training)
    if svg is not None:
        atomic_write(svg, found.svg().encode())
    say(found.to_json() if output.json else found.table())


class _How(TypedDict):
    round_to: int | None
    at_least: int
    across_norm: bool
    proof: ProofOptions


@dataclass(frozen=True)
class CutFlags:
    """What is cut: criterion, granularity and budget, and what limits them."""

    budget: Annotated[
        float | None,
        typer.Option("--budget", help="Share of the channels of every group to remove; 0.5 unless given."),
    ] = None
    criterion: Annotated[
        str,
        typer.Option(
            "--criterion",
            help="How a channel is scored, from its weights: a name, or module:Class of your own.",
        ),
    ] = "l2"
    skip: Annotated[list[str] | None, typer.Option("--skip", help="Layers to leave alone. Repeatable.")] = (
        None
    )
    granularity: Annotated[
        list[str] | None,
        typer.Option(
            "--granularity",
            help="channel, head, head_size or layer, with its own share as in head=0.25. Repeatable.",
        ),
    ] = None
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep",
            help="One budget for everything that --granularity names, in place of shares: macs, params, bytes or "
            "latency, with what remains of it, as in latency=0.5.",
        ),
    ] = None
    at_least: Annotated[
        int, typer.Option("--at-least", min=1, help="Fewest units of every group that remain.")
    ] = 1
    round_to: Annotated[
        int | None, typer.Option("--round-to", min=1, help="Keep widths at a multiple of this.")
    ] = None
    across_norm: _AcrossNorm = False
    proof: Annotated[
        list[str] | None,
        typer.Option(
            "--proof",
            help="A mode to prove: eager, no_grad, compile, export or train. Repeatable; else the usual.",
        ),
    ] = None
    training: _Training = True

    def how(self) -> _How:
        """The options of `sc.shrink` that these flags give."""
        from secateur.structure.proof import as_proof_options

        return {
            "round_to": self.round_to,
            "at_least": self.at_least,
            "across_norm": self.across_norm,
            "proof": replace(as_proof_options(self.proof or None), training=self.training),
        }

    def kept(self) -> Budget | None:
        """The budget of `--keep`; None without it."""
        from secateur import budget

        if self.keep is None:
            return None
        word, _, number = self.keep.partition("=")
        words = {"macs": "macs", "params": "params", "bytes": "size", "latency": "latency"}
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if word not in words or math.isnan(share):
            raise OptionError(
                "--keep: expected macs, params, bytes or latency with the share that remains, as in macs=0.5, got "
                f"{self.keep!r}"
            )
        if self.budget is not None:
            raise OptionError(
                f"--keep and --budget each say how much is removed: expected one of them, got --keep {self.keep} and "
                f"--budget {self.budget:g}; leave one out"
            )
        if any("=" in item for item in self.granularity or ()):
            raise OptionError(
                "--keep is one budget for every --granularity: expected words without shares, got "
                f"{' '.join(self.granularity or ())!r}"
            )
        found: Budget = budget.registry.get(words[word])(keep=share)
        return found

    def masks(self, net: nn.Module, example: object, seed: int) -> Masks:
        """What is removed: by one budget, or for each granularity by its share.

        Args:
            net: The model.
            example: One input.
            seed: The seed of everything random.
        """
        from secateur.pruning.prune import PruneOptions, prune

        options, rule = PruneOptions(at_least=self.at_least, seed=seed, training=self.training), self._rule()
        grains, kept, found = self.granularities(), self.kept(), None
        if kept is not None:
            kinds = [grain for grain, _ in grains]
            return prune(net, rule, kinds, kept, skip=self.skip, example=example, options=options)
        for grain, share in grains:
            more = prune(net, rule, grain, share, skip=self.skip, example=example, options=options)
            found = more if found is None else found.merge(more)
        assert found is not None
        return found

    def _rule(self) -> CriterionLike:
        """The criterion; refused where it scores on data, which the command does not take for it."""
        from secateur import criteria

        rule = own_criterion(self.criterion)
        if isinstance(rule, str) and criteria.registry.get(rule).needs_data:
            kinds = [name for name in criteria.registry.names() if not criteria.registry.get(name).needs_data]
            raise OptionError(
                f"--criterion {rule} scores on data, and on the command line weights alone score channels: "
                f"expected one of {', '.join(kinds)}; the prune step of a recipe takes {rule}"
            )
        return rule

    def granularities(self) -> list[tuple[Granularity, float]]:
        """Each granularity with the share it removes; heads and channels each keep to their own groups."""
        from secateur.granularity.channel import Channel
        from secateur.granularity.head import Head
        from secateur.granularity.head_size import HeadSize
        from secateur.granularity.layer import Layer

        shares = self._shares()
        whole = not shares.keys() & {"head", "head_size"}
        kinds: dict[str, Granularity] = {
            "channel": Channel(across_norm=self.across_norm, heads=whole),
            "head": Head(),
            "head_size": HeadSize(),
            "layer": Layer(),
        }
        return [(kinds[name], number) for name, number in shares.items()]

    def _shares(self) -> dict[str, float]:
        """The words of `--granularity` with the share of each."""
        shares: dict[str, float] = {}
        budget = 0.5 if self.budget is None else self.budget
        for item in self.granularity or ["channel"]:
            name, _, number = item.partition("=")
            try:
                shares[name] = float(number) if number else budget
            except ValueError:
                shares[""] = budget
        if not shares.keys() <= {"channel", "head", "head_size", "layer"}:
            raise OptionError(
                f"--granularity: expected channel, head, head_size or layer, each with a share where it has its "
                f"own, as in head=0.25; got {' '.join(self.granularity or ())!r}"
            )
        if shares.keys() >= {"head", "head_size"}:
            raise OptionError(
                "--granularity: expected head or head_size, got both; shrink with head, then the result with head_size"
            )
        return shares


@with_flags
def shrink(
    model: InputFlags,
    cut: CutFlags,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="The small model: a .sct file that holds plan and weights; of a Hugging Face model, a new folder "
            "that from_pretrained loads; or, of a model of ultralytics, a .pt file that YOLO(...) loads.",
        ),
    ] = Path("small.sct"),
    repetitions: Annotated[int, typer.Option("--repetitions", min=1, help="Timed repetitions.")] = 25,
    trials: Trials = None,
    evaluate: Evaluate = None,
    *,
    calibration: CalibrationFlags,
    output: OutputFlags,
) -> None:
    """Cut channels out of a model, prove that it computes what the masked one does, and write it as one
    file."""
    from secateur.cli.small_files import check_out, write_small
    from secateur.lab.judging import evaluator
    from secateur.metrics import measure as take
    from secateur.metrics.latency import compare
    from secateur.structure.shrink import shrink as cut_channels

    calibration.check()
    net, earlier = model.build_cut()
    check_out(out, net)
    example = model.example(net)
    judge = None if evaluate is None else evaluator(evaluate, None)
    masks = cut.masks(net, example, model.seed or 0)
    masked = net
    if calibration.wanted:
        from secateur.compensation.compensate import compensate

        tune = calibration.calibrate_passes or None
        masked = compensate(net, masks, calibration.inputs(net, model.folder()), tune=tune).model
    small = cut_channels(masked, masks, example, **cut.how())
    if earlier is not None:
        small = replace(small, plan=earlier.then(small.plan))
    size, note = write_small(small, out, example, model.folder())
    counts = ["params", "macs", "size"] + ([] if judge is None else ["accuracy"])
    before, after = (take(one, example, judge, what=counts) for one in (net, small.model))
    times = compare(
        net, small.model, example, repetitions=repetitions_of(repetitions, trials), names=("before", "after")
    )
    if output.json:
        rows = [*before.within({"variant": "before"}), *after.within({"variant": "after"}), *times]
        print_json(_as_json(out, size, small.proof, rows))
        return
    say(small)
    _print(before, after, times, f"{out}: {size:,} bytes", note)
    fewer = float(before["macs"].value) / max(1.0, float(after["macs"].value))
    if times["speedup"].value < AS_COUNTED * fewer:
        from secateur.metrics import why

        say(why(net, small.model, example, times=times).summary())
    if not model.trained():
        say("warning: no weights were given, so those of the file are random", error=True)


def _print(before: Measurements, after: Measurements, times: Measurements, written: str, note: str) -> None:
    """Print the model before and after."""
    judged = [row.name for row in before if row.definition.startswith("as returned")]
    rows = [[name, before[name].text(), after[name].text()] for name in ["params", "macs", "size", *judged]]
    rows.append(["latency", times[0].text(), times[1].text()])
    say()
    show_table(["", "before", "after"], rows, right=(1, 2))
    say(f"\ntimes as fast: {times['speedup'].text()}; {written}")
    if note:
        say(note)
    for line in times["speedup"].notes:
        say(f"  {line}")


def _as_json(out: Path, size: int, proof: Proof, rows: Iterable[Measurement]) -> dict[str, object]:
    return {
        **written(out, size),
        "proof": {name: getattr(proof, name) for name in ("error", "tolerance", "holds")},
        "measurements": [row.to_dict() for row in rows],
    }


VERBS = (explain, shrink)

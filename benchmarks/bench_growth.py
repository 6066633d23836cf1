"""How time grows with a model: `python benchmarks/bench_growth.py`, or `--layers 1024` for a thousand layers.

A chain of linear layers is doubled in length four times; each verb is timed by the processor's time (median of three
rounds, all lengths in turn), and the exponent of time against length is fitted to the upper three doublings: 1.0 is
linear, 2.0 quadratic. Prints the times, the exponent, and the goal of 1.1.

`--widths 1024` doubles the width of a chain of eight layers instead, and fits the exponent against the number of
parameters, which is four times as large at every step. `compensate` solves every layer with the square of its width in
unknowns, so its exponent is 1.5 by nature, and its goal 1.6. `scan` evaluates a model of n layers n times, from the
layer under test on: that is quadratic in the number of layers by nature, and its goal there is 2.1. `eight_scanned`
scans eight layers of any chain, which is linear.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

import secateur as sc

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record

GOAL, WIDTH, DOUBLINGS = 1.1, 32, 4
NARROW = 8  # layers, where widths are doubled
BY_NATURE = {("scan", "layers"): 2.0, ("compensate", "width"): 1.5}


class Case:
    """A chain of so many layers of one width, its masks, and a folder to write to."""

    def __init__(self, layers: int, folder: Path, width: int = WIDTH):
        torch.manual_seed(0)
        parts: list[nn.Module] = []
        for _ in range(layers):
            parts += [nn.Linear(width, width), nn.ReLU()]
        self.model = nn.Sequential(*parts).eval()
        self.example = torch.randn(2, width)
        self.masks = sc.prune(self.model, budget=0.5)
        self.channels = sc.prune(
            self.model,
            "l2",
            "channel",
            0.25,
            example=self.example,
            options=sc.PruneOptions(allow_collapse=True),
        )
        self.folder = folder
        self.file = folder / f"{layers}-{width}.sct"
        sc.save(self.model, self.file)


def prune(case: Case) -> object:
    return sc.prune(case.model, budget=0.5)


def prune_overall(case: Case) -> object:
    return sc.prune(case.model, budget=sc.budget.Overall(0.5))


def prune_channels(case: Case) -> object:
    options = sc.PruneOptions(allow_collapse=True)
    return sc.prune(case.model, "l2", "channel", 0.25, example=case.example, options=options)


def explain(case: Case) -> object:
    return sc.explain(case.model, case.example).table()


def shrink(case: Case) -> object:
    options = sc.ProofOptions(("no_grad",), other_shapes=False)  # the least that is proved
    return sc.shrink(case.model, case.channels, case.example, proof=options)


def share(case: Case) -> object:
    return sc.share(case.model, bits=3)


def save(case: Case) -> object:
    return sc.save(case.model, case.folder / "again.sct")


def load(case: Case) -> object:
    return sc.load(case.file)


def masks(case: Case) -> object:
    case.masks.save(case.folder / "masks.safetensors")
    found = sc.Masks.load(case.folder / "masks.safetensors")
    return found.table(), found.digest(), found & case.masks, found.apply(case.model)


def hold(case: Case) -> object:
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.0, momentum=0.9)
    with sc.hold(case.model, case.masks, optimizer):
        case.model(case.example).sum().backward()
        optimizer.step()
    return optimizer


def compensate(case: Case) -> object:
    return sc.compensate(case.model, case.masks, [case.example])


def measure(case: Case) -> object:
    return sc.measure(case.model, case.example, what=["params", "macs", "size", "sparsity"])


def scan(case: Case) -> object:
    batches = [(case.example, torch.zeros(len(case.example), dtype=torch.long))]
    return sc.scan(case.model, batches, "channel", [0.5], options=sc.ScanOptions(workers=1))


def eight_scanned(case: Case) -> object:
    """Eight layers, evenly along the chain: what one evaluation costs, without how many there are."""
    batches = [(case.example, torch.zeros(len(case.example), dtype=torch.long))]
    layers = len(case.model) // 2
    only = [f"{2 * (at * (layers - 1) // 8)}.weight" for at in range(8)]
    options = sc.ScanOptions(workers=1, only=only)
    return sc.scan(case.model, batches, "filter", [0.5], options=options)


VERBS = (
    prune,
    prune_overall,
    prune_channels,
    explain,
    shrink,
    share,
    save,
    load,
    masks,
    hold,
    compensate,
    measure,
    scan,
    eight_scanned,
)


def seconds(verb: Callable[[Case], object], case: Case) -> float:
    """The processor's time of one call; the collector of garbage waits, as it looks at all models that there are."""
    gc.collect()
    gc.freeze()
    gc.disable()
    begin = time.process_time()
    verb(case)
    spent = time.process_time() - begin
    gc.enable()
    return spent


def exponent(sizes: list[int], times: list[float]) -> float:
    """The slope of the logarithms, by least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(max(t, 1e-9)) for t in times]
    middle, level = statistics.fmean(x), statistics.fmean(y)
    return sum((a - middle) * (b - level) for a, b in zip(x, y)) / sum((a - middle) ** 2 for a in x)


def main() -> None:
    """Time every verb at every length, and print the exponents."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=512, help="layers of the longest chain")
    parser.add_argument(
        "--widths", type=int, default=0, help="the largest width; the chain has eight layers then"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="only the verbs that begin with this")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    largest = asked.widths or asked.layers
    sizes = [max(2, largest >> shift) for shift in reversed(range(DOUBLINGS + 1))]
    power = 2 if asked.widths else 1  # of the number of parameters in what is doubled
    missed = False
    with tempfile.TemporaryDirectory() as scratch:
        shapes = [(NARROW, size) if asked.widths else (size, WIDTH) for size in sizes]
        cases = [Case(layers, Path(scratch), width) for layers, width in shapes]
        print(f"{'verb':<15}" + "".join(f"{size:>10}" for size in sizes) + "   exponent")
        for verb in VERBS:
            if not verb.__name__.startswith(asked.only):
                continue
            verb(cases[0])  # what is imported the first time
            rounds = [[seconds(verb, case) for case in cases] for _ in range(asked.rounds)]
            times = [statistics.median(column) for column in zip(*rounds)]
            found = exponent(sizes[1:], times[1:]) / power
            kind = "width" if asked.widths else "layers"
            goal = GOAL - 1 + BY_NATURE.get((verb.__name__, kind), 1.0)
            missed |= found > goal
            print(
                f"{verb.__name__:<15}"
                + "".join(f"{1e3 * t:>8.1f}ms" for t in times)
                + f"   {found:.2f}{'   MISSED' if found > goal else ''}",
                flush=True,
            )
            detail = f"{1e3 * times[-1]:.1f} ms for {sizes[-1]} ({kind})"
            record(Figure(f"{verb.__name__}: exponent of {kind}", found, "", goal, detail=detail))
    sys.exit(missed)


if __name__ == "__main__":
    main()

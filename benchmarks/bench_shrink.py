"""Plan, choose (by l2) and cut half of the channels, ours and Torch-Pruning 1.6.1, on the same models in one run.

The criterion is the same on both sides: the Euclidean norm of all weights of a coupled channel (l2; the peer's
MagnitudeImportance with p=2). The proof is left out, as the peer has none.

pip install --no-deps torch-pruning==1.6.1 torchvision timm
python benchmarks/bench_shrink.py             # planning and cutting: CPU time, interleaved, medians
python benchmarks/bench_shrink.py --latency   # eager latency of the shrunk models instead, on one thread
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "zoo"))

import secateur as sc
from models import Entry, build
from secateur.metrics import why
from secateur.structure.cutting import CutOptions, cut
from secateur.structure.groups import couplings
from secateur.structure.groups.couplings import analyse

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record

MODELS = [
    "resnet18",
    "resnet101",
    "densenet121",
    "densenet201",
    "vit_b_16",
    "convnext_tiny",
    "efficientnet_v2_s",
    "regnet_y_8gf",
]
EXTRA = ["shufflenet_v2_x1_0", "swin_t"]


def ours(model: nn.Module, x: torch.Tensor) -> nn.Module:
    couplings._RECENT.clear()  # every run follows the model anew
    masks = sc.prune(
        model,
        criterion="l2",
        granularity="channel",
        budget=0.5,
        example=x,
        options=sc.PruneOptions(allow_collapse=True),
    )
    return cut(model, masks, x).model


def peer(model: nn.Module, x: torch.Tensor) -> nn.Module:
    import torch_pruning as tp

    model = copy.deepcopy(model)
    ignored = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    options: dict[str, Any] = {}
    heads = {m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    if heads:
        options["num_heads"] = heads
    pruner = tp.pruner.MagnitudePruner(
        model,
        x,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=ignored,
        **options,
    )
    pruner.step()
    return model


def timed(
    work: Callable[[nn.Module, torch.Tensor], nn.Module], model: nn.Module, x: torch.Tensor
) -> tuple[float, nn.Module]:
    start = time.process_time()
    made = work(model, x)
    return time.process_time() - start, made


def latency(models: list[nn.Module], x: torch.Tensor, trials: int) -> list[float]:
    """Median seconds of each model, interleaved."""
    readings: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for model in models:
            model(x)
        for _ in range(trials):
            for model, into in zip(models, readings):
                start = time.perf_counter()
                model(x)
                into.append(time.perf_counter() - start)
    return [statistics.median(values) for values in readings]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--latency", action="store_true", help="time the shrunk models instead")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("models", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.latency:
        speed(options.models or list(BUILDERS))
    else:
        planning(options.models or MODELS + EXTRA, options.repeat)


def planning(names: list[str], repeat: int) -> None:
    """How long it takes to plan, choose and cut."""
    print("CPU seconds, median of interleaved runs: plan + choose (l2) + cut, without the proof")
    print(f"{'model':<22}{'ours':>8}{'peer':>9}{'peer/ours':>11}")
    ratios = []
    for name in names:
        model, _ = build(Entry("torchvision", name))
        x = torch.randn(1, 3, 224, 224)
        mine, theirs, problem = [], [], ""
        for _ in range(repeat):
            seconds, made = timed(ours, model, x)
            made.eval()(x)
            mine.append(seconds)
            if not problem:
                try:
                    seconds, made = timed(peer, model, x)
                    theirs.append(seconds)
                    made.eval()(x)
                except Exception as error:
                    problem = f"fails: {type(error).__name__}: {str(error).splitlines()[0][:60]}"
        if theirs and not problem:
            ratio = statistics.median(theirs) / statistics.median(mine)
            ratios += [ratio] if name in MODELS else []
            taken = f"ours {statistics.median(mine):.3f} s, peer {statistics.median(theirs):.3f} s"
            record(Figure(f"{name}: peer over ours", ratio, "x", 1, "higher", 0.2, taken))
            print(
                f"{name:<22}{statistics.median(mine):>8.3f}{statistics.median(theirs):>9.3f}{ratio:>11.1f}",
                flush=True,
            )
        else:
            print(f"{name:<22}{statistics.median(mine):>8.3f}{'-':>9}  peer {problem}", flush=True)
    if ratios:
        mean = math.exp(statistics.mean(map(math.log, ratios)))
        print(f"geometric mean of peer/ours: {mean:.1f} (goal 5), least {min(ratios):.1f} (goal 1)")
        of = f"of {len(ratios)} models"
        record(
            Figure("geometric mean of peer over ours", mean, "x", 5, "higher", 0.2, of),
            Figure("least of peer over ours", min(ratios), "x", 1, "higher", 0.2, of),
        )


def _resnet20() -> nn.Module:
    from secateur.models.resnet20 import Resnet20

    return Resnet20().eval()


BUILDERS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "resnet20": (_resnet20, 32, 51),
    "resnet50": (lambda: build(Entry("torchvision", "resnet50"))[0], 224, 3),
    "vgg16_bn": (lambda: build(Entry("torchvision", "vgg16_bn"))[0], 224, 2),
}
"""How each is built, the edge of its image, and how many times it is run at batch 32."""


PUBLISHED = (0.77, 0.93)
"""What the peer's models reached, least and most, where it could cut: the yardstick where it cannot."""


def ours_in_sixteens(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """Widths kept at multiples of 16: what processors with vectors of 512 bits lay channels out in."""
    masks = sc.prune(
        model,
        criterion="l2",
        granularity="channel",
        budget=0.5,
        example=x,
        options=sc.PruneOptions(allow_collapse=True),
    )
    return cut(model, masks, x, CutOptions(round_to=16)).model


def speed(names: list[str]) -> None:
    """Speed-up over the ratio of MACs (its share) of shrunk models at batch 1 and 32: ours, in sixteens, the peer's."""
    sides = ("ours", "ours, x16", "peer")
    print("speed-up, and its share of the ratio of MACs; medians of turns, one thread, eager")
    print(
        f"{'model':<10}{'batch':>6}"
        + "".join(f"{side + ': MACs':>18}{'faster':>8}{'share':>7}" for side in sides)
    )
    for name in names:
        make, size, trials = BUILDERS[name]
        model, one = make(), torch.randn(1, 3, size, size)
        small = ours(model, one).eval()
        models = [small, ours_in_sixteens(model, one).eval()]
        try:
            models.append(peer(model, one).eval())
            models[-1](one)
        except Exception as error:
            models[2:] = []
            told = (str(error).splitlines() or [""])[0][:80]
            print(f"{name}: the peer fails: {type(error).__name__}: {told}", flush=True)
        macs = [analyse(each, one).macs() for each in (model, *models)]
        for batch in (1, 32):
            x = torch.randn(batch, 3, size, size)
            seconds = latency([model, *models], x, trials if batch > 1 else 5 * trials)
            cells, shares = [], []
            for fewer, taken in zip(macs[1:], seconds[1:]):
                ratio, faster = macs[0] / fewer, seconds[0] / taken
                shares.append(faster / ratio)
                cells.append(f"{ratio:>18.2f}{faster:>8.2f}{faster / ratio:>7.2f}")
            print(f"{name:<10}{batch:>6}{''.join(cells)}", flush=True)
            if len(shares) > 2:
                goal, told = shares[2], "the peer's, equal widths" if macs[1] == macs[3] else "the peer's"
            else:
                goal, told = PUBLISHED[0], f"published for the peer, {PUBLISHED[0]} to {PUBLISHED[1]}"
            met = shares[0] >= goal
            figure = f"{name}, batch {batch}: share of the MACs ratio"
            record(Figure(figure, shares[0], "ratio", goal, "higher", detail=f"the goal is {told}"))
            print(
                f"{'':>16}  ours / {told}: {shares[0] / goal:.2f}: goal {'met' if met else 'NOT met'}",
                flush=True,
            )
            if not met:
                reason = why(model, small, x, repetitions=9 if size < 100 else 2, threads=1)
                print(f"{'':>16}  why: {reason.summary()}", flush=True)


if __name__ == "__main__":
    main()

"""Plan, choose and cut half of the channels, ours and Torch-Pruning 1.6.1, on the same models in one run.

pip install --no-deps torch-pruning==1.6.1 torchvision timm
python benchmarks/bench_shrink.py            # time, interleaved, medians
python benchmarks/bench_shrink.py --latency  # eager latency of the shrunk models as well
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
from secateur.shrink import cut
from secateur.structure import couplings
from secateur.structure.couplings import analyse

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
    masks = sc.prune(model, criterion="l2", granularity="channel", budget=0.5, example=x, allow_collapse=True)
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("models", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("CPU seconds, median of interleaved runs: plan + choose + cut, without the proof")
    print(f"{'model':<22}{'ours':>8}{'peer':>9}{'peer/ours':>11}")
    ratios = []
    for name in options.models or MODELS + EXTRA:
        model, _ = build(Entry("torchvision", name))
        x = torch.randn(1, 3, 224, 224)
        mine, theirs, problem = [], [], ""
        for _ in range(options.repeat):
            mine.append(timed(ours, model, x)[0])
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
            print(
                f"{name:<22}{statistics.median(mine):>8.2f}{statistics.median(theirs):>9.2f}{ratio:>11.1f}",
                flush=True,
            )
        else:
            print(f"{name:<22}{statistics.median(mine):>8.2f}{'-':>9}  peer {problem}", flush=True)
    if ratios:
        print(
            f"geometric mean of peer/ours: {math.exp(statistics.mean(map(math.log, ratios))):.1f}, "
            f"least {min(ratios):.1f}"
        )
    if options.latency:
        speed()


def speed() -> None:
    """Speed-up over MACs ratio of the shrunk models, ours and the peer's, at batch 1 and 32, one thread."""
    from secateur.models.resnet20 import Resnet20

    heads = [f"{side}: MACs{'speed-up':>10}{'share':>7}" for side in ("ours", "peer")]
    print(f"{'model':<12}{'batch':>6}{heads[0]:>29}{heads[1]:>29}")
    builders = {
        "resnet20": (lambda: Resnet20().eval(), 32),
        "resnet50": (lambda: build(Entry("torchvision", "resnet50"))[0], 224),
        "vgg16_bn": (lambda: build(Entry("torchvision", "vgg16_bn"))[0], 224),
    }
    for name, (make, size) in builders.items():
        model = make()
        one = torch.randn(1, 3, size, size)
        small = ours(model, one).eval()
        try:
            other = peer(model, one).eval()
            other(one)
        except Exception:
            other = copy.deepcopy(small)
        macs = [analyse(m, one).macs() for m in (model, small, other)]
        for batch in (1, 32):
            x = torch.randn(batch, 3, size, size)
            dense, mine, theirs = latency([model, small, other], x, 5 if batch > 1 and size > 100 else 25)
            cells = []
            for fewer, seconds in ((macs[1], mine), (macs[2], theirs)):
                ratio, faster = macs[0] / fewer, dense / seconds
                cells.append(f"{ratio:>12.2f}{faster:>10.2f}{faster / ratio:>7.2f}")
            print(f"{name:<12}{batch:>6}{''.join(cells)}", flush=True)


if __name__ == "__main__":
    main()

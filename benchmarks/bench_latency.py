"""Whether fewer multiply-accumulates are less time: `python benchmarks/bench_latency.py onnx|keep [--models ...]`.

`onnx`: every model is cut to `Macs(keep=0.25, round_to=16)`, shrunk, exported, and dense and shrunk are timed in turns
in ONNX Runtime on one thread. Ours is what the count promises (MACs before over after), the peer what was measured
(time before over after): their ratio must be at most 1/0.97 for VGG-16 and ResNet-50; the others are shown beside them.

`keep`: `Latency(keep=0.5)` for eager PyTorch on one thread, then dense and shrunk timed anew. Ours is the share of the
time found on the re-measure, the peer the share asked: at most 5 % above or below.

Weights are random. `--size` is the edge of the image (224 as published; smaller is quicker to try).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur as sc
from secateur.adapters.export import export
from secateur.adapters.onnx_model import OnnxModel
from secateur.metrics.latency import compare

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "zoo"))
from _common import Row, report

from models import Entry, build

MODELS = {
    "onnx": ("torchvision/vgg16", "torchvision/resnet50", "torchvision/vit_b_16", "torchvision/densenet121"),
    "keep": ("resnet20", "torchvision/resnet50", "torchvision/vgg16", "torchvision/vit_b_16"),
}
HELD = ("torchvision/vgg16", "torchvision/resnet50")


def made(name: str, size: int) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    library, _, word = name.rpartition("/")
    if not library:
        model = sc.models.build(name).eval()
        return model, torch.randn(1, *(sc.models.input_shape(model) or (3, 32, 32)))
    model, example = build(Entry(library, word, 224 if word.startswith("vit") else size))
    return model.eval(), example


def macs(model: nn.Module, x: Any) -> int:
    return int(sc.measure(model, x, what="macs")["macs"].value)


def onnx(names: list[str], size: int, trials: int, round_to: int | None) -> int:
    rows = []
    for name in names:
        model, x = made(name, size)
        budget = sc.budget.Macs(keep=0.25, round_to=round_to)
        masks = sc.prune(
            model, "l2", "channel", budget, example=x, options=sc.PruneOptions(allow_collapse=True)
        )
        small = sc.shrink(model, masks, x)
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / "dense.onnx", Path(folder) / "small.onnx"]
            done = [export(m, path, x) for m, path in zip((model, small.model), paths)]
            pair = [OnnxModel(path, threads=1) for path in paths]
            found = compare(*pair, x, repetitions=trials, threads=1)["speedup"]
        counted = macs(model, x) / macs(small.model, x)
        print(
            f"{name}: {counted:.2f}x fewer MACs, {found.text()}, outputs within {max(d.error for d in done):.0e}",
            flush=True,
        )
        rows.append(Row(name, counted, found.value, 1 / 0.97 if name in HELD else 9.99, "x"))
    return report(rows, f"ONNX Runtime, one thread, {size} x {size}: MACs ratio (ours) and time ratio (peer)")


def keep(names: list[str], size: int, trials: int) -> int:
    rows = []
    for name in names:
        model, x = made(name, size)
        start = time.perf_counter()
        budget = sc.budget.Latency(keep=0.5, repetitions=trials, threads=1)
        masks = sc.prune(
            model, "l2", "channel", budget, example=x, options=sc.PruneOptions(allow_collapse=True)
        )
        spent = time.perf_counter() - start
        small = sc.shrink(model, masks, x).model
        found = compare(model, small, x, repetitions=trials, threads=1)["speedup"]
        share = 1.0 / found.value
        print(
            f"{name}: {share:.3f} of the time on a re-measure ({found.text()}), found in {spent:.0f} s",
            flush=True,
        )
        rows.append(Row(f"{name}: off by", abs(share / 0.5 - 1.0) * 100, 100.0, 0.05, "%"))
    return report(rows, f"Latency(keep=0.5), one thread, {size} x {size}: how far off on a re-measure")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=sorted(MODELS))
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--trials", type=int, default=25)
    parser.add_argument(
        "--round-to", type=int, default=16, help="onnx: widths are multiples of this; 0 for any"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = given.models or list(MODELS[given.what])
    if given.what == "keep":
        return keep(names, given.size, given.trials)
    return onnx(names, given.size, given.trials, given.round_to or None)


if __name__ == "__main__":
    sys.exit(main())

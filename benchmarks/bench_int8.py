"""What INT8 and removed channels gain together: `python benchmarks/bench_int8.py [--models ...] [--size 224]`.

Every model is exported to ONNX four times: dense in floats; pruned (`Macs(keep=0.25, round_to=16)`, channels removed);
dense in INT8; pruned and in INT8. Convolutional networks are quantised statically, on random images; with `--dynamic`
dynamically. Each is timed against the dense float file in turns, in ONNX Runtime on one thread; the medians of the
ratios are printed, and the agreement of the INT8 file with the float model it was made from.

Weights are random, so agreement says little about trained networks. The product of the two separate ratios is the peer:
what is missing from it is time that neither shortens.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

import secateur as sc
from secateur.adapters.export import export
from secateur.adapters.int8 import Int8Options
from secateur.adapters.onnx_model import OnnxModel
from secateur.metrics.latency import compare

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "zoo"))
from _common import Row, report

from models import Entry, build

GOALS = {"torchvision/resnet50": 10.0, "torchvision/vgg16": 10.0, "torchvision/vit_b_16": 7.0}


def ratios(name: str, given: argparse.Namespace) -> dict[str, float]:
    """How many times as fast as the dense float file: pruned, INT8, and both."""
    torch.manual_seed(0)
    library, _, word = name.rpartition("/")
    model, x = build(Entry(library, word, given.size))
    model = model.eval()
    budget = sc.budget.Macs(keep=given.keep, round_to=16)
    small = sc.shrink(model, sc.prune(model, "l2", "channel", budget, example=x), x).model
    images = [torch.randn(1, 3, given.size, given.size) for _ in range(given.batches)]
    options = Int8Options(lost=0.999, compare=images)
    int8 = "dynamic" if given.dynamic else images
    with tempfile.TemporaryDirectory() as folder:
        paths = {kind: Path(folder) / f"{kind}.onnx" for kind in ("dense", "pruned", "INT8", "both")}
        export(model, paths["dense"], x)
        export(small, paths["pruned"], x)
        reports = {
            "INT8": export(model, paths["INT8"], x, int8=int8, int8_options=options).int8,
            "both": export(small, paths["both"], x, int8=int8, int8_options=options).int8,
        }
        dense = OnnxModel(paths["dense"], threads=1)
        found: dict[str, float] = {}
        for kind in ("pruned", "INT8", "both"):
            speedup = compare(dense, OnnxModel(paths[kind], threads=1), x, trials=given.trials, threads=1)[
                "speedup"
            ]
            noise = f", noise {reports[kind].noise:.1e}" if kind in reports else ""
            size = paths["dense"].stat().st_size / paths[kind].stat().st_size
            print(f"{name} {kind}: {speedup.text()}, file {size:.1f} times smaller{noise}", flush=True)
            found[kind] = float(speedup.value)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["torchvision/resnet50"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--keep", type=float, default=0.25, help="share of multiply-accumulates that remains")
    parser.add_argument("--trials", type=int, default=25)
    parser.add_argument("--batches", type=int, default=8, help="random images to calibrate on")
    parser.add_argument("--dynamic", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in given.models:
        found = ratios(name, given)
        rows.append(Row(f"{name}: goal and measured", GOALS.get(name, 1.0), found["both"], 1.0, "x"))
        rows.append(
            Row(f"{name}: product and measured", found["pruned"] * found["INT8"], found["both"], 9.99, "x")
        )
    return report(
        rows, f"ONNX Runtime, one thread, {given.size} x {given.size}: times as fast as dense in floats"
    )


if __name__ == "__main__":
    sys.exit(main())

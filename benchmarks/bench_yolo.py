"""What half of the channels gains in ONNX Runtime: `python benchmarks/bench_yolo.py [--models yolov8n ...]`.

Each model of ultralytics is built with random weights, half of every group of channels is removed (`sc.prune(model,
"l2", "channel", 0.5)`, `shrink`, proved), and both are written by `sc.save_yolo` and exported by ultralytics' own
exporter (`YOLO(path).export(format="onnx")`). The two files are timed in turns on one thread; the goal is 1.5 times.

Needs ultralytics and what it imports, without another torch: `pip install --no-deps ultralytics
opencv-python-headless polars polars-runtime-32 matplotlib`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

import secateur as sc

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "zoo"))
import yolo
from _common import Row, report

GOAL = 1.5


def measured(name: str, given: argparse.Namespace, folder: Path) -> Row:
    """The dense and the cut model's file, timed in turns."""
    from ultralytics import YOLO

    model = yolo.build(name, classes=80)
    example = torch.rand(1, 3, 64, 64)
    small = sc.shrink(model, sc.prune(model, "l2", "channel", given.budget, example=example), example)
    files = {}
    for what, net in (("dense", model), ("small", small)):
        path = sc.save_yolo(net, folder / f"{name}-{what}.pt")
        exported = YOLO(path).export(
            format="onnx", imgsz=given.size, simplify=False, device="cpu", verbose=False
        )
        files[what] = sc.OnnxModel(exported, threads=1)
    image = torch.rand(1, 3, given.size, given.size)
    found = sc.compare(files["dense"], files["small"], image, repetitions=given.trials, threads=1)
    dense, cut, speedup = found
    before, after = (sum(p.numel() for p in net.parameters()) for net in (model, small.model))
    print(
        f"{name}: {after / before:.2f} of the parameters, proof {small.proof.error:.0e}, {speedup.text()}",
        flush=True,
    )
    return Row(name, float(cut.value), float(dense.value), 1 / GOAL, "ms")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["yolov8n", "yolo11n", "yolo26n"])
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--budget", type=float, default=0.5, help="share of every group of channels removed")
    parser.add_argument("--trials", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        yolo.prepare(Path(folder))
        rows = [measured(name, given, Path(folder)) for name in given.models]
    return report(
        rows, f"ONNX Runtime, one thread, {given.size} x {given.size}: the cut model, the dense one"
    )


if __name__ == "__main__":
    sys.exit(main())

"""What `shrink` with its proof costs beside one forward in float64, in processor time, on slow models of the zoo.

    python benchmarks/bench_proof.py                   # all of them
    python benchmarks/bench_proof.py swin_v2_s         # models of the zoo, by name

`prune` comes before, and its trial finds the repairs that `shrink` needs; its time stands beside. Forward and `shrink`
are the faster of two runs. Goal: `shrink` takes at most five times the forward and three seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "zoo"))

import secateur as sc
from models import FAMILIES, Entry, build, declare_torchvision
from secateur.core.nested import map_tensors
from secateur.execution.calling import call

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record

SLOWEST = ["mvit_v2_s", "mvit_v1_b", "vit_l_16", "swin_v2_s", "swin3d_b", "detr", "mask2former"]
_TIMES, _MORE = 5, 3.0


def seconds(work: Callable[[], object]) -> float:
    """The processor time of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def run(entry: Entry) -> str:
    """One line of the table."""
    torch.manual_seed(0)
    model, example = build(entry)
    wide = map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, example)
    model.double()
    with torch.no_grad():
        forward = min(seconds(lambda: call(model, wide)) for _ in range(2))
    model.float()
    found: list[sc.Masks] = []
    options = sc.PruneOptions(allow_collapse=True)
    prune = seconds(
        lambda: found.append(sc.prune(model, "l2", "channel", 0.5, example=example, options=options))
    )
    shrink = min(seconds(lambda: sc.shrink(model, found[0], example)) for _ in range(2))
    goal = _TIMES * forward + _MORE
    met = "met" if shrink <= goal else "missed"
    detail = f"{shrink:.2f} s of at most {goal:.2f} s"
    record(Figure(f"{entry.name}: share of the time allowed", shrink / goal, "ratio", 1.0, detail=detail))
    return f"{entry.name:16} {forward:8.2f} s {prune:8.2f} s {shrink:8.2f} s {goal:8.2f} s  {shrink / goal:5.2f}  {met}"


def main() -> None:
    torch.set_num_threads(1)
    declare_torchvision()
    names = sys.argv[1:] or SLOWEST
    print(f"{'model':16} {'forward':>10} {'prune':>10} {'shrink':>10} {'at most':>10}  share  goal")
    for entry in FAMILIES():
        if entry.name in names:
            print(run(entry), flush=True)


if __name__ == "__main__":
    main()

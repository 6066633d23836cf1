"""How fast a scan is: `python benchmarks/bench_scan.py [--images 2000] [--convs 1 4 7 10] [--granularity filter]`.

Study 4's scan: 12 convolutions alone, each at the sparsities 0, 0.1 ... 0.9, accuracy on 2,000 images of 32 x 32 in
batches of 100. The images are the embedded digits with noise, and the network has been trained on them for a minute,
so that accuracies and margins are those of a classifier. Ours is `sc.scan`; the peer is the loop that everybody
writes: prune one layer, evaluate, restore, for each of the 120 cells. Both run in this process, one after the other,
on the same number of threads, and are judged by processor time. The goal is a quarter of the time. The accuracies
must be equal to the last digit, or the run fails.

What can be won by not computing again what comes before the layer is bounded: the layers' shares of the
multiply-accumulates say by how much, and the bound is printed. The rest comes from evaluating the dense model once
instead of 12 times, and from the shorter way of `quick` (`--plain` leaves it out): bfloat16, a layer that loses filters
not run again, and the one behind it run on the channels that stay.

The loop takes half an hour on one thread with 2,000 images. `--every 23` has it do 6 of the 120 cells, of which none
is cheaper than another, and scales its time; ours does all.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import torch

import secateur as sc
from secateur.metrics.accuracy import top_1

sys.path.insert(0, str(Path(__file__).parent))
from _common import Row, report


def trained(
    steps: int, name: str = "digits", path: str | None = None, noise: float = 0.3
) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """Study 4's network after a few steps on these images, and those it is tested on."""
    model = sc.models.build("vgg12")
    data = sc.data.load_for(model, name, path=path, limit=12_000)
    images, labels = data.train.first(len(data.train))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    model.train()
    for _ in range(steps):
        rows = torch.randint(0, len(images), (64,))
        noisy = images[rows] + noise * torch.randn(64, *images.shape[1:])
        with torch.autocast("cpu", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(noisy), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False), *data.test.first(len(data.test))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument(
        "--convs", type=int, nargs="*", help="only these of the 12; the middle of every block: 1 4 7 10"
    )
    parser.add_argument("--granularity", default="filter")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", type=int, default=1 << 30)
    parser.add_argument("--steps", type=int, default=60, help="of training before the scan")
    parser.add_argument(
        "--every",
        type=int,
        default=1,
        help="the loop does every so manieth cell, and its time is scaled to all: a period that shares no factor with "
        "the 10 sparsities (7, 13, 23), or it meets a few sparsities only, in the worst case (10) the dense one",
    )
    parser.add_argument("--plain", action="store_true", help="quick=False")
    parser.add_argument("--data", default="digits", help="cifar10 with --path: real images, without noise")
    parser.add_argument("--path", help="where --data lies")
    given = parser.parse_args()
    if given.every > 1 and math.gcd(given.every, 10) > 1:
        parser.error(f"--every {given.every} shares a factor with the 10 sparsities: take 7, 13 or 23")
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    if given.data == "digits":
        model, images, labels = trained(given.steps)
        rows = torch.randint(0, len(images), (given.images,))
        images, labels = images[rows] + 0.5 * torch.randn(given.images, *images.shape[1:]), labels[rows]
    else:
        model, images, labels = trained(given.steps, given.data, given.path, noise=0.0)
        images, labels = images[: given.images], labels[: given.images]
    batches = list(zip(images.split(100), labels.split(100)))
    convs = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)]
    convs = [convs[index] for index in given.convs or range(len(convs))]
    levels = [round(0.1 * step, 1) for step in range(10)]
    # processor time: what other work on the machine does to the clock is nobody's
    start, clock = time.process_time(), time.perf_counter()
    ours = sc.scan(
        model,
        batches,
        given.granularity,
        levels,
        options=sc.ScanOptions(only=convs, memory=given.memory, quick=not given.plain),
    )
    spent_ours, clock_ours = time.process_time() - start, time.perf_counter() - clock
    cells = [(name, level) for name in convs for level in levels]
    chosen = range(0, len(cells), given.every)
    start = time.process_time()
    dense = top_1(model, batches)[0]
    once = time.process_time() - start
    values = []
    start, clock = time.process_time(), time.perf_counter()
    for name, level in (cells[index] for index in chosen):
        saved = model.get_submodule(name).weight.detach().clone()
        if level:
            masks = sc.prune(
                model, "l2", given.granularity, level, options=sc.PruneOptions(only=name, allow_collapse=True)
            )
            masks.apply_(model)
        values.append(top_1(model, batches)[0])
        with torch.no_grad():
            model.get_submodule(name).weight.copy_(saved)
    spent_peer = once + (time.process_time() - start) * len(cells) / len(values)
    clock_peer = (time.perf_counter() - clock) * len(cells) / len(values)
    assert dense == ours.dense, (dense, ours.dense)
    assert values == [ours.cells[index].value for index in chosen], "the accuracies differ"
    assert ours.peak_bytes <= given.memory
    per_layer = list(sc.measure(model, images[:1], what="macs")["macs"].per_layer.items())
    macs = [count for _, count in per_layer]
    tails = [sum(macs[[n for n, _ in per_layer].index(name) :]) for name in convs]
    print(ours)
    print(
        f"{len(values)} accuracies of {len(cells)} compared: equal to the last digit ({len(set(values))} different "
        f"ones), at most {ours.peak_bytes / 2**20:.0f} MiB kept; by the count alone "
        f"{sum(macs) * len(convs) / sum(tails):.2f}x is possible"
    )
    print(ours.how)
    row = Row("study 4's scan", spent_ours, spent_peer, 0.25, "s")
    code = report([row], f"scan: {len(convs)} layers x {len(levels)} levels, {given.images} images")
    print(
        f"{1 / row.ratio:.2f}x as fast as the loop by the processor's time, {clock_peer / clock_ours:.2f}x by the "
        f"clock; the goal is 4x; {given.threads} threads both"
    )
    return code


if __name__ == "__main__":
    sys.exit(main())

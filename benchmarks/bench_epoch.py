"""Images a second in training, with the settings of a study's scale `full` and of `day`, in turns.

    python benchmarks/bench_epoch.py [--data FOLDER] [--networks resnet20 vgg12 resnet18 vgg16-lottery] [--images 512]

The settings are read from the recipes: `full` trains as published, `day` in bf16 with the channels innermost, in
larger batches. Each turn trains one epoch of the same images by the lab's own loop; the median of the turns counts. The
seconds of an epoch of 50,000 images follow from the images a second, and docs/site/studies.py reads them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch
from _results import Figure, record

from secateur import data, models, studies
from secateur.lab.steps.train import TrainBase
from secateur.lab.training import train

STUDY = {
    "resnet20": "deep-compression",
    "vgg12": "sensitivity",
    "resnet18": "resnet101",
    "vgg16-lottery": "at-init-vgg16",
}
WHOLE = 50_000


def step_of(network: str, scale: str) -> TrainBase:
    """The first training step of the study of a network, at a scale."""
    for _, recipe in studies.read(STUDY[network]).recipes(scale):
        for step in recipe.trials()[0][1].steps:
            if isinstance(step, TrainBase):
                return step
    raise LookupError(f"{STUDY[network]} trains nothing at {scale}")


def seconds(network: str, step: TrainBase, images: data.Data) -> float:
    """The time of one epoch by the lab's loop."""
    torch.manual_seed(0)
    model = models.build(network)
    step.set_memory_format(model)
    options = replace(step.training(), epochs=1, schedule="constant", milestones=(), warmup=0.0)
    began = time.perf_counter()
    train(model, images, options, device="cpu")
    return time.perf_counter() - began


def main() -> None:
    """Both scales in turns, network by network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="the folder of CIFAR-10; without it embedded digits, enlarged")
    parser.add_argument("--networks", nargs="+", choices=list(STUDY), default=list(STUDY))
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    name = {"name_or_path": "cifar10", "path": asked.data} if asked.data else {"name_or_path": "digits"}
    for network in asked.networks:
        some = data.load_for(models.build(network), **name, limit=asked.images, validation=0.0)
        count = len(some.train)
        steps = {scale: step_of(network, scale) for scale in ("full", "day")}
        found: dict[str, list[float]] = {scale: [] for scale in steps}
        for _ in range(asked.turns):
            for scale, step in steps.items():
                found[scale].append(count / seconds(network, step, some))
        speed = {scale: statistics.median(values) for scale, values in found.items()}
        ratio = statistics.median(day / full for day, full in zip(found["day"], found["full"]))
        detail = f"{count} images an epoch, {asked.turns} turns, {asked.threads} threads"
        print(
            f"{network:14} full {speed['full']:7.1f} images/s   day {speed['day']:7.1f} images/s   "
            f"{ratio:.2f} times as many; an epoch of 50,000 takes {WHOLE / speed['day']:,.0f} s ({detail})",
            flush=True,
        )
        for scale, value in speed.items():
            record(
                Figure(
                    f"{network}, {scale}, images a second",
                    round(value, 1),
                    "images/s",
                    better="higher",
                    detail=detail,
                )
            )
        record(
            Figure(f"{network}, day / full", round(ratio, 2), "x", goal=1.5, better="higher", detail=detail)
        )
        record(
            Figure(
                f"{network}, seconds of an epoch",
                round(WHOLE / speed["day"], 1),
                "s",
                tolerance=0.5,
                detail=detail,
            )
        )


if __name__ == "__main__":
    main()

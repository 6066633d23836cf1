"""Feeding: what share of a ResNet-20 epoch on CIFAR-10-sized data is spent outside forward, backward and
step?

    python benchmarks/bench_feeding.py [--images 50000] [--repeats 3] [--batch 128] [--device cpu]

Synthetic uint8 images of 32x32x3, shuffled, cropped with padding and flipped, normalised.
`secateur.lab.training.train` runs one epoch as it stands; the time inside the model's forward, the backward
pass and the optimizer's step is taken by wrapping those three, and the rest (order, gather, augmentation,
normalisation, loss and bookkeeping) is the feeding share. Beside it, interleaved, the same images
through torch's own DataLoader (one image at a time, the same augmentation in plain Python; no worker
processes), batches made but no training: the ratio says what the whole-tensor path saves. Medians of the
repeats. Exit code 1 when the share is 5 % or more.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from secateur import models
from secateur.data import Data, Split
from secateur.data._splits import ImageMemory
from secateur.execution.devices import chosen_device
from secateur.lab.training import TrainingOptions, train

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record

LIMIT = 0.05
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


def synthetic(count: int) -> Data:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    part = Split(ImageMemory(images, torch.randint(0, 10, (count,), generator=generator)), MEAN, STD)
    none = Split(ImageMemory(images[:0], torch.zeros(0)), MEAN, STD)
    return Data("synthetic", part, none, part, tuple("0123456789"), (3, 32, 32), MEAN, STD, "synthetic")


class Clock:
    """Adds up the time spent inside some functions."""

    def __init__(self, device: torch.device):
        self.seconds, self.device = 0.0, device

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            self.wait()
            began = time.perf_counter()
            result = function(*arguments, **named)
            self.wait()
            self.seconds += time.perf_counter() - began
            return result

        return run


def epoch(data: Data, batch: int, device: torch.device) -> tuple[float, float]:
    """(seconds of the whole epoch, seconds in forward, backward and step)."""
    torch.manual_seed(0)
    model, clock = models.build("resnet20"), Clock(device)
    model.forward = clock.timed(model.forward)  # type: ignore[method-assign]
    backward, step = torch.Tensor.backward, torch.optim.SGD.step
    torch.Tensor.backward = clock.timed(backward)  # type: ignore[method-assign]
    torch.optim.SGD.step = clock.timed(step)  # type: ignore[method-assign]
    try:
        trained = train(
            model,
            data,
            TrainingOptions(epochs=1, lr=0.01, batch_size=batch, augment="standard"),
            device=device,
        )
    finally:
        torch.Tensor.backward, torch.optim.SGD.step = backward, step  # type: ignore[method-assign]
    return trained.seconds, clock.seconds


class OneByOne(Dataset):  # type: ignore[type-arg]
    """The usual way: a dataset that makes one image at a time."""

    def __init__(self, data: Data):
        self.images, self.labels = data.train.images, data.train.labels
        self.mean, self.std = (torch.tensor(part).reshape(3, 1, 1) for part in (MEAN, STD))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = torch.nn.functional.pad(self.images[index], (4, 4, 4, 4))
        top, left = torch.randint(0, 9, (2,)).tolist()
        image = image[:, top : top + 32, left : left + 32]
        if torch.rand(()) < 0.5:
            image = image.flip(2)
        return (image.float() / 255 - self.mean) / self.std, self.labels[index]


def seconds(batches: Any) -> float:
    began = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    device = chosen_device(given.device)
    data = synthetic(given.images)
    epoch(synthetic(2 * given.batch), given.batch, device)  # warm up
    shares, ratios = [], []
    for repeat in range(given.repeats):
        whole, inside = epoch(data, given.batch, device)
        ours = seconds(
            data.train.batches(given.batch, shuffle=True, epoch=repeat, augment="standard", device=device)
        )
        theirs = seconds(DataLoader(OneByOne(data), given.batch, shuffle=True))
        shares.append(1 - inside / whole)
        ratios.append(theirs / ours)
        print(
            f"epoch {whole:8.2f} s  outside forward/backward/step {shares[-1]:7.2%}  batches alone: ours "
            f"{ours:6.2f} s, DataLoader {theirs:6.2f} s, ratio {ratios[-1]:5.1f}"
        )
    share = statistics.median(shares)
    print(f"{given.images} images, batch {given.batch}, {device}, {torch.get_num_threads()} threads")
    print(f"outside forward/backward/step: median {share:.2%} (limit {LIMIT:.0%})")
    print(f"DataLoader / ours, batches alone: median {statistics.median(ratios):.1f}")
    record(
        Figure("outside forward, backward and step", 100 * share, "%", 100 * LIMIT, tolerance=0.5),
        Figure(
            "DataLoader / ours, batches alone", statistics.median(ratios), "x", better="higher", tolerance=0.3
        ),
    )
    return 0 if share < LIMIT else 1


if __name__ == "__main__":
    raise SystemExit(main())

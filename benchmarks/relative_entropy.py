"""Relative-entropy coding of a kept LeNet's weights, estimated: `python benchmarks/relative_entropy.py --data FOLDER`.

MIRACLE spends the Kullback-Leibler divergence of a posterior from a prior, in bits, on a draw from the posterior. Here
the posterior is a normal distribution about each weight of the kept network, as wide as its curvature allows: its
standard deviation is `noise` over the root of the mean squared gradient of the loss, at most that of the prior. The
prior of a layer is normal about zero, with the variance that makes the divergence least. The network was not trained
for it, so what is printed is an upper limit of the divergence. Accuracies are those of draws, on validation images.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import sys
from pathlib import Path

import headline
import torch
from _results import Figure, record
from torch import nn

from secateur import data
from secateur.container.loading import load
from secateur.lab.training import evaluate

NOISES = (0.0002, 0.0005, 0.001, 0.002, 0.005)
DRAWS = 3
IMAGES = 2000  # of the training images, for the squared gradients


def squared_gradients(model: nn.Module, split: data.Split) -> dict[str, torch.Tensor]:
    """The mean squared gradient of the loss of an image, for every weight."""
    sums = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    images, labels = next(iter(split.batches(IMAGES)))
    for image, label in zip(images, labels):
        model.zero_grad()
        nn.functional.cross_entropy(model(image[None]), label[None]).backward()
        for name, weight in model.named_parameters():
            assert weight.grad is not None
            sums[name] += weight.grad**2 / len(images)
    return sums


def divergence(mean: torch.Tensor, deviation: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The posterior's standard deviations, cut at the prior's, and the divergence from the prior in bits.

    >>> widths, bits = divergence(torch.tensor([3.0, 3.0]), torch.tensor([1.0, 1.0]))
    >>> widths.tolist(), round(bits, 3)  # log2 of sqrt(9 + 1), twice
    ([1.0, 1.0], 3.322)
    """
    prior = float((mean**2).mean().sqrt())
    if not prior:
        return torch.zeros_like(mean), 0.0  # a tensor of zeros: so is its prior
    for _ in range(20):
        widths = deviation.clamp(max=prior)
        prior = float((mean**2 + widths**2).mean().sqrt())
    nats = torch.log(prior / widths) + (widths**2 + mean**2) / (2 * prior**2) - 0.5
    return widths, float(nats.double().sum()) / math.log(2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder with mnist")
    parser.add_argument("--only", default="lenet-5-mnist-bytes", help="the kept file")
    options = parser.parse_args()
    entry = headline.entries()[options.only]
    path = Path(headline.FOLDER) / f"{options.only}.sct"
    model = load(path, into=headline.network(entry))
    sets = data.load(
        "mnist", path=os.path.join(options.data, "mnist"), validation=1 / 12, **entry.get("load", {})
    )
    torch.manual_seed(0)
    plain = evaluate(model, sets.validation, device="cpu")["accuracy"]
    print(f"{options.only}: {path.stat().st_size:,} bytes, {plain:.2%} on the validation images")
    curvature = squared_gradients(model, sets.train)
    for noise in NOISES:
        bits, widths = 0.0, {}
        for name, weight in model.named_parameters():
            allowed = noise / (curvature[name].sqrt() + 1e-12)
            widths[name], own = divergence(weight.detach(), allowed)
            bits += own
        found = []
        for _ in range(DRAWS):
            drawn = copy.deepcopy(model)
            with torch.no_grad():
                for name, weight in drawn.named_parameters():
                    weight += widths[name] * torch.randn_like(weight)
            found.append(evaluate(drawn, sets.validation, device="cpu")["accuracy"])
        accuracy = sum(found) / DRAWS
        print(f"noise {noise:<7} {bits / 8:>8,.0f} bytes  {accuracy:.2%}")
        record(
            Figure(
                f"{options.only}: divergence at noise {noise}", bits / 8, "bytes", detail=f"{accuracy:.2%}"
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How small shared weights can become without changing a value: `python benchmarks/bound_shared.py --bits 6`.

Shares MiniLM's weights (or those of `--weights`), and prints bits a weight for the same indices: their entropy within a
tensor, which is what a general compressor comes near to; the code length under a Laplace, a normal and a Student
distribution whose scale is the product of one number a row and one a column, both known to the decoder at no cost,
with the best of nine widths for every tensor; and the same scale sorted into 64 classes with a histogram of its own
for each, also free. The last two are bounds for a coder that knows the scale of every row and column. Also prints both
entropies for evenly spaced values with the same squared error, and for whole numbers that fill the range of the bits
in every row, which need other values. Every tensor is sampled by rows. One thread, about a minute.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from bench_lossless import weights_of

from secateur import quantize

WIDTHS = [0.7 * 1.09**step for step in range(9)]
CLASSES = 64


def entropy(counts: torch.Tensor) -> float:
    """Bits of all that was counted, by its own frequencies."""
    counts = counts[counts > 0].double()
    return float((counts * (counts.sum().log2() - counts.log2())).sum())


def scales(weight: torch.Tensor) -> torch.Tensor:
    """A number for every row times one for every column that fit the mean squares, by alternating sums."""
    square = weight.double().square() + 1e-20
    rows, columns = square.mean(1), torch.ones(square.shape[1], dtype=torch.float64)
    for _ in range(8):
        columns = (square / rows[:, None]).mean(0)
        rows = (square / columns).mean(1)
    return (rows[:, None] * columns).sqrt().float()


def cumulative(kind: str, x: torch.Tensor) -> torch.Tensor:
    """A distribution function of unit scale."""
    if kind == "normal":
        return torch.special.ndtr(x)
    if kind == "Laplace":
        x = x * math.sqrt(2)
        return torch.where(x < 0, 0.5 * x.exp(), 1 - 0.5 * (-x).exp())
    # Student's with 5 degrees of freedom, variance 1
    t = x * math.sqrt(5 / 3) / math.sqrt(5)
    return 0.5 + (torch.atan(t) + t / (1 + t * t) * (1 + 2 / 3 / (1 + t * t))) / math.pi


def parametric(values: torch.Tensor, levels: torch.Tensor, scale: torch.Tensor) -> float:
    """Bits of all weights under the best of the distributions and widths."""
    middle = (values[1:] + values[:-1]) / 2
    ends = torch.cat([torch.tensor([-1e9]), middle, torch.tensor([1e9])]).double()
    low, high, scale = ends[levels], ends[levels + 1], scale.double()
    best = math.inf
    for kind in ("normal", "Laplace", "Student"):
        for width in WIDTHS:
            x = scale * width
            mass = cumulative(kind, high / x) - cumulative(kind, low / x)
            best = min(best, float(-mass.clamp_min(1e-12).log2().sum()))
    return best


def by_class(levels: torch.Tensor, scale: torch.Tensor, count: int) -> float:
    """Bits of all weights by a histogram for every class of scales."""
    edges = torch.quantile(
        scale.flatten()[:: max(1, scale.numel() // 100_000)], torch.linspace(0, 1, CLASSES + 1)[1:-1]
    )
    classes = torch.bucketize(scale, edges)
    counts = torch.bincount((classes * count + levels).flatten(), minlength=CLASSES * count)
    return sum(entropy(row) for row in counts.reshape(CLASSES, count))


def even(weight: torch.Tensor, error: float) -> torch.Tensor:
    """The weights as multiples of a step that gives the same squared error."""
    low, high = 1e-6, float(weight.abs().max())
    for _ in range(40):
        step = math.sqrt(low * high)
        if float((weight - (weight / step).round() * step).double().square().mean()) > error:
            high = step
        else:
            low = step
    return (weight / low).round().long()


def both(levels: torch.Tensor, scale: torch.Tensor) -> tuple[float, float]:
    """Bits of whole numbers by the histogram of all, and by those of 64 classes of scales."""
    levels = levels - levels.min()
    return entropy(torch.bincount(levels.flatten())), by_class(levels, scale, int(levels.max()) + 1)


def main() -> None:
    """Print the sums over all tensors of two axes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--bits", type=int, default=6)
    parser.add_argument("--rows", type=int, default=512, help="of each tensor, spread over it, at most")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    kinds = ("within a tensor", "scale of row and column", "64 classes of the scale")
    kinds += ("even steps, same error", "  64 classes of it", "filling the range of rows", "  64 classes")
    bits = dict.fromkeys(kinds, 0.0)
    numbers = 0.0
    for name, weight in weights_of(asked.weights).items():
        if weight.dim() != 2 or not weight.is_floating_point() or weight.numel() < 256:
            continue
        part = weight.float()[:: max(1, weight.shape[0] // asked.rows)].contiguous()
        top = part.abs().amax(1, keepdim=True).clamp_min(1e-12)
        palette = quantize.registry.make("kmeans", bits=asked.bits).palette(name, part.flatten(), 0, seed=0)
        values = torch.from_numpy(palette.values).sort().values
        levels = torch.bucketize(part, (values[1:] + values[:-1]) / 2)
        scale, times = scales(part), weight.numel() / part.numel()
        error = float((part - values[levels]).double().square().mean())
        found = (
            entropy(torch.bincount(levels.flatten())),
            parametric(values, levels, scale),
            by_class(levels, scale, len(values)),
            *both(even(part, error), scale),
            *both((part / top * (2 ** (asked.bits - 1) - 1)).round().long(), scale / top),
        )
        for key, each in zip(bits, found):
            bits[key] += each * times
        numbers += weight.numel()
    base = bits["within a tensor"]
    for key, total in bits.items():
        print(
            f"{key:<26}{total / numbers:6.3f} bits a weight, {total / 8:13,.0f} bytes, {1 - total / base:6.1%} smaller"
        )


if __name__ == "__main__":
    main()

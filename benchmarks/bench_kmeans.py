"""One-dimensional K-means: ours against scikit-learn's KMeans, start by start, in one run on one thread.

    OMP_NUM_THREADS=1 python benchmarks/bench_kmeans.py [--weights 2400000] [--bits 5] [--rounds 3]

Prints ours, peer, their ratio in time and in squared error. Both sides get the same float32 weights and are
run in turn; times are medians over the rounds. The weights: nine parts normal, one part of three times the
width, as trained layers have heavier tails than a normal. Sorting, sums, iteration and the final assignment
are all in our time. scikit-learn runs with its defaults (`tol` included), which stop it early, in its favour.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from secateur.quantize import Kmeans

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record

Result = tuple[float, float]


def weights_of(count: int) -> torch.Tensor:
    random = np.random.default_rng(0)
    wide = np.where(random.random(count) < 0.1, 3.0, 1.0)
    return torch.from_numpy((random.normal(size=count) * wide * 0.02).astype(np.float32))


def ours(weights: torch.Tensor, start: str, bits: int, seed: int) -> Result:
    began = time.perf_counter()
    palette = Kmeans(bits=bits, start=start).palette("weights", weights, 0, seed)
    index = palette.assign(weights)
    seconds = time.perf_counter() - began
    away = weights.double() - torch.from_numpy(palette.values)[index]
    return seconds, float(away @ away)


def peer(weights: torch.Tensor, start: str, bits: int, runs: int, seed: int) -> Result:
    from sklearn.cluster import KMeans

    numbers = weights.numpy()[:, None]
    count = 2**bits
    init = np.linspace(numbers.min(), numbers.max(), count)[:, None] if start == "linear" else start
    began = time.perf_counter()
    fitted = KMeans(count, init=init, n_init=runs, random_state=seed).fit(numbers)
    seconds = time.perf_counter() - began
    centroids = fitted.cluster_centers_[:, 0].astype(np.float64)
    away = weights.double().numpy() - centroids[fitted.labels_]
    return seconds, float(away @ away)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=int, default=2_400_000)
    parser.add_argument("--bits", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    weights = weights_of(options.weights)
    pairs: list[tuple[str, str, int, float]] = [
        ("linear", "linear", 1, 50),
        ("random", "random", 1, 50),
        ("kmeans++", "k-means++", 1, 50),
        ("optimal", "k-means++", 10, 20),
    ]
    ours(weights[:10_000], "optimal", options.bits, 0)  # imports and first calls
    peer(weights[:10_000], "k-means++", options.bits, 1, 0)
    print(f"{options.weights:,} weights, {2**options.bits} centroids, {options.rounds} rounds")
    head = f"{'ours':<10} {'scikit-learn':<22} {'ours s':>8} {'peer s':>8} {'times':>7} {'goal':>5}"
    print(f"{head}  error ours/peer")
    failed = False
    for start, theirs, runs, goal in pairs:
        mine: list[Result] = []
        other: list[Result] = []
        for seed in range(options.rounds):
            sides: list[Callable[[], None]] = [
                lambda: mine.append(ours(weights, start, options.bits, seed)),  # noqa: B023
                lambda: other.append(peer(weights, theirs, options.bits, runs, seed)),  # noqa: B023
            ]
            for side in sides if seed % 2 == 0 else sides[::-1]:
                side()
        seconds = [statistics.median(time for time, _ in results) for results in (mine, other)]
        errors = [statistics.median(error for _, error in results) for results in (mine, other)]
        ratio, error = seconds[1] / seconds[0], errors[0] / errors[1]
        met = ratio >= goal and (start != "optimal" or (seconds[0] < 1 and error <= 1))
        failed = failed or not met
        peer_name = f"{theirs}, n_init={runs}"
        print(
            f"{start:<10} {peer_name:<22} {seconds[0]:>8.3f} {seconds[1]:>8.2f} {ratio:>6.1f}x "
            f"{goal:>4.0f}x  {error:.5f}{'' if met else '  MISSED'}",
            flush=True,
        )
        detail = f"{seconds[0]:.3f} s, error {error:.5f} of the peer's"
        record(Figure(f"{start} against {peer_name}", ratio, "x", goal, "higher", 0.2, detail))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

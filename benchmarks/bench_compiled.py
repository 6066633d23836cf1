"""How fast the context models code with and without the extra `fast`: `python benchmarks/bench_compiled.py`.

Levels of a 256 x 256 x 3 x 3 convolution (Laplacian, filters and channels of different sizes, half of them zero; 31
levels) are coded and decoded by the compiled loops and by numpy in turn, in this process, on one thread. The bytes must
be equal. Prints million weights a second of CPU time (medians), their ratio, and the time to load the loops: the first
time on a machine, when they are compiled, and from the cache on disk.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from secateur.coding import compiled, indices

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record

SIZE, ZERO = 31, 15
LOADING = (
    "import sys, time, numpy as np\nfrom secateur.coding import compiled, indices\n"
    "compiled.LOADING = int(sys.argv[1])\nstart = time.perf_counter()\n"
    "indices.encode(np.arange(1 << 16).reshape(256, 256) % 3, 3, 1)\nprint(time.perf_counter() - start)"
)


def levels() -> np.ndarray:
    random = np.random.default_rng(0)
    filters = np.exp(random.normal(size=(256, 1, 1, 1)) / 2)
    channels = np.exp(random.normal(size=(1, 256, 1, 1)) / 2)
    values = random.laplace(size=(256, 256, 3, 3)) * filters * channels * 0.8
    return np.clip(np.round(values), -ZERO, ZERO).astype(np.int64) + ZERO


def seconds(call: Callable[[], object]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def with_numpy(call: Callable[[], object]) -> object:
    kernels, compiled.kernels = compiled.kernels, lambda: None  # type: ignore[assignment]
    try:
        return call()
    finally:
        compiled.kernels = kernels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    if not compiled.available():
        sys.exit("numba is not installed: pip install 'secateur[fast]'")
    tensor, usual = levels(), compiled.LOADING
    compiled.LOADING = 0  # the loops from the first tensor on
    for model, goal in (("mixed", 5.0), ("strong", 2.0)):
        data = indices.encode(tensor, SIZE, ZERO, model)
        assert data == with_numpy(lambda m=model: indices.encode(tensor, SIZE, ZERO, m)), "other bytes"
        calls = {
            "in": lambda m=model: indices.encode(tensor, SIZE, ZERO, m),
            "out": lambda d=data: indices.decode(d, tensor.shape, SIZE, ZERO),
        }
        for way, call in calls.items():
            ours, numpys = [], []
            for _ in range(rounds):
                ours.append(seconds(call))
                numpys.append(seconds(lambda c=call: with_numpy(c)))
            speed, reference = (tensor.size / statistics.median(times) / 1e6 for times in (ours, numpys))
            print(
                f"{model} {way}: {speed:.2f} M weights/s, numpy {reference:.2f}, ratio {speed / reference:.2f} "
                f"(goal {goal} M weights/s), {len(data)} bytes both"
            )
            ratio = f"{speed / reference:.2f} of numpy"
            record(Figure(f"{model} {way}", speed, "M weights/s", goal, "higher", detail=ratio))
    kinds = {
        "loading from the cache, and 65,536 weights": 0,
        "65,536 weights, as a process does": usual,
    }
    for kind, at in kinds.items():
        times = []
        for _ in range(3):
            command = [sys.executable, "-c", LOADING, str(at)]
            times.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        print(f"{kind}: {statistics.median(times):.2f} s (goal 0.3)")
        record(Figure(kind, statistics.median(times), "s", 0.3))


if __name__ == "__main__":
    main()

"""How fast the context models code in machine code and in numpy: `python benchmarks/bench_compiled.py`.

Levels of a 256 x 256 x 3 x 3 convolution (Laplacian, filters and channels of different sizes, half of them zero; 31
levels) are coded and decoded by the compiled walk and by numpy in turn, in this process, on one thread, and by nncodec
(its C++) where it is installed. The bytes must be those of numpy. Prints million weights a second of CPU time
(medians), and the CPU time to compile the walk the first time, and to load it from the cache, imports included.
"""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from secateur.coding import compiled, indices

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record

SIZE, ZERO = 31, 15
CODING = (
    "import numpy as np\nfrom secateur.coding import compiled, indices\ncompiled.LOADING = 0\n"
    "indices.encode(np.arange(1 << 16).reshape(256, 256) % 3, 3, 1)\nassert compiled.kernels()"
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


def nncodec(tensor: np.ndarray) -> dict[str, Callable[[], object]]:
    """The calls of nncodec's C++ coder on the same levels; none where it is not installed."""
    try:
        module = importlib.import_module("nncodec.extensions.deepCABAC")
    except ImportError as error:
        print(f"nncodec is left out: {error}")
        return {}
    signed = np.ascontiguousarray((tensor - ZERO).reshape(len(tensor), -1).astype(np.int32))
    skip, none, off = (
        np.zeros(len(signed), dtype=np.int32),
        np.zeros(0, dtype=np.int8),
        module.HdspMode.AlwaysOff,
    )

    def encode() -> bytes:
        coder = module.Encoder()
        coder.initCtxModels(11, 0)
        coder.encodeLayer(signed, 0, 0, 0, 0, 0, skip, off, none, 0, 0)
        return coder.finish().tobytes()

    data = np.frombuffer(encode(), dtype=np.uint8)

    def decode() -> np.ndarray:
        coder = module.Decoder()
        coder.setStream(data)
        coder.initCtxModels(11)
        out = np.zeros_like(signed)
        coder.decodeLayer(out, 0, 0, 0, 0, off, none, 0, 0)
        return out

    assert (decode() == signed).all(), "nncodec decodes something else"
    print(f"nncodec: {len(data)} bytes")
    return {"in": encode, "out": decode}


def in_a_process(cache: str) -> float:
    """CPU seconds of a process, and of the compiler that it starts, that codes 65,536 weights with the walk."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", CODING], check=True, env={**os.environ, "SECATEUR_CACHE": cache})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def loading() -> None:
    """How long the first process takes, and the next ones."""
    with tempfile.TemporaryDirectory() as cache:
        first = in_a_process(cache)
        later = statistics.median(in_a_process(cache) for _ in range(3))
    for kind, found, goal in (("compiling", first, 2.0), ("loading from the cache", later, 0.3)):
        print(f"{kind}, imports and 65,536 weights included: {found:.2f} s (goal {goal})")
        record(Figure(f"{kind}, imports and 65,536 weights included", found, "s", goal))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    if not compiled.available():
        sys.exit("no C compiler was found: install cc, or pip install 'secateur[fast]'")
    tensor = levels()
    compiled.LOADING = 0  # machine code from the first tensor on
    peer = nncodec(tensor)
    for model, goal in (("mixed", 5.0), ("strong", 2.0)):
        data = indices.encode(tensor, SIZE, ZERO, model)
        assert data == with_numpy(lambda m=model: indices.encode(tensor, SIZE, ZERO, m)), "other bytes"
        calls = {
            "in": lambda m=model: indices.encode(tensor, SIZE, ZERO, m),
            "out": lambda d=data: indices.decode(d, tensor.shape, SIZE, ZERO),
        }
        for way, call in calls.items():
            took: dict[str, list[float]] = {"ours": [], "numpy": [], "nncodec": []}
            for _ in range(rounds):
                took["ours"].append(seconds(call))
                took["numpy"].append(seconds(lambda c=call: with_numpy(c)))
                if peer:
                    took["nncodec"].append(seconds(peer[way]))
            speeds = {
                name: tensor.size / statistics.median(times) / 1e6 for name, times in took.items() if times
            }
            others = ", ".join(f"{name} {speed:.2f}" for name, speed in speeds.items() if name != "ours")
            print(
                f"{model} {way}: {speeds['ours']:.2f} M weights/s (goal {goal}); {others}; {len(data)} bytes"
            )
            record(Figure(f"{model} {way}", speeds["ours"], "M weights/s", goal, "higher", detail=others))
    loading()


if __name__ == "__main__":
    main()

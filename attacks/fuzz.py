"""A long attack: `python -m attacks.fuzz --seconds 600 --seed 1`; stops at the first failure."""

from __future__ import annotations

import argparse
import random
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path

from attacks import hostile

MOST_SECONDS, MOST_BYTES = 1.0, 64 << 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--memory", action="store_true", help="measure memory too (several times slower)")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else time.time_ns() % (1 << 32)
    rng = random.Random(seed)
    made = (hostile.sample(), hostile.strong_sample(), hostile.framed_sample())
    samples = [(data, hostile.read(data)) for data in made]
    seen: Counter[str] = Counter()
    slowest = largest = 0.0
    end = time.monotonic() + options.seconds
    if options.memory:
        tracemalloc.start()
    while time.monotonic() < end:
        data, honest = rng.choice(samples)
        attack = rng.choice((hostile.mutate, hostile.mutate_within, hostile.mutate_within))
        bad = attack(data, rng)
        if options.memory:
            tracemalloc.reset_peak()
        began = time.perf_counter()
        try:
            verdict = hostile.judge(bad, honest, attack is hostile.mutate_within)
        except BaseException:
            Path("fuzz-failure.sct").write_bytes(bad)
            print(
                f"failed with seed {seed} after {sum(seen.values())} files; kept as fuzz-failure.sct",
                file=sys.stderr,
            )
            raise
        took = time.perf_counter() - began
        slowest = max(slowest, took)
        if options.memory:
            largest = max(largest, tracemalloc.get_traced_memory()[1])
        if took > MOST_SECONDS * (10 if options.memory else 1) or largest > MOST_BYTES + len(data):
            Path("fuzz-failure.sct").write_bytes(bad)
            print(
                f"seed {seed}: {took:.2f} s, {largest / 1e6:.0f} MB; kept as fuzz-failure.sct",
                file=sys.stderr,
            )
            return 1
        seen[f"{attack.__name__}: {verdict}"] += 1
    print(f"seed {seed}: {dict(seen)}; slowest {slowest:.3f} s; most memory {largest / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

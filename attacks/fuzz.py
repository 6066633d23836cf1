"""A long attack on every reader: `python -m attacks.fuzz --seconds 600 --seed 1`; stops at the first failure.

The judge: no exception but our own, at most two seconds of processor time and 64 MB + 8 times the input's size of
memory for each input, no change of the process's state (classes, random generators, settings, environment,
descriptors), and a model that a refused file was to be loaded into is as it was.
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import shutil
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

from attacks import folder_targets, lab_targets, process_state, targets

TARGETS = [*targets.TARGETS, *folder_targets.TARGETS, *lab_targets.TARGETS]
HONEST = {**targets.HONEST, **folder_targets.HONEST, **lab_targets.HONEST}
MOST_SECONDS, FREE_BYTES, BYTES_PER_BYTE = 2.0, 64 << 20, 8
_EVERY = 5000  # inputs of a target between two snapshots


def resident() -> int:
    """Bytes of memory this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Judge:
    """Runs inputs and holds them to the promise."""

    def __init__(self) -> None:
        self.verdicts: Counter[str] = Counter()
        self.slowest = 0.0
        self.largest = 0

    def one(self, target: targets.Target, data: bytes) -> None:
        """Run one input; raises for whatever breaks the promise."""
        before, top = resident(), peak()
        began = time.process_time()
        verdict = target.run(data)
        took = time.process_time() - began
        grown = peak() - before if peak() > top else 0
        self.slowest, self.largest = max(self.slowest, took), max(self.largest, grown)
        self.verdicts[f"{target.name}: {verdict}"] += 1
        if took > MOST_SECONDS:
            raise AssertionError(f"{took:.2f} s of processor time, at most {MOST_SECONDS} are promised")
        if grown > FREE_BYTES + BYTES_PER_BYTE * len(data):
            raise AssertionError(f"{grown:,} bytes of memory for an input of {len(data):,}")


def attack(seconds: float, seed: int, only: str = "") -> Judge:
    """Attack all targets in turn for so long."""
    rng, judge = random.Random(seed), Judge()
    chosen = [target for target in TARGETS if only in target.name]
    for target in chosen:  # what is imported or made when first needed is no change
        for name, data in HONEST.items():
            if name == target.name:
                assert target.run(data) == "taken", name
        for _ in range(20):
            target.run(target.make(rng))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for target in chosen:
            part = min(end, time.monotonic() + max(0.5, seconds / len(chosen) / 10))
            before = process_state.snapshot()
            for _ in range(_EVERY):
                if time.monotonic() > part:
                    break
                data = target.make(rng)
                state = rng.getstate()
                try:
                    judge.one(target, data)
                except BaseException:
                    Path("fuzz-failure.bin").write_bytes(data)
                    print(
                        f"{target.name}: failed after {judge.verdicts.total()}; kept as fuzz-failure.bin",
                        file=sys.stderr,
                    )
                    raise
                assert rng.getstate() == state
            gc.collect()
            changed = process_state.changes(before, process_state.snapshot())
            if changed:
                raise AssertionError(f"{target.name}: the process has changed: {changed[:3]}")
    return judge


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", default="", help="targets whose name holds this")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else time.time_ns() % (1 << 32)
    print(f"seed {seed}")
    warnings.filterwarnings("ignore")  # torch's, about pickles that are none
    try:
        judge = attack(options.seconds, seed, options.only)
    finally:
        for folder in (targets.FOLDER, folder_targets.FOLDER, lab_targets.FOLDER):
            shutil.rmtree(folder, ignore_errors=True)
    names = dict.fromkeys(name.partition(":")[0] for name in judge.verdicts)
    for name in names:
        refused, taken = judge.verdicts[f"{name}: refused"], judge.verdicts[f"{name}: taken"]
        print(f"{name:<18} {refused + taken:>9,} inputs: {refused:>9,} refused, {taken:>8,} taken")
    print(
        f"{judge.verdicts.total():,} inputs: 0 foreign exceptions, 0 changes of the process, at most "
        f"{judge.slowest:.3f} s and {judge.largest / 1e6:.0f} MB each"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

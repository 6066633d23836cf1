"""Attacks that coverage guides: `python -m attacks.guided --seconds 600`, where atheris is installed.

atheris (libFuzzer for Python) notes which branches of secateur an input reaches, keeps inputs that reach new ones, and
goes on from those. Inputs are changed by structure, with lengths and checksums mended, as in `attacks.fuzz`, and judged
by the same judge. Five readers have a process of their own each: .sct files, plans, safetensors, recipes, scans. For
comparison each is run without guidance too (`--share` of the time): every input is made anew from the honest one.

    python -m pip install --no-deps --target FOLDER atheris
    PYTHONPATH=FOLDER python -m attacks.guided --seconds 600
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

READERS = ("sct", "plan", "safetensors", "recipe", "scan")
_LONGEST = 1 << 15  # bytes of an input
_SNAPSHOTS = 1000  # inputs between two of the whole process


def _changed(name: str, data: bytes, rng: random.Random) -> bytes:
    """An input made from another by structure."""
    from attacks import hostile, lab_targets, targets, trees

    if name == "sct":
        if hostile.sections(data) and rng.randrange(4):
            return hostile.mutate_within(data, rng)
        return hostile.reseal(hostile.mutate(data, rng))
    try:
        if name == "safetensors":
            return targets.damaged_safetensors(data, rng)
        tree = trees.mutate(json.loads(data), rng)
        return trees.text_of(tree, rng).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError, IndexError, TypeError):
        return lab_targets.damaged(data, rng)


def child(name: str, seconds: int, guided: bool, corpus: Path) -> None:
    """Attack one reader in this process, which atheris ends."""
    import atheris

    with atheris.instrument_imports(include=["secateur"]):
        from attacks import fuzz
    from attacks import process_state
    from attacks.judge import Judge

    fuzz._quiet()
    target = next(each for each in fuzz.TARGETS if each.name == name)
    fuzz._warm_up([target])
    judge, seen = Judge(), [0]
    before = process_state.snapshot()
    judge.look()

    def one(data: bytes) -> None:
        judge.one(target, data)
        seen[0] += 1
        if seen[0] % _SNAPSHOTS == 0:
            changed = process_state.changes(before, process_state.snapshot())
            if changed:
                raise AssertionError(f"the process has changed: {changed[:3]}")

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if not guided or not data or not rng.randrange(20):
            return target.make(rng)[:most]
        if not rng.randrange(4):
            data = bytes(atheris.Mutate(data, most))
        return _changed(name, data, rng)[:most]

    rng = random.Random(1)
    honest = [fuzz.HONEST[name]] if name in fuzz.HONEST else []
    for number, data in enumerate([*honest, *(target.make(rng) for _ in range(20))]):
        (corpus / f"{number:03}").write_bytes(data)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={_LONGEST}",
        "-rss_limit_mb=0",
        "-timeout=60",
        "-print_final_stats=1",
        f"-artifact_prefix=fuzz-failure-guided-{name}-",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=mutated)
    atheris.Fuzz()


def _run(name: str, seconds: float, guided: bool, say: Callable[[str], None]) -> tuple[int, int, bool]:
    """Attack one reader in a process of its own; gives the inputs, the branches reached, and whether it failed."""
    with tempfile.TemporaryDirectory() as corpus:
        command = [sys.executable, "-m", "attacks.guided", "--reader", name, "--corpus", corpus]
        command += ["--seconds", str(seconds), *([] if guided else ["--unguided"])]
        done = subprocess.run(
            command, check=False, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True
        )
    reached = [int(each) for each in re.findall(r"cov: (\d+)", done.stdout)]
    inputs = re.search(r"number_of_executed_units: (\d+)", done.stdout)
    if done.returncode or not reached or inputs is None:
        say(done.stdout[-4000:])
    return int(inputs[1]) if inputs else 0, max(reached, default=0), bool(done.returncode)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="of all readers together")
    parser.add_argument("--share", type=float, default=0.3, help="of the time without guidance")
    parser.add_argument("--reader", choices=READERS, help="attack this one in this process")
    parser.add_argument("--corpus", type=Path, help="the folder of the inputs that are kept")
    parser.add_argument("--unguided", action="store_true", help="make every input anew")
    options = parser.parse_args(arguments)
    if options.reader:
        child(options.reader, max(1, int(options.seconds)), not options.unguided, options.corpus)
        return 0
    print(f"{'reader':<14}{'inputs':>9}{'branches':>10}   unguided:{'inputs':>9}{'branches':>10}")
    failed = False
    for name in READERS:
        each = options.seconds / len(READERS)
        inputs, reached, broke = _run(name, each * (1 - options.share), True, print)
        fewer, before, too = _run(name, each * options.share, False, print)
        failed |= broke | too
        print(f"{name:<14}{inputs:>9,}{reached:>10,}   {'':<9}{fewer:>9,}{before:>10,}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""A long attack on every reader: `python -m attacks.fuzz --seconds 600`.

Each target in turn gets a piece of 2,000 inputs; `attacks.judge` says what is held to each. What was found is kept as
`fuzz-failure-TARGET`, and the others go on. With `--keep FILE` the counts of several sittings add up, as long as the
sources stay as they are, and several processes may work on one file. A change of the process that only the snapshot of
a whole batch shows is looked for again, in a process of its own, with a snapshot after every input.
"""

from __future__ import annotations

import argparse
import gc
import random
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow
import torch

from attacks import folder_targets, lab_targets, process_state, resumed_targets, targets, training_targets
from attacks.judge import BatchError, Judge, Tally, TooLong
from attacks.sittings import Sittings, digest

_PLACES = (targets, folder_targets, lab_targets, training_targets, resumed_targets)
TARGETS = [target for place in _PLACES for target in place.TARGETS]
HONEST = {name: honest for place in _PLACES for name, honest in place.HONEST.items()}
PIECE = 2000  # inputs of a target in turn
_BATCH = 1000  # inputs between two snapshots
_FAILURE = "fuzz-failure-"


def attack(
    seconds: float, seed: int, only: Sequence[str] = (), kept: Sittings | None = None
) -> tuple[Tally, list[str]]:
    """Attack all targets in turn for so long. A short attack that is not kept gives each its share of processor time.

    Args:
        seconds: How long.
        seed: The pieces of another seed have other inputs.
        only: Targets whose name holds one of these; all where there are none.
        kept: Where the pieces are numbered and counted; they begin at 0 where it is None.

    Returns:
        What came of the inputs, and what broke the promise.
    """
    chosen = {
        target.name: target for target in TARGETS if not only or any(part in target.name for part in only)
    }
    _warm_up(list(chosen.values()))
    judge, found, numbers = Judge(), list[str](), dict.fromkeys(chosen, 0)
    short = kept is None and seconds <= 3 * len(TARGETS)
    clock = time.process_time if short else time.monotonic
    end = clock() + seconds
    try:
        while chosen and (clock() < end or (short and min(numbers[each] for each in chosen) == 0)):
            if kept is None:
                name = min(chosen, key=lambda each: numbers[each])
                number, numbers[name] = numbers[name], numbers[name] + 1
            else:
                name, number = kept.claim(list(chosen))
            part = clock() + seconds / len(chosen) if short else end
            broken = _piece(judge, chosen[name], f"{seed} {name} {number}", clock, part)
            if broken:
                found.append(f"{name}: {broken}")
                del chosen[name]
            if kept is not None:
                kept.done(judge.tally, found[-1:] if broken else [])
                judge.tally = Tally()
    finally:
        judge.close()
    return judge.tally if kept is None else kept.total()[0], found


def _warm_up(chosen: Sequence[targets.Target]) -> None:
    """Honest and hostile inputs that nobody judges: what is imported or made when first needed is no change."""
    rng = random.Random(0)
    for target in chosen:
        if target.name in HONEST:
            assert target.run(HONEST[target.name]) == "taken", target.name
        for _ in range(20):
            target.run(target.make(rng))
    gc.collect()
    gc.freeze()


def _piece(judge: Judge, target: targets.Target, seed: str, clock: Callable[[], float], end: float) -> str:
    """Run one piece, or what there is time for by the clock; gives what broke the promise, if anything did."""
    rng = random.Random(seed)
    batch: list[bytes] = []
    try:
        for _ in range(PIECE // _BATCH):
            batch = []
            with judge.batch():
                while len(batch) < _BATCH and clock() < end:
                    batch.append(target.make(rng))
                    judge.one(target, batch[-1])
    except (Exception, TooLong) as error:
        path = Path(_FAILURE + target.name.replace(" ", "-"))
        whole = isinstance(error, BatchError)
        _keep(path, batch if whole else batch[-1:])
        told = f"{type(error).__name__}: {error}; the input is kept in {path}"
        print(f"{target.name}, seed {seed!r}: {told}", file=sys.stderr)
        return told + (_replayed(path, target.name) if whole else "")
    return ""


def _keep(folder: Path, inputs: Sequence[bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number, data in enumerate(inputs):
        (folder / f"{number:04}.bin").write_bytes(data)


def _replayed(folder: Path, name: str) -> str:
    """Look for the input that changed the process, in a new one."""
    command = [sys.executable, "-m", "attacks.fuzz", "--replay", str(folder), "--only", name]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    return "; replayed: " + done.stdout.strip()


def replay(folder: Path, name: str) -> int:
    """Run inputs that were kept, with a snapshot after each; 1 where one breaks the promise."""
    target = next(each for each in TARGETS if each.name == name)
    _warm_up([target])
    judge = Judge()
    for path in sorted(folder.glob("*.bin")):
        before = process_state.snapshot()
        try:
            judge.one(target, path.read_bytes())
        except Exception as error:
            print(f"{path.name}: {type(error).__name__}: {error}")
            return 1
        gc.collect()
        changed = process_state.changes(before, process_state.snapshot())
        if changed:
            print(f"{path.name}: the process has changed: {changed[:3]}")
            return 1
    print(f"{len(list(folder.glob('*.bin')))} inputs: nothing was found")
    return 0


def _quiet() -> None:
    """One thread, and no warnings: torch's, about pickles that are none, and Pillow's."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    pyarrow.set_cpu_count(1)
    pyarrow.set_io_thread_count(1)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0, help="another has other inputs")
    parser.add_argument("--only", nargs="*", default=[], help="targets whose name holds one of these")
    parser.add_argument("--keep", type=Path, help="a file in which the counts of sittings add up")
    parser.add_argument(
        "--replay", type=Path, help="a folder of inputs that were kept, of the one target --only"
    )
    options = parser.parse_args(arguments)
    _quiet()
    if options.replay:
        return replay(options.replay, *options.only)
    kept = Sittings(options.keep, digest()) if options.keep else None
    began, cpu = time.monotonic(), time.process_time()
    tally, found = attack(options.seconds, options.seed, options.only, kept)
    if kept is not None:
        found = kept.total()[1]
    print(
        f"sources {digest()}, seed {options.seed}; this sitting: {time.monotonic() - began:.0f} s, "
        f"{time.process_time() - cpu:.0f} s of processor time"
    )
    _show(tally, found)
    return 1 if found else 0


def _show(tally: Tally, found: Sequence[str]) -> None:
    names = dict.fromkeys(name.partition(":")[0] for name in sorted(tally.verdicts))
    for name in names:
        refused, taken = tally.verdicts[f"{name}: refused"], tally.verdicts[f"{name}: taken"]
        print(f"{name:<18} {refused + taken:>9,} inputs: {refused:>9,} refused, {taken:>8,} taken")
    print(
        f"{tally.verdicts.total():,} inputs to {len(names)} readers: {len(found)} broke the promise; at most "
        f"{tally.slowest:.3f} s and {tally.largest / 1e6:.0f} MB each"
    )
    for each in found:
        print(each)


if __name__ == "__main__":
    sys.exit(main())

"""What a sweep costs beside its work: time per no-op trial, what it leaves behind, two workers against one, kills.

    python benchmarks/bench_sweep.py                 # everything
    python benchmarks/bench_sweep.py local ray       # parts: local, ray, workers, killed

A no-op trial is one `idle` step on a small model: planned, scheduled, computed in another process, written to the
store. Starting the processes is not counted as a trial's cost; it is timed apart, as the first trials of the sweep.

Ray itself leaves files open after `ray.shutdown()`, so many for each time it was started, whatever was done with
it. They are counted on an empty cluster, without anything of ours, and what is ours is the rest.

Two workers against one: 16 trials of equal work, the processes' start included, both sides in turns. Beside it the
same work is done by plain processes without any of ours: what the machine itself allows at that moment. Processor
time says what is lost by structure where neighbours keep the machine busy: it does not count waiting.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import psutil

from secateur.lab.display.progress import Progress
from secateur.lab.engine import local_engine, run
from secateur.lab.planning import plan
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record

TEXT = """
name = "noop"
[data]
limit = 50
[model]
name = "lenet-300-100"
[lab]
threads = 1
device = "cpu"
[[step]]
kind = "idle"
"""


class Clock(Progress):
    """When each trial was finished."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def finished(self, trial: int) -> None:
        self.ends.append(time.perf_counter())


def _family() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def _engine(name: str, store: Store) -> Any:
    """Two workers, of this machine or of a Ray cluster on it."""
    if name == "local":
        return local_engine(store, 2)
    from secateur.lab.engines.ray import Needs, RayEngine

    return RayEngine(store, needs=Needs(), jobs=2)


def _left_by_ray() -> int:
    """How many more files are open after Ray was started, used once and shut down, with nothing of ours."""
    import logging

    import ray

    before = psutil.Process().num_fds()
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        logging_level=logging.ERROR,
    )

    class Board:
        def tell(self) -> int:
            return 1

    def task(board: Any) -> int:
        return int(ray.get(board.tell.remote()))

    board = ray.remote(Board).options(num_cpus=0).remote()
    ray.get(ray.remote(task).remote(board))
    ray.shutdown()
    time.sleep(1)
    return psutil.Process().num_fds() - before


def overhead(engine_name: str, trials: int, goal: float) -> bool:
    """Milliseconds per no-op trial, from planning to the last outcome in the store; and what is left behind."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        recipe = Recipe.parse(TEXT, grid=[f"idle.note=1:{trials}:1"])
        # Once before anything is counted: imports, data, and what an engine's library keeps for good.
        warm = Recipe.parse(TEXT, grid=["idle.note=-8:-1:1"])
        run(warm, store, jobs=2, engine=_engine(engine_name, store))
        time.sleep(1)
        rays = _left_by_ray() if engine_name == "ray" else 0
        files, memory, family = psutil.Process().num_fds(), psutil.Process().memory_info().rss, _family()
        started = time.perf_counter()
        made = plan(recipe)
        planned = time.perf_counter() - started
        engine = _engine(engine_name, store)
        clock = Clock()
        ran = run(recipe, store, jobs=2, plan=made, progress=clock, engine=engine)
        assert (ran.computed, ran.failures) == (trials, ())
        # The first tenth holds the start of the processes.
        first = trials // 10
        each = (clock.ends[-1] - clock.ends[first]) / (trials - first - 1) + planned / trials
        time.sleep(1)
        left = _family() - family
        fds = psutil.Process().num_fds() - files
        grown = (psutil.Process().memory_info().rss - memory) / 2**20
        size = sum(path.stat().st_size for path in Path(folder, "").glob("store.sqlite*"))
        scratch = [*Path(folder).rglob("*.part"), *Path(folder, "checkpoints").glob("*")]
    met = each * 1e3 < goal and not left and fds <= rays and not scratch
    own = f" ({rays} by an empty Ray cluster alone)" if rays else ""
    print(
        f"{engine_name}: {trials} no-op trials, {each * 1e3:.1f} ms each (goal < {goal:.0f}), of which planning "
        f"{planned / trials * 1e3:.1f}; {clock.ends[first] - started:.1f} s until the first {first + 1} were done\n"
        f"  store {size / trials:,.0f} bytes a trial; left behind: {len(left)} processes, {fds} open files{own}, "
        f"{len(scratch)} scratch files; memory {grown:+.0f} MiB{'' if met else '   MISSED'}",
        flush=True,
    )
    record(
        Figure(f"{engine_name}: a no-op trial", each * 1e3, "ms", goal, tolerance=0.3),
        Figure(f"{engine_name}: bytes of the store for a trial", size / trials, "bytes", tolerance=0.05),
        Figure(f"{engine_name}: open files left", fds, "", rays, tolerance=0),
    )
    return met


def inserts(count: int) -> None:
    """How fast one process writes outcomes."""
    from secateur.lab.store import Outcome

    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        started = time.perf_counter()
        for index in range(count):
            store.keep(Outcome(key=f"{index:064d}", kind="idle", state={}, seconds=0.0))
        print(
            f"store: {count / (time.perf_counter() - started):,.0f} outcomes a second from one process",
            flush=True,
        )


_TURNS = "import sys\nfor _ in range(int(sys.argv[1])):\n    t = 0\n    for i in range(1_000_000):\n        t += i\n"


def _plainly(processes: int, turns: int) -> float:
    """Seconds that so many plain processes take for so many million turns of a loop in all."""
    started = time.perf_counter()
    command = [sys.executable, "-c", _TURNS, str(turns // processes)]
    for running in [subprocess.Popen(command) for _ in range(processes)]:
        running.wait()
    return time.perf_counter() - started


def _spent() -> float:
    """Processor time of all processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def workers(rounds: int, seconds: float) -> bool:
    """One worker against two on 16 trials that keep a processor busy, in turns."""
    started = time.process_time()
    exec(_TURNS.replace("int(sys.argv[1])", "8"), {})
    work = max(1, round(seconds * 8 / (time.process_time() - started)))
    wall: dict[int, list[float]] = {1: [], 2: []}
    used: dict[int, list[float]] = {1: [], 2: []}
    plain: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for jobs in (1, 2):
            plain[jobs].append(_plainly(jobs, 4 * work))
            with tempfile.TemporaryDirectory() as folder:
                store = Store(folder)
                recipe = Recipe.parse(TEXT, [f"idle.work={work}"], ["idle.note=1:16:1"])
                before, started = _spent(), time.perf_counter()
                run(recipe, store, jobs=jobs, engine=local_engine(store, jobs))
                wall[jobs].append(time.perf_counter() - started)
                used[jobs].append(_spent() - before)
    one, two = (statistics.median(wall[jobs]) for jobs in (1, 2))
    ratios = [a / b for a, b in zip(wall[1], wall[2])]
    alone = statistics.median(a / b for a, b in zip(plain[1], plain[2]))
    lost = statistics.median(2 * a / b for a, b in zip(used[1], used[2]))
    ratio = statistics.median(ratios)
    met = ratio >= 1.8
    load = os.getloadavg()[0]
    print(
        f"16 trials of {seconds:g} s: one worker {one:.1f} s, two {two:.1f} s, {ratio:.2f}x "
        f"[{min(ratios):.2f}, {max(ratios):.2f}] (goal >= 1.8), processes' start included{'' if met else '   MISSED'}\n"
        f"  plain processes doing the same {alone:.2f}x; by processor time {lost:.2f}x; medians of {rounds} rounds; "
        f"load of the machine {load:.1f} on {os.cpu_count()} cores",
        flush=True,
    )
    detail = f"[{min(ratios):.2f}, {max(ratios):.2f}], plain processes {alone:.2f}x"
    record(Figure("two workers over one", ratio, "x", 1.8, "higher", 0.15, detail))
    return met


def killed(kills: int, seed: int) -> bool:
    """One sweep whose driver is killed with -9 again and again, then resumed; against an undisturbed one."""
    chance = random.Random(seed)
    grid = ["idle.note=1:60:1"]
    words = [
        sys.executable,
        "-m",
        "secateur.cli",
        "sweep",
        "r.toml",
        "--jobs",
        "2",
        "-q",
        "--set",
        "idle.seconds=0.6",
    ]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "r.toml").write_text(TEXT)
        start = time.perf_counter()
        store = Store(Path(folder, "runs"))
        done = 0
        while done < kills:
            sweep = subprocess.Popen([*words, "--grid", grid[0]], cwd=folder, stdout=subprocess.DEVNULL)
            time.sleep(chance.uniform(2, 9))
            if sweep.poll() is None:
                sweep.send_signal(signal.SIGKILL)
                done += 1
            sweep.wait()
            have = store.rows("SELECT COUNT(*) FROM steps")[0][0]
            if have == 60 and done < kills:
                print(f"  all trials were there after {done} kills", flush=True)
                break
        recipe = Recipe.parse(TEXT, ["idle.seconds=0.6"], grid)
        ran = run(recipe, store, jobs=2)
        other = run(recipe, Store(Path(folder, "undisturbed")), jobs=2)
        rows = store.rows("SELECT COUNT(*), COUNT(DISTINCT key) FROM steps")[0]

        def plain(found: object) -> list[tuple[int, str, float]]:
            return [(m.context["trial"], m.name, m.value) for m in found]  # type: ignore[attr-defined]

        same = plain(ran.measurements) == plain(other.measurements)
    met = same and tuple(rows) == (60, 60) and done >= kills
    print(
        f"killed with -9 {done} times in {time.perf_counter() - start:.0f} s, then resumed: {rows[0]} trials, "
        f"{rows[1]} distinct, numbers {'the same' if same else 'DIFFERENT'} as undisturbed (seed {seed})"
        f"{'' if met else '   MISSED'}",
        flush=True,
    )
    record(Figure("distinct trials after kills", rows[1], "of 60", 60, "higher", 0, f"{done} kills"))
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["local", "ray", "workers", "killed"])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="work in each of the 16 trials")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    good = True
    if "local" in given.parts:
        inserts(1000)
        good &= overhead("local", given.trials, 15)
    if "ray" in given.parts:
        good &= overhead("ray", given.trials, 50)
    if "workers" in given.parts:
        good &= workers(given.rounds, given.seconds)
    if "killed" in given.parts:
        good &= killed(given.kills, given.seed)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

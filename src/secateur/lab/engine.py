"""The engine: does what a plan says and the store does not know yet, in this process or in several.

    outcome = run(Recipe.read("recipe.toml"), Store("runs"), jobs=2)
    outcome.measurements, outcome.computed      # what was measured; how many steps had to be computed

Every step takes the advisory lock of its address before it looks whether the outcome is there. Of two
processes that want the same outcome one computes and the other waits; when the first dies, the second takes
over.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from secateur.core.measurement import Measurements
from secateur.core.undisturbed import kept_random_state
from secateur.errors import OptionError, SecateurError, StoreError
from secateur.lab.plan import Plan, PlannedTrial, builder, data_of, device_of, plan_trial
from secateur.lab.plan import plan as make_plan
from secateur.lab.progress import Progress
from secateur.lab.provenance import clean_plain, command, hardware, versions
from secateur.lab.recipe import Recipe
from secateur.lab.state import State, keep, revive
from secateur.lab.steps import Work
from secateur.lab.store import Outcome, Store

__all__ = ["Ran", "final_state", "run"]


@dataclass(frozen=True)
class Ran:
    """What a run came to."""

    run: int
    plan: Plan
    measurements: Measurements
    computed: int
    cached: int
    seconds: float
    failures: tuple[tuple[int, str], ...] = ()

    def lines(self, store: Store, trial: int = 0) -> dict[str, str]:
        """What each step of a trial said of itself, by label."""
        found = {step.label: store.outcome(step.key) for step in self.plan.trials[trial].steps}
        return {
            label: str(outcome.log.get("line", "")) for label, outcome in found.items() if outcome is not None
        }


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch's threads for the time being."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _state(trial: PlannedTrial, position: int, store: Store) -> State:
    """The state after so many steps of a trial (0: the fresh model)."""
    build = builder(trial.recipe)
    if position == 0:
        return State(build())
    outcome = store.outcome(trial.steps[position - 1].key)
    if outcome is None:
        raise StoreError(
            f"the outcome of step {trial.steps[position - 1].label!r} is gone; run the recipe again"
        )
    return revive(outcome.state, store.objects, build)


def final_state(trial: PlannedTrial, store: Store, label: str | None = None) -> State:
    """The state a trial ended with, or the one after the step of that label."""
    labels = [step.label for step in trial.steps]
    return _state(trial, len(labels) if label is None else labels.index(label) + 1, store)


def _compute(trial: PlannedTrial, position: int, store: Store, progress: Progress) -> tuple[Outcome, str]:
    """Run one step and keep what it leaves."""
    planned = trial.steps[position]
    recipe = trial.recipe
    labels = [step.label for step in trial.steps]
    checkpoint = store.checkpoint(planned.key)
    work = Work(
        data=data_of(recipe),
        build=builder(recipe),
        device=device_of(recipe.lab.device),
        seed=recipe.lab.seed,
        checkpoint=checkpoint,
        progress=progress,
        earlier=lambda label: _state(trial, labels.index(label) + 1, store),
    )
    state = _state(trial, position, store)
    started = time.perf_counter()
    with kept_random_state():
        torch.manual_seed(recipe.lab.seed)
        np.random.seed(recipe.lab.seed % 2**32)
        random.seed(recipe.lab.seed)
        result = planned.step.run(state, work)
    seconds = time.perf_counter() - started
    outcome = Outcome(
        key=planned.key,
        kind=planned.step.kind(),
        parent=planned.parent,
        options=planned.step.chosen(),
        state=keep(result.state, store.objects),
        measurements=result.measurements,
        log={**result.log, "line": result.line},
        seconds=seconds,
        provenance={"versions": versions(), "hardware": hardware(), "threads": torch.get_num_threads()},
    )
    store.keep(outcome)
    checkpoint.unlink(missing_ok=True)
    return outcome, result.line


def _run_trial(trial: PlannedTrial, store: Store, run: int, progress: Progress) -> int:
    """All steps of a trial; returns how many had to be computed here. A failure is stored, then raised."""
    computed = 0
    store.note_trial(run, trial.index, "running")
    label = ""
    try:
        for position, planned in enumerate(trial.steps):
            label = planned.label
            outcome = store.outcome(planned.key)
            how = "cached"
            if outcome is None:
                with store.lock(planned.key):
                    outcome = store.outcome(planned.key)
                    if outcome is None:
                        progress.start(trial.index, label)
                        outcome, _ = _compute(trial, position, store, progress)
                        how = "computed"
                        computed += 1
            store.note_step(run, trial.index, position, how)
            progress.done(trial.index, label, how, outcome.seconds, str(outcome.log.get("line", "")))
    except Exception as error:
        known = isinstance(error, SecateurError)
        store.note_trial(run, trial.index, "failed", f"{label}: {error}" if known else traceback.format_exc())
        progress.failed(trial.index, label, str(error))
        raise
    store.note_trial(run, trial.index, "done")
    return computed


def run(
    recipe: Recipe, store: Store, *, jobs: int = 1, progress: Progress | None = None, plan: Plan | None = None
) -> Ran:
    """Do what the recipe says. What the store knows is not done again.

    With one trial its error is raised. With several a failed one is stored and reported, and the others go
    on.
    """
    if jobs < 1:
        raise OptionError(f"jobs: expected at least 1, got {jobs}")
    watch = progress or Progress()
    plan = plan or make_plan(recipe)
    keys = plan.keys()
    known = sum(store.has(key) for key in keys)
    started = time.perf_counter()
    number, alive = store.start_run(
        name=recipe.name,
        recipe=clean_plain(recipe.plain()),
        command=command(),
        seed=recipe.lab.seed,
        device=plan.device,
        versions=versions(),
        hardware=hardware(),
        trials=[
            (trial.settings, [(step.label, step.step.kind(), step.key) for step in trial.steps])
            for trial in plan.trials
        ],
    )
    status = "failed"
    failures: list[tuple[int, str]] = []
    computed = 0
    try:
        watch.begin(len(plan.trials), len(keys), known)
        if jobs == 1 or len(plan.trials) == 1:
            for trial in plan.trials:
                try:
                    with _threads(trial.recipe.lab.threads):
                        computed += _run_trial(trial, store, number, watch)
                except Exception as error:
                    if len(plan.trials) == 1:
                        raise
                    failures.append((trial.index, str(error)))
        else:
            computed = _run_in_processes(plan, store, number, watch, min(jobs, len(plan.trials)), failures)
        status = "failed" if failures else "done"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        watch.end()
        store.finish_run(number, status, time.perf_counter() - started)
        alive.release()
    return Ran(
        run=number,
        plan=plan,
        measurements=store.measurements(number),
        computed=computed,
        cached=len(keys) - computed,
        seconds=time.perf_counter() - started,
        failures=tuple(failures),
    )


# -- several processes
# ---------------------------------------------------------------------------------------------
class _Remote(Progress):
    """Sends what happens in a worker to the process that shows it."""

    def __init__(self, queue: Any):
        self._queue = queue

    def start(self, trial: int, label: str) -> None:
        self._queue.put(("start", (trial, label)))

    def done(self, trial: int, label: str, how: str, seconds: float, line: str) -> None:
        self._queue.put(("done", (trial, label, how, seconds, line)))

    def failed(self, trial: int, label: str, message: str) -> None:
        self._queue.put(("failed", (trial, label, message)))


_queue: Any = None


def _begin_worker(queue: Any, parent: int) -> None:
    """Remember the queue; and die when the parent does, so that a killed run leaves no process behind."""
    global _queue
    _queue = queue

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(
    folder: str, plain: dict[str, Any], settings: dict[str, Any], index: int, number: int, threads: int
) -> int:
    """One trial in a worker process."""
    trial = plan_trial(Recipe.of(plain), index, settings)
    with _threads(trial.recipe.lab.threads or threads):
        return _run_trial(trial, Store(folder), number, _Remote(_queue))


def _run_in_processes(
    plan: Plan, store: Store, number: int, watch: Progress, jobs: int, failures: list[tuple[int, str]]
) -> int:
    """All trials on several processes, each with its share of the cores."""
    import multiprocessing

    # Not fork: a forked process inherits torch's thread pools in a state nobody defined.
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    threads = max(1, int(hardware()["cores"]) // jobs)

    def show() -> None:
        while (message := queue.get()) is not None:
            getattr(watch, message[0])(*message[1])

    listener = threading.Thread(target=show, daemon=True)
    listener.start()
    computed = 0
    pool = ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_begin_worker, initargs=(queue, os.getpid())
    )
    try:
        waiting = {
            pool.submit(
                _work, str(store.folder), trial.recipe.plain(), trial.settings, trial.index, number, threads
            ): trial.index
            for trial in plan.trials
        }
        for future in as_completed(waiting):
            try:
                computed += future.result()
            except BrokenProcessPool as error:
                raise StoreError(
                    "a worker process was killed (out of memory, perhaps); what was finished is kept: run "
                    "the recipe "
                    "again, with fewer --jobs"
                ) from error
            except Exception as error:
                failures.append((waiting[future], str(error)))
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        _stop(pool)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        queue.put(None)
        listener.join(timeout=5)
    failures.sort()
    return computed


def _stop(pool: ProcessPoolExecutor) -> None:
    """End the workers now: every step they were in starts again next time."""
    for process in list((getattr(pool, "_processes", None) or {}).values()):
        process.terminate()

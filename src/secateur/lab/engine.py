"""`run`: compute the steps of a plan whose outcomes the store lacks, in this process or in several.

    ran = run(Recipe.read("recipe.toml"), Store("runs"), jobs=2)
    ran.measurements, ran.computed      # what was measured; how many steps had to be computed

Every step takes the advisory lock of its address before it looks for the outcome. Of two processes that want the same
outcome one computes it and the other waits; when the first dies, the second takes over.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secateur.core.measurement import Measurements
from secateur.errors import OptionError, StoreError
from secateur.lab.computing import compute, state_after, threads
from secateur.lab.display import Progress
from secateur.lab.outcomes import Outcome
from secateur.lab.planning import PlannedTrial, RunPlan
from secateur.lab.planning import plan as make_plan
from secateur.lab.provenance import clean_plain, command, hardware, versions
from secateur.lab.recipe import Recipe
from secateur.lab.requirements import Requirement, unmet
from secateur.lab.state import State
from secateur.lab.store import Store
from secateur.lab.usage import Usage

if TYPE_CHECKING:
    from filelock import FileLock

    from secateur.lab.engines import Engine

__all__ = ["Ran", "check_gpus", "final_state", "local_engine", "run"]

Failures = list[tuple[int, str]]


@dataclass(frozen=True)
class Ran:
    """The result of a run.

    Args:
        run: Its number in the store.
        plan: The plan that was run.
        measurements: All that its steps measured.
        computed: Steps that had to be computed.
        cached: Steps whose outcome the store held.
        seconds: The time it took.
        failures: Number and error of each trial that failed.
    """

    run: int
    plan: RunPlan
    measurements: Measurements
    computed: int
    cached: int
    seconds: float
    failures: tuple[tuple[int, str], ...] = ()

    def unmet(self, more: Sequence[str] = ()) -> list[str]:
        """Which limits of the recipe's `require` the measurements do not hold, a text each.

        Args:
            more: Further limits, as `accuracy >= 0.97`.

        Raises:
            OptionError: A limit is of something that was not measured, or has no such form.
        """
        return unmet([Requirement.of(text) for text in (*self.plan.recipe.require, *more)], self.measurements)

    def lines(self, store: Store, trial: int = 0) -> dict[str, str]:
        """What each step of a trial did, in half a sentence, by label."""
        found = {step.label: store.outcome(step.key) for step in self.plan.trials[trial].steps}
        return {
            label: str(outcome.log.get("line", "")) for label, outcome in found.items() if outcome is not None
        }


def final_state(trial: PlannedTrial, store: Store, label: str | None = None) -> State:
    """The state at the end of a trial.

    Args:
        trial: The trial.
        store: Where its outcomes are.
        label: After the step of this label, in place of the last.

    Returns:
        The model with its masks, codebooks, plan and files.

    Raises:
        StoreError: The outcome is not in the store.
    """
    labels = [step.label for step in trial.steps]
    return state_after(trial, len(labels) if label is None else labels.index(label) + 1, store)


def run(
    recipe: Recipe,
    store: Store,
    *,
    jobs: int = 1,
    progress: Progress | None = None,
    plan: RunPlan | None = None,
    engine: Engine | None = None,
    gpus: float | None = None,
) -> Ran:
    """Run a recipe. Steps whose outcome the store holds are not computed again.

    If the recipe has one trial, its error is raised. If it has several, a trial that fails is recorded and reported,
    and the others continue.

    Args:
        recipe: What to do.
        store: Where outcomes are looked for and kept.
        jobs: Processes of this machine that share the trials.
        progress: The display; None shows nothing.
        plan: The recipe's plan, where it was made before.
        engine: Computes the steps, in place of this machine's processes; see `secateur.lab.engines`.
        gpus: GPUs of each process, a fraction where several share one; None distributes them evenly.

    Returns:
        The measurements, and what was computed.

    Raises:
        OptionError: `jobs` below 1, or too few GPUs for the processes.
        StoreError: The store lacks an outcome after the run.
    """
    if jobs < 1:
        raise OptionError(f"jobs: expected at least 1, got {jobs}")
    watch = progress or Progress()
    plan = plan or make_plan(recipe)
    if engine is None:
        check_gpus(plan, jobs, gpus)
    started = time.perf_counter()
    number, alive = _start(recipe, plan, store)
    status, computed, failures, usage = "failed", 0, Failures(), Usage()
    try:
        # Only now: until the run is registered, `gc` in another process may delete what the store holds.
        keys = plan.keys()
        known = {key for key in keys if store.has(key)}
        store.clear_leftovers(known)
        watch.begin(len(plan.trials), len(keys), len(known))
        watch.plan([trial.settings for trial in plan.trials])
        if engine is None and (jobs == 1 or len(plan.trials) == 1):
            with usage.taken():
                computed, failures = _run_here(plan, store, number, watch, usage)
        else:
            engine = engine or _local(store, min(jobs, len(plan.trials)), plan, gpus)
            with usage.taken():
                computed, failures = _run_on(engine, plan, store, number, (watch, known, usage))
        failures = _with_missing(plan, store, number, failures)
        status = "failed" if failures else "done"
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, SIGTERM, SIGHUP
        status = "interrupted"
        raise
    finally:
        watch.end()
        store.finish_run(number, status, time.perf_counter() - started)
        store.keep_usage(number, usage.measurements())
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


def _start(recipe: Recipe, plan: RunPlan, store: Store) -> tuple[int, FileLock]:
    """Register the run: its number, and the lock that says that it is running."""
    return store.start_run(
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


def _run_here(
    plan: RunPlan, store: Store, number: int, watch: Progress, usage: Usage
) -> tuple[int, Failures]:
    """All trials in this process, one after the other."""
    computed, failures = 0, Failures()
    for trial in plan.trials:
        try:
            with threads(trial.recipe.lab.threads):
                computed += _run_trial(trial, store, number, watch, usage)
        except Exception as error:
            if len(plan.trials) == 1:
                raise
            failures.append((trial.index, _words(error)))
    return computed, failures


def _run_trial(trial: PlannedTrial, store: Store, run: int, progress: Progress, usage: Usage) -> int:
    """All steps of a trial; returns how many were computed here. A failure is stored, then raised."""
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
                        with usage.paused(planned.step.timed):
                            outcome = _compute(trial, position, store, progress)
                        how = "computed"
                        computed += 1
            store.note_step(run, trial.index, position, how)
            progress.done(trial.index, label, how, outcome.seconds, str(outcome.log.get("line", "")))
    except Exception as error:
        text = f"{label}: {_words(error)}\n\n{traceback.format_exc()}"
        store.note_trial(run, trial.index, "failed", text.rstrip())
        progress.failed(trial.index, label, _words(error))
        raise
    store.note_trial(run, trial.index, "done")
    return computed


def _words(error: Exception) -> str:
    """What an error says; its kind where it says nothing, as a MemoryError."""
    return str(error) or type(error).__name__


def _compute(trial: PlannedTrial, position: int, store: Store, progress: Progress) -> Outcome:
    """Compute one step and store its outcome."""
    key = trial.steps[position].key
    checkpoint = store.checkpoint(key)
    outcome = compute(
        trial,
        position,
        before=lambda count: state_after(trial, count, store),
        objects=store.objects,
        checkpoint=checkpoint,
        progress=progress,
    )
    store.keep(outcome)
    checkpoint.unlink(missing_ok=True)
    return outcome


def _with_missing(plan: RunPlan, store: Store, number: int, failures: Failures) -> Failures:
    """The failures, and every other trial that lacks an outcome though it neither failed nor was stopped."""
    failed = {index for index, _ in failures}
    stopped = {row["trial"] for row in store.trials(number) if row["status"] == "stopped"}
    found = list(failures)
    for trial in plan.trials:
        missing = [step.label for step in trial.steps if not store.has(step.key)]
        if not missing or trial.index in failed | stopped:
            continue
        text = f"{missing[0]}: the store holds no outcome of this step after the run; run the recipe again"
        store.note_trial(number, trial.index, "failed", text)
        if len(plan.trials) == 1:
            raise StoreError(text)
        found.append((trial.index, text))
    return sorted(found)


def check_gpus(plan: RunPlan, jobs: int, gpus: float | None) -> None:
    """Raise, before any work, if there are too few GPUs for the processes.

    Args:
        plan: What the processes will compute.
        jobs: How many processes there are at most.
        gpus: GPUs of each process, or None.

    Raises:
        OptionError: There are too few GPUs, or only one process.

    >>> check_gpus(make_plan(Recipe.parse('[[step]]\\nkind = "idle"')), 1, 0.5)
    Traceback (most recent call last):
    ...
    secateur.errors.OptionError: gpus: 0.5 says how processes share the GPUs, and there is one process; ask for ...
    """
    if gpus is not None and (jobs == 1 or len(plan.trials) > 1):
        gpus_for(min(jobs, len(plan.trials)), gpus, {trial.recipe.lab.device for trial in plan.trials})


def gpus_for(
    jobs: int, gpus: float | None = None, devices: Collection[str] = ("auto",)
) -> list[tuple[str, ...]]:
    """The GPUs that each process sees.

    Args:
        jobs: How many processes.
        gpus: GPUs of each, a fraction where several share one; None distributes them evenly.
        devices: The devices of the recipes. Where one is a GPU with its number, every process sees all GPUs.

    Returns:
        Per process the names of its GPUs; empty where it is not restricted.

    Raises:
        OptionError: There are not enough GPUs.

    >>> gpus_for(2, devices=["cuda:1"])
    [(), ()]
    """
    from secateur.lab.engines.gpus import distributed, gpus_here

    if gpus is not None and jobs == 1:
        raise OptionError(
            f"gpus: {gpus:g} says how processes share the GPUs, and there is one process; ask for several with jobs "
            "(--jobs 2)"
        )
    other = sorted(set(devices) - {"auto", "cuda"})
    if gpus and other:
        raise OptionError(
            f"gpus: {gpus:g} GPUs for each process, and the recipe's device is {other[0]}; leave gpus out, or take "
            "the device auto or cuda"
        )
    return distributed(jobs, [] if other else gpus_here(), gpus)


def local_engine(
    store: Store, jobs: int, *, devices: Collection[str] = ("auto",), gpus: float | None = None
) -> Engine:
    """An engine of processes on this machine, with its cores and GPUs distributed among them.

    Args:
        store: The store that the processes read and write.
        jobs: How many processes.
        devices: The devices of the recipes.
        gpus: GPUs of each process, as in `run`.

    Returns:
        The engine; close it when done.
    """
    from secateur.lab.engines import slots
    from secateur.lab.engines.local import LocalEngine

    jobs, each = slots(jobs, int(hardware()["cores"]))
    return LocalEngine(store, jobs, each, gpus_for(jobs, gpus, devices))


def _local(store: Store, jobs: int, plan: RunPlan, gpus: float | None) -> Engine:
    return local_engine(store, jobs, devices={trial.recipe.lab.device for trial in plan.trials}, gpus=gpus)


def _run_on(
    engine: Engine, plan: RunPlan, store: Store, number: int, seen: tuple[Progress, set[str], Usage]
) -> tuple[int, Failures]:
    """All trials on an engine; it is closed at once where this process is interrupted."""
    from secateur.lab.engines.driving import drive

    watch, known, usage = seen
    try:
        found = drive(plan, store, number, watch, engine, known, usage)
    except BaseException:
        engine.close(now=True)
        raise
    engine.close(now=False)
    return found

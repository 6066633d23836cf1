"""The engine: does what a plan says and the store does not know yet, in this process or in several.

    outcome = run(Recipe.read("recipe.toml"), Store("runs"), jobs=2)
    outcome.measurements, outcome.computed      # what was measured; how many steps had to be computed

Every step takes the advisory lock of its address before it looks whether the outcome is there. Of two
processes that want the same outcome one computes and the other waits; when the first dies, the second takes
over.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secateur.core.measurement import Measurements
from secateur.errors import OptionError
from secateur.lab.computing import compute, state_after, threads
from secateur.lab.display.progress import Progress
from secateur.lab.plan import PlannedTrial, RunPlan
from secateur.lab.plan import plan as make_plan
from secateur.lab.provenance import clean_plain, command, hardware, versions
from secateur.lab.recipe import Recipe
from secateur.lab.state import State
from secateur.lab.store import Outcome, Store

if TYPE_CHECKING:
    from secateur.lab.engines import Engine

__all__ = ["Ran", "check_gpus", "final_state", "local_engine", "run"]


@dataclass(frozen=True)
class Ran:
    """What a run came to."""

    run: int
    plan: RunPlan
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


def final_state(trial: PlannedTrial, store: Store, label: str | None = None) -> State:
    """The state a trial ended with, or the one after the step of that label."""
    labels = [step.label for step in trial.steps]
    return state_after(trial, len(labels) if label is None else labels.index(label) + 1, store)


def _compute(trial: PlannedTrial, position: int, store: Store, progress: Progress) -> Outcome:
    """Run one step and keep what it leaves."""
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
                        outcome = _compute(trial, position, store, progress)
                        how = "computed"
                        computed += 1
            store.note_step(run, trial.index, position, how)
            progress.done(trial.index, label, how, outcome.seconds, str(outcome.log.get("line", "")))
    except Exception as error:
        store.note_trial(run, trial.index, "failed", f"{label}: {error}\n\n{traceback.format_exc()}".rstrip())
        progress.failed(trial.index, label, str(error))
        raise
    store.note_trial(run, trial.index, "done")
    return computed


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
    """Do what the recipe says. What the store knows is not done again.

    `jobs` processes of this machine share the trials, or an engine of `secateur.lab.engines` computes them.
    `gpus` is how many GPUs each process takes, a fraction where several share one; None shares them out in turn.

    With one trial its error is raised. With several a failed one is stored and reported, and the others go
    on.
    """
    if jobs < 1:
        raise OptionError(f"jobs: expected at least 1, got {jobs}")
    watch = progress or Progress()
    plan = plan or make_plan(recipe)
    if engine is None:
        check_gpus(plan, jobs, gpus)
    keys = plan.keys()
    known = {key for key in keys if store.has(key)}
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
        watch.begin(len(plan.trials), len(keys), len(known))
        watch.plan([trial.settings for trial in plan.trials])
        if engine is None and (jobs == 1 or len(plan.trials) == 1):
            for trial in plan.trials:
                try:
                    with threads(trial.recipe.lab.threads):
                        computed += _run_trial(trial, store, number, watch)
                except Exception as error:
                    if len(plan.trials) == 1:
                        raise
                    failures.append((trial.index, str(error)))
        else:
            computed, failures = _run_on(
                engine or _local(store, min(jobs, len(plan.trials)), plan, gpus),
                plan,
                store,
                number,
                watch,
                known,
            )
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


def check_gpus(plan: RunPlan, jobs: int, gpus: float | None) -> None:
    """Refuse, before any work, GPUs that do not go round among the processes that this plan is given.

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
    """The GPUs that each of so many processes sees, `gpus` of them each; refused where they do not go round.

    Where one of the recipes' devices is a GPU by its number, every process sees all of them.

    >>> gpus_for(2, devices=["cuda:1"])
    [(), ()]
    """
    from secateur.lab.engines.gpus import gpus_here, shared_out

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
    return shared_out(jobs, [] if other else gpus_here(), gpus)


def local_engine(
    store: Store, jobs: int, *, devices: Collection[str] = ("auto",), gpus: float | None = None
) -> Engine:
    """So many processes of this machine, its cores and GPUs shared out among them as `gpus_for` says."""
    from secateur.lab.engines import slots
    from secateur.lab.engines.local import LocalEngine

    jobs, each = slots(jobs, int(hardware()["cores"]))
    return LocalEngine(store, jobs, each, gpus_for(jobs, gpus, devices))


def _local(store: Store, jobs: int, plan: RunPlan, gpus: float | None) -> Engine:
    return local_engine(store, jobs, devices={trial.recipe.lab.device for trial in plan.trials}, gpus=gpus)


def _run_on(
    engine: Engine, plan: RunPlan, store: Store, number: int, watch: Progress, known: set[str]
) -> tuple[int, list[tuple[int, str]]]:
    """All trials on an engine, which ends at once when this process is told to."""
    from secateur.lab.engines import drive

    try:
        found = drive(plan, store, number, watch, engine, known)
    except BaseException:
        engine.close(now=True)
        raise
    engine.close(now=False)
    return found

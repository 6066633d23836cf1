"""`search`: search recipe values with Optuna, for several objectives at once; the result is the Pareto front.

    found = search(Recipe.read("r.toml"), Store("runs"), {"prune.budget": "0.1:0.9"},
                   maximize=["accuracy"], minimize=["file_bytes"], options=SearchOptions(trials=40))
    found.front

Suggestions and results are kept in the run store: the same call continues where the last one stopped, and steps whose
outcome the store holds are not computed again. A trial is stopped between two steps when one of its numbers falls below
its floor.

>>> axis("0.1:0.9"), axis("1:8"), axis("0.001:1:log"), axis("a,b")
((0.1, 0.9, False), (1, 8, False), (0.001, 1.0, True), ('a', 'b'))
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.core.json_text import finite, parse
from secateur.core.pareto import pareto_front
from secateur.errors import FormatError, MissingExtraError, OptionError, RecipeError, SecateurError
from secateur.execution.devices import device_word
from secateur.lab.database import parsed
from secateur.lab.display import Progress
from secateur.lab.engines import Engine
from secateur.lab.measured_names import refuse_unmeasured
from secateur.lab.objects import atomic_write
from secateur.lab.planning import PlannedTrial, RunPlan, plan_trial
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store
from secateur.lab.tables import write_outcome

if TYPE_CHECKING:
    import optuna

__all__ = ["SearchOptions", "SearchedTrial", "TrialSearchResult", "axis", "pareto", "search", "write_front"]

_TABLE = (
    "CREATE TABLE IF NOT EXISTS search_log (id INTEGER PRIMARY KEY AUTOINCREMENT, study TEXT, entry TEXT)"
)


@dataclass(frozen=True)
class SearchedTrial:
    """One trial of a search.

    Args:
        number: Its number in the search.
        settings: The recipe values that it tried.
        values: Its result per objective; empty where it failed or was stopped.
        why: Why there is no result.
    """

    number: int
    settings: Mapping[str, Any]
    values: Mapping[str, float]
    why: str = ""


@dataclass(frozen=True)
class TrialSearchResult:
    """The result of a search.

    Args:
        tried: All trials.
        front: The Pareto front: the trials that no other is better than or equal to in every objective.
    """

    tried: tuple[SearchedTrial, ...]
    front: tuple[SearchedTrial, ...]


def axis(text: str) -> tuple[object, ...]:
    """What to search over, from its text.

    Args:
        text: `first:last`, `first:last:log`, or the choices `a,b,c`.

    Returns:
        (first, last, whether logarithmic), or the choices.

    Raises:
        RecipeError: The text is not a valid range.

    >>> axis("3:1")
    Traceback (most recent call last):
    secateur.errors.RecipeError: expected first < last, got '3:1'
    """
    from secateur.lab.recipe import parse_setting

    parts = text.split(":")
    if len(parts) == 2 or (len(parts) == 3 and parts[2] == "log"):
        try:
            first, last = float(parts[0]), float(parts[1])
        except ValueError:
            raise RecipeError(f"expected first:last in numbers, got {text!r}") from None
        if not first < last or (len(parts) == 3 and first <= 0):
            raise RecipeError(f"expected first < last{', above 0' if len(parts) == 3 else ''}, got {text!r}")
        if all(part.lstrip("+-").isdigit() for part in parts[:2]) and len(parts) == 2:
            return int(first), int(last), False
        return first, last, len(parts) == 3
    return tuple(parse_setting(f"x={part.strip()}")[1] for part in text.split(","))


def pareto(tried: Sequence[SearchedTrial], signs: Mapping[str, int]) -> tuple[SearchedTrial, ...]:
    """The trials that no other trial dominates.

    Args:
        tried: The trials; those without a result are left out.
        signs: Per objective 1 to maximize it, -1 to minimize it.

    Returns:
        The Pareto front.

    >>> values = [{"a": 1, "b": 9}, {"a": 2, "b": 5}, {"a": 1, "b": 5}]
    >>> all_ = [SearchedTrial(number, {}, value) for number, value in enumerate(values)]
    >>> [one.number for one in pareto(all_, {"a": 1, "b": -1})]
    [1]
    """

    whole = [one for one in tried if one.values]
    points = [[sign * one.values[name] for name, sign in signs.items()] for one in whole]
    return tuple(whole[at] for at in pareto_front(points))


class _FloorWatch(Progress):
    """Passes everything on to another display, and stops trials that have fallen below a floor."""

    def __init__(self, inner: Progress, floors: Mapping[str, float]):
        self._inner, self._floors = inner, floors
        self.why: dict[int, str] = {}

    def __getattribute__(self, name: str) -> object:
        if name in ("start", "done", "failed", "epoch", "found", "finished", "begin", "end", "plan"):
            return getattr(object.__getattribute__(self, "_inner"), name)
        return object.__getattribute__(self, name)

    def stop(self, trial: int, numbers: dict[str, float]) -> str:
        """Why the trial is stopped, or an empty text."""
        for name, floor in self._floors.items():
            if name in numbers and not numbers[name] >= floor:
                self.why[trial] = f"stopped: {name} {numbers[name]:.4g} is below {floor:g}"
                return self.why[trial]
        return ""


def _study(store: Store, name: str, signs: Mapping[str, int], seed: int) -> optuna.Study:
    """The Optuna study of that name, its journal a table of the run store."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import BaseJournalBackend
    except ImportError as error:
        raise MissingExtraError("secateur search needs Optuna: pip install 'secateur[optuna]'") from error

    class Journal(BaseJournalBackend):
        def read_logs(self, log_number_from: int) -> Any:
            rows = store.rows("SELECT entry FROM search_log WHERE study = ? ORDER BY id", name)
            return [parsed(row["entry"], "an entry of a search") for row in rows[log_number_from:]]

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            with store.transaction() as db:
                db.executemany(
                    "INSERT INTO search_log (study, entry) VALUES (?, ?)",
                    [(name, json.dumps(entry)) for entry in logs],
                )

    with store.transaction() as db:
        db.execute(_TABLE)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    directions: Any = ["maximize" if sign > 0 else "minimize" for sign in signs.values()]
    storage = JournalStorage(Journal())
    known = {study.study_name for study in storage.get_all_studies()}
    # Another seed each time the search continues: else the sampler would suggest the same first values again.
    begun = len(optuna.load_study(study_name=name, storage=storage).trials) if name in known else 0
    sampler = optuna.samplers.TPESampler(seed=(seed + begun) % 2**32, n_startup_trials=10)
    study = optuna.create_study(
        storage=storage, study_name=name, directions=directions, load_if_exists=True, sampler=sampler
    )
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        # Suggested to a process that has died: suggested again first.
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)
    return study


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Args:
        trials: Finished trials after which the search ends, those of earlier calls included.
        jobs: Trials at once.
        floors: Per measured name the value below which a trial is stopped.
        name: Of the search in the store; None: the recipe's.
    """

    trials: int = 20
    jobs: int = 1
    floors: Mapping[str, float] = field(default_factory=dict)
    name: str | None = None

    def __post_init__(self) -> None:
        if self.trials < 1 or self.jobs < 1:
            raise OptionError(
                f"search: expected at least one trial and one job, got {self.trials} and {self.jobs}"
            )


def search(
    recipe: Recipe,
    store: Store,
    over: Mapping[str, str],
    *,
    maximize: Sequence[str] = (),
    minimize: Sequence[str] = (),
    options: SearchOptions | None = None,
    progress: Progress | None = None,
) -> TrialSearchResult:
    """Search recipe values.

    Args:
        recipe: The recipe, without a grid.
        store: Where outcomes and the search itself are kept.
        over: Per key of the recipe what to try, as `axis` reads it.
        maximize: Measured names to maximize.
        minimize: Measured names to minimize.
        options: How many trials, and how.
        progress: The display; None shows nothing.

    Returns:
        All trials, and those on the Pareto front.

    Raises:
        OptionError: No objective, or nothing to search over.
        UnknownNameError: An objective or a floor that no step measures.
        MissingExtraError: Optuna is not installed.
    """
    options = options or SearchOptions()
    signs = {**dict.fromkeys(maximize, 1), **dict.fromkeys(minimize, -1)}
    axes = _axes(recipe, over, signs, len(maximize) + len(minimize))
    if samples := _samples(recipe, axes):
        measured = [step.names for trial in samples for step in trial.steps]
        refuse_unmeasured("search", [*signs, *options.floors], measured)
    study = _study(store, options.name or recipe.name, signs, recipe.lab.seed)

    from secateur.lab.engine import local_engine

    watch = _FloorWatch(progress or Progress(), options.floors)
    engine = _Kept(local_engine(store, options.jobs, devices={recipe.lab.device}))
    while (left := options.trials - _ended(study)) > 0:
        planned = _suggested(study, recipe, axes, min(options.jobs, left))
        watch.why = {}
        results = _carry_out(recipe, store, [one for _, one in planned], engine, watch, signs)
        for (trial, one), (found, why) in zip(planned, results):
            _tell(
                study,
                trial,
                [found[name] for name in signs] if found else None,
                why,
                watch.why.get(one.index),
            )
    engine.end()
    return _found(study, signs)


def write_front(found: TrialSearchResult, recipe: Recipe, store: Store, out: Path) -> list[int]:
    """Write the weights, masks and files of every trial on the front into a folder of its own, and what they are.

    Folders of trials that were on the front of an earlier call, and are not any more, are removed.

    Args:
        found: The result of a search.
        recipe: The recipe that was searched.
        store: The store that the search was kept in.
        out: The folder: `trial-N` of each trial, counted from 1, and `front.json`.

    Returns:
        The numbers of the trials that the store holds no outcome of, such as those of another recipe or machine.
    """
    missing, rows = [], []
    for one in found.front:
        trial = plan_trial(recipe.with_settings(one.settings), one.number, dict(one.settings))
        outcome = store.outcome(trial.steps[-1].key)
        rows.append(
            {
                "trial": one.number,
                "trial_number": one.number + 1,
                "settings": dict(one.settings),
                "values": dict(one.values),
            }
        )
        if outcome is None:
            missing.append(one.number)
        else:
            write_outcome(outcome, store, out / f"trial-{one.number + 1}")
    _remove_left(out, {f"trial-{one.number + 1}" for one in found.front})
    atomic_write(out / "front.json", json.dumps(finite(rows), indent=2).encode())
    return missing


def _remove_left(out: Path, kept: Collection[str]) -> None:
    """Remove the folders of trials that the `front.json` of an earlier call names and this front does not."""
    try:
        rows: Any = parse((out / "front.json").read_bytes(), "front.json")
        before = {f"trial-{int(row['trial_number'])}" for row in rows}
    except (OSError, FormatError, ValueError, TypeError, KeyError):
        return
    for name in before - set(kept):
        shutil.rmtree(out / name, ignore_errors=True)


def _axes(
    recipe: Recipe, over: Mapping[str, str], signs: Mapping[str, int], objectives: int
) -> dict[str, tuple[object, ...]]:
    """What to search over; what cannot work is refused before any work."""
    if not signs or len(signs) != objectives:
        raise OptionError(
            "search: expected at least one objective, each once, to maximize or to minimize: --maximize accuracy "
            "(in Python maximize=['accuracy'])"
        )
    if not over:
        raise OptionError("search: nothing to search over; give values, such as --over prune.budget=0.1:0.9")
    if recipe.grid:
        raise OptionError("search: the recipe has a [grid]; take it out, or use `secateur sweep`")
    axes = {key: axis(value) for key, value in over.items()}
    for key, values in axes.items():
        recipe.with_settings({key: values[0]})
    return axes


def _samples(recipe: Recipe, axes: Mapping[str, tuple[object, ...]]) -> list[PlannedTrial]:
    """Trials that show what the steps measure: one with the first values, and one with each other choice of an axis.

    Values that conflict are left out: as a trial of the search they are kept with their error.
    """
    wanted = [{key: values[0] for key, values in axes.items()}]
    for key, values in axes.items():
        if not _is_range(values) and key.partition(".")[0] not in ("data", "lab"):
            wanted += [{key: value} for value in values[1:]]
    found: list[PlannedTrial] = []
    for settings in wanted:
        try:
            found.append(plan_trial(recipe.with_settings(settings)))
        except SecateurError:
            continue
    return found


def _suggested(
    study: optuna.Study, recipe: Recipe, axes: Mapping[str, tuple[object, ...]], count: int
) -> list[tuple[optuna.Trial, PlannedTrial]]:
    """Ask for trials; those whose values conflict are recorded as failed and left out."""
    asked = [study.ask() for _ in range(count)]
    chosen = [{key: _suggest(trial, key, values) for key, values in axes.items()} for trial in asked]
    planned: list[tuple[optuna.Trial, PlannedTrial]] = []
    for trial, settings in zip(asked, chosen):
        try:
            planned.append((trial, plan_trial(recipe.with_settings(settings), len(planned), settings)))
        except SecateurError as error:
            _tell(study, trial, None, str(error), None)
    return planned


def _tell(
    study: optuna.Study, trial: optuna.Trial, values: list[float] | None, why: str, stopped: str | None
) -> None:
    """Tell the study a trial's result, or why there is none."""
    from optuna.trial import TrialState

    if stopped or why:
        trial.set_user_attr("why", stopped or why)
    if stopped:
        study.tell(trial, state=TrialState.PRUNED)
    elif values is None:
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, values)


def _ended(study: optuna.Study) -> int:
    return sum(trial.state.is_finished() for trial in study.trials)


def _is_range(values: tuple[object, ...]) -> bool:
    """Whether an axis is a range, from first to last, or else a list of choices."""
    return len(values) == 3 and isinstance(values[0], int | float) and isinstance(values[2], bool)


def _suggest(trial: optuna.Trial, key: str, values: tuple[Any, ...]) -> object:
    if _is_range(values):
        first, last, log = values
        if isinstance(first, int):
            return trial.suggest_int(key, first, last)
        return trial.suggest_float(key, first, last, log=log)
    return trial.suggest_categorical(key, list(values))


class _Kept:
    """An engine that stays open over the runs of a search, so that its processes start once."""

    def __init__(self, engine: Engine):
        self._engine, self.slots = engine, engine.slots
        self.submit, self.events = engine.submit, engine.events

    def close(self, *, now: bool) -> None:
        if now:
            self._engine.close(now=True)

    def end(self) -> None:
        self._engine.close(now=False)


def _carry_out(
    recipe: Recipe,
    store: Store,
    planned: list[PlannedTrial],
    engine: Engine,
    watch: _FloorWatch,
    signs: Mapping[str, int],
) -> list[tuple[dict[str, float] | None, str]]:
    """Run the suggested trials; per trial its objectives, or why there are none."""
    from secateur.lab.engine import run

    if not planned:
        return []
    whole = RunPlan(recipe, device_word(recipe.lab.device), tuple(planned))
    ran = run(recipe, store, plan=whole, progress=watch, engine=engine)
    failed = dict(ran.failures)
    found: list[tuple[dict[str, float] | None, str]] = []
    for trial in planned:
        mine = {m.name: float(m.value) for m in ran.measurements if m.context["trial"] == trial.index}
        missing = [name for name in signs if name not in mine]
        if trial.index in failed or (missing and trial.index in watch.why):
            found.append((None, failed.get(trial.index, "")))
        elif missing:
            raise OptionError(
                f"search: no step of the recipe measured {missing[0]!r}; measured: "
                f"{', '.join(sorted(mine)) or 'nothing'}"
            )
        else:
            found.append((mine, ""))
    return found


def _found(study: optuna.Study, signs: Mapping[str, int]) -> TrialSearchResult:
    tried = []
    for trial in study.trials:
        if trial.state.is_finished():
            values = dict(zip(signs, trial.values)) if trial.values else {}
            why = "" if values else trial.user_attrs.get("why", "interrupted")
            tried.append(SearchedTrial(trial.number, dict(trial.params), values, why))
    return TrialSearchResult(tuple(tried), pareto(tried, signs))

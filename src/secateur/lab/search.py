"""`search`: Optuna over recipe values, for several objectives at once, resumable, with the Pareto front as its result.

    found = search(Recipe.read("r.toml"), Store("runs"), {"prune.budget": "0.1:0.9"},
                   maximize=["accuracy"], minimize=["file_bytes"], trials=40)
    found.front

Suggestions and results are kept in the run store, beside the outcomes: the same call again goes on where the last
one stopped, and a trial whose steps are known costs nothing. A trial is given up between two steps when a number
of it falls below its floor: what is hopeless is not trained any further.

>>> axis("0.1:0.9"), axis("1:8"), axis("0.001:1:log"), axis("a,b")
((0.1, 0.9, False), (1, 8, False), (0.001, 1.0, True), ('a', 'b'))
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.core.pareto import pareto_front
from secateur.errors import MissingExtraError, OptionError, RecipeError, SecateurError
from secateur.execution.devices import device_word
from secateur.lab.display.progress import Progress
from secateur.lab.engines import Engine
from secateur.lab.plan import RunPlan, plan_trial
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store

__all__ = ["SearchedTrial", "TrialSearchResult", "axis", "pareto", "search"]

_TABLE = (
    "CREATE TABLE IF NOT EXISTS search_log (id INTEGER PRIMARY KEY AUTOINCREMENT, study TEXT, entry TEXT)"
)


@dataclass(frozen=True)
class SearchedTrial:
    """One trial of a search: `values` by objective, empty where it failed or was given up (`why` says so)."""

    number: int
    settings: Mapping[str, Any]
    values: Mapping[str, float]
    why: str = ""


@dataclass(frozen=True)
class TrialSearchResult:
    """What a search came to. `front` are the trials that no other beats in every objective."""

    tried: tuple[SearchedTrial, ...]
    front: tuple[SearchedTrial, ...]


def axis(text: str) -> tuple[Any, ...]:
    """`first:last`, `first:last:log` as (first, last, logarithmic); `a,b,c` as the choices.

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
    """The trials no other beats; `signs` is 1 for an objective to maximize, -1 for one to minimize.

    >>> values = [{"a": 1, "b": 9}, {"a": 2, "b": 5}, {"a": 1, "b": 5}]
    >>> all_ = [SearchedTrial(number, {}, value) for number, value in enumerate(values)]
    >>> [one.number for one in pareto(all_, {"a": 1, "b": -1})]
    [1]
    """

    whole = [one for one in tried if one.values]
    points = [[sign * one.values[name] for name, sign in signs.items()] for one in whole]
    return tuple(whole[at] for at in pareto_front(points))


class _FloorWatch(Progress):
    """Passes everything on, and gives up trials that have fallen below a floor."""

    def __init__(self, inner: Progress, floors: Mapping[str, float]):
        self._inner, self._floors = inner, floors
        self.why: dict[int, str] = {}

    def __getattribute__(self, name: str) -> Any:
        if name in ("start", "done", "failed", "epoch", "found", "finished", "begin", "end", "plan"):
            return getattr(object.__getattribute__(self, "_inner"), name)
        return object.__getattribute__(self, name)

    def stop(self, trial: int, numbers: dict[str, float]) -> str:
        """Why the trial is hopeless, or nothing."""
        for name, floor in self._floors.items():
            if name in numbers and not numbers[name] >= floor:
                self.why[trial] = f"given up: {name} {numbers[name]:.4g} is below {floor:g}"
                return self.why[trial]
        return ""


def _study(store: Store, name: str, signs: Mapping[str, int], seed: int) -> Any:
    """The Optuna study of that name, its journal a table of the run store."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import BaseJournalBackend
    except ImportError as error:
        raise MissingExtraError("secateur search needs Optuna: pip install 'secateur[optuna]'") from error

    class Journal(BaseJournalBackend):
        def read_logs(self, log_number_from: int) -> Any:
            rows = store._read("SELECT entry FROM search_log WHERE study = ? ORDER BY id", name)
            return [json.loads(row["entry"]) for row in rows[log_number_from:]]

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            with store._write() as db:
                db.executemany(
                    "INSERT INTO search_log (study, entry) VALUES (?, ?)",
                    [(name, json.dumps(entry)) for entry in logs],
                )

    with store._write() as db:
        db.execute(_TABLE)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    directions: Any = ["maximize" if sign > 0 else "minimize" for sign in signs.values()]
    storage = JournalStorage(Journal())
    known = {study.study_name for study in storage.get_all_studies()}
    # Another seed each time it goes on: a sampler that starts over would suggest the same first values again.
    begun = len(optuna.load_study(study_name=name, storage=storage).trials) if name in known else 0
    sampler = optuna.samplers.TPESampler(seed=(seed + begun) % 2**32, n_startup_trials=10)
    study = optuna.create_study(
        storage=storage, study_name=name, directions=directions, load_if_exists=True, sampler=sampler
    )
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        # Asked for by a process that is gone: asked for again, first of all.
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)
    return study


def search(
    recipe: Recipe,
    store: Store,
    over: Mapping[str, str],
    *,
    maximize: Sequence[str] = (),
    minimize: Sequence[str] = (),
    trials: int = 20,
    jobs: int = 1,
    floors: Mapping[str, float] | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> TrialSearchResult:
    """Search recipe values until the study has so many finished trials, `jobs` at a time."""
    signs = {**dict.fromkeys(maximize, 1), **dict.fromkeys(minimize, -1)}
    if not signs or len(signs) != len(maximize) + len(minimize):
        raise OptionError("search: expected at least one objective, each once, to maximize or to minimize")
    if not over:
        raise OptionError("search: nothing to search over; give values, such as --over prune.budget=0.1:0.9")
    if recipe.grid:
        raise OptionError("search: the recipe has a [grid]; take it out, or use `secateur sweep`")
    if trials < 1 or jobs < 1:
        raise OptionError(f"search: expected at least one trial and one job, got {trials} and {jobs}")
    axes = {key: axis(value) for key, value in over.items()}
    for key, values in axes.items():
        recipe.with_settings({key: values[0]})  # a key that is not there is refused before any work
    study = _study(store, name or recipe.name, signs, recipe.lab.seed)
    from optuna.trial import TrialState as states

    from secateur.lab.engine import local_engine

    watch = _FloorWatch(progress or Progress(), floors or {})
    engine = _Kept(local_engine(store, jobs, devices={recipe.lab.device}))
    while (left := trials - _ended(study)) > 0:
        asked = [study.ask() for _ in range(min(jobs, left))]
        chosen = [{key: _suggest(trial, key, axes[key]) for key in axes} for trial in asked]
        planned: list[Any] = []
        for trial, settings in zip(asked, chosen):
            try:
                planned.append((trial, plan_trial(recipe.with_settings(settings), len(planned), settings)))
            except SecateurError as error:
                # Values that cannot work together are a result, not the end of the search.
                trial.set_user_attr("why", str(error))
                study.tell(trial, state=states.FAIL)
        watch.why = {}
        results = _carry_out(recipe, store, [one for _, one in planned], engine, watch, signs)
        for (trial, one), (found, why) in zip(planned, results):
            if why or one.index in watch.why:
                trial.set_user_attr("why", watch.why.get(one.index, why))
            if one.index in watch.why:
                study.tell(trial, state=states.PRUNED)
            elif found is None:
                study.tell(trial, state=states.FAIL)
            else:
                study.tell(trial, [found[name] for name in signs])
    engine.end()
    return _found(study, signs)


def _ended(study: Any) -> int:
    return sum(trial.state.is_finished() for trial in study.trials)


def _suggest(trial: Any, key: str, values: tuple[Any, ...]) -> Any:
    if len(values) == 3 and isinstance(values[2], bool):
        first, last, log = values
        if isinstance(first, int):
            return trial.suggest_int(key, first, last)
        return trial.suggest_float(key, first, last, log=log)
    return trial.suggest_categorical(key, list(values))


class _Kept:
    """An engine that outlives the runs of a search, so that its processes start once."""

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
    planned: list[Any],
    engine: Engine,
    watch: Progress,
    signs: Mapping[str, int],
) -> list[tuple[dict[str, float] | None, str]]:
    """One run of the trials asked for; per trial its objectives, or why there are none."""
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
        if trial.index in failed or (missing and trial.index in getattr(watch, "why", {})):
            found.append((None, failed.get(trial.index, "")))
        elif missing:
            raise OptionError(
                f"search: no step of the recipe measured {missing[0]!r}; measured: "
                f"{', '.join(sorted(mine)) or 'nothing'}"
            )
        else:
            found.append((mine, ""))
    return found


def _found(study: Any, signs: Mapping[str, int]) -> TrialSearchResult:
    tried = []
    for trial in study.trials:
        if trial.state.is_finished():
            values = dict(zip(signs, trial.values)) if trial.values else {}
            why = "" if values else trial.user_attrs.get("why", "interrupted")
            tried.append(SearchedTrial(trial.number, dict(trial.params), values, why))
    return TrialSearchResult(tuple(tried), pareto(tried, signs))

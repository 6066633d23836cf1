"""`Store`: a SQLite database of runs, steps and Measurements, and a folder of objects by their hash.

    FOLDER/store.sqlite      runs, trials, steps, measurements (with a write-ahead log, so that readers never wait)
    FOLDER/objects/ab/cd...  weights, masks, codebooks, files: named by the hash of their content
    FOLDER/locks/            one advisory lock per step in progress; the system frees it when a process dies
    FOLDER/checkpoints/      trainings in progress

A step's outcome is written in one transaction, after its objects are flushed to the disk. So the store holds complete
outcomes only, whenever a process is killed.

>>> import tempfile
>>> store = Store(tempfile.mkdtemp())
>>> store.keep(Outcome(key="k" * 64, kind="prune", state={}, seconds=0.1))
>>> store.outcome("k" * 64).kind, store.outcome("other") is None
('prune', True)
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from secateur.core.atomic_files import sweep
from secateur.core.measurement import Measurement, Measurements
from secateur.errors import StoreError, UnknownNameError
from secateur.lab.database import Database, parsed, typed
from secateur.lab.objects import Objects
from secateur.lab.outcomes import Outcome, RunRow, Table, canonical, now, objects_of
from secateur.lab.provenance import clean, clean_plain
from secateur.lab.rows import in_order, measurement_of, run_row
from secateur.lab.waste import Waste, waste_of

__all__ = ["Outcome", "RunRow", "Store", "canonical"]


class Store:
    """A folder that holds the outcome of every step computed. Processes may share it.

    Args:
        folder: The folder.
        create: Make a new store where there is none; else that is an error.

    Raises:
        StoreError: No store, a damaged one, or one of another version.
    """

    def __init__(self, folder: str | os.PathLike[str] = "runs", *, create: bool = True):
        self.folder = Path(folder)
        self.objects = Objects(self.folder / "objects")
        self._database = self.folder / "store.sqlite"
        if not create and not self._database.is_file():
            raise StoreError(
                f"{clean(str(folder))}: no run store here (expected store.sqlite in it); run a recipe first, "
                "or name the store with --store"
            ).as_usage()
        self._db = Database(self._database, create=create)

    # -- the database
    def transaction(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """A connection within a transaction: committed on leaving, rolled back after an error."""
        return self._db.transaction()

    def rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        """The rows of a query.

        Args:
            query: SQL that reads.
            values: The values of its question marks.
        """
        return self._db.rows(query, *values)

    def close(self) -> None:
        """Close this thread's connection."""
        self._db.close()

    # -- locks
    def lock(self, key: str) -> FileLock:
        """The advisory lock of one step: its holder computes, others wait. The system frees it when a process dies."""
        return FileLock(self.folder / "locks" / f"{key}.lock", poll_interval=0.02)

    def checkpoint(self, key: str) -> Path:
        """The file of the checkpoint of that step, while it trains."""
        folder = self.folder / "checkpoints"
        folder.mkdir(exist_ok=True)
        return folder / f"{key}.ckpt"

    # -- steps
    def outcome(self, key: str) -> Outcome | None:
        """The outcome of that step; None where it was never computed or one of its objects is gone."""
        rows = self.rows("SELECT * FROM steps WHERE key = ?", key)
        if not rows:
            return None
        row = rows[0]
        state = parsed(row["state"], "state of a step")
        if not all(self.objects.has(name) for name in objects_of(state)):
            return None
        return Outcome(
            key=key,
            kind=typed(row["kind"], "kind of a step", str),
            state=state,
            seconds=typed(row["seconds"], "seconds of a step", float),
            parent=row["parent"],
            options=parsed(row["options"], "options of a step"),
            measurements=self._measurements(key),
            log=parsed(row["log"], "log of a step"),
            provenance=parsed(row["provenance"], "provenance of a step"),
            finished=typed(row["finished"], "date of a step", str),
        )

    def _measurements(self, key: str) -> Measurements:
        rows = self.rows("SELECT whole FROM measurements WHERE key = ? ORDER BY position", key)
        return Measurements(measurement_of(parsed(row["whole"], "a measurement")) for row in rows)

    def has(self, key: str) -> bool:
        """Whether the store holds the step's outcome with all its objects."""
        rows = self.rows("SELECT state FROM steps WHERE key = ?", key)
        if not rows:
            return False
        state = parsed(rows[0]["state"], "state of a step")
        return all(self.objects.has(name) for name in objects_of(state))

    def keep(self, outcome: Outcome) -> None:
        """Write a step's outcome; its objects must be written before."""
        with self.transaction() as db:
            db.execute("DELETE FROM steps WHERE key = ?", (outcome.key,))
            db.execute(
                "INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    outcome.key,
                    outcome.kind,
                    outcome.parent,
                    canonical(clean_plain(dict(outcome.options))),
                    canonical(outcome.state),
                    canonical(outcome.log),
                    outcome.seconds,
                    outcome.finished or now(),
                    canonical(outcome.provenance),
                ),
            )
            db.executemany(
                "INSERT INTO measurements VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (outcome.key, position, m.name, float(m.value), m.unit, in_order(m.to_dict()))
                    for position, m in enumerate(outcome.measurements)
                ],
            )

    # -- runs
    def start_run(
        self,
        *,
        name: str,
        recipe: Mapping[str, Any],
        command: str,
        seed: int,
        device: str,
        versions: Mapping[str, str],
        hardware: Mapping[str, Any],
        trials: list[tuple[Mapping[str, Any], list[tuple[str, str, str]]]],
    ) -> tuple[int, FileLock]:
        """Record that a run begins.

        Args:
            name: The recipe's name.
            recipe: The recipe as plain data.
            command: The command line.
            seed: The recipe's seed.
            device: Where it computes.
            versions: Of the packages that numbers depend on.
            hardware: The machine, without its name.
            trials: Per trial its settings, and label, kind and key of each of its steps.

        Returns:
            The run's number, and a lock to be released when it ends. The lock is taken before the run can be seen, so
            that a running run is never mistaken for a dead one.
        """
        with FileLock(self.folder / "locks" / "store.lock"), self.transaction() as db:
            cursor = db.execute(
                "INSERT INTO runs (name, status, started, command, recipe, seed, device, versions, hardware) "
                "VALUES (?, 'running', ?, ?, ?, ?, ?, ?, ?)",
                (
                    clean(name),
                    now(),
                    command,
                    canonical(recipe),
                    seed,
                    device,
                    canonical(versions),
                    canonical(hardware),
                ),
            )
            run = int(cursor.lastrowid or 0)
            alive = FileLock(self._run_lock(run))
            alive.acquire()
            db.executemany(
                "INSERT INTO trials VALUES (?, ?, ?, 'waiting', NULL)",
                [(run, k, canonical(clean_plain(dict(settings)))) for k, (settings, _) in enumerate(trials)],
            )
            db.executemany(
                "INSERT INTO plan (run, trial, position, label, kind, key) VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (run, index, position, label, kind, key)
                    for index, (_, steps) in enumerate(trials)
                    for position, (label, kind, key) in enumerate(steps)
                ],
            )
        return run, alive

    def _run_lock(self, run: int) -> Path:
        """The file that is locked while a run is running."""
        return self.folder / "locks" / f"run-{run}.lock"

    def note_step(self, run: int, trial: int, position: int, how: str) -> None:
        """Record how a trial obtained a step's outcome.

        Args:
            run: The run's number.
            trial: The trial's position in the run.
            position: The step's position in the trial.
            how: `cached` or `computed`.
        """
        with self.transaction() as db:
            db.execute(
                "UPDATE plan SET how = ? WHERE run = ? AND trial = ? AND position = ?",
                (how, run, trial, position),
            )

    def note_trial(self, run: int, trial: int, status: str, error: str | None = None) -> None:
        """Record a trial's status.

        Args:
            run: The run's number.
            trial: The trial's position in the run.
            status: Such as `done` or `failed`.
            error: The error's text where it failed.
        """
        with self.transaction() as db:
            db.execute(
                "UPDATE trials SET status = ?, error = ? WHERE run = ? AND trial = ?",
                (status, None if error is None else clean(error), run, trial),
            )

    def note(
        self,
        run: int,
        steps: Iterable[tuple[int, int, str]] = (),
        trials: Iterable[tuple[int, str, str | None]] = (),
    ) -> None:
        """Record many at once.

        Args:
            run: The run's number.
            steps: Trial, position and how the outcome was obtained.
            trials: Trial, status, and the error's text or None.
        """
        with self.transaction() as db:
            db.executemany(
                "UPDATE plan SET how = ? WHERE run = ? AND trial = ? AND position = ?",
                [(how, run, trial, position) for trial, position, how in steps],
            )
            db.executemany(
                "UPDATE trials SET status = ?, error = ? WHERE run = ? AND trial = ?",
                [(st, None if error is None else clean(error), run, trial) for trial, st, error in trials],
            )

    def timings(self) -> list[tuple[str, Table, float, Table]]:
        """Kind, options, seconds, and the recipe of a run it belongs to, of every step computed."""
        rows = self.rows(
            "SELECT steps.kind, steps.options, steps.seconds, runs.recipe FROM steps "
            "JOIN (SELECT key, MAX(run) AS run FROM plan GROUP BY key) AS last ON last.key = steps.key "
            "JOIN runs ON runs.id = last.run"
        )
        return [
            (
                typed(row["kind"], "kind of a step", str),
                parsed(row["options"], "options of a step"),
                typed(row["seconds"], "seconds of a step", float),
                parsed(row["recipe"], "recipe of a run"),
            )
            for row in rows
        ]

    def finish_run(self, run: int, status: str, seconds: float) -> None:
        """Record that a run is over.

        Args:
            run: The run's number.
            status: Such as `done` or `failed`.
            seconds: How long it took.
        """
        with self.transaction() as db:
            db.execute(
                "UPDATE runs SET status = ?, seconds = ?, finished = ? WHERE id = ?",
                (status, seconds, now(), run),
            )

    def runs(self) -> list[RunRow]:
        """Every run, the oldest first. A run whose process has died is `interrupted`."""
        if self._db.writable:
            self._mark_dead()
        rows = self.rows(
            "SELECT runs.*, "
            "(SELECT COUNT(*) FROM trials WHERE run = runs.id) AS trials, "
            "(SELECT COUNT(*) FROM trials WHERE run = runs.id AND status = 'failed') AS failed, "
            "(SELECT COUNT(*) FROM plan WHERE run = runs.id) AS steps, "
            "(SELECT COUNT(DISTINCT key) FROM plan WHERE run = runs.id AND how = 'computed') AS computed "
            "FROM runs ORDER BY id"
        )
        return [run_row(row) for row in rows]

    def run(self, which: int | str = "last") -> RunRow:
        """One run by its number, or the `last` one."""
        rows = self.runs()
        if not rows:
            raise StoreError(
                "the store holds no run yet; start one with `secateur run RECIPE.toml`"
            ).as_usage()
        if which == "last":
            return rows[-1]
        for row in rows:
            if str(row.id) == str(which):
                return row
        raise UnknownNameError(
            f"no run {which!r} in this store: runs {rows[0].id} to {rows[-1].id} are there"
        )

    def trials(self, run: int) -> list[Table]:
        """Per trial of a run: settings, status, error, and its steps: label, kind, key, how, device, precision."""
        steps: dict[int, list[Table]] = {}
        query = (
            "SELECT plan.*, steps.seconds, steps.finished, steps.provenance, steps.options FROM plan "
            "LEFT JOIN steps ON steps.key = plan.key "
            "WHERE run = ? ORDER BY trial, position"
        )
        for row in self.rows(query, run):
            done = row["seconds"] is not None
            steps.setdefault(row["trial"], []).append(
                {name: typed(row[name], f"{name} of a step", str) for name in ("label", "kind", "key", "how")}
                | {
                    "seconds": typed(row["seconds"], "seconds of a step", float) if done else None,
                    "finished": typed(row["finished"], "date of a step", str) if done else None,
                    "device": parsed(row["provenance"] or "{}", "provenance of a step").get("device"),
                    "precision": parsed(row["options"] or "{}", "options of a step").get("precision"),
                }
            )
        return [
            {
                "trial": typed(row["trial"], "number of a trial", int),
                "settings": parsed(row["settings"], "settings of a trial"),
                "status": typed(row["status"], "status of a trial", str),
                "error": None if row["error"] is None else typed(row["error"], "error of a trial", str),
                "steps": steps.get(row["trial"], []),
            }
            for row in self.rows("SELECT * FROM trials WHERE run = ? ORDER BY trial", run)
        ]

    def measurements(self, run: int) -> Measurements:
        """All Measurements of a run; their context has run, trial, variant (the step's label), seed and settings."""
        seed = self.run(run).seed
        found = []
        for trial in self.trials(run):
            for step in trial["steps"]:
                for m in self._measurements(step["key"]):
                    context = {
                        "run": run,
                        "trial": trial["trial"],
                        "variant": step["label"],
                        "step": step["kind"],
                    }
                    context["seed"] = trial["settings"].get("lab.seed", seed)
                    context |= {**trial["settings"], **m.context}
                    found.append(measurement_of({**m.to_dict(), "context": context}))
        return Measurements(found)

    def keep_usage(self, run: int, samples: Measurements) -> None:
        """Record what a run took of the machine over time; nothing where there are no samples.

        Args:
            run: The run's number.
            samples: One measurement for each quantity.
        """
        if samples:
            whole = canonical({"measurements": [item.to_dict() for item in samples]})
            with self.transaction() as db:
                db.execute("CREATE TABLE IF NOT EXISTS usage (run INTEGER PRIMARY KEY, samples TEXT)")
                db.execute("INSERT OR REPLACE INTO usage VALUES (?, ?)", (run, whole))

    def usage(self, run: int) -> Measurements:
        """What a run took of the machine over time; empty where it was not sampled.

        Args:
            run: The run's number.
        """
        if not self.rows("SELECT 1 FROM sqlite_master WHERE name = 'usage'"):
            return Measurements()
        found: list[Measurement] = []
        for row in self.rows("SELECT samples FROM usage WHERE run = ?", run):
            items = parsed(row["samples"], "usage of a run").get("measurements", [])
            found += [measurement_of({**typed(item, "usage of a run", dict)}) for item in items]
        return Measurements(found).within({"run": run})

    # -- freeing
    def clear_leftovers(self, keys: Iterable[str]) -> None:
        """Delete leftovers of killed processes: temporary files, and checkpoints of steps that are done.

        Args:
            keys: The steps that have an outcome.
        """
        self.objects.sweep_killed()
        checkpoints = self.folder / "checkpoints"
        if checkpoints.is_dir():
            sweep(checkpoints, again=True)
            for key in keys:
                self.checkpoint(key).unlink(missing_ok=True)

    def _mark_dead(self) -> None:
        """Record runs as interrupted that are `running` but whose lock is free: their process has died."""
        for row in self.rows("SELECT id FROM runs WHERE status = 'running'"):
            lock = FileLock(self._run_lock(row["id"]))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                with self.transaction() as db:
                    db.execute(
                        "UPDATE runs SET status = 'interrupted' WHERE id = ? AND status = 'running'",
                        (row["id"],),
                    )
            finally:
                lock.release()

    def gc(self, *, keep: int | None = None, dry_run: bool = False) -> dict[str, int]:
        """Delete what nothing refers to: steps of no run, objects of no step, checkpoints, locks and temporary files.

        Refused while a run is running.

        Args:
            keep: First forget all runs but this number of the newest.
            dry_run: Delete nothing.

        Returns:
            How many runs, steps and objects were deleted, and how many bytes were freed.

        Raises:
            StoreError: A run is running.
        """
        with FileLock(self.folder / "locks" / "store.lock"):
            runs = self.runs()
            running = [row.id for row in runs if row.status == "running"]
            if running:
                raise StoreError(
                    f"run {running[0]} is still running; wait for it, or stop it, then free the store"
                )
            forgotten = [row.id for row in runs[: max(0, len(runs) - keep)]] if keep is not None else []
            waste = waste_of(self._db, self.objects, self.folder / "checkpoints", forgotten)
            freed = waste.bytes
            if not dry_run:
                freed += self._free(forgotten, waste)
            return {
                "runs": len(forgotten),
                "steps": len(waste.steps),
                "objects": len(waste.objects),
                "bytes": freed,
            }

    def _free(self, forgotten: list[int], waste: Waste) -> int:
        """Delete the waste; returns the bytes of temporary files, which are not counted in it."""
        # Rows first: an object without a row is waste, a row without its object would be damage.
        with self.transaction() as db:
            db.executemany("DELETE FROM runs WHERE id = ?", [(run,) for run in forgotten])
            if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'usage'").fetchone():
                db.executemany("DELETE FROM usage WHERE run = ?", [(run,) for run in forgotten])
            db.executemany("DELETE FROM steps WHERE key = ?", [(key,) for key in waste.steps])
        for name in waste.objects:
            self.objects.drop(name)
        for path in waste.checkpoints:
            path.unlink(missing_ok=True)
        for path in (self.folder / "locks").glob("*.lock"):
            if path.name != "store.lock":
                path.unlink(missing_ok=True)
        swept = self.objects.sweep_scratch()
        self._db.connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return swept

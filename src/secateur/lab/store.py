"""`Store`: one SQLite database of runs, steps and Measurements, with the big objects beside it by hash.

    FOLDER/store.sqlite      runs, trials, steps, measurements (write-ahead log: readers never wait)
    FOLDER/objects/ab/cd...  weights, masks, codebooks, files: named by their content
    FOLDER/locks/            one advisory lock per step in progress; the system drops it when a process dies
    FOLDER/checkpoints/      trainings under way

A step's outcome is written once, in one transaction, after its objects are safely on the disk. So whatever is
killed and whenever, the store holds whole outcomes only.

>>> import tempfile
>>> store = Store(tempfile.mkdtemp())
>>> store.keep(Outcome(key="k" * 64, kind="prune", state={}, seconds=0.1))
>>> store.outcome("k" * 64).kind, store.outcome("other") is None
('prune', True)
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from secateur.core.measurement import Measurement, Measurements
from secateur.errors import StoreError, UnknownNameError
from secateur.lab.objects import Objects
from secateur.lab.outcomes import SCHEMA, VERSION, Outcome, RunRow, canonical, now, objects_of
from secateur.lab.provenance import clean, clean_plain

__all__ = ["Outcome", "RunRow", "Store", "canonical"]


def _in_order(value: Any) -> str:
    """A measurement as JSON; its layers stay in the model's order, which sorted keys would lose."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


class Store:
    """A folder that remembers every step ever computed. Safe to share between processes."""

    def __init__(self, folder: str | os.PathLike[str] = "runs", *, create: bool = True):
        self.folder = Path(folder)
        self.objects = Objects(self.folder / "objects")
        self._database = self.folder / "store.sqlite"
        if not create and not self._database.is_file():
            raise StoreError(
                f"{clean(str(folder))}: no run store here (expected store.sqlite in it); run a recipe first, "
                "or "
                "name the store with --store"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "locks").mkdir(exist_ok=True)
        self._local = threading.local()
        # Only one process may lay out a fresh database; the others wait for it to be whole.
        with FileLock(self.folder / "locks" / "store.lock"):
            self._open()

    # -- the database
    # --------------------------------------------------------------------------------------------
    def _open(self) -> None:
        try:
            db = self._connect()
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                db.execute("PRAGMA journal_mode = WAL")
                db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
            elif version != VERSION:
                raise StoreError(
                    f"{clean(str(self._database))}: expected a run store of version {VERSION}, got version "
                    f"{version}; "
                    "use the secateur that wrote it, or another folder with --store"
                )
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"{clean(str(self._database))}: expected a secateur run store, but SQLite cannot read it "
                f"({error}); "
                "restore it from a copy, or name another folder with --store"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = sqlite3.connect(self._database, timeout=120, isolation_level=None)
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA busy_timeout = 120000")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
            self._local.db = db
        return db

    @contextlib.contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it or nothing."""
        db = self._connect()
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")

    def _read(self, query: str, *values: Any) -> list[sqlite3.Row]:
        return self._connect().execute(query, values).fetchall()

    def close(self) -> None:
        """Close this thread's connection."""
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is not None:
            db.close()
            self._local.db = None

    # -- locks
    # ---------------------------------------------------------------------------------------------------
    def lock(self, key: str) -> FileLock:
        """The advisory lock of one step: who holds it computes, the others wait. It dies with its process."""
        return FileLock(self.folder / "locks" / f"{key}.lock", poll_interval=0.02)

    def checkpoint(self, key: str) -> Path:
        """Where a training of that key keeps its checkpoint while it runs."""
        folder = self.folder / "checkpoints"
        folder.mkdir(exist_ok=True)
        return folder / f"{key}.ckpt"

    # -- steps
    # ---------------------------------------------------------------------------------------------------
    def outcome(self, key: str) -> Outcome | None:
        """What that step left, or None when it must be computed: never run, or an object of it is gone."""
        rows = self._read("SELECT * FROM steps WHERE key = ?", key)
        if not rows:
            return None
        row = rows[0]
        state = json.loads(row["state"])
        if not all(self.objects.has(name) for name in objects_of(state)):
            return None
        return Outcome(
            key=key,
            kind=row["kind"],
            state=state,
            seconds=row["seconds"],
            parent=row["parent"],
            options=json.loads(row["options"]),
            measurements=self._measurements(key),
            log=json.loads(row["log"]),
            provenance=json.loads(row["provenance"]),
            finished=row["finished"],
        )

    def _measurements(self, key: str) -> Measurements:
        rows = self._read("SELECT whole FROM measurements WHERE key = ? ORDER BY position", key)
        return Measurements(Measurement.from_dict(json.loads(row["whole"])) for row in rows)

    def has(self, key: str) -> bool:
        """Whether the step's outcome is there, whole."""
        rows = self._read("SELECT state FROM steps WHERE key = ?", key)
        return bool(rows) and all(self.objects.has(name) for name in objects_of(json.loads(rows[0]["state"])))

    def keep(self, outcome: Outcome) -> None:
        """Write a step's outcome; its objects must be there already."""
        with self._write() as db:
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
                    (outcome.key, position, m.name, float(m.value), m.unit, _in_order(m.to_dict()))
                    for position, m in enumerate(outcome.measurements)
                ],
            )

    # -- runs
    # ----------------------------------------------------------------------------------------------------
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
        """Note that a run begins: its recipe, where it runs, and per trial its settings and (label, kind,
        key)s.

        Returns the run's number and a lock to be released when it ends. The lock is taken before anybody can
        see the run, so that a living run is never mistaken for a dead one.
        """
        with FileLock(self.folder / "locks" / "store.lock"), self._write() as db:
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
                [
                    (run, index, canonical(clean_plain(dict(settings))))
                    for index, (settings, _) in enumerate(trials)
                ],
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
        """The file locked while a run is alive, so that a run that died can be told from one that works."""
        return self.folder / "locks" / f"run-{run}.lock"

    def note_step(self, run: int, trial: int, position: int, how: str) -> None:
        """Note how a trial came by a step: `cached` or `computed`."""
        with self._write() as db:
            db.execute(
                "UPDATE plan SET how = ? WHERE run = ? AND trial = ? AND position = ?",
                (how, run, trial, position),
            )

    def note_trial(self, run: int, trial: int, status: str, error: str | None = None) -> None:
        """Note that a trial is `done` or `failed`, with the error's text."""
        with self._write() as db:
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
        """`note_step` and `note_trial` for many at once: (trial, position, how) and (trial, status, error)."""
        with self._write() as db:
            db.executemany(
                "UPDATE plan SET how = ? WHERE run = ? AND trial = ? AND position = ?",
                [(how, run, trial, position) for trial, position, how in steps],
            )
            db.executemany(
                "UPDATE trials SET status = ?, error = ? WHERE run = ? AND trial = ?",
                [(st, None if error is None else clean(error), run, trial) for trial, st, error in trials],
            )

    def timings(self) -> list[tuple[str, dict[str, Any], float, dict[str, Any]]]:
        """(kind, options, seconds, the recipe of a run it belongs to) of every step ever computed."""
        rows = self._read(
            "SELECT steps.kind, steps.options, steps.seconds, runs.recipe FROM steps "
            "JOIN (SELECT key, MAX(run) AS run FROM plan GROUP BY key) AS last ON last.key = steps.key "
            "JOIN runs ON runs.id = last.run"
        )
        return [
            (row["kind"], json.loads(row["options"]), row["seconds"], json.loads(row["recipe"]))
            for row in rows
        ]

    def finish_run(self, run: int, status: str, seconds: float) -> None:
        """Note that a run is over."""
        with self._write() as db:
            db.execute(
                "UPDATE runs SET status = ?, seconds = ?, finished = ? WHERE id = ?",
                (status, seconds, now(), run),
            )

    def runs(self) -> list[RunRow]:
        """Every run, the oldest first. A run whose process is gone without a word is `interrupted`."""
        self._mark_dead()
        rows = self._read(
            "SELECT runs.*, "
            "(SELECT COUNT(*) FROM trials WHERE run = runs.id) AS trials, "
            "(SELECT COUNT(*) FROM trials WHERE run = runs.id AND status = 'failed') AS failed, "
            "(SELECT COUNT(*) FROM plan WHERE run = runs.id) AS steps, "
            "(SELECT COUNT(DISTINCT key) FROM plan WHERE run = runs.id AND how = 'computed') AS computed "
            "FROM runs ORDER BY id"
        )
        return [
            RunRow(
                id=row["id"],
                name=row["name"],
                status=row["status"],
                started=row["started"],
                seconds=row["seconds"],
                trials=row["trials"],
                failed=row["failed"],
                steps=row["steps"],
                computed=row["computed"],
                seed=row["seed"],
                device=row["device"],
                command=row["command"],
                recipe=json.loads(row["recipe"]),
                versions=json.loads(row["versions"]),
                hardware=json.loads(row["hardware"]),
            )
            for row in rows
        ]

    def run(self, which: int | str = "last") -> RunRow:
        """One run by its number, or the `last` one."""
        rows = self.runs()
        if not rows:
            raise StoreError("the store holds no run yet; start one with `secateur run RECIPE.toml`")
        if which == "last":
            return rows[-1]
        for row in rows:
            if str(row.id) == str(which):
                return row
        raise UnknownNameError(
            f"no run {which!r} in this store: runs {rows[0].id} to {rows[-1].id} are there"
        )

    def trials(self, run: int) -> list[dict[str, Any]]:
        """Per trial of a run: settings, status, error, and its steps: label, kind, key, how, device, precision."""
        steps: dict[int, list[dict[str, Any]]] = {}
        query = (
            "SELECT plan.*, steps.seconds, steps.finished, steps.provenance, steps.options FROM plan "
            "LEFT JOIN steps ON steps.key = plan.key "
            "WHERE run = ? ORDER BY trial, position"
        )
        for row in self._read(query, run):
            steps.setdefault(row["trial"], []).append(
                {name: row[name] for name in ("label", "kind", "key", "how", "seconds", "finished")}
                | {
                    "device": json.loads(row["provenance"] or "{}").get("device"),
                    "precision": json.loads(row["options"] or "{}").get("precision"),
                }
            )
        return [
            {
                "trial": row["trial"],
                "settings": json.loads(row["settings"]),
                "status": row["status"],
                "error": row["error"],
                "steps": steps.get(row["trial"], []),
            }
            for row in self._read("SELECT * FROM trials WHERE run = ? ORDER BY trial", run)
        ]

    def measurements(self, run: int) -> Measurements:
        """All Measurements of a run; their context names run, trial, variant (the step's label), seed and
        settings."""
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
                    found.append(Measurement.from_dict({**m.to_dict(), "context": context}))
        return Measurements(found)

    # -- freeing
    # -------------------------------------------------------------------------------------------------
    def _mark_dead(self) -> None:
        """Runs that say `running` but whose lock is free died: call them interrupted."""
        for row in self._read("SELECT id FROM runs WHERE status = 'running'"):
            lock = FileLock(self._run_lock(row["id"]))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                with self._write() as db:
                    db.execute(
                        "UPDATE runs SET status = 'interrupted' WHERE id = ? AND status = 'running'",
                        (row["id"],),
                    )
            finally:
                lock.release()

    def gc(self, *, keep: int | None = None, dry_run: bool = False) -> dict[str, int]:
        """Free what nothing refers to: steps of no run, objects of no step, checkpoints and locks of the
        dead.

        `keep` first forgets all but the newest runs. Refused while a run is alive. Returns how much went.
        """
        with FileLock(self.folder / "locks" / "store.lock"):
            runs = self.runs()
            alive = [row.id for row in runs if row.status == "running"]
            if alive:
                raise StoreError(
                    f"run {alive[0]} is still running; wait for it, or stop it, then free the store"
                )
            forgotten = runs[: max(0, len(runs) - keep)] if keep is not None else []
            kept = {row.id for row in runs} - {row.id for row in forgotten}
            used = {row["key"] for row in self._read("SELECT run, key FROM plan") if row["run"] in kept}
            steps = self._read("SELECT key, state FROM steps")
            gone = [row["key"] for row in steps if row["key"] not in used]
            needed = {
                name for row in steps if row["key"] in used for name in objects_of(json.loads(row["state"]))
            }
            waste = [(name, size) for name, size in self.objects.names() if name not in needed]
            checkpoints = [path for path in (self.folder / "checkpoints").glob("*") if path.is_file()]
            freed = sum(size for _, size in waste) + sum(path.stat().st_size for path in checkpoints)
            if not dry_run:
                # Rows first: an object without a row is waste, a row without its object would be damage.
                with self._write() as db:
                    db.executemany("DELETE FROM runs WHERE id = ?", [(row.id,) for row in forgotten])
                    db.executemany("DELETE FROM steps WHERE key = ?", [(key,) for key in gone])
                for name, _ in waste:
                    self.objects.drop(name)
                for path in checkpoints:
                    path.unlink(missing_ok=True)
                freed += self.objects.sweep_scratch()
                for path in (self.folder / "locks").glob("*.lock"):
                    if path.name != "store.lock":
                        path.unlink(missing_ok=True)
                self._connect().execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return {"runs": len(forgotten), "steps": len(gone), "objects": len(waste), "bytes": freed}

"""`Database`: the store's SQLite file, opened so that an untrusted file can neither run code nor hang the process.

The tables must be exactly those that this version makes: a view, a trigger or another table is refused before any
query, because a query of it could have side effects. Every query has a time limit. What comes out is checked
for its type; text that should be JSON is parsed with `parsed`. Every fault raises a `StoreError`.

A store that cannot be written, such as one on a read-only disk, is read from a copy in a temporary folder.

>>> parsed('{"a": [1]}', "options of a step")
{'a': [1]}
>>> parsed("[" * 100_000, "options of a step")
Traceback (most recent call last):
secateur.errors.StoreError: options of a step: expected a table as JSON in the store, got text that is not JSON (...
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import stat
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from secateur.core.interrupts import uninterrupted
from secateur.errors import StoreError
from secateur.lab.outcomes import SCHEMA, VERSION, Table, problem_of
from secateur.lab.provenance import clean

__all__ = ["QUERY_SECONDS", "Database", "parsed", "typed"]

T = TypeVar("T")

QUERY_SECONDS = 60.0
"""The time limit of one query."""

_CHANGED = "the store is damaged or was changed; restore it from a copy, or name another folder with --store"
# Tables that other parts of secateur add to a store.
_OPTIONAL = (
    "CREATE TABLE search_log (id INTEGER PRIMARY KEY AUTOINCREMENT, study TEXT, entry TEXT)",
    "CREATE TABLE sqlite_sequence(name,seq)",
    "CREATE TABLE usage (run INTEGER PRIMARY KEY, samples TEXT)",
)


def parsed(text: object, what: str) -> Table:
    """A table that the store holds as JSON.

    Args:
        text: A value of a column.
        what: What it is, for the message.

    Returns:
        The table: plain data, at most `MOST_LEVELS` deep.

    Raises:
        StoreError: It is not such a table.
    """
    try:
        value = json.loads(typed(text, what, str))
        problem = problem_of(value)
    except (ValueError, RecursionError) as error:
        problem, value = f"{type(error).__name__}: {error}", None
    if problem or not isinstance(value, dict):
        got = f"text that is not JSON ({problem})" if problem else type(value).__name__
        raise StoreError(f"{what}: expected a table as JSON in the store, got {got}; {_CHANGED}")
    return value


def typed(value: object, what: str, kind: type[T]) -> T:
    """A value of a column that has the type it must have: SQLite lets a column hold values of any type.

    Args:
        value: The value; an integer also stands for a float.
        what: What it is, for the message.
        kind: The type.

    Returns:
        The value.

    Raises:
        StoreError: It has another type.
    """
    if kind is float and isinstance(value, int):
        return float(value)  # type: ignore[return-value]
    if not isinstance(value, kind):
        raise StoreError(
            f"{what}: expected {kind.__name__} in the store, got {type(value).__name__}; {_CHANGED}"
        )
    return value


class Database:
    """A SQLite database with a connection of its own in every thread.

    Args:
        path: The file.
        create: Make the tables where the file is new; else the file must be a store.
    """

    def __init__(self, path: Path, *, create: bool):
        self.path = path
        self.writable = True
        self._local = threading.local()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / "locks").mkdir(exist_ok=True)
            # One process makes the tables of a new database; the others wait.
            with FileLock(path.parent / "locks" / "store.lock"):
                self._open()
        except (PermissionError, OSError) as error:
            if create or not path.is_file():
                raise StoreError(
                    f"{clean(str(path.parent))}: the store cannot be written ({error.strerror}); name a writable "
                    "folder with --store"
                ) from error
            self._open_copy()

    def _open_copy(self) -> None:
        """Read from a copy: SQLite creates files beside a database even to read it.

        Its log lies beside the real file, where the name given is a link.
        """
        real = Path(os.path.realpath(self.path))
        folder = tempfile.mkdtemp(prefix="secateur-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        for file in (real, real.with_name(f"{real.name}-wal")):
            if file.is_file():
                shutil.copyfile(file, Path(folder) / file.name)
        self.path, self.writable = Path(folder) / real.name, False
        self._open()

    def _open(self) -> None:
        """Make the tables of a new database; refuse one of another version or with other tables, and close it."""
        try:
            self._made_or_checked()
        except BaseException:
            self.close()
            raise

    def _made_or_checked(self) -> None:
        where = clean(str(self.path))
        try:
            db = self.connection()
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and not db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
                db.execute("PRAGMA journal_mode = WAL")
                db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
            elif version != VERSION:
                raise StoreError(
                    f"{where}: expected a run store of version {VERSION}, got version {version}; use the secateur that "
                    "wrote it, or another folder with --store"
                )
            found = [(row["name"], row["sql"]) for row in db.execute("SELECT name, sql FROM sqlite_master")]
        except (sqlite3.DatabaseError, ValueError) as error:
            raise StoreError(
                f"{where}: expected a secateur run store, but SQLite cannot read it ({error}); restore it from a copy, "
                "or name another folder with --store"
            ) from error
        allowed = {_squeezed(one) for one in (*SCHEMA.split(";"), *_OPTIONAL)}
        for name, sql in found:
            if sql is not None and _squeezed(sql) not in allowed:  # an index that SQLite makes has no text
                raise StoreError(
                    f"{where}: expected only the tables of a run store, got {name!r}, which no secateur of this "
                    f"version makes; {_CHANGED}"
                )

    def connection(self) -> sqlite3.Connection:
        """This thread's connection."""
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            _check_beside(self.path)
            db = sqlite3.connect(self.path, timeout=120, isolation_level=None)
            try:
                # First, before anything of the file's schema is used.
                db.execute("PRAGMA trusted_schema = OFF")
                db.execute("PRAGMA cell_size_check = ON")
                db.execute("PRAGMA mmap_size = 0")
                db.execute("PRAGMA busy_timeout = 120000")
                db.execute("PRAGMA synchronous = FULL")
                db.execute("PRAGMA foreign_keys = ON")
            except BaseException:
                db.close()
                raise
            db.row_factory = sqlite3.Row
            self._local.db = db
        return db

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection within a transaction: committed on leaving, rolled back after an error."""
        if not self.writable:
            raise StoreError(
                "this store cannot be written; copy it to a folder that can, and name that with --store"
            )
        try:
            db = self.connection()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # a full disk has ended it already
                    db.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as error:
            raise StoreError(
                f"{clean(str(self.path))}: expected to write to the store, but SQLite cannot ({error}); free some "
                "space, or repair the disk, and run the same command again: finished steps are kept"
            ) from error

    def rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        """The rows of a query.

        Args:
            query: SQL with question marks.
            values: The values of the question marks.

        Returns:
            The rows.

        Raises:
            StoreError: SQLite cannot read the file, or the query takes too long.
        """
        end = time.monotonic() + QUERY_SECONDS

        @uninterrupted  # SQLite would take an exception for a wish to end the query
        def too_long() -> bool:
            return time.monotonic() > end

        try:
            db = self.connection()
            db.set_progress_handler(too_long, 100_000)
            try:
                return db.execute(query, values).fetchall()
            finally:
                db.set_progress_handler(None, 0)
        except (sqlite3.Error, OverflowError, UnicodeError) as error:
            raise StoreError(
                f"{clean(str(self.path))}: SQLite cannot read it ({error}); {_CHANGED}"
            ) from error

    def close(self) -> None:
        """Close this thread's connection."""
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is not None:
            db.close()
            self._local.db = None


def _check_beside(path: Path) -> None:
    """Refuse a database whose files beside it would have SQLite write or delete other files.

    SQLite takes up what is called NAME-wal or NAME-journal: through a link it writes elsewhere, and when a journal ends
    with the name of a super-journal, which a transaction on several databases writes, it deletes the file of that name.

    Args:
        path: The database.
    """
    real = Path(os.path.realpath(path))
    for ending in ("-wal", "-shm", "-journal"):
        beside = real.with_name(real.name + ending)
        try:
            found = os.lstat(beside)
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise StoreError(
                f"{clean(str(beside))}: expected a plain file, found a link or a device; {_CHANGED}"
            )
        if ending == "-journal":
            with beside.open("rb") as file:
                file.seek(max(0, found.st_size - len(_SUPER)))
                if file.read() == _SUPER:
                    raise StoreError(
                        f"{clean(str(beside))}: expected the journal of a store, found one that names another file, "
                        f"which SQLite would delete; {_CHANGED}"
                    )


_SUPER = bytes.fromhex("d9d505f920a163d7")
"""The last bytes of a journal that ends with the name of a super-journal: https://sqlite.org/fileformat.html."""


def _squeezed(sql: str) -> str:
    """SQL text with single spaces, so that layout does not matter."""
    return " ".join(sql.replace("IF NOT EXISTS ", "").split())

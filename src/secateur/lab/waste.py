"""What a store holds and nothing refers to.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp())
>>> waste_of(Database(folder / "store.sqlite", create=True), Objects(folder / "objects"), folder / "checkpoints", [])
Waste(steps=[], objects=[], checkpoints=[], bytes=0)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from secateur.lab.database import Database, parsed
from secateur.lab.objects import Objects
from secateur.lab.outcomes import objects_of

__all__ = ["Waste", "waste_of"]


@dataclass(frozen=True)
class Waste:
    """What nothing refers to: keys of steps, names of objects, files of checkpoints, and the bytes they take."""

    steps: list[str]
    objects: list[str]
    checkpoints: list[Path]
    bytes: int


def waste_of(database: Database, objects: Objects, checkpoints: Path, forgotten: list[int]) -> Waste:
    """What no run refers to, once these runs are forgotten.

    Args:
        database: The store's database.
        objects: Its objects.
        checkpoints: The folder of its checkpoints.
        forgotten: The numbers of the runs.
    """
    used = {row["key"] for row in database.rows("SELECT run, key FROM plan") if row["run"] not in forgotten}
    steps = database.rows("SELECT key, state FROM steps")
    needed = {
        name
        for row in steps
        if row["key"] in used
        for name in objects_of(parsed(row["state"], "state of a step"))
    }
    loose = [(name, size) for name, size in objects.names() if name not in needed]
    files = [path for path in checkpoints.glob("*") if path.is_file()]
    return Waste(
        steps=[row["key"] for row in steps if row["key"] not in used],
        objects=[name for name, _ in loose],
        checkpoints=files,
        bytes=sum(size for _, size in loose) + sum(path.stat().st_size for path in files),
    )

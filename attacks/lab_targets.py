"""What is attacked in the lab and the datasets: recipes, stores, Parquet files, encoded images."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import sqlite3
from pathlib import Path

import pyarrow
import pyarrow.parquet
from PIL import Image

from attacks import trees
from attacks.folder_targets import joined, parted
from attacks.targets import Target, scratch
from secateur import data as datasets
from secateur.errors import SecateurError
from secateur.lab.engine import run
from secateur.lab.planning import plan
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store

_FOLDER = scratch("lab")
_DATA, _MODEL = {"name": "digits", "size": 28, "limit": 20}, {"name": "fc"}
_RAW = {
    "name": "small",
    "data": {**_DATA, "validation": 0.1, "seed": 3, "channels": 1},
    "model": {**_MODEL, "options": {"num_classes": 10}},
    "lab": {"seed": 1, "device": "cpu", "threads": 1},
    "step": [
        {
            "kind": "train",
            "epochs": 1,
            "lr": 0.1,
            "augment": {"crop": 2},
            "milestones": [],
            "betas": [0.9, 0.99],
        },
        {
            "kind": "prune",
            "budget": {"name": "overall", "sparsity": 0.5},
            "schedule": {"name": "iterative", "steps": 2},
        },
        {"kind": "share", "bits": 3, "per": "tensor", "options": {}},
        {"kind": "measure", "what": ["params"], "label": "end", "batch": [1, 2]},
    ],
    "grid": {
        "net": ["a", "b"],
        "prune.criterion": ["magnitude", "random"],
        "train.epochs": {"values": [1, 2], "when": {"net": "a"}},
    },
    "choice": {"net": {"a": {"lab.seed": 1}, "b": {"lab.seed": 2}}},
}


def _of(read: object) -> str:
    try:
        read()  # type: ignore[operator]
    except SecateurError as error:
        if not str(error):
            raise AssertionError("a refusal must say what is wrong") from error
        return "refused"
    return "taken"


def _toml(value: object) -> str:
    """A value in TOML, as far as it has one."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(k))} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value) if isinstance(value, str | bool | int | float) else '""'


def _make_recipe(rng: random.Random) -> bytes:
    tree = trees.mutate(_RAW, rng)
    if rng.random() < 0.5 or not isinstance(tree, dict):
        return trees.text_of(tree, rng).encode("utf-8", "surrogatepass")
    text = "\n".join(f"{json.dumps(str(key))} = {_toml(value)}" for key, value in tree.items())
    return (
        damaged(text.encode("utf-8", "surrogatepass"), rng)
        if rng.random() < 0.3
        else text.encode("utf-8", "replace")
    )


def _run_recipe(data: bytes) -> str:
    text = data.decode("utf-8", "replace")
    if not text.lstrip().startswith("{"):
        return _of(lambda: Recipe.parse(text).trials()[:2])
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        return "refused"  # a store reads JSON by `parsed`, which the target below attacks
    if not isinstance(raw, dict):
        return "refused"

    def read() -> None:
        Recipe.of(raw)
        fixed = {**raw, "data": _DATA, "model": _MODEL, "grid": {}, "choice": {}, "when": {}}
        fixed.pop("teacher", None)
        plan(Recipe.of(fixed), device="cpu")

    return _of(read)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut, repeated or inserted in a few places."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(out)) if out else 0
        what = rng.randrange(4)
        if what == 0 and out:
            out[at] = rng.randrange(256)
        elif what == 1:
            del out[at : at + rng.randint(1, 64)]
        elif what == 2:
            out[at:at] = out[at : at + rng.randint(1, 64)]
        else:
            out[at : at + 4] = rng.choice(
                [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0"]
            )
    return bytes(out)


# -- stores
def _honest_store() -> bytes:
    folder = _FOLDER / "honest"
    store = Store(folder)
    run(
        Recipe.parse('[data]\nlimit = 20\nsize = 28\n[model]\nname = "fc"\n[[step]]\nkind = "prune"\n'), store
    )
    store.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    return (folder / "store.sqlite").read_bytes()


_STORE = _honest_store()
_COLUMNS = [
    *(
        ("runs", name)
        for name in ("recipe", "versions", "hardware", "name", "status", "started", "seed", "seconds")
    ),
    *(("steps", name) for name in ("state", "options", "log", "provenance", "seconds", "kind", "finished")),
    *(("trials", name) for name in ("settings", "status", "error")),
    *(("plan", name) for name in ("label", "kind", "key", "how")),
    ("measurements", "whole"),
]


def _make_store(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return damaged(_STORE, rng)
    path = _FOLDER / "made.sqlite"
    path.write_bytes(_STORE)
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = DELETE")
        table, column = rng.choice(_COLUMNS)
        old = db.execute(f"SELECT {column} FROM {table}").fetchone()[0]
        new: object = rng.choice([None, b"\xff", -1, 1.5, "", "[" * 5000])
        if isinstance(old, str) and old.startswith("{") and rng.random() < 0.8:
            new = trees.text_of(trees.mutate(json.loads(old), rng), rng).encode("utf-8", "replace").decode()
        db.execute("PRAGMA foreign_keys = OFF")
        with contextlib.suppress(sqlite3.Error):  # a column that may not be null
            db.execute(f"UPDATE OR REPLACE {table} SET {column} = ?", (new,))
        db.execute("PRAGMA journal_mode = WAL")
    finally:
        db.close()
    return path.read_bytes()


def _run_store(data: bytes) -> str:
    folder = _FOLDER / "store"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "store.sqlite").write_bytes(data)

    return _of(lambda: read_store(folder))


def read_store(folder: Path) -> None:
    """What the commands that read a store read of it."""
    store = Store(folder, create=False)
    try:
        for row in store.runs():
            for trial in store.trials(row.id):
                for step in trial["steps"]:
                    store.outcome(step["key"])
            store.measurements(row.id)
        store.timings()
    finally:
        store.close()


# -- the files that SQLite takes up beside a store
def _honest_log() -> tuple[bytes, bytes]:
    """A store that a process has open, and the log of what is not in it yet."""
    folder = _FOLDER / "logged"
    folder.mkdir()
    (folder / "store.sqlite").write_bytes(_STORE)
    with contextlib.closing(sqlite3.connect(folder / "store.sqlite", isolation_level=None)) as db:
        db.execute("UPDATE runs SET name = 'logged'")
        return tuple((folder / f"store.sqlite{end}").read_bytes() for end in ("", "-wal"))  # type: ignore[return-value]


_LOGGED = _honest_log()
_VICTIM = _FOLDER / "victim"
_PAGE = int.from_bytes(_STORE[16:18], "big")
_MAGIC = bytes.fromhex("d9d505f920a163d7")


def _journal(rng: random.Random) -> bytes:
    """A journal of a transaction that was not finished, with the name of another file at its end, or damaged."""
    pages = rng.choice([1, len(_STORE) // _PAGE, 0, 2**31])
    numbers = (rng.choice([0, 1, 2**32 - 1]), 0, pages, 512, _PAGE)
    head = (_MAGIC + b"".join(number.to_bytes(4, "big") for number in numbers)).ljust(512, b"\0")
    name = str(_VICTIM).encode()
    last = (name, len(name).to_bytes(4, "big"), sum(name).to_bytes(4, "big"), _MAGIC)
    whole = head + ((1 << 30) // _PAGE + 1).to_bytes(4, "big") + b"".join(last)
    return whole if rng.random() < 0.3 else damaged(whole, rng)


def _make_logged(rng: random.Random) -> bytes:
    database, log = _LOGGED
    what = rng.randrange(3)
    if what == 0:
        return joined(_STORE if rng.randrange(2) else database, [b"", _journal(rng)])
    return joined(
        damaged(database, rng) if what == 1 and rng.randrange(2) else database, [damaged(log, rng), b""]
    )


def _run_logged(data: bytes) -> str:
    folder = _FOLDER / "beside"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    _VICTIM.write_bytes(b"precious")
    for ending, content in zip(("", "-wal", "-journal"), parted(data), strict=True):
        if content:
            (folder / f"store.sqlite{ending}").write_bytes(content)
    verdict = _of(lambda: read_store(folder))
    if not _VICTIM.is_file() or _VICTIM.read_bytes() != b"precious":
        raise AssertionError("a file outside the store was changed or deleted")
    return verdict


# -- datasets
def _image(kind: str) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((9, 7), 40).convert("RGB").save(file, kind)
    return file.getvalue()


_IMAGES = [_image(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP")]


def _table(images: list[bytes], labels: list[object]) -> bytes:
    file = io.BytesIO()
    found = pyarrow.table({"image": pyarrow.array(images, pyarrow.binary()), "label": labels})
    pyarrow.parquet.write_table(found, file)
    return file.getvalue()


_PARQUET = _table(_IMAGES[:1] * 10, [0, 1] * 5)


def _make_parquet(rng: random.Random) -> bytes:
    if rng.random() < 0.7:
        return damaged(_PARQUET, rng)
    labels = rng.choice([[0, 2**40], [0, -5], ["a", "b"], [0.5, 1.0], [None, 1], [True, False], [[1], [2]]])
    return _table([rng.choice(_IMAGES), damaged(rng.choice(_IMAGES), rng)], list(labels))


def _run_parquet(data: bytes) -> str:
    folder = _FOLDER / "parquet"
    folder.mkdir(exist_ok=True)
    (folder / "train.parquet").write_bytes(data)
    return _of(lambda: datasets.load(folder, size=8, cache_dir=_FOLDER / "cache"))


def _run_images(data: bytes) -> str:
    folder = _FOLDER / "images"
    for name, content in (("a/1.png", _IMAGES[0]), ("b/2.png", data)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    found = _of(lambda: datasets.load(folder, size=8, cache_dir=_FOLDER / "cache"))
    shutil.rmtree(_FOLDER / "cache", ignore_errors=True)
    return found


TARGETS = [
    Target("recipe", _make_recipe, _run_recipe),
    Target("store", _make_store, _run_store),
    Target("log of a store", _make_logged, _run_logged),
    Target("parquet", _make_parquet, _run_parquet),
    Target("images", lambda rng: damaged(rng.choice(_IMAGES), rng), _run_images),
]
HONEST = {
    "recipe": json.dumps(_RAW).encode(),
    "store": _STORE,
    "log of a store": joined(_LOGGED[0], [_LOGGED[1], b""]),
    "parquet": _PARQUET,
    "images": _IMAGES[1],
}

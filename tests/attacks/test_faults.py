"""A few kills, I/O errors and wants of memory in the middle of a run; `make faults` makes four hundred."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

_SAMPLE = """
import json, random, sys
from pathlib import Path
import torch
from attacks.faults import KINDS, Trial, errors, kills
torch.set_num_threads(1)
trial, chance = Trial(Path(sys.argv[1])), random.Random(1)
tables = [kills(trial, 3, chance), *(errors(trial, kind, 1, chance) for kind in KINDS if kind != "RLIMIT_AS")]
print(json.dumps([[t.kind, t.faults, t.other, t.foreign, t.leftovers] for t in tables]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to start runs quickly")
def test_after_kills_and_errors_a_run_comes_to_the_same_numbers_and_leaves_nothing(tmp_path):
    # In a process of its own, which has one thread: that is what makes a fork safe.
    done = subprocess.run(
        [sys.executable, "-c", _SAMPLE, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(kind, other, foreign, left) for kind, _, other, foreign, left in found] == [
        (kind, 0, [], [])
        for kind in (
            "SIGKILL",
            "write",
            "fsync",
            "rename",
            "open",
            "sqlite",
            "RLIMIT_FSIZE",
            "MemoryError",
        )
    ]
    assert all(faults >= 1 for _, faults, *_ in found)


def test_a_run_sweeps_what_a_killed_one_left_in_any_folder_of_the_store(tmp_path):
    from attacks.faults import RECIPE

    from secateur.core import atomic_files
    from secateur.lab.engine import run
    from secateur.lab.recipe import Recipe
    from secateur.lab.store import Store

    recipe = Recipe.parse(RECIPE.split('[[step]]\nkind = "prune"')[0])
    store = Store(tmp_path)
    run(recipe, store)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    name = f".secateur-{atomic_files._machine()}-{gone.pid}-{'0' * 32}.part"
    left = [tmp_path / "objects" / "ab" / name, tmp_path / "checkpoints" / name]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    key = store.rows("SELECT key FROM steps")[0]["key"]
    left.append(store.checkpoint(key))  # its process was killed between the outcome and this
    left[-1].write_bytes(b"of a step that is done")
    run(recipe, store)
    assert [path.exists() for path in left] == [False, False, False]

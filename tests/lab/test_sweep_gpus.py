"""GPUs shared out between processes; simulated, so that it is tested where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from attacks.tiny_recipe import tiny

from secateur.errors import OptionError
from secateur.lab.engine import local_engine, run
from secateur.lab.engines import gpus as sharing
from secateur.lab.engines.gpus import distributed, gpus_here
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store

TEXT = tiny(
    """
[[step]]
kind = "idle"
""",
    limit=50,
)


@pytest.mark.parametrize(
    ("jobs", "gpus", "each", "expected"),
    [
        (5, "01", None, "0 1 0 1 0"),
        (4, "0", 0.25, "0 0 0 0"),
        (10, "0", 0.1, "0 0 0 0 0 0 0 0 0 0"),  # ten times 0.1 is one, whatever a float says
        (3, "012", 0.5, "0 1 2"),  # evenly, before two share one
        (2, "0123", 2, "01 23"),
        (2, "01", 1, "0 1"),
    ],
)
def test_gpus_are_distributed(jobs, gpus, each, expected):
    assert ["".join(names) for names in distributed(jobs, list(gpus), each)] == expected.split()


@pytest.mark.parametrize(
    ("jobs", "gpus", "each", "words"),
    [
        (4, "0", 0.3, r"4 jobs of 0\.3 GPUs each: 1 GPU has room for 3"),
        (2, "012", 2, r"2 jobs of 2 GPUs each: 3 GPUs have room for 1"),
        (1, "", 0.5, r"1 jobs of 0\.5 GPUs each: 0 GPUs have room for 0"),
        (1, "0", 1.5, r"expected a fraction below 1 or a whole number, got 1\.5"),
        (1, "0", -1, "expected 0 or more, got -1"),
    ],
)
def test_more_than_there_is_is_refused(jobs, gpus, each, words):
    with pytest.raises(OptionError, match=words):
        distributed(jobs, list(gpus), each)


@pytest.mark.parametrize(
    ("told", "count", "expected"),
    [
        (None, 2, ["0", "1"]),
        ("2,5", 2, ["2", "5"]),
        ("GPU-a, GPU-b", 2, ["GPU-a", "GPU-b"]),
        ("0,9", 1, ["0"]),  # CUDA stops at the first that is not there
        ("", 0, []),
    ],
)
def test_gpus_go_by_the_names_this_process_was_told(monkeypatch, told, count, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if told is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert gpus_here() == expected


def test_a_gpu_named_by_its_number_is_everybodys(tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "gpus_here", lambda: ["0", "1"])
    store = Store(tmp_path)
    assert local_engine(store, 2)._gpus == [("0",), ("1",)]
    assert local_engine(store, 2, devices={"cuda:1"})._gpus == [(), ()]
    with pytest.raises(OptionError, match=r"0\.5 GPUs for each process, and the recipe's device is cpu"):
        local_engine(store, 2, devices={"cpu"}, gpus=0.5)


def test_a_share_of_gpus_needs_processes_that_share(tmp_path):
    with pytest.raises(
        OptionError, match=r"0\.5 says how processes share the GPUs, and there is one process"
    ):
        run(Recipe.parse(TEXT, grid=["idle.note=1,2"]), Store(tmp_path), gpus=0.5)


def small_study():
    """Three trials and then one more, which alone needs no other process."""
    from secateur.studies.running import planned
    from secateur.studies.study import Study

    text = (
        TEXT.replace('name = "tiny"', 'title = "Small"')
        + """
[[part]]
name = "many"
[part.grid]
"idle.note" = ["a", "b", "c"]
[[part]]
name = "alone"
set = {"idle.note" = "d"}
[scale.smoke]
about = "all of it"
"""
    )
    return planned(Study.parse(text, "vae"), "smoke")


def test_a_study_refuses_gpus_that_do_not_go_round_before_any_work(tmp_path, monkeypatch):
    from secateur.studies.running import carry_out

    monkeypatch.setattr(sharing, "gpus_here", lambda: ["0"])
    store = Store(tmp_path)
    with pytest.raises(OptionError, match=r"2 jobs of 1 GPUs each: 1 GPU has room for 1"):
        carry_out(small_study(), store, jobs=2, gpus=1)
    with pytest.raises(OptionError, match=r"there is one process; ask for several with jobs \(--jobs 2\)"):
        carry_out(small_study(), store, gpus=0.5)
    assert store.runs() == []


@pytest.mark.slow
def test_a_study_gives_every_process_its_share_of_gpus(tmp_path, monkeypatch):
    from secateur.studies.running import carry_out

    monkeypatch.setattr(sharing, "gpus_here", lambda: ["GPU-a", "GPU-b"])
    store = Store(tmp_path)
    done = carry_out(small_study(), store, jobs=3, gpus=0.5)
    assert done.failures == []
    seen = [store.outcome(key).provenance["visible_gpus"] for key in done.ran[0][1].plan.keys()]  # noqa: SIM118
    assert sorted(seen) == ["GPU-a", "GPU-a", "GPU-b"]


_SCRIPT = """
# Without `if __name__ == "__main__":` on purpose.
import json, sys
print("the script runs")
from secateur.lab.engine import run
from secateur.lab.engines import gpus
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store
gpus.gpus_here = lambda: ["GPU-a", "GPU-b"]
store = Store("runs")
ran = run(Recipe.parse(sys.argv[1], grid=["idle.note=1:3:1"]), store, jobs=3, gpus=0.5)
print(json.dumps([store.outcome(key).provenance["visible_gpus"] for key in ran.plan.keys()]))
"""


@pytest.mark.slow
def test_each_process_sees_its_gpus_alone_and_none_runs_the_script_again(tmp_path):
    (tmp_path / "script.py").write_text(_SCRIPT)
    env = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(
        [sys.executable, "script.py", TEXT],
        cwd=tmp_path,
        env=env | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said, shown = done.stdout.splitlines()
    assert said == "the script runs"
    # Three trials handed out at once: every process did one. Two share a GPU, and no trial saw both.
    assert sorted(json.loads(shown)) == ["GPU-a", "GPU-a", "GPU-b"]

"""Sweeps on one machine: conditional grids, previews, processes that fail, are killed or interrupted."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from attacks.tiny_recipe import tiny

from secateur.errors import OptionError, RecipeError
from secateur.lab.display.preview import preview
from secateur.lab.engine import run
from secateur.lab.engines.driving import forest
from secateur.lab.planning import plan
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store

TEXT = tiny(
    """
[[step]]
kind = "idle"
label = "common"
[[step]]
kind = "idle"
""",
    limit=50,
)


def notes(ran) -> list[tuple[int, float]]:
    return [(m.context["trial"], m.value) for m in ran.measurements if m.context["variant"] == "idle"]


def test_an_axis_with_a_condition_counts_only_where_it_holds():
    recipe = Recipe.parse(
        TEXT
        + "[grid]\n'common.note' = [1, 2]\n'idle.note' = {values = '5:7:1', when = {'common.note' = 2}}\n"
    )
    found = [settings for settings, _ in recipe.trials()]
    assert found == [{"common.note": 1}, *({"common.note": 2, "idle.note": n} for n in (5, 6, 7))]
    assert Recipe.of(recipe.plain()) == recipe
    line = Recipe.parse(TEXT, grid=["common.note=1,2", "idle.note=5:7:1 when common.note=2"])
    assert line.trials()[-1][0] == found[-1]


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        (["idle.note=1 when common.note=1"], "depends on 'common.note', which is no axis"),
        (
            ["common.note=1,2", "idle.note=1 when common.note=3"],
            r"being 3, which it never is; its values are 1, 2",
        ),
        (
            ["idle.note=1 when common.note=1", "common.note=1"],
            "which comes after it; put 'common.note' first",
        ),
        (["common.note=1", "idle.note=1 when nonsense"], "expected when KEY=VALUE"),
        (["idle.note=5:1:1"], "expected first <= last and step > 0"),
    ],
)
def test_a_condition_that_cannot_be_met_is_refused(axes, words):
    with pytest.raises(RecipeError, match=words):
        Recipe.parse(TEXT, grid=axes)


def test_the_preview_counts_what_is_shared_and_estimates_only_from_stored_times(tmp_path):
    store = Store(tmp_path)
    recipe = Recipe.parse(TEXT, ["idle.seconds=0.2"], ["idle.note=0:3:1"])
    before = preview(plan(recipe), store)
    assert (before.trials, before.steps, before.todo, before.shared, before.cached) == (4, 8, 5, 3, 0)
    assert before.unknown == (("idle", 5),)
    assert "no estimate of the time" in before.text()
    run(Recipe.parse(TEXT, ["idle.seconds=0.2"], ["idle.note=0,1"]), store)
    after = preview(plan(recipe), store)
    assert (after.todo, after.cached, after.unknown) == (2, 3, ())
    assert after.seconds > 0.0
    assert after.wall(2) >= after.longest


def test_seeds_are_trials_and_their_numbers_name_them(tmp_path):
    ran = run(Recipe.parse(TEXT, grid=["lab.seed=3:4:1"]), Store(tmp_path))
    assert [m.context["seed"] for m in ran.measurements if m.context["variant"] == "idle"] == [3, 4]


@pytest.mark.slow
def test_two_processes_share_work_a_failure_takes_nothing_along_and_a_killed_worker_is_replaced(tmp_path):
    text = (
        TEXT
        + "[grid]\n'idle.note' = [0, 1, 2]\n'idle.fail' = {values = [false, true], when = {'idle.note' = 1}}\n"
    )
    recipe = Recipe.parse(text, ["common.seconds=4"])
    following, users = forest(plan(recipe))
    common = plan(recipe).keys()[0]
    assert (len(users), len(users[common]), [node.key for node in following[""]]) == (5, 4, [common])
    killed = []

    def kill_a_worker() -> None:
        # The shared step sleeps four seconds in the one worker there is by then.
        end = time.monotonic() + 60
        while not killed and time.monotonic() < end:
            if Store(tmp_path).trials(1)[0]["status"] == "running":
                for child in psutil.Process().children(recursive=True):
                    if "spawn_main" in " ".join(child.cmdline()):
                        child.kill()
                        killed.append(child.pid)
            time.sleep(0.1)

    thread = threading.Thread(target=kill_a_worker)
    Store(tmp_path)
    timer = threading.Timer(0.5, thread.start)
    timer.start()
    ran = run(recipe, Store(tmp_path), jobs=2)
    thread.join()
    assert killed
    assert [index for index, _ in ran.failures] == [2]
    assert [trial["status"] for trial in Store(tmp_path).trials(1)] == ["done", "done", "failed", "done"]
    error = Store(tmp_path).trials(1)[2]["error"]
    assert error.startswith("idle: idle: asked to fail")
    assert "Traceback (most recent call last)" in error
    assert notes(ran) == [(0, 0.0), (1, 1.0), (3, 2.0)]
    assert ran.computed == 4
    assert not [
        c for c in psutil.Process().children(recursive=True) if c.pid in killed or "spawn_main" in str(c)
    ]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends an interrupt as a terminal does")
def test_an_interrupted_sweep_leaves_no_process_and_goes_on(tmp_path):
    (tmp_path / "r.toml").write_text(TEXT)
    words = ["sweep", "r.toml", "--grid", "idle.note=0:3:1", "--set", "idle.seconds=1.5", "--jobs", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "secateur.cli", *words]
    with subprocess.Popen(
        command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, start_new_session=True
    ) as sweep:
        end = time.monotonic() + 90
        while time.monotonic() < end:  # two of the five steps are there, others under way
            if (tmp_path / "runs" / "store.sqlite").is_file():
                rows = Store(tmp_path / "runs").rows("SELECT COUNT(*) FROM steps")
                if rows[0][0] >= 2:
                    break
            time.sleep(0.1)
        family = psutil.Process(sweep.pid).children(recursive=True)
        os.killpg(sweep.pid, signal.SIGINT)
        _, said = sweep.communicate(timeout=60)
    assert sweep.returncode == 130, said.decode()
    assert b"Traceback" not in said
    assert b"the same command continues from there" in said
    assert psutil.wait_procs(family, timeout=10)[1] == []
    store = Store(tmp_path / "runs")
    assert store.run(1).status == "interrupted"
    done = store.rows("SELECT COUNT(*) FROM steps")[0][0]
    assert 2 <= done < 5
    again = run(Recipe.parse(TEXT, ["idle.seconds=1.5"], ["idle.note=0:3:1"]), store)
    assert (again.computed, again.cached) == (5 - done, done)


def test_the_live_table_shows_trial_step_progress_and_best():
    from rich.console import Console

    from secateur.lab.display.live_table import LiveTable

    console = Console(file=io.StringIO(), width=120)
    table = LiveTable(console)
    table.begin(3, 6, 1)
    table.plan([{"prune.budget": 0.5}, {"prune.budget": 0.9}, {}])
    table.start(1, "retrain")
    table.epoch(1, "epoch 2/5  loss 0.100")
    table.found(0, {"accuracy": 0.75})
    table.finished(0)
    table.failed(2, "prune", "[no] such")
    table.end()
    console.print(table.draw())
    text = console.file.getvalue()
    for words in ("budget=0.9", "retrain", "epoch 2/5", "1 of 3 trials", "1 failed"):
        assert words in text
    assert "best accuracy 75.00% (trial 1)" in text
    assert "failed trial 3, prune: [no] such" in text


def test_options_of_a_cluster_are_refused_without_one():
    from secateur.cli.cluster import ClusterFlags

    with pytest.raises(OptionError, match=r"--memory 4: belongs to --engine ray"):
        ClusterFlags(gpus=0.5, memory=4).cluster()
    assert ClusterFlags(gpus=0.5).cluster() is None, "processes here share GPUs without a cluster"

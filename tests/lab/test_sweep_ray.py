"""The Ray engine with real Ray processes: the same Measurements as here, also when a worker is killed."""

from __future__ import annotations

import logging
import threading
import time

import psutil
import pytest
from attacks.tiny_recipe import tiny

from secateur.errors import OptionError, StoreError
from secateur.lab.engine import run
from secateur.lab.planning import plan
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store

ray = pytest.importorskip(
    "ray", reason="RAY IS NOT INSTALLED: the Ray engine is not tested here; pip install 'secateur[ray]'"
)
pytestmark = pytest.mark.ray

TEXT = tiny("""
device = "cpu"
[[step]]
kind = "train"
epochs = 1
lr = 0.05
[[step]]
kind = "idle"
seconds = 4
[[step]]
kind = "prune"
budget = 0.5
[[step]]
kind = "retrain"
epochs = 1
teacher = "train"
distill_alpha = 0.5
[[step]]
kind = "measure"
what = ["params", "sparsity", "accuracy"]
[grid]
"prune.criterion" = ["magnitude", "random"]
"idle.fail" = {values = [false, true], when = {"prune.criterion" = "random"}}
""")


@pytest.fixture
def cluster():
    yield
    ray.shutdown()


@pytest.mark.slow
def test_ray_gives_the_same_measurements_also_when_a_worker_is_killed(tmp_path, cluster):
    from secateur.lab.engines.ray import Needs, RayEngine

    # The axis comes after the step that idles, so the sleeping step of the good trials is one and the same.
    recipe = Recipe.parse(TEXT)
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    locally = run(Recipe.parse(TEXT, ["idle.seconds=4"]), here)
    engine = RayEngine(there, needs=Needs(cpus=1), jobs=2)
    killed: list[int] = []
    kept_before: list[int] = []

    def kill_the_worker_that_idles() -> None:
        end = time.monotonic() + 60
        while not killed and time.monotonic() < end:
            if there.rows("SELECT 1 FROM steps WHERE kind = 'train'"):
                time.sleep(1)
                kept_before.append(there.rows("SELECT COUNT(*) FROM steps")[0][0])
                for process in psutil.Process().children(recursive=True):
                    if process.name().startswith("ray::secateur") or "ray::secateur" in " ".join(
                        process.cmdline()
                    ):
                        process.kill()
                        killed.append(process.pid)
            time.sleep(0.1)

    thread = threading.Thread(target=kill_the_worker_that_idles)
    thread.start()
    ran = run(recipe, there, engine=engine)
    thread.join()
    assert killed
    assert kept_before == [1]  # the training was kept, and not begun again
    assert ran.computed == locally.computed
    assert ran.failures == locally.failures
    assert [index for index, _ in ran.failures] == [2]
    assert "Traceback" in there.trials(1)[2]["error"]
    assert ran.measurements.to_json() == locally.measurements.to_json()
    for trial in plan(recipe).trials[:2]:
        for step in trial.steps:
            assert dict(there.outcome(step.key).state) == dict(here.outcome(step.key).state)
    assert not ray.is_initialized()


def test_a_cluster_that_does_not_start_says_what_to_do(tmp_path, monkeypatch):
    from secateur.lab.engines.ray import RayEngine

    def fail(**_):
        raise Exception("the current node timed out during startup")

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(
        StoreError, match=r"Ray did not start here \(the current node timed out.*`ray start --head`"
    ):
        RayEngine(Store(tmp_path), jobs=1)


def test_rays_line_about_its_token_is_left_out_and_its_warning_is_not(monkeypatch):
    import ray

    from secateur.lab.engines.ray import RayEngine

    setup = pytest.importorskip(
        "ray._private.authentication.authentication_token_setup",
        reason="NOT TESTED: this Ray says no such line",
    )
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage().split(".")[0])
    setup.logger.addHandler(handler)

    def starts(*words, **options):
        setup._warn_token_auth_enabled()
        setup._warn_token_auth_disabled()
        raise ConnectionError("no further")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", starts)
    try:
        with pytest.raises(StoreError, match="no Ray cluster answers"):
            RayEngine(Store.__new__(Store), address="here")
        assert said == ["Token authentication is disabled for this Ray cluster"]
        setup._warn_token_auth_enabled()
        assert len(said) == 2
    finally:
        setup.logger.removeHandler(handler)


def test_needs_of_a_trial_are_checked(tmp_path, cluster):
    from secateur.lab.engines.ray import Needs, RayEngine

    with pytest.raises(OptionError, match="a step needs 99 GPU, and the whole cluster has 0"):
        RayEngine(Store(tmp_path), needs=Needs(gpus=99), jobs=1)
    assert not ray.is_initialized()

"""A machine of the cluster is lost in the middle of a training: another goes on from the last whole epoch."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import pytest

from secateur.lab.engine import run
from secateur.lab.planning import plan
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store

ray = pytest.importorskip(
    "ray", reason="RAY IS NOT INSTALLED: the Ray engine is not tested here; pip install 'secateur[ray]'"
)
pytestmark = [pytest.mark.ray, pytest.mark.slow]

# A model that writes down every step of every training, so that work done twice is seen.
MODEL = """
import os, time
import ray
import torch
from torch import nn

class Net(nn.Sequential):
    input_shape = (1, 28, 28)

    def training_loss(self, outputs, inputs, labels):
        if self.training:
            with open(os.environ["SEEN_STEPS"], "a") as file:
                file.write(f"{ray.get_runtime_context().get_node_id() if ray.is_initialized() else 'here'}\\n")
            time.sleep(0.25)
        return nn.functional.cross_entropy(outputs, labels)

def net():
    return Net(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 10))
"""

TEXT = """
name = "tiny"
[data]
limit = 64
[model]
name = "watched:net"
[lab]
threads = 1
device = "cpu"
[[step]]
kind = "train"
epochs = 1
batch_size = 32
[[step]]
kind = "train"
label = "long"
epochs = 8
batch_size = 32
[[step]]
kind = "prune"
budget = 0.5
"""


@pytest.fixture
def cluster():
    from ray.cluster_utils import Cluster

    soon = {
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 4,
        "health_check_timeout_ms": 2000,
    }
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": soon})
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_lost_machine_costs_no_whole_epoch(tmp_path, monkeypatch, request):
    (tmp_path / "watched.py").write_text(MODEL)
    seen = tmp_path / "seen"
    monkeypatch.setenv("SEEN_STEPS", str(seen))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    cluster = request.getfixturevalue("cluster")  # after the environment, which its machines inherit
    from secateur.lab.engines.ray import Needs, RayEngine

    recipe = Recipe.parse(TEXT, allow_code=True)
    train, long, prune = plan(recipe).keys()
    store = Store(tmp_path / "runs")
    machines = {node.node_id: node for node in (cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1))}
    engine = RayEngine(store, address=cluster.address, needs=Needs(cpus=1))
    lost: list[str] = []

    def lose_the_machine() -> None:
        end = time.monotonic() + 120
        while not store.has(train) and time.monotonic() < end:
            time.sleep(0.02)
        # Two epochs of the long training written down, and the third begun.
        while len(seen.read_text().splitlines()) < 2 + 5 and time.monotonic() < end:
            time.sleep(0.02)
        if store.checkpoint(long).is_file():
            lost.append(seen.read_text().splitlines()[-1])
            with contextlib.suppress(AssertionError):  # that its processes are not gone within a moment
                cluster.remove_node(machines[lost[0]], allow_graceful=False)

    thread = threading.Thread(target=lose_the_machine)
    thread.start()
    ran = run(recipe, store, engine=engine)
    thread.join()
    assert lost
    assert (ran.computed, ran.failures) == (3, ())
    steps = seen.read_text().splitlines()
    (other,) = set(machines) - set(lost)
    assert steps[-1] == other
    # 2 steps of the first training and 16 of the long one; at most what was under way is done again.
    assert 18 <= len(steps) <= 18 + 3
    assert store.outcome(long).log["resumed_from"] >= 2
    assert not list(Path(store.folder, "checkpoints").iterdir())
    here = Store(tmp_path / "here")
    run(recipe, here)
    for key in (train, long, prune):
        assert dict(here.outcome(key).state) == dict(store.outcome(key).state)

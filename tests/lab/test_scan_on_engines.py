"""scan on the engines of sweeps: the same table as here, also when a process is killed or the scan is stopped."""

from __future__ import annotations

import json
import os
import pickle
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur.errors import DataError, OptionError
from secateur.lab.engines.worker_pool import WorkerPool
from secateur.sensitivity.scan import ScanOptions, scan

LEVELS = [0.25, 0.5, 0.75]


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4))
    return nn.Sequential(*layers)


@pytest.fixture
def batches():
    torch.manual_seed(1)
    return [(torch.randn(20, 3, 7, 7), torch.randint(0, 4, (20,))) for _ in range(3)]


@dataclass
class Spread:
    """An evaluation that kills its process once, or raises, in any process but the one it was made in."""

    batches: list
    flag: Path | None = None
    wrong: bool = False
    home: int = 0

    def __call__(self, model: nn.Module) -> float:
        if os.getpid() != self.home:
            if self.wrong:
                raise DataError("these images are no images")
            if self.flag is not None and not self.flag.exists():
                self.flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return float(sum(model(x).std() for x, _ in self.batches))


@pytest.mark.slow
def test_processes_of_the_local_engine_find_the_same_and_one_that_is_killed_is_replaced(
    model, batches, tmp_path
):
    file, seen = tmp_path / "scan.json", []
    one = scan(model, batches, "filter", LEVELS)
    crew = WorkerPool.local(jobs=2)
    two = scan(
        model,
        batches,
        "filter",
        LEVELS,
        options=ScanOptions(engine=crew, resume=file, progress=lambda *t: seen.append(t[:2])),
    )
    assert two == one
    assert two.how == "WorkerPool(2 processes here)"
    assert seen == [(i, 1 + len(one.cells)) for i in range(1, 2 + len(one.cells))]

    # half of the values gone, as if it had been stopped: the rest is found again
    kept = json.loads(file.read_text())
    kept["values"] = dict(list(kept["values"].items())[:5])
    file.write_text(json.dumps(kept))
    assert (
        scan(
            model,
            batches,
            "filter",
            LEVELS,
            options=ScanOptions(engine=WorkerPool.local(jobs=1), resume=file),
        )
        == one
    )

    plain = scan(model, Spread(batches), "filter", LEVELS)
    deadly = Spread(batches, tmp_path / "killed", home=os.getpid())
    assert (
        scan(model, deadly, "filter", LEVELS, options=ScanOptions(engine=WorkerPool.local(jobs=1))) == plain
    )
    assert deadly.flag.exists()


@pytest.mark.slow
def test_an_error_of_the_evaluation_arrives_as_it_is(model, batches):
    with pytest.raises(DataError, match="these images are no images"):
        scan(
            model,
            Spread(batches, wrong=True, home=os.getpid()),
            "filter",
            LEVELS,
            options=ScanOptions(engine=WorkerPool.local(jobs=1)),
        )


def test_what_cannot_be_shared_out_is_refused(model, batches):
    with pytest.raises(OptionError, match="define them at the top of a module, or leave the engine out"):
        scan(model, lambda model: 0.5, "filter", LEVELS, options=ScanOptions(engine=WorkerPool.local(jobs=1)))
    with pytest.raises(OptionError, match="workers and engine both distribute the layers"):
        scan(
            model, batches, "filter", LEVELS, options=ScanOptions(workers=2, engine=WorkerPool.local(jobs=1))
        )
    with pytest.raises(OptionError, match="jobs: expected at least 1, got 0"):
        WorkerPool.local(jobs=0)


@pytest.mark.slow
@pytest.mark.ray
def test_a_ray_cluster_finds_the_same(model, batches):
    ray = pytest.importorskip("ray", reason="RAY IS NOT INSTALLED: a scan on Ray is not tested here")
    one = scan(model, batches, "filter", LEVELS)
    try:
        assert (
            scan(model, batches, "filter", LEVELS, options=ScanOptions(engine=WorkerPool.ray(jobs=2))) == one
        )
        assert not ray.is_initialized()
    finally:
        ray.shutdown()


def test_what_a_worker_of_a_cluster_returns():
    """Every value, and how it ended: the error itself where it can travel, its words where it cannot."""
    from secateur.lab.engines.ray import _call

    def told(value, error=None):
        yield value
        if error is not None:
            raise error

    threads = torch.get_num_threads()
    fine = _call("a", told, pickle.dumps((1,)), pickle.dumps(()), threads)
    assert [(event.what, event.key, event.value) for event in fine] == [
        ("value", "a", 1),
        ("done", "a", None),
    ]
    wrong = _call("b", told, pickle.dumps((2,)), pickle.dumps((DataError("no images"),)), threads)
    assert [(event.what, event.value) for event in wrong[:-1]] == [("value", 2)]
    assert (wrong[-1].what, wrong[-1].text, type(wrong[-1].value)) == ("failed", "no images", DataError)
    assert "Traceback" in wrong[-1].trace


def test_a_part_that_is_begun_again_tells_each_value_once(model, batches):
    """As after a killed worker: what had been told before comes once more."""

    class Twice:
        slots = 1

        def each(self, function, common, parts):
            for part in parts:
                found = list(function(*common, *part))
                yield from [found[0], *found]

    seen = []
    one = scan(model, batches, "filter", LEVELS)
    two = scan(
        model,
        batches,
        "filter",
        LEVELS,
        options=ScanOptions(engine=Twice(), progress=lambda *t: seen.append(t[0])),
    )
    assert two == one
    assert seen == list(range(1, 2 + len(one.cells)))

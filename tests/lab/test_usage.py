"""Use of the machine over time: sampled while trials run, kept with the run, drawn in its report."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
import time

import pytest

from secateur.core.measurement import Measurement, Measurements
from secateur.errors import StoreError
from secateur.lab import engine
from secateur.lab import usage as usages
from secateur.lab.engine import run
from secateur.lab.recipe import Recipe
from secateur.lab.reporting import gather
from secateur.lab.store import Store
from secateur.lab.usage import MOST, Usage, gpus, machine
from secateur.report.charts.usage import usage as chart

RECIPE = """
data = {name = "digits", limit = 20}
model = {name = "fc"}
step = [{kind = "idle", seconds = 0.0}]
grid = {"idle.seconds" = [0.41, 0.42, 0.43, 0.44]}
"""


def test_a_long_run_is_sampled_less_often_and_over_its_whole_time() -> None:
    usage = Usage(interval=1.0, readers=(lambda: {"processors": 0.25},))
    for second in range(3 * MOST):
        usage.sample(float(second))
    found = usage.measurements()
    assert [item.context["what"] for item in found] == ["processors"]
    seconds = found[0].context["seconds"]
    assert len(seconds) < MOST
    assert (seconds[0], seconds[-1]) == (0.0, 3 * MOST - 2)  # halving drops the last
    assert seconds == sorted(seconds)
    assert usage.interval > 1.0


def test_trials_at_once_are_kept_where_there_were_several_and_too_few_samples_are_none() -> None:
    usage = Usage(readers=(lambda: {"processors": 0.5, "GPU 0": 0.75, "memory of GPU 0": 2.0},))
    for second, running in enumerate((1, 2, 2, 1)):
        assert len(usage.measurements()) == (0 if second < 3 else 4)
        usage.running = running
        usage.sample(float(second))
    found = {item.context["what"]: item for item in usage.measurements()}
    assert found["trials"].context["values"] == [1, 2, 2, 1]
    assert found["trials"].value == 1.5
    assert (found["memory of GPU 0"].unit, found["GPU 0"].unit) == ("GiB", "")
    figures = chart(usage.measurements())
    assert [figure.name for figure in figures] == ["usage-busy", "usage-memory", "usage-trials"]
    assert {row[0] for row in figures[0].table.rows} == {"processors", "GPU 0"}
    assert figures[1].table.rows[0] == ("memory of GPU 0", 0.0, 2.0)


def test_nothing_is_sampled_while_a_time_is_measured_and_a_reader_that_fails_ends_it() -> None:
    taken: list[float] = []

    def read() -> dict[str, float]:
        taken.append(time.monotonic())
        if len(taken) == 5:
            raise OSError("the driver is gone")
        return {"processors": 1.0}

    usage = Usage(interval=0.002, readers=(read,))
    with usage.taken():
        with usage.paused():
            before = len(taken)
            time.sleep(0.05)
            assert len(taken) <= before + 1  # a sample that had begun may end
        with usage.paused(timed=False):
            deadline = time.monotonic() + 20
            while len(taken) < 5 and time.monotonic() < deadline:
                time.sleep(0.002)
    assert len(taken) == 5
    assert len(usage.measurements()[0].context["values"]) == 4


@pytest.mark.parametrize("reason", [RuntimeError("can't start new thread"), MemoryError()])
def test_where_the_system_gives_no_thread_a_run_goes_on_without_samples(reason, monkeypatch) -> None:
    def refused(*_: object) -> int:
        raise reason

    monkeypatch.setattr(usages._thread, "start_new_thread", refused)
    done = False
    with Usage(interval=0.001, readers=(lambda: {"processors": 1.0},)).taken() as usage:
        done = True
    assert done
    assert not usage.measurements()


_NO_MEMORY = """
import resource, time, _thread
from secateur.lab.usage import Usage

_thread.stack_size(1 << 18)
for slack in range(0, (1 << 18) + (1 << 16), 1 << 12):  # from too little for a stack to enough for all
    usage = Usage(interval=0.001, readers=(lambda: {"processors": 1.0},))
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + slack, resource.RLIM_INFINITY))
    with usage.taken():
        time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print("went on")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for the size of the process")
def test_a_thread_that_finds_no_memory_when_it_begins_says_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _NO_MEMORY],
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("went on\n", "")


def test_nothing_is_sampled_when_the_block_has_ended() -> None:
    reading = threading.Event()

    def read() -> dict[str, float]:
        reading.set()
        time.sleep(0.05)
        return {"processors": 1.0}

    usage = Usage(interval=0.001, readers=(read,))
    with usage.taken():
        assert reading.wait(20)
    kept = len(usage._rows)
    assert kept >= 1  # the one that was being taken
    time.sleep(0.1)
    assert len(usage._rows) == kept


def test_this_machine_can_be_read() -> None:
    found = machine()()
    assert 0 <= found["processors"] <= 1
    assert 0.01 < found["memory"] < 1000
    if (read := gpus()) is not None:
        assert all(value >= 0 for value in read().values())


def test_a_run_keeps_its_samples_and_its_report_draws_them(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = functools.partial(Usage, interval=0.05, readers=(lambda: {"processors": 0.5, "memory": 0.1},))
    monkeypatch.setattr(engine, "Usage", quick)
    store = Store(tmp_path / "runs")
    ran = run(Recipe.parse(RECIPE), store, jobs=2)
    found = {item.context["what"]: item for item in store.usage(ran.run)}
    assert set(found) == {"processors", "memory", "trials"}
    assert max(found["trials"].context["values"]) == 2
    assert found["processors"].context["run"] == ran.run
    names = [figure.name for figure in chart(gather(store, pictures=False).measurements)]
    assert names == ["usage-busy", "usage-memory", "usage-trials"]
    assert "usage" not in {item.name for item in ran.measurements}
    store.gc(keep=0)
    assert not store.usage(ran.run)


def test_a_store_without_samples_has_none_and_changed_ones_are_refused(tmp_path) -> None:
    store = Store(tmp_path)
    assert not store.usage(1)
    store.keep_usage(1, Measurements())
    assert not store.usage(1)
    store.keep_usage(1, Measurements([Measurement("usage", 0.5, context={"what": "processors"})]))
    assert store.usage(1)[0].context == {"what": "processors", "run": 1}
    with store.transaction() as db:
        db.execute("UPDATE usage SET samples = '{\"measurements\": [3]}'")
    with pytest.raises(StoreError, match="usage of a run: expected dict in the store, got int"):
        store.usage(1)


def test_samples_that_are_no_numbers_are_left_out_of_the_chart() -> None:
    context = {"what": "processors", "seconds": [0.0, "x", 2.0], "values": [0.5, 0.5, None]}
    figures = chart(Measurements([Measurement("usage", 0.5, context=context)]))
    assert figures[0].table.rows == (("processors", 0.0, 0.5),)

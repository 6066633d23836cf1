"""Signals that come where Python would lose the exception they raise."""

from __future__ import annotations

import gc
import signal
import sys
import time
import weakref
from collections.abc import Iterator

import pytest

from secateur.core import interrupts
from secateur.core.interrupts import InterruptsDeferred
from secateur.lab import database
from secateur.lab.store import Store


class Deleted:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)


class Referred:
    def __init__(self):
        weakref.finalize(self, signal.raise_signal, signal.SIGINT)


class Watched:
    """What is called back is no function of the module `weakref`, so that a handler cannot see where it is."""

    def __init__(self):
        _references.append(weakref.ref(self, lambda reference: signal.raise_signal(signal.SIGINT)))


_references: list[object] = []


class Closed:
    """A generator that is closed when it is deleted."""

    def __init__(self):
        def steps() -> Iterator[int]:
            try:
                yield 1
            finally:
                signal.raise_signal(signal.SIGINT)

        self.steps = steps()
        next(self.steps)


class Circle(Closed):
    """The same in a circle of references, which the garbage collector breaks."""

    def __init__(self):
        super().__init__()
        self.itself = self


def let_go(held):
    held.clear()
    gc.collect()
    time.sleep(5)


@pytest.fixture
def interruptible():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kind", [Deleted, Referred, Watched, Closed, Circle], ids=lambda kind: kind.__name__)
def test_a_signal_in_a_callback_whose_errors_are_lost_comes_again_after_it(kind, interruptible, capsys):
    hook = sys.unraisablehook
    with InterruptsDeferred():
        held = [kind()]
        with pytest.raises(KeyboardInterrupt):
            let_go(held)
    assert sys.unraisablehook is hook
    assert "Exception ignored" not in capsys.readouterr().err


def test_an_error_that_no_signal_raised_goes_to_the_hook_that_was_there(monkeypatch, interruptible):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: seen.append(repr(dropped.exc_value)))

    class Failing:
        def __del__(self):
            raise ValueError("on purpose")

    with InterruptsDeferred(), InterruptsDeferred():
        Failing()
        gc.collect()
    assert seen == ["ValueError('on purpose')"]


def test_a_hook_that_is_set_within_the_block_stays(monkeypatch, interruptible):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    with InterruptsDeferred():
        sys.unraisablehook = print
    assert sys.unraisablehook is print


def test_ctrl_c_while_a_store_watches_a_long_query_is_no_fault_of_the_store(
    tmp_path, monkeypatch, interruptible
):
    store, sent = Store(tmp_path), []
    real = time.monotonic

    def now() -> float:
        if not sent and sys._getframe(1).f_code.co_name == "too_long":
            sent.append(1)
            signal.raise_signal(signal.SIGINT)
        return real()

    monkeypatch.setattr(database.time, "monotonic", now)
    query = "WITH RECURSIVE n(k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM n WHERE k < 300000) SELECT max(k) FROM n"
    found = []

    def ask() -> None:
        found.append(store.rows(query)[0][0])
        time.sleep(5)

    with InterruptsDeferred(), pytest.raises(KeyboardInterrupt):
        ask()
    assert sent
    assert found == [300000]
    store.close()


@pytest.mark.parametrize(
    ("worked", "waited", "ends"),
    [
        (
            100.0,
            5.0,
            True,
        ),  # twenty busy threads: the process has worked for long, this one for five seconds at most
        (5.0, 100.0, True),  # a busy machine
        (11.0, 11.0, False),
        (0.0, 121.0, False),  # it waits for ever
    ],
)
def test_restoring_is_cut_off_by_its_own_time_and_not_by_that_of_others(monkeypatch, worked, waited, ends):
    clock, real, came, ended = [0.0, 0.0], (time.process_time, time.monotonic), [], []

    def now():
        came.append(None)
        return real[1]() + clock[1]

    @interrupts.uninterrupted
    def restore():
        signal.raise_signal(signal.SIGINT)
        clock[:] = worked, waited
        for _ in range(3000):  # until the signal has come again several times, or ended this
            if len(came) > 4:
                break
            time.sleep(0.01)
        ended.append(True)

    def restore_and_wait():
        restore()
        time.sleep(30)

    before = signal.signal(signal.SIGINT, interrupts.deferring(signal.default_int_handler))
    monkeypatch.setattr(time, "process_time", lambda: real[0]() + clock[0])
    monkeypatch.setattr(time, "monotonic", now)
    try:
        with pytest.raises(KeyboardInterrupt):
            restore_and_wait()
        assert bool(ended) is ends
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs a signal to one thread")
def test_a_signal_that_was_deferred_ends_a_sleep(interruptible):
    @interrupts.uninterrupted
    def restore():
        signal.raise_signal(signal.SIGINT)

    def restore_and_sleep():
        restore()
        time.sleep(60)

    began = time.monotonic()
    with InterruptsDeferred(), pytest.raises(KeyboardInterrupt):
        restore_and_sleep()
    assert time.monotonic() - began < 50


@pytest.mark.parametrize("reason", [RuntimeError("can't start new thread"), MemoryError()])
def test_where_the_system_gives_no_thread_a_signal_waits_for_the_end_of_the_block(
    monkeypatch, reason, interruptible
):
    def refused(*_):
        raise reason

    @interrupts.uninterrupted
    def restore():
        signal.raise_signal(signal.SIGINT)
        done.append("restored")

    done = []
    monkeypatch.setattr(interrupts._thread, "start_new_thread", refused)

    def work():
        with InterruptsDeferred():
            with InterruptsDeferred():
                restore()
            done.append("went on")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["restored", "went on"]
    assert not interrupts._unsent


def test_restoring_that_waits_for_a_busy_machine_is_not_cut_off(monkeypatch):
    real, later, ended = time.monotonic, [0.0], []

    @interrupts.uninterrupted
    def restore(seconds):
        signal.raise_signal(signal.SIGINT)
        later[0] = seconds  # so much later is it, and the processor has done nothing for it
        for _ in range(30):  # the signal comes again and again
            time.sleep(0.01)
        ended.append(seconds)

    def restore_and_wait(seconds):
        restore(seconds)
        time.sleep(30)

    before = signal.signal(signal.SIGINT, interrupts.deferring(signal.default_int_handler))
    monkeypatch.setattr(time, "monotonic", lambda: real() + later[0])
    try:
        for seconds in (100, 1000):  # what waits for ever can be ended
            later[0] = 0.0
            with pytest.raises(KeyboardInterrupt):
                restore_and_wait(seconds)
            assert ended == [100]
    finally:
        signal.signal(signal.SIGINT, before)

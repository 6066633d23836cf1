"""Signals that come where Python would lose the exception they raise."""

from __future__ import annotations

import signal
import time
import weakref

import pytest

from secateur.core.interrupts import InterruptsDeferred


class Deleted:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)


class Referred:
    def __init__(self):
        weakref.finalize(self, signal.raise_signal, signal.SIGINT)


def let_go(held):
    held.clear()
    time.sleep(5)


@pytest.mark.parametrize("kind", [Deleted, Referred])
def test_a_signal_in_a_callback_whose_errors_are_lost_comes_again_after_it(kind):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with InterruptsDeferred():
            held = [kind()]
            with pytest.raises(KeyboardInterrupt):
                let_go(held)
    finally:
        signal.signal(signal.SIGINT, before)

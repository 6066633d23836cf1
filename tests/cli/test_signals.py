"""Commands that are ended by Ctrl-C, SIGTERM and SIGHUP at random instants; `python -m attacks.signals` sends more."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to start commands quickly")
@pytest.mark.parametrize("name", ["prune", "share", "pack", "unpack", "shrink", "scan"])
def test_a_command_that_is_ended_leaves_no_half_file_and_comes_to_the_same_when_it_is_run_again(name):
    # In a process of its own, which has one thread: that is what makes a fork safe. `auto` runs for longest, and is
    # attacked by `python -m attacks.signals` alone.
    done = subprocess.run(
        [sys.executable, "-m", "attacks.signals", "--each", "1", "--seed", "5", "--only", name],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "   3 signals in " in done.stdout


def test_a_signal_that_is_deferred_to_the_very_end_ends_the_command_all_the_same(tmp_path):
    code = """
import os, signal, sys
from secateur import cli
from secateur.core.interrupts import uninterrupted
signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not what this process was started with
@uninterrupted
def last():
    os.kill(os.getpid(), signal.SIGTERM)
cli._run = last  # the command's last deed
cli.main()
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 143

"""Commands that are ended by Ctrl-C, SIGTERM and SIGHUP at random instants: one signal each, in turn.

`python -m attacks.signals` sends each command all three, and more of them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to start commands quickly")
def test_a_command_that_is_ended_leaves_no_half_file_and_comes_to_the_same_when_it_is_run_again():
    # In a process of its own, which has one thread: that is what makes a fork safe. One for all commands: most of the
    # time goes into its imports.
    done = subprocess.run(
        [sys.executable, "-m", "attacks.signals", "--in-turn", "--each", "1", "--seed", "5"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("prune", "share", "pack", "unpack", "shrink", "scan", "auto"):
        assert re.search(rf"^{name} +1 signals in +[\d,]+ calls: 0 went wrong$", done.stdout, re.MULTILINE), (
            name
        )


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


@pytest.mark.parametrize("at", ["settle", "_run"])
def test_ctrl_c_at_the_very_end_or_before_anything_is_a_line_and_no_traceback(at):
    code = f"""
import os, signal, sys
from secateur import cli
from secateur.core import interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
def ended(*_):
    os.kill(os.getpid(), signal.SIGINT)
{"interrupts.settle" if at == "settle" else "cli._print_anything"} = ended
cli._run = lambda: None
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == (
        "error: interrupted; finished steps are kept, and the same command continues from there\n"
    )

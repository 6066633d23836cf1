"""A sweep as it is seen on a terminal, narrow and wide, and Ctrl-C typed at it."""

from __future__ import annotations

import os
import re
import struct
import sys
import time

import pytest
from attacks.tiny_recipe import tiny

from secateur.lab.store import Store

pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")

TEXT = tiny(
    """
device = "cpu"
[[step]]
kind = "train"
epochs = 2000
batch_size = 8
[[step]]
kind = "prune"
criterion = "magnitude"
budget = {name = "overall", sparsity = 0.5}
""",
    limit=50,
)
AXES = ("train.lr=0.05,0.01", "prune.budget.sparsity=0.5,0.9", "prune.criterion=magnitude,random")


def on_a_terminal(folder, width, interrupted_at):
    """(exit code, all that was shown) of a sweep on a terminal of that width, interrupted when that is shown."""
    import fcntl
    import select
    import termios

    words = ["sweep", "r.toml", "--jobs", "2", *(part for axis in AXES for part in ("--grid", axis))]
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
        env = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
            env.pop(name, None)
        os.execve(sys.executable, [sys.executable, "-m", "secateur.cli", *words], env)
    shown, end, typed = "", time.monotonic() + 180, False
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                shown += os.read(terminal, 65536).decode(errors="replace")
            except OSError:  # closed with the last process that had it open
                break
        if not typed and re.search(interrupted_at, shown):
            os.write(terminal, b"\x03")
            typed = True
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown


def rows(shown):
    """Every line ever drawn, without colours and movements of the cursor."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", plain).replace("\r", "\n")
    return [line.rstrip() for line in plain.split("\n") if line.strip()]


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 160])
def test_the_table_fits_its_terminal_and_ctrl_c_leaves_everything_resumable(tmp_path, width):
    (tmp_path / "r.toml").write_text(TEXT)
    code, shown = on_a_terminal(tmp_path, width, r"epoch \d{2,}/2000")
    lines = rows(shown)
    assert lines.pop(0) == "digits: images of 1x8x8 are given as 1x28x28, as lenet-300-100 takes them"
    assert code == 130, lines[-5:]
    drawn = [
        line for line in lines[2:] if not line.startswith("error: ")
    ]  # after the two lines of the preview
    assert max(map(len, drawn)) <= width
    assert lines[0].startswith("8 trials, 16 steps: 10 to run, 0 cached, 6 shared")
    assert any(re.match(r"trial +settings +step +progress +time", line) for line in lines)
    assert any(" starting " in line for line in lines)
    # What runs and how far is whole at any width; the settings are cut where there is no room.
    told = [line for line in lines if re.search(r" train +epoch \d+/2000  loss \d+\.\d{3}", line)]
    assert told, lines[-10:]
    assert all(re.match(r" +[15]  lr=0\.0[15], ", line) and re.search(r"\d (s|min)$", line) for line in told)
    # Either trial may be the first to draw a row, and Ctrl-C is typed at that moment.
    whole = [line for line in told if re.search(r"lr=0\.0[15], sparsity=0\.5, criterion=magnitude ", line)]
    assert bool(whole) == (width == 160)
    assert any(re.match(r"0 of 8 trials, 0 of 10 steps, \d+ s$", line) for line in lines)
    assert "interrupted; finished steps are kept" in lines[-1]
    assert "Traceback" not in shown
    store = Store(tmp_path / "runs")
    assert store.run(1).status == "interrupted"
    assert list((tmp_path / "runs" / "checkpoints").glob("*.ckpt"))  # both trainings go on from there

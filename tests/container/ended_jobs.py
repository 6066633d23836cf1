"""Runs of resumable verbs that end early: killed, or by Ctrl-C, after so many marks of their journal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from secateur.container.resuming import ResumableJob, resumable
from secateur.core.json_text import Json

_KILLED = """
import importlib, json, os, signal, sys
from pathlib import Path
from secateur.container import resuming
resuming._EVERY = 1
mark = resuming.ResumableJob.mark
def killing(self, done, rows, state=None):
    mark(self, done, rows, state)
    if done >= int(sys.argv[5]):
        os.kill(os.getpid(), signal.SIGKILL)
resuming.ResumableJob.mark = killing
verb = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])
verb(Path(sys.argv[3]), Path(sys.argv[4]), **json.loads(sys.argv[6]))
"""


def kill(verb: str, source: Path, target: Path, done: int, **options: Json) -> None:
    """Run a verb (`package.module:function`) in another process, which is killed when so many tensors are marked."""
    module, _, name = verb.partition(":")
    command = [sys.executable, "-c", _KILLED, module, name, str(source), str(target), str(done)]
    killed = subprocess.run([*command, json.dumps(options)], capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert not target.exists()


@contextmanager
def ended_by_ctrl_c(done: int) -> Iterator[None]:
    """A block in which Ctrl-C comes when so many blocks are marked, and must end what runs."""
    mark = ResumableJob.mark

    def interrupted(job: ResumableJob, marked: int, rows: list[dict[str, Json]]) -> None:
        mark(job, marked, rows)
        if marked == done:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ResumableJob, "mark", interrupted)
        with pytest.raises(KeyboardInterrupt):
            yield


def left_by_ctrl_c(
    target: Path, fingerprint: str, done: int, state: dict[str, Json], files: Mapping[str, bytes]
) -> None:
    """Leave what Ctrl-C leaves after so many tensors: a journal with this state, and these files beside it."""

    def begin() -> None:
        with resumable(target, fingerprint) as job:
            for name, content in files.items():
                (job.folder / name).parent.mkdir(exist_ok=True)
                (job.folder / name).write_bytes(content)
            job.mark(done, [], state)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin()

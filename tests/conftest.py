"""One thread per test process: the suite runs several processes side by side, and results must not depend on cores."""

import os
import runpy
import signal
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ["SECATEUR_RESULTS"] = ""  # a benchmark that a test runs records nothing


def pytest_configure(config):
    import torch

    torch.set_num_threads(1)
    # Started in the background, a shell's child ignores Ctrl-C and its own children inherit that; some are sent it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def torchvision():
    """torchvision, also where its compiled operators are of another build than torch."""
    runpy.run_path(str(Path(__file__).parent / "zoo" / "models.py"))["declare_torchvision"]()
    return pytest.importorskip("torchvision", exc_type=ImportError)

"""One thread per test process: the suite runs several processes side by side, and results must not depend on cores."""

import os
import runpy
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")


def pytest_configure(config):
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def torchvision():
    """torchvision, also where its compiled operators are of another build than torch."""
    runpy.run_path(str(Path(__file__).parent / "zoo" / "models.py"))["declare_torchvision"]()
    return pytest.importorskip("torchvision", exc_type=ImportError)

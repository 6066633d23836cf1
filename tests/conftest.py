"""One thread per test process: the suite runs several processes side by side, and results must not depend on cores.

Property tests draw the same examples every time, so that a change is judged by what it changes; others are drawn with
`pytest --hypothesis-profile=random`.
"""

import os
import runpy
import signal
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("random", settings(derandomize=False))
settings.register_profile("fixed", settings(derandomize=True))
settings.load_profile("fixed")

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ["SECATEUR_RESULTS"] = ""  # a benchmark that a test runs records nothing


def pytest_configure(config):
    import torch

    torch.set_num_threads(1)
    # Started in the background, a shell's child ignores Ctrl-C and its own children inherit that; some are sent it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def without_bfloat16(monkeypatch):
    """A processor of the x86 kind without instructions for bfloat16."""
    import platform

    import torch

    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)


@pytest.fixture(scope="session")
def torchvision():
    """torchvision, also where its compiled operators are of another build than torch."""
    runpy.run_path(str(Path(__file__).parent / "zoo" / "models.py"))["declare_torchvision"]()
    return pytest.importorskip("torchvision", exc_type=ImportError)

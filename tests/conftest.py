"""One thread per test process: the suite runs several processes side by side, and results must not depend on cores."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")


def pytest_configure(config):
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def torchvision():
    """torchvision; its compiled operators may be of another build than torch, but importing it asks for
    schemas only."""
    import torch

    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch.ops.torchvision._kept = library  # its schemas live as long as it does
    return pytest.importorskip("torchvision", exc_type=ImportError)

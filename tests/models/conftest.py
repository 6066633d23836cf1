"""What the tests of this folder share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def torchvision():
    """torchvision; its compiled operators may be of another build than torch, but importing it asks for
    schemas only."""
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch.ops.torchvision._kept = library  # its schemas live as long as it does
    return pytest.importorskip("torchvision", exc_type=ImportError)

"""A detector chooses its boxes by top-k and suppression: what it chooses from is proved."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import secateur as sc

sys.path.insert(0, str(Path(__file__).resolve().parent))

import models

pytestmark = pytest.mark.zoo


def test_a_detector_shrinks_with_boxes_to_show(torchvision: ModuleType) -> None:
    torch.manual_seed(0)
    detector = torchvision.models.detection.fcos_resnet50_fpn(
        weights=None, weights_backbone=None, min_size=64, max_size=64, score_thresh=0.0, detections_per_img=5
    )
    model = models.randomise(detector).eval()
    example = ([torch.rand(3, 64, 64)],)
    with torch.no_grad():
        assert len(model(*example)[0]["boxes"]) == 5
    masks = sc.prune(
        model, "l2", "channel", 0.5, example=example, options=sc.PruneOptions(allow_collapse=True)
    )
    options = sc.ProofOptions(("no_grad",), other_shapes=False)
    small = sc.shrink(model, masks, example, proof=options)
    assert small.proof.error < 1e-9
    assert small.proof.scale > 1e-6
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small.model))
    assert after < 0.3 * before

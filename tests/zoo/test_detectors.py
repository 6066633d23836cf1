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


DETECTORS = {
    "fcos_resnet50_fpn": 64,
    "retinanet_resnet50_fpn": 64,
    "ssdlite320_mobilenet_v3_large": 320,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 64,
    "maskrcnn_resnet50_fpn": 64,
    "keypointrcnn_resnet50_fpn": 64,
}


def _built(torchvision: ModuleType, name: str, edge: int) -> torch.nn.Module:
    """A detector with random weights that keeps boxes of any score."""
    options: dict[str, object] = {} if edge == 320 else {"min_size": edge, "max_size": edge}
    if "rcnn" in name:
        options |= {"box_score_thresh": 0.0, "box_detections_per_img": 5}
        options |= {"rpn_post_nms_top_n_test": 20, "rpn_pre_nms_top_n_test": 50}
    else:
        options |= {"score_thresh": 0.0, "detections_per_img": 5}
    classes = 2 if "keypoint" in name else 3
    maker = getattr(torchvision.models.detection, name)
    torch.manual_seed(0)
    detector = maker(weights=None, weights_backbone=None, num_classes=classes, **options)
    return models.randomise(detector).eval()


@pytest.mark.parametrize("name", DETECTORS)
def test_a_cut_detector_trains_with_its_own_losses(name: str, torchvision: ModuleType) -> None:
    edge = DETECTORS[name]
    model = _built(torchvision, name, edge)
    example = ([torch.rand(3, edge, edge, generator=torch.Generator().manual_seed(1))],)
    target = {"boxes": torch.tensor([[10.0, 10.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    if "mask" in name:
        target["masks"] = torch.zeros(1, edge, edge, dtype=torch.uint8)
        target["masks"][:, 10:40, 10:40] = 1
    if "keypoint" in name:
        target["keypoints"] = torch.tensor([[[20.0, 20.0, 1.0]] * 17])
    images = [example[0][0], example[0][0].flip(2)]
    call = (images, [target, dict(target)])
    options = sc.PruneOptions(allow_collapse=True, training=call)
    masks = sc.prune(model, "l2", "channel", 0.5, example=example, options=options)
    proved = sc.ProofOptions(("no_grad",), other_shapes=False, training=call)
    small = sc.shrink(model, masks, example, proof=proved)
    # keypoints must be float32: "target keypoints must of float type"
    assert small.proof.dtype == ("float32" if "keypoint" in name else "float64")
    assert small.proof.error < (1e-5 if "keypoint" in name else 1e-9)
    assert ("training", "train") in {(case.what, case.mode) for case in small.proof.cases}
    assert (small.proof.untrained, small.proof.shapes_only) == ("", False)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small.model))
    assert after < 0.5 * before
    trained = small.model.train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3)
    start = {key: p.detach().clone() for key, p in trained.named_parameters()}
    losses = trained(*call)
    assert len(losses) >= 2
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    optimizer.step()
    moved = [key for key, p in trained.named_parameters() if not torch.equal(p.detach(), start[key])]
    assert len(moved) > 0.4 * len(start)

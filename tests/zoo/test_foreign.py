"""Models of other libraries, some of each that `benchmarks/foreign.py` cuts: half leaves, proved, and compared anew.

The whole list is `python benchmarks/foreign.py`, which writes its section of docs/zoo.md.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sc

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import foreign
from foreign_models import Foreign, listed

PICKED = [
    "ultralytics/yolov5n",
    "ultralytics/yolov8n-seg",
    "ultralytics/yolo11n-pose",
    "ultralytics/yolo26n",
    "segmentation_models_pytorch/MAnet/resnet18",
    "segmentation_models_pytorch/Unet/mit_b0",
    "monai/SegResNet",
    "monai/SwinUNETR",
    "torchvision/ssdlite320_mobilenet_v3_large",
    "torchvision/fcos_resnet50_fpn",
    "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn",
    "diffusers/UNet2DConditionModel",
    "diffusers/PixArtTransformer2DModel",
    "open_clip/CLIP/RN50",
    "open_clip/CoCa/ViT",
    "torch_geometric/GCN",
    "torch_geometric/GAT",
    "torch_geometric/PNA",
    "vit_pytorch/sep_vit.SepViT",
    "vit_pytorch/levit.LeViT",
    "x_transformers/rotary",
    "x_transformers/grouped",
    "kornia/HardNet",
    "kornia/VisionTransformer",
    "lightly/SimCLRProjectionHead",
    "transformers/convnextv2",
    "transformers/dinov3_vit",
    "transformers/encodec",
    "transformers/mamba2",
    "transformers/qwen3_moe",
    "transformers/rt_detr",
    "timm/lambda_resnet26rpt_256",
    "timm/shvit_s1",
]
MODELS = {f"{entry.library}/{entry.name}": entry for entry in listed()}
OWN = [name for name in MODELS if name.startswith("own/")]


def checked(entry: Foreign) -> None:
    """Run a model of the list, and judge it as the table does."""
    row = foreign.run_one(entry)
    assert "unbuilt" not in row, row["unbuilt"]
    assert "failed" not in row, row["failed"]
    assert "wrong" not in row, row["wrong"]
    assert (
        row["compared"] >= 2
    )  # with gradients and without; at a second shape where the dense model takes one
    assert row["removed"] >= foreign.ENOUGH or row["why"]


@pytest.mark.zoo
@pytest.mark.parametrize("name", PICKED)
def test_a_model_of_another_library(name: str) -> None:
    entry = MODELS[name]
    if importlib.util.find_spec(entry.library) is None:
        pytest.skip(f"needs {entry.library}: see benchmarks/foreign-requirements.txt")
    checked(entry)


@pytest.mark.parametrize("name", OWN)
def test_a_model_of_a_users_own(name: str) -> None:
    """Recurrent networks, GANs, DLRM, NeRF, experts, and inputs that are dicts and data classes."""
    checked(MODELS[name])


def test_every_library_of_the_list_has_a_model_here() -> None:
    assert {name.partition("/")[0] for name in PICKED} == {entry.library for entry in MODELS.values()} - {
        "own"
    }


class Tampered(nn.Module):
    """A model that is right at the size of its first input alone."""

    def __init__(self, model: nn.Module, width: int) -> None:
        super().__init__()
        self.model, self.width = model, width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the model gives, a little more of it at other widths."""
        return self.model(x) * (1.0 if x.shape[-1] == self.width else 1.0 + 1e-6)


def test_the_comparison_sees_what_is_wrong_at_the_second_shape_alone() -> None:
    entry = MODELS["own/empty_cat"]
    model, example, _ = entry.build()
    x, other = example[0], torch.randn(1, 3, 20, 20)
    model = model.body
    masks = foreign.chosen(model, x)
    small = sc.shrink(model, masks, x)
    right = foreign.compared(entry, model, small, masks, x, other)
    assert ("wrong" in right, right["compared"]) == (False, 4)
    assert right["difference"] < 1e-14
    tampered = sc.Shrunk(Tampered(small.model, 16), small.proof, small.plan, small.masks)
    assert "differs by 1.0e-06" in foreign.compared(entry, model, tampered, masks, x, other)["wrong"]

"""Models of ultralytics with random weights, and a data set of a few drawn images for its trainers."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import nn

from models import declare_torchvision, randomise

__all__ = ["VARIANTS", "build", "data_set", "prepare"]

VARIANTS = [
    "yolov8n", "yolov8n-seg", "yolov8n-pose",
    "yolo11n", "yolo11n-seg", "yolo11n-pose",
    "yolo26n", "yolo26n-seg", "yolo26n-pose",
    "yolov8n-obb", "yolov9t", "yolov10n",
]  # fmt: skip
_CLASSES = {"seg": "SegmentationModel", "pose": "PoseModel", "obb": "OBBModel"}
_TASKS = {"seg": "segment", "pose": "pose", "obb": "obb"}


def prepare(folder: Path) -> None:
    """Let ultralytics be imported: its settings lie in a folder of their own, and nothing is fetched."""
    os.environ.update(
        YOLO_CONFIG_DIR=str(folder), YOLO_AUTOINSTALL="false", YOLO_OFFLINE="true", YOLO_VERBOSE="false"
    )
    declare_torchvision()


def task_of(name: str) -> str:
    """The task of a variant, as ultralytics calls it."""
    return _TASKS.get(name.rpartition("-")[2], "detect")


def build(name: str, classes: int = 2) -> nn.Module:
    """A variant with random weights, in evaluation mode."""
    from ultralytics.nn import tasks

    kind = _CLASSES.get(name.rpartition("-")[2], "DetectionModel")
    options: dict[str, object] = {"data_kpt_shape": (3, 3)} if kind == "PoseModel" else {}
    torch.manual_seed(0)
    model = getattr(tasks, kind)(f"{name}.yaml", ch=3, nc=classes, verbose=False, **options)
    return randomise(model).eval()


def data_set(folder: Path, task: str, images: int = 4, edge: int = 64) -> Path:
    """Write images with one box each, labelled for a task; give the yaml that names them."""
    for number in range(images):
        image = Image.new("RGB", (edge, edge), (30 * number % 255, 90, 120))
        left, top, size = edge // 8 + 4 * number, edge // 6, edge // 3
        ImageDraw.Draw(image).rectangle(
            (left, top, left + size, top + size), fill=(255, 40 * number % 255, 0)
        )
        for kind in ("images", "labels"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        image.save(folder / "images" / f"{number}.png")
        x, y, s = left / edge, top / edge, size / edge
        corners = f"{x} {y} {x + s} {y} {x + s} {y + s} {x} {y + s}"
        box = f"{x + s / 2} {y + s / 2} {s} {s}"
        points = f"{x} {y} 2 {x + s} {y} 2 {x} {y + s} 2"
        line = {"segment": corners, "obb": corners, "pose": f"{box} {points}"}.get(task, box)
        (folder / "labels" / f"{number}.txt").write_text(f"{number % 2} {line}\n")
    lines = [f"path: {folder}", "train: images", "val: images", "names: {0: even, 1: odd}"]
    if task == "pose":
        lines += ["kpt_shape: [3, 3]", "flip_idx: [1, 0, 2]"]
    described = folder / "data.yaml"
    described.write_text("\n".join(lines) + "\n")
    return described

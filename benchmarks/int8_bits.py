"""Weights of 7 and of 8 bits in INT8 files, on this processor and in exact arithmetic.

    python benchmarks/int8_bits.py --weights resnet20-cifar10.safetensors --data CIFAR10 [--images 2000]

x86 processors without VNNI add two products of bytes in 16 bits and cut the sum off. ResNet-20 is written in INT8 with
weights of either size, calibrated on 1,024 training images; each file is judged on test images as ONNX Runtime runs it
here, and without its kernels for integers (no graph optimisation: every operator in floats, of the same rounded
numbers), where nothing can be cut off.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import onnxruntime
import torch
from safetensors.torch import load_file

import secateur as sc
from secateur.adapters.export import export
from secateur.adapters.int8 import Int8Options

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def outputs(path: Path, images: torch.Tensor, exact: bool) -> torch.Tensor:
    """What a file gives for every image, one by one, as it was exported for."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if exact:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    found = [torch.from_numpy(session.run(None, {name: image[None].numpy()})[0]) for image in images]
    return torch.cat(found)


def main() -> None:
    """Write both files and print accuracy and noise of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=2000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = sc.models.build("resnet20").eval()
    model.load_state_dict(load_file(given.weights))
    data = sc.data.load("cifar10", path=given.data, normalise=(MEAN, STD))
    batches = [images for images, _ in data.train.leading(1024).batches(128)]
    images, labels = data.test.first(given.images)
    with torch.no_grad():
        wanted = model(images)
    print(f"floats: accuracy {100 * float((wanted.argmax(1) == labels).float().mean()):.2f} %")
    with tempfile.TemporaryDirectory() as folder:
        for bits in (7, 8):
            path = Path(folder) / f"{bits}.onnx"
            export(
                model,
                path,
                images[:1],
                int8=batches,
                int8_options=Int8Options(lost=0.9, reduce_range=bits == 7),
            )
            for exact in (False, True):
                got = outputs(path, images, exact)
                accuracy = 100 * float((got.argmax(1) == labels).float().mean())
                noise = 100 * float((got - wanted).norm() / wanted.norm())
                where = "exact" if exact else "here"
                print(f"{bits} bits, {where}: accuracy {accuracy:.2f} %, outputs changed by {noise:.1f} %")


if __name__ == "__main__":
    main()

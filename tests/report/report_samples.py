"""Measurements that make every chart draw something, and a sweep of any size."""

from __future__ import annotations

import random
from typing import Any

from secateur.core.measurement import Measurement as M
from secateur.core.measurement import Measurements
from secateur.report import Run

LAYERS = [f"layer{i}.{j}.conv{k}" for i in (1, 2) for j in (0, 1) for k in (1, 2)] + ["fc"]


def everything(hostile: str = "") -> Measurements:
    """One trial with every form of Measurement there is; `hostile` is put wherever a name can come from outside."""
    draw = random.Random(0)
    rows: list[M] = []
    for what, value in ((f"processors{hostile}", 0.5), ("memory", 1.5), ("trials", 2.0)):
        samples = {"what": what, "seconds": [1.0, 2.0, 3.0], "values": [value] * 3}
        rows.append(M("usage", value, "", f"mean of 3 samples {hostile}", context=samples))
    names = [*LAYERS[:-1], f"fc{hostile}"]
    for index, (variant, kept) in enumerate((("dense", 1.0), ("shrunk", 0.5), ("file", 0.25))):
        context: dict[str, Any] = {"trial": 0, "variant": variant, "seed": 0}
        layers = {name: int(1000 * kept) for name in names}
        tensors = {f"{name}.weight": 1000 for name in names}
        alive = {name: int(1000 * kept) for name in tensors}
        rows += [
            M(
                "accuracy",
                0.95 - 0.01 * index,
                "",
                f"accuracy on the 360 test images {hostile}",
                context=context,
            ),
            M("params", 9000, context=context, per_layer=tensors),
            M("nonzeros", int(9000 * kept), context=context, per_layer=alive),
            M("macs", 9000, "MAC", context=context, per_layer=dict.fromkeys(names, 1000)),
            M("macs_nonzero", int(9000 * kept), "MAC", "as macs", context=context, per_layer=layers),
            M("size", 40000 // (index + 1), "bytes", context=context),
        ]
        readings = [4.0 / (index + 1) + 0.01 * k for k in range(9)]
        if index:
            dense = [4.0 + 0.01 * k for k in range(9)]
            ratios = tuple(a / b for a, b in zip(dense, readings))
            spread = {"low": min(ratios), "high": max(ratios)}
            rows += [
                M("latency", 4.04, "ms", trials=tuple(dense), context={**context, "variant": "dense"}),
                M("latency", readings[4], "ms", trials=tuple(readings), context=context),
                M("speedup", ratios[4], "x", "dense / this", trials=ratios, context=context, spread=spread),
            ]
        sizes = {name: (8 if index == 0 else 4) if name in LAYERS[:-1] else 10 for name in names}
        drawn = [
            {
                "name": n,
                "kind": "Conv2d",
                "width": w,
                "inputs": 3,
                "parameters": 9,
                "group": f"g{hostile}" * ("conv2" in n),
            }
            for n, w in sizes.items()
        ]
        text = "\n".join(f"({name}): Conv2d(3, {width}) {hostile}" for name, width in sizes.items())
        rows += [
            M("architecture", len(drawn), "layers", context={**context, "text": text, "layers": drawn}),
            M("widths", sum(sizes.values()), "units", context=context, per_layer=sizes),
        ]
        for name in names:
            counts = [draw.randrange(50) for _ in range(12)]
            shape = {"layer": name, "low": -1.0, "high": 1.0, "counts": counts, "zeros": 5}
            rows += [
                M(f"{kind}_histogram", sum(counts), context={**context, **shape})
                for kind in ("weight", "activation")
            ]
            sums = [0.0 if index and k % 2 else 1.0 + k for k in range(8)]
            rows.append(M("filter_sums", sums.count(0.0), context={**context, "layer": name, "sums": sums}))
        for epoch in range(1, 4):
            at = {**context, "epoch": epoch, "variant": f"train {variant}"}
            rows += [
                M("epoch_loss", 1 / epoch, context=at),
                M("epoch_validation_accuracy", 1 - 0.5 / epoch, context=at),
            ]
    parts = {f"{name}.weight": {"indices": 100 + k, "codebooks": 8} for k, name in enumerate(names)}
    total = sum(sum(part.values()) for part in parts.values())
    context = {"trial": 0, "variant": "file", "parts": parts}
    rows.append(M("tensor_bytes_in_file", total, "bytes", context=context))
    rows.append(M("file_bytes", total, "bytes", context={"trial": 0, "variant": "file"}))
    rows.append(M("scan_value", 0.95, context={"layer": "", "sparsity": 0.0}))
    for name in names:
        rows += [
            M("scan_value", 0.9 - s / 2, context={"layer": name, "sparsity": s}) for s in (0.3, 0.6, 0.9)
        ]
    published = {"published": f"a study{hostile}"}
    rows += [
        M("accuracy", 0.96, context={"variant": "dense", **published}),
        M("params", 9000, context={"variant": "dense", **published}),
        M("accuracy", 0.9, context={"variant": "theirs", "sparsity": 0.5, **published}),
        M("size", 20000, "bytes", context={"variant": "theirs", "sparsity": 0.5, **published}),
        M("macs", 4000, "MAC", context={"variant": "shrunk", "inconsistent": "4,500 follows", **published}),
    ]
    return Measurements(rows)


def sweep(trials: int) -> Run:
    """So many trials: four criteria, nine sparsities, seeds."""
    draw = random.Random(0)
    rows = []
    for trial in range(trials):
        criterion = ("l1", "l2", "fpgm", "random")[trial % 4]
        sparsity = (1 + trial // 4 % 9) / 10
        seed = trial // 36
        base = {
            "trial": trial,
            "seed": seed,
            "prune.criterion": criterion,
            "prune.budget": sparsity,
            "step": "measure",
        }
        for variant, value in (
            ("dense", 0.91 + draw.gauss(0, 0.003)),
            ("pruned", 0.91 - 0.6 * sparsity**3 + draw.gauss(0, 0.02)),
            ("retrained", 0.91 - 0.1 * sparsity**4 + draw.gauss(0, 0.005)),
        ):
            kept = 1.0 if variant == "dense" else 1 - sparsity
            context = {**base, "variant": variant}
            layers = {name: int(1000 * kept) for name in LAYERS}
            tensors = {f"{name}.weight": count for name, count in layers.items()}
            rows += [
                M("accuracy", value, "", "accuracy on the test images", context=context),
                M("params", 9000, context=context, per_layer=dict.fromkeys(tensors, 1000)),
                M("nonzeros", int(9000 * kept), context=context, per_layer=tensors),
                M("macs_nonzero", int(9000 * kept), "MAC", context=context, per_layer=layers),
                M("size", 40000 + int(9000 * kept), "bytes", context=context),
            ]
        for epoch in range(1, 11):
            at = {**base, "variant": "train", "step": "train", "epoch": epoch}
            rows.append(M("epoch_loss", 2 / epoch + 0.001 * draw.random(), context=at))
    return Run("sweep", Measurements(rows), provenance={"command": "secateur sweep recipe.toml", "seed": 0})

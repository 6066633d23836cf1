"""Accuracy after the same pruning and retraining: ours against Torch-Pruning's group norm and its group-sparse pruner.

    python benchmarks/bench_methods.py --data CIFAR10 --weights resnet20-cifar10.safetensors
    pip install --no-deps torch-pruning==1.6.1    # the peer

Five arms start from the same trained weights and end at the same share of multiply-accumulates; each trains on the same
images, in the same order, with the same schedule and seed, by the same loop:

    ours          criterion l2 over coupled channels, every group the same share
    peer          GroupNormPruner with its group norm, the smallest uniform ratio that meets the budget
    ours-sparse   the same after some epochs with `sparsify = group_sparse`
    peer-sparse   the same after as many epochs with GroupNormPruner.regularize, by their code

Only the channels within the residual blocks are cut: the peer fails on this ResNet-20's shortcuts, which have no
parameters (it leaves `linear` with more inputs than arrive).

Every outcome is written to --out at once, so that a killed benchmark goes on. The table is printed from there.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur as sc
from secateur import data as datasets
from secateur.lab.training import TrainingContext, TrainingOptions, evaluate, train
from secateur.sparsify import Sparsifier, Sparsifying

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record

ARMS = ("ours", "peer", "ours-compensated", "ours-sparse", "peer-sparse")


def peer_pruner(model: nn.Module, x: torch.Tensor, ratio: float, strength: float) -> Any:
    import torch_pruning as tp

    left_alone = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        and not (name.startswith("layer") and name.endswith("conv1"))
    ]
    return tp.pruner.GroupNormPruner(
        model,
        x,
        importance=tp.importance.GroupMagnitudeImportance(p=2, normalizer=None),
        reg=strength,
        pruning_ratio=ratio,
        ignored_layers=left_alone,
    )


@dataclass(frozen=True)
class Peer(Sparsifier):
    """Their regulariser in our loop: it adds to the gradients."""

    strength: float = 1e-4

    def start(self, model: nn.Module, *, example=None, masks=None, steps=None, seed=0) -> Sparsifying:
        modes = [module.training for module in model.modules()]
        pruner = peer_pruner(model, example[:1], 0.5, self.strength)
        for module, training in zip(model.modules(), modes, strict=True):
            module.training = training  # it leaves the model in evaluation, with the statistics of before
        return _Regularised(model, pruner)


class _Regularised(Sparsifying):
    def __init__(self, model: nn.Module, pruner: Any) -> None:
        super().__init__(model)
        self._pruner = pruner

    def before_step(self) -> None:
        self._pruner.regularize(self.model)


def macs(model: nn.Module, x: torch.Tensor) -> float:
    return float(sc.measure(model, x, what="macs")["macs"].value)


def cut_by_ours(
    model: nn.Module, x: torch.Tensor, keep: float, inputs: list[torch.Tensor] | None = None
) -> nn.Module:
    """Cut by l2 over coupled channels; with inputs, what stays makes up for what leaves."""
    groups = ("conv1", "layer2.0.conv2", "layer3.0.conv2")  # what is added along the shortcuts
    streams = sc.PruneOptions(at_most=dict.fromkeys(groups, 0.0))
    masks = sc.prune(model, "l2", "channel", sc.budget.Macs(keep=keep), example=x, options=streams)
    if inputs is not None:
        model = sc.compensate(model, masks, inputs).model
    return sc.shrink(model, masks, x).model


def cut_by_peer(model: nn.Module, x: torch.Tensor, keep: float) -> nn.Module:
    """The smallest uniform ratio, to a hundredth, at which at most the share of multiply-accumulates remains."""
    limit = keep * macs(model, x)
    low, high = 0, 100
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if macs(_at(model, x, middle / 100), x) <= limit else (middle + 1, high)
    return _at(model, x, low / 100)


def _at(model: nn.Module, x: torch.Tensor, ratio: float) -> nn.Module:
    small = copy.deepcopy(model)
    peer_pruner(small, x, ratio, 1e-4).step()
    return small


def outcome(
    arm: str, seed: int, dense: nn.Module, images: datasets.Data, options: argparse.Namespace
) -> dict[str, float]:
    """Sparse training where the arm has it, the cut, retraining, and the accuracy at each point."""
    model, x = copy.deepcopy(dense).to(memory_format=torch.channels_last), images.example[:1]
    began = time.perf_counter()
    if arm.endswith("sparse"):
        method: Sparsifier = (
            sc.sparsify.GroupSparse(options.strength, only=["layer*.conv1"])
            if arm.startswith("ours")
            else Peer(options.strength)
        )
        sparse = TrainingOptions(
            epochs=options.sparse_epochs,
            lr=options.lr,
            batch_size=options.batch,
            schedule="cosine",
            weight_decay=5e-4,
            augment="standard",
            sparsify=method,
            precision=options.precision,
        )
        file = options.out / f"{arm}-{seed}.sparse"
        train(
            model, images, sparse, seed=seed, device=options.device, context=TrainingContext(checkpoint=file)
        )
        file.unlink(missing_ok=True)
    model.eval()
    if arm.startswith("ours"):
        shown = images.train.leading(2000).batches(100) if arm.endswith("compensated") else None
        small = cut_by_ours(model, x, options.keep, shown and [inputs for inputs, _ in shown])
    else:
        small = cut_by_peer(model, x, options.keep)
    before = evaluate(small, images.test, device=options.device)["accuracy"]
    again = TrainingOptions(
        epochs=options.epochs,
        lr=options.lr,
        batch_size=options.batch,
        schedule="cosine",
        weight_decay=5e-4,
        augment="standard",
        precision=options.precision,
    )
    small.to(memory_format=torch.channels_last)
    file = options.out / f"{arm}-{seed}.training"
    train(small, images, again, seed=seed, device=options.device, context=TrainingContext(checkpoint=file))
    after = evaluate(small, images.test, device=options.device)["accuracy"]
    file.unlink(missing_ok=True)
    return {"cut": before, "retrained": after, "macs": macs(small, x), "seconds": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("SECATEUR_DATA", "data") + "/cifar10")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument(
        "--images", type=int, default=None, help="training images of the 50,000, and test images"
    )
    parser.add_argument("--epochs", type=int, default=4, help="of the retraining")
    parser.add_argument("--sparse-epochs", type=int, default=2)
    parser.add_argument("--strength", type=float, default=1e-3, help="of both regularisers")
    parser.add_argument("--keep", type=float, default=0.5, help="share of multiply-accumulates that remains")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--precision", default="bf16", help="of all trainings: bf16 or fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("bench-methods"))
    options = parser.parse_args()
    dense = sc.models.build(options.model)
    from safetensors.torch import load_file

    dense.load_state_dict(load_file(options.weights))
    dense.eval()
    images = datasets.load(
        "cifar10", path=options.data, validation=0.0, normalise="imagenet", limit=options.images
    )
    options.out.mkdir(parents=True, exist_ok=True)
    setting = {
        name: getattr(options, name)
        for name in (
            "model",
            "images",
            "epochs",
            "sparse_epochs",
            "strength",
            "keep",
            "lr",
            "batch",
            "precision",
        )
    }
    found: dict[str, dict[int, dict[str, float]]] = {}
    for seed in range(options.seeds):
        for arm in options.arms.split(","):
            file = options.out / f"{arm}-{seed}.json"
            stored = json.loads(file.read_text()) if file.exists() else {}
            if stored.get("setting") != setting:
                stored = {"setting": setting, "outcome": outcome(arm, seed, dense, images, options)}
                file.write_text(json.dumps(stored))
            found.setdefault(arm, {})[seed] = stored["outcome"]
            one = stored["outcome"]
            print(
                f"{arm:<12} seed {seed}: {one['cut']:.2%} cut, {one['retrained']:.2%} retrained", flush=True
            )
    table(
        found,
        evaluate(dense, images.test, device=options.device)["accuracy"],
        macs(dense, images.example[:1]),
    )


def table(found: dict[str, dict[int, dict[str, float]]], accuracy: float, cost: float) -> None:
    """Means over the seeds, and ours minus the peer's, seed by seed."""
    from secateur.lab.comparing import paired_p

    print(f"\ndense: {accuracy:.2%}, {cost:,.0f} multiply-accumulates")
    print(f"{'arm':<14}{'macs':>12}{'share':>8}{'cut':>9}{'retrained':>11}")
    for arm, by_seed in found.items():
        mean = {
            key: statistics.fmean(one[key] for one in by_seed.values())
            for key in ("macs", "cut", "retrained")
        }
        share = mean["macs"] / cost
        print(f"{arm:<14}{mean['macs']:>12,.0f}{share:>8.3f}{mean['cut']:>9.2%}{mean['retrained']:>11.2%}")
        accuracies = f"of MACs {share:.3f}, cut {mean['cut']:.2%}, {len(by_seed)} seeds"
        record(Figure(f"{arm}: retrained", 100 * mean["retrained"], "%", None, "higher", 0.005, accuracies))
    for ours, theirs in (("ours", "peer"), ("ours-compensated", "peer"), ("ours-sparse", "peer-sparse")):
        if ours in found and theirs in found:
            pairs = [
                (found[ours][seed]["retrained"], found[theirs][seed]["retrained"]) for seed in found[ours]
            ]
            gap = 100 * statistics.fmean(a - b for a, b in pairs)
            p = f", p {paired_p(pairs):.3f}" if len(pairs) > 1 else ""
            print(
                f"{ours} - {theirs}: {gap:+.2f} points{p}  {'met' if gap >= 0 else 'NOT MET'} (goal: at least 0)"
            )
            record(Figure(f"{ours} minus {theirs}", gap, "points", 0, "higher", 0.5, p.removeprefix(", ")))


if __name__ == "__main__":
    main()

"""How fast the core is: `python benchmarks/bench_core.py [--repeats N] [--threads N] [--clock cpu] [--only TEXT]`.

Each line is ours against a peer, run in turn in this process; the ratio of the medians is what is judged.
Where neighbours keep the machine busy, `--clock cpu` compares processor time instead of time passed.

- l1 per filter and global magnitude on ResNet-101: `prune` and `apply_` against torch.nn.utils.prune
  (`ln_structured` on every convolution, `global_unstructured`), at most a third of the time and no more peak
  memory.
- FPGM on ResNet-101 (scores and masks of every convolution) against five l2 passes: at most 2. One l2 pass is the
  peer's `ln_structured` with n=2 over the same convolutions, masks made and applied.
- The lowest half of 100 million scores against `torch.topk` and against `torch.sort`.
- A training step of ResNet-20 with half its weights held at zero against a dense step: at most 1.02; the same of 300
  small layers, where every layer's fixed cost counts and its work does not: at most 1.25.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import secateur as sc

sys.path.insert(0, str(Path(__file__).parent))
from _common import Row, interleaved, peak_in_child, peak_of, report


def resnet101() -> nn.Module:
    torch.manual_seed(0)
    return sc.models.build("resnet101", num_classes=1000)


def convolutions(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def l1_ours(model: nn.Module) -> Any:
    masks = sc.prune(model, "l1", "filter", 0.5, options=sc.PruneOptions(only="type:Conv2d"))
    masks.apply_(model)
    return masks


def l1_peer(model: nn.Module) -> Any:
    for module in convolutions(model):
        torch_prune.ln_structured(module, "weight", amount=0.5, n=1, dim=0)


def global_ours(model: nn.Module) -> Any:
    masks = sc.prune(
        model, "magnitude", "element", sc.budget.Overall(0.5), options=sc.PruneOptions(only="type:Conv2d")
    )
    masks.apply_(model)
    return masks


def global_peer(model: nn.Module) -> Any:
    wanted = [(module, "weight") for module in convolutions(model)]
    torch_prune.global_unstructured(wanted, pruning_method=torch_prune.L1Unstructured, amount=0.5)


def fpgm_ours(model: nn.Module) -> Any:
    return sc.prune(model, "fpgm", "filter", 0.5, options=sc.PruneOptions(only="type:Conv2d"))


def l2_peer(model: nn.Module) -> Any:
    for module in convolutions(model):
        torch_prune.ln_structured(module, "weight", amount=0.5, n=2, dim=0)


PEAKS: dict[str, Callable[[nn.Module], Any]] = {
    "l1_ours": l1_ours,
    "l1_peer": l1_peer,
    "global_ours": global_ours,
    "global_peer": global_peer,
}


def many_layers() -> nn.Module:
    """300 layers of 24 x 24 weights."""
    layers = [module for _ in range(300) for module in (nn.Linear(24, 24, bias=False), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), nn.AvgPool1d(128), *layers, nn.Linear(24, 10, bias=False))


def training_step(held: bool, make: Callable[[], nn.Module]) -> tuple[Callable[[Any], Any], Any]:
    """A step of SGD with momentum, batch 32, and what keeps its weights held."""
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    inputs, labels = torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))
    criterion = nn.CrossEntropyLoss()
    guard = sc.hold(model, sc.prune(model, budget=0.5), optimizer) if held else None
    if guard is not None:
        guard.__enter__()

    def step(_: Any) -> None:
        optimizer.zero_grad()
        criterion(model(inputs), labels).backward()
        optimizer.step()

    return step, guard


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="lines whose name contains this")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="time passed, or used by this process"
    )
    parser.add_argument("--peak", choices=sorted(PEAKS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        model = resnet101()
        print(peak_of(lambda: PEAKS[options.peak](model)))
        return 0
    rows: list[Row] = []
    clock = time.process_time if options.clock == "cpu" else time.perf_counter

    def wanted(what: str) -> bool:
        return options.only in what

    dense = resnet101()

    def fresh() -> nn.Module:
        return copy.deepcopy(dense)

    for what, name in (("l1 per filter", "l1"), ("global magnitude", "global")):
        if not wanted(what):
            continue
        ours, peer = interleaved(PEAKS[f"{name}_ours"], PEAKS[f"{name}_peer"], options.repeats, fresh, clock)
        rows.append(Row(f"ResNet-101, {what}", ours, peer, 1 / 3))
        peaks = [peak_in_child(__file__, f"{name}_{side}") for side in ("ours", "peer")]
        if None not in peaks:
            rows.append(Row(f"ResNet-101, {what}, peak memory", peaks[0] or 0.0, peaks[1] or 0.0, 1.0, "MiB"))
    if wanted("fpgm"):
        ours, peer = interleaved(fpgm_ours, l2_peer, options.repeats, fresh, clock)
        rows.append(Row("ResNet-101, fpgm against 5 l2 passes", ours, 5 * peer, 2.0))
    if wanted("top-k"):
        from secateur.budget._select import keep_highest

        scores = torch.rand(100_000_000, generator=torch.Generator().manual_seed(0))
        half = len(scores) // 2
        few = max(1, options.repeats // 4)
        for name, peer_work in (
            ("torch.topk", lambda _: torch.topk(scores, half, largest=False, sorted=False)),
            ("torch.sort", lambda _: torch.sort(scores)),
        ):
            ours, peer = interleaved(lambda _: keep_highest([scores], half), peer_work, few, clock=clock)
            rows.append(Row(f"lowest half of 100 M scores against {name}", ours, peer, 1.0))
    if wanted("held step"):
        for name, make, goal in (
            ("ResNet-20", lambda: sc.models.build("resnet20", num_classes=10), 1.02),
            ("300 small layers", many_layers, 1.25),
        ):
            (held, guard), (plain, _) = training_step(True, make), training_step(False, make)
            ours, peer = interleaved(held, plain, 40 * options.repeats, clock=clock)
            guard.__exit__(None, None, None)
            rows.append(Row(f"{name}, training step with masks held", ours, peer, goal))
    if not rows:
        parser.error(f"--only {options.only!r} names no line; there are: l1, global, fpgm, top-k, held step")
    return report(
        rows,
        f"torch {torch.__version__}, {options.threads} threads, {options.clock} time, "
        f"medians of {options.repeats} runs",
    )


if __name__ == "__main__":
    sys.exit(main())

"""Whole layers against channels: `python benchmarks/bench_depth.py [--only speed,minilm] [--minilm FOLDER]`.

`speed`: ResNet-50 and a transformer encoder of 12 layers lose layers by l2 until at most `--keep` of the
multiply-accumulates remain; a second copy loses channels until no more remain than the first has left. Dense,
fewer-layer and narrower model are timed on one input, one thread, in turns, eager and in ONNX Runtime. The figure is
the speed-up by layers over that by channels: at least 1.15. `--early` removes the first layers that can be removed in
place of those that l2 chooses; `--keep 0.4,0.6` measures several.

`minilm`: all-MiniLM-L6-v2 without 2 of its 6 layers, chosen by the budget `LeastChange` from block influence on, then
tuned on 200 docstrings of the standard library; mean cosine to the dense embeddings on 200 others: at least 0.90.
`--minilm` names the folder with config.json, tokenizer.json and model.safetensors; `--layers 1,3` removes these.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur as sc
from secateur.adapters.export import export
from secateur.adapters.onnx_model import OnnxModel
from secateur.compensation.batches import read_all
from secateur.compensation.tuning import tune
from secateur.errors import BudgetNotMetError
from secateur.metrics.latency import compare

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "zoo"))
from _common import Row, report
from bench_compensate import MiniLM, states_and_embedding

from models import Entry, build


def transformer() -> tuple[nn.Module, torch.Tensor]:
    """Twelve layers of width 384 that normalise before the branch, on 64 tokens."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(384, 6, 1536, batch_first=True, norm_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 12, enable_nested_tensor=False).eval(), torch.randn(1, 64, 384)


def resnet50(size: int) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model, example = build(Entry("torchvision", "resnet50", size))
    return model.eval(), example[:1]


def macs(model: nn.Module, x: torch.Tensor) -> int:
    return int(sc.measure(model, x, what="macs")["macs"].value)


def layers(model: nn.Module, x: torch.Tensor, keep: float, early: bool) -> sc.Masks:
    """Masks without as few layers as leave at most this share: the first ones, or those that l2 chooses."""
    if not early:
        budget = sc.budget.Macs(keep=keep, spread="overall")
        return sc.prune(model, "l2", "layer", budget, example=x)
    paths = [row.name for row in sc.explain(model, x).layers if not row.reason]
    for count in range(1, len(paths) + 1):
        gone = tuple(f"{path}." for path in paths[:count])
        named = [(name, each) for name, each in model.named_parameters() if name.startswith(gone)]
        masks = sc.Masks({name: torch.zeros_like(each, dtype=torch.bool) for name, each in named})
        if macs(sc.shrink(model, masks, x).model, x) <= keep * macs(model, x):
            return masks
    raise BudgetNotMetError(f"without its {len(paths)} layers that can be removed, more than {keep} remains")


def pair(model: nn.Module, x: torch.Tensor, keep: float, early: bool) -> tuple[nn.Module, nn.Module]:
    """The model with fewer layers, and the one with fewer channels and no more multiply-accumulates than that."""
    fewer = sc.shrink(model, layers(model, x, keep, early), x)
    share = macs(fewer.model, x) / macs(model, x)
    masks = sc.prune(model, "l2", "channel", sc.budget.Macs(keep=share), example=x)
    narrower = sc.shrink(model, masks, x)
    print(
        f"  layers left {dict(fewer.plan.layers)}; MACs {share:.3f} by layers, "
        f"{macs(narrower.model, x) / macs(model, x):.3f} by channels",
        flush=True,
    )
    return fewer.model, narrower.model


def speed(keep: float, size: int, trials: int, early: bool) -> list[Row]:
    rows = []
    which = f"{keep:g} of the MACs" + (", first layers" if early else "")
    for name, (model, x) in (("ResNet-50", resnet50(size)), ("transformer", transformer())):
        print(name, flush=True)
        try:
            fewer, narrower = pair(model, x, keep, early)
        except BudgetNotMetError as error:
            print(f"  {error}", flush=True)
            continue
        by = [
            float(compare(model, one, x, repetitions=trials, threads=1)["speedup"].value)
            for one in (fewer, narrower)
        ]
        rows.append(Row(f"{name}, eager, {which}", by[1], by[0], 1 / 1.15, "x"))
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / f"{index}.onnx" for index in range(3)]
            for one, path in zip((model, fewer, narrower), files):
                export(one, path, x)
            dense, *others = (OnnxModel(path, threads=1) for path in files)
            by = [
                float(compare(dense, one, x, repetitions=trials, threads=1)["speedup"].value)
                for one in others
            ]
        rows.append(Row(f"{name}, ONNX Runtime, {which}", by[1], by[0], 1 / 1.15, "x"))
        print(
            *(f"  {row.what}: layers {row.peer:.2f}x, channels {row.ours:.2f}x" for row in rows[-2:]),
            sep="\n",
        )
    return rows


def embedding(output: Any, inputs: Any) -> torch.Tensor:
    """A sentence's embedding, of length 1: its error is two less twice the cosine."""
    return nn.functional.normalize(states_and_embedding(output, inputs)[1], dim=1)


def minilm(folder: str, chosen: str, passes: int, lr: float) -> Row:
    bench = MiniLM(folder)
    model, data = bench.dense, bench.calibration
    start = time.process_time()
    if chosen:
        paths = [f"encoder.layer.{number}." for number in chosen.split(",")]
        masks = sc.Masks(
            {
                name: torch.zeros_like(parameter, dtype=torch.bool)
                for name, parameter in model.named_parameters()
                if name.startswith(tuple(paths))
            }
        )
    else:
        budget = sc.budget.LeastChange(2 / 6, compare=embedding)
        masks = sc.prune(model, "block_influence", "layer", budget, data=data)
    half = sc.bypassed(model, masks, data[0])
    texts = sc.RecombinedTokens(data, tokens=500)
    if passes:
        solved = copy.deepcopy(half).eval()
        options = sc.Tuning(passes=passes, lr=lr, blocks=0.0, precision="bf16", compare=states_and_embedding)
        print(tune(model.eval(), solved, texts, read_all("tune", texts, model), masks, options), flush=True)
    else:
        solver = sc.LeastSquares(damping=0.01)
        solved = sc.compensate(half, masks, data, dense=model, solver=solver).model
    small = sc.shrink(solved, masks, data[0])
    seconds = time.process_time() - start

    def cosine(net: nn.Module) -> float:
        return float((bench.embeddings(net) * bench.wanted).sum(1).mean())

    found = cosine(small.model)
    print(
        f"MiniLM, layers left {dict(small.plan.layers)}: mean cosine {cosine(half):.4f} taken out, {found:.4f} "
        f"afterwards ({passes} passes, {seconds:.0f} s of the processor)",
        flush=True,
    )
    return Row("MiniLM, 1 - mean cosine", 1 - found, 1.0, 0.10, "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="speed,minilm")
    parser.add_argument("--minilm")
    parser.add_argument(
        "--layers", default="", help="the layers to remove, by comma; by default block influence chooses"
    )
    parser.add_argument(
        "--passes", type=int, default=5, help="of tuning; 0 solves the layers by least squares instead"
    )
    parser.add_argument("--lr", type=float, default=0.005, help="of tuning, as a share of a weight's size")
    parser.add_argument(
        "--keep", default="0.6", help="share of the multiply-accumulates that remains; several by comma"
    )
    parser.add_argument(
        "--early", action="store_true", help="the first layers leave, not those that l2 chooses"
    )
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--trials", type=int, default=25)
    given = parser.parse_args()
    parts, rows = given.only.split(","), []
    if "minilm" in parts:
        if given.minilm:
            rows.append(minilm(given.minilm, given.layers, given.passes, given.lr))
        else:
            print("MiniLM: no weights; name their folder with --minilm")
    if "speed" in parts:
        torch.set_num_threads(1)
        for keep in given.keep.split(","):
            rows += speed(float(keep), given.size, given.trials, given.early)
    title = "Whole layers: speed-up by channels (ours) over that by layers (peer); 1 - cosine of MiniLM"
    return report(rows, title) if rows else 0


if __name__ == "__main__":
    sys.exit(main())

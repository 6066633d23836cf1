"""What INT8 and removed channels gain together: `python benchmarks/bench_int8.py [--models ...] [--size 224]`.

    python benchmarks/bench_int8.py --models torchvision/resnet50 torchvision/vgg16
    python benchmarks/bench_int8.py --models torchvision/vit_b_16 minilm --keep 0.5 --dynamic
    python benchmarks/bench_int8.py --models minilm --keep 0.67 --granularity layer --heads 0.83 --dynamic
    python benchmarks/bench_int8.py --models timm/efficientnet_lite0 --lost 0.05
    python benchmarks/bench_int8.py --models resnet20 --weights FILE --data FOLDER
    python benchmarks/bench_int8.py --models resnet20 --weights FILE --data FOLDER --small results/model.sct
    python benchmarks/bench_int8.py --models lite0 --weights FILE.pth --data FOLDER

Every model is exported to ONNX four times: dense in floats; pruned (`Macs(keep=0.25, round_to=16)`, channels removed);
dense in INT8; pruned and in INT8. Convolutional networks are quantised statically, on random images; with `--dynamic`
dynamically. Each is timed against the dense float file in turns, in ONNX Runtime on one thread; the medians of the
ratios are printed, and the agreement of the INT8 file with the float model it was made from. INT8 files of transformers
are also written in faster operators (attention as one, norms apart from additions); `rewritten` is the dense float file
in these, to be read beside the others. `both` is also timed in a row: each reading after a pass of its own, so that
weights are in the caches. `--granularity layer` removes whole layers in place of channels, and `--heads`
a share of the heads of those that remain. `--own` lets INT8 files have ONNX Runtime's own operator for attention with
its products; `rewritten` then has its attention too.

Weights are random, so agreement says little about trained networks; `minilm` is BERT with the sizes of
all-MiniLM-L6-v2 on 128 tokens. With `--weights` and `--data`, ResNet-20 is pruned on CIFAR-10, compensated, and judged
by its accuracy on the test images. `--small` names the file that `recipes/resnet20-int8.toml` retrained, which is
measured in its place. With `lite0`, EfficientNet-Lite0 with ImageNet weights is written in INT8 within an agreement of
0.95 with the float model on CIFAR-10's images, enlarged, and nothing is timed. `--account` adds where the time of each
file goes, by ONNX Runtime's own profiler: the operators by their share, so that what stays in float and what quantises
activations are seen. The product of the two separate ratios is the peer: what is missing from it is time
that neither shortens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from safetensors.torch import load_file
from torch import nn

import secateur as sc
from secateur.adapters.export import export
from secateur.adapters.int8 import Int8Options
from secateur.adapters.onnx_model import OnnxModel, runs_attention
from secateur.adapters.onnx_norms import apart
from secateur.adapters.onnx_settled import settled
from secateur.adapters.programs import ATTENTION, attends, record_program, write_program
from secateur.metrics.latency import compare

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "zoo"))
from _common import Row, report

from models import Entry, build, declare_torchvision, randomise

GOALS = {
    "torchvision/resnet50": 10.0,
    "torchvision/vgg16": 10.0,
    "torchvision/vit_b_16": 7.0,
    "minilm": 7.0,
    "resnet20": 4.0,
}
AGREEMENT = {"timm/efficientnet_lite0": 0.95}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Case:
    """A model and what it is measured with.

    Attributes:
        dense: The model.
        pruned: The model with channels removed.
        example: One input.
        batches: Inputs to calibrate on and to compare.
        test: Images and labels to judge files by; None where weights are random.
    """

    dense: nn.Module
    pruned: nn.Module
    example: Any
    batches: list[Any]
    test: tuple[torch.Tensor, torch.Tensor] | None = None


def cut(
    model: nn.Module, example: Any, given: argparse.Namespace, inputs: list[Any] | None = None
) -> nn.Module:
    """The model without the channels that the budget removes, solved anew on inputs where there are some."""
    layers = given.granularity == "layer"
    spread = {"spread": "overall"} if layers else {"round_to": given.round_to}
    budget = sc.budget.Macs(keep=given.keep, **spread)
    masks = sc.prune(model, "l2", given.granularity, budget, example=example)
    kept = sc.compensate(model, masks, inputs).model if inputs else model
    small = sc.shrink(kept, masks, example).model
    if given.heads:
        small = sc.shrink(small, sc.prune(small, "l2", "head", given.heads, example=example), example).model
    before, after = (
        float(next(iter(sc.measure(each, example, what=["macs"]))).value) for each in (model, small)
    )
    print(f"{after / before:.3f} of the multiply-accumulates remain", flush=True)
    return small


def case_of(name: str, given: argparse.Namespace) -> Case:
    """The model of a name, dense and pruned."""
    torch.manual_seed(0)
    if name == "resnet20":
        return resnet20(given)
    if name == "minilm":
        declare_torchvision()  # transformers imports it
        import transformers

        sizes = {
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
        }
        model = randomise(
            transformers.BertModel(transformers.BertConfig(**sizes), add_pooling_layer=False)
        ).eval()
        model.config.use_cache = False
        tokens = [{"input_ids": torch.randint(3, 30_000, (1, 128))} for _ in range(given.batches)]
        return Case(model, cut(model, tokens[0], given), tokens[0], tokens)
    library, _, word = name.rpartition("/")
    model, x = build(Entry(library, word, given.size))
    images = [torch.randn(1, 3, given.size, given.size) for _ in range(given.batches)]
    return Case(model.eval(), cut(model.eval(), x, given), x, images)


def resnet20(given: argparse.Namespace) -> Case:
    """ResNet-20 with given weights on CIFAR-10, pruned and compensated on training images."""
    if not (given.weights and given.data):
        raise SystemExit("resnet20 needs --weights FILE and --data FOLDER (CIFAR-10)")
    model = sc.models.build("resnet20").eval()
    model.load_state_dict(load_file(given.weights))
    data = sc.data.load("cifar10", path=given.data, normalise=(MEAN, STD))
    inputs = [images for images, _ in data.train.leading(1024).batches(128)]
    x = inputs[0][:1]
    if given.small:
        small = sc.load(given.small, into=sc.models.build("resnet20")).eval()
    else:
        small = cut(model.eval(), x, given, inputs)
    return Case(model, small, x, inputs, data.test.first(len(data.test)))


def accuracy(model: nn.Module, test: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Top-1, one image at a time, as the files were exported for."""
    with torch.no_grad():
        right = sum(
            int(model(image[None]).argmax()) == int(label) for image, label in zip(*test, strict=True)
        )
    return right / len(test[1])


def account(path: Path, example: Any, passes: int = 5, most: int = 8) -> str:
    """The share of the time of a file that each kind of operator takes, the largest first."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = 1, True
    options.profile_file_prefix = str(path.with_suffix(""))
    peer = OnnxModel(path, threads=1)
    peer.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for _ in range(passes):
        peer(**example) if isinstance(example, dict) else peer(example)
    events = json.loads(Path(peer.session.end_profiling()).read_text(encoding="utf-8"))
    readings: dict[tuple[str, str], list[int]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            readings.setdefault((event["args"]["op_name"], event["name"]), []).append(event["dur"])
    times: Counter[str] = Counter()
    for (operator, _), found in readings.items():
        times[operator] += sorted(found)[len(found) // 2]
    total = max(1, sum(times.values()))
    return ", ".join(f"{operator} {time / total:.0%}" for operator, time in times.most_common(most))


def in_a_row(dense: OnnxModel, file: OnnxModel, example: Any, trials: int) -> float:
    """How many times as fast a file is where each reading follows a pass of its own, by processor time: its weights are
    in the caches, as where one model is served. In `compare` each pass follows one of the other file.
    """
    feeds = [
        peer.feed(**example) if isinstance(example, dict) else peer.feed(example) for peer in (dense, file)
    ]
    ratios = []
    for _ in range(trials):
        times = []
        for peer, feed in zip((dense, file), feeds, strict=True):
            peer.session.run(None, feed)
            start = time.process_time()
            for _ in range(3):
                peer.session.run(None, feed)
            times.append(time.process_time() - start)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios)


def rewritten(case: Case, path: Path, own: bool) -> None:
    """The dense float file as the INT8 files are written: attention as one operator (of the runtime's), norms apart,
    what is the same for every input left out.
    """
    program, _ = record_program(case.dense, case.example, True)
    write_program(program, path, True, ATTENTION if attends(program) and runs_attention() else None)
    graph = onnx.load(str(path))
    settled(graph)
    apart(graph)
    if own:
        own_attention(graph)
    onnx.save(graph, str(path))


def own_attention(model: onnx.ModelProto) -> None:
    """Every attention as ONNX Runtime's MultiHeadAttention, which needs no transposes; masks of ones are left out."""
    graph = model.graph
    made = {name: node for node in graph.node for name in node.output}
    stored = {item.name: item for item in graph.initializer}
    for node in [each for each in graph.node if each.op_type == "Attention"]:
        shapes = [made[made[name].input[0]] for name in node.input[:3]]
        if any(each.op_type != "Reshape" or each.input[1] not in stored for each in shapes):
            continue  # products that are one layer and then parted
        heads = int(onnx.numpy_helper.to_array(stored[shapes[0].input[1]])[-2])
        moved = next(each for each in graph.node if node.output[0] in each.input)
        joined = next(each for each in graph.node if moved.output[0] in each.input)
        new = onnx.helper.make_node(
            "MultiHeadAttention",
            [each.input[0] for each in shapes],
            [joined.output[0]],
            domain="com.microsoft",
            num_heads=heads,
        )
        graph.node.insert(list(graph.node).index(node), new)
        for each in (node, moved, joined):
            graph.node.remove(each)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))


def ratios(name: str, given: argparse.Namespace) -> dict[str, float]:
    """How many times as fast as the dense float file: pruned, INT8, and both; and the agreement of INT8."""
    case = case_of(name, given)
    options = Int8Options(
        lost=given.lost, compare=case.batches, own_operators=given.own, reduce_range=not given.eight_bits
    )
    int8 = "dynamic" if given.dynamic else case.batches
    with tempfile.TemporaryDirectory() as folder:
        kinds = ("dense", "rewritten", "pruned", "INT8", "both")
        paths = {kind: Path(folder) / f"{kind}.onnx" for kind in kinds}
        export(case.dense, paths["dense"], case.example)
        rewritten(case, paths["rewritten"], given.own)
        export(case.pruned, paths["pruned"], case.example)
        reports = {
            "INT8": export(case.dense, paths["INT8"], case.example, int8=int8, int8_options=options).int8,
            "both": export(case.pruned, paths["both"], case.example, int8=int8, int8_options=options).int8,
        }
        dense = OnnxModel(paths["dense"], threads=1)
        found: dict[str, float] = {"agreement": reports["INT8"].after}
        for kind in kinds[1:]:
            file = OnnxModel(paths[kind], threads=1)
            speedup = compare(dense, file, case.example, repetitions=given.trials, threads=1)["speedup"]
            report = reports.get(kind)
            noise = f", noise {report.noise:.1e}, {report.judged_by} {report.after:.4f}" if report else ""
            size = paths["dense"].stat().st_size / paths[kind].stat().st_size
            print(f"{name} {kind}: {speedup.text()}, file {size:.1f} times smaller{noise}", flush=True)
            found[kind] = float(speedup.value)
            if kind == "both":
                found["in a row"] = in_a_row(dense, file, case.example, given.trials)
                print(f"{name} both, in a row: {found['in a row']:.3f} x", flush=True)
            if case.test:
                found[f"top-1 {kind}"] = accuracy(file, case.test)
                print(f"{name} {kind}: top-1 {found[f'top-1 {kind}']:.4f}", flush=True)
        if case.test:
            found["top-1 dense"] = accuracy(dense, case.test)
        for kind, path in paths.items() if given.account else ():
            print(f"{name} {kind}, shares of its time: {account(path, case.example)}", flush=True)
    return found


def lite0(given: argparse.Namespace) -> Row:
    """One less the agreement of EfficientNet-Lite0's INT8 file with the float model, on 500 images."""
    from bench_compensate import Lite0

    if not (given.weights and given.data):
        raise SystemExit("lite0 needs --weights FILE.pth and --data FOLDER (CIFAR-10)")
    bench = Lite0(given.weights, given.data)
    options = Int8Options(
        calibration="percentile", lost=0.05, compare=bench.others, reduce_range=not given.eight_bits
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        done = export(bench.dense, path, bench.others[0], int8=bench.calibration, int8_options=options)
    print(f"EfficientNet-Lite0: {done.int8}", flush=True)
    assert done.int8 is not None
    return Row("EfficientNet-Lite0, 1 - agreement", 1 - done.int8.after, 1.0, 0.05, "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["torchvision/resnet50"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--keep", type=float, default=0.25, help="share of multiply-accumulates that remains")
    parser.add_argument("--granularity", choices=("channel", "layer"), default="channel")
    parser.add_argument("--round-to", type=int, default=16, help="widths are multiples of this")
    parser.add_argument(
        "--heads", type=float, default=0.0, help="share of the heads removed from what remains"
    )
    parser.add_argument("--trials", type=int, default=25)
    parser.add_argument("--batches", type=int, default=8, help="random images to calibrate on")
    parser.add_argument("--dynamic", action="store_true")
    parser.add_argument("--own", action="store_true", help="with --dynamic: ONNX Runtime's own operators")
    parser.add_argument(
        "--account", action="store_true", help="where the time of each file goes, by operator"
    )
    parser.add_argument(
        "--eight-bits", action="store_true", help="weights of 8 bits, right where the processor has VNNI"
    )
    parser.add_argument("--lost", type=float, default=0.999, help="agreement that INT8 may lose")
    parser.add_argument("--weights", help="trained weights of resnet20")
    parser.add_argument("--data", help="CIFAR-10, for resnet20")
    parser.add_argument("--small", help="resnet20 as the recipe leaves it: a .sct file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in given.models:
        if name == "lite0":
            rows.append(lite0(given))
            continue
        found = ratios(name, given)
        name = f"{name}, layers" if given.granularity == "layer" else name
        name = f"{name} and heads" if given.heads else name
        name = f"{name}, retrained" if given.small else name
        goal = GOALS.get(name.partition(",")[0], 1.0)
        rows.append(Row(f"{name}: goal and measured", goal, found["both"], 1.0, "x"))
        rows.append(Row(f"{name}: goal, and measured in a row", goal, found["in a row"], 1.0, "x"))
        against = found["both"] / found["rewritten"]
        rows.append(Row(f"{name}: goal, and measured against dense rewritten", goal, against, 9.99, "x"))
        if "top-1 dense" in found:
            lost = 100 * (found["top-1 dense"] - found["top-1 both"])
            rows.append(Row(f"{name}: accuracy lost, at most one point", lost, 1.0, 1.0, "points"))
        if name in AGREEMENT:
            rows.append(
                Row(f"{name}: agreement, goal and measured", AGREEMENT[name], found["agreement"], 1.0, "")
            )
        rows.append(
            Row(f"{name}: product and measured", found["pruned"] * found["INT8"], found["both"], 9.99, "x")
        )
    return report(
        rows, f"ONNX Runtime, one thread, {given.size} x {given.size}: times as fast as dense in floats"
    )


if __name__ == "__main__":
    sys.exit(main())

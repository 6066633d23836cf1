"""What only an accelerator can show: `python benchmarks/accelerator.py [--data FOLDER] [--only PIECE ...]`.

On a machine with CUDA or Apple's MPS each piece runs there in a process of its own, for nine minutes at most. Results
are kept in `--out`, a page is written after each, and a later call does what is missing. A study that was stopped goes
on from its store. Without an accelerator it says so and ends with 4. `--device cpu` rehearses what can run there.

Of these only `verbs` was ever run, and on a CPU: there was no accelerator where this was written.

- verbs: prune, shrink, compensate, share, save and load on the device, compared with the CPU
- precision: a short training in fp32, TF32, bf16 and fp16 (what the device has), its seconds and accuracy
- latency: dense and shrunk by the device's own events, in turns
- two-of-four: 2:4 kernels beside dense ones (CUDA)
- tests: the tests of devices, trainings and the simulated accelerator
- sharing: trials on one device under Ray, four at once on CUDA; a report draws what they took over time
- study NAME: every study at scale `full` (with --data)
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import secateur as sc
from secateur.adapters import two_of_four as adapter
from secateur.lab.store import Store
from secateur.metrics.latency import compare

MOST = 540
STUDIES = ("vae", "cnn", "resnet101", "at-init", "at-init-vgg16", "sensitivity", "deep-compression")
RECIPE = """
data = {name = "digits", limit = 400}
model = {name = "resnet20"}
step = [{kind = "train", epochs = 3, lr = 0.05, batch_size = 64}, {kind = "measure", what = ["accuracy"]}]
"""


def _pair(device: str) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return sc.models.build("resnet20").eval().to(device), torch.randn(8, 3, 32, 32).to(device)


def verbs(device: str) -> dict[str, Any]:
    """The verbs on the device: shapes, proof, and how far the outputs are from those on the CPU."""
    found = {}
    for place in ("cpu", device):
        model, x = _pair(place)
        masks = sc.prune(model, "l2", "channel", 0.5, example=x)
        sc.compensate(model, masks, [x])
        small = sc.shrink(model, masks, x)
        shared = sc.share(small.model, bits=5, start="linear").model
        with tempfile.TemporaryDirectory() as folder:
            sc.save(shared, Path(folder) / "a.sct", plan=small.plan)
            again = sc.load(Path(folder) / "a.sct", into=sc.models.build("resnet20").to(place)).eval()
        assert torch.equal(again(x), shared.eval()(x)), "what was loaded computes something else"
        found[place] = (
            {name: mask.cpu() for name, mask in masks.items()},
            small.model.eval()(x).detach().cpu(),
        )
    (ours, here), (theirs, there) = found["cpu"], found[device]
    return {
        "masks alike": all(torch.equal(ours[name], theirs[name]) for name in ours),
        "largest difference of outputs": float((here - there).abs().max()),
    }


def precision(device: str) -> dict[str, Any]:
    """A short training in each precision."""
    kinds = {"cuda": ("fp32", "tf32", "bf16", "fp16"), "mps": ("fp32", "bf16")}.get(device, ("fp32", "bf16"))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.toml"
        recipe.write_text(RECIPE)
        for kind in kinds:
            began = time.perf_counter()
            command = [
                "run",
                str(recipe),
                "--device",
                device,
                "--set",
                f"train.precision={kind}",
            ]
            done = _secateur([*command, "--store", f"{folder}/runs", "--out", f"{folder}/{kind}", "--json"])
            found[kind] = {"seconds": round(time.perf_counter() - began, 1), "said": done.stdout[-400:]}
            assert done.returncode == 0, done.stderr[-800:]
    return found


def latency(device: str) -> dict[str, Any]:
    """Dense and shrunk, in turns."""
    model, x = _pair(device)
    small = sc.shrink(copy.deepcopy(model), sc.prune(model, "l2", "channel", 0.5, example=x), x).model
    rows = compare(model, small, x, repetitions=5 if device == "cpu" else 25)
    return {row.name: [row.value, dict(row.spread)] for row in rows}


def two_of_four(device: str) -> dict[str, Any]:
    """A Linear layer of 4096 with two of every four weights removed, dense and by 2:4 kernels, in fp16."""
    model = torch.nn.Sequential(torch.nn.Linear(4096, 4096, bias=False)).half().to(device).eval()
    sc.prune(model, "magnitude", "element", sc.budget.NOfM(2, 4)).apply_(model)
    x = torch.randn(4096, 4096, dtype=torch.float16, device=device)
    return {"said": adapter.two_of_four(model, x)}


def tests(device: str) -> dict[str, Any]:
    """The tests that use a device where there is one."""
    paths = [
        "tests/accelerator",
        "tests/lab/test_devices.py",
        "tests/lab/test_training.py",
        "tests/pruning/test_hold.py",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:warnings", *paths]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1500:]
    return {"pytest": done.stdout.strip().splitlines()[-1]}


def sharing(device: str, out: Path = Path("accelerator-results")) -> dict[str, Any]:
    """Several trials at once on one device, under Ray: what they took of it over time, drawn in a report in `out`."""
    share = ["--gpus", "0.25"] if device == "cuda" else []
    command = ["study", "cnn", "--scale", "smoke", "--device", device, "--engine", "ray", *share]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        done = _secateur([*command, "--store", folder, "--out", str(out / "sharing")])
        assert done.returncode == 0, done.stderr[-800:]
        store = Store(folder)
        rows = [row for run in store.runs() for row in store.usage(run.id)]
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        what = found.setdefault(str(row.context["what"]), {"most": 0.0, "samples": 0})
        what["most"] = max([what["most"], *row.context["values"]])
        what["samples"] += len(row.context["values"])
    assert {"processors", "memory", "trials"} <= found.keys(), f"not sampled: {sorted(found)}"
    assert device != "cuda" or "GPU 0" in found, "no GPU was read: pip install nvidia-ml-py"
    return {"seconds": round(time.perf_counter() - began, 1), "over time": found}


def _secateur(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "secateur", *arguments], capture_output=True, text=True, check=False
    )


PIECES = {
    "verbs": verbs, "precision": precision, "latency": latency, "two-of-four": two_of_four, "tests": tests,
    "sharing": sharing,
}  # fmt: skip
CUDA_ONLY = ("two-of-four",)


def accelerator() -> str | None:
    """The accelerator of this machine."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else None


def command_of(piece: str, device: str, asked: argparse.Namespace) -> list[str]:
    """The process that does a piece."""
    if not piece.startswith("study "):
        return [sys.executable, __file__, "--piece", piece, "--device", device, "--out", str(asked.out)]
    name = piece.removeprefix("study ")
    place = ["--data", str(asked.data), "--store", str(asked.out / "store"), "--out", str(asked.out / name)]
    return [sys.executable, "-m", "secateur", "study", name, "--scale", "full", "--device", device, *place]


def page(found: dict[str, Any], device: str) -> str:
    """What was found, in Markdown."""
    name = torch.cuda.get_device_name() if device == "cuda" else device
    lines = [
        f"# On {name}",
        "",
        f"torch {torch.__version__}",
        "",
        "| piece | state | result |",
        "|---|---|---|",
    ]
    for piece, row in found.items():
        lines.append(f"| {piece} | {row['state']} | {json.dumps(row['result']).replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Every piece that is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", help="cuda or mps; cpu to rehearse")
    parser.add_argument("--data", type=Path, help="the folder with mnist and cifar10, for the studies")
    parser.add_argument("--only", nargs="+", help="these pieces alone")
    parser.add_argument("--out", type=Path, default=Path("accelerator-results"))
    parser.add_argument("--piece", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    device = asked.device or accelerator()
    if device is None:
        print(
            "there is no accelerator here: neither CUDA nor MPS; nothing was measured (--device cpu rehearses)"
        )
        return 4
    if asked.piece:
        piece = PIECES[asked.piece]
        print(json.dumps(piece(device, asked.out) if piece is sharing else piece(device)))
        return 0
    asked.out.mkdir(parents=True, exist_ok=True)
    kept = asked.out / "results.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    names = [name for name in PIECES if device == "cuda" or name not in CUDA_ONLY]
    names += [f"study {name}" for name in STUDIES] if asked.data else []
    for name in [each for each in names if not asked.only or each in asked.only]:
        if found.get(name, {}).get("state") == "done":
            continue
        try:
            done = subprocess.run(
                command_of(name, device, asked), capture_output=True, text=True, check=False, timeout=MOST
            )
            state = "done" if done.returncode == 0 else "failed"
            result = done.stdout.strip().splitlines()[-1:] if state == "done" else done.stderr[-1500:]
        except subprocess.TimeoutExpired:
            state, result = "to go on", "stopped after nine minutes: run this again"
        found[name] = {"state": state, "result": result}
        kept.write_text(json.dumps(found, indent=1))
        (asked.out / "accelerator.md").write_text(page(found, device))
        print(f"{name}: {state}", flush=True)
    return 0 if all(row["state"] == "done" for row in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

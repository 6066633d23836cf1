"""A model larger than memory, pruned on data: `python benchmarks/bench_blocks.py --layers 22`, 1.1 billion parameters.

Writes a Llama of random bf16 weights in the widths of TinyLlama 1.1B in shards, then, each in a process of its own:
prunes it by Wanda at 50 % and solves the weights that stay, block by block; shares the result at 4 bits; packs it.
Prints the peak memory of each, the processor's time for a billion parameters, and what a model of 70 billion would take
by those figures. Needs transformers and three times the checkpoint's size of disk space; everything is deleted at the
end. The folder is the system's for temporary files, or BENCH_DIR.

With `--folder FOLDER` the files stay there, and a run that was ended goes on when called again: steps that are done are
not repeated, and the processor's time of all runs counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record

HIDDEN, INNER, WORDS, KEYS = 2048, 5632, 32000, 256
LARGE = {"hidden": 8192, "inner": 28672, "keys": 1024, "words": 128256, "layers": 80}  # Llama 3 70B
GOAL = 3 << 30  # bytes of peak memory
START = """
import os, resource, sys
from secateur.adapters import _fresh
_fresh._declare_torchvision()
def note(*_):
    used = resource.getrusage(resource.RUSAGE_SELF)
    with open(sys.argv[1] + ".log", "a") as file:
        file.write(f"{os.getpid()} {used.ru_maxrss} {used.ru_utime + used.ru_stime}\\n")
"""
END = """
note()
"""
BODIES = {
    "prune and compensate": """
import torch
from secateur.compensation.solver import LeastSquares
from secateur.streaming.compensated import BlockOptions, compensate_checkpoint
chance = torch.Generator().manual_seed(0)
shape = (1, int(sys.argv[5]))
tokens = [{"input_ids": torch.randint(0, 32000, shape, generator=chance)} for _ in range(int(sys.argv[4]))]
options = BlockOptions(solver=LeastSquares(rounds=int(sys.argv[6])))
done = compensate_checkpoint(sys.argv[2], sys.argv[3], tokens, "wanda", 0.5, options=options, progress=note)
kept = sum(row["kept"] for row in done.rows) / sum(row["weights"] for row in done.rows)
before, after = (sum(row[key] for row in done.rows) / len(done.rows) for key in ("before", "after"))
print(f"kept {kept:.3f}; squared error of a layer's outputs {before:.4f}, then {after:.4f}", file=sys.stderr)
""",
    "share": """
from secateur.streaming.shared import share_checkpoint
from secateur.streaming.pruned import StreamOptions
share_checkpoint(sys.argv[2], sys.argv[3], 4, options=StreamOptions(workers=1), progress=note)
""",
    "pack": """
from secateur.container.pack import pack
pack(sys.argv[2], sys.argv[3], workers=1)
""",
}


def shapes(layers: int) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors."""
    found: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (WORDS, HIDDEN))]
    block = {
        "input_layernorm": (HIDDEN,),
        "mlp.down_proj": (HIDDEN, INNER),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "post_attention_layernorm": (HIDDEN,),
        "self_attn.k_proj": (KEYS, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.v_proj": (KEYS, HIDDEN),
    }
    for number in range(layers):
        found += [(f"model.layers.{number}.{name}.weight", shape) for name, shape in block.items()]
    return [*found, ("model.norm.weight", (HIDDEN,)), ("lm_head.weight", (WORDS, HIDDEN))]


def write(folder: Path, layers: int) -> int:
    """Write the checkpoint in files of at most 500 MB, and its configuration; gives the number of parameters."""
    import torch
    from safetensors.torch import save_file

    if (folder / "config.json").is_file():
        return sum(int(np.prod(shape)) for _, shape in shapes(layers))
    folder.mkdir(parents=True, exist_ok=True)
    chance = torch.Generator().manual_seed(0)
    files: list[dict[str, torch.Tensor]] = [{}]
    where: dict[str, str] = {}
    total, filled = 0, 0

    def flush(last: bool = False) -> None:
        nonlocal filled
        name = f"model-{len(files):05d}.safetensors"
        save_file(files[-1], folder / name, {"format": "pt"})
        where.update(dict.fromkeys(files[-1], name))
        files[-1].clear()
        if not last:
            files.append({})
        filled = 0

    for name, shape in shapes(layers):
        count = int(np.prod(shape))
        if filled + 2 * count > 5e8 and files[-1]:
            flush()
        scale = 0.02 if len(shape) > 1 else 0.0
        tensor = torch.empty(shape).normal_(0.0, 1.0, generator=chance) * scale + (
            1.0 if len(shape) == 1 else 0.0
        )
        files[-1][name] = tensor.bfloat16()
        total, filled = total + count, filled + 2 * count
    flush(last=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": WORDS,
        "max_position_embeddings": 2048,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return total


def run(body: str, source: Path, target: Path, *arguments: object) -> tuple[int, float]:
    """Peak memory in bytes and processor seconds of a step in a process of its own, or in several if it was ended."""
    log = Path(f"{target}.log")
    if not target.exists():
        command = [
            sys.executable,
            "-c",
            START + body + END,
            *map(str, (target, source, target)),
            *map(str, arguments),
        ]
        subprocess.run(command, check=True)
    peak, seconds = 0, {}
    for line in log.read_text().splitlines():
        process, most, used = line.split()
        peak, seconds[process] = max(peak, int(most)), float(used)
    return peak * (1 if sys.platform == "darwin" else 1024), sum(seconds.values())


def extrapolated(seconds: float, in_blocks: int, cubes: float) -> float:
    """Hours for Llama 3 70B: the time for a parameter, times the ratio of features, with which each is solved."""
    large = LARGE
    per_block = (
        2 * large["hidden"] ** 2 + 2 * large["hidden"] * large["keys"] + 3 * large["hidden"] * large["inner"]
    )
    mean = (
        large["hidden"] ** 2 * (2 * large["hidden"] + 2 * large["keys"])
        + 2 * large["hidden"] ** 2 * large["inner"]
        + large["inner"] ** 2 * large["hidden"]
    ) / per_block
    return seconds / in_blocks * per_block * large["layers"] * mean / cubes / 3600


def main() -> None:
    """Run the steps and print what they took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=1, help="blocks; 22 are 1.1 billion parameters")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256, help="of each sequence")
    parser.add_argument(
        "--rounds", type=int, default=8, help="of conjugate gradients for each layer, at most"
    )
    parser.add_argument("--only", default="", help="only the steps that begin with this")
    parser.add_argument(
        "--folder", type=Path, help="where the files are kept, and a run that was ended goes on"
    )
    asked = parser.parse_args()
    missed = False
    with ExitStack() as stack:
        scratch = asked.folder or stack.enter_context(
            tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR"))
        )
        places = [Path(scratch, name) for name in ("in", "pruned", "shared", "packed.sct")]
        total = write(places[0], asked.layers)
        in_blocks = sum(int(np.prod(shape)) for name, shape in shapes(asked.layers) if ".layers." in name)
        print(
            f"{total / 1e9:.3f} billion parameters, {in_blocks / 1e9:.3f} in {asked.layers} blocks; "
            f"{asked.sequences} sequences of {asked.tokens} tokens, {asked.rounds} rounds",
            flush=True,
        )
        cubes = (
            sum(int(np.prod(s)) * s[1] for n, s in shapes(asked.layers) if ".layers." in n and len(s) > 1)
            / in_blocks
        )
        for (step, body), source, target in zip(BODIES.items(), places, places[1:]):
            if not step.startswith(asked.only):
                break
            more = (asked.sequences, asked.tokens, asked.rounds) if step.startswith("prune") else ()
            peak, seconds = run(body, source, target, *more)
            missed |= peak > GOAL
            base = in_blocks if step.startswith("prune") else total
            hours = extrapolated(seconds, in_blocks, cubes) if more else seconds / total * 70.6e9 / 3600
            print(
                f"{step}: peak {peak / 2**20:,.0f} MiB (goal < 3,072){'   MISSED' if peak > GOAL else ''}, "
                f"{seconds:,.0f} s of processor time, {seconds / base * 1e9:,.0f} s for a billion; "
                f"70 billion on this core: {hours:,.1f} h",
                flush=True,
            )
            record(
                Figure(f"{step}: peak memory", peak / 2**20, "MiB", GOAL / 2**20),
                Figure(f"{step}: processor time for a billion parameters", seconds / base * 1e9, "s"),
            )
        if places[-1].is_file():
            size = places[-1].stat().st_size
            record(Figure("file", size, "bytes", tolerance=0.001, detail=f"of {2 * total:,}"))
            print(f"file: {size:,} bytes of {2 * total:,} ({2 * total / size:.2f}x)")
    sys.exit(missed)


if __name__ == "__main__":
    main()

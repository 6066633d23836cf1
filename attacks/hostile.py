"""Mutations of .sct files, and the judge: a hostile file ends in a `FormatError`, soon, in little memory.

`sample()` is a small honest file with every way of storing a tensor, `strong_sample()` one of what else streams can be:
the strong coder's, and planes that are deflated; `framed_sample()` has planes in Zstandard frames; `compact_sample()`
is a file without sections. `reseal` mends the checksums of a mutated file, so that what lies behind them is attacked
too.
"""

from __future__ import annotations

import io
import json
import random
import zlib
from collections.abc import Collection, Sequence

import numpy as np

from secateur.coding import digits, frames, indices, static, varint
from secateur.container import codebooks, slices, tensors
from secateur.container import format as sct
from secateur.container.compact_writer import CompactWriter
from secateur.container.format import Entry
from secateur.container.frame import Archive
from secateur.container.reading import words_of
from secateur.container.scalar_streams import ScalarGrid, ScalarStreams
from secateur.container.writer import Writer
from secateur.errors import FormatError

MAGIC_SIZE = 5


def numbers(count: int, seed: int) -> np.ndarray:
    """Whole numbers from a generator of our own, so that they are the same everywhere for ever."""
    out, state = [], seed
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        out.append(state >> 40)
    return np.array(out, dtype=np.int64)


def bell(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Numbers around zero, more near it than far away: sums of four even ones, exact in float32."""
    count = int(np.prod(shape))
    total = numbers(4 * count, seed).reshape(4, -1).sum(axis=0) - (1 << 25)
    return (total.astype(np.float32) / np.float32(1 << 24)).reshape(shape)


class _Some(Writer):
    """A writer that leaves out all tensors but some, and the text and the lanes if these need none.

    Args:
        file: What is written to.
        only: The tensors to write; all, if there are none.
        folded: As of `Writer`.
    """

    def __init__(self, file: io.BytesIO, only: Collection[str], folded: bool = False):
        self._only = only
        super().__init__(file, folded=folded)

    def text(self, key: str, value: bytes) -> None:
        if not self._only:
            super().text(key, value)

    def numbers(self, payload: bytes, *version: int) -> None:
        if not self._only or any(name.startswith("lane") for name in self._only):
            super().numbers(payload, *version)

    def add(self, entry: Entry, decoded: bytes | memoryview, method: int, parts: Sequence[bytes]) -> None:
        if not self._only or entry.name in self._only:
            super().add(entry, decoded, method, parts)


def sample(only: Collection[str] = ()) -> bytes:
    """An honest file: every method, both models of indices, a codebook of each kind, lanes, a text.

    Args:
        only: The tensors to write, in place of all.
    """
    file = io.BytesIO()
    writer = _Some(file, only, folded=True)
    writer.text(
        "plan", tensors.text(b'{"keep": {"conv.weight": {"0": [0, 1, 3, 4, 5, 7]}}, "version": 1}' * 3)
    )

    writer.numbers(ScalarStreams(LANES).payload())

    def add(name: str, dtype: str, words: np.ndarray, way: tuple[int, list[bytes]]) -> None:
        entry = Entry(name, dtype, words.shape)
        writer.add(entry, words.tobytes(), *way)

    conv = np.round(bell((8, 4, 3, 3), 1) * 6).astype(np.float32) / np.float32(8)
    words = conv.view(np.uint32)
    entry = Entry("conv.weight", "F32", conv.shape)
    add("conv.weight", "F32", words, tensors.encode(entry, words, "mixed", writer.memory))
    add("conv.tied", "F32", words, (sct.SAME, [varint.write(1)]))
    values = bell((7,), 5)[np.abs(numbers(60, 6)) % 7].reshape(6, 10)
    words = values.view(np.uint32)
    entry = Entry("fc.weight", "F32", words.shape)
    few = codebooks.few_levels(words, entry)
    assert few is not None
    add("fc.weight", "F32", words, tensors.indexed(entry, *few, "fast", writer.memory))
    add("fc.again", "F32", words, tensors.indexed(entry, *few, "mixed", writer.memory))
    sparse = bell((20, 8), 7)
    sparse[np.abs(sparse) < 0.5] = 0
    words = sparse.view(np.uint32)
    mask = (words != 0).astype(np.int32)
    kept = tensors.floats.encode(words[words != 0], True)
    stream = indices.encode(mask, 2, 0, "mixed", writer.memory)
    add("sparse", "F32", words, (sct.SPARSE, [stream, kept]))
    words = (bell((120,), 8) * 0.01).view(np.uint32)
    add("dense", "F32", words, (sct.PACKED, [tensors.floats.encode(words, True)]))
    add("dense.raw", "F32", words[:3], (sct.RAW, [words[:3].tobytes()]))
    add("zeros", "BF16", np.zeros((3, 5), dtype=np.uint16), (sct.ZERO, []))
    add("steps", "I64", np.full((), 4000, dtype=np.uint64), (sct.CONST, [np.uint64(4000).tobytes()]))
    entry = Entry("scale", "F32", (40,))
    method, parts, words = tensors.cast(entry, np.abs(bell((40,), 9)).view(np.uint32), "F16")
    add("scale", "F32", words, (method, parts))
    for name, logarithmic in (("bn.weight", True), ("bn.bias", False)):
        entry = Entry(name, "F32", (24,))
        method, parts, words = tensors.grid(entry, bell((24,), 10).view(np.uint32), logarithmic)
        add(name, "F32", words, (method, parts))
    few = codebooks.few_levels(SMALL_MULTIPLES.view(np.uint32), Entry("few.weight", "F32", (5, 8)))
    assert few is not None
    way = tensors.indexed(Entry("few.weight", "F32", (5, 8)), *few, "fast", writer.memory)
    add("few.weight", "F32", SMALL_MULTIPLES.view(np.uint32), way)
    for lane, (grid, drawn) in enumerate(LANES):
        words = grid.values(drawn).view(np.uint32)
        add(f"lane{lane}.weight", "F32", words[:9], (sct.DRAWN + lane, []))
        add(f"lane{lane}.more", "F32", words[9:].reshape(3, -1), (sct.DRAWN + lane, []))
    writer.finish()
    return file.getvalue()


def strong_sample(only: Collection[str] = ()) -> bytes:
    """An honest file: streams of the strong coder, of a kernel, a matrix and a mask, and deflated byte planes.

    Args:
        only: The tensors to write, in place of all.
    """
    file = io.BytesIO()
    writer = _Some(file, only)
    for number, shape in enumerate([(12, 6, 3, 3), (9, 32)]):
        values = np.round(bell(shape, 20 + number) * 5).astype(np.float32) / np.float32(8)
        words = values.view(np.uint32)
        entry = Entry(f"conv{number}.weight", "F32", shape)
        few = codebooks.few_levels(words, entry)
        assert few is not None
        writer.add(entry, words.tobytes(), *tensors.indexed(entry, *few, "strong", writer.memory))
    sparse = bell((24, 16), 22)
    sparse[np.abs(sparse) < 0.7] = 0
    words = sparse.view(np.uint32)
    stream = indices.encode((words != 0).astype(np.int32), 2, 0, "strong", writer.memory)
    way = (sct.SPARSE, [stream, _deflated(words[words != 0])])
    writer.add(Entry("sparse", "F32", words.shape), words.tobytes(), *way)
    for name, dtype, kind in (("wide", "F32", np.uint32), ("narrow", "BF16", np.uint16)):
        whole = (bell((300,), 23) * 0.01).view(np.uint32) >> np.uint32(32 - 8 * np.dtype(kind).itemsize)
        words = whole.astype(kind)
        entry = Entry(name, dtype, words.shape)
        writer.add(entry, words.tobytes(), sct.PACKED, [_deflated(words)])
    writer.finish()
    return file.getvalue()


def small_samples() -> list[bytes]:
    """Honest files of one or a few tensors each: everything that the three samples have, soon reached by a reader."""
    lanes = [f"lane{lane}.{name}" for lane in range(len(LANES)) for name in ("weight", "more")]
    plain = (
        "dense",
        "dense.raw",
        "zeros",
        "steps",
        "scale",
        "bn.weight",
        "bn.bias",
        "few.weight",
        "fc.weight",
    )
    framed = (
        "wide",
        "narrow",
        "half",
        "double",
        "eighth",
        "whole",
        "bytes",
        "again",
        "run",
        "scale",
        "sparse",
    )
    return [
        *(sample([name]) for name in plain),
        sample(lanes),
        sample(["conv.weight", "conv.tied"]),
        *(strong_sample([name]) for name in ("wide", "narrow", "conv0.weight")),
        *(framed_sample([name]) for name in framed),
    ]


def _deflated(words: np.ndarray) -> bytes:
    """Packed floats whose planes are all deflated; the writer would do so with long ones only."""
    out = b""
    for plane in tensors.floats._planes(words, True)[::-1]:
        stream = tensors.floats._deflated(plane)
        out += b"\2" + varint.write(len(stream)) + stream
    return out


def framed_sample(only: Collection[str] = ()) -> bytes:
    """An honest file of version 3: frames of every kind of block, in every way and width that numbers are packed in.

    Args:
        only: The tensors to write, in place of all.
    """
    file = io.BytesIO()
    writer = _Some(file, only)

    def add(name: str, dtype: str, words: np.ndarray, floating: bool = True) -> None:
        entry = Entry(name, dtype, words.shape)
        writer.add(entry, words.tobytes(), sct.PACKED, [_framed(words, floating)])

    add("wide", "F32", (bell((500,), 30) * 0.01).view(np.uint32))
    add("narrow", "BF16", ((bell((1100,), 31) * 0.01).view(np.uint32) >> np.uint32(16)).astype(np.uint16))
    add("half", "F16", (bell((300,), 32) * 0.01).astype(np.float16).view(np.uint16))
    add("double", "F64", (bell((60,), 33) * 0.01).astype(np.float64).view(np.uint64))
    add("eighth", "F8_E4M3", (numbers(90, 34) % 7 * 16 + 128 * (numbers(90, 35) & 1)).astype(np.uint8))
    add("whole", "I32", (numbers(80, 36) % 900).astype(np.uint32), floating=False)
    add("bytes", "U8", (numbers(40, 37) % 3 + 5).astype(np.uint8), floating=False)
    add("again", "U8", np.tile(numbers(90, 40) % 50, 20).astype(np.uint8), floating=False)  # has matches
    run = np.frombuffer(b"ab" + b"\7" * 70 + b"z", dtype=np.uint8)
    frame = frame_of([b"ab", (7, 70), b"z"])
    part = b"\3\3" + varint.write(len(frame)) + frame
    writer.add(Entry("run", "U8", run.shape), run.tobytes(), sct.PACKED, [part])
    sparse = bell((24, 16), 38)
    sparse[np.abs(sparse) < 0.7] = 0
    words = sparse.view(np.uint32)
    stream = indices.encode((words != 0).astype(np.int32), 2, 0, "mixed", writer.memory)
    way = (sct.SPARSE, [stream, _framed(words[words != 0], True)])
    writer.add(Entry("sparse", "F32", words.shape), words.tobytes(), *way)
    method, parts, words = tensors.cast(Entry("scale", "F32", (50,)), bell((50,), 39).view(np.uint32), "F16")
    narrow = words.view(np.float32).astype(np.float16).view(np.uint16)
    writer.add(Entry("scale", "F32", (50,)), words.tobytes(), method, [parts[0], _framed(narrow, True)])
    writer.finish()
    return file.getvalue()


def _framed(words: np.ndarray, floating: bool) -> bytes:
    """Numbers in the layout of version 3 whose digits are kept in all ways; the writer would frame long planes only."""
    words = words.reshape(-1)
    count = max(1, words.dtype.itemsize // 2)
    ways: list[tuple[int, ...]] = [(3, 3), (3, 3), (4,), (4,)][:count] if words.itemsize > 1 else [(3,)]
    out = b"\3"
    for number, planes in enumerate(digits._split(words, floating, ways)):
        if ways[number] == (4,):
            out += b"\4" + planes[0].astype("<u2").tobytes()
            continue
        for lower, plane in enumerate(planes):
            if number == 0:
                coded = frames.compress(plane)
            elif not lower:
                coded = frame_of([plane[:9].tobytes(), plane[9:].tobytes()])
            elif floating:
                coded = static.encode(plane, 256)
            else:
                out += b"\0" + plane.tobytes()
                continue
            out += bytes([1 if number and lower else 3]) + varint.write(len(coded)) + coded
    return out


def frame_of(blocks: list[bytes | tuple[int, int]], size: int | None = None, flags: int = 0xA0) -> bytes:
    """A Zstandard frame of raw blocks (bytes) and of repeated bytes (which, how often), made by hand.

    `size` is what it claims to hold, `flags` its descriptor; 0xA0 is one segment with a size of four bytes.
    """
    held = sum(block[1] if isinstance(block, tuple) else len(block) for block in blocks)
    out = b"\x28\xb5\x2f\xfd" + bytes([flags]) + (held if size is None else size).to_bytes(4, "little")
    for number, block in enumerate(blocks, 1):
        kind, length = (1, block[1]) if isinstance(block, tuple) else (0, len(block))
        header = (number == len(blocks)) | kind << 1 | length << 3
        out += header.to_bytes(3, "little") + (bytes(block[:1]) if isinstance(block, tuple) else block)
    return out


# Values that are small multiples of a power of two, not in a row; and lanes of even ratios and of even steps.
SMALL_MULTIPLES = (
    (np.array([-6, -1, 0, 3, 8])[numbers(40, 12) % 5] / np.float32(32)).astype(np.float32).reshape(5, 8)
)
LANES = [
    (ScalarGrid(1, 0.125, 1.25), numbers(24, 13) % 30 - 9),
    (ScalarGrid.even(0.0625), numbers(21, 14) % 200 - 100),
    (ScalarGrid.even(0.5), numbers(12, 15) % 3 - 1),
    (ScalarGrid(1, 2.0, 0.75), np.zeros(15, dtype=np.int64)),
]


COMPACT_ENTRIES = [
    Entry("conv.weight", "F32", (8, 4, 3, 3)),
    Entry("conv.bias", "F32", (8,)),
    Entry("conv.tied", "F32", (8, 4, 3, 3)),
    Entry("norm.weight", "F32", (12,)),
    Entry("fc.weight", "F32", (5, 8)),
    Entry("fc.bias", "F32", (5,)),
    Entry("odd.weight", "F32", (6, 10)),
    Entry("steps", "I64", ()),
    Entry("zeros", "BF16", (3, 5)),
]


INT8_LIST = {"version": 1, "weights": {"0.weight": 0, "whole": None}}


def int8_sample(text: bytes | None = None) -> bytes:
    """An honest file with INT8 weights: one with a scale for each row, one with a single scale.

    Args:
        text: The list of INT8 weights, in place of the honest one.
    """
    file = io.BytesIO()
    writer = Writer(file)
    writer.text("int8", tensors.text(json.dumps(INT8_LIST).encode() if text is None else text))
    rows = (numbers(48, 21) % 255 - 127).astype(np.int8).reshape(4, 12)
    held = {
        "0.weight": ("I8", rows.view(np.uint8)),
        "0.weight.scale": ("F32", (np.arange(1, 5, dtype=np.float32) / 64).view(np.uint32)),
        "0.weight.zero_point": ("I32", np.zeros(4, np.uint32)),
        "0.bias": ("F32", bell((4,), 22).view(np.uint32)),
        "whole": ("U8", (numbers(6, 23) % 256).astype(np.uint8).reshape(2, 3)),
        "whole.scale": ("F64", np.array(0.125).view(np.uint64)),
        "whole.zero_point": ("I32", np.array(128, np.uint32)),
    }
    for name, (kind, words) in held.items():
        entry = Entry(name, kind, words.shape)
        writer.add(entry, words.tobytes(), *tensors.encode(entry, words, "fast", writer.memory))
    writer.finish()
    return file.getvalue()


def sliced_sample() -> bytes:
    """An honest file of version 6: tensors with values of their own in every slice, along either axis."""
    file = io.BytesIO()
    writer = Writer(file)
    scales = np.sqrt(np.arange(1, 9, dtype=np.float32))
    rows = (np.clip(np.round(bell((8, 60), 41) * 2), -3, 4) / np.float32(4)) * scales[:, None]
    columns = (numbers(40 * 6, 42) % 3 + 1).astype(np.uint16).reshape(40, 6) * np.arange(
        1, 7, dtype=np.uint16
    )
    kernels = np.clip(np.round(bell((4, 5, 3, 3), 43)), 0, 2).astype(np.float32)
    kernels = (kernels + 1) * scales[:4, None, None, None]
    held = {"rows": ("F32", rows, 0), "columns": ("U16", columns, 1), "kernels": ("F32", kernels, 0)}
    for name, (kind, values, axis) in held.items():
        words = values.astype(np.float32).view(np.uint32) if kind == "F32" else values
        entry = Entry(name, kind, words.shape)
        found = slices.few_in_slices(words, entry, axis)
        assert found is not None
        writer.add(entry, words.tobytes(), *slices.in_slices(entry, found, "mixed", writer.memory))
    writer.finish()
    return file.getvalue()


def compact_sample() -> bytes:
    """An honest file of version 5: both kinds of codebook, lanes of both kinds, and tensors of other methods."""
    file = io.BytesIO()
    writer = CompactWriter(file, COMPACT_ENTRIES, widths=b"\1\3")
    scale, even = ScalarGrid(1, 0.125, 1.25), ScalarGrid.even(0.5)
    scales, shifts = numbers(12, 13) % 30 - 9, numbers(13, 15) % 5 - 2
    none = np.zeros(0, dtype=np.int64)
    writer.lanes(ScalarStreams([(scale, scales), (even, none), (even, shifts)]))
    conv = (np.clip(np.round(bell((8, 4, 3, 3), 1) * 3), -2, 1) / np.float32(8)).astype(np.float32)
    odd = bell((7,), 5)[np.abs(numbers(60, 6)) % 7].reshape(6, 10)
    for entry in COMPACT_ENTRIES:
        way: tuple[int, list[bytes]]
        if entry.name == "conv.tied":
            words, way = conv.view(np.uint32), (sct.SAME, [varint.write(2)])
        elif entry.name.endswith(("bias", "norm.weight")):
            lane, grid, drawn = (0, scale, scales) if entry.name == "norm.weight" else (2, even, shifts)
            drawn = drawn[8:] if entry.name == "fc.bias" else drawn[: entry.numel]
            words, way = grid.values(drawn).view(np.uint32), (sct.DRAWN + lane, [])
        elif entry.name == "steps":
            words, way = np.full((), 4000, dtype=np.uint64), (sct.CONST, [np.uint64(4000).tobytes()])
        elif entry.name == "zeros":
            words, way = np.zeros((3, 5), dtype=np.uint16), (sct.ZERO, [])
        else:
            values = {"conv.weight": conv, "fc.weight": SMALL_MULTIPLES, "odd.weight": odd}[entry.name]
            words = values.view(np.uint32)
            few = codebooks.few_levels(words, entry)
            assert few is not None
            way = tensors.indexed(entry, *few, "strong", writer.memory)
        writer.add(entry, words.tobytes(), *way)
    writer.finish()
    return file.getvalue()


def _compact(data: bytes) -> bool:
    return data[MAGIC_SIZE - 1 : MAGIC_SIZE] == bytes([sct.COMPACT])


def sections(data: bytes) -> list[tuple[int, int, int]]:
    """(start, start of payload, end of payload) of the sections, as far as they can be followed.

    All of a compact file but its first bytes and last checksum counts as one.
    """
    if _compact(data):
        return [(MAGIC_SIZE, MAGIC_SIZE, len(data) - 4)] if len(data) > MAGIC_SIZE + 4 else []
    out, at = [], MAGIC_SIZE
    while at < len(data):
        reader = varint.Reader(data[at + 1 :], "section")
        try:
            length = reader.varint()
        except FormatError:
            break
        begin = at + 1 + reader.at
        if begin + length + 4 > len(data):
            break
        out.append((at, begin, begin + length))
        at = begin + length + 4
    return out


def reseal(data: bytes) -> bytes:
    """The same file with checksums that fit what it now holds."""
    out = bytearray(data)
    crc = zlib.crc32(out[:MAGIC_SIZE])
    for start, _, end in sections(data):
        crc = zlib.crc32(out[start:end], crc)
        out[end : end + 4] = crc.to_bytes(4, "little")
    return bytes(out)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four small damages: bits, bytes, runs cut, doubled, moved, or numbers made huge."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(out))
        kind = rng.randrange(7)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.randrange(256)
        elif kind == 2:
            del out[at : at + rng.randrange(1, 9)]
        elif kind == 3:
            out[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
        elif kind == 4:
            run = out[at : at + rng.randrange(1, 40)]
            place = rng.randrange(len(out))
            out[place:place] = run
        elif kind == 5:
            out[at:at] = b"\xff\xff\xff\xff\xff\xff\xff\x7f"
        else:
            out[at : at + 8] = bytes(8)
        if len(out) < 8:
            return bytes(out)
    return bytes(out)


def mutate_within(data: bytes, rng: random.Random) -> bytes:
    """Damage inside one section, its length and all checksums mended: the target is what lies behind them."""
    found = sections(data)
    start, begin, end = rng.choice(found)
    payload = mutate(data[begin:end], rng) if end > begin else b"\xff"
    head = data[:start] if _compact(data) else data[: start + 1] + varint.write(len(payload))
    return reseal(head + payload + data[end:])


def read(data: bytes) -> dict[str, bytes]:
    """Everything in a file, fully decoded."""
    archive = Archive(io.BytesIO(data), COMPACT_ENTRIES if _compact(data) else None)
    for key, value in archive.texts.items():
        tensors.read_text(value, key)
    return {record.entry.name: words.tobytes() for record, words in words_of(archive)}


def judge(data: bytes, honest: dict[str, bytes], resealed: bool = False) -> str:
    """'refused' or 'same'; anything else (a crash, other content) raises.

    Whoever mends all checksums can write any valid file, so a `resealed` one may also be 'another'.
    """
    try:
        content = read(data)
    except FormatError as error:
        if not str(error):
            raise AssertionError("a refusal must say what is wrong") from error
        return "refused"
    if content != honest:
        if resealed:
            return "another"
        raise AssertionError("a damaged file was accepted with other content")
    return "same"

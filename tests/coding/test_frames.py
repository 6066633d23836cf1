"""Zstandard frames: only exactly one, of exactly the bytes expected, and never more memory than these."""

from __future__ import annotations

import sys
import time
import tracemalloc
import types
from pathlib import Path

import numpy as np
import pytest

from secateur.coding import frames
from secateur.errors import FormatError, MissingExtraError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from attacks.hostile import frame_of

PLANE = np.random.default_rng(0).binomial(20, 0.5, 70_000).astype(np.uint8)


def test_frames_come_back() -> None:
    for plane in (PLANE, PLANE[:1], PLANE[:300], np.zeros(1 << 20, np.uint8), np.arange(256, dtype=np.uint8)):
        frame = frames.compress(plane)
        assert np.array_equal(frames.decompress(frame, plane.size), plane)
        assert np.array_equal(frames.decompress(memoryview(b"x" + frame)[1:], plane.size), plane)
    assert len(frames.compress(PLANE)) < 0.43 * PLANE.size


def test_frames_made_by_hand() -> None:
    frame = frame_of([b"ab", (7, 70), b"z"])
    assert frames.decompress(frame, 73).tobytes() == b"ab" + b"\7" * 70 + b"z"
    assert frames.decompress(b"\x28\xb5\x2f\xfd\x20\x02\x11\0\0hi", 2).tobytes() == b"hi"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"", "expected a Zstandard frame, found nothing"),
        (b"\x28\xb5", "found 28b5"),
        (b"\x28\xb5\x2f\xfd", "ends within its header"),
        (b"\x28\xb5\x2f\xfd\xa0\5\0", "ends within its header"),
        (b"\x50\x2a\x4d\x18\x02\0\0\0xx" + frame_of([b"hello"]), "found 502a4d18"),  # one to skip
        (b"\x27\xb5\x2f\xfd" + frame_of([b"hello"])[4:], "found 27b52ffd"),  # of an old draft
        (frame_of([b"hello"]) * 2, "followed by 17 bytes"),
        (frame_of([b"hello"]) + b"\0", "followed by 1 byte$"),
        (frame_of([b"hello"], size=1 << 31), "claims 2147483648 bytes, expected 5"),
        (frame_of([b"hello"], size=4), "claims 4 bytes, expected 5"),
        (
            b"\x28\xb5\x2f\xfd\xe0" + (1 << 60).to_bytes(8, "little") + b"\x29\0\0hello",
            "claims 1152921504606846976",
        ),
        (frame_of([b"hello"], flags=0xA4), "descriptor 0xa4"),  # with a checksum
        (frame_of([b"hello"], flags=0xA1), "descriptor 0xa1"),  # with a dictionary
        (frame_of([b"hello"], flags=0xA8), "descriptor 0xa8"),  # reserved
        (b"\x28\xb5\x2f\xfd\x00\x00\x29\0\0hello", "does not say how long"),
        (b"\x28\xb5\x2f\xfd\x80\xff\x05\0\0\0\x29\0\0hello", "window of more than 8388608 bytes"),
        (frame_of([b"hello"])[:-1], "ends 1 byte too early"),
        (frame_of([b"hello"])[:9] + b"\x2f\0\0hello", "has no block at byte 9"),  # reserved kind
        (frame_of([b"hello"])[:9] + b"\x28\0\0hello", "has no block at byte 17"),  # the last is missing
        (frame_of([b"hell"], size=5), "cannot be read|expected 5|does not end"),
        (frame_of([b"hello", b"more"], size=5), "cannot be read|expected 5|does not end"),
        (frame_of([(1, 1 << 20)], size=5), "cannot be read|expected 5|does not end"),
        (b"\x28\xb5\x2f\xfd\xa0\5\0\0\0\x2d\0\0hello", "cannot be read"),  # called compressed
    ],
)
def test_what_is_not_one_frame_of_five_bytes_is_refused(bad: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        frames.decompress(bad, 5)


def test_every_flipped_bit_is_refused_or_harmless() -> None:
    """What a checksum does not cover here the file's own do; memory and time stay what the count allows."""
    plane = PLANE[:900]
    frame = frames.compress(plane)
    refused = 0
    for at in range(8 * len(frame)):
        bad = bytearray(frame)
        bad[at // 8] ^= 1 << at % 8
        try:
            assert frames.decompress(bytes(bad), 900).size == 900
        except FormatError:
            refused += 1
    assert refused > 8 * 10
    for length in range(len(frame)):
        with pytest.raises(FormatError):
            frames.decompress(frame[:length], 900)


def test_a_frame_of_more_than_it_claims_costs_no_memory() -> None:
    bomb = frame_of([(1, 1 << 17)] * 10_000, size=1 << 20)
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(FormatError):
            frames.decompress(bomb, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 5


def test_without_zstandard_frames_are_checked_and_then_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "_tools", lambda: ())
    assert not frames.available()
    with pytest.raises(
        MissingExtraError, match=r"Python 3\.14 or the zstandard package: pip install zstandard"
    ):
        frames.decompress(frame_of([b"hello"]), 5)
    with pytest.raises(FormatError, match="claims 5 bytes"):
        frames.decompress(frame_of([b"hello"]), 6)


class _Standard(types.ModuleType):
    """As much of Python 3.14's `compression.zstd` as is used, on top of the package."""

    def __init__(self, package: types.ModuleType):
        super().__init__("compression.zstd")
        self.ZstdError = package.ZstdError
        self.Strategy = types.SimpleNamespace(fast=package.STRATEGY_FAST)
        words = ["compression_level", "strategy", *frames._SETTINGS]
        self.CompressionParameter = types.SimpleNamespace(**{word: word for word in words})

        class Compressor:
            FLUSH_FRAME = 2

            def __init__(self, options: dict[str, int]):
                self.inner = package.ZstdCompressor(
                    compression_params=package.ZstdCompressionParameters(**options, write_content_size=True)
                )

            def compress(self, data: memoryview, mode: int) -> bytes:
                assert mode == self.FLUSH_FRAME
                return self.inner.compress(data)

        class Decompressor:
            def __init__(self) -> None:
                self.inner = package.ZstdDecompressor().decompressobj()
                self.rest = b""

            @property
            def eof(self) -> bool:
                return self.inner.eof and not self.rest

            def decompress(self, data: bytes, most: int) -> bytes:
                self.rest += self.inner.decompress(data) if data else b""
                out, self.rest = self.rest[:most], self.rest[most:]
                return out

        self.ZstdCompressor, self.ZstdDecompressor = Compressor, Decompressor


def test_the_module_of_python_writes_and_reads_the_same() -> None:
    package = pytest.importorskip("zstandard")
    pack, unpack = frames._of_python(_Standard(package))
    assert pack(PLANE.data) == frames._of_package(package)[0](PLANE.data)
    assert unpack(memoryview(frames.compress(PLANE)), PLANE.size) == PLANE.tobytes()
    for bad in (frame_of([b"hello", b"more"], size=5), frame_of([b"hell"], size=5)):
        with pytest.raises(FormatError):
            unpack(memoryview(bad), 5)

"""Golden files of every version decode to the same bytes, and the encoder of this version still writes them."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from attacks.hostile import frames, read  # noqa: E402
from tests.golden import make  # noqa: E402

from secateur.coding import compiled  # noqa: E402

FOLDER = ROOT / "tests" / "golden"
DIGESTS = {
    name: d for path in sorted(FOLDER.glob("v*.json")) for name, d in json.loads(path.read_text()).items()
}


def test_every_golden_file_has_its_digest() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.sct")) == sorted(DIGESTS)


@pytest.mark.parametrize("name", sorted(DIGESTS))
def test_golden_files_decode_to_the_same_bytes(name: str) -> None:
    if name.startswith("v3-") and not frames.available():
        pytest.skip("needs Python 3.14 or zstandard")
    data = (FOLDER / name).read_bytes()
    assert hashlib.sha256(data).hexdigest() == DIGESTS[name]["file"]
    content = b"".join(key.encode() + value for key, value in read(data).items())
    assert hashlib.sha256(content).hexdigest() == DIGESTS[name]["content"]


@pytest.mark.skipif(not compiled.available(), reason="needs a C compiler: cc, or the extra fast")
@pytest.mark.parametrize("name", sorted(DIGESTS))
def test_compiled_walks_decode_and_write_golden_files_alike(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "SHORTEST", 1)
    monkeypatch.setattr(compiled, "WORTH_IT", 1)
    monkeypatch.setattr(compiled, "LOADING", 0)
    test_golden_files_decode_to_the_same_bytes(name)
    test_the_encoder_is_pinned()


def test_the_encoder_is_pinned() -> None:
    """What it writes may only change with a new version of the format and a decision record."""
    for name, data in make.files().items():
        assert hashlib.sha256(data).hexdigest() == DIGESTS[name]["file"], name


def test_frames_made_anew_hold_the_same() -> None:
    """Zstandard may write other bytes from build to build, so only what they stand for is pinned."""
    if not frames.available():
        pytest.skip("needs Python 3.14 or zstandard")
    for name, data in make.frames().items():
        content = b"".join(key.encode() + value for key, value in read(data).items())
        assert hashlib.sha256(content).hexdigest() == DIGESTS[name]["content"], name

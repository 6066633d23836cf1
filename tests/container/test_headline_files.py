"""The headline's files load into fresh models, weight for weight, and answer as they did when they were recorded."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from attacks.hostile import bell  # noqa: E402
from benchmarks import headline  # noqa: E402

from secateur import models  # noqa: E402
from secateur.container.loading import load  # noqa: E402

ENTRIES = headline.entries()


def fingerprint(model: torch.nn.Module) -> str:
    """A hash of every weight and buffer; decoding is whole-number arithmetic, so it is the same everywhere."""
    whole = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        whole.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return whole.hexdigest()


def load_bytes(data: bytes, model: torch.nn.Module) -> None:
    """Load a file that is not on disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.sct"
        path.write_bytes(data)
        load(path, into=model)


def answers(model: torch.nn.Module) -> torch.Tensor:
    """Logits for two images made of whole numbers."""
    shape = models.input_shape(model)
    with torch.no_grad():
        return model.eval()(torch.from_numpy(bell((2, *shape), 7).copy()))


def test_every_file_is_in_the_index():
    assert sorted(path.stem for path in headline.FOLDER.glob("*.sct")) == sorted(ENTRIES)


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_the_file_is_what_was_recorded(name: str) -> None:
    entry: dict[str, Any] = ENTRIES[name]
    file = headline.FOLDER / f"{name}.sct"
    model = headline.network(entry)
    dense = headline.dense_bytes(model)
    load(file, into=model)
    assert file.stat().st_size == entry["bytes"]
    assert dense / entry["bytes"] >= entry["at_least"]
    assert entry["dense"] - entry["accuracy"] <= entry["lost_at_most"]
    assert fingerprint(model) == entry["weights"]
    # Sums of floats differ a little between processors, so answers are compared, not hashed.
    assert torch.allclose(answers(model), torch.tensor(entry["answers"]), atol=2e-3, rtol=1e-3)


def test_a_file_of_version_4_written_again_has_the_same_weights() -> None:
    """The file of 2,594 bytes is kept as version 4 wrote it."""
    name = "lenet-5-mnist-2594"
    data = headline.repacked(headline.FOLDER / f"{name}.sct", ENTRIES[name])
    again = headline.network(ENTRIES[name])
    load_bytes(data, again)
    assert fingerprint(again) == ENTRIES[name]["weights"]
    assert len(data) == 2547


def test_the_picture_in_the_documentation_is_the_one_drawn_now() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from benchmarks import headline_picture
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    drawn = headline_picture.picture(ENTRIES)
    assert (ROOT / "docs" / "images" / "headline.svg").read_text(encoding="utf-8") == drawn
    assert headline_picture.across(4000) == pytest.approx((60 + 690) / 2)
    assert headline_picture.up(1.1) == pytest.approx((350 + 30) / 2)

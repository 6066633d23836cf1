"""Reading `.pt` files: what keeps them from running code."""

from pathlib import Path

import pytest
import torch

from secateur.container.checkpoint import read_pt
from secateur.errors import DataError


@pytest.mark.parametrize("version", ["2.9.1+cu128", "1.13.1"])
def test_a_torch_that_a_pt_file_can_make_run_code_does_not_read_it(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "m.pt")
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(DataError, match="CVE-2026-24747") as caught:
        read_pt(tmp_path / "m.pt")
    for part in (version, "2.10", ".safetensors"):
        assert part in str(caught.value)


@pytest.mark.parametrize("version", ["2.10.0", "2.11.0a0+git12", "3.0"])
def test_a_torch_without_that_fault_reads_it(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "m.pt")
    monkeypatch.setattr(torch, "__version__", version)
    read = read_pt(tmp_path / "m.pt")
    assert isinstance(read, dict)
    assert read["w"].tolist() == [1.0, 1.0]

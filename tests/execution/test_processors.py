"""Processors without instructions for bfloat16 emulate it; that is said before the work begins."""

from __future__ import annotations

import platform
import warnings

import pytest
import torch

from secateur.execution.processors import multiplies_bfloat16, warn_of_slow_bfloat16


@pytest.mark.parametrize("architecture", ["x86_64", "AMD64"])
def test_emulated_bfloat16_is_said(without_bfloat16, monkeypatch, architecture):
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    assert not multiplies_bfloat16()
    with pytest.warns(UserWarning, match=r"no instructions for bfloat16.*--set train\.precision=fp32"):
        warn_of_slow_bfloat16("cpu")


@pytest.mark.parametrize(
    ("architecture", "has_instructions", "device"),
    [("x86_64", True, "cpu"), ("arm64", False, "cpu"), ("x86_64", False, "cuda")],
)
def test_nothing_is_said_elsewhere(without_bfloat16, monkeypatch, architecture, has_instructions, device):
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_instructions)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_slow_bfloat16(device)

"""Peak memory on CUDA, by a stand-in for the allocator's counters: what is asked of them, and in which order."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

memory = importlib.import_module("secateur.metrics.memory")


def test_the_peak_counts_from_a_reset_after_the_first_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    device = torch.device("cuda")
    held = {"memory_allocated": 100, "max_memory_allocated": 175, "reset_peak_memory_stats": None}
    for name, value in held.items():
        monkeypatch.setattr(
            torch.cuda, name, lambda given, name=name, value=value: (asked.append(name), value)[1]
        )
    monkeypatch.setattr(memory, "sync", lambda given: None)
    monkeypatch.setattr(memory, "call", lambda model, inputs: asked.append("forward"))
    assert memory._cuda_peak(nn.Identity(), torch.ones(1), device) == 75
    assert asked == [
        "forward",
        "reset_peak_memory_stats",
        "memory_allocated",
        "forward",
        "max_memory_allocated",
    ]

"""Sinks, with fakes in the place of the packages; and what is said when they are missing."""

from __future__ import annotations

import builtins
import contextlib
import sys
import types
from typing import Any

import pytest

from secateur.core.measurement import Measurement as M
from secateur.errors import MissingExtraError, NothingToDoError
from secateur.report.sinks import registry

ROWS = [
    M("accuracy", 0.9, context={"run": "demo", "variant": "file"}),
    M("epoch_loss", 0.5, context={"run": "demo", "variant": "train", "epoch": 3}),
    M("accuracy", 0.91, context={"variant": "dense", "published": "a study"}),
    M("loss", float("nan"), context={"variant": "file"}),
    M("filter_sums", 1, context={"layer": "fc", "sums": [0.0]}),
]
WANTED = [("demo/file/accuracy", 0.9, 0), ("demo/train/epoch_loss", 0.5, 3)]


def test_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class SummaryWriter:
        def __init__(self, folder: str):
            seen.append(folder)

        def add_scalar(self, *scalar: Any) -> None:
            seen.append(scalar)

        def close(self) -> None:
            seen.append("closed")

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    assert registry.get("tensorboard")("events").send(ROWS) == 2
    assert seen == ["events", *WANTED, "closed"]


def test_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    fake = types.ModuleType("mlflow")
    fake.start_run = lambda run_name: contextlib.nullcontext(seen.append(run_name))  # type: ignore[attr-defined]
    fake.log_params = seen.append  # type: ignore[attr-defined]
    fake.log_metric = lambda name, value, step: seen.append((name, value, step))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    assert registry.get("mlflow")("demo", {"seed": 0}).send(ROWS) == 2
    assert seen == ["demo", {"seed": 0}, *WANTED]


@pytest.mark.parametrize(
    ("name", "package"), [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow")]
)
def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    real = builtins.__import__

    def without(module: str, *rest: Any) -> Any:
        if module == package:
            raise ImportError(module)
        return real(module, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"pip install secateur\[{name}\]"):
        registry.get(name)("x").send(ROWS)


@pytest.mark.parametrize("name", registry.names())
def test_nothing_to_send(name: str) -> None:
    with pytest.raises(NothingToDoError, match="expected at least one Measurement to send, got none"):
        registry.get(name)("x").send(ROWS[2:])

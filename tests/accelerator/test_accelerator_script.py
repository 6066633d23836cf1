"""`benchmarks/accelerator.py` says plainly that there is no accelerator, and keeps what its pieces found."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from secateur.lab.engine import run
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store
from secateur.lab.usage import Usage

PATH = Path(__file__).parents[2] / "benchmarks" / "accelerator.py"
SPEC = importlib.util.spec_from_file_location("accelerator_script", PATH)
assert SPEC is not None
assert SPEC.loader is not None
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)

BARE = not (torch.cuda.is_available() or torch.backends.mps.is_available())


@pytest.mark.skipif(not BARE, reason="this machine has an accelerator")
def test_without_an_accelerator_it_says_so_and_writes_nothing(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["accelerator", "--out", str(tmp_path / "out")])
    assert script.main() == 4
    assert "there is no accelerator here" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_piece_that_took_too_long_goes_on_and_one_that_is_done_is_not_done_again(
    tmp_path, monkeypatch
) -> None:
    called: list[str] = []

    def ran(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        called.append(command[command.index("--piece") + 1])
        if called == ["verbs", "latency"]:
            raise subprocess.TimeoutExpired(command, 540)
        return subprocess.CompletedProcess(command, 0, "noise\n{}\n", "")

    monkeypatch.setattr(script.subprocess, "run", ran)
    argv = ["accelerator", "--device", "cpu", "--out", str(tmp_path), "--only", "verbs", "latency"]
    monkeypatch.setattr(sys, "argv", argv)
    assert script.main() == 1
    assert "| latency | to go on |" in (tmp_path / "accelerator.md").read_text()
    assert script.main() == 0
    assert called == ["verbs", "latency", "latency"]


def test_a_study_is_run_at_full_scale_on_the_device_with_a_store_that_stays(tmp_path) -> None:
    asked = argparse.Namespace(data=Path("data"), out=tmp_path)
    command = script.command_of("study vae", "cuda", asked)
    assert command[3:8] == ["study", "vae", "--scale", "full", "--device"]
    assert command[command.index("--store") + 1] == str(tmp_path / "store")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sharing_says_what_trials_took_of_the_device_over_time(tmp_path, monkeypatch, device: str) -> None:
    """The study itself needs Ray: here a run with samples of its own stands in its store."""
    asked: list[list[str]] = []

    def ran(arguments: list[str]) -> subprocess.CompletedProcess[str]:
        asked.append(arguments)
        store = Store(arguments[arguments.index("--store") + 1])
        recipe = Recipe.parse(
            'data = {name = "digits", limit = 20}\nmodel = {name = "fc"}\nstep = [{kind = "idle", seconds = 0.0}]'
        )
        number = run(recipe, store).run
        usage = Usage(readers=(lambda: {"processors": 0.5, "memory": 1.5, "GPU 0": 0.75},))
        for second, running in enumerate((1, 4, 4, 2)):
            usage.running = running
            usage.sample(float(second))
        store.keep_usage(number, usage.measurements())
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(script, "_secateur", ran)
    found = script.sharing(device, tmp_path)["over time"]
    assert found["trials"] == {"most": 4.0, "samples": 4}
    assert found["GPU 0"]["most"] == 0.75
    assert ("--gpus" in asked[0]) == (device == "cuda")
    assert asked[0][asked[0].index("--out") + 1] == str(tmp_path / "sharing")
    assert "--no-report" not in asked[0]  # the report draws the samples

"""A training that was cut off and taken up again ends with the same bytes as one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from secateur import data as datasets
from secateur.core.masks import Masks
from secateur.errors import OptionError, StoreError
from secateur.lab.training import TrainingContext, TrainingOptions, train
from secateur.lab.training import checkpoint as checkpoints


@pytest.fixture(scope="module")
def digits() -> datasets.Data:
    return datasets.load("digits", limit=300)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10)
    )


def weights(model: nn.Module) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())


class Cut(Exception):
    """The moment at which the power goes."""


class CutAfter:
    """A progress that ends the training when an epoch is done, or in the middle of the next one."""

    def __init__(self, epoch, in_the_middle=False):
        self.last, self.middle = epoch, in_the_middle

    def start(self, epochs, steps, done):
        self.steps = steps

    def step(self, epoch, step, loss):
        if self.middle and epoch == self.last + 1 and step == self.steps:
            raise Cut

    def epoch(self, record):
        if not self.middle and record.epoch == self.last:
            raise Cut

    def finish(self):
        pass


@pytest.mark.parametrize("in_the_middle", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_four_epochs_are_two_and_two(digits, tmp_path, optimizer, in_the_middle):
    options = TrainingOptions(
        epochs=4,
        optimizer=optimizer,
        lr=0.01,
        batch_size=32,
        weight_decay=1e-3,
        schedule="cosine",
        warmup=1.5,
        augment="standard",
        precision="bf16" if optimizer == "adamw" else "fp32",
        keep="last" if optimizer == "adam" else "best",
        mix=0.5 if optimizer == "adam" else 0.0,
        average=None if optimizer == "sgd" else 0.95,
    )
    masks = Masks({"1.weight": torch.rand(32, 64, generator=torch.Generator().manual_seed(0)) > 0.5})
    whole = net()
    straight = train(whole, digits, options, masks=masks, seed=3, device="cpu")
    file = tmp_path / "training.safetensors"
    with pytest.raises(Cut):
        train(
            net(),
            digits,
            options,
            masks=masks,
            seed=3,
            device="cpu",
            context=TrainingContext(checkpoint=file, progress=CutAfter(2, in_the_middle)),
        )
    torch.manual_seed(99)  # what the global random state is must not matter
    resumed_model = net()
    torch.manual_seed(98)
    resumed = train(
        resumed_model,
        digits,
        options,
        masks=masks,
        seed=3,
        device="cpu",
        context=TrainingContext(checkpoint=file),
    )
    assert resumed.resumed_from == 2
    assert weights(resumed_model) == weights(whole)
    assert resumed.best_epoch == straight.best_epoch
    for ours, theirs in zip(resumed.history, straight.history):
        assert (ours.train_loss, ours.lr, ours.metrics) == (theirs.train_loss, theirs.lr, theirs.metrics)
    # A third call finds everything done, and does nothing.
    again = net()
    assert (
        train(
            again,
            digits,
            options,
            masks=masks,
            seed=3,
            device="cpu",
            context=TrainingContext(checkpoint=file),
        ).resumed_from
        == 4
    )
    assert weights(again) == weights(whole)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_checkpoint_of_another_training_is_refused(digits, tmp_path):
    file = tmp_path / "c"
    options = TrainingOptions(epochs=1, lr=0.01, batch_size=64)
    train(net(), digits, options, device="cpu", context=TrainingContext(checkpoint=file))
    with pytest.raises(
        OptionError, match=r"belongs to another training: its lr is 0\.01, not 0\.02; delete it"
    ):
        train(
            net(),
            digits,
            TrainingOptions(epochs=1, lr=0.02, batch_size=64),
            device="cpu",
            context=TrainingContext(checkpoint=file),
        )
    with pytest.raises(OptionError, match="its seed is 0, not 1"):
        train(net(), digits, options, seed=1, device="cpu", context=TrainingContext(checkpoint=file))
    with pytest.raises(OptionError, match="its start is"):
        train(net(1), digits, options, device="cpu", context=TrainingContext(checkpoint=file))
    with pytest.raises(OptionError, match="its masks is None"):
        train(
            net(),
            digits,
            options,
            masks=Masks.ones(net()),
            device="cpu",
            context=TrainingContext(checkpoint=file),
        )


def test_a_damaged_checkpoint_is_named(digits, tmp_path):
    file = tmp_path / "c"
    train(
        net(),
        digits,
        TrainingOptions(epochs=1, lr=0.01),
        device="cpu",
        context=TrainingContext(checkpoint=file),
    )
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(StoreError, match=f"checkpoint {file}: expected a file that training wrote"):
        train(
            net(),
            digits,
            TrainingOptions(epochs=1, lr=0.01),
            device="cpu",
            context=TrainingContext(checkpoint=file),
        )
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(StoreError, match="expected secateur-training version 1, got None"):
        train(
            net(),
            digits,
            TrainingOptions(epochs=1, lr=0.01),
            device="cpu",
            context=TrainingContext(checkpoint=file),
        )


def test_a_checkpoint_is_never_half_written(tmp_path, monkeypatch):
    file = tmp_path / "c"
    checkpoints.write(file, {"x": torch.zeros(2)}, {"epoch": 1})

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        checkpoints.write(file, {"x": torch.ones(2)}, {"epoch": 2})
    assert checkpoints.read(file)[1] == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_tied_weights_are_kept(digits, tmp_path):
    def tied():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))
        model[2].weight = model[1].weight
        return model

    options = TrainingOptions(epochs=2, lr=0.01, batch_size=64)
    whole, resumed = tied(), tied()
    train(whole, digits, options, device="cpu")
    with pytest.raises(Cut):
        train(
            tied(),
            digits,
            options,
            device="cpu",
            context=TrainingContext(checkpoint=tmp_path / "c", progress=CutAfter(1)),
        )
    train(resumed, digits, options, device="cpu", context=TrainingContext(checkpoint=tmp_path / "c"))
    assert weights(resumed) == weights(whole)


_SCRIPT = """
import sys, torch
from torch import nn
from secateur import data
from secateur.lab.training import TrainingContext, TrainingOptions, train
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))
options = TrainingOptions(epochs=60, lr=0.01, batch_size=16)
train(model, data.load("digits", limit=300), options, device="cpu",
      context=TrainingContext(checkpoint=sys.argv[1]))
torch.save(model.state_dict(), sys.argv[2])
"""


@pytest.mark.slow
def test_killed_by_the_system_and_run_again(tmp_path):
    def run(name):
        return [
            sys.executable,
            "-c",
            _SCRIPT,
            str(tmp_path / name / "checkpoint"),
            str(tmp_path / name / "model"),
        ]

    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    subprocess.run(run("whole"), check=True)
    process = subprocess.Popen(run("cut"))
    while not (tmp_path / "cut" / "checkpoint").exists():
        time.sleep(0.005)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "model").exists()  # it really was under way
    subprocess.run(run("cut"), check=True)
    whole, cut = (torch.load(tmp_path / name / "model") for name in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)

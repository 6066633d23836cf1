"""Masks stay in force inside other libraries' trainers."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

from secateur.adapters.lightning import lightning_callback
from secateur.adapters.trainer import trainer_callback
from secateur.core.masks import Masks
from secateur.errors import MissingExtraError


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, inputs, labels=None):
        logits = self.network(inputs)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def masks_of(model: nn.Module) -> Masks:
    generator = torch.Generator().manual_seed(1)
    return Masks(
        {
            n: torch.rand(p.shape, generator=generator) > 0.6
            for n, p in model.named_parameters()
            if p.dim() > 1
        }
    )


def all_zero(model: nn.Module, masks: Masks) -> bool:
    return all((model.get_parameter(name)[~mask] == 0).all() for name, mask in masks.items())


@pytest.mark.zoo
def test_a_real_trainer_of_transformers(torchvision, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = Model()
    masks = masks_of(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    rows = [{"inputs": row, "labels": int(row[0] > 0)} for row in images]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=8,
        learning_rate=0.05,
        weight_decay=0.1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    watched = []

    class Watch(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **given):
            watched.append(all_zero(model, masks))

    callbacks = [trainer_callback(masks), Watch()]
    transformers.Trainer(model=model, args=arguments, train_dataset=rows, callbacks=callbacks).train()
    assert watched == [True] * 8
    assert all_zero(model, masks)
    moved = {name for name, mask in masks.items() if (model.get_parameter(name) != before[name])[mask].any()}
    assert moved == set(masks)
    # Afterwards nothing holds any more.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(images, labels=(images[:, 0] > 0).long())["loss"].backward()
    optimizer.step()
    assert not all_zero(model, masks)


def test_lightning_by_its_events(monkeypatch):
    """Lightning is not needed to test this: the events are called as its trainer calls them."""
    package, pytorch = types.ModuleType("lightning"), types.ModuleType("lightning.pytorch")
    pytorch.Callback = type("Callback", (), {})
    monkeypatch.setitem(sys.modules, "lightning", package)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", pytorch)
    model = Model()
    masks = masks_of(model.network)
    callback = lightning_callback(masks, model.network)
    assert isinstance(callback, pytorch.Callback)
    inputs, labels = torch.randn(8, 8), torch.randint(0, 2, (8,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step():
        optimizer.zero_grad()
        model(inputs, labels)["loss"].backward()
        optimizer.step()

    callback.on_train_start(object(), model)
    for _ in range(3):
        step()
        assert all_zero(model.network, masks)
    callback.on_exception(object(), model, RuntimeError())
    callback.on_train_end(object(), model)  # twice does no harm
    assert all_zero(model.network, masks)
    step()
    assert not all_zero(model.network, masks)


def test_missing_libraries_are_named(monkeypatch):
    for name in ("transformers", "lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    masks = Masks({"w": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(MissingExtraError, match=r"pip install 'secateur\[transformers\]'"):
        trainer_callback(masks)
    with pytest.raises(MissingExtraError, match="pip install lightning"):
        lightning_callback(masks)

"""Masks stay in force inside other libraries' trainers."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.adapters.holding import MaskKeeper
from secateur.adapters.lightning import lightning_callback
from secateur.adapters.trainer import trainer_callback
from secateur.core.masks import Masks
from secateur.errors import DataError, MaskMismatchError, MissingExtraError, OptionError
from secateur.execution.recorded import FirstCall


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


class Stopped(Exception):
    pass


@pytest.mark.zoo
def test_gradual_pruning_in_a_trainer_survives_resume(torchvision, tmp_path):
    transformers = pytest.importorskip("transformers")
    images = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    rows = [{"inputs": row, "labels": int(row[0] > 0)} for row in images]
    gradual = sc.GradualPruning(0.75, until=0.5, every=2)
    seen: list[tuple[int, float]] = []

    class Watch(transformers.TrainerCallback):
        stop = None

        def on_step_end(self, args, state, control, model=None, **given):
            weights = [p for p in model.parameters() if p.dim() > 1]
            zeros = sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights)
            seen.append((state.global_step, zeros))

        def on_save(self, args, state, control, **given):
            if state.global_step == self.stop:
                raise Stopped

    def trained(stop, **options):
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), num_train_epochs=2, per_device_train_batch_size=4, learning_rate=0.05,
            report_to=[], save_strategy="steps", save_steps=5, logging_steps=4, use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        watch = Watch()
        watch.stop = stop
        trainer = transformers.Trainer(
            model=Model(),
            args=arguments,
            train_dataset=rows,
            callbacks=[trainer_callback(gradual=gradual), watch],
        )
        trainer.train(**options)
        return trainer

    with pytest.raises(Stopped):
        trained(5)
    assert (tmp_path / "checkpoint-5" / "secateur_masks.safetensors").is_file()
    trainer = trained(None, resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert [step for step, _ in seen] == list(range(1, 17))
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert shares[4] > 0.3
    assert shares[-1] == pytest.approx(0.75, abs=0.01)
    assert trainer.state.log_history[1]["sparsity"] == pytest.approx(shares[7], abs=0.01)


def test_the_plan_is_written_beside_the_masks_and_a_foreign_folder_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    example = torch.randn(2, 4)
    small = sc.shrink(model, sc.prune(model, granularity="channel", budget=0.5, example=example), example)
    keeper = MaskKeeper(None, plan=small.plan)
    keeper.save(tmp_path / "checkpoint-1")
    text = (tmp_path / "checkpoint-1" / "secateur_plan.json").read_text()
    assert sc.ShrinkPlan.from_json(text) == small.plan
    keeper.resume(tmp_path / "checkpoint-1")  # no masks, and none are made: nothing to go on from
    with pytest.raises(
        OptionError, match=r"checkpoint-1: training continues from here, and there are no masks"
    ):
        MaskKeeper(None, sc.GradualPruning(0.5)).resume(tmp_path / "checkpoint-1")
    with pytest.raises(OptionError, match="nothing to hold; give masks"):
        MaskKeeper(None)


@pytest.mark.zoo
def test_a_real_trainer_of_lightning_with_resume(torchvision, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch", exc_type=ImportError)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Model()

        def training_step(self, batch, index):
            return self.model(*batch)["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    inputs = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(inputs, (inputs[:, 0] > 0).long()), batch_size=4
    )
    gradual = sc.GradualPruning(0.75, until=0.5, every=2)

    def fitted(module, epochs, **options):
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path, callbacks=[lightning_callback(None, module.model.network, gradual=gradual)],
        )  # fmt: skip
        trainer.fit(module, loader, **options)
        return trainer

    first = fitted(Module(), 1)
    assert first.callback_metrics["sparsity"] == pytest.approx(0.75, abs=0.01)
    first.save_checkpoint(tmp_path / "first.ckpt")
    module = Module()
    again = fitted(module, 2, ckpt_path=tmp_path / "first.ckpt")
    assert again.global_step == 16
    weights = [p for p in module.model.network.parameters() if p.dim() > 1]
    zeros = sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights)
    assert zeros == pytest.approx(0.75, abs=0.01)


def kept_channels(model: Model) -> int:
    return int((model.network[0].weight != 0).any(1).sum())


@pytest.mark.parametrize("granularity", ["channel", "filter"])
def test_channels_leave_gradually_as_the_model_is_called(granularity):
    model = Model()
    gradual = sc.GradualPruning(0.5, start=0.25, until=0.5, every=2, granularity=granularity, skip="2")
    keeper = MaskKeeper(None, gradual, model.network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    keeper.start(model.network)
    for step in range(8):
        for _ in range(2):  # two batches in a step of the optimizer: masks are made once
            keeper.step(step, 8)
            model(torch.randn(4, 8), torch.randint(0, 2, (4,)))["loss"].backward()
            seen.append(kept_channels(model))
        optimizer.step()
        optimizer.zero_grad()
        assert all_zero(model.network, keeper.masks)
    # shares 0.25, 0.46875, 0.5 of 16 channels at steps 0, 2 and 4: 4, 8 (rounded) and 8 leave; by weights 0.5 would
    # be reached earlier, as the next layer's inputs leave too
    assert seen == [12] * 4 + [8] * 12
    keeper.stop()
    assert not model.network._forward_pre_hooks


def test_an_example_that_is_given_is_used_and_labels_are_left_out_of_one_that_is_found():
    model, inputs = Model(), torch.randn(4, 8)
    gradual = sc.GradualPruning(0.5, until=0.5, every=1, granularity="channel")
    labels = torch.zeros(4, dtype=torch.long)
    given = MaskKeeper(None, gradual, model, example={"inputs": inputs, "labels": labels})
    given.start(model)
    assert not model._forward_pre_hooks
    given.step(5, 10)
    assert given.masks is not None  # no call was waited for
    given.stop()
    found = FirstCall(model)
    seen = []
    found.then(lambda example: seen.append(example))
    model(inputs, labels=labels)
    inputs.zero_()
    # this forward could be called without labels, as far as its signature says
    assert list(seen[0]) == ["inputs"]
    assert seen[0]["inputs"].abs().sum() > 0
    stopped = MaskKeeper(None, gradual, model)
    stopped.start(model)
    assert len(model._forward_pre_hooks) == 1
    stopped.stop()
    assert not model._forward_pre_hooks


def test_arguments_without_names_ask_for_an_example():
    class Wrapper(Model):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    model = Wrapper()
    FirstCall(model)
    with pytest.raises(
        DataError, match=r"Wrapper is called with 1 arguments that have no names beside.*give example="
    ):
        model(torch.randn(4, 8), labels=torch.zeros(4, dtype=torch.long))


def test_a_compiled_model_runs_the_first_call_outside_its_graph():
    model, seen = Model(), []
    FirstCall(model).then(lambda example: seen.append(torch._dynamo.is_compiling()))
    torch.compile(model, backend="eager")(torch.randn(4, 8), torch.zeros(4, dtype=torch.long))
    assert seen == [False]


def test_a_hold_that_cannot_end_is_not_held_on_to():
    model = Model()
    keeper = MaskKeeper(sc.prune(model, budget=0.5), model=model)
    keeper.start(model)
    name = next(iter(keeper.masks))
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, nn.Parameter(torch.ones(1, 1)))
    with pytest.raises(MaskMismatchError):
        keeper.stop()
    assert keeper.held is None
    keeper.stop()


def test_a_gradual_of_four_arguments_still_makes_masks():
    class Own:
        def is_due(self, step, steps):
            return True

        def masks(self, model, step, steps, before):
            return masks_of(model)

    model = Model()
    keeper = MaskKeeper(None, Own(), model)
    keeper.start(model)
    keeper.step(0, 4)
    assert all_zero(model, keeper.masks)
    keeper.stop()


def test_lightning_refuses_to_follow_a_forward_that_it_may_not_call(monkeypatch):
    without_lightning(monkeypatch)
    gradual = sc.GradualPruning(0.5, granularity="channel")
    with pytest.raises(
        OptionError, match=r"give model=, the network that training_step calls .* or example="
    ):
        lightning_callback(gradual=gradual)
    lightning_callback(gradual=gradual, model=Model().network)
    lightning_callback(gradual=gradual, example=torch.randn(2, 8))
    lightning_callback(gradual=sc.GradualPruning(0.5, granularity="filter"))


def without_lightning(monkeypatch) -> type:
    """Puts a module with an empty class of callbacks in place of the library."""
    package, pytorch = types.ModuleType("lightning"), types.ModuleType("lightning.pytorch")
    pytorch.Callback = type("Callback", (), {})
    monkeypatch.setitem(sys.modules, "lightning", package)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", pytorch)
    return pytorch.Callback


def test_lightning_by_its_events(monkeypatch):
    """Lightning is not needed to test this: the events are called as its trainer calls them."""
    callback_class = without_lightning(monkeypatch)
    model = Model()
    masks = masks_of(model.network)
    callback = lightning_callback(masks, model.network)
    assert isinstance(callback, callback_class)
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


def test_lightning_finds_its_state_by_a_public_name_and_under_the_name_of_before(monkeypatch):
    without_lightning(monkeypatch)
    model = Model()
    masks = masks_of(model.network)
    callback = lightning_callback(masks, model.network)
    assert callback.state_key == "secateur.HoldMasks"
    assert callback.masks is masks
    state = callback.state_dict()
    for key in ("secateur.HoldMasks", "lightning_callback.<locals>.HoldMasks"):
        fresh = lightning_callback(gradual=sc.GradualPruning(0.9), model=Model().network)
        assert fresh.masks is None
        checkpoint = {"callbacks": {key: state}}
        fresh.on_load_checkpoint(object(), model, checkpoint)
        fresh.load_state_dict(checkpoint["callbacks"][fresh.state_key])
        assert fresh.masks == masks
    lightning_callback(masks).on_load_checkpoint(object(), model, {})
    logged = []
    model.log = lambda name, value, **options: logged.append((name, value, options))
    callback.on_train_epoch_end(object(), model)
    assert logged == [("sparsity", masks.sparsity, {"sync_dist": True})]


def test_lightning_checks_a_module_once_it_has_its_layers(monkeypatch):
    without_lightning(monkeypatch)
    model, wrong = cut_model()[0], Model()
    masks = masks_of(model)
    with pytest.raises(MaskMismatchError):
        lightning_callback(masks).setup(object(), wrong, "fit")
    for stage in ("validate", "test", "predict"):
        lightning_callback(masks).setup(object(), wrong, stage)

    later = nn.Module()  # its own setup, which comes after those of callbacks, makes the layers
    callback = lightning_callback(masks)
    callback.setup(object(), later, "fit")
    later.network = wrong.network
    with pytest.raises(MaskMismatchError):
        callback.on_train_start(object(), later)
    later.network = model.network
    callback.on_train_start(object(), later)
    assert all_zero(later, masks)
    callback.on_train_end(object(), later)


def test_lightning_refuses_dense_widths_that_a_module_makes_late(monkeypatch):
    without_lightning(monkeypatch)
    plan = cut_model()[1]
    later, callback = nn.Sequential(), lightning_callback(plan=plan)
    callback.setup(object(), later, "fit")
    later.extend(Model().network)
    with pytest.raises(OptionError, match="from before the cut"):
        callback.on_train_start(object(), later)


def test_missing_libraries_are_named(monkeypatch):
    for name in ("transformers", "lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    masks = Masks({"w": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(MissingExtraError, match=r"pip install 'secateur\[transformers\]'"):
        trainer_callback(masks)
    with pytest.raises(MissingExtraError, match="pip install lightning"):
        lightning_callback(masks)


def cut_model() -> tuple[Model, sc.ShrinkPlan]:
    model, x = Model(), torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    small = sc.shrink(
        model.network.eval(), sc.prune(model.network, granularity="channel", budget=0.5, example=x), x
    )
    model.network = small.model
    return model, small.plan


def test_a_model_of_the_dense_widths_is_refused_before_a_checkpoint_is_read():
    model, plan = cut_model()
    MaskKeeper(None, plan=plan, model=model.network)
    with pytest.raises(OptionError, match=r"got those from before the cut.*plan.apply_\(model\)"):
        MaskKeeper(None, plan=plan, model=Model().network)
    with pytest.raises(MaskMismatchError):
        MaskKeeper(masks_of(model.network), model=nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2)))


@pytest.mark.zoo
def test_a_cut_model_is_continued_in_a_new_one_by_the_trainer_of_transformers(torchvision, tmp_path):
    transformers = pytest.importorskip("transformers")
    images = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    rows = [{"inputs": row, "labels": int(row[0] > 0)} for row in images]

    def trainer(model: Model, steps: int, callback: object):
        arguments = transformers.TrainingArguments(
            str(tmp_path), max_steps=steps, save_steps=4, report_to=[], use_cpu=True, disable_tqdm=True
        )
        return transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[callback])

    model, plan = cut_model()
    masks = masks_of(model.network)
    trainer(model, 4, trainer_callback(masks, model.network, plan=plan)).train()
    read = sc.ShrinkPlan.from_json((tmp_path / "checkpoint-4" / "secateur_plan.json").read_text())
    fresh = Model()
    with pytest.raises(OptionError, match="from before the cut"):
        trainer_callback(masks, fresh.network, plan=read)
    read.apply_(fresh.network)
    trainer(fresh, 8, trainer_callback(masks, fresh.network, plan=read)).train(resume_from_checkpoint=True)
    assert fresh.network[0].out_features == 8
    assert all_zero(fresh.network, masks)


@pytest.mark.zoo
def test_a_cut_model_is_continued_in_a_new_one_by_lightning(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    images = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, (images[:, 0] > 0).long()), batch_size=8
    )

    class Module(lightning.LightningModule):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    def trainer(epochs: int, callback: object):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
        return lightning.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[callback], **quiet)

    model, plan = cut_model()
    masks = masks_of(model.network)
    first = trainer(1, lightning_callback(masks, model.network, plan=plan))
    first.fit(Module(model.network), loader)
    first.save_checkpoint(tmp_path / "cut.ckpt")
    read = sc.ShrinkPlan.from_json(torch.load(tmp_path / "cut.ckpt")["secateur_plan"])
    fresh = Model().network
    with pytest.raises(OptionError, match="from before the cut"):
        lightning_callback(masks, fresh, plan=read)
    read.apply_(fresh)
    second = trainer(2, lightning_callback(masks, fresh, plan=read))
    second.fit(Module(fresh), loader, ckpt_path=tmp_path / "cut.ckpt")
    assert fresh[0].out_features == 8
    assert all_zero(fresh, masks)
    assert second.current_epoch == 2

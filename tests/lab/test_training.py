"""TrainingOptions: the same bytes for the same seed, masks held, distillation, other losses, and what is refused."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from torch import nn

from secateur import data as datasets
from secateur import models
from secateur.core.masks import Masks
from secateur.errors import DataError, NonFiniteError, NothingToDoError, OptionError
from secateur.lab.training import (
    Bars,
    EpochRecord,
    GradualPruning,
    TrainingContext,
    TrainingOptions,
    evaluate,
    rate,
    train,
)


@pytest.fixture(scope="module")
def digits() -> datasets.Data:
    return datasets.load("digits", limit=300)


def net(seed: int = 0, dropout: float = 0.2) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 10)
    )


def plain(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def weights(model: nn.Module) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())


QUICK = TrainingOptions(
    epochs=2, lr=0.05, batch_size=32, augment="standard", schedule="cosine", label_smoothing=0.1
)


def test_it_learns_and_says_so(digits):
    model = net()
    trained = train(model, digits, TrainingOptions(epochs=8, lr=0.05, batch_size=32), device="cpu")
    assert [record.epoch for record in trained.history] == list(range(1, 9))
    assert trained.history[-1].train_loss < 0.5 * trained.history[0].train_loss
    assert trained.history[-1].train_accuracy > 0.8
    assert trained.history[-1].metrics == evaluate(model, digits.validation, device="cpu")
    assert evaluate(model, digits.test, device="cpu")["accuracy"] > 0.8
    assert not trained.stopped_early
    assert trained.resumed_from == 0


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_same_seed_same_bytes_whatever_the_global_random_state(digits, optimizer):
    options = TrainingOptions(epochs=2, lr=0.01, batch_size=32, augment="standard", optimizer=optimizer)
    found = []
    for disturbance in (1, 2):
        model = net()
        torch.manual_seed(disturbance)
        before = torch.get_rng_state()
        train(model, digits, options, seed=5, device="cpu")
        assert torch.equal(torch.get_rng_state(), before)
        found.append(weights(model))
    assert found[0] == found[1]
    other = net()
    train(other, digits, options, seed=6, device="cpu")
    assert weights(other) != found[0]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_masks_are_held(digits, optimizer):
    model = net()
    start = model[1].weight.detach().clone()
    mask = torch.rand(32, 64, generator=torch.Generator().manual_seed(0)) > 0.7
    options = TrainingOptions(epochs=2, lr=0.01, batch_size=32, weight_decay=0.1, optimizer=optimizer)
    train(model, digits, options, masks=Masks({"1.weight": mask}), device="cpu")
    assert (model[1].weight[~mask] == 0).all()
    assert (model[1].weight[mask] != start[mask]).all()


def test_the_model_ends_as_the_average_of_its_weights_and_is_validated_as_that(digits):
    """With a rate of almost nothing at the end the plain weights stand still; their average is elsewhere."""
    mask = torch.rand(32, 64, generator=torch.Generator().manual_seed(0)) > 0.7
    masks = Masks({"1.weight": mask})
    options = TrainingOptions(epochs=3, lr=0.05, batch_size=32, schedule="cosine")
    plain_end, averaged = net(), net()
    train(plain_end, digits, options, masks=masks, device="cpu")
    trained = train(averaged, digits, replace(options, average=0.9), masks=masks, device="cpu")
    assert (averaged[1].weight[~mask] == 0).all()
    assert not torch.allclose(averaged[1].weight, plain_end[1].weight)
    assert not torch.allclose(averaged[2].running_mean, plain_end[2].running_mean)
    assert trained.history[-1].metrics == evaluate(averaged, digits.validation, device="cpu")
    best = net()
    kept = train(best, digits, replace(options, average=0.9, keep="best"), masks=masks, device="cpu")
    assert kept.history[kept.best_epoch - 1].metrics == evaluate(best, digits.validation, device="cpu")


def test_weights_that_leave_during_training_are_out_of_the_average(digits):
    model = net()
    growing = GradualPruning(0.8, start=0.2, until=0.6, every=2)
    trained = train(
        model,
        digits,
        TrainingOptions(epochs=3, lr=0.05, batch_size=32, average=0.99),
        pruning=growing,
        device="cpu",
    )
    for name, mask in trained.masks.items():
        assert (model.get_parameter(name)[~mask] == 0).all()


def test_mixed_images_have_two_labels_and_the_teacher_sees_them(digits):
    """A network that answers by the mean of the image alone: what the teacher is asked lies between two images."""
    asked = []

    class Teacher(nn.Module):
        def forward(self, images):
            asked.append(images.clone())
            return images.new_zeros(len(images), 10)

    options = TrainingOptions(epochs=1, lr=0.01, batch_size=100, mix=0.5, distill_alpha=0.5)
    found = []
    for _ in range(2):
        model = plain()
        train(model, digits, options, seed=3, device="cpu", context=TrainingContext(teacher=Teacher()))
        found.append(weights(model))
    assert found[0] == found[1]
    originals = {image.numpy().tobytes() for images, _ in digits.train.batches(50) for image in images}
    whole = sum(image.numpy().tobytes() in originals for image in asked[0])
    assert 30 <= whole <= 70  # half of a hundred; 26 and 74 are five standard deviations away


def test_accumulation_changes_nothing_but_rounding(digits):
    found = []
    for accumulate in (1, 4):
        model = plain()
        train(
            model,
            digits,
            TrainingOptions(epochs=2, lr=0.05, batch_size=48, accumulate=accumulate),
            device="cpu",
        )
        found.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    untrained = torch.cat([parameter.detach().flatten() for parameter in plain().parameters()])
    assert (found[0] - untrained).abs().max() > 0.01


def test_bf16_trains_and_the_weights_stay_fp32(digits):
    exact, mixed = plain(), plain()
    train(exact, digits, TrainingOptions(epochs=3, lr=0.05, batch_size=32), device="cpu")
    train(mixed, digits, TrainingOptions(epochs=3, lr=0.05, batch_size=32, precision="bf16"), device="cpu")
    assert mixed[1].weight.dtype == torch.float32
    assert weights(exact) != weights(mixed)  # it really computed in another precision
    assert evaluate(mixed, digits.test, device="cpu")["accuracy"] > 0.5
    assert mixed(torch.zeros(1, 64)).dtype == torch.float32  # and its forward is its own again


def test_bf16_that_the_processor_emulates_is_said(digits, without_bfloat16):
    options = TrainingOptions(epochs=1, batch_size=100, precision="bf16")
    with pytest.warns(UserWarning, match="this processor has no instructions for bfloat16"):
        train(plain(), digits, options, device="cpu")


def test_the_teacher_is_followed(digits):
    teacher = net(1)
    train(teacher, digits, TrainingOptions(epochs=6, lr=0.05, batch_size=32), device="cpu")
    images, _ = digits.test.first(300)

    def distance(student: nn.Module) -> float:
        with torch.no_grad():
            return float((student.eval()(images).softmax(1) - answers).abs().sum(1).mean())

    with torch.no_grad():
        answers = teacher.eval()(images).softmax(1)
    kept = weights(teacher)
    taught, alone = plain(), plain()
    options = {"epochs": 6, "lr": 0.05, "batch_size": 32}
    train(
        taught,
        digits,
        TrainingOptions(**options, distill_alpha=1.0),
        device="cpu",
        context=TrainingContext(teacher=teacher.train()),
    )
    train(alone, digits, TrainingOptions(**options), device="cpu")
    assert distance(taught) < distance(alone)
    assert weights(teacher) == kept
    assert teacher.training


def test_the_vae_is_trained_on_its_own_loss():
    torch.manual_seed(0)
    model = models.build("vae")
    digits = datasets.load_for(model, "digits", limit=300)
    before = evaluate(model, digits.test, device="cpu")
    trained = train(
        model, digits, TrainingOptions(epochs=4, optimizer="adam", lr=1e-3, batch_size=32), device="cpu"
    )
    after = evaluate(model, digits.test, device="cpu")
    assert set(after) == {"loss", "reconstruction", "kld"}
    assert after["loss"] == pytest.approx(after["reconstruction"] + after["kld"], rel=1e-6)
    assert after["loss"] < 0.8 * before["loss"]
    assert after == evaluate(model, digits.test, device="cpu")  # sampled with a seed
    assert trained.history[0].train_accuracy is None


def test_a_loss_of_ones_own(digits):
    calls = []

    def squared(outputs, inputs, labels):
        calls.append(inputs.shape)
        return (outputs - nn.functional.one_hot(labels, 10)).square().mean()

    model = plain()
    before = evaluate(model, digits.test, device="cpu", loss=squared)
    trained = train(
        model,
        digits,
        TrainingOptions(epochs=3, lr=0.5, batch_size=32),
        device="cpu",
        context=TrainingContext(loss=squared),
    )
    after = evaluate(model, digits.test, device="cpu", loss=squared)
    assert calls
    assert after["loss"] < before["loss"]
    assert trained.history[-1].metrics["loss"] < 0.1


def scripted(values):
    """An evaluation that answers from a list, one value an epoch."""
    left = iter(values)
    return lambda model: {"accuracy": next(left)}


def test_the_best_epoch_is_kept_and_the_earliest_of_equals(digits):
    options = TrainingOptions(epochs=5, lr=0.05, batch_size=32)
    best, last = net(), net()
    trained = train(
        best,
        digits,
        TrainingOptions(epochs=5, lr=0.05, batch_size=32, keep="best"),
        device="cpu",
        context=TrainingContext(evaluate=scripted([0.1, 0.9, 0.3, 0.9, 0.2])),
    )
    assert trained.best_epoch == 2
    stopped = net()
    train(stopped, digits, TrainingOptions(epochs=2, lr=0.05, batch_size=32), device="cpu")
    assert weights(best) == weights(stopped)
    assert (
        train(
            last,
            digits,
            options,
            device="cpu",
            context=TrainingContext(evaluate=scripted([0.1, 0.9, 0.3, 0.9, 0.2])),
        ).best_epoch
        == 2
    )
    assert weights(last) != weights(best)


def test_it_stops_early(digits):
    options = TrainingOptions(epochs=9, lr=0.05, batch_size=32, early_stop=2)
    trained = train(
        net(),
        digits,
        options,
        device="cpu",
        context=TrainingContext(evaluate=scripted([0.1, 0.5, 0.4, 0.5, 0.9])),
    )
    assert trained.stopped_early
    assert len(trained.history) == 4
    assert trained.best_epoch == 2


def test_the_rate_is_what_the_optimizer_gets(digits):
    options = TrainingOptions(epochs=4, lr=1.0, schedule="step", milestones=(2,), batch_size=32, warmup=1)
    trained = train(plain(), digits, options, device="cpu")
    assert [record.lr for record in trained.history] == pytest.approx([1.0, 1.0, 0.1, 0.1])
    linear = TrainingOptions(epochs=4, lr=1.0, schedule="linear")
    assert [rate(linear, done) for done in (0, 1, 4)] == [1.0, 0.75, 0.0]


def test_a_last_batch_of_one_image_is_left_out(digits):
    one_more = datasets.load("digits", limit=100, validation=0.03)  # 97 = 3 * 32 + 1
    assert len(one_more.train) % 32 == 1
    trained = train(net(), one_more, TrainingOptions(epochs=1, lr=0.01, batch_size=32), device="cpu")
    assert len(trained.history) == 1


def test_the_model_is_given_back_as_it_came(digits):
    model = net().eval()
    model[2].train()
    train(model, digits, TrainingOptions(epochs=1, lr=0.01), device="cpu")
    assert not model.training
    assert model[2].training
    evaluate(model, digits.test, device="cpu")
    assert not model.training
    assert model[2].training


def test_accelerates_global_state_is_given_back(digits, monkeypatch):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):  # whatever an earlier test left there
        monkeypatch.setattr(state, "_shared_state", {})
    mine = Accelerator(mixed_precision="bf16", cpu=True)
    before = dict(AcceleratorState._shared_state)
    train(plain(), digits, TrainingOptions(epochs=1, lr=0.01), device="cpu")
    assert dict(AcceleratorState._shared_state) == before
    assert mine.mixed_precision == "bf16"
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()
    train(plain(), digits, TrainingOptions(epochs=1, lr=0.01), device="cpu")
    assert not AcceleratorState._shared_state


def test_progress_is_told_everything_in_order(digits):
    told = []

    class Watch:
        def start(self, epochs, steps, done):
            told.append(("start", epochs, steps, done))

        def step(self, epoch, step, loss):
            told.append(("step", epoch, step))

        def epoch(self, record):
            told.append(("epoch", record.epoch))

        def finish(self):
            told.append(("finish",))

    train(
        plain(),
        digits,
        TrainingOptions(epochs=2, lr=0.01, batch_size=90),
        device="cpu",
        context=TrainingContext(progress=Watch()),
    )
    assert told[0] == ("start", 2, 3, 0)
    assert told[-1] == ("finish",)
    assert [entry for entry in told if entry[0] == "epoch"] == [("epoch", 1), ("epoch", 2)]
    assert ("step", 2, 3) in told


def test_bars_show_epoch_loss_and_accuracy_and_auto_is_quiet_off_a_terminal(digits, capsys):
    from rich.console import Console

    screen = io.StringIO()
    bars = Bars(Console(file=screen, force_terminal=True, width=100))
    train(
        plain(),
        digits,
        TrainingOptions(epochs=2, lr=0.01, batch_size=90),
        device="cpu",
        context=TrainingContext(progress=bars),
    )
    text = screen.getvalue()
    assert "epoch   2/2" in text
    assert "train loss" in text
    assert "accuracy 0." in text
    train(
        plain(),
        digits,
        TrainingOptions(epochs=1, lr=0.01),
        device="cpu",
        context=TrainingContext(progress="auto"),
    )
    assert capsys.readouterr() == ("", "")
    with pytest.raises(OptionError, match="progress: expected 'auto'"):
        train(
            plain(), digits, TrainingOptions(epochs=1), device="cpu", context=TrainingContext(progress="bars")
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"optimizer": "adamx"}, "optimizer: expected one of sgd, adam, adamw, got 'adamx'; did you mean"),
        ({"schedule": "poly"}, "schedule: expected one of"),
        ({"schedule": "step"}, "milestones: expected some"),
        ({"milestones": (3,)}, "milestones: expected some with schedule='step' and none with another"),
        ({"schedule": "step", "milestones": (10,)}, "milestones: expected epochs between 1 and 9"),
        ({"lr": 0}, "lr: expected a number above 0"),
        ({"lr": float("nan")}, "lr: expected a number above 0"),
        ({"momentum": 1.0}, "momentum: expected 0 <= momentum < 1"),
        ({"label_smoothing": 1}, "label_smoothing"),
        ({"distill_alpha": 1.5}, "distill_alpha"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"warmup": 10}, "warmup: expected 0 <= warmup < epochs"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"precision": "int8"}, "precision: expected one of"),
        ({"keep": "first"}, "keep: expected one of last, best"),
        ({"augment": "mixup"}, "augment: expected standard, crop, flip"),
        ({"nesterov": True, "optimizer": "adam"}, "nesterov"),
        ({"grad_clip": 0}, "grad_clip"),
        ({"early_stop": 0}, "early_stop: expected at least 1"),
        ({"accumulate": 0}, "accumulate"),
        ({"mix": 1.5}, "mix: expected a share 0 <= share <= 1"),
        ({"average": 1.0}, "average: expected a decay 0 < decay < 1"),
    ],
)
def test_wrong_options_are_refused(options, said):
    with pytest.raises(OptionError, match="^" + said.replace("(", r"\(")):
        TrainingOptions(**options)


def test_what_cannot_be_trained_is_refused_before_the_first_step(digits):
    frozen = plain().requires_grad_(False)
    with pytest.raises(NothingToDoError, match="no parameter that requires a gradient"):
        train(frozen, digits, QUICK, device="cpu")
    with pytest.raises(OptionError, match="distillation needs both a teacher and distill_alpha"):
        train(plain(), digits, QUICK, device="cpu", context=TrainingContext(teacher=plain()))
    with pytest.raises(OptionError, match="distillation needs both"):
        train(plain(), digits, TrainingOptions(distill_alpha=0.5), device="cpu")
    with pytest.raises(
        OptionError, match="fp16 training needs CUDA, and the device is cpu; take bf16 or fp32"
    ):
        train(plain(), digits, TrainingOptions(precision="fp16"), device="cpu")
    with pytest.raises(OptionError, match="label_smoothing: only cross-entropy has it, and Vae"):
        train(models.build("vae"), digits, TrainingOptions(label_smoothing=0.1), device="cpu")
    with pytest.raises(OptionError, match="expected auto, cpu, cuda, cuda:1 or mps, got 'gpu'"):
        train(plain(), digits, QUICK, device="gpu")
    with pytest.raises(OptionError, match="mix: only cross-entropy takes two labels per image, and Vae"):
        train(models.build("vae"), digits, TrainingOptions(mix=0.5), device="cpu")
    unvalidated = datasets.load("digits", limit=50, validation=0)
    with pytest.raises(OptionError, match="choose by the validation split, which is empty"):
        train(plain(), unvalidated, TrainingOptions(keep="best"), device="cpu")
    with pytest.raises(DataError, match="expected a split with images, got an empty one"):
        evaluate(plain(), unvalidated.validation, device="cpu")
    assert (
        train(plain(), unvalidated, TrainingOptions(epochs=1, lr=0.01), device="cpu").history[0].metrics == {}
    )


def test_a_loss_that_is_no_number_ends_training(digits):
    with pytest.raises(NonFiniteError, match=r"the training loss became nan in epoch 1; lower lr \(1e\+30\)"):
        train(plain(), digits, TrainingOptions(epochs=1, lr=1e30, batch_size=32), device="cpu")
    broken = plain()
    broken[1].weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="expected finite metrics"):
        evaluate(broken, digits.test, device="cpu")


def test_outputs_with_logits_in_them_are_understood(digits):
    class Wrapped(nn.Module):
        def __init__(self, wrap):
            super().__init__()
            self.inner, self.wrap = plain(), wrap

        def forward(self, images):
            return self.wrap(self.inner(images))

    class Output:
        def __init__(self, logits):
            self.logits = logits

    bare = evaluate(plain(), digits.test, device="cpu")
    assert evaluate(Wrapped(Output), digits.test, device="cpu") == bare
    assert evaluate(Wrapped(lambda logits: (logits, None)), digits.test, device="cpu") == bare
    with pytest.raises(OptionError, match="the model returned dict: expected logits"):
        evaluate(Wrapped(lambda logits: {"a": logits}), digits.test, device="cpu")


def test_records_are_values():
    assert EpochRecord(1, 0.5, 0.5, 0.1, 1.0) == EpochRecord(1, 0.5, 0.5, 0.1, 1.0)


def test_a_milestone_counts_from_the_epoch_it_names():
    options = TrainingOptions(epochs=4, lr=1.0, schedule="step", milestones=(1, 3))
    assert [rate(options, done) for done in (0.99, 1, 2.99, 3)] == pytest.approx([1.0, 0.1, 0.1, 0.01])


def test_every_epoch_has_an_order_of_its_own(digits):
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = plain()

        def forward(self, images):
            if self.training:
                seen.append(images.clone())
            return self.inner(images)

    train(Watched(), digits, TrainingOptions(epochs=2, lr=0.01, batch_size=270), device="cpu")
    first, second = seen
    assert not torch.equal(first, second)
    assert sorted(image.sum().item() for image in first) == pytest.approx(
        sorted(image.sum().item() for image in second)
    )

"""Pruning while training: sparsity follows the cubic, is exact at the end, and a stop changes no bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur import data as datasets
from secateur.core.masks import Masks
from secateur.criteria.shuffled import Shuffled
from secateur.criteria.synflow import Synflow
from secateur.errors import BudgetNotMetError, NothingToDoError, OptionError, RecipeError
from secateur.lab.recipe import Recipe
from secateur.lab.training import GradualPruning, TrainingContext, TrainingOptions, pruning, train

QUICK = TrainingOptions(epochs=4, lr=0.05, batch_size=32)
PLAN = GradualPruning(0.8, start=0.2, until=0.5, every=3)


@pytest.fixture(scope="module")
def digits() -> datasets.Data:
    return datasets.load("digits", limit=300)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


class Watch:
    """Notes the zeros of every step, and may stop a training after an epoch."""

    def __init__(self, model: nn.Module, stop: int | None = None):
        self.model, self.stop, self.zeros = model, stop, []

    def start(self, *_):
        pass

    def step(self, *_):
        self.zeros.append(sum(int((self.model[at].weight == 0).sum()) for at in (1, 4)))

    def epoch(self, record):
        self.step()
        if record.epoch == self.stop:
            raise KeyboardInterrupt

    def finish(self):
        pass


@pytest.mark.parametrize(("granularity", "given"), [("element", False), ("channel", True)])
def test_an_example_is_given_only_where_it_is_needed(digits, monkeypatch, granularity, given):
    seen = []
    pruned = pruning.prune
    monkeypatch.setattr(
        pruning, "prune", lambda *args, **more: seen.append(more["example"]) or pruned(*args, **more)
    )
    plan = GradualPruning(0.5, until=0.5, every=3, granularity=granularity)
    train(net(), digits, TrainingOptions(epochs=1, batch_size=32), pruning=plan, device="cpu")
    assert seen
    assert {each is not None for each in seen} == {given}


def test_weights_leave_along_the_cubic_and_stay_away(digits):
    model = net()
    watch = Watch(model)
    trained = train(model, digits, QUICK, pruning=PLAN, device="cpu", context=TrainingContext(progress=watch))
    total = 64 * 32 + 32 * 10
    assert trained.masks.numel - trained.masks.kept == round(0.8 * total)
    assert watch.zeros == sorted(watch.zeros)
    assert 0.2 * total < watch.zeros[0] < watch.zeros[-1] == round(0.8 * total)
    for name, mask in trained.masks.items():
        assert (dict(model.named_parameters())[name][~mask] == 0).all()
    assert trained.history[-1].train_accuracy > 0.7


def test_what_was_gone_before_stays_gone_and_counts(digits):
    model = net()
    first = Masks({"1.weight": torch.rand(32, 64, generator=torch.Generator().manual_seed(0)) > 0.5})
    trained = train(model, digits, QUICK, masks=first, pruning=PLAN, device="cpu")
    assert not (trained.masks["1.weight"] & ~first["1.weight"]).any()
    assert trained.masks.numel - trained.masks.kept == round(0.8 * trained.masks.numel)


@pytest.mark.parametrize("stop", [1, 3])
def test_stopped_in_the_ramp_or_after_it_goes_on_to_the_bit(digits, tmp_path, stop):
    whole, stopped = net(), net()
    straight = train(whole, digits, QUICK, pruning=PLAN, device="cpu")
    file = tmp_path / "train.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(
            stopped,
            digits,
            QUICK,
            pruning=PLAN,
            device="cpu",
            context=TrainingContext(checkpoint=file, progress=Watch(stopped, stop)),
        )
    again = net()
    resumed = train(
        again, digits, QUICK, pruning=PLAN, device="cpu", context=TrainingContext(checkpoint=file)
    )
    assert resumed.resumed_from == stop
    assert resumed.masks == straight.masks
    for mine, theirs in zip(again.state_dict().values(), whole.state_dict().values()):
        assert torch.equal(mine, theirs)
    with pytest.raises(OptionError, match="its pruning is"):
        train(
            net(),
            digits,
            QUICK,
            pruning=GradualPruning(0.7),
            device="cpu",
            context=TrainingContext(checkpoint=file),
        )


@pytest.mark.parametrize("granularity", ["channel", "filter"])
def test_the_share_is_of_units_where_they_are_larger_than_weights(granularity):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    with torch.no_grad():
        for layer, first in ((model[0], 1.0), (model[2], 9.0)):
            layer.weight.copy_(
                torch.arange(first, first + len(layer.weight))[:, None].expand_as(layer.weight)
            )
            layer.bias.zero_()
    plan = GradualPruning(0.5, start=0.25, until=1, every=1, granularity=granularity, skip="4", at_least=1)
    example = torch.zeros(1, 4)
    # 24 units in all: 6, 10, 12, 12 and 12 leave at steps 0, 1, 2, 3 and 4 of 5
    counts, masks = [], None
    for step in range(5):
        masks = plan.masks(model, step, 5, masks, example)
        counts.append(sum(int((~masks[name].any(1)).sum()) for name in ("0.weight", "2.weight")))
    assert counts == [round(24 * plan.level(step, 5)) for step in range(5)]
    assert counts[-1] == 12
    assert plan.masks(model, 4, 5, masks, example) is masks
    assert plan.masks(model, 0, 5, masks, example) is masks  # more is removed already than this step asks for


def test_floors_that_do_not_allow_the_share_are_said_though_masks_are_given():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    plan = GradualPruning(0.9, until=1, every=1, granularity="filter", at_most=0.25)
    first = Masks({"0.weight": torch.arange(8)[:, None].expand(8, 4) > 0})
    with pytest.raises(BudgetNotMetError, match="the floors"):
        plan.masks(model, 4, 5, first)


def test_a_recipe_removes_channels_gradually(digits):
    model = net()
    plan = GradualPruning(0.5, until=0.5, every=3, granularity="channel")
    trained = train(model, digits, QUICK, pruning=plan, device="cpu")
    assert int((~trained.masks["1.weight"].any(1)).sum()) == 16


def test_only_steps_of_larger_units_have_a_new_address():
    from secateur.lab.steps.gradual import GradualStep

    assert "share_of" not in GradualStep(sparsity=0.5, epochs=1).chosen()
    assert GradualStep(sparsity=0.5, epochs=1, granularity="filter").chosen()["share_of"] == "units"


def test_what_cannot_be_is_refused(digits):
    with pytest.raises(OptionError, match=r"criterion: taylor scores on data.*held\.update\(masks\)"):
        GradualPruning(0.5, criterion="taylor")
    for rule in (Synflow(input="size"), Shuffled(Synflow(input="spread"))):
        with pytest.raises(
            OptionError, match=r"criterion: .*Synflow\(.* scores on data.*held\.update\(masks\)"
        ):
            GradualPruning(0.5, criterion=rule)
    assert GradualPruning(0.5, criterion=Synflow(biases="abs")).needs_example
    with pytest.raises(
        OptionError, match=r"at_most is the share removed: expected a number .* got 1; that would"
    ):
        GradualPruning(0.5, at_most=1)
    with pytest.raises(
        OptionError, match=r"at_least counts units: expected a whole .* got 0\.5; leave it out"
    ):
        GradualPruning(0.5, at_least=0.5)
    with pytest.raises(OptionError, match="until: expected a share of the training"):
        GradualPruning(0.5, until=0)
    with pytest.raises(OptionError, match="every: expected at least 1 step, got 0"):
        GradualPruning(0.5, every=0)
    with pytest.raises(OptionError, match=r"sparsity: expected a share 0 < sparsity < 1, got 1\.5"):
        GradualPruning(1.5)
    with pytest.raises(OptionError, match="the best epoch may come before the last weights are removed"):
        train(net(), digits, TrainingOptions(epochs=2, keep="best"), pruning=PLAN, device="cpu")


def test_as_a_step_of_a_recipe(tmp_path):
    from secateur.lab import Store, run

    text = """
    [data]
    name = "digits"
    limit = 200
    [model]
    name = "lenet-300-100"
    [[step]]
    kind = "train"
    epochs = 1
    [[step]]
    kind = "gradual"
    sparsity = 0.9
    until = 0.5
    every = 2
    epochs = 2
    lr = 0.05
    batch_size = 32
    teacher = "train"
    distill_alpha = 0.5
    channels_last = true
    """
    done = run(Recipe.parse(text), Store(tmp_path))
    found = {item.name: item for item in done.measurements}
    assert found["mask_sparsity"].value == pytest.approx(0.9, abs=1e-5)
    with pytest.raises((RecipeError, OptionError), match="until"):
        run(Recipe.parse(text.replace("until = 0.5", "until = 2.0")), Store(tmp_path))


def test_a_training_that_ends_before_the_first_pruning_is_an_error(tmp_path):
    from secateur.lab import Store, run

    text = """
    [data]
    name = "digits"
    limit = 40
    [model]
    name = "lenet-300-100"
    [[step]]
    kind = "gradual"
    sparsity = 0.9
    epochs = 1
    """
    wanted = r"step 'gradual': expected weights to leave .* it ended before the first pruning; train for more epochs"
    with pytest.raises(NothingToDoError, match=wanted):
        run(Recipe.parse(text), Store(tmp_path))

"""Dynamic sparse training: which weights leave and come, worked by hand; exact counts and zeros through a training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur import data as datasets
from secateur.errors import NothingToDoError, OptionError
from secateur.lab.training import TrainingContext, TrainingOptions, train


def layer() -> tuple[nn.Linear, sc.Masks, torch.optim.Optimizer]:
    model = nn.Linear(5, 1, bias=False)
    model.weight.data.copy_(torch.tensor([[3.0, -1.0, 2.0, 0.0, 0.0]]))
    masks = sc.Masks({"weight": torch.tensor([[True, True, True, False, False]])})
    return model, masks, torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)


def step(active, model, optimizer, inputs: list[float]) -> None:
    active.before_forward()
    model(torch.tensor([inputs])).sum().backward()
    active.before_step()
    optimizer.step()
    optimizer.zero_grad()
    active.after_step()


def test_rigl_by_hand():
    # of 3 weights, 0.5 * (1 + cos(pi/4)) / 2 = 0.43: one leaves, the smallest; the largest |gradient| comes: 0.5
    model, masks, optimizer = layer()
    method = sc.sparsify.Rigl(share=0.5, every=1, until=1.0)
    with method.start(model, masks=masks, steps=4) as active:
        step(active, model, optimizer, [0.0, 0.0, 0.0, 9.0, 9.0])  # nothing moves before the first step
        assert model.weight.tolist() == [[3.0, -1.0, 2.0, 0.0, 0.0]]
        step(active, model, optimizer, [9.0, 0.1, 9.0, 0.2, -0.5])
        assert active.masks["weight"].tolist() == [[True, False, True, False, True]]
        assert model.weight.tolist() == [[3.0, 0.0, 2.0, 0.0, 0.0]]  # a step that moves does nothing else
        step(active, model, optimizer, [1.0] * 5)  # 0.5 * (1 + cos(pi/2)) / 2 = 0.25 of 3: none leaves
        assert active.masks["weight"].tolist() == [[True, False, True, False, True]]
    assert active.finish()["weight"].sum() == 3


def test_gradients_of_removed_weights_pass_only_where_masks_move():
    model, masks, optimizer = layer()
    seen = []
    with sc.sparsify.Rigl(every=2, until=1.0).start(model, masks=masks, steps=8) as active:
        for _ in range(4):
            active.before_forward()
            model(torch.ones(1, 5)).sum().backward()
            seen.append(int((model.weight.grad != 0).sum()))
            active.before_step()
            optimizer.step()
            optimizer.zero_grad()
            active.after_step()
    assert seen == [3, 3, 5, 3]


def test_what_left_may_come_back_as_it_was_and_ties_go_by_position():
    from secateur.sparsify._moving import moved

    mask = torch.tensor([True, True, False, False])
    weight = torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert moved(mask, weight, 0.5, torch.tensor([5.0, 0.0, 1.0, 1.0]), 0).tolist() == [
        True,
        True,
        False,
        False,
    ]
    assert moved(mask, weight, 0.5, torch.tensor([0.0, 0.0, 1.0, 1.0]), 0).tolist() == [
        False,
        True,
        True,
        False,
    ]
    assert moved(mask, weight, 0.49, torch.tensor([0.0, 0.0, 1.0, 1.0]), 0) is mask


def test_set_draws_from_the_seed_and_keeps_the_largest():
    seen = set()
    for seed in range(8):
        model, masks, optimizer = layer()
        with sc.sparsify.Set(share=0.4, every=1).start(model, masks=masks, seed=seed) as active:
            for _ in range(2):
                step(active, model, optimizer, [0.0] * 5)
        kept = active.masks["weight"][0].tolist()
        assert (kept[0], kept[2], sum(kept)) == (True, True, 3)  # 3 and 2 stay, -1 leaves or is drawn again
        assert model.weight[0].tolist()[4 if kept[3] else 3] == 0.0
        again, masks, optimizer = layer()
        with sc.sparsify.Set(share=0.4, every=1).start(again, masks=masks, seed=seed) as second:
            for _ in range(2):
                step(second, again, optimizer, [0.0] * 5)
        assert second.masks["weight"][0].tolist() == kept
        seen.add(tuple(kept))
    assert len(seen) > 1


def test_what_cannot_be_is_refused():
    model, masks, _ = layer()
    with pytest.raises(OptionError, match="rigl: expected steps="):
        sc.sparsify.Rigl(0.5).start(model)
    with pytest.raises(OptionError, match="or the share that is removed at random, got neither"):
        sc.sparsify.Set().start(model)
    with pytest.raises(OptionError, match="got both"):
        sc.sparsify.Set(0.5).start(model, masks=masks)
    with pytest.raises(NothingToDoError, match="no weights can be exchanged"):
        sc.sparsify.Set().start(model, masks=sc.Masks({"weight": torch.ones(1, 5, dtype=torch.bool)}))
    with pytest.raises(OptionError, match="share: expected a share 0 < share <= 1, got 0"):
        sc.sparsify.Rigl(0.5, share=0)


def test_masks_that_never_moved_are_an_error():
    model, masks, _ = layer()
    with pytest.raises(
        NothingToDoError, match=r"rigl: .* a move after every 100 steps, the last before step 75"
    ):
        sc.sparsify.Rigl().start(model, masks=masks, steps=100)
    active = sc.sparsify.Set(every=1).start(model, masks=masks)
    for _ in range(3):
        active.after_step()  # the other calls are left out
    with pytest.raises(NothingToDoError, match=r"set: .* got none after 3 steps .* call before_forward"):
        active.finish()


# -- in the training loop --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> datasets.Data:
    return datasets.load("digits", limit=200)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


METHODS = [sc.sparsify.Rigl(0.8, every=3, until=0.9), sc.sparsify.Set(0.8, every=3)]


class Watch:
    """Notes the masks at every step, and may stop a training after an epoch."""

    def __init__(self, model: nn.Module, stop: int | None = None):
        self.model, self.stop, self.seen = model, stop, []

    def start(self, *_):
        pass

    def step(self, *_):
        self.seen.append(torch.cat([self.model[at].weight.detach().flatten() != 0 for at in (1, 3)]))

    def epoch(self, record):
        self.step()
        if record.epoch == self.stop:
            raise KeyboardInterrupt

    def finish(self):
        pass


def options(method) -> TrainingOptions:
    return TrainingOptions(epochs=10, lr=0.1, batch_size=20, weight_decay=1e-3, sparsify=method)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_counts_are_exact_masks_move_and_it_learns(digits, method):
    model = net()
    first = method.start(model, steps=100).masks
    watch = Watch(model)
    trained = train(model, digits, options(method), device="cpu", context=TrainingContext(progress=watch))
    for name, mask in trained.masks.items():
        assert mask.sum() == first[name].sum()
        assert (dict(model.named_parameters())[name][~mask] == 0).all()
    assert max(int(seen.sum()) for seen in watch.seen) <= first.kept
    assert not torch.equal(watch.seen[0], watch.seen[-1])
    assert trained.history[-1].train_accuracy > 0.6


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_stopped_training_goes_on_to_the_bit(digits, method, tmp_path):
    whole, stopped, resumed = net(), net(), net()
    straight = train(whole, digits, options(method), device="cpu")
    file = tmp_path / "train.safetensors"
    context = TrainingContext(checkpoint=file, progress=Watch(stopped, 2))
    with pytest.raises(KeyboardInterrupt):
        train(stopped, digits, options(method), device="cpu", context=context)
    again = train(resumed, digits, options(method), device="cpu", context=TrainingContext(checkpoint=file))
    assert again.resumed_from == 2
    assert again.masks == straight.masks
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))


def test_the_best_epoch_cannot_be_kept(digits):
    with pytest.raises(OptionError, match="sparsify: Set changes its masks until the last step"):
        TrainingOptions(sparsify=METHODS[1], average=0.9)


def test_masks_of_an_earlier_pruning_move(digits):
    model = net()
    masks = sc.prune(model, "magnitude", budget=0.7)
    method = sc.sparsify.Rigl(every=3)
    trained = train(model, digits, options(method), masks=masks, device="cpu")
    assert trained.masks != masks
    assert trained.masks.kept == masks.kept

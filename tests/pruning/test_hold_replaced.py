"""hold: masks belong to names, so a parameter that takes another's place is held like it."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import secateur as sc
from secateur.errors import MaskMismatchError
from secateur.pruning.replaced import Places, named_now

INPUTS = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


def net(width: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Sequential(nn.Linear(width, 3)))


def masks_of(model: nn.Module) -> sc.Masks:
    return sc.prune(model, "magnitude", budget=0.5)


def come_back(model: nn.Module, masks: sc.Masks) -> int:
    """How many removed weights are not zero."""
    return sum(int((model.get_parameter(name)[~mask] != 0).sum()) for name, mask in masks.items())


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(INPUTS).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)


def assigned(model: nn.Module) -> None:
    dense = {name: torch.ones_like(value) for name, value in model.state_dict().items()}
    model.load_state_dict(dense, assign=True)


def part_assigned(model: nn.Module) -> None:
    model[2].load_state_dict({"0.weight": torch.ones(3, 6), "0.bias": torch.ones(3)}, assign=True)


def parameter(model: nn.Module) -> None:
    model[0].weight = nn.Parameter(torch.ones(6, 4))


def module(model: nn.Module) -> None:
    model[2] = nn.Sequential(nn.Linear(6, 3))


REPLACED = [assigned, part_assigned, parameter, module]


@pytest.mark.parametrize("replace", REPLACED)
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.LBFGS])
def test_a_replaced_parameter_is_held_in_training(replace, kind):
    model = net()
    masks = masks_of(model)
    with sc.hold(model, masks, torch.optim.Adam(model.parameters())):
        replace(model)
        model(INPUTS)
        assert come_back(model, masks) == 0  # a forward already computes with the masked weights
        optimizer = kind(model.parameters(), lr=0.1)
        for _ in range(3):
            step(model, optimizer)
            assert come_back(model, masks) == 0
            for name, mask in masks.items():
                assert bool((model.get_parameter(name).grad[~mask] == 0).all())
        replace(model)  # and once more, at the end
    assert come_back(model, masks) == 0
    assert not any(each._backward_hooks for each in model.parameters())
    step(model, torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1))


@pytest.mark.parametrize("replace", REPLACED)
def test_a_replaced_parameter_is_masked_at_the_end(replace):
    model = net()
    masks = masks_of(model)
    with sc.hold(model, masks):
        replace(model)
    assert come_back(model, masks) == 0


def test_the_gradient_that_was_there_before_is_masked_in_the_first_step():
    """Replaced between the forward and the step: what the optimizer sees has no part of removed weights."""
    model = net()
    masks = masks_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sc.hold(model, masks, optimizer) as held:
        new = nn.Parameter(torch.ones(6, 4))
        new.grad = torch.ones(6, 4)
        model[0].weight = new
        torch.optim.SGD([new], lr=1.0).step()
        assert new.grad.tolist() == masks["0.weight"].float().tolist()
        assert new.tolist() == [[0.0] * 4] * 6  # 1 - 1 where kept
        assert held.steps == 1


def test_copies_follow_as_well():
    model = net()
    masks = masks_of(model)
    ema = torch.optim.swa_utils.AveragedModel(model)
    with sc.hold(model, masks, copies=ema):
        assigned(ema.module)
        assert come_back(ema.module, masks) == 0
        parameter(ema.module)
    assert come_back(ema.module, masks) == 0


def test_updated_masks_are_held_on_the_replaced_parameter():
    model = net()
    masks = masks_of(model)
    with sc.hold(model, sc.Masks.ones(model, list(masks))) as held:
        parameter(model)
        held.update(masks)
        assert come_back(model, masks) == 0
        step(model, torch.optim.SGD(model.parameters(), lr=0.1))
        assert come_back(model, masks) == 0


@pytest.mark.parametrize("where", ["step", "end"])
def test_another_shape_is_an_error_that_names_it(where):
    model = net()
    masks = masks_of(model)
    error = (
        "mask of '0.weight': the parameter of Sequential was replaced while it was held: expected shape (6, 4) as the "
        "mask has, got (5, 4); end the hold first, and hold the new one with masks that are made for it"
    )
    held = sc.hold(model, masks)
    model[0].weight = nn.Parameter(torch.ones(5, 4))
    with torch.no_grad():
        model[2][0].weight.fill_(1.0)
    if where == "step":
        with pytest.raises(MaskMismatchError) as caught:
            torch.optim.SGD(model.parameters(), lr=0.1).step()
        assert str(caught.value) == error
    with pytest.raises(MaskMismatchError) as caught:
        held.close()
    assert str(caught.value) == error
    assert bool((model[2][0].weight[~masks["2.0.weight"]] == 0).all())  # the others are left masked
    assert not model._forward_pre_hooks
    torch.optim.SGD(model.parameters(), lr=0.1).step()  # no longer held


def test_a_parameter_that_is_gone_is_an_error():
    model = net()
    held = sc.hold(model, masks_of(model))
    model[2] = nn.Identity()
    with pytest.raises(MaskMismatchError) as caught:
        held.close()
    assert str(caught.value) == (
        "mask of '2.0.weight': Sequential lost this parameter while it was held; end the hold before layers are taken "
        "out or get other names"
    )


def test_an_error_in_the_block_is_not_replaced_by_ours():
    def block() -> None:
        model = net()
        with sc.hold(model, masks_of(model)):
            model[2] = nn.Identity()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()


def test_weights_that_train_as_codebooks_for_a_while_are_held_before_and_after():
    model = net()
    masks = masks_of(model)
    masks.apply_(model)
    shared = sc.share(model, bits=2, masks=masks)
    with sc.hold(model, masks), shared.train(model) as training:
        step(model, torch.optim.SGD(training.parameters(), lr=0.01))
    assert come_back(model, masks) == 0


def test_an_optimizer_of_another_model_is_not_asked_to_follow():
    model, other = net(), net()
    held = sc.hold(model, masks_of(model))
    model[0].weight = nn.Parameter(torch.ones(2, 2))  # no mask fits it
    step(other, torch.optim.SGD(other.parameters(), lr=0.1))
    with pytest.raises(MaskMismatchError):
        held.close()


def test_a_parameter_that_gets_another_name_stays_held():
    model = net()
    masks = masks_of(model)
    with sc.hold(model, masks):
        parametrize.register_parametrization(model[0], "weight", nn.Identity())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        with torch.no_grad():
            model[0].parametrizations.weight.original.fill_(1.0)
        optimizer.step()
        assert bool((model[0].weight[~masks["0.weight"]] == 0).all())


def by_parametrize(layer: nn.Module) -> None:
    parametrize.register_parametrization(layer, "weight", nn.Identity())


def no_longer_by_parametrize(layer: nn.Module) -> None:
    parametrize.remove_parametrizations(layer, "weight")


class Own(prune.BasePruningMethod):
    """A method of a user's own, as torch documents them."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: torch.Tensor, default_mask: torch.Tensor) -> torch.Tensor:
        return default_mask.clone()


MOVES = {
    "own method": (lambda layer: Own.apply(layer, "weight"), lambda layer: prune.remove(layer, "weight")),
    "parametrize": (by_parametrize, no_longer_by_parametrize),
    "prune": (lambda layer: prune.identity(layer, "weight"), lambda layer: prune.remove(layer, "weight")),
    "spectral_norm": (nn.utils.spectral_norm, nn.utils.remove_spectral_norm),
}


def replaced_original(layer: nn.Module) -> None:
    if parametrize.is_parametrized(layer):
        layer.parametrizations.weight.original = nn.Parameter(torch.ones(6, 4))
    elif "weight_orig" in layer._parameters:
        layer.weight_orig = nn.Parameter(torch.ones(6, 4))
    else:
        layer.weight = nn.Parameter(torch.ones(6, 4))


@pytest.mark.parametrize("seen", [True, False], ids=["a step between", "at once"])
@pytest.mark.parametrize("moved_before", [False, True], ids=["moved while held", "moved before"])
@pytest.mark.parametrize("how", MOVES)
def test_a_parameter_that_is_replaced_under_its_other_name_is_held(how, moved_before, seen):
    """Each step: moved to another name, replaced there, and moved back and replaced once more."""
    move, back = MOVES[how]
    model = net()
    mask = masks_of(model)["0.weight"]
    if moved_before:
        move(model[0])
    name = next(name for name, each in model.named_parameters() if tuple(each.shape) == (6, 4))
    turns = [back, move] if moved_before else [move, back]
    with sc.hold(model, sc.Masks({name: mask})):
        for turn in turns:
            turn(model[0])
            if seen:
                step(model, torch.optim.SGD(model.parameters(), lr=0.1))
            replaced_original(model[0])
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
            for _ in range(2):
                step(model, optimizer)
                model(INPUTS)
                assert bool((model[0].weight[~mask] == 0).all())
        replaced_original(model[0])
    model(INPUTS)
    assert bool((model[0].weight[~mask] == 0).all())


@pytest.mark.parametrize("seen", [True, False], ids=["a step between", "at once"])
@pytest.mark.parametrize("at", [0, 2])
def test_a_tied_parameter_that_is_moved_in_one_place_and_replaced_there_is_held(at, seen, monkeypatch):
    """The parameter of before is still in the other place, where its mask is held as well."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    mask = torch.rand(4, 4) > 0.5
    with sc.hold(model, sc.Masks({"0.weight": mask, "2.weight": mask})) as held:
        collected = []
        collect = held._collect
        monkeypatch.setattr(held, "_collect", lambda: collected.append(collect()))
        by_parametrize(model[at])
        if seen:
            step(model, torch.optim.SGD(model.parameters(), lr=0.1))
        assert not collected  # the same parameter in the same place
        model[at].parametrizations.weight.original = nn.Parameter(torch.ones(4, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        for _ in range(3):
            step(model, optimizer)
            assert all(bool((model[i].weight[~mask] == 0).all()) for i in (0, 2))
        assert len(collected) == 1  # once for the change, and not again in every step
        no_longer_by_parametrize(model[at])
        model[at].weight = nn.Parameter(torch.ones(4, 4))
        step(model, torch.optim.SGD(model.parameters(), lr=0.1))
        assert all(bool((model[i].weight[~mask] == 0).all()) for i in (0, 2))


class Both(nn.Module):
    """A layer that calls a parameter of its own as `torch.nn.utils.prune` calls the one that it moves."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.weight_orig = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))


@pytest.mark.parametrize(("masked", "other"), [("weight", "weight_orig"), ("weight_orig", "weight")])
def test_a_parameter_of_its_own_is_not_taken_for_one_that_moved(masked, other):
    model = Both()
    with sc.hold(model, {masked: torch.eye(2) > 0}):
        delattr(model, masked)  # for a while, as to train codebooks
        torch.optim.SGD(model.parameters(), lr=0.0).step()
        setattr(model, masked, nn.Parameter(torch.ones(2, 2)))
    assert getattr(model, masked).tolist() == [[1, 0], [0, 1]]
    assert getattr(model, other).tolist() == [[1, 1], [1, 1]]


class Around(nn.Module):
    """A module around a layer, as LoRA has it."""

    def __init__(self, layer: nn.Module, name: str) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._modules[self.name](x)


def test_a_tied_layer_that_is_moved_and_then_wrapped_is_followed_to_its_own_place():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    mask = torch.rand(4, 4) > 0.5
    with sc.hold(model, {"0.weight": mask, "2.weight": mask}):
        layer = model[2]
        prune.identity(layer, "weight")
        model[2] = Around(layer, "base")
        step(model, torch.optim.SGD(model.parameters(), lr=0.1))
        layer.weight_orig = nn.Parameter(torch.ones(4, 4))
        step(model, torch.optim.SGD(model.parameters(), lr=0.1))
        assert bool((layer.weight_orig[~mask] == 0).all())
        assert bool((model[0].weight[~mask] == 0).all())


@pytest.mark.parametrize("how", [*MOVES, "replaced"])
@pytest.mark.parametrize("name", ["base_layer", "base"])
def test_a_layer_that_is_wrapped_while_it_is_held_is_followed_when_its_weight_moves(name, how):
    model = net()
    mask = masks_of(model)["0.weight"]
    with sc.hold(model, {"0.weight": mask}):
        layer = model[0]
        model[0] = Around(layer, name)
        step(model, torch.optim.SGD(model.parameters(), lr=0.1))
        for move in MOVES.get(how, ()):
            move(layer)
            step(model, torch.optim.SGD(model.parameters(), lr=0.1))
            replaced_original(layer)
            step(model, torch.optim.SGD(model.parameters(), lr=0.1))
            model(INPUTS)
            assert bool((layer.weight[~mask] == 0).all())
        layer.weight = nn.Parameter(torch.ones(6, 4))
        step(model, torch.optim.SGD(model.parameters(), lr=0.1))
        assert bool((layer.weight[~mask] == 0).all())
        model[0] = layer  # and no longer wrapped
        layer.weight = nn.Parameter(torch.ones(6, 4))
    assert bool((layer.weight[~mask] == 0).all())


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_weight_that_is_made_into_several_is_an_error(norm):
    model = net()
    held = sc.hold(model, masks_of(model))
    norm(model[0])
    with pytest.raises(MaskMismatchError, match=r"mask of '0\.weight': Sequential lost this parameter while"):
        step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(
        MaskMismatchError, match="end the hold before layers are taken out or get other names"
    ):
        held.close()


@pytest.mark.parametrize("detached", [True, False])
def test_what_functional_call_lends_is_left_alone(detached):
    model, other = net(), net()
    masks = masks_of(model)
    lent = {name: torch.ones_like(each) for name, each in other.state_dict().items()}
    if not detached:
        lent = {name: nn.Parameter(each) for name, each in lent.items()}
    with sc.hold(model, masks) as held:
        seen = torch.func.functional_call(model, lent, (INPUTS,))
        assert all(bool((each == 1).all()) for each in lent.values())
        assert not any(each._backward_hooks for each in lent.values())
        step(model, torch.optim.SGD(model.parameters(), lr=0.1))
        assert held.steps == 1
    assert come_back(model, masks) == 0
    other.load_state_dict(lent)
    assert torch.equal(seen, other(INPUTS))


def test_an_optimizer_of_the_parameters_before_is_told():
    model = net()
    masks = masks_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    held = sc.hold(model, masks, optimizer)
    step(model, optimizer)
    assigned(model)
    step(model, optimizer)  # trains what the model no longer has
    with pytest.warns(UserWarning, match="but no optimizer stepped any of its 2 masked tensors"):
        held.close()


def test_the_best_weights_assigned_at_the_end_are_no_reason_to_warn():
    model = net()
    masks = masks_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with sc.hold(model, masks, optimizer):
            best = copy.deepcopy(model.state_dict())
            step(model, optimizer)
            model.load_state_dict(best, assign=True)


def test_places_are_looked_at_without_a_walk():
    """What is read in a step: one entry for each masked parameter, one for each module on the way to them."""
    model = net()
    places = Places(model, named_now(model, {"2.0.weight": (3, 6)}))
    assert [(key, module is model[2]) for _, key, module in places._modules] == [("2", True), ("0", False)]
    assert [key for _, key, _ in places._parameters] == ["weight"]
    model[0] = nn.Identity()  # not on the way
    assert not places.changed()

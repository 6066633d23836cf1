"""Layers wrapped after masks were made, as LoRA of PEFT wraps them: held by their earlier names, adapters left out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.core.wrapped_layers import adapters_of
from secateur.errors import MaskMismatchError


class WithAdapter(nn.Module):
    """A layer with two small matrices beside it, in dicts by the adapter's name, as PEFT's LoRA has them."""

    def __init__(self, layer: nn.Linear, rank: int = 3) -> None:
        super().__init__()
        self.base_layer = layer
        self.lora_dropout = nn.ModuleDict({"default": nn.Identity()})
        self.lora_A = nn.ModuleDict({"default": nn.Linear(layer.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, layer.out_features, bias=False)})
        layer.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        self.base_layer.weight += self.lora_B["default"].weight @ self.lora_A["default"].weight
        return self.base_layer


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(x).relu()).relu())


class Tuner(nn.Module):
    """What is around the model: it calls the model's forward, past the hooks of the call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.forward(x)


def wrapped(model: Net) -> Tuner:
    for each in (model.first, model.second, model.third):
        each.requires_grad_(False)
    model.first, model.second = WithAdapter(model.first), WithAdapter(model.second)
    return Tuner(model)


@pytest.mark.parametrize("outer", [True, False])
def test_masks_from_before_layers_were_wrapped_are_held(outer: bool) -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(6, 4)
    masks = sc.prune(model, "magnitude", budget=0.5)
    tuner = wrapped(model)
    optimizer = torch.optim.AdamW([p for p in tuner.parameters() if p.requires_grad], 0.1)
    with sc.hold(tuner if outer else model, masks, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            tuner(x).square().mean().backward()
            optimizer.step()
        model.first, model.second = model.first.merged(), model.second.merged()
        if outer:  # a forward through what is around the model finds what the merge wrote
            tuner(x)
            assert (model.first.weight[~masks["first.weight"]] == 0).all()
    for name, mask in masks.items():
        assert (model.get_parameter(name)[~mask] == 0).all(), name
        assert (model.get_parameter(name)[mask] != 0).all(), name


def test_other_verbs_say_that_a_layer_is_wrapped() -> None:
    model, x = Net().eval(), torch.randn(6, 4)
    masks = sc.prune(model, "l2", "channel", 0.5, example=x)
    tuner = wrapped(model)
    with pytest.raises(MaskMismatchError, match=r"'first.weight'.*layer wrapped.*merge"):
        sc.shrink(tuner.model, masks, x)


@pytest.mark.parametrize("granularity", ["element", "channel"])
def test_adapters_are_left_out_unless_they_are_named(granularity: str) -> None:
    """Their outputs leave with the channels of the layer that they are beside; their ranks stay."""
    torch.manual_seed(0)
    tuner, x = wrapped(Net()).eval(), torch.randn(6, 4)
    masks = sc.prune(tuner, "l2", granularity, 0.5, example=x)
    if granularity == "element":
        assert [*masks] == [
            f"model.{name}.weight" for name in ("first.base_layer", "second.base_layer", "third")
        ]
        named = sc.prune(tuner, "l2", options=sc.PruneOptions(parameters="*.lora_[AB].*"))
        assert len(named) == 7
    else:
        small = sc.shrink(tuner, masks, x)
        assert small.proof.holds
        assert small.model.model.second.base_layer.weight.shape == (4, 4)
        assert small.model.model.second.lora_A["default"].weight.shape == (3, 4)
        assert small.model.model.second.lora_B["default"].weight.shape == (4, 3)


def test_a_part_that_happens_to_be_called_base_layer_wraps_nothing() -> None:
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_layer, self.level0 = nn.Linear(4, 8), nn.Linear(8, 2)

    assert adapters_of(Backbone()) == frozenset()
    assert [*sc.prune(Backbone(), "magnitude")] == ["base_layer.weight", "level0.weight"]


class Heads(nn.Module):
    """A trunk and heads by the name of their task: parts of a model, no adapters."""

    def __init__(self, trunk: nn.Module, heads: str) -> None:
        super().__init__()
        self.base_layer = trunk
        setattr(self, heads, nn.ModuleDict({"a": nn.Linear(8, 2), "b": nn.Linear(8, 3)}))


class Marked(Heads):
    """Marked as PEFT marks its classes."""

    adapter_layer_names = ("heads",)


def test_heads_beside_a_trunk_called_base_layer_are_pruned() -> None:
    model = Heads(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), "heads")
    assert adapters_of(model) == frozenset()
    assert [*sc.prune(model, "magnitude")] == ["base_layer.0.weight", "heads.a.weight", "heads.b.weight"]
    assert adapters_of(Heads(nn.Linear(4, 8), "heads")) == frozenset()
    assert adapters_of(Heads(nn.Sequential(nn.Linear(4, 8)), "lora_heads")) == frozenset()
    assert adapters_of(Marked(nn.Sequential(nn.Linear(4, 8)), "heads")) == frozenset()


def test_adapters_are_known_by_their_class_or_their_name() -> None:
    for model, part in (
        (Marked(nn.Linear(4, 8), "heads"), "heads"),
        (Heads(nn.Linear(4, 8), "lora_A"), "lora_A"),
    ):
        assert adapters_of(model) == {
            f"{part}.{each}" for each in ("a.weight", "a.bias", "b.weight", "b.bias")
        }
    around = WithAdapter(nn.Linear(4, 8))
    within = Heads(around, "lora_A")  # an adapter on an adapter, and on attention and a parametrized layer
    assert {"lora_A.a.weight", "base_layer.lora_A.default.weight"} <= adapters_of(within)
    for layer in (nn.MultiheadAttention(8, 2), nn.utils.parametrizations.weight_norm(nn.Linear(4, 8))):
        assert len(adapters_of(Heads(layer, "lora_A"))) == 4


def test_an_optimizer_of_a_plain_model_with_frozen_masked_weights_is_refused() -> None:
    model = Net()
    masks = sc.prune(model, "magnitude", budget=0.5)
    for name in masks:
        model.get_parameter(name).requires_grad_(False)
    with pytest.raises(MaskMismatchError, match="holds none of the 3 masked tensors"):
        sc.hold(model, masks, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1))

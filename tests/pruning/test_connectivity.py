"""The guard: layers with nothing left, paths that are cut, and no false alarm on what lives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import CollapseError
from secateur.pruning.connectivity import check_connected, find_collapsed


def masks_of(model: nn.Module, **cuts: Any) -> sc.Masks:
    """Masks that keep everything but the output rows (or [rows, columns] index) named per layer."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            found[name] = torch.ones_like(parameter, dtype=torch.bool)
    for layer, index in cuts.items():
        found[layer.replace("__", ".") + ".weight"][index] = False
    return sc.Masks(found)


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
ALL = slice(None)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = (nn.Linear(4, 4) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(inputs)
        hidden = hidden + self.two(self.one(self.norm(hidden)).tanh())
        return self.head(hidden).log_softmax(-1)


def test_an_emptied_layer_is_named_with_the_cure() -> None:
    model = chain()
    masks = masks_of(model, **{"3": ALL})
    for example in (None, IMAGE):
        with pytest.raises(CollapseError) as caught:
            check_connected(model, masks, example)
        text = str(caught.value)
        assert "nothing is left of '3.weight'" in text
        for cure in ("at_least=1", "smaller sparsity", "schedule=Exponential(100)", "allow_collapse=True"):
            assert cure in text


def test_a_cut_path_is_found_though_no_layer_is_empty() -> None:
    model = chain()
    masks = masks_of(model, **{"0": slice(2, 4), "3": (ALL, slice(0, 2))})
    assert find_collapsed(model, masks) == []
    found = find_collapsed(model, masks, IMAGE)
    assert [(c.layer, c.kind, c.fatal) for c in found] == [("3", "silent", True), ("6", "silent", True)]
    text = r"no signal from the input comes out of '3' \(nor of 1 layers after it\)"
    with pytest.raises(CollapseError, match=text):
        check_connected(model, masks, IMAGE)


def test_a_dead_branch_beside_a_shortcut_lives() -> None:
    model = Residual()
    masks = masks_of(model, one=slice(0, 2), two=(ALL, slice(2, 4)))
    example = torch.randn(3, 4)
    assert [(c.layer, c.fatal) for c in find_collapsed(model, masks, example)] == [("two", False)]
    check_connected(model, masks, example)
    dead = masks_of(model, stem=slice(0, 2), head=(ALL, slice(2, 4)), two=slice(0, 2))
    with pytest.raises(CollapseError, match="'head'"):
        check_connected(model, dead, example)


@pytest.mark.parametrize("name", ["cnn", "fc", "resnet20", "vae", "vgg16_lottery", "resnet18"])
def test_no_false_alarm_on_whole_or_half_pruned_networks(name: str) -> None:
    model = sc.models.build(name)
    example = torch.randn(1, *sc.models.input_shape(model))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert find_collapsed(model, sc.Masks.ones(model), example) == []
    masks = sc.prune(model, budget=0.5, example=example)
    assert find_collapsed(model, masks, example) == []
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_a_hundred_layers_stay_in_range() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(100)))
    masks = sc.prune(model, budget=0.9, example=torch.randn(1, 64))
    assert find_collapsed(model, masks, torch.randn(1, 64)) == []
    # In plain numbers infinity times 0 would be NaN here, and NaN would pass for a signal.
    cut = masks_of(model, **{"98": slice(0, 32), "99": (ALL, slice(32, 64))})
    assert [c.layer for c in find_collapsed(model, cut, torch.randn(1, 64))] == ["99"]


def test_models_of_words_are_followed_too() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    words = torch.tensor([[1, 2, 3]])
    check_connected(model, masks_of(model), words)
    crossed = masks_of(model, **{"0": (ALL, slice(0, 2)), "1": (ALL, slice(2, 4))})
    with pytest.raises(CollapseError, match="comes out of '1'"):
        check_connected(model, crossed, words)


def test_prune_asks_the_guard_before_any_training() -> None:
    model = chain()
    model[3].weight.data.mul_(1e-6)
    with pytest.raises(CollapseError, match=r"nothing is left of '3\.weight'"):
        sc.prune(model, budget=sc.budget.Overall(0.6))
    assert not sc.prune(model, budget=sc.budget.Overall(0.6), options=sc.PruneOptions(allow_collapse=True))[
        "3.weight"
    ].any()
    assert (
        sc.prune(model, budget=sc.budget.Overall(0.6), options=sc.PruneOptions(at_least=1))["3.weight"].sum()
        == 1
    )


def test_an_example_that_does_not_fit_is_told_and_layers_are_looked_at_all_the_same() -> None:
    model = chain()
    with pytest.warns(UserWarning, match="paths through Sequential could not be followed"):
        assert find_collapsed(model, masks_of(model, **{"3": ALL}), torch.randn(2, 7))[0].layer == "3.weight"


@pytest.mark.filterwarnings("error:the paths through")
def test_a_padded_batch_of_torchs_encoder_is_followed() -> None:
    """In evaluation mode torch makes a nested tensor of it, which the check's operators do not take."""
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 1).eval()
    example = {
        "src": torch.randn(2, 3, 8),
        "src_key_padding_mask": torch.tensor([[False] * 3, [False, True, True]]),
    }
    assert not [each for each in find_collapsed(model, masks_of(model), example) if each.fatal]


def test_a_long_reason_is_cut() -> None:
    class Refuses(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise NotImplementedError("no kernel for it\n" + "a backend " * 500)

    with pytest.warns(UserWarning, match="no kernel for it a backend") as seen:
        find_collapsed(
            Refuses(4, 4), sc.Masks({"weight": torch.ones(4, 4, dtype=torch.bool)}), torch.randn(1, 4)
        )
    assert len(str(seen[0].message)) < 500


def test_biases_may_all_go() -> None:
    model = nn.Linear(4, 4)
    check_connected(model, sc.Masks({"bias": torch.zeros(4, dtype=torch.bool)}))


class Times(nn.Module):
    """A part whose output is changed in place and given on."""

    def __init__(self, part: nn.Module, factor: float) -> None:
        super().__init__()
        self.part, self.factor = part, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x).mul_(self.factor)


def test_an_output_changed_in_place_is_counted_again() -> None:
    """Else 1e30 * 1e30 overflows, and infinity times a removed weight counts as a signal."""
    model = nn.Sequential(Times(Times(nn.Linear(2, 2), 1e30), 1e30), nn.Linear(2, 2))
    crossed = masks_of(model, **{"0__part__part": 1, "1": (slice(None), 0)})
    assert [collapse.layer for collapse in find_collapsed(model, crossed, torch.ones(1, 2))] == ["1"]


def test_the_weights_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    copied: list[torch.Tensor] = []
    monkeypatch.setattr(
        nn.Parameter, "__deepcopy__", lambda self, memo: copied.append(self) or self.clone(), raising=True
    )
    assert find_collapsed(model, masks_of(model), torch.ones(2, 2)) == []
    assert not copied

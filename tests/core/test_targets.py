"""Which weights a call is about: kinds of layers, patterns, and the errors of patterns that mean nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from secateur.core.targets import Target, select
from secateur.errors import NothingToDoError, PatternError, UnknownNameError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.layer1 = nn.ModuleList([nn.Conv2d(8, 8, 3, groups=2), nn.Conv1d(8, 8, 3)])
        self.layer10 = nn.Conv3d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 4, 2, groups=2)
        self.words = nn.Embedding(10, 4)
        self.fc = nn.Linear(4, 10)
        self.token = nn.Parameter(torch.zeros(1, 4))


def names(**options: Any) -> list[str]:
    return [target.name for target in select(Net(), **options)]


ALL = [
    "stem.weight",
    "layer1.0.weight",
    "layer1.1.weight",
    "layer10.weight",
    "up.weight",
    "words.weight",
    "fc.weight",
]


def test_layers_are_selected_in_the_models_order_and_norms_biases_and_parameters_are_not() -> None:
    assert names() == ALL


@pytest.mark.parametrize(
    ("only", "wanted"),
    [
        ("layer1", ["layer1.0.weight", "layer1.1.weight"]),
        ("layer1*", ["layer1.0.weight", "layer1.1.weight", "layer10.weight"]),
        ("layer1.?", ["layer1.0.weight", "layer1.1.weight"]),
        ("fc.weight", ["fc.weight"]),
        ("type:Conv2d", ["stem.weight", "layer1.0.weight"]),
        (nn.Conv1d, ["layer1.1.weight"]),
        ("type:_ConvNd", [*ALL[:5]]),
        (["fc", nn.Embedding], ["words.weight", "fc.weight"]),
    ],
)
def test_patterns(only: Any, wanted: list[str]) -> None:
    assert names(only=only) == wanted
    assert names(skip=only) == [name for name in ALL if name not in wanted]


def test_parameters_are_added_by_name() -> None:
    assert names(only="fc", parameters=["token", "norm.weight", "*.bias"]) == [
        "token",
        "stem.bias",
        "norm.weight",
        "norm.bias",
        "layer1.0.bias",
        "layer1.1.bias",
        "layer10.bias",
        "up.bias",
        "fc.weight",
        "fc.bias",
    ]


def test_how_the_axes_of_each_kind_read() -> None:
    found = {target.layer: target for target in select(Net(), parameters="token")}
    assert (found["stem"].kind, found["stem"].out_axis, found["stem"].in_axis) == ("conv", 0, 1)
    assert found["layer1.0"].groups == 2
    assert (found["up"].kind, found["up"].out_axis, found["up"].in_axis, found["up"].groups) == (
        "conv_transpose",
        1,
        0,
        2,
    )
    assert found["words"].kind == "embedding"
    assert found["fc"].kind == "linear"
    assert found[""].kind == "parameter"
    assert found["fc"].numel == 40


def test_a_shared_weight_appears_once_under_its_first_name() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    model[1].weight = model[0].weight
    assert [target.name for target in select(model)] == ["0.weight"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"only": "layer2"}, r"pattern 'layer2' matches no prunable layer: did you mean 'layer1'"),
        ({"skip": "type:Conv4d"}, r"pattern 'type:Conv4d' matches no prunable layer"),
        (
            {"only": "norm"},
            r"pattern 'norm' names a part of the model without a prunable weight: .* name their parameters",
        ),
        (
            {"skip": "nor*"},
            r"pattern 'nor\*' means 'norm', a part of the model without a prunable weight: such",
        ),
        ({"parameters": "tokens"}, r"pattern 'tokens' matches no prunable layer: did you mean 'token'"),
        ({"only": nn.LSTM}, r"pattern 'LSTM' matches no prunable layer"),
    ],
)
def test_a_pattern_that_means_nothing_is_an_error(options: dict[str, Any], text: str) -> None:
    with pytest.raises(PatternError, match=text):
        names(**options)


def test_a_shared_weight_answers_to_the_names_of_both_its_layers() -> None:
    model = nn.ModuleDict(
        {"words": nn.Embedding(5, 4), "out": nn.Linear(4, 5, bias=False), "x": nn.Linear(4, 4)}
    )
    model["out"].weight = model["words"].weight
    for only in ("out", "out.weight", "type:Linear", nn.Embedding):
        assert select(model, only=only)[0].name == "words.weight", only
    assert [target.name for target in select(model, skip="out")] == ["x.weight"]


def test_weights_that_something_else_holds_are_an_error_with_the_cure() -> None:
    from torch.nn.utils import parametrizations, prune

    layer = nn.Linear(4, 4)
    prune.l1_unstructured(layer, "weight", 0.5)
    text = r"torch\.nn\.utils\.prune holds '(0\.)?weight_orig' .* sc\.Masks\.from_torch_prune"
    with pytest.raises(NothingToDoError, match=text):
        select(layer)
    with pytest.raises(PatternError, match=text):
        select(nn.Sequential(layer), only="type:Linear")
    text = r"a parametrization computes the weight from .*\.remove_parametrizations, or name what"
    with pytest.raises(NothingToDoError, match=text):
        select(parametrizations.weight_norm(nn.Linear(4, 4)))


def test_nothing_left_is_an_error_with_the_next_step() -> None:
    with pytest.raises(
        NothingToDoError, match=r"no weight takes part in BatchNorm2d: .*parameters=\[\.\.\.\]"
    ):
        select(nn.BatchNorm2d(3))


def test_a_target_finds_its_tensor_in_a_copy_and_says_when_there_is_none() -> None:
    (target,) = select(nn.Linear(2, 3))
    other = nn.Linear(2, 3)
    assert target.of(other) is other.weight
    with pytest.raises(UnknownNameError, match="the model has no parameter 'wait': did you mean 'weight'"):
        Target("wait", "", "linear", (3, 2)).of(other)


@pytest.mark.parametrize("none", [[], (), iter(())])
def test_a_list_of_no_pattern_does_not_mean_everything(none: Any) -> None:
    with pytest.raises(NothingToDoError, match=r"only=.*: no pattern means no layer.*leave it out"):
        select(nn.Linear(2, 2), only=none)
    assert select(nn.Linear(2, 2), only=None, skip=none)[0].name == "weight"


def test_only_names_that_can_be_pruned_are_suggested():
    model = nn.Sequential()
    model.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    with pytest.raises(PatternError, match=r"did you mean 'stem' or 'stem\.0'\?$"):
        select(model, skip="stemm")
    with pytest.raises(PatternError, match=r"did you mean 'type:Conv2d'\?$"):
        select(model, skip="type:Conv2")
    with pytest.raises(PatternError, match=r"did you mean 'stem\.1\.bias'"):
        select(model, parameters="stem.1.bia")

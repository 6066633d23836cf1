"""Network slimming: factors found behind layers, and scores of units that span several tensors."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.core.context import Context
from secateur.core.targets import select
from secateur.criteria.bn_scale import BnScale
from secateur.errors import OptionError, StructureError
from secateur.pruning.scoring import unit_scores

X = torch.ones(2, 1, 4, 4)


class Net(nn.Module):
    """The first convolution is normed before it is used, the second is not."""

    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.two, self.head = nn.Conv2d(4, 3, 3, padding=1), nn.Linear(3, 2)
        self.norm.weight.data.copy_(torch.tensor([0.5, -3.0, 0.25, 1.0]))

    def forward(self, x):
        return self.head(self.two(self.norm(self.one(x)).relu()).mean((2, 3)))


def test_factors_of_the_norm_that_takes_the_output():
    model = Net()
    scores = BnScale().scores(model, select(model), Context(example=X))
    assert list(scores) == ["one.weight"]
    assert scores["one.weight"].flatten(1).unique(dim=1).flatten().tolist() == [0.5, 3.0, 0.25, 1.0]


def test_a_channel_scores_its_own_factor_and_not_what_reads_it():
    model = Net()
    model.two.weight.data.mul_(100)
    masks = sc.prune(model, "bn_scale", "channel", 0.5, example=X, skip=["two", "head"])
    assert masks["one.weight"].flatten(1).any(1).tolist() == [False, True, False, True]


def test_transposed_and_grouped_layers_have_the_factor_of_their_own_output():
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2), nn.BatchNorm2d(6))
    model[1].weight.data.copy_(torch.arange(1.0, 7.0))
    scores = BnScale().scores(model, select(model), Context(example=torch.ones(1, 4, 2, 2)))["0.weight"]
    # [in, out / groups]: inputs 0 and 1 make outputs 0 to 2, inputs 2 and 3 make outputs 3 to 5
    assert scores[:, :, 0, 0].tolist() == [[1, 2, 3], [1, 2, 3], [4, 5, 6], [4, 5, 6]]


def test_layers_without_a_norm_are_named():
    with pytest.raises(
        OptionError, match=r"scores none of the tensors of 'two\.weight'; leave it out with skip="
    ):
        sc.prune(Net(), "bn_scale", "filter", 0.5, example=X)
    plain = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(
        StructureError, match="bn_scale: no layer of Sequential passes its output directly to a batch"
    ):
        sc.prune(plain, "bn_scale", "filter", 0.5, example=torch.ones(1, 2))


def test_a_channels_score_is_its_factor_alone_though_the_next_layer_has_factors_too():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    model[1].weight.data.copy_(torch.tensor([0.5, 3.0]))
    model[3].weight.data.fill_(100.0)
    targets, context = select(model), Context(example=torch.ones(1, 1, 2, 2))
    units = sc.granularity.Channel().units(model, targets, context)
    assert unit_scores(BnScale(), model, targets, units, context)["0"].tolist() == [0.5, 3.0]

"""APoZ and mean activation, worked by hand."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.core.context import Context
from secateur.core.targets import select
from secateur.criteria.activation import Activation
from secateur.errors import DataError, OptionError


def line(criterion, model, data, name="weight"):
    scores = criterion.scores(model, select(model), Context(data=data))[name]
    return scores.movedim(0, 0).flatten(1)[:, 0].tolist()


def two() -> nn.Linear:
    layer = nn.Linear(1, 2, bias=False)
    layer.weight.data.copy_(torch.tensor([[1.0], [-3.0]]))
    return layer


def test_worked_by_hand_over_unequal_batches():
    # outputs (x, -3x) for x = 1, 2, 3, -4: positive in 3 and 1 of 4; means of what passes (1 + 2 + 3) / 4 and 12 / 4
    data = [torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[-4.0]])]
    assert line(Activation(), two(), data) == [0.75, 0.25]
    assert line(Activation("mean"), two(), data) == [1.5, 3.0]
    assert line(Activation("mean", "none"), two(), data) == [2.5, 7.5]


def test_targets_are_not_looked_at_and_positions_count():
    model = nn.Conv2d(1, 2, 1, bias=False)
    model.weight.data.copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))
    image = torch.tensor([[[[1.0, 2.0], [3.0, -4.0]]]])
    assert line(Activation(), model, [(image, "no target")]) == [0.75, 0.25]


def test_outputs_are_taken_behind_the_norm():
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.BatchNorm1d(2), nn.ReLU(inplace=True))
    model[0].weight.data.fill_(1.0)
    model[1].running_mean.copy_(torch.tensor([0.0, 2.5]))
    # x - 0 and x - 2.5 for x = 1, 2, 3, 4: all positive, and two of four
    data = [torch.tensor([[1.0], [2.0], [3.0], [4.0]])]
    assert line(Activation(), model, data, "0.weight") == [1.0, 0.5]


def test_a_channel_scores_its_own_outputs_and_not_what_reads_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4, bias=False), nn.ReLU(), nn.Linear(4, 3))
    model[0].weight.data.copy_(torch.tensor([[1.0], [-1.0], [2.0], [-2.0]]))
    model[2].weight.data[:, 1] = 100.0
    data = [torch.tensor([[1.0], [2.0]])]
    masks = sc.prune(model, "activation", "channel", 0.5, data=data, example=data[0], skip="2")
    assert masks["0.weight"][:, 0].tolist() == [True, False, True, False]


def test_errors_name_what_is_wrong():
    with pytest.raises(OptionError, match="of: expected 'apoz' or 'mean', got 'max'"):
        Activation("max")
    with pytest.raises(OptionError, match="function: expected one of relu, gelu, silu, none, got 'tanh'"):
        Activation(function="tanh")

    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(1, 1), nn.Linear(1, 1)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(DataError, match="activation: 'spare': never run as a layer on this data"):
        line(Activation(), Spare(), [torch.ones(2, 1)])


def test_a_model_in_training_is_read_in_evaluation_and_stays_in_training():
    model = nn.Sequential(nn.Dropout(0.9), two()).train()
    data = [torch.tensor([[1.0], [2.0], [3.0], [-4.0]])]
    assert line(Activation(), model, data, "1.weight") == [0.75, 0.25]
    assert model.training

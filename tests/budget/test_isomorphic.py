"""Isomorphic: each kind of structure loses the same share, by competition within it."""

import torch
from torch import nn

import secateur as sc
from secateur.budget.isomorphic import Isomorphic


class Mixed(nn.Module):
    """Two convolutions and two Linear layers; scales that a single competition would be decided by."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(1, 8, 1, bias=False), nn.Conv2d(8, 8, 1, bias=False)
        self.three, self.four = nn.Linear(8, 8, bias=False), nn.Linear(8, 4, bias=False)
        for layer, scale in zip((self.one, self.two, self.three, self.four), (1.0, 2.0, 100.0, 300.0)):
            layer.weight.data.copy_(scale * (1 + torch.rand(layer.weight.shape)))

    def forward(self, x):
        return self.four(self.three(self.two(self.one(x)).mean((2, 3))))


def test_kinds_lose_alike_and_compete_within():
    options = sc.PruneOptions(allow_collapse=True)
    masks = sc.prune(Mixed(), "magnitude", "element", Isomorphic(0.5), options=options)
    rows = {row.name: row.kept for row in masks.summary()}
    # 8 + 64 weights of convolutions: all of `one` lie below all of `two`, so 8 + 28 go; 64 + 32 of Linear layers: 48 go
    assert rows == {"one.weight": 0, "two.weight": 36, "three.weight": 16, "four.weight": 32}
    overall = sc.prune(Mixed(), "magnitude", "element", sc.budget.Overall(0.5), options=options)
    assert {row.name: row.kept for row in overall.summary()}["two.weight"] == 0  # 72 + 12 of one competition


def test_channels_of_blocks_of_different_width_are_of_one_kind():
    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.up, self.down = nn.Linear(4, width), nn.Linear(width, 4)

        def forward(self, x):
            return x + self.down(self.up(x).relu())

    torch.manual_seed(0)
    model = nn.Sequential(Block(8), Block(16))
    for parameter in model[1].parameters():
        parameter.data.mul_(3)
    x = torch.ones(1, 4)
    masks = sc.prune(
        model, "l2", "channel", Isomorphic(0.5), example=x, options=sc.PruneOptions(at_least=1), skip="*.down"
    )
    gone = [int((~masks[f"{i}.up.weight"].any(1)).sum()) for i in (0, 1)]
    assert sum(gone) == 12
    assert gone[0] == 7  # all but the floor of the block with the smaller weights


def test_the_budgets_on_what_remains_rank_by_kind():
    # two linear layers of one kind, whose weights are 1 to 4 and 10 to 13, and a convolution of weights 100 and 200:
    # with half of the weights the lower half of each kind goes, whatever the sizes
    model = nn.Sequential(
        nn.Linear(4, 1, bias=False), nn.Linear(1, 4, bias=False), nn.Conv2d(1, 2, 1, bias=False)
    )
    model[0].weight.data.copy_(torch.tensor([[1.0, 10.0, 3.0, 12.0]]))
    model[1].weight.data.copy_(torch.tensor([[2.0], [11.0], [4.0], [13.0]]))
    model[2].weight.data.copy_(torch.tensor([100.0, 200.0]).reshape(2, 1, 1, 1))
    kept = {
        spread: sc.prune(model, budget=sc.budget.Params(0.5, spread=spread))
        for spread in ("overall", "isomorphic")
    }
    assert kept["overall"]["2.weight"].all()
    assert kept["isomorphic"]["0.weight"].tolist() == [[False, True, False, True]]
    assert kept["isomorphic"]["1.weight"].flatten().tolist() == [False, True, False, True]
    assert kept["isomorphic"]["2.weight"].flatten().tolist() == [False, True]

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

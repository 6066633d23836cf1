"""A cut model without rewritten forwards: wider, the same outputs, the forwards of its own classes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import PlanError
from secateur.structure.own_forwards import rewritten_modules, with_own_forwards


class Block(nn.Module):
    """Splits its channels into halves of one size, and takes the width of another layer from its input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.norm(self.a(x)).split((8, 8), 1)
        return self.c(torch.relu(left)) + self.b(torch.relu(right))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 8, 3), Block(), nn.Conv2d(8, 2, 1)
        self.other = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(self.other(torch.relu(self.block(x)))))


def cut() -> tuple[nn.Module, sc.Shrunk, torch.Tensor]:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(2, 3, 12, 12)
    nn.init.normal_(model.block.norm.running_mean)
    nn.init.uniform_(model.block.norm.running_var, 0.5, 2.0)
    masks = {
        name: torch.ones_like(model.get_parameter(name), dtype=torch.bool)
        for name in ("block.a.weight", "other.weight")
    }
    masks["block.a.weight"][[1, 2, 3, 9, 12]] = False  # three of one half, two of the other
    masks["block.a.weight"][[14]] = False
    masks["block.a.weight"][[12]] = True
    masks["other.weight"][:4] = False
    for name in ("block.a.bias", "block.norm.weight", "block.norm.bias"):
        masks[name] = masks["block.a.weight"].flatten(1).any(1)
    masks["other.bias"] = masks["other.weight"].flatten(1).any(1)
    return model, sc.shrink(model, sc.Masks(masks), x), x


def test_channels_come_back_as_zeros_where_a_forward_was_rewritten() -> None:
    _model, small, x = cut()
    assert rewritten_modules(small.model) == {"block": "Block"}
    assert (small.model.block.b.in_channels, small.model.block.c.in_channels) == (6, 5)
    held = sc.prune(small.model, "magnitude", "element", 0.2)
    held.apply_(small.model)
    before = copy.deepcopy(small.model.state_dict())
    done = with_own_forwards(small.model, small.plan, Net().eval(), x, held)
    assert not done.plan.rewrites
    assert not rewritten_modules(done.model)
    assert done.model.other.out_channels == 4  # of what has nothing to do with it nothing comes back
    assert torch.allclose(done.model(x), small.model(x), atol=1e-6)
    done.masks.check(done.model)
    for name, mask in done.masks.items():
        assert int((~mask).sum()) == int((~held[name]).sum())
        assert (done.model.get_parameter(name)[~mask] == 0).all()
    assert all(torch.equal(before[name], value) for name, value in small.model.state_dict().items())


def test_another_model_is_refused() -> None:
    _, small, x = cut()
    with pytest.raises(PlanError, match="expected shape"):
        with_own_forwards(small.model, small.plan, small.model, x)

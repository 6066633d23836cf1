"""Attention and convolutions of patches written as products compute what they did."""

import copy

import pytest
import torch
from torch import nn

from secateur.adapters.int8_layers import PatchProduct, as_products
from secateur.structure.cut.heads import FewerHeads


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 8, 4, stride=4), (2, 3, 12, 8)),
        (
            nn.Conv2d(3, 8, (2, 3), stride=(2, 3), bias=False),
            (2, 3, 7, 11),
        ),  # a row and two columns left over
        (nn.Conv2d(3, 8, 2, stride=2, padding="valid"), (3, 6, 4)),  # no batch
    ],
    ids=["square", "left over", "no batch"],
)
def test_a_convolution_of_patches_is_one_product(layer, shape):
    torch.manual_seed(0)
    x = torch.randn(shape)
    again = as_products(layer.eval(), patches=True)
    assert isinstance(again, PatchProduct)
    assert not again.training
    torch.testing.assert_close(again(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 8, 3, stride=2),
        nn.Conv2d(3, 8, 2, stride=2, padding=1),
        nn.Conv2d(4, 8, 2, stride=2, groups=2),
        nn.Conv2d(3, 8, 2, stride=2, dilation=2),
        nn.Conv2d(3, 8, 1),
    ],
    ids=["overlap", "padding", "groups", "dilation", "one pixel"],
)
def test_other_convolutions_stay(layer):
    assert as_products(layer, patches=True) is layer


class Twice(nn.Module):
    """A convolution of patches, then attention over them, twice by the same layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 2, stride=2)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        for _ in range(2):
            x = x + self.attention(x, x, x, need_weights=False)[0]
        return x


def test_attention_has_three_products_and_the_model_stays():
    torch.manual_seed(0)
    model, x = Twice().eval(), torch.randn(2, 3, 8, 6)
    before = copy.deepcopy(model)
    again = as_products(model, patches=False)
    assert type(again.attention) is FewerHeads
    assert type(again.patches) is nn.Conv2d
    assert type(as_products(model, patches=True).patches) is PatchProduct
    torch.testing.assert_close(again(x), model(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(as_products(model, patches=True)(x), model(x), rtol=1e-5, atol=1e-5)
    assert type(model.attention) is nn.MultiheadAttention
    assert type(model.patches) is nn.Conv2d
    for (name, wanted), (_, found) in zip(before.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(wanted, found), name


class Changed(nn.MultiheadAttention):
    """A class of a user's own, which may do something else."""


def test_a_derived_attention_stays():
    layer = Changed(8, 2)
    assert as_products(layer, patches=True) is layer

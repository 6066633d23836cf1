"""`as_products`: layers written as products with weights, the form that INT8 makes faster.

Two layers of torch reach an ONNX file in a form that stays slow. `nn.MultiheadAttention` keeps one weight for queries,
keys and values, and its single product is taken apart again by five operators. A convolution of patches (its step is
its size, as at the start of a ViT) is no product for the dynamic quantiser, so it stays in float. Both are written
again in a copy: three products, and one product of the patches side by side.

>>> model = nn.Conv2d(3, 5, 4, stride=4).eval()
>>> image = torch.randn(2, 3, 9, 8)
>>> again = as_products(model, patches=True)
>>> type(again).__name__, torch.allclose(again(image), model(image), atol=1e-5)
('PatchProduct', True)
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from secateur.structure.cut.heads import fewer_heads_

__all__ = ["PatchProduct", "as_products"]


class PatchProduct(nn.Module):
    """A convolution whose step is its size, as one product of all patches with its weight.

    Args:
        layer: The convolution; its weight and bias are shared.
    """

    def __init__(self, layer: nn.Conv2d):
        super().__init__()
        self.size = layer.kernel_size
        self.weight = nn.Parameter(layer.weight.detach().flatten(1), requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As `nn.Conv2d.forward`; rows and columns that fill no patch are left out."""
        batched = x.dim() == 4
        if not batched:
            x = x.unsqueeze(0)
        tall, wide = self.size
        rows, columns = x.shape[2] // tall, x.shape[3] // wide
        x = x[:, :, : rows * tall, : columns * wide].unflatten(3, (columns, wide)).unflatten(2, (rows, tall))
        patches = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        out = F.linear(patches, self.weight, self.bias).transpose(1, 2).unflatten(2, (rows, columns))
        return out if batched else out.squeeze(0)


def as_products(model: nn.Module, patches: bool) -> nn.Module:
    """A copy of a model with attention, and convolutions of patches, written as products; outputs equal to rounding.

    Args:
        model: The model; it is not changed.
        patches: Whether convolutions of patches are written again as well as attention.

    Returns:
        The copy, or the model itself where it has neither.
    """
    if not any(_attention(each) or (patches and _of_patches(each)) for each in model.modules()):
        return model
    again = copy.deepcopy(model)
    for each in again.modules():
        if isinstance(each, nn.MultiheadAttention) and _attention(each):
            fewer_heads_(each, each.num_heads, each.head_dim)
    if patches:
        if _of_patches(again):
            return _product(again)
        for owner in list(again.modules()):
            for name, layer in list(owner.named_children()):
                if _of_patches(layer):
                    setattr(owner, name, _product(layer))
    return again


def _product(layer: nn.Module) -> PatchProduct:
    """The layer as one product, in its own mode."""
    assert isinstance(layer, nn.Conv2d)
    return PatchProduct(layer).train(layer.training)


def _attention(layer: nn.Module) -> bool:
    """Whether it is torch's own attention; a class derived from it may do something else."""
    return type(layer) is nn.MultiheadAttention


def _of_patches(layer: nn.Module) -> bool:
    """Whether it is a plain convolution whose step is its size, without padding or groups."""
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == layer.stride
        and max(layer.kernel_size) > 1
        and layer.padding in ((0, 0), "valid")
        and layer.dilation == (1, 1)
        and layer.groups == 1
    )

"""`nn.MultiheadAttention` with fewer or smaller heads: torch's own forward insists that heads x size = width.

>>> import torch
>>> from torch import nn
>>> layer = nn.MultiheadAttention(8, 2, batch_first=True)
>>> x = torch.randn(3, 5, 8)
>>> whole = layer(x, x, x)[0]
>>> fewer_heads_(layer, 2, 4)
>>> torch.allclose(layer(x, x, x)[0], whole, atol=1e-6), isinstance(layer, nn.MultiheadAttention)
(True, True)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from secateur.errors import PlanError

__all__ = ["FewerHeads", "fewer_heads_"]


class FewerHeads(nn.MultiheadAttention):
    """The same parameters; queries and keys are `num_heads` x `head_dim` wide, values may have another width.

    The scale of the scores stays that of the size the heads had. Without gradients, `nn.TransformerEncoderLayer` passes
    the weights of its attention to one fused operator instead of calling it, and that operator expects heads x size =
    width. It asks `_qkv_same_embed_dim` first, which is therefore False here.
    """

    @property
    def _qkv_same_embed_dim(self) -> bool:
        return False

    @_qkv_same_embed_dim.setter
    def _qkv_same_embed_dim(self, value: bool) -> None:
        """Set by `nn.MultiheadAttention`; here its value follows from the parameters."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `nn.MultiheadAttention.forward`."""
        if query.is_nested:
            return self._nested(query), None
        batched = query.dim() == 3
        if not batched:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = self._projected(query, key, value)
        mask = self._mask(attn_mask, key_padding_mask, q.shape[0], q.dtype)
        attention, weights = self._attended(q, k, v, mask, need_weights)
        out = self.out_proj(attention.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _nested(self, query: torch.Tensor) -> torch.Tensor:
        """Self-attention over sequences of several lengths, as `nn.TransformerEncoder` makes them of a padding mask."""
        lengths = torch.tensor([len(row) for row in query.unbind()], device=query.device)
        x = query.to_padded_tensor(0.0)
        valid = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        out, _ = self.forward(x, x, x, key_padding_mask=~valid, need_weights=False)
        return torch._nested_tensor_from_mask(out, valid, mask_check=False)

    def _projected(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values as (batch, heads, length, size), with the extra keys the layer may have."""
        heads, size = self.num_heads, self.head_dim
        widths = [heads * size, heads * size, heads * getattr(self, "value_dim", size)]
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.split(widths)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.split(widths)
        q, k, v = (F.linear(t, w, b) for t, w, b in zip((query, key, value), weights, biases))
        batch = q.shape[0]
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(batch, 1, widths[1])], 1)
            v = torch.cat([v, self.bias_v.expand(batch, 1, widths[2])], 1)
        q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        if self.add_zero_attn:
            k, v = (torch.cat([t, t.new_zeros(batch, heads, 1, t.shape[3])], 2) for t in (k, v))
        return q, k, v

    def _attended(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        need_weights: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """softmax(q k^T) v, and the weights of each head where they are asked for."""
        scale = getattr(self, "scaled_as", self.head_dim) ** -0.5
        if not need_weights:
            dropout = self.dropout if self.training else 0.0
            found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
            return found, None
        scores = q @ k.transpose(-2, -1) * scale
        weights = torch.softmax(scores if mask is None else scores + mask, -1)
        return F.dropout(weights, self.dropout, self.training) @ v, weights

    def _mask(
        self,
        attn_mask: torch.Tensor | None,
        padding: torch.Tensor | None,
        batch: int,
        dtype: torch.dtype,
    ) -> torch.Tensor | None:
        """Both masks as one that is added to the scores; the keys that the layer adds are never masked."""
        added = int(self.bias_k is not None) + int(self.add_zero_attn)

        def additive(mask: torch.Tensor) -> torch.Tensor:
            if mask.dtype == torch.bool:
                return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
                    mask, float("-inf")
                )
            return mask.to(dtype)

        total = None
        if attn_mask is not None:
            total = F.pad(additive(attn_mask), (0, added))
            if total.dim() == 3:
                # One mask per head of the whole layer: masks of removed heads are only cut if the caller cuts them.
                total = total.reshape(batch, -1, *total.shape[1:])
        if padding is not None:
            pad = F.pad(additive(padding), (0, added))[:, None, None, :]
            total = pad if total is None else total + pad
        return total


def fewer_heads_(
    module: nn.Module, heads: int, size: int, before: int | None = None, value_size: int | None = None
) -> None:
    """Turn a `nn.MultiheadAttention` into one with these heads, in place.

    Args:
        module: The attention layer.
        heads: The number of heads.
        size: The size of a head in queries and keys.
        before: The size whose scale the scores keep; without it, the present one.
        value_size: The size of a head in the values, if it differs.

    Raises:
        PlanError: The module is not an `nn.MultiheadAttention`.
    """
    if not isinstance(module, nn.MultiheadAttention):
        raise PlanError(f"expected nn.MultiheadAttention, got {type(module).__name__}")
    before = getattr(module, "scaled_as", module.head_dim) if before is None else before
    module.num_heads, module.head_dim = heads, size
    if value_size is not None or hasattr(module, "value_dim"):
        module.value_dim = size if value_size is None else value_size  # type: ignore[assignment]
    module.scaled_as = before  # type: ignore[assignment]
    module.__class__ = FewerHeads

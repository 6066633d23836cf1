"""The order of inputs in which two of every four lose least, for BERT's layers: the channels of a layer between two
matrices may be in any order, so long as both matrices have it.

>>> scores = torch.tensor([[9.0], [8.0], [7.0], [6.0], [1.0], [2.0], [3.0], [4.0]])
>>> order = order_of_fours(scores, rounds=20)
>>> float(scores[order].reshape(2, 4, 1).topk(2, 1).values.sum())  # as they stand: 9 + 8 + 4 + 3
30.0
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["order_of_fours", "reordered"]


def order_of_fours(scores: torch.Tensor, rounds: int, seed: int = 0) -> torch.Tensor:
    """The order of the inputs in which the two largest scores of every four, for each output, have a large sum.

    Each round takes one input out of every four and puts them back by the best assignment, so that no round lowers the
    sum (as in Pool and Yu 2021, "Channel Permutations for N:M Sparsity", with assignments in place of swaps).

    Args:
        scores: [inputs, outputs], not negative; the number of inputs is divided by four.
        rounds: how many.
        seed: of which inputs are taken out.
    """
    from scipy.optimize import linear_sum_assignment

    count = len(scores) // 4
    fours, every = torch.arange(len(scores)).reshape(count, 4), torch.arange(count)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(rounds):
        place = torch.randint(0, 4, (count,), generator=generator)
        out = fours[every, place]
        rest = fours[torch.arange(4) != place[:, None]].reshape(count, 3)
        second, loose = scores[rest].topk(2, 1).values[:, 1], scores[out]
        # The two largest of three and one more: the largest, and the larger of the second and the one.
        gain = torch.stack([torch.maximum(second[four], loose).sum(1) for four in range(count)])
        _, taken = linear_sum_assignment(gain.numpy(), maximize=True)
        fours = torch.cat([rest, out[torch.from_numpy(taken)][:, None]], 1)
    return fours.flatten()


@torch.no_grad()
def reordered(
    model: nn.Module, batches: Iterable[Mapping[str, torch.Tensor]], rounds: int = 120
) -> nn.Module:
    """A copy that computes the same: the channels inside its feed-forward parts, and those of each head's values, are
    in the order in which the matrices behind them lose least by two of every four (by Wanda's scores).
    """
    model = copy.deepcopy(model)
    layers: Any = model.get_submodule("encoder.layer")
    sizes: dict[nn.Module, torch.Tensor] = {}

    def note(module: nn.Module, inputs: tuple[torch.Tensor], _output: torch.Tensor) -> None:
        found = inputs[0].square().flatten(0, -2).sum(0)
        sizes[module] = sizes[module] + found if module in sizes else found

    behind = [m for layer in layers for m in (layer.output.dense, layer.attention.output.dense)]
    handles = [module.register_forward_hook(note) for module in behind]
    for batch in batches:
        model(**batch)
    for handle in handles:
        handle.remove()
    for layer in layers:
        _reorder(layer.intermediate.dense, layer.output.dense, sizes[layer.output.dense], 1, rounds)
        attention = layer.attention.self
        out = layer.attention.output.dense
        _reorder(attention.value, out, sizes[out], attention.num_attention_heads, rounds)
    return model


def _reorder(before: nn.Linear, behind: nn.Linear, sizes: torch.Tensor, heads: int, rounds: int) -> None:
    """Put the outputs of one layer, which are the inputs of another, into another order, head by head."""
    scores = (behind.weight.square() * sizes).T.contiguous()
    width = len(scores) // heads
    parts = [
        head * width + order_of_fours(scores[head * width : (head + 1) * width], rounds)
        for head in range(heads)
    ]
    order = torch.cat(parts)
    before.weight.copy_(before.weight[order].clone())
    before.bias.copy_(before.bias[order].clone())
    behind.weight.copy_(behind.weight[:, order].clone())

"""SparseGPT and Wanda by their published definitions: what `bench_compensate.py --only peers` compares with.

Frantar and Alistarh 2023, "SparseGPT"; Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language
Models". Where `llmcompressor` is installed, its own function prunes each layer instead of `sparse_gpt`. Blocks are
pruned one after another, on the inputs that the pruned blocks before them give; padding is left out of the sums.

>>> hessian = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
>>> sparse_gpt(torch.tensor([[1.0, 2.0]]), hessian, 0.5, damping=0.0)  # the second weight takes over: 2 + 1 * 1/2
tensor([[0.0000, 2.5000]])
>>> wanda(torch.tensor([[3.0, -2.0]]), torch.diag(torch.tensor([1.0, 4.0])), 0.5)  # 3 * 1 is less than 2 * 2
tensor([[ 0., -2.]])
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

Prune = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def sparse_gpt(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    sparsity: float,
    pattern: tuple[int, int] | None = None,
    *,
    size: int = 128,
    damping: float = 0.01,
) -> torch.Tensor:
    """Columns in order, the error of each taken over by those to come; masks chosen for blocks of `size` columns.

    `weight` is [outputs, inputs]; with `pattern` (n, m) n of every m weights go, else the share `sparsity` does.
    """
    weight, hessian = weight.float().clone(), hessian.float().clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1.0
    weight[:, dead] = 0.0
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True)
    for start in range(0, weight.shape[1], size):
        part, own = (
            weight[:, start : start + size].clone(),
            factor[start : start + size, start : start + size],
        )
        score = part.square() / own.diagonal().square()
        gone = torch.zeros_like(part, dtype=torch.bool)
        if pattern is None:
            gone = score <= score.flatten().sort().values[int(score.numel() * sparsity) - 1]
        errors = torch.zeros_like(part)
        for at in range(part.shape[1]):
            if pattern is not None and at % pattern[1] == 0:
                some = slice(at, at + pattern[1])
                score = part[:, some].square() / own.diagonal()[some].square()
                gone.scatter_(1, at + score.topk(pattern[0], 1, largest=False).indices, True)
            kept = torch.where(gone[:, at], 0.0, part[:, at])
            errors[:, at] = (part[:, at] - kept) / own[at, at]
            part[:, at:] -= errors[:, at, None] * own[at, at:]
            part[:, at] = kept
        weight[:, start : start + size] = part
        weight[:, start + size :] -= errors @ factor[start : start + size, start + size :]
    return weight


def wanda(
    weight: torch.Tensor, hessian: torch.Tensor, sparsity: float, pattern: tuple[int, int] | None = None
) -> torch.Tensor:
    """The least |w| times input norm of every output go, or n of every m; the others stay as they are."""
    score = weight.abs() * hessian.diagonal().sqrt().to(weight.dtype)
    outputs, inputs = weight.shape
    groups = score.reshape(outputs, 1, inputs) if pattern is None else score.reshape(outputs, -1, pattern[1])
    count = int(inputs * sparsity) if pattern is None else pattern[0]
    gone = torch.zeros_like(groups, dtype=torch.bool)
    gone.scatter_(2, groups.argsort(dim=2, stable=True)[:, :, :count], True)
    return weight.masked_fill(gone.reshape(outputs, inputs), 0.0)


def llmcompressor_sparse_gpt() -> Callable[..., torch.Tensor] | None:
    """The same by llmcompressor's own function; None where it is not installed."""
    try:
        from llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify import sparsify_weight
    except ImportError:
        return None

    def prune(
        weight: torch.Tensor, hessian: torch.Tensor, sparsity: float, pattern: tuple[int, int] | None = None
    ) -> torch.Tensor:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data.copy_(weight)
        n, m = pattern or (0, 0)
        with torch.no_grad():
            return sparsify_weight(layer, {layer: hessian.float().clone()}, sparsity, n, m, 128, 0.01, False)[
                1
            ]

    return prune


@torch.no_grad()
def block_by_block(
    dense: nn.Module,
    blocks: str,
    batches: Sequence[Mapping[str, torch.Tensor]],
    prune: Prune,
) -> nn.Module:
    """A copy of a transformer with the linear layers of the blocks in the list `blocks` pruned, block after block."""
    model = copy.deepcopy(dense)
    for block in model.get_submodule(blocks).children():
        layers = [layer for layer in block.modules() if isinstance(layer, nn.Linear)]
        sums = {
            layer: torch.zeros(layer.in_features, layer.in_features, dtype=torch.float64) for layer in layers
        }
        valid: list[torch.Tensor] = []

        def note(layer: nn.Module, given: tuple[torch.Tensor, ...], _output: object) -> None:
            rows = given[0].flatten(0, -2)[valid[-1]]  # noqa: B023 - called within this turn of the loop
            sums[layer] += rows.T @ rows  # type: ignore[index]  # noqa: B023

        handles = [layer.register_forward_hook(note) for layer in layers]
        for batch in batches:
            valid.append(batch["attention_mask"].flatten() != 0)
            model(**batch)
        for handle in handles:
            handle.remove()
        for layer in layers:
            layer.weight.copy_(prune(layer.weight, sums[layer]))
    return model

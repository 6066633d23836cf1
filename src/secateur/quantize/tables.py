"""Codebooks of embedding tables by the error of the model's outputs: `share(data=...)` for what no layer multiplies.

A row of a table is added to or normalised with others, and reaches linear layers: its error matters more in some
directions than in others. How much is read from gradients: a random combination of the outputs is differentiated by the
rows that were looked up, and the second moment of these gradients is the curvature of the outputs' squared error.
With it a row is rounded as a layer's weights are: number by number, the error of each compensated for by those still
free (Frantar et al. 2022, "GPTQ"). The curvature is an average over the tokens that were seen; it serves all rows.

>>> model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 1, bias=False))
>>> _ = model[1].weight.data.copy_(torch.tensor([[1.0, 1.0]]))  # only the sum of a row matters
>>> found = curvatures(model, [Batch((torch.tensor([[0, 1, 2]]),))], ["0.weight"])["0.weight"]
>>> (found / found[0, 0]).tolist()
[[1.0, 1.0], [1.0, 1.0]]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from secateur.compensation.batches import leading_mask
from secateur.compensation.tuning import Tuning, compared
from secateur.core.codebook import Codebook
from secateur.core.nested import tensors_in
from secateur.execution.example import Batch
from secateur.execution.undisturbed import undisturbed
from secateur.quantize import Quantizer
from secateur.quantize.calibrated import (
    SOLVED_VALUES,
    Quadratic,
    book_of,
    descended,
    fed_forward,
    solved_values,
)

__all__ = ["curvatures", "table_codebook"]

_ROWS = 2048
"""Rows that are rounded at once."""
_DRAWS = 2
"""Random combinations of the outputs for each batch."""


def curvatures(
    dense: nn.Module,
    batches: Sequence[Batch],
    names: Sequence[str],
    tuning: Tuning | None = None,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """The second moments of the outputs' gradients by the rows looked up in each table, [features, features].

    Args:
        dense: The model; in any mode, and left as it is.
        batches: The data.
        names: The tables' weights, by name.
        tuning: Its `compare` says what of the outputs counts.
        seed: Of the random combinations.

    Returns:
        One matrix for each table that the data reached by `nn.Embedding`, and the outputs depend on.
    """
    options = tuning or Tuning()
    found: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    with undisturbed(dense, mode="eval"), torch.enable_grad(), _lookups(dense, frozenset(names)) as looked:
        for batch in batches:
            looked.clear()
            output = compared(options, dense(*batch.args, **batch.kwargs), batch)
            parts = [
                tensor for tensor in tensors_in(output) if tensor.is_floating_point() and tensor.requires_grad
            ]
            rows = list(looked)
            for _ in range(_DRAWS if parts and rows else 0):
                drawn = [torch.randn(part.shape, generator=generator).to(part) for part in parts]
                sums = [
                    (part * draw).sum() / part.detach().std().clamp_min(1e-12)
                    for part, draw in zip(parts, drawn, strict=True)
                ]
                slopes = torch.autograd.grad(
                    torch.stack(sums).sum(), [row for _, row in rows], retain_graph=True, allow_unused=True
                )
                for (name, row), slope in zip(rows, slopes, strict=True):
                    if slope is not None:
                        found[name] = found.get(name, 0) + _moment(slope, leading_mask(batch, row.shape))
    return {name: matrix for name, matrix in found.items() if float(matrix.diagonal().sum()) > 0}


def _moment(slope: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """The second moment of gradients, padding left out."""
    flat = slope.reshape(-1, slope.shape[-1])
    flat = flat if valid is None else flat[valid]
    wide = torch.float32 if flat.device.type == "mps" else torch.float64
    return (flat.mT @ flat).to(wide)


@contextmanager
def _lookups(model: nn.Module, names: frozenset[str]) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """A list that fills with (name, rows looked up) whenever the model runs; the rows are leaves of the graph."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    found: list[tuple[str, torch.Tensor]] = []
    handles = []

    def watch(module: nn.Embedding, name: str) -> None:
        def note(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            rows = output.detach().requires_grad_()
            found.append((name, rows))
            return rows

        handles.append(module.register_forward_hook(note))

    for module in model.modules():
        if isinstance(module, nn.Embedding) and first[id(module.weight)] in names:
            watch(module, first[id(module.weight)])
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def table_codebook(
    finder: Quantizer,
    name: str,
    weight: torch.Tensor,
    mask: torch.Tensor | None,
    curvature: torch.Tensor,
    seed: int = 0,
    damping: float = 0.01,
    rounds: int = 2,
) -> Codebook:
    """The codebook of a table, by the curvature of its rows.

    Args:
        finder: Finds the values to begin with.
        name: The table's name.
        weight: The table, [rows, features].
        mask: True where a weight is not masked; None where all are kept.
        curvature: From `curvatures`.
        seed: For methods that draw at random.
        damping: Added to the curvature's diagonal, as a share of its mean: the plain error of the weights.
        rounds: How often values and assignment are improved in turn.
    """
    keep = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    live = weight[keep]
    palette = finder.palette(name, live, weight.numel() - live.numel(), seed)
    best = (weight * keep).float().mT[None]
    values = torch.from_numpy(palette.values).to(best)
    curved = curvature + damping * curvature.diagonal().mean() * torch.eye(len(curvature)).to(curvature)
    curved = (curved / curved.diagonal().mean()).float()[None]
    free = keep.mT[None]
    whole = Quadratic(curved, curved @ best)
    parts = [slice(start, start + _ROWS) for start in range(0, best.shape[2], _ROWS)]
    pieces = [Quadratic(curved, whole.goal[:, :, part]) for part in parts]
    indices = torch.cat(
        [
            fed_forward(piece, best[:, :, part], values, free[:, :, part])
            for part, piece in zip(parts, pieces, strict=True)
        ],
        2,
    )
    some = slice(0, None, max(1, best.shape[2] // (2 * _ROWS)))  # enough rows to solve a few values by
    sample = Quadratic(curved, whole.goal[:, :, some])
    for _ in range(rounds):
        if palette.step is None and len(values) <= SOLVED_VALUES:
            values = solved_values(sample, indices[:, :, some], values, free[:, :, some])
        indices = torch.cat(
            [
                descended(piece, indices[:, :, part], values, free[:, :, part], None)
                for part, piece in zip(parts, pieces, strict=True)
            ],
            2,
        )
    return book_of(
        name, indices[0].mT.contiguous(), values.to(weight.dtype), mask, (palette.step, palette.low)
    )

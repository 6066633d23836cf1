"""Rounding small tensors to few bits: batch norm's scales and shifts, other biases, the values of codebooks.

A lane is one coded stream of scalars for the whole file. All scales share a lane of equal ratios, all shifts one of
equal steps, all other biases another one of equal steps.

>>> state = {"bn.weight": torch.tensor([1.0, 0.5]), "bn.bias": torch.tensor([0.1, -0.1])}
>>> rounded = round_scalars(state, state, bits=6, biases=None)
>>> rounded.lane, rounded.words["bn.weight"].view(np.float32).round(2)
({'bn.weight': 0, 'bn.bias': 1}, array([0.97, 0.5 ], dtype=float32))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from secateur.container import codebooks
from secateur.container.scalar_streams import ScalarGrid, ScalarStreams
from secateur.core.codebook import Codebook
from secateur.errors import NonFiniteError, NothingToDoError, OptionError

__all__ = ["BIASES", "SCALES", "SHIFTS", "RoundedScalars", "round_books", "round_scalars"]

SCALES, SHIFTS, BIASES = 0, 1, 2

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class RoundedScalars:
    """The lane of each rounded tensor, the words a reader will decode for it, and the lanes."""

    lane: Mapping[str, int]
    words: Mapping[str, np.ndarray]
    lanes: ScalarStreams | None


def round_scalars(state: State, folded: State, bits: int | None, biases: int | None) -> RoundedScalars:
    """Round the folded batch norms and the other biases to numbers of bits, and collect them in lanes.

    A scale is off by less than one part in 2**(bits - 1), a shift by less than the standard deviation of all shifts
    over 2**(bits - 2).

    Args:
        state: All tensors, by name.
        folded: The tensors of batch norm in their folded form, by name.
        bits: Bits of the scales and shifts of batch norm; None leaves them as they are.
        biases: Bits of the other biases; None leaves them as they are.

    Raises:
        NothingToDoError: `biases` is given and there is no bias but those of batch norm.
    """
    groups = _groups(state, folded, bits, biases)
    source = {**state, **folded}
    lanes: list[tuple[ScalarGrid, np.ndarray]] = []
    lane_of: dict[str, int] = {}
    words: dict[str, np.ndarray] = {}
    last = max((lane for lane, names in groups.items() if names), default=-1)
    for lane in range(last + 1):
        names = groups[lane]
        values = [_finite(name, source[name]) for name in names]
        whole = np.concatenate(values) if values else np.zeros(0, dtype=np.float32)
        grid = _grid(lane, whole, (biases if lane == BIASES else bits) or 2)
        numbers = [grid.numbers(value) for value in values]
        lanes.append((grid, np.concatenate(numbers) if numbers else np.zeros(0, dtype=np.int64)))
        for name, some in zip(names, numbers):
            lane_of[name] = lane
            words[name] = grid.values(some).view(np.uint32)
    return RoundedScalars(lane_of, words, ScalarStreams(lanes) if lane_of else None)


def _groups(state: State, folded: State, bits: int | None, biases: int | None) -> dict[int, list[str]]:
    """The names of the tensors of each lane."""
    groups: dict[int, list[str]] = {SCALES: [], SHIFTS: [], BIASES: []}
    if bits is not None:
        for name in state:
            if name in folded and name.endswith(("weight", "bias")):
                groups[SCALES if name.endswith("weight") else SHIFTS].append(name)
    if biases is not None:
        groups[BIASES] = [
            name for name, value in state.items() if _is_bias(name, value) and not _of_norm(name, state)
        ]
        if not groups[BIASES]:
            raise NothingToDoError(
                "biases=... rounds the biases of other layers than batch norm; there is none"
            )
    return groups


def _grid(lane: int, values: np.ndarray, bits: int) -> ScalarGrid:
    """Scales: equal ratios; all else: equal steps, coarse enough that every number fits into a lane."""
    if lane == SCALES:
        return ScalarGrid.geometric(values, 1.0 + 2.0 ** (2 - bits))
    wide = values.astype(np.float64)
    spread = float(np.sqrt((wide**2).mean())) if wide.size else 0.0
    return ScalarGrid.even(
        max(spread * 2.0 ** (3 - bits), float(np.abs(wide).max(initial=0.0)) / 4000) or 1.0
    )


def _is_bias(name: str, value: torch.Tensor) -> bool:
    return name.rpartition(".")[2] == "bias" and value.dtype == torch.float32 and value.dim() == 1


def _of_norm(name: str, state: State) -> bool:
    """Whether a bias is a batch norm's, which `batch_norm=` is for."""
    return name.removesuffix("bias") + "running_var" in state


def _finite(name: str, value: torch.Tensor) -> np.ndarray:
    if value.dtype != torch.float32:
        raise OptionError(
            f"tensor {name!r}: only float32 can be rounded to bits, got {value.dtype}; convert the model first"
        )
    if not bool(torch.isfinite(value).all()):
        raise NonFiniteError(
            f"tensor {name!r}: holds NaN or infinity, which cannot be rounded to bits; save it without "
            "batch_norm= and biases= in bits"
        )
    return np.asarray(value.detach().cpu().contiguous().reshape(-1).numpy())


def round_books(
    state: State, books: Mapping[str, Codebook], bits: int
) -> tuple[dict[str, torch.Tensor], dict[str, Codebook]]:
    """Round the values of codebooks to few bits.

    Args:
        state: All tensors, by name.
        books: The codebooks, by tensor name.
        bits: Bits of a value, with its sign.

    Returns:
        The tensors with rounded values, and the codebooks as they were: their names say which tensors are stored as
        indices.
    """
    if not books:
        raise NothingToDoError(
            "codebook_bits=... rounds the values of codebooks; share weights first (sc.share)"
        )
    rounded = dict(state)
    for name in books:
        value = state[name]
        if value.dtype != torch.float32:
            raise OptionError(
                f"codebook of {name!r}: only float32 can be rounded to bits, got {value.dtype}; convert the model first"
            )
        distinct, places = torch.unique(value, return_inverse=True)
        fewer = torch.from_numpy(codebooks.round_to_bits(distinct.detach().cpu().numpy(), bits))
        rounded[name] = fewer.to(value.device)[places]
    return rounded, dict(books)

"""What `save` rounds to few bits: batch norm's scales and shifts, other biases, the values of codebooks.

All scales share one lane of even ratios and all shifts one of even steps, for a model's whole file.

>>> state = {"bn.weight": torch.tensor([1.0, 0.5]), "bn.bias": torch.tensor([0.1, -0.1])}
>>> taken = drawn(state, state, bits=6, biases=None)
>>> taken.lane, taken.words["bn.weight"].view(np.float32).round(2)
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

__all__ = ["BIASES", "SCALES", "SHIFTS", "RoundedScalars", "drawn", "round_books"]

SCALES, SHIFTS, BIASES = 0, 1, 2

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class RoundedScalars:
    """Which tensors draw from which lane, the words a reader will get of them, and the lanes."""

    lane: Mapping[str, int]
    words: Mapping[str, np.ndarray]
    lanes: ScalarStreams | None


def drawn(state: State, folded: State, bits: int | None, biases: int | None) -> RoundedScalars:
    """Round what is asked: the folded batch norms to `bits`, the other biases to `biases`.

    A scale is off by less than one part in 2**(bits - 1), a shift by less than the deviation of all shifts over
    2**(bits - 2).
    """
    groups: dict[int, list[str]] = {SCALES: [], SHIFTS: [], BIASES: []}
    if bits is not None:
        for name in state:
            if name in folded and name.endswith(("weight", "bias")):
                groups[SCALES if name.endswith("weight") else SHIFTS].append(name)
    if biases is not None:
        others = [
            name for name, value in state.items() if _is_bias(name, value) and not _of_norm(name, state)
        ]
        if not others:
            raise NothingToDoError(
                "biases=... rounds the biases of other layers than batch norm; there is none"
            )
        groups[BIASES] += others
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


def _grid(lane: int, values: np.ndarray, bits: int) -> ScalarGrid:
    """Scales: even ratios; all else: even steps, none so fine that a number is too large for a lane."""
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
            f"tensor {name!r}: few bits are for float32, got {value.dtype}; convert the model first"
        )
    if not bool(torch.isfinite(value).all()):
        raise NonFiniteError(f"tensor {name!r}: holds NaN or infinity, which no few bits can stand for")
    return np.asarray(value.detach().cpu().contiguous().reshape(-1).numpy())


def round_books(
    state: State, books: Mapping[str, Codebook], bits: int
) -> tuple[dict[str, torch.Tensor], dict[str, Codebook]]:
    """The tensors of codebooks with their values rounded to few bits, and the codebooks (by now superseded) for the
    choice of how they are stored.
    """
    if not books:
        raise NothingToDoError(
            "codebook_bits=... rounds the values of codebooks; share weights first (sc.share)"
        )
    rounded = dict(state)
    for name in books:
        value = state[name]
        if value.dtype != torch.float32:
            raise OptionError(f"codebook of {name!r}: few bits are for float32, got {value.dtype}")
        distinct, places = torch.unique(value, return_inverse=True)
        fewer = torch.from_numpy(codebooks.round_to_bits(distinct.detach().cpu().numpy(), bits))
        rounded[name] = fewer.to(value.device)[places]
    return rounded, dict(books)

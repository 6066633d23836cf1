"""The selection that does not sort everything gives what sorting everything gives."""

from __future__ import annotations

import math
import random

import pytest
import torch

from secateur.budget import _select


def by_sorting(worth: list[torch.Tensor], remove: int) -> list[torch.Tensor]:
    whole = torch.cat(worth)
    keep = torch.ones_like(whole, dtype=torch.bool)
    keep[torch.sort(whole, stable=True).indices[:remove]] = False
    return list(torch.split(keep, [len(part) for part in worth]))


def tensors(kind: int, size: int, generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(size, generator=generator)
    return [
        values,
        values.round(),
        torch.zeros(size),
        values.sort().values,
        torch.where(values < 0, -math.inf, values),
        torch.where(values < 0, math.inf, values.relu()),
        values.abs().to(torch.bfloat16).float(),
        torch.where(values < 0.2, 0.0, values),
    ][kind]


@pytest.mark.parametrize("seed", range(8))
def test_exact_on_every_mixture_of_ties(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_select, "_SORTED_WHOLE", 64)
    monkeypatch.setattr(_select, "_SAMPLE", 256)
    monkeypatch.setattr(_select, "_CHUNK", 100)
    generator, draw = torch.Generator().manual_seed(seed), random.Random(seed)
    for _ in range(60):
        sizes = [draw.choice([0, 1, 7, 100, 777, 3000]) for _ in range(draw.randint(1, 5))]
        worth = [tensors(draw.randrange(8), size, generator) for size in sizes]
        total = sum(sizes)
        remove = draw.randint(0, total)
        found = _select.keep_highest(worth, remove)
        assert all(torch.equal(a, b) for a, b in zip(found, by_sorting(worth, remove)))
        if total:
            rank = draw.randrange(total)
            assert _select.value_at(worth, rank) == float(torch.cat(worth).sort().values[rank])


def test_a_sample_that_misleads_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_select, "_SORTED_WHOLE", 64)
    monkeypatch.setattr(_select, "_SAMPLE", 256)
    values = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(_select, "_sample", lambda worth, total: torch.linspace(5.0, 9.0, 256).double())
    for remove in (1, 20_000, 49_999):
        assert torch.equal(_select.keep_highest([values], remove)[0], by_sorting([values], remove)[0])


def test_a_million_numbers_in_several_types() -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        sizes = (400_000, 300_000)
        worth = [torch.randn(size, generator=generator).to(dtype) for size in sizes]
        for remove in (1, 350_000, 699_999):
            found = _select.keep_highest(worth, remove)
            assert all(torch.equal(a, b) for a, b in zip(found, by_sorting(worth, remove)))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_few_numbers_are_sorted_around_the_rank(share: float) -> None:
    """A bracket in the wrong place finds the same number at last, by sorting nearly all of them."""
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(size, generator=generator) for size in (150_000, 50_000)]
    rank = int(share * 200_000)
    bracket = _select._bracket(scores, 200_000, rank)
    assert bracket.below <= rank < bracket.below + sum(map(len, bracket.index)) < bracket.below + 20_000

"""`RecombinedTokens`: the sentences themselves first, then spans of them in another order."""

from __future__ import annotations

import itertools

import pytest
import torch

import secateur as sc
from secateur.errors import DataError, OptionError


def texts(**options: object) -> sc.RecombinedTokens:
    ids = torch.full((4, 12), 0)
    for row in range(4):
        size = 6 + row
        ids[row, : size + 2] = torch.tensor([1, *range(10 * row + 10, 10 * row + 10 + size), 2])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    settings = {"span": (2, 4), "length": (5, 8), "tokens": 24, "replace": 0.0, "versions": 0, **options}
    return sc.RecombinedTokens([batch], **settings)  # type: ignore[arg-type]


def test_the_first_pass_gives_the_sentences_and_later_ones_every_token_once() -> None:
    found = texts()
    first, second, third = list(found), list(found), list(found)
    assert first[0]["input_ids"].shape == (4, 12)
    for turn in (second, third):
        inner = torch.cat([batch["input_ids"][:, 1:-1].flatten() for batch in turn]).tolist()
        assert sorted(inner) == sorted([*range(10, 16), *range(20, 27), *range(30, 38), *range(40, 49)])
        for batch in turn:
            assert bool((batch["input_ids"][:, 0] == 1).all() and (batch["input_ids"][:, -1] == 2).all())
            assert batch["input_ids"].numel() <= 24
            assert bool(batch["attention_mask"].all())
        follow = sum(b - a == 1 for a, b in itertools.pairwise(inner))
        assert follow >= len(inner) // 3  # spans of two to four
    assert [b["input_ids"].tolist() for b in second] != [b["input_ids"].tolist() for b in third]


def test_one_seed_gives_the_same_batches() -> None:
    def second(seed: int) -> list[list[list[int]]]:
        found = texts(seed=seed)
        list(found)
        return [batch["input_ids"].tolist() for batch in found]

    assert second(3) == second(3) != second(4)


def test_the_first_pass_has_as_many_versions_as_asked_for_and_later_passes_differ_from_them() -> None:
    found = texts(versions=2)
    first, second = list(found), list(found)
    assert first[0]["input_ids"].shape == (4, 12)
    inner = torch.cat([batch["input_ids"][:, 1:-1].flatten() for batch in first[1:]]).tolist()
    assert sorted(inner) == sorted(2 * [*range(10, 16), *range(20, 27), *range(30, 38), *range(40, 49)])
    seen = [batch["input_ids"].tolist() for batch in first]
    assert all(batch["input_ids"].tolist() not in seen for batch in second)


def test_tokens_are_replaced_within_the_vocabulary_in_recombined_sequences_alone() -> None:
    found = texts(replace=0.5, vocabulary=(16, 99))
    first, second = list(found), list(found)
    assert first[0]["input_ids"].tolist() == next(iter(texts()))["input_ids"].tolist()
    inner = torch.cat([batch["input_ids"][:, 1:-1].flatten() for batch in second]).tolist()
    assert all(inner.count(token) == 1 for token in range(10, 16))  # below the vocabulary: each stays
    words = [token for token in inner if token >= 16]
    assert len(words) == 24
    assert set(words) <= set(range(16, 100))
    new = sum(token not in range(20, 49) for token in words)
    assert 3 <= new <= 15  # about half of them drawn, of those two thirds outside the sentences' own


def test_by_default_a_fifth_of_the_tokens_of_three_versions_is_drawn_between_the_lowest_and_the_highest() -> (
    None
):
    ids = torch.randint(100, 5000, (40, 42), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, -1] = 1, 9000
    own = ids[:, 1:-1]
    first = list(sc.RecombinedTokens([{"input_ids": ids}]))
    assert torch.equal(first[0]["input_ids"], ids)
    inner = torch.cat([batch["input_ids"][:, 1:-1].flatten() for batch in first[1:]])
    assert len(inner) == 3 * own.numel()
    assert int(inner.min()) >= int(own.min())
    assert int(inner.max()) <= int(own.max())
    kept = float(
        torch.isin(inner, own).float().mean()
    )  # 0.8, and of those drawn the share that occurs in the text
    assert abs(kept - (0.8 + 0.2 * len(own.unique()) / 4900)) < 0.02


def test_what_is_refused() -> None:
    ids = torch.tensor([[1, 2], [1, 2]])
    with pytest.raises(DataError, match="no sequence holds a token beside its first and its last"):
        sc.RecombinedTokens([{"input_ids": ids}])
    with pytest.raises(DataError, match="batch 0: expected input_ids of"):
        sc.RecombinedTokens([{"tokens": ids}])
    with pytest.raises(OptionError, match="span of RecombinedTokens: expected the shortest and the longest"):
        sc.RecombinedTokens([{"input_ids": ids}], span=(5, 4))
    batch = {"input_ids": torch.tensor([[1, 5, 2], [1, 6, 2]])}
    with pytest.raises(OptionError, match="replace of RecombinedTokens: expected a share"):
        sc.RecombinedTokens([batch], replace=1.5, vocabulary=(3, 9))
    with pytest.raises(
        OptionError, match="vocabulary of RecombinedTokens: expected the lowest and the highest"
    ):
        sc.RecombinedTokens([batch], vocabulary=(9, 3))
    with pytest.raises(OptionError, match="versions of RecombinedTokens: expected a whole number"):
        sc.RecombinedTokens([batch], versions=-1)

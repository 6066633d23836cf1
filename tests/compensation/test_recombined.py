"""`RecombinedTokens`: the sentences themselves first, then spans of them in another order."""

from __future__ import annotations

import itertools

import pytest
import torch

import secateur as sc
from secateur.compensation.batches import read_all
from secateur.errors import DataError, OptionError
from secateur.execution.example import first_example


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


def inner(batches: list[dict[str, torch.Tensor]]) -> list[int]:
    return torch.cat([batch["input_ids"][:, 1:-1].flatten() for batch in batches]).tolist()


def test_a_look_at_the_first_batch_leaves_the_first_pass_whole() -> None:
    found, other = texts(versions=1), texts(versions=1)
    assert next(iter(found))["input_ids"].shape == (4, 12)
    first_example(found)
    for _ in range(2):
        one, two = list(found), list(other)
        assert [batch["input_ids"].tolist() for batch in one] == [
            batch["input_ids"].tolist() for batch in two
        ]


def test_every_verb_that_reads_all_begins_with_a_first_pass() -> None:
    found = texts(versions=1)
    model = torch.nn.Embedding(60, 2)
    sizes = [[batch.size for batch in read_all("compensate", found, model)] for _ in range(2)]
    assert sizes[0] == sizes[1]
    assert sizes[0][0] == 4
    assert next(iter(found))["input_ids"].tolist() != next(iter(texts()))["input_ids"].tolist()


def test_the_separator_of_two_sentences_is_neither_replaced_nor_drawn() -> None:
    words = torch.randint(110, 130, (20, 20), generator=torch.Generator().manual_seed(0))
    words[:, 0], words[:, 8], words[:, -1] = 101, 102, 102
    ids = inner(list(sc.RecombinedTokens([{"input_ids": words}], replace=1.0, versions=1))[1:])
    assert ids.count(102) == 20
    assert min(set(ids) - {102}) >= 110


def test_special_tokens_that_lie_between_the_words_are_never_drawn() -> None:
    words = torch.randint(110, 130, (20, 20), generator=torch.Generator().manual_seed(0))
    words[:, 0], words[:, -1], words[3, 5] = 101, 102, 100  # one unknown word
    special = [0, 100, 101, 102, 103, 120]
    words[words == 120] = 121
    ids = inner(
        list(sc.RecombinedTokens([{"input_ids": words}], special=special, replace=1.0, versions=1))[1:]
    )
    assert [token for token in ids if token in special] == [100]
    assert set(ids) - {100} <= set(range(110, 130))
    alone = list(sc.RecombinedTokens([{"input_ids": words[:1]}], special=special, replace=1.0, versions=1))[
        1:
    ]
    assert all(row[0] == 101 and row[-1] == 102 for batch in alone for row in batch["input_ids"].tolist())
    assert not set(inner(alone)) & set(special)


def test_padding_that_no_mask_marks_is_refused() -> None:
    ids = torch.tensor([[1, 5, 6, 7, 2], [1, 5, 2, 0, 0]])
    with pytest.raises(
        DataError, match="batch 0 has no attention_mask, and row 1 ends in one repeated token, 0"
    ):
        sc.RecombinedTokens([{"input_ids": ids}])
    with pytest.raises(DataError, match="row 1 begins in one repeated token, 0"):
        sc.RecombinedTokens([{"input_ids": ids.flip(1)}])
    sc.RecombinedTokens([{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])


def test_what_cannot_be_put_together_again_is_refused() -> None:
    ids = torch.tensor([[1, 5, 6, 2], [1, 7, 8, 2]])
    kept = {"token_type_ids": torch.zeros_like(ids), "position_ids": ids, "labels": torch.tensor([0, 1])}
    sc.RecombinedTokens([{"input_ids": ids, **kept}])
    for name in ("pixel_values", "decoder_input_ids", "bbox"):
        with pytest.raises(
            DataError, match=f"it cannot do so with '{name}' .batch 0.: leave it out, or give"
        ):
            sc.RecombinedTokens([{"input_ids": ids, name: ids}])
    with pytest.raises(DataError, match="batch 0: expected token_type_ids of 0 alone, got up to 1"):
        sc.RecombinedTokens([{"input_ids": ids, "token_type_ids": torch.ones_like(ids)}])
    with pytest.raises(OptionError, match="special of RecombinedTokens: expected the numbers of tokens"):
        sc.RecombinedTokens([{"input_ids": ids}], special=["[SEP]"])  # type: ignore[list-item]
    with pytest.raises(
        OptionError, match="expected a token to draw from 5 to 6, but all of them are special"
    ):
        sc.RecombinedTokens([{"input_ids": ids}], vocabulary=(5, 6), special=[5, 6])


@pytest.mark.parametrize("width", [5, 20])
def test_sequences_are_no_longer_than_those_given(width: int) -> None:
    ids = torch.arange(8 * width).reshape(8, width) + 10
    found = sc.RecombinedTokens([{"input_ids": ids, "attention_mask": torch.ones_like(ids)}], versions=3)
    widths = [batch["input_ids"].shape[1] for batch in found]
    assert len(widths) > 1
    assert max(widths) <= width

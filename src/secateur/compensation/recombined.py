"""`RecombinedTokens`: few token sequences made many: cut into spans that are put together in a new order.

A few hundred sentences are soon learnt by heart, by least squares as by gradient steps. Spans of them in another order
and at other positions are inputs of the same kind that the dense model can answer as well, and every pass brings new
ones. A share `replace` of their tokens is drawn from the whole vocabulary, most of which a few hundred sentences do not
hold. The first pass, on which layers are solved, holds the sentences and some recombined `versions` of them. Special
tokens, such as those that separate two sentences, stay as they are and are never drawn: name them by `special`.

>>> import torch
>>> ids = torch.tensor([[101, 7, 8, 9, 102], [101, 4, 5, 102, 0]])
>>> texts = RecombinedTokens([{"input_ids": ids, "attention_mask": (ids != 0).long()}], span=(2, 3), length=(4, 5))
>>> first, second = list(texts), list(texts)
>>> first[0]["input_ids"].tolist() == ids.tolist()  # the first pass begins with the sentences as they are
True
>>> len(first) > 3  # then come three recombined versions
True
>>> {(int(row[0]), int(row[-1])) for batch in second for row in batch["input_ids"]}
{(101, 102)}
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Iterator, Mapping

import torch

from secateur.errors import DataError, OptionError

__all__ = ["RecombinedTokens"]

_KEYS = {"input_ids", "attention_mask", "token_type_ids", "position_ids", "labels"}
"""What batches may hold; all but the first two are left out of recombined ones."""


class RecombinedTokens:
    """Batches of token ids: as given and recombined in the first pass, recombined in every later one.

    A token that all sequences begin with, and one that all end with, stays first and last. Sequences of one batch have
    one length, so that nothing is padded; a pass holds every token at most once. Looking at the first batch alone
    leaves the first pass whole; `compensate`, `share` and all that solve layers on the data begin with a first pass,
    whatever was read before.

    Args:
        batches: dicts with `input_ids` and, where there is padding, `attention_mask`, both [sequences, tokens]. They
            may hold `token_type_ids` (all 0), `position_ids` and `labels`, which recombined batches leave out.
        span: the shortest and the longest piece that is cut out.
        length: the shortest and the longest sequence, first and last token included; by default 12 and 128, and no more
            than the longest batch has.
        tokens: tokens of one batch, at most; a batch has at least one sequence.
        replace: the share of the tokens of recombined sequences in whose place one of `vocabulary` is drawn.
        vocabulary: the lowest and the highest token that is replaced and drawn. By default the lowest and the highest
            that the sequences hold, special tokens left out.
        special: tokens that are neither replaced nor drawn, such as `tokenizer.all_special_ids`. The first and the last
            token that all sequences share are special anyway.
        versions: how often the first pass holds all tokens recombined, after the sentences themselves.
        seed: of all that is drawn.

    Raises:
        DataError: for batches without `input_ids`, with other keys than those above, with what seems to be padding and
            no `attention_mask`, or without a token beside the first and last.
        OptionError: for lengths that are none, a share outside 0..1, or a vocabulary that holds no token to draw.
    """

    def __init__(  # noqa: PLR0913 - each is one choice of how sequences are made, all but the first by name
        self,
        batches: Iterable[Mapping[str, torch.Tensor]],
        *,
        span: tuple[int, int] = (4, 40),
        length: tuple[int, int] | None = None,
        tokens: int = 1000,
        replace: float = 0.2,
        vocabulary: tuple[int, int] | None = None,
        special: Collection[int] = (),
        versions: int = 3,
        seed: int = 0,
    ):
        self._batches = [dict(batch) for batch in batches]
        _check(span, (3, 3) if length is None else length, replace, vocabulary, versions)
        length = self._usual_length() if length is None else length
        self._span, self._length, self._tokens, self._seed = span, length, tokens, seed
        self._replace, self._versions = replace, versions
        sequences = self._sequences()
        named = _special(special)
        self._first = _shared([int(ids[0]) for ids in sequences], named)
        self._last = _shared([int(ids[-1]) for ids in sequences], named)
        stop = None if self._last is None else -1
        self._texts = [ids[0 if self._first is None else 1 : stop] for ids in sequences]
        if not any(len(text) for text in self._texts):
            raise DataError(
                "RecombinedTokens: no sequence holds a token beside its first and its last; give longer ones"
            )
        self._special = named | {token for token in (self._first, self._last) if token is not None}
        self._words = self._drawable(vocabulary)
        self._passes = 0

    def begin(self) -> None:
        """Make the next pass a first one again, with the sentences themselves.

        Verbs that solve layers on the data call it, so that each sees the sentences, whatever was read before.
        """
        self._passes = 0

    def _usual_length(self) -> tuple[int, int]:
        """12 to 128 tokens, but no more than the longest batch has: a model may have no more positions."""
        ids = [batch.get("input_ids") for batch in self._batches]
        most = max(
            (one.shape[-1] for one in ids if isinstance(one, torch.Tensor) and one.dim() == 2), default=128
        )
        most = max(3, min(128, most))
        return min(12, most), most

    def _sequences(self) -> list[torch.Tensor]:
        """Every sequence without its padding."""
        found = []
        for index, batch in enumerate(self._batches):
            ids = batch.get("input_ids")
            if not isinstance(ids, torch.Tensor) or ids.dim() != 2:
                raise DataError(
                    f"RecombinedTokens: batch {index}: expected input_ids of [sequences, tokens], got "
                    f"{type(ids).__name__ if not isinstance(ids, torch.Tensor) else tuple(ids.shape)}"
                )
            _check_keys(index, batch)
            if batch.get("attention_mask") is None:
                _check_padding(index, ids)
                batch = {**batch, "attention_mask": torch.ones_like(ids)}
            valid = batch["attention_mask"] != 0
            found += [row[keep] for row, keep in zip(ids, valid, strict=True) if bool(keep.any())]
        return found

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        first = self._passes == 0
        if first:
            yield from self._batches  # who looks at the first batch alone has not used the first pass up
        turns = range(1, self._versions + 1) if first else [self._passes]
        self._passes = self._versions + 1 if first else self._passes + 1
        for turn in turns:
            yield from self._recombined(torch.Generator().manual_seed(self._seed * 1_000_003 + turn))

    def _drawable(self, vocabulary: tuple[int, int] | None) -> torch.Tensor:
        """The tokens that are replaced and drawn, ascending."""
        special = torch.tensor(sorted(self._special), dtype=torch.int64)
        if vocabulary is None:
            held = torch.cat(self._texts).cpu().long()
            held = held[~torch.isin(held, special)]
            if not len(held):
                return held
            vocabulary = int(held.min()), int(held.max())
        words = torch.arange(vocabulary[0], vocabulary[1] + 1)
        words = words[~torch.isin(words, special)]
        if not len(words):
            raise OptionError(
                f"vocabulary of RecombinedTokens: expected a token to draw from {vocabulary[0]} to {vocabulary[1]}, "
                "but all of them are special; give a wider one"
            )
        return words

    def _recombined(self, generator: torch.Generator) -> Iterator[dict[str, torch.Tensor]]:
        """All tokens once, in sequences of spans in a random order."""
        stream = self._stream(generator)
        ends = [token for token in (self._first, self._last) if token is not None]
        at = 0
        while at < len(stream):
            width = _drawn(self._length, generator)
            inside = min(width - len(ends), len(stream) - at)
            count = min(max(1, self._tokens // width), (len(stream) - at) // inside)
            rows = stream[at : at + count * inside].reshape(count, inside)
            at += count * inside
            parts = [rows]
            if self._first is not None:
                parts.insert(0, rows.new_full((count, 1), self._first))
            if self._last is not None:
                parts.append(rows.new_full((count, 1), self._last))
            ids = torch.cat(parts, 1)
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _stream(self, generator: torch.Generator) -> torch.Tensor:
        """All tokens, cut into spans that are put into a random order."""
        spans = []
        for text in self._texts:
            at = 0
            while at < len(text):
                size = _drawn(self._span, generator)
                spans.append(text[at : at + size])
                at += size
        order = torch.randperm(len(spans), generator=generator).tolist()
        stream = torch.cat([spans[index] for index in order])
        if not self._replace or not len(self._words):
            return stream
        words = self._words.to(stream)
        hit = torch.rand(stream.shape, generator=generator) < self._replace
        hit = hit.to(stream.device) & torch.isin(stream, words)
        drawn = torch.randint(0, len(words), stream.shape, generator=generator).to(stream.device)
        return torch.where(hit, words[drawn], stream)


def _drawn(limits: tuple[int, int], generator: torch.Generator) -> int:
    """A whole number from the lower to the upper limit, both included."""
    return int(torch.randint(limits[0], limits[1] + 1, (1,), generator=generator))


def _shared(tokens: list[int], special: set[int]) -> int | None:
    """The token, where all are one, and there are several or it is special; else None."""
    one = len(set(tokens)) == 1 and (len(tokens) > 1 or tokens[0] in special)
    return tokens[0] if one else None


def _special(tokens: Collection[int]) -> set[int]:
    """The special tokens, as whole numbers."""
    try:
        return {operator.index(token) for token in tokens}
    except TypeError:
        raise OptionError(
            "special of RecombinedTokens: expected the numbers of tokens, such as tokenizer.all_special_ids, got "
            f"{tokens!r}"
        ) from None


def _check_keys(index: int, batch: Mapping[str, torch.Tensor]) -> None:
    """Refuse a batch that holds more than token ids and what follows from them."""
    for name in batch:
        if name not in _KEYS:
            raise DataError(
                f"RecombinedTokens puts token ids together again; it cannot do so with {name!r} (batch {index}): "
                "leave it out, or give the batches themselves as data"
            )
    kinds = batch.get("token_type_ids")
    if kinds is not None and bool((kinds != 0).any()):
        raise DataError(
            f"RecombinedTokens: batch {index}: expected token_type_ids of 0 alone, got up to {int(kinds.max())}: leave "
            "them out, or give the batches themselves as data"
        )


def _check_padding(index: int, ids: torch.Tensor) -> None:
    """Refuse rows that end, or begin, in one repeated token, which seems to be padding that no mask marks."""
    for (one, other), where in (((-1, -2), "ends"), ((0, 1), "begins")):
        alike = ids[:, one] == ids[:, other] if ids.shape[1] > 1 else ids.new_zeros(0)
        if bool(alike.any()):
            row = int(alike.nonzero()[0, 0])
            raise DataError(
                f"RecombinedTokens: batch {index} has no attention_mask, and row {row} {where} in one repeated token, "
                f"{int(ids[row, one])}, as padding does: give the attention_mask that the tokenizer returns, or one of "
                "ones where nothing is padded"
            )


def _check(
    span: tuple[int, int],
    length: tuple[int, int],
    replace: float,
    vocabulary: tuple[int, int] | None,
    versions: int,
) -> None:
    """Refuse options that mean nothing."""
    for name, (low, high) in (("span", span), ("length", length)):
        if not (1 if name == "span" else 3) <= low <= high:
            raise OptionError(
                f"{name} of RecombinedTokens: expected the shortest and the longest, at least "
                f"{1 if name == 'span' else 3} and in order, got {(low, high)}"
            )
    if not 0 <= replace <= 1:
        raise OptionError(f"replace of RecombinedTokens: expected a share from 0 to 1, got {replace!r}")
    if vocabulary is not None and not 0 <= vocabulary[0] <= vocabulary[1]:
        raise OptionError(
            "vocabulary of RecombinedTokens: expected the lowest and the highest token to draw in place of others, "
            f"such as (1000, 30521), got {vocabulary!r}"
        )
    if isinstance(versions, bool) or not isinstance(versions, int) or versions < 0:
        raise OptionError(
            f"versions of RecombinedTokens: expected a whole number of at least 0, got {versions!r}"
        )

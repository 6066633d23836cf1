"""`RecombinedTokens`: few token sequences made many: cut into spans that are put together in a new order.

A few hundred sentences are soon learnt by heart, by least squares as by gradient steps. Spans of them in another order
and at other positions are inputs of the same kind that the dense model can answer as well, and every pass brings new
ones. A share `replace` of their tokens is drawn from the whole vocabulary, most of which a few hundred sentences do not
hold. The first pass, on which layers are solved, holds the sentences and some recombined `versions` of them.

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

from collections.abc import Iterable, Iterator, Mapping

import torch

from secateur.errors import DataError, OptionError

__all__ = ["RecombinedTokens"]


class RecombinedTokens:
    """Batches of token ids: as given and recombined in the first pass, recombined in every later one.

    A token that all sequences begin with, and one that all end with, stays first and last. Sequences of one batch have
    one length, so that nothing is padded; a pass holds every token at most once.

    Args:
        batches: dicts with `input_ids` and, where there is padding, `attention_mask`, both [sequences, tokens]; other
            keys are left out of recombined batches.
        span: the shortest and the longest piece that is cut out.
        length: the shortest and the longest sequence, first and last token included.
        tokens: tokens of one batch, at most; a batch has at least one sequence.
        replace: the share of the tokens of recombined sequences in whose place one of `vocabulary` is drawn.
        vocabulary: the lowest and the highest token that is replaced and drawn: special tokens lie outside. By default
            the lowest and the highest that the sequences hold between their first and last.
        versions: how often the first pass holds all tokens recombined, after the sentences themselves.
        seed: of all that is drawn.

    Raises:
        DataError: for batches without `input_ids`, or without a token beside the first and last.
        OptionError: for lengths that are none, a share outside 0..1, or a vocabulary that holds no token.
    """

    def __init__(
        self,
        batches: Iterable[Mapping[str, torch.Tensor]],
        *,
        span: tuple[int, int] = (4, 40),
        length: tuple[int, int] = (12, 128),
        tokens: int = 1000,
        replace: float = 0.2,
        vocabulary: tuple[int, int] | None = None,
        versions: int = 3,
        seed: int = 0,
    ):
        self._batches = [dict(batch) for batch in batches]
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
        self._span, self._length, self._tokens, self._seed = span, length, tokens, seed
        self._replace, self._vocabulary, self._versions = replace, vocabulary, versions
        sequences = self._sequences()
        self._first = _shared([int(ids[0]) for ids in sequences])
        self._last = _shared([int(ids[-1]) for ids in sequences])
        stop = None if self._last is None else -1
        self._texts = [ids[0 if self._first is None else 1 : stop] for ids in sequences]
        if not any(len(text) for text in self._texts):
            raise DataError(
                "RecombinedTokens: no sequence holds a token beside its first and its last; give longer ones"
            )
        self._passes = 0

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
            valid = batch.get("attention_mask", torch.ones_like(ids)) != 0
            found += [row[keep] for row, keep in zip(ids, valid, strict=True) if bool(keep.any())]
        return found

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        first = self._passes == 0
        turns = range(1, self._versions + 1) if first else [self._passes]
        self._passes += 1 + (self._versions if first else 0)
        if first:
            yield from self._batches
        for turn in turns:
            yield from self._recombined(torch.Generator().manual_seed(self._seed * 1_000_003 + turn))

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
        if not self._replace:
            return stream
        low, high = self._vocabulary or (int(stream.min()), int(stream.max()))
        hit = torch.rand(stream.shape, generator=generator) < self._replace
        hit = hit.to(stream.device) & (stream >= low) & (stream <= high)
        drawn = torch.randint(low, high + 1, stream.shape, generator=generator).to(stream)
        return torch.where(hit, drawn, stream)


def _drawn(limits: tuple[int, int], generator: torch.Generator) -> int:
    """A whole number from the lower to the upper limit, both included."""
    return int(torch.randint(limits[0], limits[1] + 1, (1,), generator=generator))


def _shared(tokens: list[int]) -> int | None:
    """The token, where all are one and there are several; else None."""
    return tokens[0] if len(tokens) > 1 and len(set(tokens)) == 1 else None

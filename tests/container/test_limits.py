"""What a file may ask for before it is believed, by hand."""

from __future__ import annotations

import pytest

from secateur.coding.indices import MixerBank
from secateur.container.format import RAW, Entry, Record
from secateur.container.limits import Limits
from secateur.errors import FormatError, OptionError


def _record(shape: tuple[int, ...], index: int = 0) -> Record:
    return Record(index, Entry("w", "F32", shape), RAW, {}, 0, 1, 3, 0, MixerBank())


def test_a_file_asks_for_some_bytes_and_for_more_by_each_of_its_own() -> None:
    """64 MiB and 8 a byte in memory; 2^18 scalars and 2 a byte; 4 MiB of text and 4 a byte; 1,024 sections."""
    free, larger = Limits(0), Limits(1 << 20)
    assert (free.memory, larger.memory) == (64 << 20, 72 << 20)
    assert (free.scalars, larger.scalars) == (1 << 18, (1 << 18) + (2 << 20))
    assert (free.text, larger.text) == (4 << 20, 8 << 20)
    assert (free.sections, larger.sections) == (1024, 2048)


def test_max_bytes_takes_the_place_of_the_limits_of_bytes() -> None:
    """A text may still have what it may have without."""
    assert Limits(0, max_bytes=10).memory == 10
    assert Limits(0, max_bytes=10).scalars is None
    assert (Limits(0, max_bytes=10).text, Limits(0, max_bytes=9 << 20).text) == (4 << 20, 9 << 20)
    assert Limits(0, max_bytes=0).memory == 0
    with pytest.raises(OptionError, match="max_bytes: expected a number of bytes, got -1"):
        Limits(0, max_bytes=-1)


@pytest.mark.parametrize(
    ("limits", "numel", "decoded", "weights", "held", "words"),
    [
        (Limits(0), (64 << 18) + 1, 0, 0, 0, "tensor 'w' of shape .16777217. would take 67,108,868 bytes"),
        (Limits(0), 1, 0, 0, (64 << 20) + 1, "3 tensors and their names would take 67,108,865 bytes"),
        (Limits(1000), 1, (64 << 20) + 64_001, 0, 0, "the tensors up to 'w' would take 67,172,865 bytes"),
        (Limits(0, 100), 1, 101, 0, 0, "up to 'w' would take 101 bytes, more than the 100"),
        (Limits(2), 1, 0, (1 << 21) + 129, 0, "2,097,281 coded weights are more than a file of 2 bytes"),
    ],
)
def test_each_limit_is_said_with_what_it_takes_to_raise_it(
    limits: Limits, numel: int, decoded: int, weights: int, held: int, words: str
) -> None:
    """One less is accepted."""
    with pytest.raises(FormatError, match=words) as caught:
        limits.check(_record((numel,), 2), decoded, weights, held)
    assert "if you trust the file, allow it with max_bytes=" in str(caught.value)
    limits.check(_record((max(1, numel - 1),), 2), max(0, decoded - 1), max(0, weights - 1), max(0, held - 1))


def test_weights_coded_by_contexts_are_free_where_the_user_said_how_many_bytes() -> None:
    """`max_bytes` raises the work, too."""
    Limits(2, max_bytes=100).check(_record((1,)), 4, 1 << 40, 0)

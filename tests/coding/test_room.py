"""Memory that is used again: the same bytes as with new memory, and nothing of one tensor in the next."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.coding import floats
from secateur.coding.room import Pieces, Room

KINDS = ["u1", "u2", "u4", "u8"]


def weights_as(kind: str, count: int, seed: int) -> np.ndarray:
    """Words of weights: floats of that width, or their upper bytes."""
    values = np.random.default_rng(seed).normal(size=count) * 0.02
    if kind == "u1":
        return (values.astype(np.float32).view(np.uint32) >> 23).astype(np.uint8)
    return values.astype(f"f{kind[1]}").view(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_room_changes_no_byte(kind):
    room = Room()
    for seed, count in enumerate((70_000, 300, 140_000, 70_001)):
        room.clear()
        words = weights_as(kind, count, seed)
        data = bytes(floats.pieces_of(words, True, room=room))
        assert data == floats.encode(words, True)
        out = floats.decode(data, count, words.itemsize, True, room=room)
        assert (out == words).all()


def test_arrays_of_a_room_do_not_overlap_until_it_is_cleared():
    room = Room()
    for _ in range(3):
        room.clear()
        arrays = [room.array(count, np.dtype(kind)) for count in (1, 1000, 0, 77) for kind in KINDS]
        for number, one in enumerate(arrays):
            one[:] = number + 1
        assert all((one == number + 1).all() for number, one in enumerate(arrays))
        assert all(one.ctypes.data % one.itemsize == 0 for one in arrays if one.size)


def test_pieces_are_their_buffers_joined():
    pieces = Pieces([b"", b"abc", np.array([258], dtype="<u2").data])
    assert (len(pieces), bytes(pieces)) == (5, b"abc\x02\x01")
    assert (len(Pieces([])), bytes(Pieces([]))) == (0, b"")


def test_a_room_keeps_no_block_that_was_too_small():
    room = Room()
    for size in range(1000, 20_000, 1000):
        room.clear()
        room.array(size, np.dtype("u1"))
        assert sum(map(len, room._blocks)) < size + 100
    room.clear()
    room.array(100, np.dtype("u1"))
    room.array(20_000, np.dtype("u1"))  # the first is in use
    assert len(room._blocks) == 2

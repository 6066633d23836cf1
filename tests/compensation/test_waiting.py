"""Waiting passes: what they hold beyond a limit is in files, and nothing that is computed changes by it."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import secateur as sc
from secateur.compensation import waiting
from secateur.compensation.batches import read_all
from secateur.compensation.calls import Names
from secateur.compensation.waiting import Made, WaitingTensors, move_to_file
from secateur.compensation.walking import Walk
from secateur.errors import DataError


class Net(nn.Module):
    """Convolutions with a residual path, a constant of its own, and a sum in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)
        self.constant = torch.full((8, 16, 16), 0.5)
        self.seen: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu_(self.norm(self.stem(x)))
        shift = self.constant[None]
        if self.seen is None:
            self.seen = x.mean((0, 2, 3))  # made in the first pass, used in all
        y = self.body(x + shift)
        y += x
        y *= self.seen[:, None, None]
        return self.head(y.mean((2, 3)))


def drawn(count: int) -> Iterator[torch.Tensor]:
    """Batches that nobody keeps."""
    for index in range(count):
        yield torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(index))


def in_memory() -> int:
    """The bytes of all living tensors that are not in a file."""
    found = {}
    for thing in gc.get_objects():
        plain = type(thing) is torch.Tensor and thing.device.type == "cpu" and thing.layout == torch.strided
        if plain:  # other tests may have left sparse ones
            storage = thing.untyped_storage()
            if storage.filename is None:
                found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def compensated(count: int) -> tuple[sc.Compensated, int]:
    """The result, and the most bytes in memory after a layer, less those from before."""
    torch.manual_seed(0)
    model = Net().eval()
    masks = sc.prune(model, budget=0.5)
    gc.collect()
    before, most = in_memory(), 0

    def look(_advance: sc.Advance) -> None:
        nonlocal most
        most = max(most, in_memory() - before)

    return sc.compensate(model, masks, drawn(count), progress=look), most


def test_memory_does_not_grow_with_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "WAITING_BYTES", 100_000)
    (_, few), (_, many) = compensated(4), compensated(16)
    batch = 8 * 8 * 16 * 16 * 4  # bytes of one activation
    assert many < few + batch
    monkeypatch.setattr(waiting, "WAITING_BYTES", 1 << 30)
    _, whole = compensated(16)
    assert whole > many + 16 * batch


def test_the_result_has_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = compensated(6)
    monkeypatch.setattr(waiting, "WAITING_BYTES", 0)
    two, _ = compensated(6)
    for (name, a), b in zip(one.model.state_dict().items(), two.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert one.layers == two.layers


def test_views_of_a_moved_tensor_still_share_their_memory(tmp_path: Path) -> None:
    whole = torch.randn(40, 50)
    view, strided = whole[3:7, 10:], whole.T[::2]
    wanted = [tensor.clone() for tensor in (whole, view, strided)]
    assert move_to_file([whole, view, strided], tmp_path) == 8000
    for found, before in zip((whole, view, strided), wanted, strict=True):
        assert torch.equal(found, before)
    view += 1
    assert torch.equal(whole[3:7, 10:], wanted[1] + 1)
    if os.name == "posix":
        assert not list(tmp_path.iterdir())  # the file has no name any more


def test_what_comes_from_outside_the_pass_is_left_alone() -> None:
    made, parameter, inputs = Made(), torch.randn(900), torch.randn(900)
    own = inputs * 2
    made.note((inputs, 2), own)
    made.note((parameter,), view := parameter[10:])
    assert [tensor is own for tensor in made.in_memory()] == [True]
    assert view.untyped_storage().filename is None


def test_an_input_of_the_user_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "WAITING_BYTES", 0)
    torch.manual_seed(0)
    model, images = Net().eval(), list(drawn(3))
    sc.compensate(model, sc.prune(model, budget=0.5), images)
    assert all(image.untyped_storage().filename is None for image in images)
    assert all(value.untyped_storage().filename is None for value in model.state_dict().values())


@pytest.mark.skipif(os.name != "posix", reason="a file in use cannot be deleted there")
def test_inputs_that_nobody_holds_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_INPUTS", 2 * next(drawn(1)).nbytes)
    read = read_all("test", drawn(5), Net())
    assert [batch.args[0].untyped_storage().filename is None for batch in read] == [True] * 2 + [False] * 3
    assert all(torch.equal(batch.args[0], image) for batch, image in zip(read, drawn(5), strict=True))


def test_no_folder_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(waiting, "WAITING_BYTES", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    torch.manual_seed(0)
    model = Net().eval()
    seen: list[int] = []
    sc.compensate(
        model,
        sc.prune(model, budget=0.5),
        drawn(2),
        progress=lambda _: seen.append(len(list(tmp_path.iterdir()))),
    )
    assert max(seen) >= 1
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_said_and_nothing_keeps_running(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(waiting, "WAITING_BYTES", 0)
    monkeypatch.setattr(WaitingTensors, "_place", lambda self: tmp_path / "not there")
    model, before = Net().eval(), threading.active_count()
    with pytest.raises(DataError, match="TMPDIR"):
        sc.compensate(model, sc.prune(model, budget=0.5), list(drawn(2)))
    assert threading.active_count() == before
    with (
        pytest.raises(DataError, match="TMPDIR"),
        Walk(model, Names(model), next(drawn(1)).split(8), {}, WaitingTensors()) as walk,
    ):
        walk.advance()
    assert threading.active_count() == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_memory_is_given_back() -> None:
    def resident() -> int:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))

    if not waiting.trim():
        pytest.skip("a C library without malloc_trim")
    many = [bytearray(50_000) for _ in range(4000)]
    kept, before = (
        many[::100],
        resident(),
    )  # what stays is among what goes, so that nothing is given back by itself
    del many
    waiting.trim()
    assert before - resident() > 150_000, len(kept)


def test_memory_is_given_back_only_where_passes_hold_much(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(waiting, "trim", lambda: calls.append(1))
    model = Net().eval()
    masks = sc.prune(model, budget=0.5)
    sc.compensate(model, masks, drawn(2))
    assert not calls
    monkeypatch.setattr(waiting, "_WORTH", 1)
    result = sc.compensate(model, masks, drawn(2))
    assert len(calls) >= len(result.layers)


def test_memory_is_given_back_within_a_layer_where_the_process_has_grown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In MiB: 300 are there at first; 560 are too many, of which 350 stay; 200 are new least, so 460 are too many."""
    sizes = iter([300, 550, 560, 350, 600, 200, 450, 460, 210, None, 900])
    calls: list[int] = []

    def read() -> int | None:
        size = next(sizes)
        return None if size is None else size << 20

    monkeypatch.setattr(waiting, "anonymous_bytes", read)
    monkeypatch.setattr(waiting, "trim", lambda: calls.append(0))
    with waiting.WaitingTensors() as held:
        counts = []
        for _ in range(8):
            held.paused(1, waiting.Made())
            counts.append(len(calls))
    assert counts == [0, 0, 1, 1, 1, 1, 2, 2]


def test_the_memory_of_the_process_is_read() -> None:
    before = waiting.anonymous_bytes()
    if before is None:
        pytest.skip("no /proc/self/statm")
    block = bytearray(1 << 26)
    block[::4096] = b"x" * (1 << 14)
    after = waiting.anonymous_bytes()
    assert after is not None
    assert after - before > (1 << 26) * 0.9
    del block

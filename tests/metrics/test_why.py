"""why: counts by layer, inputs as inside the model, reasons from measurements that are given here by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import DataError
from secateur.metrics import _why, why


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        return self.head(self.act(x).mean((2, 3)))


X = torch.ones(2, 3, 8, 8)


def test_rows_count_and_time_every_layer_and_leave_the_models_alone():
    large, small = Block(32).train(), Block(13)
    before = {name: value.clone() for name, value in large.state_dict().items()}
    found = why(large, small, X, repetitions=3)
    assert [row.name for row in found.rows] == ["conv", "norm", "act", "head"]
    assert found.rows[0].macs == (3 * 9 * 32 * 128, 3 * 9 * 13 * 128)
    assert found.rows[3].macs == (2 * 32 * 4, 2 * 13 * 4)
    assert found.rows[0].moved[0] == 4 * (32 * 27 + 32 + 2 * 3 * 64 + 2 * 32 * 64)
    assert all(ms > 0 for row in found.rows for ms in row.ms)
    assert large.training
    assert all(torch.equal(before[name], value) for name, value in large.state_dict().items())
    assert "x fewer multiply-accumulates" in str(found)
    assert "outside the layers" in str(found)
    assert '"reason"' in found.to_json()


def test_a_layer_that_runs_twice_is_timed_twice(monkeypatch):
    calls = _why._calls(Block(4), X)
    assert calls["act"].times == 2
    assert calls["conv"].times == 1


@pytest.mark.parametrize(
    ("tiny", "wide", "reason"),
    [
        (0.9, 1.0, "launch overhead: 0.900 ms on a tiny input"),
        (0.1, 0.99, "odd width: 3 to 13 is no faster than 3 to 16; shrink with round_to=8"),
        (0.1, 1.01, "memory-bound: "),
    ],
)
def test_reasons_follow_the_readings(monkeypatch, tiny, wide, reason):
    small = Block(13)
    call = _why._calls(small, X)["conv"]
    row = _why.LayerTime("conv", "Conv2d", (110592, 44928), (1.0, 1.0), (20000, 10000))
    given = iter([(tiny, 1.0), (wide, 1.0)])
    monkeypatch.setattr(_why, "_turns", lambda runs, trials: list(next(given)))
    found = _why._explained(row, call, torch.device("cpu"), 3)
    assert found.reason.startswith(reason)


def test_a_layer_as_fast_as_its_count_needs_no_reason():
    call = _why._calls(Block(13), X)["conv"]
    row = _why.LayerTime("conv", "Conv2d", (1000, 500), (1.0, 0.55), (20000, 10000))
    assert _why._explained(row, call, torch.device("cpu"), 3).reason == ""


def test_models_without_a_common_layer_are_an_error():
    with pytest.raises(DataError, match="name their layers alike"):
        why(nn.Sequential(nn.Linear(3, 3)), nn.Identity(), torch.ones(2, 3))


def test_the_summary_adds_up_what_each_reason_costs():
    """Twice fewer products: 8 ms could be 4 and are 6. Conv loses 3 - 4 / 2 = 1 ms, the layer without products 0.5,
    what is outside 1.1 - 1 / 2."""
    rows = (
        _why.LayerTime("a", "Conv2d", (1000, 500), (4.0, 3.0), (0, 0), "odd width: 13"),
        _why.LayerTime("b", "ReLU", (0, 0), (2.0, 1.5), (0, 0), "no products: moves"),
        _why.LayerTime("c", "Linear", (100, 50), (1.0, 0.4), (0, 0), ""),
    )
    found = _why.Why(rows=rows, macs=(1100, 550), ms=(8.0, 6.0), threads=1, device="cpu")
    assert found.outside == pytest.approx((1.0, 1.1))
    assert found.summary() == (
        "2.00x fewer multiply-accumulates, 1.33x as fast on cpu. Of the 2 ms above what the count suggests: "
        "odd width 1 ms, outside the layers 0.6 ms, no products 0.5 ms."
    )


@pytest.mark.parametrize(("width", "conv", "head"), [(17, "3 to 24", "24 to 4"), (16, None, None)])
def test_a_layer_is_tried_at_the_next_multiples_of_eight(width, conv, head):
    """Widths up to 4, as those of an image or of few classes, are given by the data."""
    calls = _why._calls(Block(width), X)
    for name, widths in (("conv", conv), ("head", head)):
        wide = _why._resized(calls[name], tiny=False)
        assert (wide and _why._widths(wide.module)) == widths
    assert _why._resized(calls["conv"], tiny=True).args[0].shape == (1, 3, 3, 3)
    assert _why._resized(calls["norm"], tiny=True).args[0].shape == (1, width, 1, 1)
    assert _why._resized(calls["head"], tiny=True).args[0].shape == (1, width)


def test_the_summary_says_what_each_reason_costs():
    # a quarter of the 4 ms was to remain and 3 ms do: 2 ms for one layer; the other lost none
    rows = (
        _why.LayerTime("a", "Conv2d", (100, 25), (4.0, 3.0), (1, 1), "memory-bound: 3 per byte"),
        _why.LayerTime("b", "ReLU", (0, 0), (1.0, 0.1), (1, 1), "launch overhead: 0.1 ms"),
    )
    text = _why.Why(rows, (100, 25), (5.0, 3.25), 1, "1 thread").summary()
    assert text.startswith("4.00x fewer multiply-accumulates, 1.54x as fast on 1 thread.")
    assert text.endswith(
        "Of the 2 ms above what the count suggests: memory-bound 2 ms, outside the layers 0.15 ms."
    )


def test_wider_layers_are_at_the_next_multiple_of_eight():
    assert [_why._up(width) for width in (1, 3, 4, 5, 8, 9, 13, 16)] == [1, 3, 4, 8, 8, 16, 16, 16]
    assert _why._widened(nn.Linear(8, 16), torch.ones(2, 8)) is None
    layer, x = _why._widened(nn.Linear(13, 4), torch.ones(2, 13))
    assert (layer.in_features, layer.out_features, x.shape) == (16, 4, (2, 16))
    assert _why._widened(nn.Conv2d(3, 8, 3), torch.ones(1, 3, 5, 5)) is None
    layer, x = _why._widened(nn.Conv2d(3, 9, 3), torch.ones(1, 3, 5, 5))
    assert (layer.in_channels, layer.out_channels, x.shape) == (3, 16, (1, 3, 5, 5))


def test_bytes_are_megabytes_from_a_tenth_of_one():
    assert [_why._bytes(count) for count in (99_900, 100_000, 2_000_000)] == ["99.9 kB", "0.10 MB", "2.00 MB"]


def test_a_model_that_is_left_without_multiply_accumulates_is_compared_all_the_same():
    assert _why.Why((), (100, 0), (4.0, 2.0), 1, "a thread").summary().startswith("100.00x fewer")


def test_layers_that_torch_ran_in_one_call_before_are_named_with_the_speed_that_was_read():
    """The encoder's fused path needs the widths it was built with; in the smaller model its parts run one by one."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 1).eval(), torch.randn(2, 3, 16)
    small = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=x), x).model
    times = sc.compare(model, small, x, repetitions=3, warmup=1)
    found = why(model, small, x, repetitions=1, times=times)
    assert found.unfused
    assert f"such as {found.unfused[0]}, run one by one in the smaller model only" in found.summary()
    assert f"{times['speedup'].text()} as fast" in found.summary()
    assert f'"value": {times["speedup"].value}' in found.to_json()


def test_what_another_process_takes_of_a_reading_is_left_out(monkeypatch):
    """By the clock a reading of the smaller layer takes 50 ms, in which the processor works 1 ms for it."""
    clock, own = 0.0, 0.0

    class Slow(nn.Module):
        def __init__(self, ms: float, waits: float):
            super().__init__()
            self.ms, self.waits = ms, waits

        def forward(self, x):
            nonlocal clock, own
            clock, own = clock + (self.ms + self.waits) / 1e3, own + self.ms / 1e3
            return x

    taken = itertools.count()
    monkeypatch.setattr(_why.time, "perf_counter", lambda: clock)
    monkeypatch.setattr(_why.time, "process_time", lambda: own)
    monkeypatch.setattr(_why, "switches", lambda: (0, next(taken)))
    shares: list[float] = []
    runs = [
        _why._run(_why._Call(Slow(ms, waits), (X,), {}, 1, 0), torch.device("cpu"), shares)
        for ms, waits in ((4.0, 0.0), (1.0, 49.0))
    ]
    assert _why._turns(runs, 3) == pytest.approx([4.0, 1.0])
    assert sorted(shares) == pytest.approx([0.02] * 3 + [1.0] * 3)


def test_threads_that_are_idle_by_themselves_are_no_interruption(monkeypatch):
    """Four threads work for 4 ms of a pass, then three of them wait for one: nobody took the processor away."""
    clock = own = 0.0
    cores = iter([4.0, 4.0, 4.0, 4.0, *[2.0] * 100])

    class Layer(nn.Module):
        def forward(self, x):
            nonlocal clock, own
            clock, own = clock + 4e-3, own + next(cores) * 4e-3
            return x

    monkeypatch.setattr(_why.time, "perf_counter", lambda: clock)
    monkeypatch.setattr(_why.time, "process_time", lambda: own)
    monkeypatch.setattr(_why, "switches", lambda: (7, 0))
    monkeypatch.setattr(_why.torch, "get_num_threads", lambda: 4)
    shares: list[float] = []
    run = _why._run(_why._Call(Layer(), (X,), {}, 1, 0), torch.device("cpu"), shares)
    assert [run() for _ in range(4)] == pytest.approx([4.0] * 4)
    assert shares == [1.0] * 4


def test_one_switch_is_compared_with_what_several_threads_usually_do(monkeypatch):
    """All four threads worked once, else two. One switch took nothing and changes nothing, another took half."""
    clock, own, turn, counted = 0.0, 0.0, 0, 0
    readings = [
        (4.0, 4.0),
        (4.0, 2.0),
        (4.0, 2.0),
        (4.0, 2.0),
        (8.0, 1.0),
        (4.0, 2.0),
    ]  # ms by the clock, and cores

    class Layer(nn.Module):
        def forward(self, x):
            nonlocal clock, own, counted
            ms, cores = readings[turn]
            clock, own = clock + ms / 1e3, own + ms * cores / 1e3
            counted += turn in (3, 4)
            return x

    monkeypatch.setattr(_why.time, "perf_counter", lambda: clock)
    monkeypatch.setattr(_why.time, "process_time", lambda: own)
    monkeypatch.setattr(_why, "switches", lambda: (0, counted))
    monkeypatch.setattr(_why.torch, "get_num_threads", lambda: 4)
    shares: list[float] = []
    run = _why._run(_why._Call(Layer(), (X,), {}, 1, 0), torch.device("cpu"), shares)
    found = []
    while turn < len(readings):
        found.append(run())
        turn += 1
    assert found == pytest.approx([4.0] * 6)
    assert shares == pytest.approx([1.0, 1.0, 1.0, 1.0, 0.5, 1.0])


def test_a_busy_machine_is_said_below_the_table():
    row = _why.LayerTime("fc", "Linear", (80, 40), (4.0, 1.0), (10, 10))
    quiet = _why.Why((row,), (80, 40), (5.0, 2.0), 1, "1 thread of the CPU", interrupted=0.2)
    assert "interrupted" not in quiet.summary()
    busy = _why.Why((row,), (80, 40), (5.0, 2.0), 1, "1 thread of the CPU", interrupted=0.5)
    assert (
        "50% of the layers' readings were interrupted by other work: their times are the processor's own"
        in str(busy)
    )

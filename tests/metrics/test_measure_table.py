"""sc.measure: one table of everything, each number defined; and each measure by itself."""

from __future__ import annotations

import io
import math
import os
import sys
import time

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import DataError, MaskMismatchError, NothingToDoError, OptionError, UnknownNameError
from secateur.metrics import measure, names
from secateur.metrics.accuracy import accuracy
from secateur.metrics.filter_sums import filter_sums
from secateur.metrics.latency import compare, latency, median_interval
from secateur.metrics.memory import memory
from secateur.metrics.params import params
from secateur.metrics.size import file_size, formula_size, size
from secateur.metrics.sparsity import sparsity


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(16, 3)
    )


X = torch.zeros(2, 1, 4, 4)
CHANCE = torch.Generator().manual_seed(0)
BATCHES = [
    (torch.randn(5, 1, 4, 4, generator=CHANCE), torch.randint(0, 3, (5,), generator=CHANCE)) for _ in range(3)
]


# -- the table -----------------------------------------------------------------------------------------------
def test_everything_that_can_be_measured_is():
    table = sc.measure(net(), X, BATCHES, repetitions=3, context={"variant": "dense"})
    assert set(table.names()) == {
        "accuracy", "latency", "macs", "macs_nonzero", "memory", "params", "nonzeros", "size", "sparsity"
    }  # fmt: skip
    assert all(row.definition for row in table), "no number without its definition"
    assert all(row.context["variant"] == "dense" for row in table)
    assert len(str(table).splitlines()) >= len(table)
    assert sc.Measurements.from_json(table.to_json()).names() == table.names()


def test_only_what_the_arguments_allow():
    assert set(sc.measure(net()).names()) == {"params", "nonzeros", "size", "sparsity"}
    assert sc.measure(net(), what="size").names() == ["size"]
    assert sc.measure(net(), X, what=["macs"], bias=True)["macs"].value == 2 * (4 * 4 * 9 + 16 + 16 * 3 + 3)


def test_every_file_of_the_folder_is_a_measure():
    numbers = ["accuracy", "latency", "macs", "memory", "params", "size", "sparsity"]
    pictures = [
        "activation_histogram",
        "architecture",
        "filter_sums",
        "weight_histogram",
    ]  # measured when asked
    assert names() == sorted(numbers + pictures)


def test_errors_of_the_table():
    with pytest.raises(UnknownNameError, match="unknown measure 'mac': did you mean 'macs'"):
        measure(net(), what=["mac"])
    with pytest.raises(UnknownNameError, match="unknown measure 'flops': 'macs' counts multiply-accumulates"):
        measure(net(), what=["flops"])
    with pytest.raises(
        OptionError, match="measure 'macs' needs example=; give it, or leave 'macs' out of what="
    ):
        measure(net(), what=["macs"])
    with pytest.raises(
        UnknownNameError, match="measure: no option 'repetition' of latency: did you mean 'repetitions'"
    ):
        measure(net(), X, what="latency", repetition=3)
    with pytest.raises(NothingToDoError, match="measure: what= names no measure; known: 'accuracy'"):
        measure(net(), what=[])
    with pytest.raises(MaskMismatchError, match="mask of 'w': Sequential has no such parameter"):
        measure(net(), masks=sc.Masks({"w": torch.ones(1, dtype=torch.bool)}))
    with pytest.raises(DataError, match=r"expected a torch\.nn\.Module to measure, got function"):
        latency(lambda x: x, X)


def test_the_model_is_left_as_found():
    model = net()
    model[1].eval()
    x = X + 1
    model(x).sum().backward()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    gradient = model[0].weight.grad
    masks = sc.Masks({"5.weight": torch.zeros(3, 16, dtype=torch.bool)})
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    measure(model, x, BATCHES, masks=masks, repetitions=2, threads=1)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model] == [True, False, True, True, True, True]
    assert model[0].weight.grad is gradient
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


# -- params, sparsity, size ----------------------------------------------------------------------------------
def test_params_counts_a_shared_tensor_once_and_buffers_apart():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[1].weight = model[0].weight
    table = params(model)
    assert table["params"].value == 9 + 3 + 3 + 6 == sum(table["params"].per_layer.values())
    assert table["params"].notes == ("7 elements of buffers beside them",)
    assert table["nonzeros"].value == 21 - 3  # the batch norm's shift begins at 0


def test_nonzeros_with_masks_that_were_not_applied():
    model = nn.Linear(4, 1)
    model.weight.data = torch.tensor([[0.0, 1.0, 2.0, float("nan")]])
    model.bias.data.fill_(1.0)
    masks = sc.Masks({"weight": torch.tensor([[True, False, True, True]])})
    assert params(model)["nonzeros"].per_layer == {"weight": 3, "bias": 1}
    assert params(model, masks=masks)["nonzeros"].per_layer == {"weight": 2, "bias": 1}
    masks.apply_(model)
    assert params(model)["nonzeros"].value == 3


def test_sparsity_of_masks_of_weights_and_of_a_model_without_layers():
    model = net()
    masks = sc.Masks({"0.weight": torch.arange(36).reshape(4, 1, 3, 3) % 4 == 0})
    row = sparsity(model, masks=masks)["sparsity"]
    assert row.value == 0.75
    assert row.per_layer == {"0.weight": 0.75}
    masks.apply_(model)
    row = sparsity(model)["sparsity"]
    assert row.value == 27 / (36 + 48)
    assert row.per_layer == {"0.weight": 0.75, "5.weight": 0.0}
    norm = sparsity(nn.BatchNorm1d(4))["sparsity"]
    assert (norm.value, "all parameters" in norm.definition) == (0.5, True)


def test_size_is_that_of_the_file_really_written(tmp_path):
    for model in (net(), net().half(), nn.Flatten()):
        stream = io.BytesIO()
        torch.save(model.state_dict(), stream)
        row = size(model)["size"]
        assert row.value == len(stream.getvalue())
    row = size(net())["size"]
    assert row.per_layer["0.weight"] == 36 * 4
    assert sum(row.per_layer.values()) < row.value
    path = tmp_path / "m.pt"
    path.write_bytes(stream.getvalue())
    assert file_size(path)["file_size"].value == path.stat().st_size
    with pytest.raises(DataError, match=r"no\.pt: no such file.*; save one first"):
        file_size(tmp_path / "no.pt")


def test_a_formula_is_called_one():
    assert formula_size(10.0, "bits / 8")["size_formula"].definition == "FORMULA, not a file: bits / 8"
    with pytest.raises(OptionError, match="say which formula gave the value"):
        formula_size(10.0, "")


# -- latency -------------------------------------------------------------------------------------------------
class Sleeper(nn.Module):
    def __init__(self, seconds: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seconds = seconds
        type(self).calls = 0  # of the class: what a forward writes into the module is put back

    def forward(self, x):
        type(self).calls += 1
        assert not self.training
        assert not torch.is_grad_enabled()
        if self.seconds:
            time.sleep(self.seconds)
        return x


def test_latency_of_a_known_duration():
    model = Sleeper(0.004)
    row = latency(model, torch.zeros(3, 2), repetitions=9)["latency"]
    assert row.unit == "ms"
    assert 4.0 <= row.value < 400
    assert len(row.trials) == 9
    assert row.value == sorted(row.trials)[4]
    assert row.spread["low"] <= row.spread["q25"] <= row.value <= row.spread["q75"] <= row.spread["high"]
    assert "batch of 3, 9 repetitions" in row.definition
    assert "thread" in row.notes[0]
    assert 6 + 9 <= model.calls <= 30 + 9


def test_short_passes_are_read_several_at_a_time():
    model = Sleeper(0.0)
    row = latency(model, torch.zeros(1), repetitions=3, warmup=2)["latency"]
    assert model.calls > 3 * 5 + 2
    assert row.value < 1.0
    assert any(
        "with 3 readings the interval holds the median with 75% confidence only" in n for n in row.notes
    )


def test_compare_takes_turns_and_gives_the_ratio():
    order = []

    class Logged(Sleeper):
        def forward(self, x):
            order.append(self.seconds)
            return super().forward(x)

    slow, fast = Logged(0.02), Logged(0.005)
    table = compare(slow, fast, torch.zeros(1), repetitions=16, warmup=1, names=("dense", "small"))
    assert order[2:] == [0.02, 0.005, 0.005, 0.02] * 8
    assert [row.context.get("variant") for row in table] == ["dense", "small", None]
    row = table["speedup"]
    assert 1.5 < row.value < 12
    assert row.spread["low"] > 1
    assert row.trials == tuple(a / b for a, b in zip(table[0].trials, table[1].trials))
    assert not row.notes
    assert "time of dense / time of small" in row.definition


def test_compare_says_when_no_difference_was_shown():
    table = compare(Sleeper(0.002), Sleeper(0.002), torch.zeros(1), repetitions=15, warmup=1)
    low, high = table["speedup"].spread["low"], table["speedup"].spread["high"]
    assert ("the interval contains 1: no difference shown" in table["speedup"].notes) == (low <= 1 <= high)


def test_latency_errors():
    model = Sleeper(0.0)
    with pytest.raises(OptionError, match=r"latency: expected at least 1 \(repetitions=\), got 0"):
        latency(model, X, repetitions=0)
    with pytest.raises(OptionError, match="latency: expected at least 1 thread, got 0"):
        latency(model, X, threads=0)
    with pytest.raises(OptionError, match="compare: both models are the same object"):
        compare(model, model, X)


@pytest.mark.parametrize(("count", "rank"), [(6, 1), (9, 2), (15, 4), (25, 8), (51, 19), (100, 40)])
def test_interval_of_the_median_against_the_published_ranks(count, rank):
    low, high, reached = median_interval(range(1, count + 1))
    assert (low, high) == (rank, count + 1 - rank)
    assert reached >= 0.95
    inner = sum(math.comb(count, k) for k in range(rank + 1, count - rank)) / 2**count
    assert inner < 0.95, "a narrower interval would not do"


def test_interval_of_few_readings_says_what_it_reaches():
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0, 0.75)
    assert median_interval([1.0]) == (1.0, 1.0, 0.0)


# -- memory --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_filter_sums_of_a_grouped_transposed_convolution_by_hand(groups):
    """Weight [in, out / groups]: filter g * (out / groups) + k is column k of the inputs of group g alone."""
    layer = nn.ConvTranspose2d(6, 6, 1, groups=groups, bias=False)
    outs, ins = 6 // groups, 6 // groups
    with torch.no_grad():
        layer.weight.copy_((torch.arange(6.0)[:, None] * 10 + torch.arange(outs) - 20).reshape(6, outs, 1, 1))
    by_hand = [
        sum(abs(10.0 * (group * ins + i) + k - 20) for i in range(ins))
        for group in range(groups)
        for k in range(outs)
    ]
    (row,) = filter_sums(nn.Sequential(layer))
    assert row.context["sums"] == by_hand
    x = torch.zeros(1, 6, 1, 1)
    x[:, :ins] = 1  # only the first group's filters see it
    silent = (layer(x)[0, :, 0, 0] == 0).tolist()
    assert silent[outs:] == [True] * (6 - outs)


def test_memory_by_hand():
    model = nn.Sequential(nn.Linear(10, 1000), nn.ReLU(), nn.Linear(1000, 10))
    row = memory(model, torch.zeros(8, 10))["memory"]
    held = (10_000 + 1000 + 10_000 + 10) * 4
    assert row.per_layer == {"weights and buffers": held, "forward": 2 * 8 * 1000 * 4}
    assert row.value == held + 64_000
    inplace = nn.Sequential(model[0], nn.ReLU(inplace=True), model[2])
    assert memory(inplace, torch.zeros(8, 10))["memory"].per_layer["forward"] == 8 * 1000 * 4 + 8 * 10 * 4
    assert memory(model, torch.zeros(8, 10))["memory"] == row, "the same every time"


def test_memory_counts_a_shared_weight_once_and_frees_what_is_freed():
    class Deep(nn.Module):
        def __init__(self, depth):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(64, 64))
            self.again = self.weight
            self.depth = depth

        def forward(self, x):
            for _ in range(self.depth):
                x = x @ self.weight
            return x

    shallow, deep = (memory(Deep(d), torch.zeros(4, 64))["memory"] for d in (2, 50))
    assert shallow.per_layer == {"weights and buffers": 64 * 64 * 4, "forward": 2 * 4 * 64 * 4}
    assert deep.value == shallow.value


# -- accuracy ------------------------------------------------------------------------------------------------
def test_top_1_by_hand():
    outputs = torch.tensor([[1.0, 3.0, 2.0], [5.0, 1.0, 1.0], [0.0, 0.0, 1.0], [1.0, 2.0, 0.0]])
    batches = [(outputs[:3], torch.tensor([1, 0, 0])), (outputs[3:], torch.tensor([1]))]
    row = accuracy(nn.Identity(), batches)["accuracy"]
    assert row.value == 0.75
    assert "(4 targets)" in row.definition


def test_top_1_over_pixels_dicts_and_generators():
    class Hugging(nn.Module):
        def forward(self, input_ids):
            from types import SimpleNamespace

            return SimpleNamespace(logits=input_ids)

    assert (
        accuracy(Hugging(), [{"input_ids": torch.eye(2), "labels": torch.tensor([0, 0])}])["accuracy"].value
        == 0.5
    )
    pixels = torch.zeros(1, 2, 4, 4)
    pixels[:, 1, :2] = 1
    targets = torch.ones(1, 4, 4, dtype=torch.long)
    assert accuracy(nn.Identity(), iter([(pixels, targets)]))["accuracy"].value == 0.5


def test_evaluation_mode_and_gradients():
    seen = []

    def evaluate(model):
        seen.append((model.training, torch.is_grad_enabled()))
        return torch.tensor(2.5)

    model = net()
    assert accuracy(model, evaluate)["score"].value == 2.5
    assert model.training
    assert seen == [(False, True)]
    table = accuracy(model, lambda m: {"loss": 1.5, "kld": 2})
    assert (table["loss"].value, table["kld"].value) == (1.5, 2)
    with torch.no_grad():
        accuracy(model, BATCHES)
    assert not model[0].weight.grad


def test_accuracy_errors():
    model = net()
    with pytest.raises(DataError, match="the data holds no batch; an iterator that was used before is empty"):
        accuracy(model, [])
    with pytest.raises(
        DataError, match=r"expected a function of the model or an iterable of batches .* got int"
    ):
        accuracy(model, 3)
    with pytest.raises(
        DataError, match=r"expected batches \(inputs, targets\) or a dict with 'labels', got Tensor"
    ):
        accuracy(model, [X])
    with pytest.raises(DataError, match=r"expected outputs of shape .*, got \(2, 3\) and \(2, 3\)"):
        accuracy(model, [(X, torch.zeros(2, 3))])
    with pytest.raises(
        DataError, match="expected evaluate to return a number or a dict of numbers, got str for 'score'"
    ):
        accuracy(model, lambda m: "good")
    with pytest.raises(DataError, match="evaluate returned an empty dict; return at least one number"):
        accuracy(model, lambda m: {})
    assert model.training


def test_an_evaluate_that_raises_leaves_the_mode():
    model = net()
    with pytest.raises(ZeroDivisionError):
        accuracy(model, lambda m: 1 / 0)
    assert model.training


def test_a_reading_that_was_interrupted_is_taken_again(monkeypatch):
    """Every other reading something else has the processor: none of those counts, as long as there are retakes."""
    seen = {"wall": 0.0, "own": 0.0, "calls": 0}

    class Clock:
        @staticmethod
        def perf_counter():
            return seen["wall"]

        @staticmethod
        def process_time():
            return seen["own"]

    class Model(nn.Module):
        def forward(self, x):
            seen["calls"] += 1
            slow = seen["calls"] % 2 == 0
            seen["own"] += 0.002
            seen["wall"] += 0.010 if slow else 0.002
            return x

    monkeypatch.setattr(sys.modules["secateur.metrics.latency"], "time", Clock)
    monkeypatch.setattr(sys.modules["secateur.metrics.latency"], "resource", None)
    table = latency(Model(), torch.zeros(1, 2), repetitions=9, warmup=1)
    assert table["latency"].trials == pytest.approx([2.0] * 9)
    monkeypatch.setattr(sys.modules["secateur.metrics.latency"], "_RETAKES", 0)
    table = latency(Model(), torch.zeros(1, 2), repetitions=8, warmup=1)
    assert sorted(table["latency"].trials) == pytest.approx([2.0] * 4 + [10.0] * 4)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be kept on a core here")
def test_one_thread_is_kept_on_its_core_for_a_reading_only():
    before, seen = os.sched_getaffinity(0), []

    class Model(nn.Module):
        def forward(self, x):
            seen.append(len(os.sched_getaffinity(0)))
            return x

    found = latency(Model(), torch.zeros(1, 2), repetitions=2, warmup=1, threads=1)["latency"]
    assert set(seen) == {1}
    assert "each on one core" in found.notes[0]
    assert os.sched_getaffinity(0) == before
    seen.clear()
    latency(Model(), torch.zeros(1, 2), repetitions=2, warmup=1, threads=2)
    assert set(seen) == {len(before)}


class Shared:
    """A clock of a machine that others use: a pass is interrupted for `waits` seconds after each `slice` of work."""

    def __init__(self, slice_: float, waits: float):
        self.slice, self.waits = slice_, waits
        self.wall = self.own = self.since = 0.0

    def work(self, seconds: float) -> None:
        self.own += seconds
        self.wall += seconds
        self.since += seconds
        while self.since >= self.slice:
            self.since -= self.slice
            self.wall += self.waits

    def perf_counter(self) -> float:
        return self.wall

    def process_time(self) -> float:
        return self.own


class Working(nn.Module):
    def __init__(self, clock: Shared, seconds: float):
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.clock.work(self.seconds)
        return x


def test_on_a_busy_processor_its_own_times_are_compared_and_a_note_says_so(monkeypatch) -> None:
    """12 ms against 3 ms of work; of the long pass every reading waits 30 ms, of the short one every other."""
    clock = Shared(0.006, 0.015)
    monkeypatch.setattr(sys.modules["secateur.metrics.latency"], "time", clock)
    monkeypatch.setattr(sys.modules["secateur.metrics.latency"], "resource", None)
    monkeypatch.setattr(sys.modules["secateur.metrics.latency"], "_RETAKES", 20)
    table = compare(Working(clock, 0.012), Working(clock, 0.003), torch.zeros(1, 2), repetitions=9, warmup=1)
    speedup = table["speedup"]
    assert speedup.value == pytest.approx(4.0)
    assert speedup.spread["low"] == speedup.spread["high"] == pytest.approx(4.0)
    assert speedup.definition.startswith("processor time of a / processor time of b")
    assert (
        "the processor was busy with other work, so its own times are compared; by the clock"
        in speedup.notes[0]
    )
    assert "9 of 9 readings were interrupted by other work; processor time: 12 ms" in table[0].notes


def test_on_a_quiet_processor_the_clock_is_compared(monkeypatch) -> None:
    clock = Shared(1e9, 0.0)
    monkeypatch.setattr(sys.modules["secateur.metrics.latency"], "time", clock)
    monkeypatch.setattr(sys.modules["secateur.metrics.latency"], "resource", None)
    table = compare(Working(clock, 0.012), Working(clock, 0.003), torch.zeros(1, 2), repetitions=9, warmup=1)
    assert table["speedup"].value == pytest.approx(4.0)
    assert table["speedup"].definition.startswith("time of a / time of b")
    assert not any("interrupted" in note for row in table for note in row.notes)


def test_several_threads_that_get_the_processor_of_one_are_interrupted(monkeypatch) -> None:
    """Two threads at best do two seconds of work in one; a reading in which they did 1.2 is taken again."""

    class Threads(Working):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.clock.own += 0.004
            self.clock.wall += 0.002 if self.calls % 2 else 0.0034
            return x

    clock = Shared(1e9, 0.0)
    monkeypatch.setattr(sys.modules["secateur.metrics.latency"], "time", clock)
    monkeypatch.setattr(sys.modules["secateur.metrics.latency"], "resource", None)
    found = latency(Threads(clock, 0.0), torch.zeros(1, 2), repetitions=9, warmup=2)["latency"]
    assert found.trials == pytest.approx([2.0] * 9)


def test_every_printed_row_is_a_name_that_can_be_asked_for():
    for evaluate in (BATCHES, lambda model: 0.5):
        table = sc.measure(
            net(), X, evaluate, what=["accuracy", "params", "macs", "size", "sparsity", "architecture"]
        )
        for row in table.names():
            assert row in sc.measure(net(), X, evaluate, what=[row]).names()
    assert sc.measure(net(), what=["nonzeros", "params"]).names() == ["params", "nonzeros"]


def test_a_model_that_waits_is_compared_by_the_clock(monkeypatch) -> None:
    """12 and 3 ms of waiting beside 2 ms of work each: nobody takes the processor away."""

    class Waiting(Working):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.clock.work(0.002)
            self.clock.wall += self.seconds
            return x

    clock, switches = Shared(1e9, 0.0), [0, 0]
    monkeypatch.setattr(sys.modules["secateur.metrics.latency"], "time", clock)

    def waits() -> tuple[int, int]:
        switches[0] += 1
        switches[1] += busy
        return switches[0], switches[1]

    monkeypatch.setattr(sys.modules["secateur.metrics.latency"], "switches", waits)
    models = Waiting(clock, 0.012), Waiting(clock, 0.003)
    busy = 0
    speedup = compare(*models, torch.zeros(1, 2), repetitions=9, warmup=1)["speedup"]
    assert speedup.value == pytest.approx(14 / 5)
    assert speedup.notes == ()
    busy = 1
    speedup = compare(*models, torch.zeros(1, 2), repetitions=9, warmup=1)["speedup"]
    assert speedup.value == pytest.approx(14 / 5)
    assert "do not rely on this ratio" in speedup.notes[0]


def test_times_of_different_numbers_of_threads_do_not_stand_for_the_clock(monkeypatch) -> None:
    reading = sys.modules["secateur.metrics.latency"]._Reading
    one, two = [reading(4.0, 4.0, True, False)] * 3, [reading(2.0, 4.0, False, False)] * 3
    tells = sys.modules["secateur.metrics.latency"]._own_tells
    assert tells(one, one)
    assert tells(two, two)
    assert not tells(one, two)
    assert not tells([reading(4.0, 0.0, True, False)], one)

"""scan: the numbers of the naive loop, the model left to the last bit, allocations worked by hand."""

from __future__ import annotations

import itertools
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur as sc
from secateur.allocation.knapsack import spend
from secateur.errors import BudgetNotMetError, DataError, OptionError, StoreError
from secateur.metrics.accuracy import top_1
from secateur.sensitivity import distributed
from secateur.sensitivity.distributed import on_threads, worth_threads
from secateur.sensitivity.evaluation import Evaluation, EvaluationJob, MaskedEvaluation
from secateur.sensitivity.prefix_cache import PrefixCache
from secateur.sensitivity.scan import Allocation, Cell, Scan, ScanOptions, scan


class Residual(nn.Module):
    """Functional, in-place and shared parts between the modules: what a cache must not trip over."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.head = nn.Linear(8, 5)
        self.late = nn.Parameter(torch.randn(5, 5))

    def forward(self, x):
        x = self.act(self.norm(self.stem(x)))
        y = self.a(x)
        y += x  # in place on the output of a finished module
        y = self.act(y)
        z = F.relu_(self.b(y))
        z = self.b(z) + y  # a module that runs twice
        return F.linear(self.head(z.mean((2, 3))), self.late)


def randomised(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model


@pytest.fixture
def model():
    torch.manual_seed(0)
    return randomised(Residual())


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 3, 9, 9, generator=generator), torch.randint(0, 5, (size,), generator=generator))
        for size in (16, 16, 7)
    ]


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("granularity", ["element", "kernel", "filter"])
def test_equals_the_naive_loop_and_leaves_no_trace(model, batches, granularity):
    model.train()
    before = state(model)
    found = scan(model, batches, granularity, [0.25, 0.5, 0.75], options=ScanOptions(parameters=["late"]))
    assert found.dense == top_1(model, batches)[0]
    assert [cell.name for cell in found.cells[::3]] == [
        "late", "stem.weight", "a.weight", "b.weight", "head.weight",
    ]  # fmt: skip
    for cell in found.cells:
        alone = sc.budget.PerLayer({cell.name: cell.sparsity})
        masks = sc.prune(
            model, "l2", granularity, alone, options=sc.PruneOptions(parameters=["late"], allow_collapse=True)
        )
        assert top_1(masks.apply(model), batches)[0] == cell.value, cell
    assert found.skipped > 0
    assert model.training
    assert "forward" not in model.__dict__
    after = state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert list(before) == list(after)


def test_coupled_channels_are_scanned_as_one_and_equal_the_naive_loop(batches):
    """Groups that several layers share: what comes before the first of them is kept, whatever runs in between."""
    torch.manual_seed(2)

    class Coupled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
            self.a = nn.Sequential(nn.Conv2d(6, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
            self.b = nn.Conv2d(4, 6, 3, padding=1)  # joins the stem's channels through the sum
            self.head = nn.Linear(6, 5)

        def forward(self, x):
            x = self.stem(x)
            return self.head((x + self.b(self.a(x))).relu().mean((2, 3)))

    model = randomised(Coupled()).eval()
    before = state(model)
    example = batches[0][0][:1]
    found = scan(model, batches, "channel", [0.34, 0.67], example=example)
    assert [cell.name for cell in found.cells] == ["stem.0", "stem.0", "a.0", "a.0"]
    for cell in found.cells:
        budget = sc.budget.PerLayer({cell.name: cell.sparsity})
        masks = sc.prune(
            model, "l2", "channel", budget, example=example, options=sc.PruneOptions(allow_collapse=True)
        )
        assert "head.weight" in masks if cell.name == "stem.0" else "b.weight" in masks
        assert top_1(masks.apply(model), batches)[0] == cell.value
        assert cell.weights == masks.numel - masks.kept
    assert found.skipped > 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("limit", [0, 30_000, 1 << 30])
def test_replayed_outputs_are_the_computed_ones_to_the_last_bit(model, batches, limit):
    model.eval()

    def outputs():
        with torch.no_grad():
            return torch.cat([model(x) for x, _ in batches])

    names = [name for name, parameter in model.named_parameters() if parameter.dim() > 1]
    variants = {name: [torch.randn_like(model.get_parameter(name)) for _ in range(3)] for name in names}
    wanted = {}
    for name, index in itertools.product(names, range(3)):
        saved = model.get_parameter(name).data
        model.get_parameter(name).data = variants[name][index]
        wanted[name, index] = outputs()
        model.get_parameter(name).data = saved
    with PrefixCache(model, limit) as replay:
        replay.first(outputs)
        for name in sorted(names, key=lambda name: replay.position([name])):
            parameter = model.get_parameter(name)
            saved = parameter.detach().clone()
            with replay.before([name]):
                for index in range(3):
                    parameter.data.copy_(variants[name][index])
                    assert torch.equal(replay.run(outputs), wanted[name, index]), (name, index)
            parameter.data.copy_(saved)
        assert replay.peak <= limit
        assert (replay.skipped > 0) == (limit > 0)


def test_other_inputs_or_training_mode_are_computed_afresh(model, batches):
    model.eval()
    shift = [0.0]

    def total():
        with torch.no_grad():
            return float(sum(model(x + shift[0]).sum() for x, _ in batches))

    with PrefixCache(model) as replay:
        dense = replay.first(total)
        with replay.before(["head.weight"]):
            assert replay.run(total) == dense
            shift[0] = 1.0
            skipped = replay.skipped
            assert replay.run(total) != dense
            assert replay.skipped == skipped
            shift[0] = 0.0
            assert replay.run(total) == dense
            assert replay.skipped > skipped
            skipped = replay.skipped
            model.train()
            assert replay.run(total) != dense
            assert replay.skipped == skipped


def test_a_parameter_read_by_an_outer_module_is_not_cached_past_its_use():
    class Peeking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = x @ self.second.weight  # before the module that owns it runs
            return self.second(self.first(x))

    torch.manual_seed(0)
    model, x = Peeking().eval(), torch.randn(3, 4)

    def run():
        with torch.no_grad():
            return model(x)

    with PrefixCache(model) as replay:
        replay.first(run)
        with replay.before(["second.weight"]):
            for _ in range(3):
                model.second.weight.data.mul_(1.5)
                assert torch.equal(replay.run(run), model.second(model.first(x @ model.second.weight)))


def test_equal_masks_are_evaluated_once_and_a_stopped_scan_goes_on(tmp_path, batches):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    calls = []

    def evaluate(model):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return top_1(model, batches)[0]

    before = state(model)
    path = tmp_path / "scan.json"
    # 4 filters: 0.45 and 0.5 both remove two; 0.1 removes none
    levels = [0.1, 0.25, 0.45, 0.5]
    with pytest.raises(KeyboardInterrupt):
        scan(model, evaluate, "filter", levels, options=ScanOptions(resume=path))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    calls[:] = [1] * 10
    found = scan(model, evaluate, "filter", levels, options=ScanOptions(resume=path))
    # dense again, then what is missing: of 1 + 2 + 3 values (5 rows: 0, 1, 2, 2 of them) three were known
    assert len(calls) - 10 == 1 + 2
    assert [cell.removed for cell in found.cells] == [0, 1, 2, 2, 0, 1, 2, 2]
    assert found.cells[3].repeated
    assert found.cells[0].value == found.dense
    assert found == scan(model, evaluate, "filter", levels)
    with torch.no_grad():
        model[0].weight += 1
    with pytest.raises(StoreError, match="holds another scan"):
        scan(model, evaluate, "filter", levels, options=ScanOptions(resume=path))


@pytest.mark.parametrize("other", ["criterion", "granularity", "subset", "batches"])
def test_values_of_a_scan_with_other_settings_are_refused(tmp_path, other):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3))
    batches = [(torch.randn(8, 4), torch.randint(0, 3, (8,)))] * 2
    options = ScanOptions(resume=tmp_path / "scan.json")
    scan(model, batches, "filter", [0.5], criterion="l2", options=options)
    told = {"criterion": "l2", "granularity": "filter"} | ({other: "l1"} if other == "criterion" else {})
    told |= {other: "element"} if other == "granularity" else {}
    options = replace(options, subset=4) if other == "subset" else options
    with pytest.raises(StoreError, match="holds another scan"):
        scan(model, batches[: 1 if other == "batches" else 2], levels=[0.5], **told, options=options)


@pytest.mark.parametrize(("dtype", "bytes_each"), [(torch.float32, 4), (torch.float64, 8)])
def test_bytes_of_a_layer_are_those_of_its_type(dtype, bytes_each):
    model = nn.Sequential(nn.Linear(4, 3, dtype=dtype), nn.Linear(3, 2, dtype=dtype))
    found = scan(model, [(torch.randn(8, 4, dtype=dtype), torch.randint(0, 2, (8,)))], "element", [0.5])
    assert found.costs["params"] == {"0.weight": 12.0, "1.weight": 6.0}
    assert found.costs["size"] == {"0.weight": 12.0 * bytes_each, "1.weight": 6.0 * bytes_each}


def test_subset_has_an_interval(model, batches):
    found = scan(model, batches, "filter", [0.5], options=ScanOptions(subset=20))
    # Wilson, 95 %, n = 20: worked for the dense share by hand
    p, n, z = found.dense, 20, 1.959963984540054
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert found.dense_interval == pytest.approx(half)
    assert "95 % interval" in str(found)
    with pytest.raises(DataError, match="holds 39 examples, asked for 40"):
        scan(model, batches, "filter", [0.5], options=ScanOptions(subset=40))
    with pytest.raises(OptionError, match="a function decides itself"):
        scan(model, lambda model: 0.5, "filter", [0.5], options=ScanOptions(subset=4))


def made(values, costs=None):
    cells = [
        Cell(name, sparsity, 10, round(10 * sparsity), 0, value)
        for name, curve in values.items()
        for sparsity, value in curve.items()
    ]
    return Scan(tuple(cells), dense=0.9, costs={"macs": costs} if costs else {})


def test_floor_takes_the_highest_level_before_the_first_dip():
    found = made({"a": {0.1: 0.8, 0.2: 0.4, 0.3: 0.7}, "b": {0.1: 0.3, 0.2: 0.9, 0.3: 0.9}})
    assert found.allocate(floor=0.5).sparsities == {"a": 0.1, "b": 0.0}
    assert found.allocate(floor=0.5).predicted == pytest.approx(0.8)
    assert found.allocate(floor=0.5).budget == sc.budget.PerLayer({"a": 0.1})


def test_keep_spends_where_it_hurts_least():
    found = made({"a": {0.5: 0.8, 0.9: 0.1}, "b": {0.5: 0.7, 0.9: 0.5}}, {"a": 100.0, "b": 100.0})
    # 100 of 200 may stay. (a .5, b .5) loses .1 + .2; (a 0, b .9) costs 110; so the first.
    assert found.allocate(keep=0.5).sparsities == {"a": 0.5, "b": 0.5}
    # 60 of 200: (a .5, b .9) loses .1 + .4, (a .9, b .5) loses .8 + .2
    allocation = found.allocate(keep=0.3)
    assert allocation == Allocation({"a": 0.5, "b": 0.9}, pytest.approx(0.4), pytest.approx(0.3), "macs")
    with pytest.raises(BudgetNotMetError, match=r"macs cannot be brought to 0.05 .* 0.1000 remains"):
        found.allocate(keep=0.05)
    with pytest.raises(OptionError, match=r"either floor= .* or keep="):
        found.allocate()
    with pytest.raises(OptionError, match="knows no costs in 'params'"):
        found.allocate(keep=0.5, cost="params")


def test_spend_is_as_good_as_trying_everything():
    generator = torch.Generator().manual_seed(3)
    for trial in range(30):
        layers = {}
        for name in "abcd":
            costs = torch.randint(0, 50, (4,), generator=generator).tolist()
            losses = torch.randint(0, 20, (4,), generator=generator).tolist()
            layers[name] = list(zip(map(float, costs), map(float, losses), strict=True))
        limit = float(60 + trial)
        options = [
            (sum(c for c, _ in chosen), sum(loss for _, loss in chosen))
            for chosen in itertools.product(*layers.values())
        ]
        feasible = [loss for cost, loss in options if cost <= limit]
        if not feasible:
            with pytest.raises(BudgetNotMetError, match="cheapest options cost"):
                spend(layers, limit)
            continue
        # whole-number costs: choose a grid on which nothing is rounded
        room = limit - sum(min(c for c, _ in layer) for layer in layers.values())
        picked = spend(layers, limit, steps=max(1, int(room)))
        assert sum(layers[name][index][0] for name, index in picked.items()) <= limit
        assert sum(layers[name][index][1] for name, index in picked.items()) == min(feasible)


def test_save_and_load(model, batches, tmp_path):
    found = scan(model, batches, "filter", [0.5])
    found.save(tmp_path / "scan.json")
    assert Scan.load(tmp_path / "scan.json") == found
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("levels", [[], [0.5, 0.5], [0.5, 0.1], [1.0], ["0.5"]])
def test_levels_are_checked(model, batches, levels):
    with pytest.raises(OptionError):
        scan(model, batches, "filter", levels)


@pytest.mark.slow
def test_processes_that_share_the_layers_find_the_same(model, batches, tmp_path):
    seen = []
    one = scan(model, batches, "filter", [0.25, 0.5])
    options = ScanOptions(
        workers=2, resume=tmp_path / "scan.json", progress=lambda *found: seen.append(found[:2])
    )
    two = scan(model, batches, "filter", [0.25, 0.5], options=options)
    assert two == one
    assert two.how == "2 processes"
    assert seen == [(i, 1 + len(one.cells)) for i in range(1, 2 + len(one.cells))]
    with pytest.raises(OptionError, match="define them at the top of a module"):
        scan(model, lambda model: 0.5, "filter", [0.25], options=ScanOptions(workers=2))
    with pytest.raises(OptionError, match="workers of at least 1"):
        scan(model, batches, "filter", [0.25], options=ScanOptions(workers=0))


def test_threads_that_share_the_layers_find_the_same(model, batches, monkeypatch):
    one = scan(model, batches, "filter", [0.25, 0.5], options=ScanOptions(workers=1))
    monkeypatch.setattr(distributed, "_PAYS_OFF", 0.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    before, seen = model.state_dict(), []
    kept = {name: tensor.clone() for name, tensor in before.items()}
    options = ScanOptions(progress=lambda *found: seen.append(found[:2]))
    found = scan(model, batches, "filter", [0.25, 0.5], options=options)
    assert found == one
    assert found.how == "3 threads"
    assert len(seen) == 1 + len(one.cells)
    assert all(torch.equal(before[name], tensor) for name, tensor in kept.items())


def test_threads_are_started_only_where_they_pay_off(model, batches, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    ours, theirs = Evaluation.of(batches), Evaluation.of(lambda model: 0.5)
    assert worth_threads(model, ours, 8, 60.0, 1 << 20) == 4
    assert worth_threads(model, ours, 3, 60.0, 1 << 20) == 3
    assert worth_threads(model, ours, 8, 1.0, 1 << 20) == 1
    assert worth_threads(model, theirs, 8, 60.0, 1 << 20) == 1
    assert worth_threads(model, ours, 8, 60.0, 1 << 60) == 1  # more memory than there is


def test_an_error_in_a_thread_is_raised(model, batches, monkeypatch):
    def broken(*_):
        raise RuntimeError("no more")

    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(MaskedEvaluation, "values", broken)
    jobs = [EvaluationJob(["a"], [])] * 2
    with pytest.raises(RuntimeError, match="no more"):
        list(on_threads(model, Evaluation.of(batches), jobs, 2, 1 << 20, True))


def test_no_thread_runs_the_model_before_all_have_prepared(model, batches, monkeypatch):
    real, log = distributed.repeated, []

    @contextmanager
    def slow(*given):
        with real(*given) as now:
            time.sleep(0.1)
            log.append("prepared")
            yield now

    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(distributed, "repeated", slow)
    monkeypatch.setattr(MaskedEvaluation, "values", lambda *_: log.append("run") or iter(()))
    jobs = [EvaluationJob(["a"], [])] * 2
    assert list(on_threads(model, Evaluation.of(batches), jobs, 2, 1 << 20, True)) == []
    assert log == ["prepared", "prepared", "run", "run"]


def test_a_first_order_estimate_stands_beside_the_measured_value(model, batches):
    found = scan(model, batches, "filter", [0.25, 0.5], options=ScanOptions(estimate="taylor", only="head"))
    assert [cell.name for cell in found.cells] == ["head.weight"] * 2
    # worked by hand: |w * dL/dw| of the rows of least norm, summed
    model.eval().zero_grad()
    count = sum(len(y) for _, y in batches)
    sum(F.cross_entropy(model(x), y, reduction="sum") / count for x, y in batches).backward()
    product = (model.head.weight * model.head.weight.grad).abs().sum(1).detach()
    order = model.head.weight.norm(dim=1).argsort()
    for cell in found.cells:
        assert cell.estimate == pytest.approx(float(product[order[: cell.removed]].sum()), rel=1e-4)
    assert "of what goes (first order, in units of the loss)" in found.table
    assert found.cells[0].estimate < found.cells[1].estimate


def test_size_and_latency_are_costs_too(monkeypatch):
    cells = [
        Cell("a", 0.5, 8, 4, 0, 0.8, time=0.9),
        Cell("b", 0.5, 8, 4, 0, 0.7, time=0.6),
    ]
    found = Scan(tuple(cells), dense=0.9, costs={"size": {"a": 100.0, "b": 100.0}})
    # a alone saves a tenth of the time, b alone four tenths
    assert found.allocate(keep=0.6, cost="latency").sparsities == {"a": 0.0, "b": 0.5}
    assert found.allocate(keep=0.5, cost="latency").cost == pytest.approx(0.5)
    # a bit for each of eight units says which are gone: one byte beside the 50 that stay
    assert found.allocate(keep=0.76, cost="size").cost == pytest.approx(151 / 200)
    assert found.allocate(keep=0.75, cost="size").sparsities == {"a": 0.5, "b": 0.5}
    untimed = Scan((Cell("a", 0.5, 8, 4, 0, 0.8),), dense=0.9)
    with pytest.raises(OptionError, match="scan read no times; scan with repetitions="):
        untimed.allocate(keep=0.5, cost="latency")


def test_times_of_the_shrunk_model_are_read_for_every_cell(batches, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(150, 5))
    asked = []

    def time(self, chosen, trials, threads, again=False):
        asked.append({name: int((~keep).sum()) for name, keep in chosen.items()})
        return 1.0, 1.0 - 0.01 * sum(asked[-1].values())

    monkeypatch.setattr("secateur.pruning.cost.CostModel.time", time)
    found = scan(model, batches, "channel", [0.34, 0.67], options=ScanOptions(repetitions=5))
    assert asked == [{"0": 2, "2": 0}, {"0": 4, "2": 0}, {"0": 0, "2": 2}, {"0": 0, "2": 4}]
    assert [cell.time for cell in found.cells] == pytest.approx([0.98, 0.96, 0.98, 0.96])
    assert found.allocate(keep=0.94, cost="latency").cost == pytest.approx(0.94)

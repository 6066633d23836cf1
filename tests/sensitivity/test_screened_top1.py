"""ScreenedTop1: the very counts of the model, whatever rounding does to outputs that lie close together."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.sensitivity.folded_forward import FoldedForward, record
from secateur.sensitivity.scan import ScanOptions, scan
from secateur.sensitivity.screened_top1 import ScreenedTop1


class Net(nn.Module):
    """What networks are made of: a shortcut, in-place sums, views, a bare parameter, a module used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.act, self.pool = nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2)
        self.head, self.scale = nn.Linear(32, 6), nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, x):
        x = self.act(self.norm(self.stem(x)))
        y = self.a(x)
        y += x
        z = self.act(self.b(F.relu(y, inplace=False)))
        z = torch.cat([z[:, :4], y[:, 4:]], 1)
        return self.head(self.pool(z).view(x.size(0), -1)) * self.scale


def made(count=3, size=40, seed=0):
    torch.manual_seed(seed)
    model = Net().eval()
    with torch.no_grad():
        model.norm.running_mean.normal_(0, 0.3)
        model.norm.running_var.uniform_(0.5, 2.0)
        model.norm.bias.normal_()
    return model, [(torch.randn(size, 3, 9, 9), torch.randint(0, 6, (size,))) for _ in range(count)]


def right(model, batches):
    with torch.no_grad():
        return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("limit", [0, 200_000, 1 << 30])
def test_counts_are_the_models_with_any_part_changed_and_any_memory(half, limit):
    model, batches = made()
    screened = ScreenedTop1.of(model, batches, limit)
    assert isinstance(screened, ScreenedTop1)
    screened.half = half
    names = sorted((n for n, _ in model.named_parameters()), key=lambda n: screened.folded.position([n]))
    with torch.no_grad():
        for name in names:
            with screened.before([name]):
                for _ in range(2):
                    model.get_parameter(name).mul_(torch.rand_like(model.get_parameter(name)) + 0.3)
                    assert screened.count() == right(model, batches), name
            screened.folded.forget()  # the model is another one from here on
    assert screened.folded.peak <= limit
    assert screened.looked == 2 * len(names) * 120
    assert 0 < screened.again <= screened.looked if half else screened.again == 0


def test_outputs_that_tie_are_asked_of_the_model():
    """Two classes whose weights are equal: every image is a tie in every arithmetic, and the first must win."""
    model, batches = made()
    with torch.no_grad():
        model.scale.fill_(1.0)
        for tensor in (model.head.weight, model.head.bias):
            tensor[1:] = tensor[0]
    screened = ScreenedTop1.of(model, batches)
    with torch.no_grad(), screened.before(["stem.weight"]):
        model.stem.weight.mul_(0.7)
        assert screened.count() == right(model, batches)
    assert screened.as_it_runs == 120


def test_a_model_that_is_not_what_was_recorded_is_run_as_it_is(monkeypatch):
    model, batches = made()
    screened = ScreenedTop1.of(model, batches)
    monkeypatch.setattr(
        FoldedForward, "gathered", lambda self, chosen: torch.zeros(sum(len(r) for _, r in chosen), 6)
    )
    with torch.no_grad(), screened.before(["stem.weight"]):
        model.stem.weight.mul_(0.7)
        assert screened.count() == right(model, batches)
    assert screened.as_it_runs == 120


def test_the_bound_follows_what_is_seen(monkeypatch):
    """Bfloat16 that is wrong by much more than rounding is caught by the images that are looked at again."""
    model, batches = made(count=4, size=100)
    screened = ScreenedTop1.of(model, batches)
    screened.half = True
    real = FoldedForward.outputs

    def rough(self, batch, half=False):
        found = real(self, batch, half)
        return found + 0.2 * torch.randn(found.shape) if half else found

    monkeypatch.setattr(FoldedForward, "outputs", rough)
    with torch.no_grad(), screened.before(["a.weight"]):
        model.a.weight.mul_(0.7)
        assert screened.count() == right(model, batches)
    assert screened.again > 32


def test_what_cannot_be_recorded_says_why():
    model, batches = made()

    class Branching(Net):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else super().forward(-x)

    class Rewriting(Net):
        def forward(self, x):
            y = self.stem(x)
            z = y.mul_(2.0)
            return self.head(self.pool(y + z).flatten(1))

    assert "cannot be recorded" in ScreenedTop1.of(Branching().eval(), batches)
    assert ScreenedTop1.of(Rewriting().eval(), batches) == "mul_ changes a value that is read again later"
    assert ScreenedTop1.of(model, [(x.double(), y) for x, y in batches]) == "it does not compute in float32"
    assert (
        ScreenedTop1.of(model, [(x, y[:, None]) for x, y in batches])
        == "its targets are not one number an example"
    )
    handle = model.stem.register_forward_hook(lambda *_: None)
    assert ScreenedTop1.of(model, batches) == "Conv2d has forward hooks"
    handle.remove()
    assert isinstance(record(model, [x for x, _ in batches]), FoldedForward)
    assert record(model.train(), [x for x, _ in batches]) == "it is in training mode"


def test_a_scan_says_how_and_is_the_same_either_way():
    model, batches = made()
    quick = scan(model, batches, "filter", [0.25, 0.5, 0.75])
    plain = scan(model, batches, "filter", [0.25, 0.5, 0.75], options=ScanOptions(quick=False))
    assert quick == plain
    assert "as the model runs" in quick.how
    assert plain.how == "as the model runs, what comes before the layer kept: quick=False was given"
    assert quick.peak_bytes > 0
    by_function = scan(model, lambda m: right(m, batches) / 120, "filter", [0.25, 0.5, 0.75])
    assert [cell.value for cell in by_function.cells] == [cell.value for cell in quick.cells]
    assert by_function.how.endswith("a function of the model decides itself what it runs")


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", ["stem.weight", "a.weight", "head.weight"])
def test_rows_that_go_leave_the_other_outputs_as_they_were(name, half):
    """A layer of which only whole rows went is not run again; its bias, the norm behind it and the ReLU still are."""
    model, batches = made()
    screened = ScreenedTop1.of(model, batches)
    screened.half = half
    weight = model.get_parameter(name)
    ran = []
    with torch.no_grad(), screened.before([name], rows=True):
        step = screened.folded._touched[0]
        run = step.run
        step.run = lambda *given: ran.append(1) or run(*given)
        for gone in ([1], [1, 3], [0, 1, 2, 3, 4]):
            saved = weight.clone()
            weight[gone] = 0.0
            screened.folded.refresh()
            close = [screened.folded.outputs(i) for i in range(3)]
            wanted = [model(x) for x, _ in batches]
            assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(close, wanted, strict=True))
            assert screened.count() == right(model, batches)
            weight.copy_(saved)
    assert not ran
    with torch.no_grad(), screened.before([name]):
        weight[:, 0] = 0.0
        assert screened.count() == right(model, batches)
    assert ran


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_the_convolution_behind_rows_that_go_is_run_on_those_that_stay(half, limit):
    """Through a pooling, with what the empty channels still say at the borders and inside."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(12, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU(), nn.Flatten(), nn.Linear(250, 6),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[1].bias.uniform_(-1.0, 2.0)
    batches = [(torch.randn(size, 3, 9, 9), torch.randint(0, 6, (size,))) for size in (40, 25)]
    screened = ScreenedTop1.of(model, batches, limit)
    screened.half = half
    widths, narrow = set(), screened.folded.steps[2].applied
    screened.folded.steps[2].applied = lambda x, *given: widths.add(x.shape[1]) or narrow(x, *given)
    weight = model[0].weight
    with torch.no_grad(), screened.before(["0.weight"], rows=True):
        for gone in ([1], [0, 3, 7], list(range(11)), list(range(12))):
            saved = weight.clone()
            weight[gone] = 0.0
            screened.folded.refresh()
            for i, (images, _) in enumerate(batches):
                wanted, rough = model(images), screened.folded.outputs(i, half)
                assert torch.allclose(screened.folded.outputs(i), wanted, rtol=1e-4, atol=1e-5)
                assert torch.allclose(rough, wanted, rtol=0.05, atol=0.05)
            assert screened.count() == right(model, batches)
            assert screened.as_it_runs < 10
            weight.copy_(saved)
    assert widths == {12, 10, 2}  # one stands for all that went; a layer without any is run whole
    assert screened.folded.peak <= limit


def test_a_target_that_is_no_class_is_wrong_and_one_that_is_no_number_is_refused():
    model, batches = made()
    for targets in (batches[0][1], batches[1][1]):
        targets[::3] = -100
        targets[1::9] = 6
    screened = ScreenedTop1.of(model, batches)
    with torch.no_grad(), screened.before(["a.weight"]):
        model.a.weight.mul_(0.7)
        assert screened.count() == right(model, batches)
        assert screened.as_it_runs < 10
    assert ScreenedTop1.of(model, [(x, y.float()) for x, y in batches]) == "its targets are not whole numbers"


def test_rows_are_only_taken_for_rows():
    from secateur.core.masks import Masks
    from secateur.sensitivity.evaluation import EvaluationJob

    rows, columns = torch.ones(4, 3, dtype=torch.bool), torch.ones(4, 3, dtype=torch.bool)
    rows[1], columns[:, 1] = False, False
    assert EvaluationJob(["w"], [("a", Masks({"w": rows}))]).rows
    assert not EvaluationJob(["w"], [("a", Masks({"w": rows})), ("b", Masks({"w": columns}))]).rows
    assert not EvaluationJob(["v", "w"], [("a", Masks({"v": rows, "w": rows}))]).rows


def test_kept_values_are_counted_in_bytes() -> None:
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2)).eval()
    folded = record(model, [torch.randn(3, 4) for _ in range(5)], limit=250)
    assert isinstance(folded, FoldedForward)
    with torch.no_grad(), folded.changing(["2.weight"]):
        folded.outputs(0)
    assert folded.peak == 2 * 3 * 10 * 4  # two batches of 3 x 10 numbers of four bytes; a third would be 360

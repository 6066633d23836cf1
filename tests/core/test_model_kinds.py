"""Models that are no plain module: what is unwrapped, what is refused, and in which words."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.core.model_kinds import inside, unwrapped
from secateur.core.wrapped_layers import model_with
from secateur.errors import OptionError


class YOLO(nn.Module):
    """A tool around a model as ultralytics has it: a module whose `train` is a training."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
        self.trained = False

    def forward(self, x):
        return self.model(x)

    def train(self, trainer=None, **options):
        self.trained = True
        return self


YOLO.__module__ = "ultralytics.engine.model"  # of classes below it, such as YOLO, too
IMAGE = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "verb", ["prune", "shrink", "explain", "measure", "share", "export", "hold", "save", "scan"]
)
def test_the_tool_around_a_yolo_model_is_refused_and_never_trained(verb, tmp_path):
    tool = YOLO()
    masks = sc.prune(tool.model, "l2", "channel", 0.5, example=IMAGE)
    calls = {
        "prune": lambda: sc.prune(tool, "l2", "channel", 0.5, example=IMAGE),
        "shrink": lambda: sc.shrink(tool, masks, IMAGE),
        "explain": lambda: sc.explain(tool, IMAGE),
        "measure": lambda: sc.measure(tool, IMAGE, what="macs"),
        "share": lambda: sc.share(tool, bits=2),
        "export": lambda: sc.export(tool, tmp_path / "a.pt2", IMAGE),
        "hold": lambda: sc.hold(tool, masks),
        "save": lambda: sc.save(tool, tmp_path / "a.sct"),
        "scan": lambda: sc.scan(tool, lambda model: 1.0, "filter", [0.5], example=IMAGE),
    }
    with pytest.raises(
        OptionError, match=r"YOLO is ultralytics' tool around a model.*yolo\.model for yolo = YOLO"
    ):
        calls[verb]()
    assert not tool.trained
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_an_example_is_said_to_be_one():
    model = YOLO().model
    with pytest.raises(
        sc.errors.TraceError, match=r"expected a tensor of one batch.*got the text 'bus\.jpg'"
    ):
        sc.prune(model, "l2", "channel", 0.5, example="bus.jpg")


def test_wrappers_of_torch_are_known_in_one_place_and_others_hold_names_only():
    """What is worked on is taken out of torch's wrappers alone; masks find their names inside any module around."""
    model = nn.Linear(2, 3)
    for wrapper in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        assert inside(wrapper) is model
        assert unwrapped(wrapper) is model
        assert model_with(wrapper, ["weight"]) is model
    for around in (torch.optim.swa_utils.AveragedModel(model), nn.Sequential(model)):
        assert inside(around) is None
        assert unwrapped(around) is around
        assert model_with(around, ["weight"]) is next(around.children())
    assert inside(model) is None
    assert model_with(nn.Sequential(model), ["bias_of_another"]) is not model

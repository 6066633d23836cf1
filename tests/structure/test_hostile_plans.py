"""Plans from strangers: what they may set, what they may not, and that a refused one changes nothing."""

from __future__ import annotations

import copy
import gc
import io
import json
import pickle
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.container import tensors
from secateur.container.format import ZERO, Entry
from secateur.container.writer import Writer
from secateur.errors import FormatError, PlanError, SecateurError
from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.cut.rewrite_data import Rewrite

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from attacks.process_state import changes, snapshot


def plan_text(**parts: object) -> str:
    whole = {
        "format": "secateur-plan",
        "version": 1,
        "keep": {},
        "attributes": {},
        "rewrites": {},
        "shapes": {},
    }
    return json.dumps({**whole, **parts})


class Config:
    def __init__(self) -> None:
        self.hidden_size, self.name, self.head_dim, self._secret = 8, "tiny", None, 3

    def to_dict(self) -> dict[str, object]:
        return dict(vars(self))


class Net(nn.Module):
    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config or Config()
        self.width, self.ratio, self.flag, self.sizes = 8, 0.5, True, (8, 4)
        self.fc = nn.Linear(4, 8)
        self.inner = nn.ModuleDict({"norm": nn.LayerNorm(8)})
        self.inner["norm"].config = self.config

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner["norm"](self.fc(x)).reshape(-1, self.width)


def loaded(text: str, model: nn.Module) -> nn.Module:
    """The model with the plan applied in the way a file's plan is."""
    file = io.BytesIO()
    writer = Writer(file)
    writer.text("plan", tensors.text(text.encode()))
    for name, value in model.state_dict().items():
        entry = Entry(name, "F32", tuple(value.shape))
        writer.add(entry, bytes(entry.nbytes), ZERO, [])
    writer.finish()
    path = Path("hostile.sct")
    path.write_bytes(file.getvalue())
    return sc.load(path, into=model)


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ("", "__class__.__init__.__defaults__", [1, 2, 3]),
        ("fc", "__class__.__init__.__defaults__", [0, 0, 0]),
        ("fc", "__class__", 3),
        ("fc", "__class__.forward", 3),
        ("fc", "__dict__", {}),
        ("fc", "_parameters", {}),
        ("fc", "_backward_hooks", 0),
        ("fc", "forward", 0),
        ("fc", "weight", 0),
        ("fc", "bias", 0),
        ("fc", "training", 0),
        ("fc", "out_features", 9),
        ("fc", "out_features", True),
        ("fc", "out_features", -1),
        ("fc", "out_features", {"a": 1}),
        ("fc", "weight.data", 0),
        ("fc", "new", 1),
        ("fc", "dump_patches", 0),
        ("", "fc", 0),
        ("", "fc.out_features", 3),
        ("", "ratio", 0),
        ("", "flag", 0),
        ("", "sizes", [8]),
        ("", "sizes", [9, 4]),
        ("", "config", 0),
        ("", "config.hidden_size", 9),
        ("", "config.name", 1),
        ("", "config._secret", 1),
        ("", "config.to_dict", 1),
        ("", "config.__class__.to_dict", 1),
        ("", "config.__dict__.hidden_size", 1),
        ("", "config.new", 1),
        ("", "config.hidden_size.bit_length", 1),
        ("fc", "config.hidden_size", 1),
        ("", "config.rope_parameters", {"rope_type": "longrope"}),
    ],
)
def test_what_no_plan_may_set(path: str, key: str, value: object, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = Net()
    state = copy.deepcopy(model.state_dict())
    gc.collect()  # what earlier tests left open is closed now, not meanwhile
    before = snapshot()
    own = repr(vars(model)), repr(vars(model.fc)), repr(vars(model.config))
    with pytest.raises(SecateurError):
        loaded(plan_text(attributes={path: {key: value}}), model)
    assert changes(before, snapshot()) == []
    assert own == (repr(vars(model)), repr(vars(model.fc)), repr(vars(model.config)))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert nn.Linear(2, 2).bias is not None


def test_what_a_plan_may_set_is_the_model_s_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config()
    model, other = Net(config), Net(config)
    wanted = {
        "": {"width": 6, "sizes": [6, 4], "config.hidden_size": 6, "config.head_dim": 3},
        "fc": {"out_features": 7},
        "inner.norm": {"normalized_shape": [6]},
    }
    gc.collect()  # what earlier tests left open is closed now, not meanwhile
    before = snapshot()
    loaded(plan_text(attributes=wanted), model)
    assert changes(before, snapshot()) == []
    assert (model.width, model.sizes, model.fc.out_features) == (6, (6, 4), 7)
    assert model.inner["norm"].normalized_shape == (6,)
    assert (model.config.hidden_size, model.config.head_dim) == (6, 3)
    assert model.inner["norm"].config is model.config
    assert other.config is config
    assert (config.hidden_size, config.head_dim) == (8, None)


def test_torch_s_own_layers_have_a_closed_list_of_widths() -> None:
    layer = nn.MaxPool2d(2)
    with pytest.raises(PlanError, match="'kernel_size' of '', which is no width of MaxPool2d"):
        ShrinkPlan({}, attributes={"": {"kernel_size": 1}}).apply_(layer)
    assert layer.kernel_size == 2


@pytest.mark.parametrize(
    "item",
    [
        Rewrite("exec", 0, ((0, 1),)),
        Rewrite("__class__", 0, ((0, 1),)),
        Rewrite("multi_head_attention", -1, ((0, 1), (1, 1))),
        Rewrite("multi_head_attention", -1, ((0, 1),)),
        Rewrite("narrow", 0, ((0, 1),)),
        Rewrite("reshape", 0, ((0, (1, 2, 3)),)),
        Rewrite("reshape", 0, ((0, 1.5),)),
        Rewrite("__getitem__", 0, ((0, 1),)),
        Rewrite("number", -2, ((0, 1.0),)),
        Rewrite("mean", -2, ((0, 1),)),
        Rewrite("scaled_dot_product_attention", -1, ((0, 1), (1, 2), (2, 3))),
    ],
)
def test_rewrites_that_no_plan_may_ask_for(item: Rewrite) -> None:
    model = Net()
    with pytest.raises(PlanError, match=r"the plan (rewrites|gives)"):
        ShrinkPlan({}, rewrites={"": (item,)}).apply_(model)
    assert type(model) is Net


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"function": "view", "call": 0, "sizes": []},
        {"function": "view", "call": "0", "sizes": [[0, 1]]},
        {"function": "view", "call": 0, "sizes": [[0, 1 << 60]]},
        {"function": "view", "call": 0, "sizes": [[0]]},
        {"function": "view", "call": 0, "sizes": [["a", 1]]},
        {"function": "view", "call": 0, "sizes": [[0, [1, 2, 3]]]},
        {"function": "view", "call": 0, "sizes": [[0, [1, 0]]]},
        {"function": "__getitem__", "call": 0, "sizes": [[0, [1, 2]]]},
        {"function": "view", "call": 0, "sizes": [[0, 1]], "site": [["f", "d", "1"]]},
        {"function": "view", "call": 0, "sizes": [[0, 1]], "site": [["f", "d", 1]] * 99},
        {"function": "view", "call": 0, "sizes": [[0, "x"]]},
        {"function": "view", "call": 0, "sizes": 7},
        {"function": 7, "call": 0, "sizes": [[0, 1]]},
        3,
    ],
)
def test_damaged_rewrites_are_refused(call: object) -> None:
    with pytest.raises(PlanError, match="a damaged plan"):
        ShrinkPlan.from_json(plan_text(rewrites={"": [call]}))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"keep": {"fc.weight": {"-1": [0, 2]}}}, "indices do not fit"),
        ({"keep": {"fc.weight": {"2": [0, 2]}}}, "indices do not fit"),
        ({"keep": {"fc.weight": {"0": [7, 2]}}}, "indices do not fit"),
        ({"keep": {"fc.weight": {"0": [0, 1 << 60]}}}, "indices do not fit"),
        ({"keep": {"fc.weight": {"0": [2, 1, 1, 1]}}}, "ascend"),
        ({"keep": {"fc.weight": {"0": [0, 0]}}}, "not empty"),
        ({"keep": {"fc.weight": {"0": [-1, 2]}}}, "whole numbers"),
        ({"keep": {"fc.weight": {"0": [0.5, 2]}}}, "whole numbers"),
        ({"keep": {"fc.weight": {"0": [0]}}}, "whole numbers"),
        # what equals runs that were read before is none for that
        ({"keep": {"fc.bias": {"0": [0, 1]}, "fc.weight": {"0": [0, True]}}}, "whole numbers"),
        ({"keep": {"fc.bias": {"0": [0, 1]}, "fc.weight": {"0": [False, 1]}}}, "whole numbers"),
        ({"keep": {"fc.bias": {"0": [0, 1]}, "fc.weight": {"0": [0, 1.0]}}}, "whole numbers"),
        ({"keep": {"fc.weight": {"0": [0, 1 << 63]}}}, "whole numbers"),
        ({"keep": {"fc.weight": {"0": [(1 << 62) - 1, 2]}}}, "below"),
        ({"keep": {"fc.weight": {"0": [0, 2, 1, 1]}}}, "ascend"),
        ({"keep": {"fc.weight": {"0": [0, 2, 4, 0]}}}, "not empty"),
        ({"keep": {"fc.weight": {"x": [0, 1]}}}, "invalid literal"),
        ({"keep": {"fc.weight": []}}, "expected an object"),
        ({"keep": 7}, "expected an object"),
        ({"shapes": {"fc.weight": [True]}}, "expected a shape"),
        ({"attributes": {"fc": {"out_features": None}}}, "expected a whole number"),
        ({"attributes": {"fc": {"out_features": "8"}}}, "expected a whole number"),
        ({"rewrites": {"": {}}}, "expected a list"),
        ({"version": [1]}, "expected version 1"),
    ],
)
def test_damaged_plans_are_refused(parts: dict[str, object], message: str) -> None:
    model = Net()
    with pytest.raises(PlanError, match=message):
        ShrinkPlan.from_json(plan_text(**parts)).apply_(model)
    assert model.fc.weight.shape == (8, 4)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "[" * 200_000,
        '{"a":' * 200_000,
        "NaN",
        '{"keep": Infinity}',
        "1" * 5000,
        "\ud800",
        "null",
        "[]",
    ],
    ids=lambda text: text[:6],
)
def test_texts_that_are_no_plan(text: str) -> None:
    with pytest.raises(PlanError):
        ShrinkPlan.from_json(text)


def test_indices_take_no_memory_before_shapes_are_known() -> None:
    claims = plan_text(keep={f"p{i}.weight": {"0": [0, 1 << 26]} for i in range(10)})
    tracemalloc.start()
    plan = ShrinkPlan.from_json(claims)
    with pytest.raises(PlanError, match="does not have"):
        plan.apply_(Net())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_json_that_would_become_many_objects_is_refused() -> None:
    with pytest.raises(PlanError, match="bytes of memory"):
        ShrinkPlan.from_json("[" + "{}," * 3_000_000 + "{}]")


class Reshaping(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], 8)


def test_a_rewritten_class_is_the_model_s_own() -> None:
    plan = ShrinkPlan(
        {}, rewrites={"0": (Rewrite("reshape", 0, ((1, 6),)),), "1": (Rewrite("reshape", 0, ((1, 6),)),)}
    )
    one, two = (plan.apply_(nn.Sequential(Reshaping(), Reshaping())) for _ in range(2))
    copied, pickled = copy.deepcopy(one), pickle.loads(pickle.dumps(one))
    models = [one, two, copied, pickled]
    for model in models:
        assert type(model[0]) is type(model[1])
        assert isinstance(model[0], Reshaping)
        assert model(torch.zeros(5, 2, 3)).shape == (5, 6)
    assert len({type(model[0]) for model in models}) == 3
    assert type(copied[0]) is type(one[0])
    type(two[0]).forward = None  # what happens to one model is nothing to another
    assert one(torch.zeros(5, 6)).shape == (5, 6)
    fresh = plan.apply_(nn.Sequential(Reshaping(), Reshaping()))
    assert fresh(torch.zeros(5, 6)).shape == (5, 6)
    known = len(Reshaping.__subclasses__())
    del models, two, copied, pickled, model
    gc.collect()
    assert len(Reshaping.__subclasses__()) < known


def test_a_file_whose_plan_is_no_text_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    writer = Writer(file)
    writer.text("plan", tensors.text(b"\xff\xfe" * 40))
    writer.add(Entry("w", "F32", (1,)), bytes(4), ZERO, [])
    writer.finish()
    (tmp_path / "a.sct").write_bytes(file.getvalue())
    with pytest.raises((FormatError, PlanError)):
        sc.load(tmp_path / "a.sct", into=nn.Linear(1, 1))

"""The step `export`: a file among the results, in floats or INT8, measured, and the model goes on as it was."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from secateur.adapters.export import export
from secateur.errors import OptionError
from secateur.lab.engine import final_state, run
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store

missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(
    bool(missing), reason=f"NOT TESTED: ONNX export, as {', '.join(missing)} is not installed: secateur[onnx]"
)

RECIPE = {
    "data": {"name": "digits", "size": 8, "limit": 300, "validation": 0.2},
    "model": {"name": "resnet20"},
    "lab": {"threads": 1},
}
TRAIN = {"kind": "train", "epochs": 2, "lr": 0.05, "batch_size": 64}
PRUNE = {"kind": "prune", "criterion": "l2", "granularity": "channel", "budget": 0.3}


def ran(tmp_path, *steps):
    store = Store(tmp_path / "runs")
    found = run(Recipe.of({**RECIPE, "step": list(steps)}), store)
    return found, final_state(found.plan.trials[0], store)


@needs_onnx
def test_a_static_int8_file_is_among_the_results_and_judged_on_validation_images(tmp_path):
    from secateur.adapters.onnx_model import OnnxModel
    from secateur.lab.planning import data_of
    from secateur.lab.training.evaluation import evaluate

    step = {"kind": "export", "file": "small.onnx", "int8": "static", "calibrate": 64, "lost": 0.2}
    found, state = ran(tmp_path, TRAIN, step)
    rows = {m.name: m.value for m in found.measurements if m.context["variant"] == "export"}
    path = tmp_path / "small.onnx"
    path.write_bytes(state.files["small.onnx"])
    assert rows["onnx_bytes"] == path.stat().st_size < 400_000
    images = data_of(found.plan.trials[0].recipe).validation
    assert rows["int8_accuracy"] == evaluate(OnnxModel(path), images, device="cpu")["accuracy"]
    assert rows["int8_layers"] + rows["float_layers"] >= 20
    _, before = ran(tmp_path, TRAIN)
    for name, value in before.model.state_dict().items():
        assert torch.equal(state.model.state_dict()[name], value)


@needs_onnx
def test_eight_bits_are_for_those_who_ask(tmp_path):
    import onnx

    step = {"kind": "export", "file": "m.onnx", "int8": "static", "calibrate": 64, "lost": 0.9}
    most = []
    for number, more in enumerate(({}, {"reduce_range": False})):
        state = ran(tmp_path / str(number), TRAIN, {**step, **more})[1]
        graph = onnx.load_from_string(state.files["m.onnx"]).graph
        weights = [each for each in graph.initializer if each.name.endswith("weight_quantized")]
        most.append(max(int(abs(onnx.numpy_helper.to_array(each).astype(int)).max()) for each in weights))
    assert most[0] <= 64 < most[1]


@needs_onnx
def test_masks_are_applied_and_a_pt2_file_is_exact(tmp_path):
    found, state = ran(tmp_path, PRUNE, {"kind": "export", "file": "m.pt2"})
    rows = {m.name: m.value for m in found.measurements if m.context["variant"] == "export"}
    path = tmp_path / "m.pt2"
    path.write_bytes(state.files["m.pt2"])
    assert rows["pt2_bytes"] == path.stat().st_size
    assert rows["export_error"] < 1e-6
    program = torch.export.load(path)
    zeros = sum(int((p == 0).sum()) for p in program.state_dict.values() if p.dim() == 4)
    assert zeros >= sum(int((~mask).sum()) for mask in state.masks.values() if mask.dim() == 4) > 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"file": "../m.onnx"}, "expected a plain file name"),
        ({"file": "m.pb"}, r"ends in \.onnx or \.pt2, got 'm\.pb'"),
        ({"file": "m.pt2", "int8": "static"}, r"ends in \.onnx for INT8, got 'm\.pt2'"),
        ({"percentile": 2.0}, "percentile: expected above 50"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(tmp_path, options, text):
    with pytest.raises(OptionError, match=text):
        ran(tmp_path, {"kind": "export", **options})
    assert not list((tmp_path / "runs").glob("outcomes/*"))


@pytest.mark.parametrize("given", [None, 0.5])
def test_the_tolerance_is_that_of_the_verb_unless_the_recipe_gives_one(tmp_path, monkeypatch, given):
    seen = []

    def exported(*args, **options):
        seen.append(options["tolerance"])
        return export(*args, **options)

    monkeypatch.setattr("secateur.lab.steps.export.export", exported)
    step = {"kind": "export", "file": "m.pt2", **({} if given is None else {"tolerance": given})}
    ran(tmp_path, step)
    assert seen == [given]

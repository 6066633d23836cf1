"""Files that a step of a recipe names or a stranger's store holds: data sets of YOLO, checkpoints of a training."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from secateur.adapters.ultralytics import check_yolo_data, check_yolo_options
from secateur.errors import FormatError, OptionError, RecipeError, SecateurError, StoreError
from secateur.lab.recipe import Recipe
from secateur.lab.steps.train_yolo import TrainYoloStep
from secateur.lab.training import checkpoint
from secateur.sensitivity.scan_file import ScanFile


@pytest.mark.parametrize(
    "line",
    [
        "download: import os; os.system('touch owned')",
        '"down\\x6coad": bash owned.sh',
        "? download\n: |\n  x = 1",
    ],
)
def test_a_data_set_that_ultralytics_would_execute_is_refused(tmp_path, line):
    pytest.importorskip("yaml")
    path = tmp_path / "data.yaml"
    honest = "path: images\ntrain: a\nval: b\nnames: {0: a}\n"
    path.write_text(honest + line + "\n")
    with pytest.raises(FormatError, match="has `download`, which ultralytics executes"):
        check_yolo_data(path)
    with pytest.raises(FormatError, match="has `download`"):
        TrainYoloStep(data=str(path)).check(nn.Linear(1, 1), [])
    path.write_text(honest)
    check_yolo_data(path)
    TrainYoloStep(data=str(path), options={"lr0": 0.01, "optimizer": "SGD", "classes": [0]}).check(
        nn.Linear(1, 1), []
    )
    for text in ("[" * 100_000, "- a", "a: [", "!!python/object/apply:os.system ['touch owned']", "\0"):
        path.write_text(text)
        with pytest.raises(FormatError, match="no yaml of a data set"):
            check_yolo_data(path)
    (tmp_path / "data.ndjson").write_text(honest)
    with pytest.raises(FormatError, match=r"ends in \.yaml"):
        check_yolo_data(tmp_path / "data.ndjson")


@pytest.mark.parametrize(
    "options",
    [
        {"pretrained": "evil.pt"},
        {"cfg": "evil.yaml"},
        {"save_dir": "/tmp"},
        {"classes": ["a"]},
        {"extra": {"a": 1}},
    ],
)
def test_options_of_a_training_name_no_files(options):
    with pytest.raises(OptionError, match="a recipe names no other files for ultralytics"):
        check_yolo_options(options)


def test_a_recipe_names_no_kernel_of_the_hub():
    text = '[model]\nname = "hf/bert"\noptions = {attn_implementation = "owner/kernel"}\n[[step]]\nkind = "prune"\n'
    with pytest.raises(RecipeError, match="'attn_implementation', which a recipe may not set"):
        Recipe.parse(text, allow_code=True)


@pytest.mark.parametrize("about", ["[" * 100_000, "[]", "{", "7", '"\\ud800"', "{}" * 5])
def test_a_checkpoint_that_is_none(tmp_path, about):
    path = tmp_path / "c.safetensors"
    save_file(
        {"model/w": torch.ones(1)},
        path,
        metadata={"format": "secateur-training", "version": "1", "about": about},
    )
    with pytest.raises(StoreError, match="checkpoint"):
        checkpoint.read(path)


@pytest.mark.parametrize(
    "values",
    [
        "[" * 100_000,
        "[]",
        '{"scan": "a", "values": []}',
        '{"scan": "a", "values": {"d": 1}}',
        '{"scan": "a", "values": {"d": [1' + "0" * 400 + ", null]}}",
        "{}," * 3_000_000,
        "\xff",
    ],
)
def test_a_file_of_a_scan_that_is_none(tmp_path, values):
    path = tmp_path / "scan.json"
    path.write_text(values, encoding="latin1")
    with pytest.raises(StoreError, match="expected the values of a scan"):
        ScanFile(path, nn.Linear(1, 1), ("l2",))


PROMISES = [
    {"files": []},
    {"files": {"a": [float("inf"), "b"]}},
    {"files": {"a": 1}},
    {"seconds": "much"},
    {"threads": 1e400},
    {"names": 5},
    {"request": []},
    {"request": {"runtime": "onnx"}},
    {"version": [1]},
    {"tolerance": 10**400},
]


@pytest.mark.parametrize("change", PROMISES, ids=range(len(PROMISES)))
def test_a_promise_that_is_none(tmp_path, change):
    from secateur.adapters.promises import _read, promise
    from secateur.adapters.served import ServeRequest

    artefact = tmp_path / "m.onnx"
    artefact.write_bytes(b"model")
    promise(artefact, ServeRequest(artefact, "onnx"), {"x": torch.zeros(1)}, {"y": torch.zeros(1)})
    assert _read(artefact)[0].names == ("x",)
    file = tmp_path / "m.onnx.check" / "promise.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(FormatError, match="expected a promise that secateur wrote"):
        _read(artefact)
    file.write_text("[" * 100_000)
    with pytest.raises(SecateurError):
        _read(artefact)


def test_a_label_file_of_other_bytes(tmp_path):
    from secateur.data.yolo import _first_class
    from secateur.errors import DataError

    (tmp_path / "1.txt").write_bytes(b"\xff\xfe 1")
    with pytest.raises(DataError, match="begin with the number of a class"):
        _first_class(tmp_path / "1.txt")
    (tmp_path / "2.txt").write_bytes(b"3 0.5 0.5 1 1")
    assert _first_class(tmp_path / "2.txt") == 3

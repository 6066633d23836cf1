"""Files that a step of a recipe names or a stranger's store holds: data sets of YOLO, checkpoints of a training."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from secateur.adapters.ultralytics_training import _no_pickles, check_yolo_data, check_yolo_options
from secateur.errors import FormatError, OptionError, RecipeError, SecateurError, StoreError
from secateur.lab.recipe import Recipe
from secateur.lab.steps.train_yolo import TrainYoloStep
from secateur.lab.training import checkpoint
from secateur.models import build
from secateur.sensitivity.scan_file import ScanFile


@pytest.mark.parametrize(
    ("version", "read"), [("8.3.0", False), ("8.4.60", False), ("8.4.70", True), ("9.0", True)]
)
def test_a_checkpoint_of_yolo_is_read_by_a_restricted_loader_alone(tmp_path, monkeypatch, version, read):
    """Until 8.4.60 ultralytics' own lets a checkpoint call any builtin, exec among them."""
    ran = tmp_path / "it ran"

    class Evil:
        def __reduce__(self):
            return exec, (f"open({str(ran)!r}, 'w')",)

    def torch_safe_load(path, safe_only):
        assert safe_only
        return torch.load(path, weights_only=read), path

    tasks = SimpleNamespace(torch_safe_load=torch_safe_load)
    monkeypatch.setitem(sys.modules, "ultralytics", SimpleNamespace(__version__=version))
    monkeypatch.setitem(sys.modules, "ultralytics.nn.tasks", tasks)
    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(Exception, match="restricted loader" if not read else "eights_only"):
        build(f"ultralytics/{tmp_path / 'evil.pt'}")
    assert not ran.exists()


@pytest.mark.parametrize("had", [{}, {"SAFE_LOAD": False}])
def test_what_ultralytics_loads_to_try_a_gpu_is_read_by_its_restricted_loader(monkeypatch, had):
    tasks, names = SimpleNamespace(**had), ("ultralytics.data.dataset", "ultralytics.engine.trainer")
    own = {"load_dataset_cache_file": str, "check_amp": lambda model: (model, tasks.SAFE_LOAD)}
    dataset, trainer = (SimpleNamespace(**own) for _ in names)
    for name, fake in zip((*names, "ultralytics.nn.tasks"), (dataset, trainer, tasks), strict=True):
        monkeypatch.setitem(sys.modules, name, fake)
    with _no_pickles():
        assert trainer.check_amp("model") == ("model", True)
        with pytest.raises(FileNotFoundError, match="is a pickle"):
            dataset.load_dataset_cache_file("labels.cache")
    assert (tasks.SAFE_LOAD, vars(dataset), vars(trainer)) == (False, own, own)


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
    for hidden in (
        b"down\xffload: x = 1\n",
        b"down\x01load: x = 1\n",
        b"\xff\xfe",
    ):  # ultralytics drops such bytes
        path.write_bytes(honest.encode() + hidden)
        with pytest.raises(FormatError, match="is no yaml of a data set"):
            check_yolo_data(path)
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


def trained(path, about=None, tensors=None, epochs=2):
    """Train a small network with a checkpoint; with one that was changed where changes are given."""
    from secateur import data
    from secateur.lab.training import TrainingContext, TrainingOptions, train

    torch.manual_seed(0)
    net, digits = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data.load("digits", limit=20)
    if about or tensors:
        held, kept = checkpoint.read(path)
        checkpoint.write(path, {**held, **(tensors or {})}, {**kept, **(about or {})})
    before = {name: value.clone() for name, value in net.state_dict().items()}
    options = TrainingOptions(epochs=epochs, batch_size=8, optimizer="adam")
    try:
        return train(net, digits, options, context=TrainingContext(checkpoint=path), device="cpu"), None
    except SecateurError as error:
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        return None, error


RECORD = {"epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5, "lr": 0.1, "seconds": 1.0, "metrics": {}}


@pytest.mark.parametrize(
    ("about", "tensors"),
    [
        ({"history": [{**RECORD, "epoch": 2}]}, None),
        ({"history": [{**RECORD, "train_loss": "low"}]}, None),
        ({"history": [{**RECORD, "metrics": {"accuracy": None}}]}, None),
        ({"history": 3}, None),
        ({"scaler": [1]}, None),
        ({"numbers": {"site/step": 1}}, None),
        ({"numbers": {"7/step": 1}}, None),
        (None, {"optimizer/0/exp_avg": torch.zeros(3)}),
        (None, {"optimizer/0/other": torch.zeros(())}),
        (None, {"model/1.weight": torch.zeros(3)}),
        (None, {"model/other": torch.zeros(3)}),
    ],
)
def test_a_refused_checkpoint_leaves_the_model_and_names_the_file(tmp_path, about, tensors):
    path = tmp_path / "c.safetensors"
    assert trained(path)[1] is None
    assert trained(path)[0].resumed_from == 2
    done, error = trained(path, about, tensors)
    assert done is None
    assert isinstance(error, StoreError)
    assert str(error).startswith(f"checkpoint {path}: expected a training's file")


def test_a_snapshot_for_another_optimizer_leaves_the_model():
    from secateur.lab.training.snapshot import Snapshot

    net = nn.Linear(2, 1)
    net(torch.ones(1, 2)).sum().backward()
    optimizer = torch.optim.Adam(net.parameters())
    optimizer.step()
    good = Snapshot.take(net, optimizer, 1)
    good.restore(net, torch.optim.Adam(net.parameters()))
    for numbers in ({"site/step": 1}, {"0/more": 1}):
        other = nn.Linear(2, 1)
        before = other.weight.tolist()
        with pytest.raises(StoreError, match="a training's snapshot"):
            Snapshot(1, good.tensors, numbers).restore(other, torch.optim.Adam(other.parameters()))
        assert other.weight.tolist() == before


def test_a_saved_dataset_whose_table_points_outside_itself(tmp_path):
    import datasets as library

    from secateur import data
    from secateur.errors import DataError

    image = {"bytes": b"no image", "path": None}
    library.Dataset.from_dict({"image": [image] * 4, "label": [0, 1, 0, 1]}).save_to_disk(tmp_path / "d")
    (file,) = (tmp_path / "d").glob("*.arrow")
    whole = bytearray(file.read_bytes())
    at = whole.index(b"no image") - 64
    for place in range(at - 128, at + 64, 4):  # the offsets of the images lie before them
        broken = bytearray(whole)
        broken[place : place + 4] = b"\xff\xff\xff\x7f"
        file.write_bytes(broken)
        with pytest.raises(DataError):
            data.load(str(tmp_path / "d"), size=8, cache_dir=tmp_path / "cache")

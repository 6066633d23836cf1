"""`--evaluate module:function`, and names of modules as people write them."""

from __future__ import annotations

import json
import sys

import pytest

from secateur.cli import main

SOURCE = """
import torch

def net():
    return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))

def rows():
    part = (torch.arange(40.0).reshape(10, 4).sin(), torch.arange(10) % 2)
    return part, part

def width(model):
    return {"girth": model[0].weight.shape[0]}

def alike(model):
    return 0.5

def counted(model, split):
    return len(split)

def several(model):
    return {"score": 0.5, "other": 3}
"""


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run a command in a folder that has `judged_here.py`; its output and error text, and its exit code."""
    (tmp_path / "judged_here.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["secateur", *words])
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, *capsys.readouterr()

    yield run
    sys.modules.pop("judged_here", None)


NET = ("judged_here:net", "--input", "1,4")


def test_measure_takes_a_judgement_and_data_of_ones_own(call):
    code, out, _ = call("measure", *NET, "--evaluate", "judged_here:width", "--what", "accuracy", "--json")
    assert code == 0
    assert [(row["name"], row["value"]) for row in json.loads(out)["measurements"]] == [("girth", 16)]
    code, out, _ = call(
        "measure",
        *NET,
        "--data",
        "judged_here:rows",
        "--evaluate",
        "judged_here:counted",
        "--what",
        "accuracy",
        "--json",
    )
    assert [(row["name"], row["value"]) for row in json.loads(out)["measurements"]] == [("score", 10)]
    code, out, _ = call("measure", *NET, "--data", "judged_here:rows", "--what", "accuracy", "--json")
    assert [row["name"] for row in json.loads(out)["measurements"]] == ["accuracy", "loss"]
    definition = json.loads(out)["measurements"][0]["definition"]
    assert definition == "accuracy on the 10 test inputs of judged_here:rows (4), as they are"
    code, _, error = call("measure", *NET, "--evaluate", "judged_here:counted", "--what", "accuracy")
    assert code == 2
    assert "takes the data besides the model" in error
    assert "give --data" in error


def test_shrink_prints_the_judgement_before_and_after(call):
    code, out, error = call("shrink", *NET, "--repetitions", "1", "--evaluate", "judged_here:width")
    assert code == 0, error
    row = next(line for line in out.splitlines() if "girth" in line)
    assert row.split() == ["girth", "16", "8"]


def test_scan_takes_a_judgement(call):
    code, out, error = call("scan", *NET, "--evaluate", "judged_here:alike", "--levels", "0.5", "--json")
    assert code == 0, error
    assert {cell["value"] for cell in json.loads(out)["cells"]} == {0.5}


@pytest.mark.parametrize(
    "written", ["./judged_here:net", "./judged_here.py:net", "judged_here.py:net", "/a/judged_here.py:net"]
)
def test_a_module_written_as_a_file_is_answered_with_its_name(call, written):
    code, _, error = call("measure", written, "--input", "1,4")
    assert code == 2
    assert "did you mean judged_here:net? expected package.module:function" in " ".join(error.split())


def test_scan_takes_a_judgement_of_several_numbers_if_one_is_the_score(call):
    code, _, error = call("scan", *NET, "--evaluate", "judged_here:several", "--levels", "0.5", "--json")
    assert code == 0, error

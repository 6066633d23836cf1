"""The command line: what each verb prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from secateur.cli.app import app
from secateur.lab.store import Store

RECIPE = """
[data]
name = "digits"
limit = 200
[model]
name = "lenet-300-100"
[lab]
threads = 1
[[step]]
kind = "prune"
budget = 0.8
[[step]]
kind = "measure"
label = "pruned"
what = ["accuracy", "params", "macs"]
[[step]]
kind = "pack"
"""


@pytest.fixture
def secateur(secateur, tmp_path):
    """The command line, in a folder that holds a recipe."""
    (tmp_path / "r.toml").write_text(RECIPE)
    return secateur


_USED = """
import resource, sys
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, "torch" in sys.modules, "pydantic" in sys.modules, file=sys.stderr)
"""
_HELP = """
import sys
sys.argv = ["secateur", "--help"]
try:
    main()
except SystemExit as leaving:
    assert not leaving.code
"""
_BARE = """
import typer
main = typer.Typer()
@main.command()
def verb(x: int = 1) -> None:
    "A verb."
"""


def test_help_is_quick_and_needs_no_torch():
    """It takes less than twice the time of an app of one verb: both in turns, as the machine may be busy."""
    quickest = {"from secateur.cli import main": float("inf"), _BARE: float("inf")}
    for _ in range(3):
        for start in quickest:
            code = start + _HELP + _USED
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            seconds, torch, pydantic = done.stderr.split()
            assert (torch, pydantic) == ("False", "False")
            quickest[start] = min(quickest[start], float(seconds))
    ours, bare = quickest.values()
    assert ours < 2 * bare
    done = subprocess.run(
        [sys.executable, "-c", "from secateur.cli import main" + _HELP],
        capture_output=True,
        text=True,
        check=True,
    )
    for verb in (
        "demo",
        "run",
        "sweep",
        "runs",
        "show",
        "export",
        "gc",
        "list",
        "schema",
        "measure",
        "explain",
    ):
        assert f"\n  {verb} " in done.stdout


@pytest.mark.parametrize("verb", [command.name for command in app.registered_commands])
def test_every_verb_has_help_and_debug(secateur, verb):
    code, out, _ = secateur(verb, "--help")
    assert code == 0
    assert "--debug" in out


def test_a_run_prints_its_result_on_stdout_and_progress_on_stderr(secateur):
    code, out, err = secateur("run", "r.toml", "--out", "results")
    assert code == 0
    assert out.splitlines()[0].split() == [
        "variant", "accuracy", "loss", "params", "nonzeros", "macs", "macs_nonzero",
        "file_bytes", "tensor_bytes", "original_bytes", "file_ratio", "changed_tensors",
    ]  # fmt: skip
    assert "212,960 of 266,200 weights removed (80.0%)" in err
    assert "weights removed (80.0%)" not in out
    assert {path.name for path in Path("results").iterdir()} == {
        "model.safetensors", "masks.safetensors", "model.sct", "measurements.json"
    }  # fmt: skip
    code, again, err = secateur("run", "r.toml", "--quiet")
    assert (code, again, err) == (0, out, "")


def test_dry_run_says_what_would_run_and_does_nothing(secateur):
    code, out, _ = secateur("run", "r.toml", "--dry-run", "--set", "prune.criterion=l1")
    assert code == 0
    assert "prune   criterion=l1, budget=0.8" in out
    assert "3 steps would run, 0 are cached" in out
    assert "digits: images of 1x8x8 are given as 1x28x28, as " in out
    assert not Path("runs").exists()
    secateur("run", "r.toml")
    assert "0 steps would run, 3 are cached" in secateur("run", "r.toml", "--dry-run")[1]
    assert (
        "1 steps would run, 2 are cached"
        in secateur("run", "r.toml", "--dry-run", "--set", "pack.file=x.sct")[1]
    )
    plan = json.loads(secateur("run", "r.toml", "--dry-run", "--json")[1])
    assert [row["what"] for row in plan["steps"]] == ["cached"] * 3


def test_a_dry_run_of_a_grid_shows_what_each_trial_sets_the_seed_too(secateur):
    grid = ["r.toml", "--dry-run", "--grid", "prune.budget=0.5,0.7", "--seeds", "2"]
    lines = secateur("sweep", *grid)[1].splitlines()
    assert any("settings" in line for line in lines[:4])
    assert sum("prune.budget=0.7, lab.seed=1" in line for line in lines) == 1
    steps = json.loads(secateur("sweep", *grid, "--json")[1])["steps"]
    assert steps[-1]["settings"] == {"prune.budget": 0.7, "lab.seed": 1}
    assert (steps[-1]["trial"], steps[-1]["trial_number"]) == (3, 4)


def test_seed_and_device_reach_the_recipe(secateur):
    plan = json.loads(secateur("run", "r.toml", "--dry-run", "--json", "--seed", "5", "--device", "cpu")[1])
    assert plan["recipe"]["lab"] == {"seed": 5, "device": "cpu", "threads": 1}


def test_a_sweep_shares_and_json_holds_everything(secateur):
    code, out, _ = secateur("sweep", "r.toml", "--grid", "prune.budget=0.5:0.7:0.1", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["computed"], found["cached"]) == (9, 0)
    kept = [m["value"] for m in found["measurements"] if m["name"] == "nonzeros"]
    assert kept == sorted(kept, reverse=True)
    assert [m["context"]["prune.budget"] for m in found["measurements"] if m["name"] == "nonzeros"] == [
        0.5,
        0.6,
        0.7,
    ]
    places = dict.fromkeys(
        (m["context"]["trial"], m["context"]["trial_number"]) for m in found["measurements"]
    )
    assert list(places) == [(0, 1), (1, 2), (2, 3)]
    assert secateur("sweep", "r.toml")[0] == 2


def test_a_sweep_over_seeds_names_them_all_and_numbers_trials_as_people_see_them(secateur):
    assert secateur("sweep", "r.toml", "--grid", "lab.seed=3:4:1", "--out", "kept")[0] == 0
    assert "\nseeds     3, 4; device cpu\n" in secateur("show", "last")[1]
    shown = json.loads(secateur("show", "--json")[1])
    assert [(one["trial"], one["trial_number"]) for one in shown["detail"]] == [(0, 1), (1, 2)]
    kept = json.loads(Path("kept", "measurements.json").read_text())
    for where in (shown["measurements"], kept):
        assert {(m["context"]["trial_number"], m["context"]["seed"]) for m in where} == {(1, 3), (2, 4)}
    assert Path("kept", "trial-2").is_dir()
    assert secateur("export", "last", "--out", "m.csv")[0] == 0
    assert "trial,trial_number," in Path("m.csv").read_text()


def test_runs_show_export_and_gc(secateur):
    secateur("run", "r.toml")
    secateur("run", "r.toml", "--set", "prune.budget=0.5")
    code, out, _ = secateur("runs")
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()[1:]] == [["1", "r", "done"], ["2", "r", "done"]]
    code, out, _ = secateur("show", "1")
    assert code == 0
    assert "command   secateur run r.toml" in out
    assert "hardware" in out
    assert "torch" in out
    shown = json.loads(secateur("show", "--json")[1])
    assert (shown["id"], shown["recipe"]["step"][0]["budget"]) == (2, 0.5)
    assert [step["how"] for step in shown["detail"][0]["steps"]] == ["computed"] * 3
    code, out, _ = secateur("export", "1", "--out", "m.csv")
    assert code == 0
    assert out.endswith("measurements written to m.csv\n")
    assert Path("m.csv").read_text().startswith("name,layer,value")
    assert secateur("export", "--out", "m.parquet")[0] == 0
    assert secateur("export", "--what", "steps", "--all") == (0, "6 steps written to steps.csv\n", "")
    assert [line.split(",")[0] for line in Path("steps.csv").read_text().splitlines()] == ["run", *"111222"]
    assert secateur("export", "2", "--what", "steps", "--out", "s.json")[1].startswith("3 steps")
    assert secateur("export", "--what", "cost")[2].startswith(
        "error: --what: expected measurements or steps, got"
    )
    assert "give one of the two" in secateur("export", "1", "--all")[2]
    assert "leave them out for a model" in secateur("export", "--all", "--out", "m.onnx")[2]
    code, out, _ = secateur("gc", "--keep", "1")
    assert code == 0
    assert out.startswith("freed ")
    assert "1 runs, 3 steps" in out
    assert secateur("runs")[1].count("\n") == 2


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["run", "nowhere.toml"], 2, "error: nowhere.toml: no such recipe; did you mean 'r.toml'?"),
        (["run", "r.toml", "--set", "prune.budgt=1"], 2, "has no key 'budgt': did you mean 'budget'?"),
        (["run", "r.toml", "--set", "prune.skip=['fcc1']"], 2, "pattern 'fcc1' matches no prunable layer"),
        (["run", "r.toml", "--set", "prune.budget=0"], 4, "removes nothing"),
        (["run", "r.toml", "--set", "data.name=nodata"], None, "nodata"),
        (["run"], 2, "Missing argument"),
        (["frobnicate"], 2, "No such command 'frobnicate'"),
        (["show"], 2, "no run store here"),
        (["list", "critera"], 2, "nothing to list under 'critera': did you mean 'criteria'?"),
        (["measure", "resnet21"], 2, "unknown model 'resnet21': did you mean 'resnet20'"),
        (
            ["measure", "torch.nn:Linear", "--option", "in_features=3", "--option", "out_features=2"],
            2,
            "give the shape",
        ),
        (["measure", "resnet20", "none.safetensors"], 2, "none.safetensors: no such file of weights"),
        (["explain", "resnet20", "--input", "1,x"], 2, "expected a shape of positive numbers"),
        (
            ["measure", "resnet20", "--input", "1,4,8,8"],
            2,
            "'resnet20' fails on an input of shape 1,4,8,8 (Run",
        ),
        (
            ["export", "resnet20", "--out", "x.foo"],
            2,
            "x.foo: expected a name that ends in .csv, .parquet, .json",
        ),
        (["inspect", "none.sct"], 2, "none.sct: no such file"),
        (
            ["inspect", "r.toml"],
            2,
            "r.toml: expected .sct, .safetensors, .bin, .ckpt, .pt or .pth, or a folder",
        ),
        (["pack", "r.toml", "x.sct"], 2, "got '.toml'; save it as one of these"),
        (["pack", "none.pt", "x.sct"], 2, "none.pt"),
    ],
)
def test_an_error_is_one_paragraph_with_its_exit_code(secateur, words, code, text):
    found, out, err = secateur(*words)
    assert found == code or (code is None and found in (1, 2))
    assert text in err
    assert "Traceback" not in err
    assert not out
    if err.startswith("error:"):
        assert err.count("\n") == 1


def test_debug_adds_the_traceback(secateur):
    _, _, err = secateur("run", "nowhere.toml", "--debug")
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: ")


def test_a_fault_of_the_users_code_is_a_paragraph_too(secateur, tmp_path, monkeypatch):
    (tmp_path / "faulty_model.py").write_text("def make():\n    return 1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    code, _, err = secateur("measure", "faulty_model:make")
    assert code == 1
    assert "ZeroDivisionError" in err or "division by zero" in err
    assert "Traceback" not in err


def test_a_budget_that_is_not_met_leaves_with_3(secateur, monkeypatch):
    from secateur.errors import BudgetNotMetError

    def refuse(*_, **__):
        raise BudgetNotMetError("asked for 1 kB, came to 2 kB")

    monkeypatch.setattr("secateur.lab.recipe.Recipe.read", refuse)
    assert secateur("run", "r.toml") == (3, "", "error: asked for 1 kB, came to 2 kB\n")


def _described_in(files: dict[str, str]) -> list[tuple[str, str]]:
    """What `list` says of a folder of these files."""
    from secateur.cli import words

    Path("folder").mkdir()
    for name, text in files.items():
        Path("folder", f"{name}.py").write_text(text)
    return words.described(Path("folder"))


def test_list_tells_all_words_and_schema_is_json(secateur):
    listed = json.loads(secateur("list", "--json")[1])
    kinds = "criteria granularities budgets models data measures sharing sparsify allocation steps charts sinks studies"
    assert list(listed) == kinds.split()
    assert {"pareto", "network"} <= {row["name"] for row in listed["charts"]}
    assert [row["name"] for row in listed["sinks"]] == ["mlflow", "tensorboard"]
    about = (
        "`prune`: choose the weights to remove by criterion, granularity and budget, and set them to zero."
    )
    assert {"name": "prune", "about": about} in listed["steps"]
    assert "testing_time" in [row["name"] for row in listed["measures"]]
    assert all(row["about"] for rows in listed.values() for row in rows)
    assert dict(
        _described_in({"a": '"""Of the file."""', "b": 'class B:\n    """Of the class.\n\n    More."""'})
    ) == {
        "a": "Of the file.",
        "b": "Of the class.",
    }
    assert json.loads(secateur("schema")[1])["title"] == "secateur recipe"
    assert secateur("schema", "--out", "s.json")[1] == "s.json\n"


def test_shrink_keeps_to_floors_and_takes_several_granularities(secateur):
    plain = ["shrink", "resnet20", "--input", "1,3,16,16", "--repetitions", "1", "--json"]
    shrink = [*plain, "--budget", "0.75"]
    macs = {}
    for floor in ("1", "12"):
        code, out, err = secateur(*shrink, "--at-least", floor)
        assert code == 0, err
        found = json.loads(out)
        assert found["proof"]["holds"]
        assert found["proof"]["tolerance"] == 1e-9
        macs[floor] = [m["value"] for m in found["measurements"] if m["name"] == "macs"][-1]
    assert macs["12"] > 2 * macs["1"]  # the widths of 16 kept 12, not 4
    code, _, err = secateur(*shrink, "--granularity", "head=0.5", "--granularity", "channel")
    assert code == 4, err
    assert "has no attention heads that can be cut" in err
    both = ["--granularity", "layer", "--granularity", "channel"]
    code, out, err = secateur(*plain, *both, "--keep", "macs=0.5")
    assert code == 0, err
    before, after = [m["value"] for m in json.loads(out)["measurements"] if m["name"] == "macs"]
    assert 0.45 * before < after <= 0.5 * before
    for words, said in (
        ([*both, "--keep", "half"], "expected macs, params, bytes or latency with the share"),
        (
            [*both, "--keep", "macs=0.5", "--budget", "0.3"],
            "got --keep macs=0.5 and --budget 0.3; leave one out",
        ),
        (["--granularity", "layer=0.3", "--keep", "macs=0.5"], "expected words without shares"),
    ):
        code, _, err = secateur(*plain, *words)
        assert code == 2
        assert said in err
    code, _, err = secateur(*shrink, "--granularity", "filter")
    assert code == 2
    assert "expected channel, head, head_size or layer" in err


@pytest.mark.parametrize(
    "words", [["run", "r.toml"], ["sweep", "r.toml", "--grid", "prune.budget=0.5,0.8"]], ids=["run", "sweep"]
)
def test_a_run_and_a_sweep_write_their_report(secateur, words):
    Path("r.toml").write_text(RECIPE.replace('[[step]]\nkind = "pack"\n', ""))
    code, out, err = secateur(*words, "--report", "pages", "--quiet")
    assert code == 0, err
    assert out.splitlines()[-1] == f"report: {Path('pages', 'index.html')}"
    assert "accuracy" in Path("pages", "index.html").read_text()


def test_measure_explain_and_shrink_a_model(secateur):
    code, out, _ = secateur("measure", "resnet20", "--json", "--what", "params,macs")
    assert code == 0
    assert {m["name"]: m["value"] for m in json.loads(out)["measurements"]}["params"] == 269_722
    code, out, _ = secateur("explain", "resnet20", "--budget", "0.5", "--svg", "groups.svg")
    assert code == 0
    assert "layer3" in out
    assert Path("groups.svg").read_text().startswith("<svg")
    code, out, _ = secateur("shrink", "resnet20", "--input", "1,3,16,16", "--repetitions", "3", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["proof"]["holds"]
    assert found["file_bytes"] == Path("small.sct").stat().st_size
    # The file fits a freshly built model: the plan in it is applied first.
    code, out, _ = secateur("measure", "resnet20", "small.sct", "--what", "params", "--json")
    after = [m["value"] for m in found["measurements"] if m["name"] == "params"][1]
    assert json.loads(out)["measurements"][0]["value"] == after < 269_722


def test_scan_a_model_and_allot_by_it(secateur):
    words = [
        "scan",
        "lenet-300-100",
        "--granularity",
        "element",
        "--criterion",
        "magnitude",
        "--subset",
        "100",
    ]
    code, out, err = secateur(*words, "--levels", "0.5,0.9", "--keep", "0.5", "--out", "scan.json")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["fc1.weight", "fc2.weight", "fc3.weight"]
    assert "predicted" in out
    assert "weights were given" in err
    assert len(json.loads(Path("scan.json").read_text())["cells"]) >= 6
    assert secateur(*words, "--levels", "0.5", "--keep", "0.01")[0] == 3
    assert secateur(*words, "--levels", "much")[0] == 2


def test_pack_unpack_and_inspect_a_checkpoint(secateur):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file({"w": torch.randn(64, 64), "b": torch.zeros(64)}, "in.safetensors")
    assert secateur("pack", "in.safetensors", "small.sct", "--bits", "4", "--json")[0] == 0
    assert Path("small.sct").stat().st_size < 3000
    code, out, _ = secateur("pack", "in.safetensors", "whole.sct", "--lossless")
    assert code == 0
    assert out.startswith("whole.sct: ")
    assert secateur("unpack", "whole.sct", "out.safetensors")[0] == 0
    assert Path("out.safetensors").read_bytes() == Path("in.safetensors").read_bytes()
    report = json.loads(secateur("inspect", "small.sct", "--json")[1])
    assert report["file_bytes"] == Path("small.sct").stat().st_size
    assert "w" in secateur("inspect", "small.sct")[1]


def test_inspect_a_file_that_leaves_its_names_to_a_model(secateur):
    import secateur as sc

    torch.manual_seed(0)
    sc.save(sc.models.build("resnet20", num_classes=3), "r.sct", names="model")
    assert "--model NAME" in secateur("inspect", "r.sct")[1]
    told = json.loads(
        secateur("inspect", "r.sct", "--model", "resnet20", "--option", "num_classes=3", "--json")[1]
    )
    assert told["tensors"][0]["name"] == "conv1.weight"
    assert told["ratio"] > 1
    code, _, err = secateur("inspect", "r.sct", "--option", "num_classes=3")
    assert (code, "give --model NAME too" in err) == (2, True)


def test_the_demo_writes_elsewhere_where_the_folder_cannot_be_written(monkeypatch, capsys):
    from secateur.cli.run import _places

    usual = Path("runs"), Path("demo")
    assert _places(*usual) == usual
    monkeypatch.setattr("os.access", lambda path, mode: False)
    store, out = _places(*usual)
    assert (store.name, out.name) == ("runs", "demo")
    assert store.parent == out.parent
    assert store.parent.is_dir()
    assert f"cannot be written; everything goes to {store.parent}" in capsys.readouterr().err
    assert _places(Path("mine"), Path("demo")) == (Path("mine"), Path("demo"))  # named: an error says so
    store.parent.rmdir()


def test_the_demo_prints_one_table_and_costs_nothing_the_second_time(secateur):
    short = ["--set", "train.epochs=1", "--set", "retrain.epochs=1", "--set", "retrain_again.epochs=1"]
    code, out, err = secateur("demo", *short, "--set", "data.limit=200")
    assert code == 0, err
    rows = {line[:32].strip(): line[32:].split() for line in out.splitlines()[:10]}
    assert rows["parameters"] == ["269,722", "68,050", "68,050"]
    assert rows["non-zero parameters"][2] == "27,639"
    assert rows["multiply-accumulates, one image"] == ["10,138,240", "2,562,368", "2,562,368"]
    assert len(rows["accuracy on the test images"]) == 6
    assert rows["bytes on disk"][2] == f"{Path('demo/resnet20.sct').stat().st_size:,}"
    assert "Not done:" in out
    code, again, _ = secateur("demo", *short, "--set", "data.limit=200")
    assert code == 0
    assert again.splitlines()[:10] == out.splitlines()[:10]
    assert "no time, because every step was in the store" in " ".join(again.split())


def test_completion_knows_the_verbs():
    env = {
        **os.environ,
        "_SECATEUR_COMPLETE": "complete_bash",
        "COMP_WORDS": "secateur sw",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", "from secateur.cli import main; main()"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["sweep"]


def test_what_the_system_refuses_is_no_fault_of_ours(secateur, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", str(tmp_path / "a.part"))

    monkeypatch.setattr("secateur.container.pack.pack", full)
    code, _, err = secateur("pack", "a.safetensors", "a.sct")
    advice = "free some space and run the same command again (what a run store holds is kept); "
    told = (
        f"error: {tmp_path / 'a.part'}: No space left on device; {advice}--debug shows what was being done\n"
    )
    assert (code, err) == (1, told)


def test_pack_names_what_it_left_out(secateur, tmp_path):
    torch.save({"w": torch.eye(4), "epoch": 3, "args": {"lr": 0.1, "k": [1, 2]}}, tmp_path / "a.pt")
    _, out, _ = secateur("pack", "a.pt", "a.sct")
    assert (
        out.splitlines()[1] == "left out, because they are not tensors: epoch, args.lr, args.k.0 and 1 more"
    )
    told = json.loads(secateur("pack", "a.pt", "a.sct", "--json")[1])
    assert told["left_out"] == ["epoch", "args.lr", "args.k.0", "args.k.1"]
    assert (told["file"], told["file_bytes"]) == ("a.sct", Path("a.sct").stat().st_size)


def test_a_run_that_measures_nothing_says_so(secateur, tmp_path):
    (tmp_path / "r.toml").write_text(RECIPE.split('[[step]]\nkind = "measure"')[0])
    code, out, _ = secateur("run", "r.toml", "--quiet")
    assert (code, out) == (0, "nothing was measured; add a step of kind `measure` to see results\n")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_command_that_is_ended_by_a_signal_leaves_with_its_code_and_can_be_continued(tmp_path, name, code):
    recipe = tmp_path / "long.toml"
    recipe.write_text(
        '[data]\nname = "digits"\nlimit = 200\n[model]\nname = "lenet-300-100"\n[lab]\nthreads = 1\n'
        '[[step]]\nkind = "train"\nepochs = 100000\n'
    )
    command = [sys.executable, "-m", "secateur", "run", str(recipe), "--store", str(tmp_path / "store")]
    process = subprocess.Popen(  # under nohup SIGHUP is ignored, and stays so in a child
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(getattr(signal, name), signal.SIG_DFL),
    )
    files = tmp_path / "store"
    deadline = time.monotonic() + 240
    while not any(files.rglob("*.ckpt")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(getattr(signal, name))
    error = process.communicate(timeout=60)[1]
    assert process.returncode == code, error
    assert "Traceback" not in error
    assert not list(files.rglob("*.part*"))
    assert [row.status for row in Store(files).runs()] == ["interrupted"]


def test_shrink_proves_the_modes_that_are_named(secateur):
    shrink = ["shrink", "resnet20", "--input", "1,3,16,16", "--repetitions", "1"]
    code, out, err = secateur(*shrink, "--proof", "no_grad", "--proof", "export")
    assert code == 0, err
    assert "[no_grad, export]" in out
    assert "eager" not in out
    code, _, err = secateur(*shrink, "--proof", "jit")
    assert code == 2
    assert "proof: expected modes among 'eager', 'no_grad', 'compile', 'export', 'train', got ['jit']" in err


def test_a_criterion_that_scores_on_data_is_refused_in_the_words_of_the_command_line(secateur):
    code, _, err = secateur("shrink", "cnn", "--criterion", "taylor")
    assert code == 2
    said = " ".join(err.split())
    assert "--criterion taylor scores on data" in said
    assert "expected one of" in said
    assert " l2," in said
    assert "data=" not in said


def test_a_full_disk_names_the_file(secateur, tmp_path, monkeypatch):
    import errno
    import os

    from secateur.core.atomic_files import atomic_path, atomic_write

    def full(*words):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*a\.bin"):
        atomic_write(tmp_path / "a.bin", b"all")
    with (
        pytest.raises(OSError, match=r"No space left on device: .*b\.bin"),
        atomic_path(tmp_path / "b.bin") as place,
    ):
        place.write_bytes(b"all")
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".bin"]


@pytest.mark.parametrize("error", ["ENOSPC", "EFBIG"])
def test_a_full_disk_is_said_with_what_to_do(secateur, monkeypatch, error):
    import errno
    import os

    from secateur.lab.objects import Objects

    def full(self, data):
        number = getattr(errno, error)
        raise OSError(number, os.strerror(number), "runs/objects/a")

    monkeypatch.setattr(Objects, "put", full)
    code, _, err = secateur("run", "r.toml", "-q")
    assert code == 1
    said = " ".join(err.split())
    assert "runs/objects/a: " in said
    assert "free some space and run the same command again (what a run store holds is kept)" in said


@pytest.mark.parametrize("option", ["--out", "--report"])
def test_a_folder_for_results_that_cannot_be_is_refused_before_any_work(secateur, option):
    Path("afile").write_text("mine")
    for place in ("afile", "afile/inside", "/proc/y"):
        code, out, err = secateur("run", "r.toml", option, place)
        assert (code, out) == (2, "")
        assert place in err
        assert not Path("runs").exists()
    assert Path("afile").read_text() == "mine"
    assert secateur("run", "r.toml", option, "new/folder", "--dry-run")[0] == 0
    assert not Path("new").exists()
    assert not list(Path().glob(".secateur-*"))


def test_the_schema_is_written_again_over_the_file_of_before(secateur):
    for _ in range(2):
        code, _, err = secateur("schema", "--out", "recipe.schema.json")
        assert code == 0, err
    assert json.loads(Path("recipe.schema.json").read_text())["title"] == "secateur recipe"

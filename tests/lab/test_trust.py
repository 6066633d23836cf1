"""What a recipe or a store from a file may not do: import and call code that it names."""

from __future__ import annotations

import json
import os
import pickle
import sqlite3
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from secateur.adapters import _fresh
from secateur.errors import OptionError, RecipeError
from secateur.lab.engine import run
from secateur.lab.planning import plan
from secateur.lab.recipe import Recipe
from secateur.lab.reporting import gather
from secateur.lab.store import Store
from secateur.models import build
from secateur.structure.hf.hub_code import check_attention
from secateur.studies.study import Study

MODULE = """
import pathlib
pathlib.Path({marker!r}).touch()

def net(**options):
    import torch
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
"""
STEPS = '[[step]]\nkind = "prune"\nbudget = 0.5\n'
RECIPE = 'name = "sent"\n[data]\nsize = 28\nlimit = 20\n[model]\nname = "{name}"\n' + STEPS


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module that leaves a mark when it is imported."""
    marker = tmp_path / "it ran"
    (tmp_path / "trap.py").write_text(MODULE.format(marker=str(marker)))
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("trap", None)
    yield marker
    sys.modules.pop("trap", None)


REFUSED = r"this would import trap and call net, .*--allow-code \(in Python: allow_code=True\)"
PLACES = {
    "model": RECIPE.format(name="trap:net"),
    "teacher": RECIPE.format(name="fc") + '[teacher]\nname = "trap:net"\n',
    "grid": RECIPE.format(name="fc") + '[grid]\n"model.name" = ["fc", "trap:net"]\n',
    "nested grid": RECIPE.format(name="fc") + '[grid]\nmodel.name = {values = ["fc", "trap:net"]}\n',
    "choice": RECIPE.format(name="fc")
    + '[choice.net]\na = {"model.name" = "fc"}\nb = {model.name = "trap:net"}\n',
}


@pytest.mark.parametrize("place", PLACES)
def test_a_recipe_that_names_code_is_refused_before_anything_is_imported(tmp_path, trap, place):
    (tmp_path / "r.toml").write_text(PLACES[place])
    with pytest.raises(RecipeError, match=REFUSED):
        Recipe.read(tmp_path / "r.toml")
    with pytest.raises(RecipeError, match=REFUSED):
        Recipe.parse(PLACES[place])
    assert not trap.exists()
    assert Recipe.read(tmp_path / "r.toml", allow_code=True).allowed_code is True
    assert "trap" not in sys.modules


@pytest.mark.parametrize("verb", [["run"], ["run", "--dry-run"], ["sweep", "--grid", "prune.budget=0.5,0.6"]])
def test_the_command_line_refuses_it_too(tmp_path, trap, verb, monkeypatch, capsys):
    from secateur.cli import main

    (tmp_path / "r.toml").write_text(PLACES["model"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["secateur", verb[0], "r.toml", *verb[1:]])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--allow-code" in capsys.readouterr().err
    assert not trap.exists()
    monkeypatch.setattr(sys, "argv", ["secateur", verb[0], "r.toml", *verb[1:], "--allow-code", "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    assert trap.exists()


def test_a_name_given_with_set_is_the_users_own(tmp_path, trap):
    recipe = Recipe.parse(RECIPE.format(name="fc"), ["model.name=trap:net"])
    assert recipe.allowed_code == {"trap:net"}
    assert pickle.loads(pickle.dumps(recipe)).allowed_code == {"trap:net"}
    swept = Recipe.parse(RECIPE.format(name="fc"), grid=["model.name=fc,trap:net"])
    assert [one.model.name for _, one in swept.trials()] == ["fc", "trap:net"]
    assert run(recipe, Store(tmp_path / "runs")).computed == 1
    assert trap.exists()
    with pytest.raises(RecipeError, match="would import other"):
        Recipe.parse(RECIPE.format(name="fc") + '[teacher]\nname = "other:net"\n', ["model.name=trap:net"])


def sent(tmp_path) -> Store:
    """A store whose recipe names code, as somebody may send one."""
    store = Store(tmp_path / "sent")
    run(Recipe.parse(RECIPE.format(name="fc")), store)
    store.close()
    with sqlite3.connect(tmp_path / "sent" / "store.sqlite") as db:
        recipe = json.loads(db.execute("SELECT recipe FROM runs").fetchone()[0])
        recipe["model"] = {"name": "trap:net", "options": {}}
        db.execute("UPDATE runs SET recipe = ?", (json.dumps(recipe),))
    db.close()
    return Store(tmp_path / "sent")


def test_a_report_of_a_store_runs_nothing_that_the_store_names(tmp_path, trap):
    store = sent(tmp_path)
    shown = gather(store)
    assert not trap.exists()
    assert "trap" not in sys.modules
    assert "--allow-code" in shown.provenance["not drawn"]
    assert any(m.name == "mask_sparsity" for m in shown.measurements)
    gather(store, allow_code=True)
    assert trap.exists()


def test_an_export_of_a_store_runs_nothing_that_the_store_names(tmp_path, trap):
    from secateur.cli.export import _of_run

    sent(tmp_path).close()
    with pytest.raises(RecipeError, match=REFUSED):
        _of_run("last", tmp_path / "sent", False)
    assert not trap.exists()


@pytest.mark.parametrize(
    "options",
    [
        "options = {trust_remote_code = true}",
        "options = {config = {trust_remote_code = true}}",
        'options = {checkpoint_path = "evil.pth"}',
        "options = {weights_only = false}",
        'options = {_attn_implementation = "someone/kernel"}',
        'options = {config = {text = {_attn_implementation = "someone/kernel"}}}',
        'options = {cache_dir = "/tmp/elsewhere"}',
        'options = {pretrained_cfg = {file = "evil.pth"}}',
        'options = {pretrained_cfg_overlay = {hf_hub_filename = "evil.bin"}}',
        "options = {allow_all_kernels = true}",
    ],
)
def test_options_that_would_run_code_are_never_taken_from_a_recipe(options):
    text = f'[model]\nname = "hf/someone/model"\n{options}\n{STEPS}'
    for allow in (False, True):
        with pytest.raises(RecipeError, match="which a recipe may not set"):
            Recipe.parse(text, allow_code=allow)
    for key in (
        "model.options.trust_remote_code",
        "model.options.kernel_config.a",
        "teacher.options.a.weights_only",
    ):
        with pytest.raises(RecipeError, match="may not set"):
            Recipe.parse(RECIPE.format(name="fc") + f'[grid]\n"{key}" = [true]\n')


class Marked:
    """What leaves a mark when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_a_folder_of_weights_as_a_pickle_runs_nothing_whatever_a_recipe_asks(tmp_path):
    _fresh._declare_torchvision()  # whose own may not fit torch
    import transformers

    place, marker = tmp_path / "sent", tmp_path / "it ran"
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=8)
    config.save_pretrained(place)
    torch.save({"a": Marked(marker)}, place / "pytorch_model.bin")
    text = f'[model]\nname = "hf/{place}"\noptions = {{auto_class = "AutoModelForCausalLM"%s}}\n{STEPS}'
    with pytest.raises(RecipeError, match="weights_only"):
        Recipe.parse(text % ", weights_only = false")
    with pytest.raises(Exception, match=r"weights_only|safely"):  # transformers' own refusal
        plan(Recipe.parse(text % ""), device="cpu")
    assert not marker.exists()


def test_a_configuration_of_the_hub_that_names_a_kernel_is_refused(tmp_path):
    _fresh._declare_torchvision()
    import transformers

    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=8)
    config.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    own = json.loads(file.read_text())
    for key in ("_attn_implementation", "attn_implementation"):
        file.write_text(json.dumps({**own, key: "someone/kernel"}))
        loaded = transformers.AutoConfig.from_pretrained(str(tmp_path))
        if "/" not in str(loaded._attn_implementation):
            continue  # the installed transformers does not take it from a file
        with pytest.raises(OptionError, match=r"someone/kernel.*is code of the hub"):
            build(f"hf/{tmp_path}", auto_class="AutoModelForCausalLM", pretrained=False)
    loaded = transformers.AutoConfig.from_pretrained(str(tmp_path))
    loaded._attn_implementation = "someone/kernel"
    with pytest.raises(OptionError, match=r"someone/kernel.*is code of the hub"):
        check_attention(loaded, "x")


def test_the_configuration_that_is_checked_is_the_one_that_is_loaded(monkeypatch):
    _fresh._declare_torchvision()
    import transformers

    asked = []

    def configuration(name, **options):
        asked.append(options)
        evil = options.get("revision") == "evil" and options.get("subfolder") == "deep"
        return SimpleNamespace(_attn_implementation="someone/kernel" if evil else "sdpa")

    def never(name, **options):
        raise AssertionError("it was loaded")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", configuration)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", never)
    with pytest.raises(OptionError, match=r"someone/kernel.*is code of the hub"):
        build("hf/a/b", auto_class="AutoModelForCausalLM", revision="evil", subfolder="deep", num_classes=3)
    assert asked == [{"trust_remote_code": False, "revision": "evil", "subfolder": "deep"}]


def tiny_gpt2(place):
    """A folder of a small model, and its configuration."""
    _fresh._declare_torchvision()
    import transformers

    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=8)
    transformers.GPT2LMHeadModel(config).save_pretrained(place)
    return transformers


@pytest.mark.parametrize("subfolder", ["", "deep"])
def test_transformers_reads_no_other_configuration_than_the_one_that_was_checked(
    tmp_path, monkeypatch, subfolder
):
    transformers = tiny_gpt2(tmp_path / subfolder)
    tiny_gpt2(tmp_path / "other")
    read, real = [], transformers.PretrainedConfig.get_config_dict.__func__

    def noted(cls, name, **options):
        read.append((str(name), options.get("subfolder", ""), options.get("revision")))
        return real(cls, name, **options)

    monkeypatch.setattr(transformers.PretrainedConfig, "get_config_dict", classmethod(noted))
    where = {"subfolder": subfolder} if subfolder else {}
    build(f"hf/{tmp_path}", auto_class="AutoModelForCausalLM", **where)
    assert len(read) > 1  # the check, and the load
    assert {(name, folder) for name, folder, _ in read} == {(str(tmp_path), subfolder)}


@pytest.mark.parametrize("subfolder", ["", "deep"])
@pytest.mark.parametrize("beside", [True, False], ids=["beside a model", "alone"])
def test_an_adapter_which_names_another_model_and_modules_is_refused(
    tmp_path, monkeypatch, subfolder, beside
):
    transformers = tiny_gpt2(tmp_path / "base")
    place = tmp_path / "sent" / subfolder
    place.mkdir(parents=True)
    if beside:
        tiny_gpt2(place)
    told = {"base_model_name_or_path": str(tmp_path / "base"), "peft_type": "LORA", "megatron_core": "trap"}
    (place / "adapter_config.json").write_text(json.dumps(told))

    def never(name, **options):
        raise AssertionError("it was loaded")

    monkeypatch.setattr(transformers.utils, "is_peft_available", lambda: True)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", never)
    where = {"subfolder": subfolder} if subfolder else {}
    for more in ({}, {"attn_implementation": "eager"}, {"pretrained": False}):
        with pytest.raises(OptionError, match=r"expected a whole model, got an adapter"):
            build(f"hf/{tmp_path / 'sent'}", auto_class="AutoModelForCausalLM", **where, **more)
    monkeypatch.setattr(transformers.utils, "is_peft_available", lambda: False)
    if beside:  # without PEFT transformers takes no notice of it
        with pytest.raises(AssertionError, match="it was loaded"):
            build(f"hf/{tmp_path / 'sent'}", auto_class="AutoModelForCausalLM", **where)


def test_configurations_within_others_are_checked_at_every_level():
    deep = SimpleNamespace(_attn_implementation={"": "sdpa", "vision": "someone/kernel"})
    middle = SimpleNamespace(sub_configs={"deep": object, "missing": object}, deep=deep)
    outer = SimpleNamespace(_attn_implementation="sdpa", sub_configs={"middle": object}, middle=middle)
    with pytest.raises(OptionError, match=r"someone/kernel.*is code of the hub"):
        check_attention(outer, "x")
    deep._attn_implementation = "eager"
    deep.sub_configs, deep.deep = {"deep": object}, deep  # one that holds itself comes to an end
    check_attention(outer, "x")


def test_a_study_takes_code_from_the_command_line_alone():
    text = """
    title = "t"
    [model]
    name = "{name}"
    [[step]]
    kind = "prune"
    [[part]]
    name = "a"
    [scale.smoke]
    about = "s"
    """
    with pytest.raises(RecipeError, match="--allow-code"):
        Study.parse(text.format(name="trap:net"), "s").recipes("smoke")
    made = Study.parse(text.format(name="fc"), "s").recipes("smoke", ["model.name=trap:net"])
    assert made[0][1].allowed_code == {"trap:net"}


@pytest.mark.slow
def test_a_command_imports_nothing_from_the_folder_it_runs_in(tmp_path):
    """Python itself does, in processes that it starts: a sweep of a recipe in a folder that somebody sent."""
    sent, marker = tmp_path / "sent", tmp_path / "it ran"
    sent.mkdir()
    for name in ("multiprocessing", "signal"):
        (sent / f"{name}.py").write_text(f"open({str(marker)!r}, 'w')")
    text = RECIPE.format(name="fc").partition("[[step]]")[0] + '[[step]]\nkind = "idle"\n'
    (sent / "r.toml").write_text(text)
    script = (
        tmp_path / "secateur"
    )  # as the command that is installed: its own folder comes first, not the one it runs in
    script.write_text("from secateur.cli import main\nif __name__ == '__main__':\n    main()\n")
    call = [sys.executable, str(script), "sweep", "r.toml", "--grid", "idle.seconds=0.0,0.01", "--jobs", "2"]
    without = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    done = subprocess.run(call, cwd=sent, env=without, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not marker.exists()

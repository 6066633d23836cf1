"""`secateur study`: lists, plans, runs through, resumes, and says which published figure is beside which of ours."""

from __future__ import annotations

import json

import pytest

from secateur import studies

# The same studies, as small as they can be, where only the frame is looked at.
TINY = [
    *("--set", "data.limit=60", "--set", "train.epochs=1", "--set", "retrain.epochs=1"),
    *("--set", "retrained.repetitions=2", "--set", "retrained.batch=4"),
]


def test_studies_are_listed(secateur) -> None:
    code, out, _ = secateur("study", "--list")
    assert code == 0
    for name in studies.names():
        assert name in out
    code, out, _ = secateur("list", "studies", "--json")
    listed = json.loads(out)["studies"]
    assert [row["name"] for row in listed] == studies.names()
    own = json.loads(secateur("study", "--list", "--json")[1])["studies"]
    assert [(row["name"], row["about"]) for row in own] == [(row["name"], row["about"]) for row in listed]
    assert own[0]["scales"]


def test_a_study_that_is_not_there_is_a_usage_error(secateur) -> None:
    code, _, err = secateur("study", "vea")
    assert code == 2
    assert "unknown study 'vea': did you mean 'vae'?" in err
    code, _, err = secateur("study")
    assert code == 2
    assert "which study? One of" in err
    code, _, err = secateur("study", "vae", "--scale", "huge")
    assert code == 2
    assert "study vae has no scale 'huge'" in err


def test_a_share_of_gpus_belongs_to_processes_of_this_machine_too(secateur, tmp_path) -> None:
    code, _, err = secateur("study", "vae", *TINY, "--gpus", "0.5", "--quiet", "--no-report")
    assert code == 2
    assert "gpus: 0.5 says how processes share the GPUs, and there is one process" in err
    code, _, err = secateur("study", "vae", *TINY, "--memory", "4")
    assert code == 2
    assert "--memory 4.0: belongs to --engine ray" in err


def test_a_dry_run_tells_the_steps_and_the_time_and_does_nothing(secateur, tmp_path) -> None:
    code, out, _ = secateur("study", "vae", "--dry-run", *TINY)
    assert code == 0
    assert "vae/control" in out
    assert "about " in out
    assert "by a few timed batches on this machine" in out
    assert list(tmp_path.iterdir()) == []


def test_a_study_runs_resumes_and_fills_the_page(secateur, tmp_path) -> None:
    words = ("study", "vae", *TINY, "--quiet", "--set", "epoch.images=20", "--set", "epoch.turns=1")
    code, out, err = secateur(*words, "--json", "--no-report")
    assert code == 0, err
    found = json.loads(out)
    assert found["computed"] > 0
    tables = {table["title"]: table for table in found["tables"]}
    head = tables["Loss per image on the test images: total = KLD + reconstruction"]["head"]
    assert head[4:7] == ["loss", "published", "difference"]
    cost = next(table for title, table in tables.items() if title.startswith("Cost"))
    rows = {(row["variant"], row["coupling"], row["sparsity"]): row for row in cost["values"]}
    assert rows["dense", "", ""]["macs"] == 651_200
    assert rows["pruned", "coupled", 0.8]["macs"] == 126_400
    assert rows["pruned", "coupled", 0.5]["macs"] == 319_600
    assert any("reference inconsistent" in note for note in cost["notes"])

    page = tmp_path / "studies.md"
    code, out, err = secateur(*words, "--out", str(tmp_path / "out"), "--page", str(page), "--cached")
    assert code == 0, err
    assert "0 steps computed" in out
    assert "print(model)" in out
    assert "Linear(in_features=784, out_features=200, bias=True)" in out
    text = page.read_text()
    assert "## vae: Structured pruning" in text
    assert "| dense |" in text
    assert "--scale smoke --set data.limit=60" in text
    html = (tmp_path / "out" / "index.html").read_text()
    assert "Beside what was published" in html
    assert "reference inconsistent" in html
    assert list((tmp_path / "out" / "tables").glob("study-*.csv"))
    assert (tmp_path / "out" / "figures" / "network.svg").exists()


def test_cached_computes_nothing(secateur, tmp_path) -> None:
    code, _, err = secateur("study", "vae", *TINY, "--cached", "--no-report")
    assert code != 0
    assert "runs" in err
    assert list(tmp_path.iterdir()) == [], "nothing begun"
    from secateur.lab.store import Store

    Store(tmp_path / "runs")
    code, _, err = secateur("study", "vae", *TINY, "--cached", "--no-report")
    assert code == 2
    assert "vae at smoke: the store runs lacks " in err
    assert Store(tmp_path / "runs").runs() == []


def test_the_page_does_not_tell_where_data_lie(secateur, tmp_path) -> None:
    from secateur.cli.study import _command

    assert _command("vae", "full", str(tmp_path), ["lab.seed=1"]) == (
        "secateur study vae --scale full --data PATH --set lab.seed=1"
    )
    assert _command("vae", "full", "mnist", []) == "secateur study vae --scale full --data mnist"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "cnn", "resnet101"])
def test_a_smoke_study_goes_through(secateur, tmp_path, name: str) -> None:
    code, out, err = secateur("study", name, "--quiet", "--out", str(tmp_path / "out"))
    assert code == 0, err
    study = studies.read(name)
    missing = [table.title for table in study.table if table.title not in out]
    assert missing == []
    assert "n/a" not in out
    assert "nothing pruned" in out, "the control"
    page = (tmp_path / "out" / "index.html").read_text()
    assert "not drawn" not in page
    assert "print(model)" in page


def test_only_the_first_process_of_a_launcher_says_how_images_are_given(secateur, monkeypatch, tmp_path):
    from secateur.lab import launched

    text = "[data]\nname = 'digits'\nlimit = 20\n[model]\nname = 'cnn'\n[[step]]\nkind = 'prune'\n"
    (tmp_path / "recipe.toml").write_text(text)
    monkeypatch.setattr(launched, "follow", lambda trial, store: None)
    monkeypatch.setenv("RANK", "1")
    code, _, error = secateur("run", "recipe.toml")
    assert (code, error) == (0, "")
    monkeypatch.setenv("RANK", "0")
    assert "digits: images of 1x8x8 are given as" in secateur("run", "recipe.toml")[2]

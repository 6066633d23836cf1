"""Every command and example of the README and of the guide is executed, so that they cannot drift."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest

from secateur import cli
from secateur.adapters import _fresh

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "docs/index.md",
    "docs/guide/cli.md",
    "docs/guide/recipes.md",
    "docs/guide/own-data.md",
    "docs/guide/sweeps.md",
    "docs/guide/sparse-training.md",
    "docs/guide/compare-methods.md",
    "docs/guide/studies.md",
    "docs/guide/budgets.md",
    "docs/guide/reports.md",
    "docs/guide/shrink.md",
    "docs/guide/masks.md",
    "docs/guide/depth.md",
    "docs/guide/files.md",
    "docs/guide/export.md",
    "docs/guide/large-models.md",
    "docs/guide/huggingface.md",
    "docs/guide/yolo.md",
    "docs/guide/trainers.md",
    "docs/guide/compress.md",
    "docs/guide/no-training-pipeline.md",
]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def torchrun(words: list[str]) -> int:
    """A script in several processes, which meet on this machine."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, "-m", "torch.distributed.run", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    print(done.stdout, done.stderr, file=sys.stderr)
    return done.returncode


def execute(command: str, monkeypatch) -> int:
    """One line of a `bash` block."""
    words = shlex.split(command)
    if words[0] == "make":
        # `make test` would run this very test: ask make what it would do, which fails for a target that is
        # not there.
        done = subprocess.run(
            ["make", "-n", "-C", str(ROOT), *words[1:]], capture_output=True, text=True, check=False
        )
        assert {"demo": "secateur demo", "test": "pytest"}[words[1]] in done.stdout
        return done.returncode
    if words[:2] == ["pip", "install"]:
        quick = ["--dry-run", "--no-deps", "--no-build-isolation", "--quiet"]
        where = [word.replace(".", str(ROOT), 1) if word.startswith(".") else word for word in words[2:]]
        return subprocess.run(
            [sys.executable, "-m", "pip", "install", *quick, *where], check=False
        ).returncode
    if words[0] == "python":
        monkeypatch.setattr(sys, "argv", words[1:])
        runpy.run_path(words[1], run_name="__main__")
        return 0
    if words[0] == "torchrun":
        return torchrun(words[1:])
    assert words[0] == "secateur", f"a command that this test does not know how to run: {command}"
    monkeypatch.setattr(sys, "argv", words)
    try:
        cli.main()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_example_works(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _fresh._declare_torchvision()  # transformers imports it, of whatever build it is
    if page.endswith("huggingface.md"):
        pytest.importorskip("transformers")
    if page.endswith("yolo.md"):
        monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
        pytest.importorskip("ultralytics", exc_type=ImportError)
    blocks = _BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    assert len(blocks) >= 3
    module = types.ModuleType("example")  # libraries look up the module of a class
    monkeypatch.setitem(sys.modules, "example", module)
    names = vars(module)
    for language, text in blocks:
        if language == "bash":
            first, _, rest = text.partition("\n")
            extra = re.match(r"# needs the extra (\w+)$", first)
            if extra and importlib.util.find_spec(extra[1]) is None:
                continue
            for command in (rest if extra else text).strip().splitlines():
                assert execute(command, monkeypatch) == 0, f"{command}\n{capsys.readouterr().err}"
        elif language == "python":
            package = re.match(r"# needs (\w+)\n", text)
            if package and importlib.util.find_spec(package[1]) is None:
                continue
            if file := re.match(r"# file: (\S+)\n", text):
                Path(file[1]).write_text(text)
                continue
            exec(compile(text, page, "exec"), names)  # what one block makes the next may use
        elif language == "toml":
            name = re.match(r"# file: (\S+)\n", text)
            assert name, f"a toml block of {page} without its file's name"
            Path(name[1]).write_text(text)
        else:
            assert language == "text", f"a block of {page} in a language that no test executes: {language!r}"


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_points_to_is_there(page):
    for place in re.findall(r"\]\(([^)#:]+)(?:#only-\w+)?\)", (ROOT / page).read_text(encoding="utf-8")):
        assert ((ROOT / page).parent / place).exists(), place


def test_no_command_hides_outside_the_blocks():
    for page in PAGES:
        text = _BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))
        assert not re.findall(r"^(?: {4}|\$ )secateur .*$", text, re.MULTILINE)


TESTED_ELSEWHERE = {  # page -> the test that executes its blocks
    "docs/guide/add-a-criterion.md": "tests/criteria/test_guide_add_a_criterion.py",
    "docs/guide/extend.md": "tests/contracts/test_guide_extend.py",
}


def test_no_page_has_code_that_is_not_executed():
    pages = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
    pages += [path.name for path in ROOT.glob("*.md")]
    with_code = {
        page
        for page in pages
        for language, _ in _BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
        if language != "text"
    }
    assert with_code <= {*PAGES, *TESTED_ELSEWHERE}
    for page, test in TESTED_ELSEWHERE.items():
        assert Path(page).name in (ROOT / test).read_text(encoding="utf-8")
    indented = re.compile(r"(?:^|\n\n)    (?:from|import|secateur|pip|make|model|masks|sc\.)\b")
    for page in with_code:
        text = _BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))
        assert not indented.search(text), f"{page}: code outside a block that a test executes"

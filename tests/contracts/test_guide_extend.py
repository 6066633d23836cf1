"""The guide to extensions: each file is put into a folder of its room, and the code behind it runs as it stands."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

import secateur as sc
from secateur.structure.groups import rules

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "extend.md"
PLACES = {
    "metrics": "_REGISTRY", "report/charts": "_REGISTRY", "data": "registry", "lab/steps": "registry",
    "structure/groups/rules": None, "coding": None,
}  # fmt: skip


def test_every_extension_works_as_the_guide_has_it(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rules, "_RULES", dict(rules.table()))
    modules = set(sys.modules)
    for place, registry in PLACES.items():
        package = importlib.import_module("secateur." + place.replace("/", "."))
        folder = tmp_path / "secateur" / place
        folder.mkdir(parents=True)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        if registry:
            found = getattr(package, registry)
            monkeypatch.setattr(found, "_path", [*found._path, str(folder)])
    names: dict[str, object] = {"__name__": "guide"}
    written = []
    try:
        for code in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL):
            file = re.match(r"# file: (\S+)\n", code)
            if file is None:
                exec(compile(code, str(GUIDE), "exec"), names)
                continue
            written.append(file[1])
            (tmp_path / "secateur" / file[1]).write_text(code, encoding="utf-8")
            importlib.invalidate_caches()
            if "/rules/" in file[1]:
                importlib.import_module("secateur." + file[1].removesuffix(".py").replace("/", "."))
    finally:
        for name in set(sys.modules) - modules:
            if name.startswith("secateur.") and getattr(sys.modules[name], "__file__", "").startswith(
                str(tmp_path)
            ):
                del sys.modules[name]
    assert sorted(str(Path(name).parent) for name in written) == sorted(PLACES)


def test_without_its_file_an_extension_is_not_there() -> None:
    with pytest.raises(sc.errors.SecateurError, match="largest_weight"):
        sc.measure(sc.models.build("lenet-300-100"), what=["largest_weight"])

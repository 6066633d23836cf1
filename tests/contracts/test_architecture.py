"""ARCHITECTURE.md names every room once, in the order of the layers; it and the front doors name what is there."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "secateur"
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def _layers() -> list[set[str]]:
    """The rooms of every layer, from the top, as import-linter holds them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(one["layers"] for one in contracts["contracts"] if one["type"] == "layers")
    return [set(re.findall(r"\w+", layer)) for layer in layers]


def test_every_room_has_one_line_in_the_order_of_the_layers():
    rooms = re.findall(r"^\| `(\w+)/` \|", TEXT.partition("## Beside src/")[0], re.MULTILINE)
    there = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert sorted(rooms) == sorted(there)
    level = {room: index for index, layer in enumerate(_layers()) for room in layer}
    assert [level[room] for room in rooms] == sorted(level[room] for room in rooms)


def test_every_module_and_name_it_points_to_is_there():
    named = set(re.findall(r"`((?:" + "|".join(sorted(map(str, _rooms()))) + r")(?:\.\w+)+)`", TEXT))
    assert len(named) > 12
    assert [name for name in sorted(named) if not _exists(name)] == []


def _rooms() -> set[str]:
    return {path.parent.name for path in SOURCE.glob("*/__init__.py")}


def _exists(name: str) -> bool:
    """True if there is a module of this dotted name, or a module with this attribute."""
    try:
        return bool(importlib.import_module(f"secateur.{name}"))
    except ModuleNotFoundError:
        module, _, last = name.rpartition(".")
        return hasattr(importlib.import_module(f"secateur.{module}"), last)


def test_every_folder_and_file_it_points_to_is_there():
    for place in re.findall(r"`([\w/]+/(?:\w+\.\w+)?)`", TEXT):
        assert (SOURCE / place).exists() or (ROOT / place).exists() or (ROOT / "tests" / place).exists(), (
            place
        )


def test_the_numbers_of_the_walk():
    import torch

    import secateur as sc

    model = sc.models.build("resnet20").eval()
    example = torch.randn(1, 3, 32, 32)
    group = sc.explain(model, example).groups[0]
    assert (group.count, len(group.members), group.parameters / group.count) == (16, 60, 6105)
    masks = sc.prune(model, "l2", "channel", 0.5, example=example)
    small = sc.shrink(model, masks, example)
    assert small.model.conv1.weight.shape == (8, 3, 3, 3)
    assert "60 tensor axes, 6,105 parameters" in TEXT
    assert small.model.conv1.weight.numel() == 216


# Folders in which every file is one thing of a kind, and its name says which: plug-ins, and the commands.
_ALIKE = {
    "cli",
    "criteria",
    "granularity",
    "lab/steps",
    "lab/training/distill",
    "models",
    "quantize/methods",
    "quantize/starts",
    "report/charts",
    "structure/groups/rules",
}


def _front_doors() -> dict[str, tuple[str, set[str]]]:
    """For every room and folder in it: the docstring of its `__init__`, and the modules and folders it holds."""
    found = {}
    for file in sorted(SOURCE.glob("*/**/__init__.py")):
        folder = file.parent
        inner = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
        inner |= {path.parent.name for path in folder.glob("*/__init__.py")}
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        found[folder.relative_to(SOURCE).as_posix()] = text, inner
    return found


def test_every_front_door_names_the_modules_behind_it():
    doors = _front_doors()
    assert doors.keys() > _ALIKE
    missing = {
        room: absent
        for room, (text, modules) in doors.items()
        if room not in _ALIKE
        and (absent := sorted(one for one in modules if one[0] != "_" and not re.search(rf"\b{one}\b", text)))
    }
    assert missing == {}


def test_every_module_that_a_front_door_lists_is_there():
    """In a list `- `name`, `folder/`: what it is for`, the names before the first colon are modules of the room."""
    gone = {
        f"{room}: {name}"
        for room, (text, modules) in _front_doors().items()
        for item in re.findall(r"^- ((?:`\w+/?`(?:, | and )?)+):", text, re.MULTILINE)
        for name in re.findall(r"`(\w+)/?`", item)
        if name not in modules
    }
    assert gone == set()


def test_the_tests_of_every_room_are_in_a_folder_of_its_name():
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders - _rooms() == {"accelerator", "attacks", "contracts", "zoo"}
    assert _rooms() <= folders


def _imported(file: Path) -> set[str]:
    """The modules of the package that a file imports anywhere: for types only and inside functions as well."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("secateur"):
            found |= {f"{node.module}.{each.name}" for each in node.names} | {str(node.module)}
    return found


def _circles(imports: dict[str, set[str]]) -> list[set[str]]:
    """The sets of modules that import each other in a loop."""
    reached = {name: set(there) & imports.keys() for name, there in imports.items()}
    for middle in imports:
        for name in imports:
            if middle in reached[name]:
                reached[name] |= reached[middle]
    return [
        {other for other in reached[name] if name in reached[other]}
        for name in imports
        if name in reached[name]
    ]


def test_no_files_import_each_other_in_a_loop():
    files = {
        ".".join(("secateur", *file.relative_to(SOURCE).with_suffix("").parts)): file
        for file in SOURCE.rglob("*.py")
        if file.name != "__init__.py"
    }
    assert _circles({name: _imported(file) for name, file in files.items()}) == []
    assert _circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}] * 3

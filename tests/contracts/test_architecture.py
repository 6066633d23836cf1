"""ARCHITECTURE.md names every room once, in the order of the layers, and every module it names is there."""

from __future__ import annotations

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

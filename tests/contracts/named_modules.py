"""A contract of import-linter: a room that a string names (`import_module("secateur.report.page")`) counts as imported.

Only the package itself and the rooms above may name a room; otherwise an arrow could point upwards unseen.
"""

from __future__ import annotations

import ast
from pathlib import Path

from importlinter import Contract, ContractCheck, output

ROOT = Path(__file__).parents[2] / "src" / "secateur"
# from the top to the bottom; rooms of one line do not name each other
LAYERS = [
    ["cli"], ["search", "studies"], ["lab"], ["data", "report", "sensitivity"], ["models"], ["adapters", "streaming"],
    ["sparsify"], ["pruning"], ["container", "metrics"], ["granularity"],
    ["allocation", "criteria", "budget", "quantize", "coding", "structure"], ["compensation"], ["execution"], ["core"],
]  # fmt: skip
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def named(source: str) -> list[str]:
    """The modules of secateur that string constants of a file name whole.

    >>> named("x = import_module('secateur.report.page')")
    ['secateur.report.page']
    """
    constants = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    words = [value for value in constants if isinstance(value, str) and value.startswith("secateur.")]
    return [word for word in words if word.replace(".", "").replace("_", "").isalnum()]


def upward(room: str, source: str) -> list[str]:
    """The modules that a file of this room names although they lie above it or beside it."""
    found = []
    for name in named(source):
        other = name.split(".")[1]
        if other in LEVEL and other != room and LEVEL[other] <= LEVEL[room]:
            found.append(name)
    return found


class NamedModules(Contract):
    """Strings name modules of the same room or of rooms below."""

    def check(self, graph, verbose):
        breaches = []
        for path in sorted(ROOT.rglob("*.py")):
            place = path.relative_to(ROOT)
            if len(place.parts) > 1:
                names = upward(place.parts[0], path.read_text(encoding="utf-8"))
                breaches += [(str(place), name) for name in names]
        return ContractCheck(kept=not breaches, metadata={"breaches": breaches})

    def render_broken_contract(self, check):
        for place, name in check.metadata["breaches"]:
            output.print_error(f"{place} names {name}, which lies above it")

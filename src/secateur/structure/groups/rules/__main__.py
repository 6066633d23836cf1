"""Print docs/operators.md: `python -m secateur.structure.groups.rules > docs/operators.md`."""

from __future__ import annotations

from secateur.structure.groups.rules import markdown

if __name__ == "__main__":
    print(markdown(), end="")  # noqa: T201

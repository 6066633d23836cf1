"""The guide's example is run as it stands in the guide, and must print what the guide says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "add-a-criterion.md"


def test_the_guides_code_runs_and_prints_what_it_says() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    blocks = re.findall(r"```(python|text)\n(.*?)```", text, flags=re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "python", "text", "python"]
    names: dict[str, Any] = {"__name__": "guide"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for kind, code in blocks:
            if kind == "python":
                exec(compile(code, str(GUIDE), "exec"), names)
    (shown,) = (code for kind, code in blocks if kind == "text")
    assert printed.getvalue() == shown


def test_every_field_the_guide_names_exists() -> None:
    from secateur.criteria import Criterion

    named = re.findall(r"^\| `(\w+)", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(named) == 7
    assert all(hasattr(Criterion, name) for name in named)

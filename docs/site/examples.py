"""The examples of the reference: docs/site/examples.md, one section for each public name or a few that belong together.

A section is headed by the names that it shows, may say which packages it needs ("Needs onnx."), and holds lines as of
Python's prompt with what they print. The tests execute every section as a doctest, and ask that each public name has
one here or in its docstring; `pages.py` puts it under the name in the reference.

>>> sections("Intro\\n>>> x = 1\\n\\n## one, two\\n\\nNeeds torch. Adds.\\n\\n>>> x + 1\\n2\\n")[1]
Section(names=('one', 'two'), needs=('torch',), text='Needs torch. Adds.', code='>>> x + 1\\n2\\n')
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FILE", "Section", "sections"]

FILE = Path(__file__).with_name("examples.md")
_NEEDS = re.compile(r"^Needs ([\w, ]+)\.", re.MULTILINE)


@dataclass(frozen=True)
class Section:
    """One example."""

    names: tuple[str, ...]
    needs: tuple[str, ...]
    text: str
    code: str


def sections(text: str) -> list[Section]:
    """What every example begins with (under no name), and then the examples.

    Args:
        text: The file.
    """
    heads = [(), *(tuple(head.split(", ")) for head in re.findall(r"^## (.+)$", text, re.MULTILINE))]
    found = []
    for names, body in zip(heads, re.split(r"^## .+$", text, flags=re.MULTILINE)):
        prose, mark, code = body.partition(">>> ")
        needs = _NEEDS.search(prose)
        found.append(
            Section(
                names, tuple(needs[1].split(", ")) if needs else (), prose.strip(), mark + code.strip() + "\n"
            )
        )
    return found

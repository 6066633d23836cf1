"""docs/studies.md: every part of every recipe has a row or a reason; the first table agrees with the sections."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from secateur import studies
from secateur.studies.page import markdown_table
from secateur.studies.study import Part
from secateur.studies.tables import Tabulated

PAGE = (Path(__file__).parents[2] / "docs" / "studies.md").read_text(encoding="utf-8")


def section(name: str) -> str:
    return PAGE.partition(f"<!-- study: {name} -->")[2].partition(f"<!-- end of {name} -->")[0]


def cells(text: str) -> set[str]:
    return {cell.strip() for line in text.splitlines() if line.startswith("|") for cell in line.split("|")}


def words(part: Part) -> list[str]:
    """What rows of a part hold: the texts of its context, and of the axes of its grid."""
    found = [str(value) for value in part.context.values() if isinstance(value, str)]
    for values in part.grid.values():
        found += [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
    return found


def reasons() -> dict[tuple[str, str], str]:
    table = PAGE.partition("## What is not in the sections below")[2].partition("<!-- study")[0]
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in table.splitlines()
        if line.startswith("| ")
    ]
    return {(study, part): reason for study, part, reason in rows[1:]}


def missing(name: str) -> dict[str, list[str]]:
    there = cells(section(name))
    found = {
        part.name: [word for word in words(part) if word not in there] for part in studies.read(name).part
    }
    return {part: gone for part, gone in found.items() if gone}


def test_every_part_of_every_recipe_has_its_row_or_a_reason() -> None:
    told = {(study, part) for study, part in reasons()}
    gone = {(name, part) for name in studies.names() for part in missing(name)}
    assert gone == told


def test_every_study_has_a_section_and_long_tables_are_folded() -> None:
    for name in studies.names():
        text = section(name)
        assert text, name
        for table in re.findall(
            r"(?:^\|.*\n)+", re.sub(r"<details.*?</details>", "", text, flags=re.S), re.M
        ):
            assert table.count("\n") - 2 <= 16, f"{name}: {table[:80]}"


@pytest.mark.parametrize("line", [
    line for line in PAGE.partition("## At a glance")[2].partition("What the missing")[0].splitlines()[7:] if line
])  # fmt: skip
def test_the_first_table_says_what_the_sections_say(line: str) -> None:
    name, _, published, ours, *_, scale = (cell.strip() for cell in line.split("|")[1:-1])
    text = section(name)
    assert f"Scale {scale}" in text
    for number in [*published.split(", "), *ours.split(", ")]:
        if number != "none" and "," not in number:
            assert number in cells(text) or number.rstrip("0") in cells(text), number


def test_long_tables_of_the_page_are_folded() -> None:
    made = Tabulated("Cost", head=("a",), rows=[(str(k),) for k in range(17)])
    assert markdown_table(made).startswith('<details markdown="1"><summary>17 rows</summary>\n\n| a |')
    assert markdown_table(made).endswith("\n\n</details>")
    made.rows.pop()
    assert markdown_table(made).startswith("| a |")

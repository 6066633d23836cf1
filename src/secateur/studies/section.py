"""`Section`: the results of one study as they are kept beside a page: every table, the printed models, the machine.

    PAGE.md                    the page: short tables, and of long ones the rows that have a published figure
    PAGE/NAME/section.json     a study's section with all its tables, from which the page is written
    PAGE/NAME/*.csv            the long tables, whole
    PAGE/NAME/*.txt            the long printed models

>>> table = Tabulated("Cost", head=("sparsity", "macs"), rows=[("0.5", "324,400")], right=(1,))
>>> section = Section("vae", "An auto-encoder", "full", tables=(table,))
>>> Section.from_json(section.to_json()) == section
True
>>> print(section.markdown("studies").splitlines()[0])
## vae: An auto-encoder
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from secateur.core.atomic_files import atomic_open
from secateur.errors import DataError
from secateur.report.files import csv_text
from secateur.studies.tables import Tabulated

__all__ = ["Section", "markdown_table"]

_LONG_TABLE = 16
_MOST_PUBLISHED = 32
_LONG_TEXT = 30


@dataclass(frozen=True)
class Section:
    """One study at one scale, as text.

    Args:
        study: The study's name.
        title: Its title.
        scale: The scale that it ran at.
        about: What the study is.
        scale_about: What the scale is.
        command: The command that printed the tables.
        ran: Seed, device, machine and time in one line.
        failures: What failed, in a sentence; empty for nothing.
        tables: Every table.
        printed: Title and text of every pair of printed models.
        notes: Remarks for the reader.
        parts: The parts that ran.
        beside: Whether it stands beside the study's main section, because its scale runs some parts alone.
    """

    study: str
    title: str
    scale: str
    about: str = ""
    scale_about: str = ""
    command: str = ""
    ran: str = ""
    failures: str = ""
    tables: tuple[Tabulated, ...] = ()
    printed: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    beside: bool = False

    @property
    def name(self) -> str:
        """The section's name in the page, and of its folder."""
        return f"{self.study}-{self.scale}" if self.beside else self.study

    def to_json(self) -> str:
        """The section as JSON; `from_json` is the inverse."""
        plain = asdict(self)
        keys = ("title", "about", "head", "right", "rows", "notes")
        plain["tables"] = [{key: plain_table[key] for key in keys} for plain_table in plain["tables"]]
        lines = json.dumps(plain, indent=1, ensure_ascii=False)
        # A row of a table on one line, so that a change of it is one line too.
        return (
            re.sub(r"\[\n\s+(\"(?:[^\"\\]|\\.)*\"(?:,\n\s+\"(?:[^\"\\]|\\.)*\")*)\n\s+\]", _joined, lines)
            + "\n"
        )

    @classmethod
    def from_json(cls, text: str) -> Section:
        """A section from the text of its file.

        Args:
            text: What `to_json` wrote.

        Raises:
            DataError: It is something else.
        """
        try:
            plain: dict[str, Any] = json.loads(text)
            tables = tuple(_table(one) for one in plain.pop("tables"))
            printed = tuple((str(title), str(body)) for title, body in plain.pop("printed"))
            notes, parts = tuple(plain.pop("notes")), tuple(plain.pop("parts"))
            return cls(tables=tables, printed=printed, notes=notes, parts=parts, **plain)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"a study's kept section: expected what secateur writes, got {error}") from error

    def markdown(self, folder: str) -> str:
        """The section of the page.

        Args:
            folder: The name of the folder beside the page that holds the long tables.
        """
        lines = [f"## {self.name}: {self.title}", "", *([] if self.beside else [self.about, ""])]
        lines += [f"Scale `{self.scale}`: {self.scale_about}", "", f"`{self.command}`, {self.ran}"]
        lines += ["", self.failures] if self.failures else []
        files = iter(self.files())
        for table in self.tables:
            lines += ["", f"### {table.title}", ""]
            lines += [table.about.strip(), ""] if table.about else []
            shown = shortened(table)
            lines += [markdown_table(shown)] if shown.rows else []
            if len(shown.rows) < len(table.rows):
                said = "All" if shown.rows else "In a file of its own:"
                lines += [""] * bool(shown.rows) + [
                    f"{said} {len(table.rows)} rows: [CSV]({folder}/{self.name}/{next(files)})"
                ]
            marks = ["\\*" * (index + 1) for index in range(len(table.notes))]
            lines += ["", *(f"({mark}) {note}." for mark, note in zip(marks, table.notes))]
        for title, text in self.printed:
            lines += ["", f"### {title}", ""]
            long = text.count("\n") >= _LONG_TEXT
            lines += (
                [f"[Both printed side by side]({folder}/{self.name}/{next(files)})"]
                if long
                else ["```text", text, "```"]
            )
        for note in () if self.beside else self.notes:
            lines += ["", note.strip()]
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"

    def files(self) -> dict[str, str]:
        """Name and text of every file that the page leaves a table or printed models to, in the page's order."""
        found = {}
        for table in self.tables:
            if len(table.rows) > _LONG_TABLE:
                found[f"{slug(table.title)}.csv"] = csv_text(table.head, table.rows)
        for title, text in self.printed:
            if text.count("\n") >= _LONG_TEXT:
                found[f"{slug(title)}.txt"] = text + "\n"
        return found

    def write(self, folder: Path) -> None:
        """Write the section and its files into the folder beside the page; files of an earlier run are removed.

        Args:
            folder: The folder, made if missing.
        """
        own = folder / self.name
        own.mkdir(parents=True, exist_ok=True)
        wanted = {"section.json": self.to_json(), **self.files()}
        for name, text in wanted.items():
            with atomic_open(own / name) as file:
                file.write(text.encode("utf-8"))
        for path in own.iterdir():
            if path.name not in wanted and path.suffix in (".csv", ".txt"):
                path.unlink()


def _joined(found: re.Match[str]) -> str:
    return "[" + re.sub(r",\n\s+", ", ", found.group(1)) + "]"


def _table(plain: dict[str, Any]) -> Tabulated:
    rows = [tuple(str(cell) for cell in row) for row in plain["rows"]]
    table = Tabulated(plain["title"], plain["about"], tuple(plain["head"]), rows)
    table.notes, table.right = list(plain["notes"]), tuple(plain["right"])
    return table


def slug(text: str) -> str:
    """A title as the stem of a file.

    >>> slug("FLOPs of every layer at a = 0.5")
    'flops-of-every-layer-at-a-0-5'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].rstrip("-")


def shortened(table: Tabulated) -> Tabulated:
    """A table as the page shows it: the whole, or of a long one the rows with a published figure.

    >>> long = Tabulated("t", head=("a", "ours", "published"), rows=[(str(k), "1", "1" * (k == 3)) for k in range(20)])
    >>> shortened(long).rows
    [('3', '1', '1')]
    """
    if len(table.rows) <= _LONG_TABLE:
        return table
    published = [index for index, word in enumerate(table.head) if word == "published"]
    rows = [row for row in table.rows if any(row[index] for index in published)]
    return replace(table, rows=rows if len(rows) <= _MOST_PUBLISHED else [])


def markdown_table(table: Tabulated) -> str:
    """A table in Markdown."""

    def line(cells: Sequence[str]) -> str:
        # An asterisk is a mark here, not emphasis.
        written = [cell.replace("|", "\\|").replace("*", "\\*") for cell in cells]
        return f"| {' | '.join(written)} |"

    rule = "|".join("--:" if index in table.right else "---" for index in range(len(table.head)))
    return "\n".join([line(table.head), f"|{rule}|", *(line(row) for row in table.rows)])

"""A study as text: its tables and printed models for a terminal, its section of a Markdown page, its report page.

>>> from secateur.studies.tables import Tabulated
>>> print(markdown_table(Tabulated("Cost", head=("sparsity", "macs"), rows=[("0.5", "324,400")], right=(1,))))
| sparsity | macs |
|---|--:|
| 0.5 | 324,400 |
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secateur.core.atomic_files import atomic_open
from secateur.core.measurement import Measurement, Measurements
from secateur.errors import DataError
from secateur.lab.engine import Ran
from secateur.lab.planning import builder
from secateur.lab.provenance import hardware, versions
from secateur.lab.reporting import pictures_of, provenance
from secateur.lab.state import revive
from secateur.lab.store import Store
from secateur.report import Report, Run
from secateur.report.files import atomic_write, csv_text
from secateur.report.printout import Pair, folded, side_by_side
from secateur.studies.published import published_measurements
from secateur.studies.running import StudyResult
from secateur.studies.study import Picture
from secateur.studies.tables import Tabulated

__all__ = ["into_page", "markdown", "markdown_table", "printouts", "rest_table", "write_report"]


def rest_table(done: StudyResult) -> Tabulated:
    """The published figures that are in no other table."""
    made = Tabulated(
        "Other published figures", head=("measure", "of", "published", "ours", "difference", "verdict")
    )
    made.right = (2, 3, 4)
    for row in done.rest():
        verdict = f"{row.verdict}: {row.note}" if row.note else row.verdict
        made.rows.append((row.name, row.variant, row.published, row.ours, row.difference, verdict))
        made.values.append(made.rows[-1])
    return made


def all_tables(done: StudyResult) -> list[Tabulated]:
    """Every table that is not empty."""
    rest = rest_table(done)
    return [*done.tables(), *([rest] if rest.rows else [])]


def printouts(done: StudyResult, store: Store) -> list[tuple[str, str, str, list[Pair]]]:
    """(title, name before, name after, matched lines) of every pair of models to be printed."""
    found = []
    for picture in done.study.picture:
        if len(picture.printed) != 2:
            continue
        place = done.trial(picture)
        if place is None:
            continue
        texts = [_printed(store, *place, label) for label in picture.printed]
        if None not in texts:
            said = ", ".join(f"{key} {value}" for key, value in picture.where.items())
            title = f"print(model), {said}" if said else "print(model)"
            pairs = folded(side_by_side(str(texts[0]), str(texts[1])))
            found.append((title, picture.printed[0], picture.printed[1], pairs))
    return found


def _printed(store: Store, ran: Ran, trial: int, label: str) -> str | None:
    planned = ran.plan.trials[trial]
    step = next((step for step in planned.steps if step.label == label), None)
    outcome = store.outcome(step.key) if step is not None else None
    if outcome is None:
        return None
    return str(revive(outcome.state, store.objects, builder(planned.recipe)).model)


# -- the page of all studies
# -----------------------------------------------------------------------------------------


_FOLDED = 16


def markdown_table(table: Tabulated) -> str:
    """A table in Markdown; one of more than sixteen rows is folded away."""

    def line(cells: Sequence[str]) -> str:
        # An asterisk is a mark here, not emphasis.
        written = [cell.replace("|", "\\|").replace("*", "\\*") for cell in cells]
        return f"| {' | '.join(written)} |"

    rule = "|".join("--:" if index in table.right else "---" for index in range(len(table.head)))
    text = "\n".join([line(table.head), f"|{rule}|", *(line(row) for row in table.rows)])
    if len(table.rows) <= _FOLDED:
        return text
    return f'<details markdown="1"><summary>{len(table.rows)} rows</summary>\n\n{text}\n\n</details>'


def markdown(done: StudyResult, store: Store, command: str) -> str:
    """The study's section: its steps, its command, and every table."""
    study, where = done.study, hardware()
    spent = _spent(done, store)
    gpus = f", {', '.join(where['gpus'])}" if where.get("gpus") else ""
    lines = [
        f"## {study.name}: {study.title}",
        "",
        study.about.strip(),
        "",
        f"Scale `{done.planned.scale}`: {study.at(done.planned.scale).about.strip()}",
        "",
        f"`{command}`, seed {done.planned.parts[0][1].recipe.lab.seed}, {done.planned.parts[0][1].device} "
        f"({where['cpu']}, {where['cores']} cores{gpus}, torch {versions()['torch']}); the steps took {spent} "
        "when they were computed.",
    ]
    if done.failures:
        lines += ["", f"{len(done.failures)} trials failed: {done.failures[0][2]}"]
    for table in all_tables(done):
        lines += ["", f"### {table.title}", ""]
        lines += [table.about.strip(), ""] if table.about else []
        lines += [markdown_table(table)]
        marks = ["\\*" * (index + 1) for index in range(len(table.notes))]
        lines += ["", *(f"({mark}) {note}." for mark, note in zip(marks, table.notes))]
    for title, before, after, pairs in printouts(done, store):
        lines += ["", f"### {title}", "", "```text", *_columns(before, after, pairs), "```"]
    for note in study.notes:
        lines += ["", note.strip()]
    text = "\n".join(lines)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _columns(before: str, after: str, pairs: Sequence[Pair]) -> list[str]:
    """Two texts side by side as plain lines; those that differ are marked."""
    width = min(90, max([len(before), *(len(pair.before) for pair in pairs)], default=0))
    marks = {"changed": "≠", "removed": "−", "added": "+"}
    lines = [f"  {before:<{width}}  {after}"]
    for pair in pairs:
        right = "" if pair.kind == "folded" else pair.after
        lines.append(f"{marks.get(pair.kind, ' ')} {pair.before:<{width}}  {right}".rstrip())
    return lines


def printed_columns(before: str, after: str, pairs: Sequence[Pair]) -> str:
    """Two printed models side by side.

    >>> print(printed_columns("dense", "shrunk", [Pair("changed", "Linear(4, 4)", "Linear(4, 2)")]))
      dense         shrunk
    ≠ Linear(4, 4)  Linear(4, 2)
    """
    return "\n".join(_columns(before, after, pairs))


def _spent(done: StudyResult, store: Store) -> str:
    from secateur.lab.display.duration import duration

    keys = {key for _, ran in done.ran for key in ran.plan.keys()}  # noqa: SIM118
    outcomes = [store.outcome(key) for key in keys]
    return duration(sum(outcome.seconds for outcome in outcomes if outcome is not None))


def into_page(path: Path, name: str, section: str) -> None:
    """Put a study's section into the page, in place of the present one; a missing page is created.

    >>> import tempfile
    >>> page = Path(tempfile.mkdtemp()) / "studies.md"
    >>> for name, text in (("vae", "first"), ("cnn", "other"), ("vae", "again")):
    ...     into_page(page, name, f"## {text}\\n")
    >>> [word in page.read_text() for word in ("first", "other", "again")]
    [False, True, True]
    """
    start, end = f"<!-- study: {name} -->\n", f"<!-- end of {name} -->\n"
    whole = path.read_text(encoding="utf-8") if path.exists() else _HEAD
    block = f"{start}\n{section}\n{end}"
    if start in whole:
        before, _, rest = whole.partition(start)
        _, found, after = rest.partition(end)
        if not found:
            raise DataError(
                f"{path}: the section of {name!r} begins but does not end with {end.strip()}; restore that line"
            )
        whole = before + block + after
    else:
        whole = whole.rstrip("\n") + "\n\n" + block
    with atomic_open(path) as file:
        file.write(whole.encode("utf-8"))


_HEAD = """# The published studies, run with secateur

This page is generated: `secateur study NAME --page FILE` replaces the section of that study by what its store holds.
Where a figure was published it stands beside ours with the difference, ours less the published one. A figure that
cannot follow from the report's own model is marked, and compared with the one that does.
"""


# -- the report page
# -------------------------------------------------------------------------------------------------


def _pictures(done: StudyResult, store: Store, undrawn: list[str]) -> Measurements:
    """Drawings and histograms of the trials the study names; the first trial's of the last part otherwise."""
    wanted = done.study.picture or (Picture.model_validate({"part": done.ran[-1][0].name}),)
    found: list[Measurement] = []
    for picture in wanted:
        place = done.trial(picture)
        if place is None:
            continue
        ran, index = place
        planned = ran.plan.trials[index]
        known = {step.label: step.key for step in planned.steps}
        labels = [label for label in (picture.steps or known) if label in known]
        prefix = f"{picture.name} · " if picture.name else ""
        steps = [{"label": f"{prefix}{label}", "key": known[label]} for label in labels]
        found += pictures_of(store, planned.recipe.plain(), steps, undrawn, planned.recipe.allowed_code)
    return Measurements(found)


def write_report(done: StudyResult, store: Store, folder: Path, *, pictures: bool = True) -> list[Path]:
    """The study's page with every figure, and every table as CSV."""
    undrawn: list[str] = []
    drawn = _pictures(done, store, undrawn) if pictures else Measurements()
    told: dict[str, Any] = {}
    for part, ran in done.ran:
        told |= {f"{part.name}: {key}": value for key, value in provenance(store, ran.run).items()}
    if undrawn:
        told["not drawn"] = "; ".join(undrawn)
    failures = tuple(f"{part}, trial {index + 1}: {text}" for part, index, text in done.failures)
    study = done.study
    about = f"{study.about.strip()} Scale {done.planned.scale}: {study.at(done.planned.scale).about.strip()}"
    measured = done.measurements + published_measurements(list(done.figures)) + drawn
    name = f"{study.name} ({done.planned.scale})"
    written = Report([Run(name, measured, about, told, failures)], study.title).write(folder)
    for index, table in enumerate(all_tables(done), start=1):
        stem = re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")
        text = csv_text(table.head, table.values)
        written.append(
            atomic_write(folder / "tables" / f"study-{index:02d}-{stem}.csv", text.encode("utf-8"))
        )
    return written

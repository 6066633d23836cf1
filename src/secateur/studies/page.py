"""A study as text: its tables and printed models for a terminal, its section of a Markdown page, its report page.

>>> printed_columns("dense", "shrunk", [])
'  dense  shrunk'
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
from secateur.studies.section import Section
from secateur.studies.study import Picture
from secateur.studies.tables import Tabulated

__all__ = ["into_page", "printouts", "rest_table", "section_of", "write_report"]


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


def section_of(done: StudyResult, store: Store, command: str) -> Section:
    """The study's section of a page.

    Args:
        done: The study, run.
        store: Where its models are.
        command: The command line, without paths of this machine.

    Returns:
        The section, as it is kept.
    """
    study, where = done.study, hardware()
    gpus = f", {', '.join(where['gpus'])}" if where.get("gpus") else ""
    first = done.planned.parts[0][1]
    failed = f"{len(done.failures)} trials failed: {done.failures[0][2]}" if done.failures else ""
    return Section(
        study=study.name,
        title=study.title,
        scale=done.planned.scale,
        parts=tuple(part.name for part, _ in done.ran),
        beside=study.at(done.planned.scale).beside,
        about=study.about.strip(),
        scale_about=study.at(done.planned.scale).about.strip(),
        command=command,
        ran=f"seed {first.recipe.lab.seed}, {first.device} ({where['cpu']}, {where['cores']} cores{gpus}, "
        f"torch {versions()['torch']}); the steps took {_spent(done, store)} when they were computed.",
        failures=failed,
        tables=tuple(all_tables(done)),
        printed=tuple(
            (title, "\n".join(_columns(before, after, pairs)))
            for title, before, after, pairs in printouts(done, store)
        ),
        notes=tuple(" ".join(note.split()) for note in study.notes),
    )


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


def into_page(path: Path, section: Section) -> None:
    """Put a study's section into the page, in place of the present one, and keep it in the folder beside the page.

    Args:
        path: The page; a missing one is created. The folder beside it has its name without the ending.
        section: The section.

    Raises:
        DataError: The present section has no end.

    >>> import tempfile
    >>> page = Path(tempfile.mkdtemp()) / "studies.md"
    >>> for name, text in (("vae", "first"), ("cnn", "other"), ("vae", "again")):
    ...     into_page(page, Section(name, text, "full"))
    >>> [word in page.read_text() for word in ("first", "other", "again")]
    [False, True, True]
    """
    name, folder = section.name, path.with_suffix("")
    start, end = f"<!-- study: {name} -->\n", f"<!-- end of {name} -->\n"
    whole = path.read_text(encoding="utf-8") if path.exists() else _HEAD
    block = f"{start}\n{section.markdown(folder.name)}\n{end}"
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
    section.write(folder)
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
    for part, ran in done.ran:
        drawn = drawn + store.usage(ran.run).within({"part": part.name})
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

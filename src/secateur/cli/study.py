"""The verb `study`: a published study as one command; every table on standard output, every figure on one page.

>>> from secateur import studies
>>> "vae" in studies.names()
True
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.cluster import Cluster, ClusterFlags
from secateur.cli.flags import with_flags
from secateur.cli.options import STORE, ProgressFlags, RecipeChanges, StoreFolder, results_folder
from secateur.cli.output import print_json, show_table
from secateur.core.terminal import say
from secateur.errors import OptionError, SecateurError, near

if TYPE_CHECKING:
    from collections.abc import Callable

    from secateur.lab.display.preview import Preview
    from secateur.lab.engines import Engine
    from secateur.lab.store import Store
    from secateur.studies.running import StudyPlan, StudyResult

__all__ = ["VERBS"]


@dataclass(frozen=True)
class StudyFlags:
    """Which study, at which scale, on which data."""

    name: Annotated[
        str | None, typer.Argument(help="The study; `secateur study --list` lists them.", show_default=False)
    ] = None
    scale: Annotated[
        str, typer.Option("--scale", help="smoke (embedded data, a minute or two), short, or full.")
    ] = "smoke"
    data: Annotated[
        str | None,
        typer.Option("--data", help="A dataset's name, its folder, or a folder that holds it by name."),
    ] = None
    list_: Annotated[bool, typer.Option("--list", help="List the studies and their scales.")] = False


@dataclass(frozen=True)
class WorkFlags:
    """How the work is done, and whether it is done."""

    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, help="Number of processes that share the trials.")
    ] = 1
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the steps and an estimate of the time; run nothing.")
    ] = False
    cached: Annotated[
        bool, typer.Option("--cached", help="Compute nothing: an error where the store lacks a step.")
    ] = False
    store: StoreFolder = STORE


@dataclass(frozen=True)
class WrittenFlags:
    """What is written in addition to the tables on standard output."""

    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder for the report; default: study-NAME-SCALE.", callback=results_folder
        ),
    ] = None
    report: Annotated[bool, typer.Option("--report/--no-report", help="Also write the report page.")] = True
    page: Annotated[
        Path | None,
        typer.Option(
            "--page", help="Also put the tables into this Markdown page, and whole into the folder beside it."
        ),
    ] = None


@with_flags
def study(
    which: StudyFlags,
    changes: RecipeChanges,
    where: ClusterFlags,
    work: WorkFlags,
    written: WrittenFlags,
    output: ProgressFlags,
) -> None:
    """Run a published study: print its tables, the published figures beside ours, and write its report."""
    from secateur import studies

    if which.list_:
        return _print_list(output.json)
    name = which.name
    if name is None:
        raise OptionError(f"which study? One of {', '.join(studies.names())}; {near('', studies.names())}")
    from secateur.lab.display import progress_display
    from secateur.lab.store import Store
    from secateur.studies.running import carry_out, planned

    settings = changes.settings()
    cluster = where.cluster()
    found = studies.read(name)
    recipe = found.recipes(which.scale, settings, which.data)[0][1]
    device = cluster.device(recipe) if cluster is not None else None
    plan = planned(found, which.scale, settings, which.data, device)
    exists = (work.store / "store.sqlite").is_file()
    idle = work.dry_run or work.cached
    known = Store(work.store, create=not idle) if exists or not work.dry_run else None
    foreseen = _foreseen(plan, known, work, output.quiet)
    estimate = foreseen.text(work.jobs)
    if work.dry_run:
        return _print_plan(plan, known, estimate, output.json)
    assert known is not None
    if not output.quiet:
        say(f"{name} at {which.scale}: {estimate}", error=True)
    done = carry_out(
        plan,
        known,
        jobs=work.jobs,
        progress=lambda many: progress_display(output.quiet, many=many or cluster is not None),
        engine=_engine(cluster, known, work.jobs, plan),
        gpus=where.local_gpus(),
    )
    command = _command(name, which.scale, which.data, settings)
    _write(done, known, written, command, output.json)
    if done.failures:
        part, index, message = done.failures[0]
        raise SecateurError(
            f"{len(done.failures)} trials failed, the others are done; the first, {part}, trial {index + 1}: {message}"
        )


def _foreseen(plan: StudyPlan, known: Store | None, work: WorkFlags, quiet: bool) -> Preview:
    """What would be computed and how long that takes; with `--cached` an error if anything would."""
    from secateur.lab.probe import Probe

    foreseen = plan.preview(known, None if work.cached or (quiet and not work.dry_run) else Probe())
    if work.cached and foreseen.todo and not work.dry_run:
        raise OptionError(
            f"{plan.study.name} at {plan.scale}: the store {work.store} lacks {foreseen.todo} of "
            f"{foreseen.todo + foreseen.cached} steps: without --cached they are computed; or name the store that has "
            "them with --store, and repeat the --set and --seed that it was filled with"
        )
    return foreseen


def _write(done: StudyResult, known: Store, written: WrittenFlags, command: str, json: bool) -> None:
    """Write the report and the page that were asked for; print the tables."""
    from secateur.studies.page import into_page, section_of, write_report

    name, scale = done.study.name, done.planned.scale
    folder = written.out or Path(f"study-{name}-{scale}")
    if written.report:
        write_report(done, known, folder)
    if written.page is not None:
        into_page(written.page, section_of(done, known, command))
    if json:
        _print_plain(done, folder if written.report else None)
    else:
        _print(done, known, folder / "index.html" if written.report else None)


def _engine(cluster: Cluster | None, store: Store, jobs: int, plan: StudyPlan) -> Callable[[], Engine] | None:
    """A function that makes the engine of a part, or None for processes of this machine."""
    if cluster is None:
        return None
    return lambda: cluster.engine(store, jobs, plan.parts[0][1].device)


def _command(name: str, scale: str, data: str | None, settings: list[str]) -> str:
    """The command as the page prints it: without paths of this machine."""
    given = [] if data is None else ["--data", data if not Path(data).exists() else "PATH"]
    shown = [word for setting in settings for word in ("--set", _without_path(setting))]
    return " ".join(["secateur", "study", name, "--scale", scale, *given, *shown])


def _without_path(setting: str) -> str:
    """A setting whose value is a file or folder of this machine, without its name.

    >>> _without_path("train.epochs=3"), _without_path("model.weights=.")
    ('train.epochs=3', 'model.weights=FILE')
    """
    key, _, value = setting.partition("=")
    return f"{key}=FILE" if value and Path(value).expanduser().exists() else setting


def _print_list(json: bool) -> None:
    from secateur import studies

    found = [studies.read(name) for name in studies.names()]
    if json:
        print_json(
            {"studies": [{"name": one.name, "about": one.title, "scales": list(one.scale)} for one in found]}
        )
        return
    show_table(["study", "scales", "about"], [[one.name, ", ".join(one.scale), one.title] for one in found])


def _print_plan(study: StudyPlan, store: Store | None, estimate: str, json: bool) -> None:
    """Print what a run would do, part by part."""
    if json:
        print_json(
            {"parts": [{"name": part.name, "recipe": plan.recipe.plain()} for part, plan in study.parts]}
        )
        return
    for part, plan in study.parts:
        recipe = plan.recipe
        say(
            f"{recipe.name}: {recipe.model.name} on {recipe.data.name}, seed {recipe.lab.seed}, {plan.device}"
        )
        say(textwrap.fill(part.about.strip(), 100) if part.about else "", end="\n" if part.about else "")
        first = plan.trials[:1]
        rows = [row[1:] for row in type(plan)(recipe, plan.device, first).rows(store)]
        show_table([f"step (trial 1 of {len(plan.trials)})", "options", "what"], rows)
        say()
    say(estimate)


def _print(done: StudyResult, store: Store, page: Path | None) -> None:
    from secateur.studies.page import all_tables, printed_columns, printouts

    study, plan = done.study, done.planned.parts[0][1]
    recipe = plan.recipe
    say(f"{study.name}: {study.title}")
    if study.about:
        say(textwrap.fill(" ".join(study.about.split()), 110))
    size = " ".join(study.at(done.planned.scale).about.split())
    say(textwrap.fill(f"scale {done.planned.scale}: {size}", 110))
    say(f"{recipe.model.name} on {recipe.data.name}, seed {recipe.lab.seed}, {plan.device}")
    for table in all_tables(done):
        say()
        say(table.title)
        if table.about:
            say(textwrap.fill(" ".join(table.about.split()), 110))
        show_table(table.head, table.rows, right=table.right)
        for index, note in enumerate(table.notes):
            say(textwrap.fill(f"({'*' * (index + 1)}) {note}", 110, subsequent_indent="    "))
    for title, before, after, pairs in printouts(done, store):
        say()
        say(title)
        say(printed_columns(before, after, pairs))
    for note in study.notes:
        say()
        say(textwrap.fill(" ".join(note.split()), 110))
    cached = sum(ran.cached for _, ran in done.ran)
    say(f"\n{done.seconds:.0f} s; {done.computed} steps computed, {cached} cached")
    if page is not None:
        say(f"every figure and table on one page: {page}")


def _print_plain(done: StudyResult, folder: Path | None) -> None:
    from secateur.studies.page import all_tables

    print_json(
        {
            "study": done.study.name,
            "scale": done.planned.scale,
            "runs": {part.name: ran.run for part, ran in done.ran},
            "computed": done.computed,
            "seconds": round(done.seconds, 3),
            "tables": [table.plain() for table in all_tables(done)],
            "failures": [
                {"part": p, "trial": t, "trial_number": t + 1, "error": e} for p, t, e in done.failures
            ],
            "report": str(folder) if folder is not None else None,
        }
    )


VERBS = (study,)

"""Verbs that run recipes: `demo`, `run`, `sweep`.

>>> [verb.__name__ for verb in VERBS]
['demo', 'run', 'sweep']
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.cluster import Cluster, ClusterFlags
from secateur.cli.flags import with_flags
from secateur.cli.options import (
    STORE,
    DryRun,
    Jobs,
    Out,
    ProgressFlags,
    RecipeChanges,
    RecipePath,
    StoreFolder,
    results_folder,
)
from secateur.cli.output import print_json, show_table
from secateur.core.terminal import say
from secateur.errors import BudgetNotMetError, OptionError, SecateurError

if TYPE_CHECKING:
    from secateur.lab.engine import Ran
    from secateur.lab.planning import RunPlan
    from secateur.lab.recipe import Recipe
    from secateur.lab.store import Store
    from secateur.lab.trust import AllowCode

__all__ = ["VERBS", "RunFlags", "show_plan", "write_report"]

_DEMO = Path("demo")


def _limits(texts: list[str] | None) -> list[str] | None:
    """Refuse a limit of another form before any work."""
    from secateur.lab.requirements import Requirement

    for text in texts or []:
        Requirement.of(text)
    return texts


@dataclass(frozen=True)
class RunFlags:
    """How a recipe is run, and where its results are written."""

    jobs: Jobs = 1
    dry_run: DryRun = False
    store: StoreFolder = STORE
    out: Out = None
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            help="Folder to write the report to, a page about this run.",
            callback=results_folder,
        ),
    ] = None
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require",
            metavar="NAME>=X",
            help="A limit that every trial must hold, such as accuracy>=0.97 or small.file_bytes<=40000; exit code 3 "
            "where one does not. Repeatable.",
            callback=_limits,
        ),
    ] = None

    def check(self, ran: Ran) -> None:
        """Raise if a limit of the recipe or of the command line does not hold."""
        failed = ran.unmet(self.require or [])
        if failed:
            more = f" (and {len(failed) - 8} more)" if len(failed) > 8 else ""
            raise BudgetNotMetError(
                f"a limit does not hold: {'; '.join(failed[:8])}{more}; everything is kept"
            )


def _carry_out(
    recipe: Recipe,
    flags: RunFlags,
    output: ProgressFlags,
    cluster: Cluster | None = None,
    gpus: float | None = None,
) -> None:
    """Run a recipe, or print what would be run."""
    from secateur.lab import launched
    from secateur.lab.planning import plan as make_plan
    from secateur.lab.store import Store

    plan = make_plan(recipe, device=cluster.device(recipe) if cluster is not None else None)
    plan.check_limits(flags.require or [])
    if flags.dry_run:
        show_plan(plan, flags.store, flags.jobs, output.json)
        return
    store = Store(flags.store)
    if launched.rank()[0] > 0:
        # Under `accelerate launch` the first process runs the recipe, the others help it train.
        for trial in plan.trials:
            launched.follow(trial, store)
        return
    if not output.quiet:
        for line in plan.reshaping():
            say(line, error=True)
    ran = _run(plan, store, flags.jobs, output.quiet, cluster, gpus)
    _show(ran, plan, store, flags, output.json)


def show_plan(plan: RunPlan, store: Path, jobs: int, json: bool) -> None:
    """Print what would be done, step by step, and what is cached.

    Args:
        plan: The plan of a run.
        store: The folder of the run store.
        jobs: Processes that would share the trials.
        json: Whether to print it as JSON.
    """
    from secateur.lab.display.preview import preview
    from secateur.lab.store import Store

    recipe = plan.recipe
    notes = plan.reshaping()
    known = Store(store) if (store / "store.sqlite").is_file() else None
    rows = list(plan.rows(known))
    if json:
        names = ("trial", "step", "options", "what")
        steps: list[dict[str, object]] = [dict(zip(names, row)) for row in rows]
        for step in steps:
            number = int(str(step["trial"]))
            step |= {
                "trial": number - 1,
                "trial_number": number,
                "settings": plan.trials[number - 1].settings,
            }
        print_json({"recipe": recipe.plain(), "steps": steps, "notes": notes})
        return
    say(f"{recipe.name}: {recipe.model.name} on {recipe.data.name}, seed {recipe.lab.seed}, {plan.device}")
    for line in notes:
        say(line)
    if recipe.grid:
        show_table(["trial", "settings", "step", "options", "what"], _with_settings(plan, rows))
    else:
        show_table(["trial", "step", "options", "what"], rows)
    todo, cached = (sum(row[3] == what for row in rows) for what in ("run", "cached"))
    shared = len(rows) - todo - cached
    say(f"{todo} steps would run, {cached} are cached, {shared} share another trial's work")
    if len(plan.trials) > 1:
        say(preview(plan, known).text(jobs))


def _with_settings(plan: RunPlan, rows: list[tuple[str, str, str, str]]) -> list[list[str]]:
    """The rows with what the grid sets in each trial, such as the seed, beside the trial's first step."""
    found: list[list[str]] = []
    for trial, *rest in rows:
        first = not found or found[-1][0] != trial
        settings = plan.trials[int(trial) - 1].settings if first else {}
        found.append([trial, ", ".join(f"{key}={value}" for key, value in settings.items()), *rest])
    return found


def _run(
    plan: RunPlan, store: Store, jobs: int, quiet: bool, cluster: Cluster | None, gpus: float | None
) -> Ran:
    """Run the plan, with its progress on standard error."""
    from secateur.lab.display import progress_display
    from secateur.lab.display.preview import preview
    from secateur.lab.engine import run as run_recipe

    if len(plan.trials) > 1 and not quiet:
        say(preview(plan, store).text(jobs), error=True)
    engine = cluster.engine(store, jobs, plan.device) if cluster is not None else None
    watch = progress_display(quiet, many=len(plan.trials) > 1 and (jobs > 1 or engine is not None))
    return run_recipe(plan.recipe, store, jobs=jobs, progress=watch, plan=plan, engine=engine, gpus=gpus)


def _show(ran: Ran, plan: RunPlan, store: Store, flags: RunFlags, json: bool) -> None:
    """Print and write the results; trials that failed are an error."""
    from secateur.lab import tables

    if flags.out is not None:
        tables.write_results(ran, store, flags.out)
    if json:
        print_json(tables.as_json(ran))
    else:
        head, found = tables.summary(ran.measurements, plan.recipe.grid)
        if found:
            show_table(head, found)
            if tables.has_seeds(plan.recipe.grid):
                say(
                    "means over the seeds, with the 95 % interval of Student's t; --json and --out have every trial"
                )
            for line in tables.definitions(ran.measurements):
                say(line)
        elif not ran.failures:
            say("nothing was measured; add a step of kind `measure` to see results")
    if flags.report is not None:
        page = write_report(store, ran.run, flags.report, ran.plan.recipe.allowed_code)
        say(f"report: {page}", error=json)
    if ran.failures:
        index, message = ran.failures[0]
        raise SecateurError(
            f"{len(ran.failures)} of {len(plan.trials)} trials failed, the others are done; the first, trial "
            f"{index + 1}: {message} (secateur show {ran.run} has all)"
        )
    flags.check(ran)


def write_report(store: Store, run: int, folder: Path, allow_code: AllowCode = False) -> Path:
    """Write the report about a run as one page; return where it is."""
    from secateur.lab.reporting import gather
    from secateur.report import Report

    written: Path = Report([gather(store, str(run), allow_code=allow_code)]).write(folder)[0]
    return written


@with_flags
def run(recipe: RecipePath, changes: RecipeChanges, flags: RunFlags, output: ProgressFlags) -> None:
    """Run a recipe. Steps whose outcome is stored are not computed again."""
    _carry_out(changes.read(recipe), flags, output)


@dataclass(frozen=True)
class GridFlags:
    """The axes that the command line adds to a recipe's grid."""

    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid", metavar="KEY=A,B,C", help="Another axis: KEY=a,b,c or KEY=first:last:step. Repeatable."
        ),
    ] = None
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Repeat everything with this many seeds.")
    ] = None


@with_flags
def sweep(
    recipe: RecipePath,
    axes: GridFlags,
    changes: RecipeChanges,
    where: ClusterFlags,
    flags: RunFlags,
    output: ProgressFlags,
) -> None:
    """Run a recipe for every combination of a grid's values; steps that trials have in common are computed once."""
    from secateur.lab.grid import seeds as repeated

    grid = list(axes.grid or [])
    if axes.seeds is not None:
        if any(text.partition("=")[0].strip() == "lab.seed" for text in grid):
            raise OptionError("--seeds and --grid lab.seed: both name the seeds; give one of them")
        grid.append(repeated(changes.read(recipe).lab.seed, axes.seeds))
    found = changes.read(recipe, grid)
    if not found.grid:
        raise OptionError(
            f"{recipe}: nothing to sweep: the recipe has no [grid]; give an axis, such as --grid "
            "prune.budget=0.5,0.7,0.9"
        )
    _carry_out(found, flags, output, where.cluster(), where.local_gpus())


@with_flags
def demo(
    changes: RecipeChanges,
    dry_run: DryRun = False,
    store: StoreFolder = STORE,
    out: Annotated[
        Path, typer.Option("--out", help="Folder to write the small model and the report to.")
    ] = _DEMO,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Also write the report.")] = True,
    *,
    output: ProgressFlags,
) -> None:
    """A ResNet-20 on embedded data, from training to a small file, in one table and one page. A minute or two;
    nothing is downloaded."""
    from secateur.lab.recipe import Recipe

    text = resources.files("secateur.lab").joinpath("demo.toml").read_text(encoding="utf-8")
    recipe = Recipe.parse(text, changes.settings(), source="demo.toml", name="demo")
    if output.json or dry_run:
        _carry_out(recipe, RunFlags(1, dry_run, store, None if dry_run else out), output)
        return
    import textwrap

    from secateur.lab import demonstration
    from secateur.lab.display import progress_display
    from secateur.lab.store import Store

    store, out = _places(store, out)
    opened = Store(store)
    ran = demonstration.demonstrate(recipe, opened, out, progress_display(output.quiet))
    show_table(demonstration.HEAD, demonstration.table(ran.measurements), right=(1, 2, 3))
    for paragraph in demonstration.statement(ran, opened, out).splitlines():
        say()
        say(textwrap.fill(paragraph, 100))
    page = out / "report" / "index.html"
    if report and (ran.computed or not page.exists()):
        write_report(opened, ran.run, page.parent)
    if report:
        say(f"\nEverything above and more as one page, to open in a browser: {page}")


def _places(store: Path, out: Path) -> tuple[Path, Path]:
    """Where the demo writes: a new temporary folder where the current one cannot be written and none was named."""
    if os.access(".", os.W_OK) or store != STORE or out != _DEMO:
        return store, out
    folder = Path(tempfile.mkdtemp(prefix="secateur-demo-"))
    say(f"{Path.cwd()} cannot be written; everything goes to {folder}", error=True)
    return folder / store, folder / out


VERBS = (demo, run, sweep)

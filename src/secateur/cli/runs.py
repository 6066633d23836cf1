"""Verbs of the lab: `demo`, `run`, `sweep`, `runs`, `show`, `export`, `gc`."""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.cluster import (
    Address,
    Cluster,
    Cpus,
    EngineChoice,
    EngineOption,
    Gpus,
    Memory,
    cluster_of,
)
from secateur.cli.options import (
    STORE,
    Debug,
    Device,
    Json,
    Out,
    Quiet,
    RecipePath,
    Seed,
    Set,
    StoreFolder,
    settings_of,
)
from secateur.cli.output import print_json, show_table
from secateur.errors import OptionError, SecateurError

if TYPE_CHECKING:
    from secateur.lab.recipe import Recipe
    from secateur.lab.store import Store

__all__ = ["VERBS"]

_DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be done and what is cached; do nothing.")
]
_Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="How many processes share a grid's trials.")]
_ReportFolder = Annotated[
    Path | None, typer.Option("--report", help="Folder to write the report to, a page about this run.")
]
_Which = Annotated[str, typer.Argument(help="A run's number, or `last`.")]


def _carry_out(
    recipe: Recipe,
    store: Path,
    jobs: int,
    dry_run: bool,
    json: bool,
    out: Path | None,
    quiet: bool,
    cluster: Cluster | None = None,
    *,
    gpus: float | None = None,
    report: Path | None = None,
) -> Any:
    """What `run`, `sweep` and `demo` have in common."""
    from secateur.lab import launched, tables
    from secateur.lab.display import progress_display
    from secateur.lab.display.preview import preview
    from secateur.lab.engine import run as run_recipe
    from secateur.lab.planning import plan as make_plan
    from secateur.lab.store import Store

    plan = make_plan(recipe, device=cluster.device(recipe) if cluster is not None else None)
    if dry_run:
        exists = (store / "store.sqlite").is_file()
        rows = list(plan.rows(Store(store) if exists else None))
        if json:
            names = ("trial", "step", "options", "what")
            print_json({"recipe": recipe.plain(), "steps": [dict(zip(names, row)) for row in rows]})
            return None
        print(
            f"{recipe.name}: {recipe.model.name} on {recipe.data.name}, seed {recipe.lab.seed}, {plan.device}"
        )
        show_table(["trial", "step", "options", "what"], rows)
        todo, cached = (sum(row[3] == what for row in rows) for what in ("run", "cached"))
        shared = len(rows) - todo - cached
        print(f"{todo} steps would run, {cached} are cached, {shared} share another trial's work")
        if len(plan.trials) > 1:
            print(preview(plan, Store(store) if exists else None).text(jobs))
        return None
    opened = Store(store)
    if launched.rank()[0] > 0:
        # Under `accelerate launch` the first process runs the recipe, the others help it train.
        for trial in plan.trials:
            launched.follow(trial, opened)
        return None
    if len(plan.trials) > 1 and not quiet:
        print(preview(plan, opened).text(jobs), file=sys.stderr)
    engine = cluster.engine(opened, jobs, plan.device) if cluster is not None else None
    watch = progress_display(quiet, many=len(plan.trials) > 1 and (jobs > 1 or engine is not None))
    try:
        ran = run_recipe(recipe, opened, jobs=jobs, progress=watch, plan=plan, engine=engine, gpus=gpus)
    except KeyboardInterrupt:
        # Said here, because the command line's own handling of Ctrl-C says nothing.
        print(
            "interrupted; what was finished is kept, and the same command goes on from there", file=sys.stderr
        )
        raise
    if out is not None:
        tables.write_results(ran, Store(store), out)
    if json:
        print_json(tables.as_json(ran))
    else:
        head, found = tables.summary(ran.measurements, recipe.grid)
        if found:
            show_table(head, found)
        elif not ran.failures:
            print("nothing was measured; a step of kind `measure` says what came out")
    if report is not None:
        page = _write_report(opened, ran.run, report)
        print(f"report: {page}", file=sys.stderr if json else sys.stdout)
    if ran.failures:
        index, message = ran.failures[0]
        raise SecateurError(
            f"{len(ran.failures)} of {len(plan.trials)} trials failed, the others are done; the first, trial "
            f"{index + 1}: "
            f"{message} (secateur show {ran.run} has all)"
        )
    return ran


def _write_report(store: Store, run: int, folder: Path) -> Path:
    """The report about a run as one page; returns where it is."""
    from secateur.lab.reporting import gather
    from secateur.report import Report

    written: Path = Report([gather(store, str(run))]).write(folder)[0]
    return written


def run(
    recipe: RecipePath,
    set_: Set = None,
    seed: Seed = None,
    device: Device = None,
    jobs: _Jobs = 1,
    dry_run: _DryRun = False,
    store: StoreFolder = STORE,
    out: Out = None,
    report: _ReportFolder = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Do what a recipe says. Steps done before are not done again."""
    from secateur.lab.recipe import Recipe

    found = Recipe.read(recipe, settings_of(set_, seed, device))
    _carry_out(found, store, jobs, dry_run, json, out, quiet, report=report)


def sweep(
    recipe: RecipePath,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid", metavar="KEY=A,B,C", help="Another axis: KEY=a,b,c or KEY=first:last:step. Repeatable."
        ),
    ] = None,
    set_: Set = None,
    seed: Seed = None,
    device: Device = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Repeat everything over so many seeds.")
    ] = None,
    jobs: _Jobs = 1,
    engine: EngineOption = EngineChoice.local,
    address: Address = None,
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    memory: Memory = 0,
    dry_run: _DryRun = False,
    store: StoreFolder = STORE,
    out: Out = None,
    report: _ReportFolder = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a recipe for every combination of a grid's values; what trials have in common is done once."""
    from secateur.lab.grid import seeds as repeated
    from secateur.lab.recipe import Recipe

    axes = list(grid or [])
    if seeds is not None:
        first = Recipe.read(recipe, settings_of(set_, seed, device)).lab.seed
        axes.append(repeated(first, seeds))
    found = Recipe.read(recipe, settings_of(set_, seed, device), axes)
    if not found.grid:
        raise OptionError(
            f"{recipe}: nothing to sweep: the recipe has no [grid]; give an axis, such as --grid "
            "prune.budget=0.5,0.7,0.9"
        )
    cluster = cluster_of(engine, address, cpus, gpus, memory)
    share = gpus if cluster is None and gpus else None
    _carry_out(found, store, jobs, dry_run, json, out, quiet, cluster, gpus=share, report=report)


def demo(
    set_: Set = None,
    seed: Seed = None,
    device: Device = None,
    dry_run: _DryRun = False,
    store: StoreFolder = STORE,
    out: Annotated[
        Path, typer.Option("--out", help="Folder to write the small model and the report to.")
    ] = Path("demo"),
    report: Annotated[bool, typer.Option("--report/--no-report", help="Also write the report.")] = True,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """A ResNet-20 on embedded data, from training to a small file, in one table and one page. Two minutes;
    nothing is downloaded."""
    from secateur.lab.recipe import Recipe

    text = resources.files("secateur.lab").joinpath("demo.toml").read_text(encoding="utf-8")
    recipe = Recipe.parse(text, settings_of(set_, seed, device), source="demo.toml", name="demo")
    if json or dry_run:
        _carry_out(recipe, store, 1, dry_run, json, None if dry_run else out, quiet)
        return
    import textwrap

    from secateur.lab import demonstration
    from secateur.lab.display import progress_display
    from secateur.lab.store import Store

    opened = Store(store)
    ran = demonstration.demonstrate(recipe, opened, out, progress_display(quiet))
    show_table(demonstration.HEAD, demonstration.table(ran.measurements), right=(1, 2, 3))
    for paragraph in demonstration.statement(ran, opened, out).splitlines():
        print()
        print(textwrap.fill(paragraph, 100))
    page = out / "report" / "index.html"
    if report and (ran.computed or not page.exists()):
        _write_report(opened, ran.run, page.parent)
    if report:
        print(f"\nEverything above and more as one page, to open in a browser: {page}")


def runs(store: StoreFolder = STORE, json: Json = False, debug: Debug = False) -> None:
    """List the runs of a store."""
    from dataclasses import asdict

    from secateur.lab.store import Store

    rows = Store(store, create=False).runs()
    if json:
        print_json([asdict(row) for row in rows])
        return
    show_table(
        [
            "run",
            "name",
            "status",
            "started",
            "seconds",
            "trials",
            "failed",
            "steps",
            "computed",
            "seed",
            "device",
        ],
        [
            [
                str(row.id),
                row.name,
                row.status,
                row.started[:19].replace("T", " "),
                "" if row.seconds is None else f"{row.seconds:.1f}",
                str(row.trials),
                str(row.failed),
                str(row.steps),
                str(row.computed),
                str(row.seed),
                row.device,
            ]
            for row in rows
        ],
        right=(0, 4, 5, 6, 7, 8, 9),
    )


def show(
    which: _Which = "last", store: StoreFolder = STORE, json: Json = False, debug: Debug = False
) -> None:
    """Print a run: where it came from, its steps, what was measured, and what failed."""
    from dataclasses import asdict

    from secateur.lab import tables
    from secateur.lab.store import Store

    opened = Store(store, create=False)
    row = opened.run(which)
    trials, measured = opened.trials(row.id), opened.measurements(row.id)
    if json:
        whole = {**asdict(row), "detail": trials, "measurements": [item.to_dict() for item in measured]}
        print_json(whole)
        return
    print(f"run {row.id}  {row.name}  {row.status}  {row.started[:19].replace('T', ' ')} UTC")
    print(f"command   {row.command}")
    print(f"seed      {row.seed}, device {row.device}")
    print(f"versions  {', '.join(f'{name} {version}' for name, version in row.versions.items())}")
    hardware = row.hardware
    gpus = f", {', '.join(hardware['gpus'])}" if hardware.get("gpus") else ""
    print(f"hardware  {hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB{gpus}")
    steps = [
        [
            str(t["trial"] + 1),
            s["label"],
            s["how"],
            "" if s["seconds"] is None else f"{s['seconds']:.1f}",
            ", ".join(filter(None, (s["device"], s["precision"]))),
            s["key"][:12],
        ]
        for t in trials
        for s in t["steps"]
    ]
    print()
    show_table(["trial", "step", "how", "seconds", "device", "address"], steps, right=(3,))
    if measured:
        print()
        show_table(*tables.summary(measured, row.recipe.get("grid", {})))
    for trial in trials:
        if trial["error"]:
            print(f"\ntrial {trial['trial'] + 1} failed: {trial['error'].rstrip()}")


def export(
    which: _Which = "last",
    out: Annotated[Path, typer.Option("--out", help="The file: .csv, .parquet or .json.")] = Path(
        "measurements.csv"
    ),
    store: StoreFolder = STORE,
    debug: Debug = False,
) -> None:
    """Write all Measurements of a run as CSV, Parquet or JSON."""
    from secateur.lab import tables
    from secateur.lab.store import Store

    opened = Store(store, create=False)
    count = tables.write_measurements(opened.measurements(opened.run(which).id), out)
    print(f"{count} measurements written to {out}")


def gc(
    keep: Annotated[
        int | None, typer.Option("--keep", min=0, help="Forget all but the newest so many runs first.")
    ] = None,
    dry_run: _DryRun = False,
    store: StoreFolder = STORE,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Free what no run refers to."""
    from secateur.lab.store import Store

    freed = Store(store, create=False).gc(keep=keep, dry_run=dry_run)
    if json:
        print_json(freed)
        return
    verb = "would free" if dry_run else "freed"
    print(
        f"{verb} {freed['bytes']:,} bytes: {freed['runs']} runs, {freed['steps']} steps, {freed['objects']} "
        "objects"
    )


VERBS = (demo, run, sweep, runs, show, gc)  # export is registered with the export of models

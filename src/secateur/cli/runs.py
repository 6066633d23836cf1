"""Verbs on the runs of a store: `runs`, `show`, `gc`.

>>> [verb.__name__ for verb in VERBS]
['runs', 'show', 'gc']
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.flags import with_flags
from secateur.cli.options import STORE, OutputFlags, StoreFolder
from secateur.cli.output import print_json, show_table
from secateur.core.terminal import say

if TYPE_CHECKING:
    from secateur.lab.store import RunRow

__all__ = ["VERBS"]

_COLUMNS = [
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
]


@with_flags
def runs(store: StoreFolder = STORE, *, output: OutputFlags) -> None:
    """List the runs of a store."""
    from dataclasses import asdict

    from secateur.lab.store import Store

    rows = Store(store, create=False).runs()
    if output.json:
        print_json({"runs": [asdict(row) for row in rows]})
        return
    cells = [
        [
            str(row.id),
            row.name,
            row.status,
            row.started[:19].replace("T", " "),
            "" if row.seconds is None else f"{row.seconds:.1f}",
            *(str(value) for value in (row.trials, row.failed, row.steps, row.computed, row.seed)),
            row.device,
        ]
        for row in rows
    ]
    show_table(_COLUMNS, cells, right=(0, 4, 5, 6, 7, 8, 9))


@with_flags
def show(
    which: Annotated[str, typer.Argument(help="A run's number, or `last`.")] = "last",
    store: StoreFolder = STORE,
    *,
    output: OutputFlags,
) -> None:
    """Print a run: its origin, its steps, its measurements and its failures."""
    from dataclasses import asdict

    from secateur.core.over_seeds import seeds_text
    from secateur.lab import tables
    from secateur.lab.store import Store

    opened = Store(store, create=False)
    row = opened.run(which)
    trials, measured = opened.trials(row.id), opened.measurements(row.id)
    if output.json:
        detail = [{"trial_number": trial["trial"] + 1, **trial} for trial in trials]
        whole = {**asdict(row), "detail": detail, "measurements": tables.numbered(measured)}
        print_json(whole)
        return
    _print_origin(row, seeds_text([trial["settings"] for trial in trials], row.seed))
    say()
    show_table(["trial", "step", "how", "seconds", "device", "address"], _steps(trials), right=(3,))
    if measured:
        say()
        show_table(*tables.summary(measured, row.recipe.get("grid", {})))
        for line in tables.definitions(measured):
            say(line)
    for trial in trials:
        if trial["error"]:
            say(f"\ntrial {trial['trial'] + 1} failed: {trial['error'].rstrip()}")


def _print_origin(row: RunRow, seeds: str) -> None:
    """Print the command, seeds and versions of a run, and its machine."""
    say(f"run {row.id}  {row.name}  {row.status}  {row.started[:19].replace('T', ' ')} UTC")
    say(f"command   {row.command}")
    say(f"{'seeds' if ',' in seeds else 'seed'.ljust(5)}     {seeds}; device {row.device}")
    say(f"versions  {', '.join(f'{name} {version}' for name, version in row.versions.items())}")
    hardware = row.hardware
    gpus = f", {', '.join(hardware['gpus'])}" if hardware.get("gpus") else ""
    say(f"hardware  {hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB{gpus}")


def _steps(trials: list[dict[str, Any]]) -> list[list[str]]:
    """The steps of all trials as rows of a table."""
    return [
        [
            str(trial["trial"] + 1),
            step["label"],
            step["how"],
            "" if step["seconds"] is None else f"{step['seconds']:.1f}",
            ", ".join(filter(None, (step["device"], step["precision"]))),
            step["key"][:12],
        ]
        for trial in trials
        for step in trial["steps"]
    ]


@with_flags
def gc(
    keep: Annotated[
        int | None, typer.Option("--keep", min=0, help="First forget all runs but this many of the newest.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be deleted; delete nothing.")
    ] = False,
    store: StoreFolder = STORE,
    *,
    output: OutputFlags,
) -> None:
    """Delete what no run refers to, and free its space."""
    from secateur.lab.store import Store

    freed = Store(store, create=False).gc(keep=keep, dry_run=dry_run)
    if output.json:
        print_json(freed)
        return
    verb = "would free" if dry_run else "freed"
    say(
        f"{verb} {freed['bytes']:,} bytes: {freed['runs']} runs, {freed['steps']} steps, {freed['objects']} "
        "objects"
    )


VERBS = (runs, show, gc)

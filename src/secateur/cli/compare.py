"""The verb `compare`: a recipe with each of several pruning methods, over seeds, in one table and one chart.

>>> [verb.__name__ for verb in VERBS]
['compare']
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.flags import with_flags
from secateur.cli.options import ProgressFlags, RecipeChanges, RecipePath
from secateur.cli.output import print_json, show_table
from secateur.cli.run import RunFlags, show_plan
from secateur.core.terminal import say
from secateur.errors import SecateurError

if TYPE_CHECKING:
    from secateur.lab.comparing import MethodComparison

__all__ = ["VERBS"]


@with_flags
def compare(
    recipe: RecipePath,
    methods: Annotated[
        str,
        typer.Option("--methods", metavar="A,B,C", help="Methods; the others are compared with the first."),
    ],
    changes: RecipeChanges,
    flags: RunFlags,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Number of seeds of each method.")] = 3,
    *,
    output: ProgressFlags,
) -> None:
    """Compare pruning methods: the same data, schedule, seeds and budget for each; table, intervals and test."""
    from secateur.lab.comparing import compare_methods, comparison_recipe
    from secateur.lab.display import progress_display
    from secateur.lab.planning import plan as make_plan
    from secateur.lab.store import Store
    from secateur.lab.tables import write_results

    names = [name.strip() for name in methods.split(",") if name.strip()]
    read = changes.read(recipe)
    plan = make_plan(comparison_recipe(read, names, seeds))
    plan.check_limits(flags.require or [])
    if flags.dry_run:
        show_plan(plan, flags.store, flags.jobs, output.json)
        return
    store = Store(flags.store)
    found = compare_methods(
        read,
        store,
        names,
        seeds=seeds,
        jobs=flags.jobs,
        progress=progress_display(output.quiet, many=flags.jobs > 1),
        plan=plan,
    )
    if flags.out is not None:
        write_results(found.ran, store, flags.out)
    _show(found, seeds, output.json)
    for line in found.notes:
        say(line, error=output.json)
    if flags.report is not None:
        from secateur.report import Report, Run

        page = Report([Run(found.ran.plan.recipe.name, found.measurements())]).write(flags.report)[0]
        say(f"report: {page}", error=output.json)
    if found.ran.failures:
        index, message = found.ran.failures[0]
        raise SecateurError(
            f"{len(found.ran.failures)} of {len(found.ran.plan.trials)} trials failed, the others are done; the first, "
            f"trial {index + 1}: {message}"
        )
    flags.check(found.ran)


def _show(found: MethodComparison, seeds: int, json: bool) -> None:
    """Print the table, and what its columns mean."""
    if json:
        shown = (*found.rows, *([found.dense] if found.dense else []))
        print_json({"methods": [{**asdict(row), "verdict": row.verdict} for row in shown]})
    else:
        head, rows = found.table()
        show_table(head, rows)
        say(
            f"mean of {seeds} seeds; p is that of a paired t-test against {found.rows[0].method}, corrected by "
            "Holm's rule"
            if seeds > 1
            else "one seed: no interval and no test; --seeds 3 gives both"
        )


VERBS = (compare,)

"""`compare_methods`: one recipe with each of several pruning methods, over seeds: the same data, schedule and budget.

A method is a few settings of the recipe (`varied`): the criterion of every step that cuts by the criterion of the first
one, and for methods that begin in training, `sparsify` of the training step before. Everything else stays as the recipe
says. The runs go through the store, so steps that methods have in common are computed once and a killed comparison
continues.

For every method the mean over the seeds of the last accuracy is given, with the 95 % interval of Student's t, and of
the last multiply-accumulates: all, and those with a non-zero weight. Each method is compared with the first one by a
paired t-test on the differences seed by seed. The p values are corrected for multiple comparisons by Holm's rule: of m
methods the smallest p is multiplied by m, the next by m - 1, and so on. A difference whose corrected p is below 0.05 is
called significant.

>>> [round(p, 2) for p in holm([0.01, 0.04, 0.03])]
[0.03, 0.06, 0.06]
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secateur.core.measurement import Measurement, Measurements
from secateur.core.over_seeds import mean_over_seeds, paired, seed_of
from secateur.errors import NothingToDoError, OptionError, RecipeError
from secateur.lab.engine import Ran, run
from secateur.lab.grid import seeds as repeated
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store
from secateur.lab.varied import METHODS, Method, first_cut, method_of, notes, settings_of

if TYPE_CHECKING:
    from secateur.lab.display import Progress
    from secateur.lab.engines import Engine
    from secateur.lab.planning import RunPlan

__all__ = [
    "METHODS",
    "Method",
    "MethodComparison",
    "MethodRow",
    "compare_methods",
    "comparison_recipe",
    "holm",
]

LEVEL = 0.05
"""A corrected p below this is called significant."""


@dataclass(frozen=True)
class MethodRow:
    """One method of a comparison.

    Args:
        method: Its name.
        accuracy: The mean over the seeds.
        low: The lower end of its 95 % interval; NaN with one seed.
        high: The upper end.
        macs: The mean of the multiply-accumulates of one input.
        difference: The mean difference of the accuracy from the first method's, seed by seed.
        p: The p value of the paired t-test, corrected by Holm's rule; NaN with one seed, and for the first method.
        values: The accuracy with every seed.
        macs_nonzero: The mean of the multiply-accumulates with a non-zero weight; NaN where they were not measured.
        raw_p: The p value before the correction.
    """

    method: str
    accuracy: float
    low: float
    high: float
    macs: float
    difference: float
    p: float
    values: tuple[float, ...]
    macs_nonzero: float = math.nan
    raw_p: float = math.nan

    @property
    def verdict(self) -> str:
        """What the test says, in words."""
        if math.isnan(self.p):
            return ""
        if self.p >= LEVEL:
            return "no significant difference"
        return "significantly better" if self.difference > 0 else "significantly worse"


@dataclass(frozen=True)
class MethodComparison:
    """What `compare_methods` returns.

    Args:
        rows: One for each method that ran, in the order asked for.
        seeds: The number of seeds.
        ran: The run, with all its trials and failures.
        dense: The model before the first cut, if the recipe measured it there; it is not tested against the methods.
        notes: Which steps the methods changed, and which cuts stayed as the recipe says.
    """

    rows: tuple[MethodRow, ...]
    seeds: int
    ran: Ran
    dense: MethodRow | None = None
    notes: tuple[str, ...] = ()

    @property
    def zeros_left(self) -> bool:
        """Whether weights that are zero are still multiplied: masks were left, and nothing was cut out for them."""
        return any(row.macs_nonzero != row.macs and not math.isnan(row.macs_nonzero) for row in self.rows)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The head and the rows of one table of texts; the last row is the dense model, where it was measured."""
        nonzero = ["macs with a non-zero weight"] if self.zeros_left else []
        head = ["method", "accuracy", "95 % interval", "macs", *nonzero]
        head += [f"against {self.rows[0].method}", "p", "verdict"]
        return head, [self._cells(row) for row in (*self.rows, *([self.dense] if self.dense else []))]

    def _cells(self, row: MethodRow) -> list[str]:
        first = row is self.rows[0] or math.isnan(row.difference)
        nonzero = "" if math.isnan(row.macs_nonzero) else f"{row.macs_nonzero:,.0f}"
        return [
            row.method,
            f"{row.accuracy:.2%}",
            "" if math.isnan(row.low) else f"{max(row.low, 0):.2%} to {min(row.high, 1):.2%}",
            f"{row.macs:,.0f}",
            *([nonzero] if self.zeros_left else []),
            "" if first else f"{100 * row.difference:+.2f} points",
            "" if math.isnan(row.p) else f"{row.p:.3f}",
            row.verdict,
        ]

    def measurements(self) -> Measurements:
        """The rows as Measurements, from which the report draws its chart."""
        found = []
        for row in self.rows:
            at = {"variant": row.method, "method": row.method, "seeds": self.seeds}
            spread = {} if math.isnan(row.low) else {"low": row.low, "high": row.high}
            text = "mean over the seeds of the accuracy at the end; the interval is Student's t, 95 %"
            said = [row.verdict] if row.verdict else []
            said += self.notes if row is self.rows[0] else ()
            found.append(
                Measurement(
                    "accuracy",
                    row.accuracy,
                    "",
                    text,
                    trials=row.values,
                    notes=tuple(said),
                    context=at,
                    spread=spread,
                )
            )
            macs = "multiply-accumulates of one input at the end, mean over the seeds"
            found.append(Measurement("macs", row.macs, "", macs, context=at))
            if not math.isnan(row.macs_nonzero):
                text = (
                    "multiply-accumulates of one input at the end with a non-zero weight, mean over the seeds"
                )
                found.append(Measurement("macs_nonzero", row.macs_nonzero, "", text, context=at))
        return Measurements(found)

    def __str__(self) -> str:
        head, rows = self.table()
        widths = [max(len(line[at]) for line in [head, *rows]) for at in range(len(head))]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in [head, *rows]]
        return "\n".join([*lines, *self.notes])


def compare_methods(
    recipe: Recipe,
    store: Store,
    methods: Sequence[str],
    *,
    seeds: int = 3,
    jobs: int = 1,
    progress: Progress | None = None,
    engine: Engine | None = None,
    plan: RunPlan | None = None,
) -> MethodComparison:
    """Run a recipe with each method and each seed, and compare the results.

    Args:
        recipe: A recipe without a grid that trains, prunes and measures. Its steps that cut name budget and
            granularity; all that cut by the criterion of the first one take the method's.
        store: Where outcomes are looked for and kept.
        methods: Names of `METHODS` or of criteria, also your own as `module:Class`; the first one is what the others
            are compared with.
        seeds: How many seeds, counted from the recipe's own.
        jobs: Processes of this machine that share the trials.
        progress: The display; None shows nothing.
        engine: Computes the steps, in place of this machine's processes.
        plan: The plan of `comparison_recipe`, where it was made before.

    Returns:
        One row for each method, and the run.

    Raises:
        OptionError: An unknown method, one named twice, or fewer than one seed.
        RecipeError: The recipe has a grid, no step that cuts, or no training before it for a method that needs it.
        NothingToDoError: No trial measured both accuracy and multiply-accumulates.
    """
    whole = comparison_recipe(recipe, methods, seeds) if plan is None else plan.recipe
    ran = run(whole, store, jobs=jobs, progress=progress, plan=plan, engine=engine)
    return MethodComparison(
        _rows(ran, methods), seeds, ran, _dense(ran, recipe, methods), notes(recipe, methods)
    )


def comparison_recipe(recipe: Recipe, methods: Sequence[str], seeds: int) -> Recipe:
    """The recipe with an axis of methods and one of seeds.

    Args:
        recipe: A recipe without a grid.
        methods: Names of `METHODS` or of criteria, also your own as `module:Class`.
        seeds: How many seeds, counted from the recipe's own.
    """
    names = list(methods)
    for name in names:
        method_of(name)
    if len(names) < 2 or len(set(names)) < len(names):
        raise OptionError(f"methods: expected at least two different ones, got {', '.join(names) or 'none'}")
    if seeds < 1:
        raise OptionError(f"seeds: expected at least 1, got {seeds}")
    if recipe.grid:
        raise RecipeError(
            f"{recipe.name}: expected a recipe without [grid], got the axes {', '.join(recipe.grid)}; a comparison "
            "varies the method and the seed alone: leave the grid out"
        )
    recipe = recipe.allowing(*(name for name in names if ":" in name))
    whole = recipe.plain()
    whole["choice"] = {"method": {name: settings_of(recipe, name) for name in names}}
    whole["grid"] = {"method": names}
    grid = [repeated(recipe.lab.seed, seeds)]
    return Recipe.of(whole, grid=grid, source=recipe.name, allow_code=recipe.allowed_code)


def _rows(ran: Ran, methods: Sequence[str]) -> tuple[MethodRow, ...]:
    """One row for each method that was measured with all seeds."""
    accuracy, macs, nonzero = (_last(ran, name) for name in ("accuracy", "macs", "macs_nonzero"))
    there = [name for name in methods if accuracy.get(name) and macs.get(name)]
    if not there:
        reason = f"; the first failure: {ran.failures[0][1]}" if ran.failures else ""
        raise NothingToDoError(
            "no trial measured both accuracy and macs: end the recipe with a step of kind 'measure' and what = "
            f"['accuracy', 'macs']{reason}"
        )
    first = accuracy[there[0]]
    pairs = {name: paired(accuracy[name], first) for name in there}
    tested = [name for name in there[1:] if len(pairs[name]) > 1]
    raw = {name: paired_p(pairs[name]) for name in tested}
    corrected = dict(zip(tested, holm(list(raw.values())), strict=True))
    found = []
    for name in there:
        values = tuple(accuracy[name].values())
        over = mean_over_seeds(values)
        gaps = [ours - theirs for ours, theirs in pairs[name]]
        found.append(
            MethodRow(
                name,
                over.mean,
                over.low,
                over.high,
                statistics.fmean(macs[name].values()),
                statistics.fmean(gaps) if gaps else math.nan,
                corrected.get(name, math.nan),
                values,
                _mean(nonzero.get(name)),
                raw.get(name, math.nan),
            )
        )
    return tuple(found)


def _mean(values: Mapping[int, float] | None) -> float:
    return statistics.fmean(values.values()) if values else math.nan


def _dense(ran: Ran, recipe: Recipe, methods: Sequence[str]) -> MethodRow | None:
    """The row of the model before the first cut, of the first method that trains as the recipe says, if any does."""
    measured = [step.label for step in recipe.steps[: first_cut(recipe)] if step.kind() == "measure"]
    accuracy, macs, nonzero = (_last(ran, name, measured) for name in ("accuracy", "macs", "macs_nonzero"))
    there = [name for name in methods if accuracy.get(name) and macs.get(name)]
    if not there:
        return None
    name = min(there, key=lambda each: method_of(each).sparsify is not None)
    values = tuple(accuracy[name].values())
    over = mean_over_seeds(values)
    costs = (_mean(macs[name]), math.nan, math.nan, values, _mean(nonzero.get(name)))
    return MethodRow("dense", over.mean, over.low, over.high, *costs)


def _last(ran: Ran, name: str, variants: Sequence[str] | None = None) -> dict[str, dict[int, float]]:
    """The last value of a measure, by method and seed; of these steps alone where they are given."""
    found: dict[str, dict[int, float]] = {}
    for item in ran.measurements:
        if variants is not None and item.context.get("variant") not in variants:
            continue
        if item.name == name and "method" in item.context and "epoch" not in item.context:
            found.setdefault(str(item.context["method"]), {})[int(seed_of(item.context))] = float(item.value)
    return found


def paired_p(pairs: Sequence[tuple[float, float]]) -> float:
    """The p value of a two-sided paired t-test; 1 where all differences are 0, 0 where all are the same and not 0.

    Args:
        pairs: The two values of each pair.

    >>> round(paired_p([(2.0, 1.0), (4.0, 1.0)]), 3)  # differences 1 and 3: t = 2 / 1 with one degree of freedom
    0.295
    """
    gaps = [ours - theirs for ours, theirs in pairs]
    mean = statistics.fmean(gaps)
    error = statistics.stdev(gaps) / math.sqrt(len(gaps))
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    from scipy import stats

    return float(2 * stats.t.sf(abs(mean) / error, len(gaps) - 1))


def holm(ps: Sequence[float]) -> list[float]:
    """Correct p values for multiple comparisons (Holm 1979).

    Args:
        ps: The p value of each comparison.
    """
    order = sorted(range(len(ps)), key=lambda at: ps[at])
    found, highest = [0.0] * len(ps), 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[at]))
        found[at] = highest
    return found

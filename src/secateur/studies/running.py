"""`carry_out`: run a study, every part as a sweep in the ordinary store, then one set of measurements for tables and
page.

    done = carry_out(read("vae"), "smoke", Store("runs"))
    for table in done.tables():
        print(table.title, table.head, table.rows)

>>> from secateur.core.measurement import Measurement
>>> part = Part(name="sweep", context={"criterion": "none"})
>>> found = _renamed(Measurements([Measurement("loss", 1.0, context={"trial": 0, "prune.budget": 0.5})]), part,
...               {"prune.budget": "sparsity"}, 10)
>>> found[0].context
{'criterion': 'none', 'trial': 10, 'sparsity': 0.5, 'part': 'sweep'}
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from secateur import studies
from secateur.core.measurement import Measurements
from secateur.errors import SecateurError
from secateur.lab.display.preview import Preview, preview
from secateur.lab.display.progress import Progress
from secateur.lab.engine import Ran, check_gpus, run
from secateur.lab.planning import RunPlan
from secateur.lab.planning import plan as make_plan
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store
from secateur.report.published import PublishedComparison, beside
from secateur.studies.published import PublishedFigure, alike, parse, published_measurements
from secateur.studies.study import Part, Picture, Study
from secateur.studies.tables import Tabulated, tabulate

if TYPE_CHECKING:
    from secateur.lab.engines import Engine

__all__ = ["StudyPlan", "StudyResult", "carry_out", "planned"]


@dataclass(frozen=True)
class StudyPlan:
    """A study at a scale, resolved: nothing is trained or written yet."""

    study: Study
    scale: str
    parts: tuple[tuple[Part, RunPlan], ...]

    @property
    def whole(self) -> RunPlan:
        """All trials of all parts as one plan: what is shared between parts counts once."""
        first = self.parts[0][1]
        return RunPlan(first.recipe, first.device, tuple(t for _, plan in self.parts for t in plan.trials))

    def preview(self, store: Store | None, probe: Callable[[Recipe], float] | None = None) -> Preview:
        """The steps it would run; `probe` times a training of which the store has no times."""
        return preview(self.whole, store, probe)


@dataclass(frozen=True)
class StudyResult:
    """The result of a study."""

    planned: StudyPlan
    ran: tuple[tuple[Part, Ran], ...]
    measurements: Measurements
    figures: tuple[PublishedFigure, ...]
    seconds: float
    broken: tuple[tuple[str, int, str], ...] = ()
    _made: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def study(self) -> Study:
        """The study."""
        return self.planned.study

    @property
    def computed(self) -> int:
        """How many steps had to be computed."""
        return sum(ran.computed for _, ran in self.ran)

    @property
    def failures(self) -> list[tuple[str, int, str]]:
        """(part, trial, message) of every trial that failed."""
        found = [(part.name, index, text) for part, ran in self.ran for index, text in ran.failures]
        return [*found, *self.broken]

    def tables(self) -> list[Tabulated]:
        """Every table that something was measured for, published figures beside ours."""
        if "tables" not in self._made:
            made = [tabulate(spec, self.measurements, self.figures) for spec in self.study.table]
            self._made["tables"] = [table for table in made if table.rows]
        found: list[Tabulated] = self._made["tables"]
        return found

    def rest(self) -> list[PublishedComparison]:
        """Published figures that are in no table."""
        used = [figure for table in self.tables() for figure in table.used]
        left = [figure for figure in self.figures if figure not in used]
        return beside(self.measurements + published_measurements(left))

    def trial(self, picture: Picture) -> tuple[Ran, int] | None:
        """The run and the trial of a picture: the first of its part with the wanted settings."""
        for part, ran in self.ran:
            if part.name != picture.part:
                continue
            failed = {index for index, _ in ran.failures}
            for trial in ran.plan.trials:
                said = {self.study.names.get(key, key): value for key, value in trial.settings.items()}
                said |= part.context
                fits = all(key in said and alike(said[key], value) for key, value in picture.where.items())
                if fits and trial.index not in failed:
                    return ran, trial.index
        return None


def planned(
    study: Study,
    scale: str,
    settings: Sequence[str] = (),
    data: str | None = None,
    device: str | None = None,
) -> StudyPlan:
    """Every part resolved and checked, before any work."""
    found = study.recipes(scale, settings, data)
    return StudyPlan(study, scale, tuple((part, make_plan(recipe, device)) for part, recipe in found))


def carry_out(
    what: StudyPlan,
    store: Store,
    *,
    jobs: int = 1,
    progress: Callable[[bool], Progress] | None = None,
    engine: Callable[[], Engine | None] | None = None,
    gpus: float | None = None,
) -> StudyResult:
    """Run every part; stored steps are not computed again. A trial that fails does not stop the others.

    `progress(many)` makes the display of one part, `engine()` an engine that computes its trials, if not this machine.
    `gpus` is how many GPUs each of the processes here takes: refused before any work if there are not enough.
    """
    for _, plan in what.parts:
        check_gpus(plan, jobs, gpus)
    started = time.perf_counter()
    ran: list[tuple[Part, Ran]] = []
    broken: list[tuple[str, int, str]] = []
    found = Measurements()
    first = 0
    for part, plan in what.parts:
        many = len(plan.trials) > 1 and jobs > 1
        shown = progress(many) if progress is not None else None
        place = engine() if engine is not None else None
        try:
            one = run(plan.recipe, store, jobs=jobs, progress=shown, plan=plan, engine=place, gpus=gpus)
        except SecateurError as error:
            # A part of one trial raises its error; the results of the other parts are kept.
            broken.append((part.name, 0, str(error)))
        else:
            ran.append((part, one))
            found = found + _renamed(one.measurements, part, what.study.names, first)
        first += len(plan.trials)
    if not ran:
        raise SecateurError(
            f"study {what.study.name}: every part failed; the first, {broken[0][0]}: {broken[0][2]}"
        )
    published = parse(studies.text_of(what.study.name, published=True), what.study.name)
    seconds = time.perf_counter() - started
    return StudyResult(what, tuple(ran), found, tuple(published), seconds, tuple(broken))


def _renamed(found: Measurements, part: Part, names: Mapping[str, str], first: int) -> Measurements:
    """A part's measurements as the study's: settings by the study's names, trials counted over all parts."""
    told = []
    for item in found:
        own = {names.get(key, key): value for key, value in item.context.items() if key != "run"}
        own["trial"] = first + int(item.context["trial"])
        told.append(replace(item, context={**part.context, **own, "part": part.name}))
    return Measurements(told)

"""The common part of `auto` and `smallest`: the dense baseline, the loop over attempts, the result.

Both searches work on a recipe. The recipe trains the dense model; `measure_baseline` runs it and measures it on the
validation images. A strategy then proposes settings, one after the other, and is sent the result of each attempt
(`pursue`). An attempt holds when its accuracy is at least that of the dense model minus `lost`. The best attempt that
holds is run once more with a last measurement on the test images, which no decision uses.

Every step goes through the recipe engine, so outcomes in the run store are not computed again: an interrupted
search continues.

>>> next_share(holds=1.0, fails=0.0), round(next_share(holds=0.5, fails=0.25), 4), next_share(holds=0.0, fails=0.2)
(0.5, 0.3536, 0.4)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import nn

from secateur.core.html_table import html_table
from secateur.core.measurement import Measurement, Measurements
from secateur.core.plotting import plot
from secateur.errors import BudgetNotMetError, CollapseError, NothingToDoError, OptionError
from secateur.lab.display.progress import Progress
from secateur.lab.engine import Ran, final_state, run
from secateur.lab.judging import score_of
from secateur.lab.planning import data_of
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store

if TYPE_CHECKING:
    import altair as alt

__all__ = [
    "Attempt",
    "Baseline",
    "Limit",
    "RecipeSearchResult",
    "RecipeStep",
    "SearchResult",
    "accuracy_of",
    "best_of",
    "check_calibrate",
    "check_limits",
    "measure_baseline",
    "measure_step",
    "next_share",
    "pursue",
    "untrained_first",
]

RecipeStep = dict[str, object]
"""One step of a recipe as plain data: `{"kind": "prune", "label": ..., ...}`."""

_MOST = 0.9  # the largest share of weights worth trying


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt of a search.

    Attributes:
        accuracy: Accuracy on the validation images; None where a step failed.
        holds: Whether the accuracy is within the limit.
        why: One sentence: the settings tried, and why the attempt was kept or dropped.
        epochs_saved: The epochs of training that were not needed, because compensating was enough.
    """

    accuracy: float | None
    holds: bool
    why: str = field(default="", compare=False)
    epochs_saved: int = 0


AttemptT = TypeVar("AttemptT", bound=Attempt)
ProposalT = TypeVar("ProposalT")


@dataclass(frozen=True, kw_only=True)
class SearchResult(Generic[AttemptT]):
    """The result of a search.

    Attributes:
        dense: The dense model's accuracy on the data that decides.
        limit: The least accuracy an attempt must reach to hold.
        attempts: Every attempt, in the order it was made.
        best: The best attempt that holds.
    """

    dense: float
    limit: float
    attempts: tuple[AttemptT, ...]
    best: AttemptT

    def _repr_html_(self) -> str:
        """The attempts in a notebook."""
        rows = (
            (one.why, "" if one.accuracy is None else f"{one.accuracy:.4f}", one.holds)
            for one in self.attempts
        )
        notes = [f"at least {self.limit:.4f} must hold"] if math.isfinite(self.limit) else []
        return html_table(("attempt", "accuracy", "holds"), rows, notes)

    def plot(self) -> alt.TopLevelMixin:
        """The accuracy of every attempt, beside the limit; a notebook shows what is returned."""
        return plot("attempts", self)


@dataclass(frozen=True, kw_only=True)
class RecipeSearchResult(SearchResult[AttemptT]):
    """The result of a search over the settings of a recipe.

    Attributes:
        ran: The run of the best attempt, with the measurements on the test images.
        evaluate: The user's function that judged in place of accuracy, by its name.
    """

    ran: Ran
    evaluate: str | None = None

    @property
    def final(self) -> Measurements:
        """The dense model and the result, measured on the test images."""
        raise NotImplementedError

    def _lines(self, summary: Iterable[str], *, dense: float, result: float) -> str:
        """The result as text: every attempt, the strategy's own lines, and a warning where the test images disagree."""
        how = "on the validation images" if self.evaluate is None else f"by {self.evaluate}"
        lines = [f"dense {self.dense:.4f} {how}; at least {self.limit:.4f} must hold"]
        lines += [f"  {one.why}" for one in self.attempts]
        untrained = [one.epochs_saved for one in self.attempts if one.epochs_saved]
        if untrained:
            lines.append(
                f"{len(untrained)} of {len(self.attempts)} attempts held without training: "
                f"{sum(untrained)} epochs saved"
            )
        lines += summary
        lost, allowed = dense - result, self.dense - self.limit
        if lost > allowed + 1e-12:
            where = "images" if self.evaluate is None else "split"
            lines.append(
                f"on the test {where}, which no decision used, it loses {lost:.4f} instead of at most {allowed:g}: "
                "hold out more validation images, ask for less loss, or train longer"
            )
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What the dense model reaches, and what an attempt must reach.

    Attributes:
        verb: The verb that searches, for errors and messages.
        accuracy: The dense model's accuracy on the data that decides.
        limit: The least accuracy that holds.
    """

    verb: str
    accuracy: float
    limit: float

    def holds(self, accuracy: float) -> bool:
        """Whether an accuracy is within the limit."""
        return accuracy >= self.limit - 1e-12

    def verdict(self, accuracy: float) -> str:
        """What follows from an attempt's accuracy, as the end of a sentence.

        >>> Limit(verb="auto", accuracy=0.9, limit=0.89).verdict(0.88)
        '0.8800 is 0.0100 short, so it is dropped'
        """
        short = self.limit - accuracy
        return f"{accuracy:.4f} " + (
            "holds, so less is tried" if self.holds(accuracy) else f"is {short:.4f} short, so it is dropped"
        )


@dataclass(frozen=True, kw_only=True)
class Baseline(Limit):
    """The dense model of a recipe, trained and measured, with which every attempt is compared.

    Attributes:
        recipe: The recipe as it was given.
        table: The recipe as plain data, with the steps that measure the dense model.
        store: Where outcomes are kept.
        ran: The run that trained and measured the dense model.
        progress: Where progress is shown, or None.
        evaluate: The user's function that judges in place of accuracy, by its name.
    """

    recipe: Recipe
    table: dict[str, object]
    store: Store
    ran: Ran
    progress: Progress | None = None
    evaluate: str | None = None

    @property
    def model(self) -> nn.Module:
        """The dense model."""
        return final_state(self.ran.plan.trials[0], self.store).model

    def run(self, steps: Sequence[RecipeStep]) -> Ran:
        """Run the recipe with more steps after its own; outcomes in the store are not computed again."""
        return _run(self.recipe, self.table, steps, self.store, self.progress)

    def attempt(self, steps: Callable[[], Sequence[RecipeStep]]) -> Measurements | str:
        """Run the steps of an attempt; returns the measurements, or why there are none.

        Args:
            steps: Makes the steps. It may fail in the ways a cut can fail, as the steps may.

        Returns:
            The measurements of the run, or the text of the error if the cut is not possible.
        """
        try:
            return self.run(steps()).measurements
        except (BudgetNotMetError, CollapseError, NothingToDoError) as error:
            return str(error)


def check_limits(lost: float, attempts: int) -> None:
    """Check the two options that both searches take.

    Raises:
        OptionError: `lost` is not a share, or there is no attempt to make.
    """
    if not 0.0 <= lost < 1.0:
        raise OptionError(
            f"lost is a share of the accuracy: expected 0 <= lost < 1, got {lost!r}; for 1 % write 0.01"
        )
    if attempts < 1:
        raise OptionError(f"attempts: expected at least 1, got {attempts}")


def check_calibrate(calibrate: int) -> None:
    """Check the number of images that a search compensates on.

    Raises:
        OptionError: It is not a whole number of at least 0.
    """
    if isinstance(calibrate, bool) or not isinstance(calibrate, int) or calibrate < 0:
        raise OptionError(f"calibrate: expected a number of images, got {calibrate!r}")


def measure_baseline(
    verb: str,
    recipe: Recipe,
    store: Store,
    measures: Sequence[RecipeStep],
    lost: float,
    progress: Progress | None,
    on_message: Callable[[str], None],
) -> Baseline:
    """Run the recipe, measure its dense model, and derive the limit.

    Args:
        verb: The verb that searches.
        recipe: How the dense model is made; its grid is left out.
        store: Where outcomes are kept.
        measures: Steps that measure the dense model; the first measures it on the validation images.
        lost: How much accuracy may be lost.
        progress: Where progress is shown.
        on_message: Called with the baseline in a sentence.

    Returns:
        The baseline.
    """
    table: dict[str, object] = {**recipe.plain(), "grid": {}}
    table["step"] = [*recipe.plain()["step"], *measures]
    ran = _run(recipe, table, (), store, progress)
    accuracy = accuracy_of(ran.measurements, str(measures[0]["label"]), verb)
    limit = accuracy - lost
    validation, evaluate = data_of(recipe).validation, measures[0].get("evaluate")
    how = f"on {len(validation):,} validation {validation.word}" if evaluate is None else f"by {evaluate}"
    on_message(f"dense: {accuracy:.4f} {how}, so at least {limit:.4f}")
    evaluate = None if evaluate is None else str(evaluate)
    return Baseline(
        verb=verb,
        accuracy=accuracy,
        limit=limit,
        recipe=recipe,
        table=table,
        store=store,
        ran=ran,
        progress=progress,
        evaluate=evaluate,
    )


def pursue(
    proposals: Generator[ProposalT, AttemptT, None],
    attempt: Callable[[ProposalT], AttemptT],
    on_message: Callable[[str], None],
    most: int | None = None,
) -> list[AttemptT]:
    """Make the attempts that a strategy proposes, one after the other.

    Args:
        proposals: The strategy: yields the next settings and is sent their result.
        attempt: Makes one attempt.
        on_message: Called with the sentence of every attempt.
        most: The most attempts to make; None leaves it to the strategy.

    Returns:
        The attempts, in order.
    """
    done: list[AttemptT] = []
    proposal = next(proposals, None)
    while proposal is not None and (most is None or len(done) < most):
        done.append(attempt(proposal))
        on_message(done[-1].why)
        try:
            proposal = proposals.send(done[-1])
        except StopIteration:
            proposal = None
    return done


def untrained_first(make: Callable[[bool], AttemptT], calibrate: int) -> AttemptT:
    """Make an attempt without training, and train only where that does not hold.

    Args:
        make: Makes the attempt; True trains.
        calibrate: The number of images to compensate on; with 0 it is trained at once.

    Returns:
        The attempt. One that was trained also says what it reached without training.
    """
    if not calibrate:
        return make(True)
    first = make(False)
    if first.holds:
        return first
    second = make(True)
    return replace(second, why=f"{first.why}; {second.why}")


def best_of(
    attempts: Sequence[AttemptT], cost: Callable[[AttemptT], float], baseline: Limit, advice: str
) -> AttemptT:
    """Pick the attempt of least cost among those that hold.

    Args:
        attempts: All attempts.
        cost: The cost of an attempt; the first of equals wins.
        baseline: What the dense model reached, and the limit.
        advice: The next step if none holds, for the error.

    Returns:
        The best attempt.

    Raises:
        BudgetNotMetError: No attempt holds.
    """
    holding = [one for one in attempts if one.holds]
    if holding:
        return min(holding, key=cost)
    reached = [one.accuracy for one in attempts if one.accuracy is not None]
    if not reached:
        raise BudgetNotMetError(
            f"{baseline.verb}: none of {len(attempts)} attempts came to a model that could be judged; the last one: "
            f"{attempts[-1].why}. What can be removed, and what not and why, says secateur explain (sc.explain)"
        )
    near = max(reached)
    raise BudgetNotMetError(
        f"{baseline.verb}: none of {len(attempts)} attempts held {baseline.limit:.4f} (dense {baseline.accuracy:.4f}, "
        f"at most {baseline.accuracy - baseline.limit:.4g} lost); the nearest came to {near:.4f}. {advice}"
    )


def next_share(holds: float, fails: float) -> float:
    """Choose the share to try next.

    Args:
        holds: The smallest share that held; 0.0 while none has.
        fails: The largest share that failed; 0.0 while none has.

    Returns:
        Half of the one that held, double the one that failed, or, with both known, their geometric mean.
    """
    if holds and fails:
        return float((holds * fails) ** 0.5)
    return holds / 2 if holds else min(_MOST, fails * 2)


def measure_step(label: str, split: str, *what: str, evaluate: str | None = None) -> RecipeStep:
    """A step that measures the model on a split of the data; `evaluate` is the user's function in place of accuracy.

    >>> measure_step("dense", "validation", "params")
    {'kind': 'measure', 'label': 'dense', 'what': ['accuracy', 'params'], 'split': 'validation'}
    """
    step: RecipeStep = {"kind": "measure", "label": label, "what": ["accuracy", *what], "split": split}
    return step if evaluate is None else {**step, "evaluate": evaluate}


def accuracy_of(measured: Iterable[Measurement], label: str, verb: str) -> float:
    """The accuracy that the step of this label measured, or the number that the user's function gave.

    Raises:
        OptionError: It measured none, as where the data is not for classifiers.
    """
    found = score_of((m for m in measured if m.context.get("variant") == label), verb)
    if found is None:
        raise OptionError(
            f"{verb}: the recipe's data has no accuracy to hold; it works with classifiers, or with a judgement of "
            "your own: --evaluate package.module:function"
        )
    return float(found.value)


def _run(
    recipe: Recipe,
    table: dict[str, object],
    steps: Sequence[RecipeStep],
    store: Store,
    progress: Progress | None,
) -> Ran:
    own = table["step"]
    assert isinstance(own, list)
    longer = Recipe.of({**table, "step": [*own, *steps]}, allow_code=recipe.allowed_code)
    return run(longer, store, progress=progress)

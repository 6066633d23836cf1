"""`auto`: find the fastest or smallest model that loses at most `lost` accuracy.

    found = auto(Recipe.read("recipe.toml"), Store("runs"), lost=0.01, goal="fast")
    print(found)            # every attempt and why it was kept or dropped, then the best one

The recipe says how the dense model is made. `auto` measures it, scans which layers can be cut (goal "fast"), and then
makes attempts: allocate, prune, retrain, shrink or share, measure on the validation images. After an attempt that holds
the limit a smaller one follows; after one that fails, one half way back. If no cut of the dense model holds, the last
model that held is cut further, which keeps its training.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from secateur import budget as budgets
from secateur.core.measurement import Measurements
from secateur.errors import BudgetNotMetError, NothingToDoError, OptionError
from secateur.lab.display.progress import Progress
from secateur.lab.engine import final_state
from secateur.lab.judging import score_by
from secateur.lab.planning import data_of
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store
from secateur.lab.training import evaluate
from secateur.metrics.macs import macs
from secateur.pruning.prune import PruneOptions, prune
from secateur.search.frame import (
    Attempt,
    Baseline,
    RecipeSearchResult,
    RecipeStep,
    accuracy_of,
    best_of,
    check_calibrate,
    check_limits,
    measure_baseline,
    measure_step,
    next_share,
    pursue,
    untrained_first,
)
from secateur.sensitivity.scan import Scan, ScanOptions, scan

__all__ = ["Allotment", "AutoOptions", "AutoResult", "SpeedAttempt", "auto"]

_DENSE, _TEST, _RESULT = "auto_dense", "dense", "result"
_REFERENCES = ("against", "dense", "latent", "rewind", "rewind_rate", "scan", "start", "teacher")
"""Options of steps, and of their budgets, that hold the label of an earlier step."""
_ATTEMPTED = "auto_tried"  # the label is part of an outcome's address in the store
_ALLOCATIONS = {"scan": "cut by the scan", "between": "half by the scan", "uniform": "all layers alike"}
_CUT_FURTHER = "on"
_TEXTS = {**_ALLOCATIONS, _CUT_FURTHER: "continuing from what held"}
_RETRAIN: dict[str, object] = {"epochs": 5, "lr": 0.02, "schedule": "cosine"}
_ADVICE = "Allow more loss, retrain longer (retrain.epochs), or make more attempts"
_HARDEST = 0.98  # the largest share of a group's channels that an allocation removes


@dataclass(frozen=True)
class AutoOptions:
    """How `auto` makes its attempts.

    Attributes:
        allocation: How a cut is spread over the layers. "scan" cuts by the sensitivity that a scan measured, "uniform"
            cuts all layers alike, "between" half way between the two. "best" tries one after the other until one holds,
            beginning with the one that held last, and finally cuts the best model so far further.
        retrain: Options of the retraining after every cut, in addition to the defaults.
        bits: Bits of a shared weight, for the goal "small".
        calibrate: Training images, without their labels, on which an attempt first refits the remaining weights
            (`sc.compensate`). It is retrained only if that does not hold; with 0 it is retrained at once.
        evaluate: `package.module:function`, a function of the model (or of the model and the split) that gives the
            number to hold, more being better, in place of accuracy.
    """

    allocation: str = "best"
    retrain: Mapping[str, object] = field(default_factory=dict)
    bits: int = 4
    calibrate: int = 0
    evaluate: str | None = None

    def __post_init__(self) -> None:
        check_calibrate(self.calibrate)
        if self.allocation not in ("best", *_ALLOCATIONS):
            raise OptionError(
                f"allocation: expected 'best', 'scan', 'between' or 'uniform', got {self.allocation!r}"
            )


@dataclass(frozen=True, kw_only=True)
class SpeedAttempt(Attempt):
    """One attempt of `auto`.

    Attributes:
        keep: The share that was asked to remain: of the multiply-accumulates ("fast") or parameters ("small").
        steps: The recipe steps that led from the dense model to it; empty where one failed.
    """

    keep: float
    steps: tuple[RecipeStep, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class Allotment:
    """How a cut is spread over the layers.

    Attributes:
        name: "scan" (by the scan) or "between" (half way from all layers alike to that).
        scan: The loss of cutting each group alone.
    """

    name: str
    scan: Scan

    def shares(self, model: nn.Module, example: object, keep: float) -> dict[str, float]:
        """A sparsity for each group, so that the multiply-accumulates left are just above the share asked for.

        Args:
            model: The dense model.
            example: What it is called with.
            keep: The share of multiply-accumulates that must remain.
        """

        def by_scan(hardness: float) -> dict[str, float]:
            return self.scan.allocate(keep=max(1.0 - hardness, 1e-6)).sparsities

        scanned = _hardest_cut(by_scan, model, example, keep)
        if self.name == "scan":
            return scanned
        alike = _hardest_cut(lambda share: dict.fromkeys(self.scan.names, share), model, example, keep)
        middle = {name: (scanned.get(name, 0.0) + alike.get(name, 0.0)) / 2 for name in self.scan.names}
        most = _HARDEST / max(max(middle.values()), 1e-9)
        return _hardest_cut(
            lambda factor: {name: factor * most * share for name, share in middle.items()},
            model,
            example,
            keep,
        )


@dataclass(frozen=True, kw_only=True)
class AutoResult(RecipeSearchResult[SpeedAttempt]):
    """The result of `auto`.

    Attributes:
        goal: "fast" or "small".
    """

    goal: str

    @property
    def final(self) -> Measurements:
        """The dense model and the result, measured on the test images; for "small" also the bytes of its file."""
        wanted = (_TEST, _RESULT)
        return Measurements(
            m
            for m in self.ran.measurements
            if m.context.get("variant") in wanted or m.name in ("file_bytes", "file_ratio")
        )

    def __str__(self) -> str:
        kept = f"kept: {self.best.keep:.3g} of the {_unit(self.goal)} at {self.best.accuracy:.4f}"
        final = [f"  {m.context['variant']}: {m.name} {m.text()}" for m in self.final]
        dense, result = (accuracy_of(self.final, label, "auto") for label in (_TEST, _RESULT))
        return self._lines([kept, *final], dense=dense, result=result)


@dataclass(frozen=True)
class _Proposal:
    """The next attempt: the share that remains, how the cut is spread, and the steps to continue from."""

    keep: float
    allocation: str
    after: tuple[RecipeStep, ...] = ()


def auto(
    recipe: Recipe,
    store: Store,
    *,
    lost: float = 0.01,
    goal: str = "fast",
    attempts: int = 6,
    options: AutoOptions | None = None,
    progress: Progress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> AutoResult:
    """Find the fastest or smallest model that loses at most `lost` accuracy on the validation images.

    Args:
        recipe: How the dense model is made. It must not share or, for "fast", shrink by itself.
        store: Where outcomes are kept; a second search computes nothing again.
        lost: How much accuracy may be lost, as a share: 0.01 is one point.
        goal: "fast" removes channels, for the fewest multiply-accumulates. "small" removes single weights and shares
            the rest, for the fewest bytes of the packed file.
        attempts: How many shares to try.
        options: How attempts are made.
        progress: Where progress is shown.
        on_message: Called with the reason of every decision, one line each.

    Returns:
        Every attempt, the best one, and its measurements on the test images, which are used once, at the end.

    Raises:
        OptionError: An option is wrong, or the data has no accuracy.
        RecipeError: The recipe has a step that `auto` does itself.
        BudgetNotMetError: No attempt holds.
    """
    options = options or AutoOptions()
    if goal not in ("fast", "small"):
        raise OptionError(f"goal: expected 'fast' or 'small', got {goal!r}")
    check_limits(lost, attempts)
    recipe.refuse(
        ("share", "refine", "shrink") if goal == "fast" else ("share", "refine"),
        "auto continues from the model before its channels were removed or its weights were shared, and does both "
        "itself; leave "
        "the step out",
    )
    say = on_message or (lambda line: None)
    recipe, judge = _apart(recipe).allowing(options.evaluate), options.evaluate
    measures = [_measure(_DENSE, "validation", judge), _measure(_TEST, "test", judge)]
    baseline = measure_baseline("auto", recipe, store, measures, lost, progress, say)
    scanned = _scanned(baseline, say) if goal == "fast" and options.allocation != "uniform" else None
    attempt = _SpeedAttempts(baseline, baseline.model, goal, options, scanned)
    done = pursue(_proposals(_allocations(options, scanned), attempts), attempt, say)
    best = best_of(done, lambda one: one.keep, baseline, _ADVICE)
    last: RecipeStep = {"kind": "measure", "label": _RESULT, "split": "test", "against": _TEST}
    last |= {} if judge is None else {"evaluate": judge}
    ran = baseline.run([*best.steps, _measure(_ATTEMPTED, "validation", judge), last])
    dense, limit = baseline.accuracy, baseline.limit
    return AutoResult(
        goal=goal, dense=dense, limit=limit, attempts=tuple(done), best=best, ran=ran, evaluate=judge
    )


def _apart(recipe: Recipe) -> Recipe:
    """The recipe, in which steps that measure have other labels than those of `auto` itself."""
    table = recipe.plain()
    steps: list[dict[str, Any]] = [dict(step) for step in table["step"]]
    taken = {step["label"] for step in steps if step["kind"] == "measure"} & {_TEST, _RESULT}
    if not taken:
        return recipe
    for step in steps:
        parts: list[dict[str, Any]] = [step]
        if isinstance(step.get("budget"), dict):
            step["budget"] = dict(step["budget"])
            parts.append(step["budget"])
        for part in parts:
            for name in ("label", *_REFERENCES):
                if isinstance(part.get(name), str) and part[name] in taken:
                    part[name] = f"recipe_{part[name]}"
    return Recipe.of({**table, "step": steps}, source=recipe.name, allow_code=recipe.allowed_code)


def _allocations(options: AutoOptions, scanned: Scan | None) -> list[str]:
    """The allocations to try at each share, in order."""
    if scanned is None:
        return ["uniform"]
    return [*_ALLOCATIONS, _CUT_FURTHER] if options.allocation == "best" else [options.allocation]


def _proposals(allocations: Sequence[str], attempts: int) -> Generator[_Proposal, SpeedAttempt, None]:
    """The strategy: halve a share that held, go half way back from one that failed; at each share try the
    allocations in turn.
    """
    best: SpeedAttempt | None = None
    holds, fails = 1.0, 0.0
    for _ in range(attempts):
        keep = next_share(holds, fails)
        for allocation in allocations:
            if allocation == _CUT_FURTHER and best is None:
                continue
            after = best.steps if allocation == _CUT_FURTHER and best is not None else ()
            one = yield _Proposal(keep, allocation, after)
            if one.holds:
                best, holds = one, keep
                allocations = [allocation, *(other for other in allocations if other != allocation)]
                break
        else:
            fails = keep


@dataclass(frozen=True)
class _SpeedAttempts:
    """Makes attempts from proposals."""

    baseline: Baseline
    model: nn.Module
    goal: str
    options: AutoOptions
    scanned: Scan | None

    def __call__(self, proposal: _Proposal) -> SpeedAttempt:
        return untrained_first(lambda training: self._made(proposal, training), self.options.calibrate)

    def _made(self, proposal: _Proposal, training: bool) -> SpeedAttempt:
        keep = proposal.keep
        how = "" if self.goal == "small" else f", {_TEXTS[proposal.allocation]}"
        what = f"{keep:.3g} of the {_unit(self.goal)}{how}" + ("" if training else ", without training")
        steps: list[RecipeStep] = []

        def whole() -> list[RecipeStep]:
            steps.extend(self._steps(proposal, training))
            return [*steps, _measure(_ATTEMPTED, "validation", self.options.evaluate)]

        measured = self.baseline.attempt(whole)
        if isinstance(measured, str):
            return SpeedAttempt(keep=keep, accuracy=None, holds=False, why=f"{what}: failed: {measured}")
        accuracy = accuracy_of(measured, _ATTEMPTED, "auto")
        holds = self.baseline.holds(accuracy)
        why = f"{what}: {self.baseline.verdict(accuracy)}"
        saved = 0 if training or not holds else int(str({**_RETRAIN, **self.options.retrain}["epochs"]))
        return SpeedAttempt(
            keep=keep, accuracy=accuracy, holds=holds, why=why, steps=tuple(steps), epochs_saved=saved
        )

    def _steps(self, proposal: _Proposal, training: bool) -> list[RecipeStep]:
        retrain: RecipeStep = {"kind": "retrain", **_RETRAIN, **self.options.retrain}
        if not training:
            dense = self.baseline.recipe.steps[-1].label
            retrain = {"kind": "compensate", "calibrate": self.options.calibrate, "dense": dense}
        if self.goal == "small":
            return _smaller(proposal.keep, retrain, self.options.bits)
        if proposal.allocation == _CUT_FURTHER:
            return _cut_further(proposal.after, proposal.keep, retrain)
        shares: dict[str, float] = {}
        if proposal.allocation != "uniform" and self.scanned is not None:
            allotment = Allotment(proposal.allocation, self.scanned)
            shares = allotment.shares(self.model, data_of(self.baseline.recipe).example, proposal.keep)
        return _faster(proposal.keep, retrain, shares)


def _unit(goal: str) -> str:
    return "multiply-accumulates" if goal == "fast" else "parameters"


def _measure(label: str, split: str, evaluate: str | None) -> RecipeStep:
    return measure_step(label, split, "params", "macs", evaluate=evaluate)


def _scanned(baseline: Baseline, say: Callable[[str], None]) -> Scan:
    """Scan every group of channels alone; the values are kept in the store's folder."""
    ran, store = baseline.ran, baseline.store
    trial = ran.plan.trials[0]
    data = data_of(trial.recipe)
    folder = store.folder / "auto"
    folder.mkdir(parents=True, exist_ok=True)
    state = final_state(trial, store)

    def accuracy(model: nn.Module) -> float:
        if baseline.evaluate is not None:
            return score_by(model, baseline.evaluate, data.validation, "auto")
        measured = evaluate(model, data.validation, device=ran.plan.device, seed=trial.recipe.lab.seed)
        return measured["accuracy"]

    found = scan(
        state.model.to(ran.plan.device).eval(),
        accuracy,
        "channel",
        example=data.example.to(ran.plan.device),
        options=ScanOptions(
            at_least=1, resume=folder / f"scan-{trial.steps[-1].key[:24]}.json", seed=trial.recipe.lab.seed
        ),
    )
    worst = min(found.cells, key=lambda cell: cell.value)
    say(f"scan: {len(found.names)} groups alone; {worst.name!r} is the most sensitive ({worst.value:.4f})")
    return found


def _hardest_cut(
    shares_at: Callable[[float], dict[str, float]], model: nn.Module, example: object, keep: float
) -> dict[str, float]:
    """The hardest cut of a family, from 0 to 1, that leaves at least the share `keep` of the multiply-accumulates."""
    dense = macs(model, example)["macs"].value

    def left(cut: dict[str, float]) -> float:
        try:
            masks = prune(
                model,
                "l2",
                "channel",
                budgets.registry.get("per_layer")(cut),
                example=example,
                options=PruneOptions(at_least=1, allow_collapse=True),
            )
        except NothingToDoError:  # a share smaller than one channel
            return 1.0
        return macs(model, example, masks=masks)["macs_nonzero"].value / dense

    low, high, best = 0.0, 1.0, dict[str, float]()
    for _ in range(8):
        middle = (low + high) / 2
        try:
            cut = {name: min(share, _HARDEST) for name, share in shares_at(middle).items() if share > 0.0}
        except BudgetNotMetError:
            high = middle
            continue
        if not cut:
            low = middle
        elif left(cut) >= keep:
            best, low = cut, middle
        else:
            high = middle
    return best


def _smaller(keep: float, retrain: RecipeStep, bits: int) -> list[RecipeStep]:
    """The steps of an attempt at few bytes: prune single weights, retrain (or compensate), share, pack."""
    budget = {"name": "params", "keep": keep, "spread": "overall"}
    kind = retrain["kind"]
    images: RecipeStep = {name: retrain[name] for name in ("calibrate", "dense") if name in retrain}
    return [
        {"kind": "prune", "label": "auto_prune", "budget": budget},
        {**retrain, "label": f"auto_{kind}"},
        {"kind": "share", "label": "auto_share", "bits": bits, **images},
        {"kind": "pack", "label": "auto_pack", "file": "auto.sct"},
    ]


def _faster(keep: float, retrain: RecipeStep, shares: Mapping[str, float]) -> list[RecipeStep]:
    """The steps of an attempt at few multiply-accumulates; `shares` are sparsities by group, empty for all alike.

    Removed channels are compensated for before the cut, by the layers after them; a model is retrained after it.
    """
    channel: RecipeStep = {"kind": "prune", "criterion": "l2", "granularity": "channel"}
    steps: list[RecipeStep] = []
    if shares:
        table = {"name": "per_layer", "table": dict(shares)}
        steps.append({**channel, "label": "auto_allocate", "budget": table})
    # The allocation is a little above the budget; a second cut, all layers alike, meets it exactly.
    steps.append({**channel, "label": "auto_prune", "budget": {"name": "macs", "keep": keep}})
    return [*steps, *_mended({**retrain, "label": f"auto_{retrain['kind']}"})]


def _mended(retrain: RecipeStep) -> list[RecipeStep]:
    """The cut and the step that recovers accuracy, in their order."""
    shrink: RecipeStep = {"kind": "shrink", "label": "auto_shrink"}
    return [retrain, shrink] if retrain["kind"] == "compensate" else [shrink, retrain]


def _cut_further(steps: Sequence[RecipeStep], keep: float, retrain: RecipeStep) -> list[RecipeStep]:
    """The steps that led to a model, then those that cut it further; only the last of them shrinks."""
    number = sum(step["kind"] in ("retrain", "compensate") for step in steps) + 1
    channel: RecipeStep = {"kind": "prune", "criterion": "l2", "granularity": "channel"}
    return [
        *(step for step in steps if step["kind"] != "shrink"),
        {**channel, "label": f"auto_prune_{number}", "budget": {"name": "macs", "keep": keep}},
        *_mended({**retrain, "label": f"auto_{retrain['kind']}_{number}"}),
    ]

"""`auto`: at most so much accuracy lost, and as fast, or as small, as can be.

    found = auto(Recipe.read("recipe.toml"), Store("runs"), lost=0.01, goal="fast")
    print(found)            # every try and why it was kept or dropped; then what the best one is

The recipe says how the dense model comes about. `auto` measures it, scans which layers can give (goal "fast"), and
then tries: allocate, prune, retrain, shrink or share, measure on the validation images. A try that holds the limit is
followed by a smaller one, a try that does not by one half way back. Where no cut of the dense model holds, what held
last is cut on, and so keeps what it learnt on the way down. Every step goes through the recipe engine, so a
stopped search goes on where it stood, and a second one costs nothing. The test images are looked at once, at the end.

>>> next_share(holds=1.0, fails=0.0), round(next_share(holds=0.5, fails=0.25), 4)
(0.5, 0.3536)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from secateur import budget as budgets
from secateur.core.measurement import Measurements
from secateur.errors import BudgetNotMetError, CollapseError, NothingToDoError, OptionError
from secateur.lab.display.progress import Progress
from secateur.lab.engine import Ran, final_state, run
from secateur.lab.plan import data_of
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store
from secateur.lab.training.loop import evaluate
from secateur.metrics.macs import macs
from secateur.pruning.prune import prune
from secateur.sensitivity.scan import Scan, scan

__all__ = ["AutoResult", "SpeedAttempt", "auto", "next_share"]

_DENSE, _TEST, _RESULT = "auto_dense", "dense", "result"
_TRIED = "auto_tried"
_WAYS = {"scan": "cut by the scan", "between": "half by the scan", "uniform": "all layers alike"}
_ON = "on"
_SAID = {**_WAYS, _ON: "going on from what held"}
_RETRAIN = {"epochs": 5, "lr": 0.02, "schedule": "cosine"}


@dataclass(frozen=True)
class SpeedAttempt:
    """One attempt: the share asked to remain, what it gave on the validation images, and why it was judged so."""

    keep: float
    accuracy: float | None
    holds: bool
    why: str


@dataclass(frozen=True)
class Allotment:
    """How a cut is dealt out over the layers: by the scan ("scan"), or half way from all alike to that ("between")."""

    name: str
    scan: Scan

    def shares(self, model: nn.Module, example: Any, keep: float) -> dict[str, float]:
        """A sparsity for each group, so that the multiply-accumulates come just above what is asked to remain."""

        def by_scan(hardness: float) -> dict[str, float]:
            return self.scan.allocate(keep=max(1.0 - hardness, 1e-6)).sparsities

        found = _fitted(by_scan, model, example, keep)
        if self.name == "scan":
            return found
        alike = _fitted(lambda share: dict.fromkeys(self.scan.names, share), model, example, keep)
        middle = {name: (found.get(name, 0.0) + alike.get(name, 0.0)) / 2 for name in self.scan.names}
        most = 0.98 / max(max(middle.values()), 1e-9)
        return _fitted(
            lambda factor: {name: factor * most * share for name, share in middle.items()},
            model,
            example,
            keep,
        )


@dataclass(frozen=True)
class AutoResult:
    """What `auto` came to. `best` is None where no try held; `final` holds the test images' verdict."""

    goal: str
    dense: float
    limit: float
    tries: tuple[SpeedAttempt, ...]
    best: SpeedAttempt
    ran: Ran

    @property
    def final(self) -> Measurements:
        """The dense model and the result side by side, measured on the test images."""
        wanted = (_TEST, _RESULT)
        rows = (item for item in self.ran.measurements if item.context.get("variant") in wanted)
        return Measurements(rows)

    def __str__(self) -> str:
        lines = [f"dense {self.dense:.4f} on the validation images; at least {self.limit:.4f} must hold"]
        lines += [f"  {one.why}" for one in self.tries]
        lines.append(f"kept: {self.best.keep:.3g} of the {_unit(self.goal)} at {self.best.accuracy:.4f}")
        lines += [f"  {m.context['variant']}: {m.name} {m.text()}" for m in self.final]
        tested = {m.context["variant"]: m.value for m in self.final if m.name == "accuracy"}
        lost, allowed = tested.get(_TEST, 0.0) - tested.get(_RESULT, 0.0), self.dense - self.limit
        if lost > allowed + 1e-12:
            lines.append(
                f"on the test images, which no decision looked at, it loses {lost:.4f} instead of at most {allowed:g}: "
                "hold out more validation images, ask for less loss, or retrain longer"
            )
        return "\n".join(lines)


def next_share(holds: float, fails: float) -> float:
    """Where to try next, between a share that held and one that did not (0: none failed yet)."""
    return holds / 2 if fails == 0.0 else (holds * fails) ** 0.5


def auto(
    recipe: Recipe,
    store: Store,
    *,
    lost: float = 0.01,
    goal: str = "fast",
    tries: int = 6,
    allocation: str = "best",
    retrain: dict[str, Any] | None = None,
    bits: int = 4,
    progress: Progress | None = None,
    told: Callable[[str], None] | None = None,
) -> AutoResult:
    """Prune the recipe's model as far as costs at most `lost` accuracy on the validation images.

    `goal` is "fast" (channels leave, fewest multiply-accumulates) or "small" (single weights go, the rest is shared
    with `bits`, fewest bytes of the packed file). `allocation` "scan" cuts where a scan says it hurts least, "uniform"
    cuts all layers alike, "between" cuts half way between the two, and "best" tries one after the other until one
    holds, the one that held last time first; its last resort is to cut on, all layers alike, what held before.
    `retrain` are the options of the retraining after every cut. `told(line)` is called with the why of every decision.
    No try that holds within `tries` is a `BudgetNotMetError`.
    """
    if goal not in ("fast", "small"):
        raise OptionError(f"goal: expected 'fast' or 'small', got {goal!r}")
    if allocation not in ("best", *_WAYS):
        raise OptionError(f"allocation: expected 'best', 'scan', 'between' or 'uniform', got {allocation!r}")
    if not 0.0 <= lost < 1.0:
        raise OptionError(
            f"lost is a share of the accuracy: expected 0 <= lost < 1, got {lost!r}; for 1 % write 0.01"
        )
    if tries < 1:
        raise OptionError(f"tries: expected at least 1, got {tries}")
    recipe.refuse(
        ("share", "refine", "shrink") if goal == "fast" else ("share", "refine"),
        "auto goes on from the model before its channels left or its weights were shared, and does both itself; leave "
        "the step out",
    )
    say = told or (lambda line: None)
    training = {**_RETRAIN, **(retrain or {})}
    base = recipe.plain()
    base["grid"] = {}
    base["step"] = [*base["step"], _measure(_DENSE, "validation"), _measure(_TEST, "test")]
    ran = run(Recipe.of(base), store, progress=progress)
    dense = _accuracy(ran, _DENSE)
    limit = dense - lost
    say(
        f"dense: {dense:.4f} on {len(data_of(recipe).validation):,} validation images, so at least {limit:.4f}"
    )
    found = _scanned(ran, store, say) if goal == "fast" and allocation != "uniform" else None
    model = final_state(ran.plan.trials[0], store).model
    done: list[SpeedAttempt] = []
    best: SpeedAttempt | None = None
    kept: list[dict[str, Any]] = []  # the steps that led to the best
    holds, fails = 1.0, 0.0
    ways = ["uniform"] if found is None else [*_WAYS, _ON] if allocation == "best" else [allocation]
    for _ in range(tries):
        keep = next_share(holds, fails)
        for way in ways:
            if way == _ON and best is None:
                continue
            if way == _ON:
                led = partial(_further, kept, keep, training)
            else:
                dealt = None if way == "uniform" or found is None else Allotment(way, found)
                led = partial(_steps, recipe, model, dealt, keep, goal, training, bits)
            what = f"{keep:.3g} of the {_unit(goal)}{'' if goal == 'small' else f', {_SAID[way]}'}"
            one, steps = _tried(base, led, store, keep, what, limit, progress)
            done.append(one)
            say(one.why)
            if one.holds:
                best, holds, kept = one, keep, steps
                ways = [way, *(other for other in ways if other != way)]
                break
        else:
            fails = keep
    if best is None:
        near = max((one.accuracy for one in done if one.accuracy is not None), default=float("nan"))
        raise BudgetNotMetError(
            f"auto: none of {len(done)} tries held {limit:.4f} (dense {dense:.4f}, at most {lost:g} lost); the nearest "
            f"came to {near:.4f}. Allow more loss, retrain longer (retrain.epochs), or try more often (tries)"
        )
    last = {"kind": "measure", "label": _RESULT, "split": "test", "against": _TEST}
    whole = {**base, "step": [*base["step"], *kept, _measure(_TRIED, "validation"), last]}
    return AutoResult(goal, dense, limit, tuple(done), best, run(Recipe.of(whole), store, progress=progress))


def _unit(goal: str) -> str:
    return "multiply-accumulates" if goal == "fast" else "parameters"


def _measure(label: str, split: str) -> dict[str, Any]:
    return {"kind": "measure", "label": label, "what": ["accuracy", "params", "macs"], "split": split}


def _accuracy(ran: Ran, label: str) -> float:
    rows = [m for m in ran.measurements if m.name == "accuracy" and m.context.get("variant") == label]
    if not rows:
        raise OptionError("auto: the recipe's data has no accuracy to hold; it works with classifiers")
    return float(rows[-1].value)


def _scanned(ran: Ran, store: Store, say: Callable[[str], None]) -> Scan:
    """Which channels can go, from every group alone; what is measured is kept beside the store's runs."""
    trial = ran.plan.trials[0]
    data = data_of(trial.recipe)
    folder = store.folder / "auto"
    folder.mkdir(parents=True, exist_ok=True)
    state = final_state(trial, store)

    def accuracy(model: nn.Module) -> float:
        return evaluate(model, data.validation, device=ran.plan.device, seed=trial.recipe.lab.seed)[
            "accuracy"
        ]

    found = scan(
        state.model.to(ran.plan.device).eval(),
        accuracy,
        "channel",
        example=data.example.to(ran.plan.device),
        at_least=1,
        resume=folder / f"scan-{trial.steps[-1].key[:24]}.json",
        seed=trial.recipe.lab.seed,
    )
    worst = min(found.cells, key=lambda cell: cell.value)
    say(f"scan: {len(found.names)} groups alone; {worst.name!r} is the most sensitive ({worst.value:.4f})")
    return found


def _fitted(
    shares_at: Callable[[float], dict[str, float]], model: nn.Module, example: Any, keep: float
) -> dict[str, float]:
    """The hardest cut of a family, from 0 to 1, of which at least the share asked of the work remains, as counted."""
    dense = macs(model, example)["macs"].value
    low, high, best = 0.0, 1.0, dict[str, float]()
    for _ in range(8):
        middle = (low + high) / 2
        try:
            cut = {name: min(share, 0.98) for name, share in shares_at(middle).items() if share > 0.0}
        except BudgetNotMetError:
            high = middle
            continue
        if not cut:
            low = middle
            continue
        try:
            masks = prune(
                model,
                "l2",
                "channel",
                budgets.registry.get("per_layer")(cut),
                example=example,
                at_least=1,
                allow_collapse=True,
            )
            left = macs(model, example, masks=masks)["macs_nonzero"].value / dense
        except NothingToDoError:  # so small a share that it is no channel
            left = 1.0
        if left >= keep:
            best, low = cut, middle
        else:
            high = middle
    return best


def _steps(
    recipe: Recipe,
    model: nn.Module,
    way: Allotment | None,
    keep: float,
    goal: str,
    training: dict[str, Any],
    bits: int,
) -> list[dict[str, Any]]:
    """The steps of one try, after those of the dense model."""
    retrain = {"kind": "retrain", "label": "auto_retrain", **training}
    if goal == "small":
        return [
            {
                "kind": "prune",
                "label": "auto_prune",
                "budget": {"name": "params", "keep": keep, "spread": "overall"},
            },
            retrain,
            {"kind": "share", "label": "auto_share", "bits": bits},
            {"kind": "pack", "label": "auto_pack", "file": "auto.sct"},
        ]
    channel = {"kind": "prune", "criterion": "l2", "granularity": "channel"}
    steps: list[dict[str, Any]] = []
    if way is not None:
        shares = way.shares(model, data_of(recipe).example, keep)
        if shares:
            table = {"name": "per_layer", "table": shares}
            steps.append({**channel, "label": "auto_allocate", "budget": table})
    # what the allocation's grid leaves over goes evenly, so that the budget is met to the unit
    steps.append({**channel, "label": "auto_prune", "budget": {"name": "macs", "keep": keep}})
    return [*steps, {"kind": "shrink", "label": "auto_shrink"}, retrain]


def _further(kept: list[dict[str, Any]], keep: float, training: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps that led here, and those that cut on. Channels leave once, at the end: until then they are masked."""
    number = sum(step["kind"] == "retrain" for step in kept) + 1
    cut = {"kind": "prune", "criterion": "l2", "granularity": "channel"}
    return [
        *(step for step in kept if step["kind"] != "shrink"),
        {**cut, "label": f"auto_prune_{number}", "budget": {"name": "macs", "keep": keep}},
        {"kind": "shrink", "label": "auto_shrink"},
        {"kind": "retrain", "label": f"auto_retrain_{number}", **training},
    ]


def _tried(
    base: dict[str, Any],
    led: Callable[[], list[dict[str, Any]]],
    store: Store,
    keep: float,
    what: str,
    limit: float,
    progress: Progress | None,
) -> tuple[SpeedAttempt, list[dict[str, Any]]]:
    """One attempt by the steps that lead to it, and the sentence that says why it is kept or dropped."""
    try:
        steps = led()
        whole = {**base, "step": [*base["step"], *steps, _measure(_TRIED, "validation")]}
        ran = run(Recipe.of(whole), store, progress=progress)
    except (BudgetNotMetError, CollapseError, NothingToDoError) as error:
        return SpeedAttempt(keep, None, False, f"{what}: cannot be had ({error})"), []
    accuracy = _accuracy(ran, _TRIED)
    holds = accuracy >= limit
    verdict = "holds, so less is tried" if holds else f"is {limit - accuracy:.4f} short, so not this"
    return SpeedAttempt(keep, accuracy, holds, f"{what}: {accuracy:.4f} {verdict}"), steps

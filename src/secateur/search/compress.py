"""`compress`: the fastest or smallest form of a model in Python that loses at most `lost` of what `evaluate` gives.

    found = compress(model, example, evaluate, lost=0.01, data=images)
    print(found)            # every attempt, then what the model was and is
    found.model, found.plan # or sc.save(found, "small.sct")

`auto` does the same for a recipe, which says how the dense model is made and trained. Here the model is trained
already. An attempt prunes a copy of it; `data`, inputs without labels, refits the remaining weights; if the number is
still too low, `retrain`, a function of the user's own, trains the copy. After an attempt that holds the limit a smaller
one follows; after one that fails, one half way back.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from secateur import budget as budgets
from secateur import criteria
from secateur.compensation.compensate import compensate
from secateur.compensation.solver import LeastSquares
from secateur.container.archive import save
from secateur.core.cut_mark import unmarked
from secateur.core.masks import Masks
from secateur.core.measurement import Measurement, Measurements
from secateur.core.model_kinds import plain_model
from secateur.core.targets import Pattern, matches, patterns_of, select
from secateur.criteria import Criterion
from secateur.errors import (
    BudgetNotMetError,
    CollapseError,
    NonFiniteError,
    NothingToDoError,
    OptionError,
    PlanError,
)
from secateur.execution.devices import device_of
from secateur.execution.example import Example
from secateur.execution.fast_copy import tensors_of
from secateur.execution.undisturbed import PlainState
from secateur.execution.verb import verb
from secateur.lab.judging import score_of
from secateur.metrics import measure
from secateur.metrics.accuracy import Evaluate, accuracy
from secateur.metrics.latency import compare
from secateur.pruning.hold import hold
from secateur.pruning.prune import PruneOptions, prune
from secateur.quantize.result import Shared
from secateur.quantize.share import ShareOptions, share
from secateur.search.aims import FURTHER, Aim, BestAtSize, LeastCost, Proposal
from secateur.search.auto import Allotment
from secateur.search.compressed import GOALS, CompressAttempt, Compressed, CompressOptions, check_read_again
from secateur.search.frame import Limit, pursue
from secateur.search.shown import Steps, shown
from secateur.search.unseen import unseen
from secateur.sensitivity.scan import Scan, ScanOptions, scan
from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.proof import Proof
from secateur.structure.shrink import shrink

__all__ = ["compress"]

_ALIKE = "uniform"
_ALLOCATIONS = {
    "scan": ", cut by the scan",
    "between": ", half by the scan",
    _ALIKE: "",
    FURTHER: ", continuing from what held",
}
_FEW = 256
"""Tensors of fewer weights that belong to no layer are left as they are."""
_CUT_TOO_DEEP = (BudgetNotMetError, CollapseError, NothingToDoError)
"""What a cut that is too deep ends in: that attempt fails, and the search continues."""


@dataclass(frozen=True)
class _State:
    """A model of an attempt, and what it takes to write it."""

    model: nn.Module
    plan: ShrinkPlan | None = None
    proof: Proof | None = None
    shared: Shared | None = None

    def size(self) -> int:
        """The bytes of its file."""
        with unmarked(self.model), tempfile.TemporaryDirectory() as folder:
            return save(self.model, Path(folder) / "model.sct", self.shared, plan=self.plan).size


@verb
def compress(
    model: nn.Module,
    example: Example,
    evaluate: Evaluate,
    *,
    goal: str = "fast",
    lost: float | None = None,
    data: Iterable[object] | None = None,
    retrain: Callable[[nn.Module], object] | None = None,
    options: CompressOptions | None = None,
) -> Compressed:
    """Find the fastest or smallest form of a trained model that loses at most `lost` of what `evaluate` gives.

    With `CompressOptions(keep=0.5)` the size is given instead, and the best model of that size is found. The model is
    not changed: every attempt works on a copy. `sc.auto` does the same for a recipe.

    Args:
        model: The trained model.
        example: What the model is called with: a tensor, a tuple of arguments, or a dict of keywords.
        evaluate: A function of a model that returns a number, more being better (or a dict, with `accuracy` or
            `score`); or an iterable of batches (inputs, targets) for top-1.
        goal: "fast" removes channels, for the fewest multiply-accumulates. "small" removes single weights and shares
            the rest, for the fewest bytes of the file.
        lost: How much the number may fall, in its own unit: 0.01 is one point of an accuracy between 0 and 1. None is
            0.01, or anything where `CompressOptions.keep` gives the size.
        data: A few hundred inputs or more, without labels, in batches: every attempt first refits the remaining weights
            on them (`sc.compensate`). None leaves that out.
        retrain: A function that trains the model that it is given, in place, and returns nothing; called only where an
            attempt does not hold without, and with `keep` for every attempt that is small enough. For "small" removed
            weights are held at zero meanwhile.
        options: How attempts are made.

    Returns:
        The best model, every attempt with the reason why it was kept or dropped, and both models measured.

    Raises:
        OptionError: An option is wrong, or `evaluate` returns several numbers and none is called `score`.
        DataError: `evaluate` or `data` can be read only once.
        NonFiniteError: `evaluate` gives NaN for the dense model.
        BudgetNotMetError: No attempt holds, or none is small enough.
    """
    model, asked = plain_model(model), options or CompressOptions()
    _check(goal, lost, evaluate, data, retrain)
    _check_options(model, asked, data)
    lost = lost if lost is not None else 0.01 if asked.keep is None else math.inf
    ways = _allocations(goal, asked, retrain is not None)
    with shown(asked.progress, 2 + _most(goal, asked, ways)) as steps:
        judged = _Judged(model, example, evaluate, goal, asked)
        with steps.step("dense") as step:
            limit = judged.limit(lost)
            step.line = _limit_text(limit, lost)
        say = asked.on_message or (lambda line: None)
        say(f"dense: {step.line}")
        aim = _aim(limit, asked.keep, model, goal)
        attempts = _Attempts(model, example, evaluate, goal, data, retrain, asked, aim, steps)
        done = pursue(aim.proposals(ways, asked.attempts, asked.bit_counts), attempts, say)
        best = aim.best(done, attempts.best, _advice(data, retrain))
        assert attempts.state is not None
        with steps.step("measured", "measuring both models"):
            return _measured(judged, limit, done, best, attempts.state)


def _limit_text(limit: Limit, lost: float) -> str:
    """What the dense model has, and what is asked of every attempt."""
    asked = f", so at least {limit.limit:.4f}" if lost < math.inf else ""
    return f"{limit.accuracy:.4f} by evaluate{asked}"


def _allocations(goal: str, options: CompressOptions, trains: bool) -> list[str]:
    """How a cut is spread, in the order in which it is tried at each share."""
    if goal == "small":
        return [_ALIKE]
    kinds = [_ALIKE, "between", "scan"] if options.allocation == "best" else [options.allocation]
    return [*kinds, FURTHER] if trains else kinds


def _most(goal: str, options: CompressOptions, ways: Sequence[str]) -> int:
    """The most attempts that there may be."""
    if options.keep is None:
        return options.attempts * len(ways)
    return options.attempts * len(options.bit_counts) if goal == "small" else len(set(ways) - {FURTHER})


def _aim(limit: Limit, keep: float | None, model: nn.Module, goal: str) -> Aim:
    """The least cost within the limit, or the best at a given share of the model's cost."""
    if keep is None:
        return LeastCost(limit)
    whole = sum(
        tensor.numel() * tensor.element_size() for tensor in {id(t): t for t in _tensors(model)}.values()
    )
    return BestAtSize(limit, keep, int(keep * whole) if goal == "small" else None)


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [value for value in model.state_dict(keep_vars=True).values() if isinstance(value, torch.Tensor)]


def _check(
    goal: str,
    lost: float | None,
    evaluate: Evaluate,
    data: Iterable[object] | None,
    retrain: Callable[[nn.Module], object] | None,
) -> None:
    if goal not in GOALS:
        raise OptionError(f"goal: expected 'fast' or 'small', got {goal!r}")
    known = lost is None or (isinstance(lost, int | float) and not isinstance(lost, bool))
    if not known or (lost is not None and not 0 <= lost < math.inf):
        raise OptionError(
            f"lost: expected how much the number of evaluate may fall, 0 or more, got {lost!r}; 0.01 is one "
            "point of an accuracy between 0 and 1"
        )
    check_read_again(evaluate, "evaluate")
    check_read_again(data, "data")
    if retrain is not None and (not callable(retrain) or isinstance(retrain, nn.Module)):
        raise OptionError(
            f"retrain: expected a function that trains the model it is given, got {type(retrain).__name__}"
        )


def _check_options(model: nn.Module, options: CompressOptions, data: Iterable[object] | None) -> None:
    """Refuse steps without inputs, and a plan that does not lead to this model."""
    if options.tune is not None and data is None:
        raise OptionError("tune: gradient steps without labels need inputs; give data= (--calibrate)")
    plan = options.plan
    if plan is None:
        return
    tensors = tensors_of(model)
    for name in plan.keep:
        left = plan.shape_after(name) if name in plan.shapes else None
        there = tuple(tensors[name].shape) if name in tensors else None
        if there is None or there != (left or there):
            raise PlanError(
                f"plan: expected the plan that led to this model; it leaves {name!r} of shape {left}, and "
                f"{type(model).__name__} has {there or 'no such tensor'}. After several cuts give "
                "first.plan.then(second.plan); of a model that was not cut leave plan= out"
            )


def _number(rows: Measurements) -> float:
    found = score_of(rows, "compress")
    assert found is not None  # a function that returns nothing is refused
    if not math.isfinite(found.value):
        raise NonFiniteError(f"evaluate: expected a finite number, got {found.value} for {found.name!r}")
    return float(found.value)


def _advice(data: object, retrain: object) -> str:
    """What may help where no attempt held."""
    more = ["allow more loss", "make more attempts"]
    more += [] if data is not None else ["refit on inputs without labels (data=, or --calibrate)"]
    more.append("retrain the copies (retrain=)" if retrain is None else "retrain longer")
    text = f"{', '.join(more[:-1])} or {more[-1]}"
    return text[0].upper() + text[1:]


@dataclass
class _Pruned:
    """The pruned model of an attempt, which may still be trained: with its plan and proof, or with its masks."""

    model: nn.Module
    plan: ShrinkPlan | None = None
    proof: Proof | None = None
    masks: Masks | None = None


@dataclass
class _Attempts:
    """Makes attempts from proposals, and keeps the model of the best that held."""

    model: nn.Module
    example: Example
    evaluate: Evaluate
    goal: str
    data: Iterable[object] | None
    retrain: Callable[[nn.Module], object] | None
    options: CompressOptions
    aim: Aim
    steps: Steps = field(default_factory=Steps)
    scanned: Scan | None = None
    best: CompressAttempt | None = None
    state: _State | None = None
    made: int = 0

    def __call__(self, proposal: Proposal) -> CompressAttempt:
        self.made += 1
        what = f"{proposal.keep:.3g} of the {GOALS[self.goal]}{_ALLOCATIONS[proposal.allocation]}"
        what += ", refitted" if self.data is not None else ""
        with self.steps.step(f"attempt {self.made}", what) as step:
            one = self._attempt(proposal, what)
            step.line = one.why
        return one

    def _attempt(self, proposal: Proposal, what: str) -> CompressAttempt:
        failed = CompressAttempt(keep=proposal.keep, accuracy=None, holds=False)
        try:
            pruned = self._small(proposal.keep) if self.goal == "small" else self._fast(proposal)
        except _CUT_TOO_DEEP as error:
            return replace(failed, why=f"{what}: failed: {error}")
        try:
            one = self._judged(replace(failed, why=what), pruned, proposal.bits)
        except _CUT_TOO_DEEP as error:
            return replace(failed, why=f"{what}: failed: {error}")
        if self.retrain is None or not self.aim.trains(one):
            return one
        return self._retrained(one, pruned, proposal.bits)

    def _retrained(self, first: CompressAttempt, pruned: _Pruned, bits: int | None) -> CompressAttempt:
        """The attempt after a training, or as it was before where that was better."""
        what = f"{first.why}; retrained"
        if self.state is not None and self.state.model is pruned.model:  # it is kept as it is
            pruned = replace(pruned, model=copy.deepcopy(pruned.model))
        begun = replace(first, holds=False, why=what, trained=True, bits=None, bytes=None)
        self.steps.note(f"attempt {self.made}: {what}")
        try:
            self._train(pruned)
            one = self._judged(begun, pruned, bits)
        except (*_CUT_TOO_DEEP, NonFiniteError) as error:  # a training may diverge
            one = replace(begun, why=f"{what}: failed: {error}")
        if first.holds and not (one.holds and self.aim.better(one, first)):
            return replace(first, why=one.why)
        return one

    def _judged(self, begun: CompressAttempt, pruned: _Pruned, bits: int | None = None) -> CompressAttempt:
        """The attempt with its number, its weights shared by as few bits as hold; the model of the best is kept.

        Args:
            begun: The attempt so far.
            pruned: Its model.
            bits: The only number of bits to try; None tries those of the options.
        """
        counts: tuple[int | None, ...] = self.options.bit_counts if bits is None else (bits,)
        one = begun
        for count in counts if pruned.masks is not None else (None,):
            state = self._finished(pruned, count)
            size = None if count is None else state.size()
            start = f"{one.why}{': ' if one is begun else '; '}" + (
                "" if count is None else f"{count} bits, {size:,} bytes: "
            )
            one = replace(one, why=f"{start}too large", bytes=size, bits=count)
            if not self.aim.fits(size):
                one = replace(one, accuracy=None)
                continue
            try:
                number = _number(accuracy(copy.deepcopy(state.model), self.evaluate))
            except NonFiniteError as error:
                one = replace(one, why=f"{start}failed: {error}")
                continue
            why, holds = f"{start}{self.aim.verdict(number)}", self.aim.holds(number)
            one = replace(one, accuracy=number, holds=holds, why=why)
            if holds:
                self._keep_best(one, state)
                break
        return one

    def _keep_best(self, one: CompressAttempt, state: _State) -> None:
        if self.best is None or self.aim.better(one, self.best):
            self.best, self.state = one, state

    def _finished(self, pruned: _Pruned, bits: int | None) -> _State:
        """The model as it is judged and written: for "small" its weights are shared."""
        if bits is None or pruned.masks is None:
            return _State(pruned.model, pruned.plan, pruned.proof)
        skip, bare = self._parts()
        options = ShareOptions(skip=skip or None, parameters=bare or None, seed=self.options.seed)
        shared = share(pruned.model, bits, pruned.masks, data=self.data, options=options)
        return _State(shared.model, self.options.plan, shared=shared)

    def _parts(self) -> tuple[list[Pattern], list[str]]:
        """For "small", the patterns of layers to skip, and the weights of no such layer, as a GRU's, that take part."""
        patterns, whole = list(patterns_of(self.options.skip)), select(self.model)
        layers = {target.name for target in whole}
        bare = [
            name
            for name, value in self.model.named_parameters()
            if value.dim() >= 2 and value.numel() >= _FEW and name not in layers
        ]

        def names(pattern: Pattern, parameter: str) -> bool:
            layer = parameter.rpartition(".")[0]
            return matches(pattern, layer, parameter, self.model.get_submodule(layer))

        left = [name for name in bare if not any(names(one, name) for one in patterns)]
        of_layers = [
            one
            for one in patterns
            if not any(names(one, name) for name in bare) or any(names(one, target.name) for target in whole)
        ]
        return of_layers, left

    def _fast(self, proposal: Proposal) -> _Pruned:
        """Channels removed, compensated for by the layers after them, and cut."""
        model, keep, earlier = self.model, proposal.keep, self.options.plan
        if proposal.allocation == FURTHER and self.state is not None and self.best is not None:
            model, keep, earlier = self.state.model, proposal.keep / self.best.keep, self.state.plan
        masks = self._channels(model, keep, proposal.allocation)
        if self.data is not None:
            model = compensate(model, masks, self.data, tune=self.options.tune).model
        small = shrink(model, masks, self.example, round_to=self.options.round_to)
        plan = small.plan if earlier is None else earlier.then(small.plan)
        return _Pruned(small.model, plan, small.proof)

    def _channels(self, model: nn.Module, keep: float, allocation: str) -> Masks:
        options, rule = PruneOptions(at_least=1, seed=self.options.seed), self.options.criterion or "l2"
        skip, earlier = self.options.skip, None
        if allocation in ("scan", "between"):
            shares = Allotment(allocation, self._scan()).shares(model, self.example, keep)
            if shares:
                per_layer = budgets.PerLayer(shares)
                earlier = prune(
                    model, rule, "channel", per_layer, skip=skip, example=self.example, options=options
                )
        # The allocation is a little above the budget; a second cut, all layers alike, meets it exactly.
        whole = budgets.Macs(keep=keep, round_to=self.options.round_to)
        options = replace(options, masks=earlier)
        return prune(model, rule, "channel", whole, skip=skip, example=self.example, options=options)

    def _scan(self) -> Scan:
        if self.scanned is None:
            self.scanned = scan(
                copy.deepcopy(self.model),
                lambda model: _number(accuracy(copy.deepcopy(model), self.evaluate)),
                "channel",
                skip=self.options.skip,
                example=self.example,
                options=ScanOptions(at_least=1, seed=self.options.seed),
            )
        return self.scanned

    def _small(self, keep: float) -> _Pruned:
        """Single weights removed, and the others refitted."""
        named = self.options.criterion or ("magnitude" if self.data is None else criteria.Obs())
        rule = criteria.registry.make(named)
        skip, bare = self._parts()
        if rule.of_layers:
            masks = self._of_layers(rule, keep, skip, bare)
        else:
            masks = prune(
                self.model,
                rule,
                budget=budgets.Overall(1.0 - keep),
                skip=skip or None,
                example=self.example,
                data=self.data,
                options=PruneOptions(at_least=1, seed=self.options.seed, parameters=bare or None),
            )
        if self.data is None:
            return _Pruned(masks.apply(self.model), masks=masks)
        solver = LeastSquares(reselect=True)
        done = compensate(self.model, masks, self.data, solver=solver, tune=self.options.tune)
        return _Pruned(done.model, masks=done.masks)

    def _of_layers(self, rule: Criterion, keep: float, skip: list[Pattern], bare: list[str]) -> Masks:
        """Masks by a criterion that scores layers with inputs alone, and by magnitude of the weights of no layer."""
        options = PruneOptions(at_least=1, seed=self.options.seed)
        left = skip if self.data is None else [*skip, *unseen(self.model, self.data, skip)]
        layers = [target.name for target in select(self.model, skip=left or None)]
        found = prune(
            self.model,
            rule,
            budget=budgets.Overall(1.0 - keep),
            example=self.example,
            data=self.data,
            options=replace(options, only=layers),
        )
        if not bare:
            return found
        others = [target.name for target in select(self.model)]
        own = replace(options, parameters=bare)
        rest = prune(self.model, budget=1.0 - keep, skip=others, example=self.example, options=own)
        return Masks({**found, **rest})

    def _train(self, pruned: _Pruned) -> None:
        assert self.retrain is not None
        plain, device = PlainState(pruned.model), device_of(pruned.model)
        with nullcontext() if pruned.masks is None else hold(pruned.model, pruned.masks):
            given = self.retrain(pruned.model)
        plain.put_back()  # what the last forward left behind, such as an auxiliary loss, cannot be copied
        pruned.model.to(device).eval()
        if isinstance(given, nn.Module) and given is not pruned.model:
            raise OptionError(
                "retrain: expected a function that trains the model it is given, in place, got another "
                f"{type(given).__name__} back; what it returns is not used"
            )


@dataclass(frozen=True)
class _Judged:
    """What the dense model and the result are measured with."""

    model: nn.Module
    example: Example
    evaluate: Evaluate
    goal: str
    options: CompressOptions

    def limit(self, lost: float) -> Limit:
        """What the dense model gives, and the least that holds."""
        first = _number(accuracy(copy.deepcopy(self.model), self.evaluate))
        if self.options.test is not None:  # one that cannot judge is found before the search, not after it
            _number(accuracy(copy.deepcopy(self.model), self.options.test))
        return Limit(verb="compress", accuracy=first, limit=first - lost)

    def row(self, state: _State) -> Measurements:
        """What `evaluate` gives, parameters, multiply-accumulates and bytes."""
        net = copy.deepcopy(state.model)  # `evaluate` may do anything to it
        found = measure(net, self.example, self.evaluate, what=["accuracy", "params", "macs"])
        # nothing is zero in a narrower model
        dropped = () if self.goal == "small" else ("nonzeros", "macs_nonzero")
        found = Measurements(row for row in found if row.name not in dropped)
        size = Measurement("file_bytes", state.size(), "bytes", "bytes of the .sct file on disk")
        return Measurements([*found, size])

    def tested(self, small: nn.Module) -> Measurements:
        """What `test` gives for both models."""
        if self.options.test is None:
            return Measurements()
        pairs = (("dense", copy.deepcopy(self.model)), ("result", copy.deepcopy(small)))
        return Measurements(
            row for name, net in pairs for row in accuracy(net, self.options.test).within({"variant": name})
        )


def _measured(
    judged: _Judged, limit: Limit, done: Sequence[CompressAttempt], best: CompressAttempt, state: _State
) -> Compressed:
    fast = judged.goal == "fast"
    return Compressed(
        goal=judged.goal,
        dense=limit.accuracy,
        limit=limit.limit,
        attempts=tuple(done),
        best=best,
        model=state.model,
        before=judged.row(_State(judged.model, judged.options.plan)),
        after=judged.row(state),
        plan=state.plan,
        proof=state.proof,
        shared=state.shared,
        speed=compare(judged.model, state.model, judged.example, names=("dense", "small"))
        if fast
        else Measurements(),
        test=judged.tested(state.model),
    )

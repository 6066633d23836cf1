"""`smallest`: find the smallest file whose model loses at most `lost` accuracy, and the front on the way there.

    found = smallest(Recipe.read("recipe.toml"), Store("runs"), lost=0.005)
    print(found)            # every attempt, the front of accuracy against bytes, the best one on the test images

The recipe says how the dense model is made. An attempt trains it for accuracy and for the bytes of its file at once
(`rate_train`, with a target in bytes), distils from the dense model, trains the few values that are left, and writes
the file. The target is halved while the accuracy on the validation images holds, and brought half way back where it
fails.

The other way, taken where `keep`, `bits`, `rate` or `calibrate` is given: an attempt prunes gradually (weights at
places that cost many bits go first), shares the remaining weights among few values, and lets weights change their value
at a price per bit. How many weights remain, how many bits the values of each layer have, and what a bit costs are
chosen.

>>> ByteSettings(target=3000).text()
'trained for 3,000 bytes'
>>> SizeSettings(keep=0.02, bits={"fc1": 2, "fc2": 3}, rate=0.02).text()
'2 % of the weights, bits fc1 2, fc2 3, rate 0.02'
>>> measured = ((0.5, 900, 0.98), (0.2, 500, 0.97), (0.3, 600, 0.96))
>>> front([SizeAttempt(settings=SizeSettings(k), size=s, accuracy=a, holds=True) for k, s, a in measured])
(1, 0)
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from secateur.core.measurement import Measurements
from secateur.core.pareto import pareto_front
from secateur.core.targets import select
from secateur.errors import OptionError
from secateur.lab.display.progress import Progress
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store
from secateur.search.frame import (
    Attempt,
    Baseline,
    RecipeSearchResult,
    RecipeStep,
    accuracy_of,
    best_of,
    check_limits,
    measure_baseline,
    measure_step,
    next_share,
    pursue,
    untrained_first,
)
from secateur.search.size_settings import ByteSettings, Settings, SizeSettings, SmallestOptions, bytes_of

__all__ = [
    "FILE",
    "ByteSettings",
    "SizeAttempt",
    "SizeSettings",
    "SmallestOptions",
    "SmallestResult",
    "front",
    "smallest",
    "steps_of",
]

_DENSE, _TEST, _RESULT = "smallest_dense", "smallest_dense_test", "smallest_result"
_ATTEMPTED = "smallest_tried"  # the label is part of an outcome's address in the store
_TRAIN: dict[str, object] = {
    "epochs": 20,
    "lr": 0.002,
    "optimizer": "adam",
    "schedule": "cosine",
    "warmup": 1,
}
_PRICE = 1e-5  # of a bit at the start of training for bytes, in units of the loss
_SPREAD = 0.05  # shares nearer to each other than this (relative) are not worth an attempt between them
_MOST = 0.9  # the largest share of weights worth trying
_ADVICE = "Allow more loss, train longer (epochs), begin with more bytes or weights (target, keep), or more attempts"
FILE = "smallest.sct"


@dataclass(frozen=True, kw_only=True)
class SizeAttempt(Attempt):
    """One attempt of `smallest`.

    Attributes:
        settings: The settings tried.
        size: The bytes of its file; None where there is no file.
    """

    settings: Settings
    size: int | None


def front(attempts: Sequence[SizeAttempt]) -> tuple[int, ...]:
    """The positions of the attempts that no other beats in both bytes and accuracy, the smallest file first."""
    there = [
        (one.size, one.accuracy, at)
        for at, one in enumerate(attempts)
        if one.size is not None and one.accuracy
    ]
    best = [there[at] for at in pareto_front([(-float(size), accuracy) for size, accuracy, _ in there])]
    firsts: dict[tuple[int, float], int] = {}
    for size, accuracy, at in best:
        firsts.setdefault((size, accuracy), at)  # of equal attempts the first
    return tuple(at for _, at in sorted(firsts.items()))


@dataclass(frozen=True, kw_only=True)
class SmallestResult(RecipeSearchResult[SizeAttempt]):
    """The result of `smallest`. `best` is the smallest file that holds."""

    @property
    def front(self) -> tuple[SizeAttempt, ...]:
        """The attempts that no other beats in both bytes and accuracy, the smallest file first."""
        return tuple(self.attempts[at] for at in front(self.attempts))

    @property
    def final(self) -> Measurements:
        """The dense model and the one loaded from the file, on the test images, and the measurements of the file."""
        wanted = ("file_bytes", "original_bytes", "file_ratio")
        rows = (
            m
            for m in self.ran.measurements
            if m.context.get("variant") in (_TEST, _RESULT) or m.name in wanted
        )
        return Measurements(rows)

    def value(self, name: str, variant: str | None = None) -> float:
        """One measured number.

        Args:
            name: The measure.
            variant: The label of the step that measured it; None takes the last one.
        """
        rows = [m for m in self.final if m.name == name and variant in (None, m.context.get("variant"))]
        return float(rows[-1].value)

    def __str__(self) -> str:
        lines = ["front of accuracy against bytes:"]
        lines += [f"  {one.size:>10,} bytes  {one.accuracy:.4f}  {one.settings.text()}" for one in self.front]
        tested, dense = (accuracy_of(self.final, label, "smallest") for label in (_RESULT, _TEST))
        how = "on the test images" if self.evaluate is None else f"by {self.evaluate}"
        lines.append(
            f"smallest: {self.value('file_bytes'):,.0f} bytes, {self.value('file_ratio'):.1f} times smaller; {how} "
            f"{tested:.4f} from the file, {dense:.4f} dense"
        )
        return self._lines(lines, dense=dense, result=tested)


def smallest(
    recipe: Recipe,
    store: Store,
    *,
    lost: float = 0.01,
    attempts: int = 10,
    options: SmallestOptions | None = None,
    progress: Progress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> SmallestResult:
    """Find the smallest file of the recipe's model that loses at most `lost` accuracy on the validation images.

    An attempt is trained for a number of bytes, which is halved while the accuracy holds and brought half way back
    where it fails. With `keep`, `bits`, `rate` or `calibrate` in the options it is pruned and its weights are shared
    instead: then the share of weights is halved likewise, and the price of a bit and the bits of each layer are changed
    after it, one after the other; a change is kept if the file is smaller and holds.

    Args:
        recipe: How the dense model is made. It must not share by itself.
        store: Where outcomes are kept; a second search computes nothing again.
        lost: How much accuracy may be lost, as a share: 0.01 is one point.
        attempts: The most attempts to make.
        options: The starting values of the search, and how it trains.
        progress: Where progress is shown.
        on_message: Called with the reason of every decision, one line each.

    Returns:
        Every attempt, the front, the best one, and its measurements on the test images, which are used once, at the
        end.

    Raises:
        OptionError: An option is wrong, or the data has no accuracy.
        RecipeError: The recipe has a step that `smallest` does itself.
        BudgetNotMetError: No attempt holds.
    """
    options = options or SmallestOptions()
    check_limits(lost, attempts)
    recipe.refuse(
        ("share", "refine"),
        "smallest continues from the model before its weights were shared, and shares them itself; leave the step out",
    )
    say = on_message or (lambda line: None)
    recipe, judge = recipe.allowing(options.evaluate), options.evaluate
    measures = [_measure(_DENSE, "validation", judge)]
    baseline = measure_baseline("smallest", recipe, store, measures, lost, progress, say)
    teacher, train = recipe.steps[-1].label, {**_TRAIN, **options.train}
    attempt = _SizeAttempts(baseline, baseline.model, teacher, train, options.calibrate)
    done = pursue(_proposals(options.first(attempt.model), attempt.model), attempt, say, attempts)
    best = best_of(done, lambda one: one.size or 0, baseline, _ADVICE)
    chosen = attempt.steps(best.settings, training=not best.epochs_saved)
    ran = baseline.run([_measure(_TEST, "test", judge), *chosen, _measure(_RESULT, "test", judge)])
    dense, limit = baseline.accuracy, baseline.limit
    return SmallestResult(dense=dense, limit=limit, attempts=tuple(done), best=best, ran=ran, evaluate=judge)


@dataclass(frozen=True)
class _SizeAttempts:
    """Makes attempts with given settings."""

    baseline: Baseline
    model: nn.Module
    teacher: str
    train: Mapping[str, object]
    calibrate: int = 0

    def steps(self, settings: Settings, training: bool) -> list[RecipeStep]:
        """The steps of the attempt, the measurement on the validation images included."""
        calibrate = 0 if training else self.calibrate
        return [
            *steps_of(settings, self.model, self.teacher, self.train, calibrate),
            _measure(_ATTEMPTED, "validation", self.baseline.evaluate),
        ]

    def __call__(self, settings: Settings) -> SizeAttempt:
        return untrained_first(lambda training: self._made(settings, training), self.calibrate)

    def _made(self, settings: Settings, training: bool) -> SizeAttempt:
        what = settings.text() + ("" if training else ", without training")
        measured = self.baseline.attempt(lambda: self.steps(settings, training))
        if isinstance(measured, str):
            why = f"{what}: failed: {measured}"
            return SizeAttempt(settings=settings, size=None, accuracy=None, holds=False, why=why)
        accuracy = accuracy_of(measured, _ATTEMPTED, "smallest")
        size = int(next(m.value for m in reversed(list(measured)) if m.name == "file_bytes"))
        holds = self.baseline.holds(accuracy)
        verdict = "holds" if holds else f"is {self.baseline.limit - accuracy:.4f} short"
        why = f"{what}: {size:,} bytes, {accuracy:.4f} {verdict}"
        epochs = int(str(self.train["epochs"]))
        saved = 0 if training or not holds else epochs + 2 * max(1, epochs // 3)
        return SizeAttempt(
            settings=settings, size=size, accuracy=accuracy, holds=holds, why=why, epochs_saved=saved
        )


def _proposals(start: Settings, model: nn.Module) -> Generator[Settings, SizeAttempt, None]:
    """The strategy: first the target, or the share of weights; for the share then one other setting at a time."""
    if isinstance(start, ByteSettings):
        dense = bytes_of(model)
        yield from _halved(start.target / dense, lambda share: ByteSettings(max(1, round(share * dense))))
        return
    found = yield from _halved(start.keep, lambda keep: replace(start, keep=keep))
    if found is not None:
        best, settled = found
        assert isinstance(settled, SizeSettings)
        yield from _refinements(best, settled, [target.layer for target in select(model)])


def _halved(
    first: float, settings: Callable[[float], Settings]
) -> Generator[Settings, SizeAttempt, tuple[SizeAttempt, Settings] | None]:
    """Halve a share while it holds, double it while none has, then go between; returns the smallest that held."""
    best: tuple[SizeAttempt, Settings] | None = None
    holds, fails, share = 0.0, 0.0, first
    while not fails or (not holds and share < _MOST) or (holds and holds / fails > 1 + 4 * _SPREAD):
        tried = settings(share)
        one = yield tried
        if one.holds:
            best, holds = (one, tried), share
        else:
            fails = share
        share = next_share(holds, fails)
    return best


def _refinements(
    best: SizeAttempt, settled: SizeSettings, layers: Sequence[str]
) -> Generator[Settings, SizeAttempt, None]:
    """Change the price of a bit and each layer's bits in turn; a change is repeated while the file gets smaller."""
    moves: list[tuple[str, float]] = [("rate", 3.0), ("rate", 1 / 3), *((layer, -1) for layer in layers)]
    for what, change in moves:
        while (changed := _changed(settled, what, change, layers)) is not None:
            one = yield changed
            if not (one.holds and (one.size or 0) < (best.size or 0)):
                break
            best, settled = one, changed


def _changed(settings: SizeSettings, what: str, change: float, layers: Sequence[str]) -> SizeSettings | None:
    """The settings with the rate multiplied, or with one layer's bits changed; None below one bit."""
    if what == "rate":
        return replace(settings, rate=round(settings.rate * change, 9))
    bits = dict(settings.bits) if isinstance(settings.bits, Mapping) else dict.fromkeys(layers, settings.bits)
    if bits[what] <= 1:
        return None
    return replace(settings, bits={**bits, what: bits[what] + int(change)})


def _measure(label: str, split: str, evaluate: str | None) -> RecipeStep:
    return measure_step(label, split, "params", evaluate=evaluate)


def steps_of(
    settings: Settings,
    model: nn.Module,
    teacher: str,
    train: Mapping[str, object],
    calibrate: int = 0,
) -> list[RecipeStep]:
    """The recipe steps of one attempt, after those of the dense model; they can also be used by hand.

    Args:
        settings: The settings to try.
        model: The dense model; whether it has biases and batch norms decides which tensors the file rounds.
        teacher: The label of the step whose outcome teaches (the dense model).
        train: Options of the training.
        calibrate: Training images to compensate on instead of training; 0 trains.
    """
    if isinstance(settings, ByteSettings):
        return _trained_for_bytes(settings, model, teacher, train)
    if calibrate:
        return [*_without_training(settings, teacher, calibrate), _packing(model)]
    distilled = {**_distilled(teacher), **train}
    pruned: RecipeStep = {
        "kind": "gradual",
        "label": "smallest_prune",
        "criterion": "rate_distortion",
        "sparsity": 1 - settings.keep,
        "until": 0.6,
        "every": 20,
        **distilled,
    }
    cleaned: RecipeStep = {"kind": "zero_dead_neurons", "label": "smallest_zero_dead_neurons"}
    return [pruned, cleaned, *_sharing(settings), *_refining(settings, distilled), _packing(model)]


def _distilled(teacher: str) -> RecipeStep:
    return {"teacher": teacher, "distill_alpha": 0.7, "distill_temperature": 3.0}


def _trained_for_bytes(
    settings: ByteSettings, model: nn.Module, teacher: str, train: Mapping[str, object]
) -> list[RecipeStep]:
    """The steps that train for bytes, then train the values that are left, and write the file."""
    distilled, pack = {**_distilled(teacher), **train}, {**_packing(model), "codebook_bits": 8}
    epochs, lr = _numbers(distilled)
    rounded: RecipeStep = {key: pack[key] for key in ("biases", "batch_norm") if key in pack}
    trained: RecipeStep = {"kind": "rate_train", "label": "smallest_bytes", "target": settings.target}
    refined = {**distilled, "epochs": max(1, epochs // 5), "lr": lr / 4, "warmup": 0}
    return [
        {**trained, "price": _PRICE, **rounded, **distilled},
        {"kind": "share", "label": "smallest_share", "method": "exact"},
        {"kind": "refine", "label": "smallest_refine", **refined},
        pack,
    ]


def _without_training(settings: SizeSettings, dense: str, calibrate: int) -> list[RecipeStep]:
    """The steps that prune, compensate and share on images without labels."""
    images: RecipeStep = {"calibrate": calibrate, "dense": dense}
    pruned: RecipeStep = {
        "kind": "prune",
        "label": "smallest_prune",
        "criterion": "obs",
        "budget": {"name": "overall", "sparsity": 1 - settings.keep},
        "images": max(1, calibrate // 10),
        "allow_collapse": True,
    }
    made_up: RecipeStep = {"kind": "compensate", "label": "smallest_compensate", "reselect": True, **images}
    shared = [{**step, "rate": settings.rate, **images} for step in _sharing(settings)]
    return [pruned, made_up, *shared]


def _sharing(settings: SizeSettings) -> list[RecipeStep]:
    """The steps that share: one, or one for each number of bits."""
    if not isinstance(settings.bits, Mapping):
        return [{"kind": "share", "label": "smallest_share", "bits": settings.bits}]
    steps: list[RecipeStep] = []
    for bits in sorted(set(settings.bits.values())):
        only = [layer for layer, own in settings.bits.items() if own == bits]
        steps.append({"kind": "share", "label": f"smallest_share{bits}", "bits": bits, "only": only})
    return steps


def _numbers(distilled: RecipeStep) -> tuple[int, float]:
    """The epochs and the learning rate of a training step."""
    epochs, lr = distilled["epochs"], distilled["lr"]
    if not isinstance(epochs, int) or not isinstance(lr, (int, float)):
        raise OptionError(f"train: expected numbers for epochs and lr, got {epochs!r} and {lr!r}")
    return epochs, lr


def _refining(settings: SizeSettings, distilled: RecipeStep) -> list[RecipeStep]:
    """The steps that train the values: first while weights may change their value, then with assignments frozen."""
    epochs, lr = _numbers(distilled)
    refined = {**distilled, "epochs": max(1, epochs // 3), "lr": lr / 4, "warmup": 0}
    reassigned: RecipeStep = {
        "label": "smallest_remake",
        "remake_every": 20,
        "rate": settings.rate,
        "latent": "smallest_zero_dead_neurons",
    }
    return [
        {"kind": "refine", **refined, **reassigned},
        {"kind": "refine", "label": "smallest_refine", **refined},
    ]


def _packing(model: nn.Module) -> RecipeStep:
    """The step that writes the file, with the rounding that suits the model."""
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    layers = {f"{target.layer}.bias" for target in select(model)}
    biased = any(name in layers for name, _ in model.named_parameters())
    pack: RecipeStep = {
        "kind": "pack",
        "label": "smallest_pack",
        "file": FILE,
        "names": "model",
        "coder": "strong",
        "codebook_bits": 6,
    }
    if normed:
        pack["batch_norm"] = 6
    if biased:
        pack["biases"] = 5
    return pack

"""`compensate`: refit the remaining weights to reproduce the dense model's outputs, on unlabelled inputs, without
training.

>>> import torch
>>> from torch import nn
>>> import secateur as sc
>>> _ = torch.manual_seed(0)
>>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
>>> inputs = torch.randn(512, 8) @ torch.randn(8, 16)
>>> masks = sc.prune(model, budget=0.5)
>>> result = sc.compensate(model, masks, [inputs])
>>> def off(other):
...     return float((other(inputs) - model(inputs)).detach().square().mean())
>>> off(result.model) < 0.5 * off(masks.apply(model))
True
>>> result.layers[0].name, result.layers[0].after < result.layers[0].before
('0.weight', True)
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.compensation.batches import read_all
from secateur.compensation.fitting import FittedLayer, Setting, fit
from secateur.compensation.progress import Advance, Progress
from secateur.compensation.solver import LeastSquares
from secateur.compensation.tuning import Tuning, tune
from secateur.core.masks import Masks
from secateur.core.model_kinds import is_exported, plain_model
from secateur.core.targets import Pattern, matches, patterns_of, select
from secateur.errors import MaskMismatchError, NothingToDoError, OptionError, PatternError, near
from secateur.execution.undisturbed import undisturbed
from secateur.execution.verb import verb

__all__ = [
    "Advance",
    "Compensated",
    "FittedLayer",
    "LeastSquares",
    "Tuning",
    "as_tuning",
    "check_dense",
    "compensate",
]


@dataclass(frozen=True, eq=False)
class Compensated:
    """The result of `compensate`.

    `model` is a copy with the new weights, `masks` its masks (those given, unless the solver reselected), `layers`
    holds each solved layer's error before and after, `notes` further remarks.
    """

    model: nn.Module
    masks: Masks
    layers: tuple[FittedLayer, ...]
    notes: tuple[str, ...] = ()

    def table(self) -> str:
        """One line per layer: weights, those kept, rows of data, and the error before and after."""
        width = max([5, *(len(layer.name) for layer in self.layers)])
        lines = [
            f"{'layer':<{width}}  {'weights':>12}  {'kept':>12}  {'rows':>9}  {'error before':>12}  {'error after':>11}"
        ]
        for layer in self.layers:
            lines.append(
                f"{layer.name:<{width}}  {layer.numel:>12,}  {layer.kept:>12,}  {layer.rows:>9,}  "
                f"{layer.before:>12.2%}  {layer.after:>11.2%}" + (f"  {layer.note}" if layer.note else "")
            )
        return "\n".join([*lines, *self.notes])

    def __repr__(self) -> str:
        return f"Compensated({len(self.layers)} layers, {self.masks!r})"


@verb
def compensate(
    model: nn.Module,
    masks: Masks | Mapping[str, torch.Tensor],
    data: Iterable[Any],
    *,
    dense: nn.Module | None = None,
    skip: Pattern | Sequence[Pattern] | None = None,
    solver: LeastSquares | None = None,
    tune: Tuning | int | None = None,
    progress: Progress | None = None,
) -> Compensated:
    """Refit the remaining weights, so that every layer's outputs are close to the dense model's; without labels.

    Layer after layer, in the order in which they run: least squares between the inputs that the compressed model really
    gives the layer and the outputs that the dense model's layer has on its own. Then the bias, or the running mean of a
    batch norm behind it, corrects the rest of the mean. Where the output is added to what goes around the layer, a
    residual connection, it is solved for the sum, and so compensates for the error of that, too. Layers without a mask
    are solved where their inputs changed: so consumers compensate for removed channels. Then, with `tune`, gradient
    steps on the outputs of the blocks and of the whole model. The model given is not changed, even if the call fails.

    Args:
        model: the model to compress; the masks need not have been applied.
        masks: which weights remain, from `sc.prune` or `sc.Masks.of_zeros(model)`; held exactly.
        data: a few hundred inputs or more, in batches: tensors, (inputs, targets) whose targets are ignored, or
            dicts of keywords, whose `attention_mask` leaves padding out.
        dense: the model to reproduce; by default `model` itself, as it is before the masks.
        skip: layers that keep their weights, by name, glob or class.
        solver: how a layer is solved; by default `LeastSquares()`, on the support that the masks give.
        tune: the second stage: a `Tuning`, or a number of passes over the data; None leaves it out.
        progress: called with an `Advance` after every layer and every pass.

    Returns:
        A `Compensated`: a copy with the new weights, and each layer's error before and after.

    Raises:
        MaskMismatchError: for masks of another model, or a `dense` of another shape.
        DataError: for data that holds no batch.
        NonFiniteError: where the data, or a layer's output for it, holds NaN or infinity; the layer is named.
        NothingToDoError: where nothing is masked and the model is the dense one.
    """
    model, dense = plain_model(model), dense if dense is None else plain_model(dense)
    masks = masks if isinstance(masks, Masks) else Masks(masks)
    options = as_tuning(tune)
    if is_exported(model):
        raise OptionError(
            f"compensate: {type(model).__name__} was made by torch.export, so that no layer is called as a module "
            "whose inputs could be seen; compensate the Python model it was made from, and export the result"
        )
    masks.check(model)
    reference = model if dense is None else check_dense(model, dense)
    if dense is None and all(bool(mask.all()) for mask in masks.values()):
        raise NothingToDoError(
            "compensate: the masks remove nothing, so there is nothing to compensate for; prune first, or pass the "
            "model "
            "before it was changed as dense="
        )
    batches = read_all("compensate", data, reference)
    student = copy.deepcopy(model)
    modes = [module.training for module in student.modules()]
    masks.apply_(student)
    held, frozen, notes = _held(student, masks, skip)
    device = next(student.parameters()).device
    with undisturbed(reference, mode="eval"), torch.autocast(device.type, enabled=False):
        student.eval()
        with torch.no_grad():
            setting = Setting(reference, student, batches, held, frozen, device)
            layers = fit(setting, solver or LeastSquares(), progress)
        if options is not None:
            notes.append(_tuned(reference, student, data, batches, held, options, progress, frozen))
    fitted = {layer.name for layer in layers}
    missed = [name for name in held if name not in fitted and name not in frozen and held[name].dim() > 1]
    if missed:
        notes.append(f"never called as a layer, so masked only: {', '.join(missed)}")
    for module, training in zip(student.modules(), modes, strict=True):
        module.training = training
    masks = masks if solver is None or not solver.reselect else Masks({**masks, **held})
    return Compensated(student, masks, tuple(layers), tuple(notes))


def as_tuning(value: Tuning | int | None) -> Tuning | None:
    """The second stage's options, from a number of passes too."""
    if value is None or isinstance(value, Tuning):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionError(f"tune: expected a Tuning, a number of passes or None, got {value!r}")
    return Tuning(passes=value) if value else None


def check_dense(model: nn.Module, dense: nn.Module) -> nn.Module:
    """The dense model, if it has the parameters of the one that is compressed; else a `MaskMismatchError`."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    theirs = {name: tuple(p.shape) for name, p in dense.named_parameters()}
    for name, shape in shapes.items():
        if theirs.get(name) != shape:
            raise MaskMismatchError(
                f"dense: expected {name!r} of shape {shape} as in the model, got {theirs.get(name, 'none')}; pass the "
                "model as it was before, and shrink after compensating"
            )
    return dense


def _held(
    student: nn.Module, masks: Masks, skip: Pattern | Sequence[Pattern] | None
) -> tuple[dict[str, torch.Tensor], frozenset[str], list[str]]:
    """The masks under the parameters' first names, the weights that are left as they are, and remarks."""
    first = {id(parameter): name for name, parameter in student.named_parameters()}
    every = dict(student.named_parameters(remove_duplicate=False))
    held: dict[str, torch.Tensor] = {}
    for name, mask in masks.items():
        here = first[id(every[name])]
        held[here] = held[here] & mask if here in held else mask
    frozen = {
        first[id(module.weight)]
        for module in student.modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    }
    tables = [name for name in sorted(frozen & set(held)) if not bool(held[name].all())]
    notes = [f"embeddings are masked only: {', '.join(tables)}"] if tables else []
    modules = dict(student.named_modules())
    layers = {name: name.rpartition(".")[0] for name in every}
    for pattern in patterns_of(skip):
        hits = [
            first[id(every[n])] for n, layer in layers.items() if matches(pattern, layer, n, modules[layer])
        ]
        if not hits:
            known = [target.layer for target in select(student)]
            raise PatternError(f"skip: pattern {pattern!r} matches no parameter: {near(str(pattern), known)}")
        frozen.update(hits)
    return held, frozenset(frozen), notes


def _tuned(
    dense: nn.Module,
    student: nn.Module,
    data: Iterable[Any],
    batches: Sequence[Any],
    held: Mapping[str, torch.Tensor],
    options: Tuning,
    progress: Progress | None,
    frozen: frozenset[str],
) -> str:
    """The second stage; weights that the first leaves alone stay as they are in this one, too."""
    flags = [(parameter, parameter.requires_grad) for parameter in student.parameters()]
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name not in frozen)
    if not any(parameter.requires_grad for parameter in student.parameters()):
        return "tuning: no parameter is left to train, as all are skipped or frozen"
    with torch.enable_grad():
        said = tune(dense, student, data, batches, held, options, progress)
    for parameter, flag in flags:
        parameter.requires_grad_(flag)
        parameter.grad = None
    return said

"""`select`: turn patterns into `Target`s, the weights of a model that a call prunes.

A pattern is a layer's dotted name (which also means everything inside it), a parameter's name, a shell-style glob over
either, a module class, or in text `type:Conv2d`.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
>>> [target.name for target in select(model, skip=["3"])]
['0.weight']
>>> select(model, only=["type:Linear"])[0].shape
(2, 4)
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from secateur.core.model_kinds import module_of
from secateur.core.parameters import parameters_of
from secateur.core.wrapped_layers import adapters_of
from secateur.errors import NothingToDoError, OptionError, PatternError, UnknownNameError, near

__all__ = ["Pattern", "StatedLayer", "Target", "matches", "patterns_of", "select", "stated_layer"]

Pattern = str | type

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Target:
    """One weight tensor that can be pruned: where it is and how its axes read.

    `name` is the parameter's name as in `model.named_parameters()`, `layer` the dotted name of the module that owns
    it. `out_axis` is the axis of the layer's outputs (filters, rows), `in_axis` that of its inputs; `groups` is a
    convolution's. A transposed convolution has `out_axis` 1.
    """

    name: str
    layer: str
    kind: str  # conv, conv_transpose, linear, embedding, parameter
    shape: tuple[int, ...]
    out_axis: int = 0
    in_axis: int | None = 1
    groups: int = 1

    @property
    def numel(self) -> int:
        """How many weights the tensor has."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    def of(self, model: nn.Module) -> torch.Tensor:
        """The tensor itself, looked up by name, so that a copy of the model works as well as the model."""
        try:
            return model.get_parameter(self.name)
        except AttributeError:
            known = [name for name, _ in model.named_parameters()]
            raise UnknownNameError(
                f"the model has no parameter {self.name!r}: {near(self.name, known)}"
            ) from None


def _kind(module: nn.Module) -> tuple[str, int, int | None, int] | None:
    """(kind, out_axis, in_axis, groups) of a module's `weight`, or None when it is not pruned by default."""
    if isinstance(module, _CONV):
        return "conv", 0, 1, module.groups
    if isinstance(module, _TRANSPOSED):
        return "conv_transpose", 1, 0, module.groups
    if isinstance(module, nn.Linear):
        return "linear", 0, 1, 1
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding", 0, 1, 1
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        # transformers' GPT-2 layer: weight is (in, out)
        return "linear", 1, 0, 1
    stated = stated_layer(module)
    return None if stated is None else (stated.kind, stated.out_axis, stated.in_axis, stated.groups)


@dataclass(frozen=True)
class StatedLayer:
    """A layer that is none of torch's and says itself what its weight is, by widths that agree with its shape.

    `ins` and `outs` are the names of the attributes that hold its widths.
    """

    kind: str
    out_axis: int
    in_axis: int
    groups: int
    ins: str
    outs: str


def stated_layer(module: nn.Module) -> StatedLayer | None:
    """How the `weight` of a layer reads that is none of torch's, as PyTorch Geometric's `Linear`; None for others.

    The layer has whole numbers `in_features` and `out_features`, or `in_channels` and `out_channels`, of which the
    weight's first two axes are made. A square weight reads as torch's do: outputs first.

    Args:
        module: The layer.

    >>> layer = nn.Module()
    >>> layer.in_channels, layer.out_channels, layer.weight = 4, 3, nn.Parameter(torch.zeros(4, 3))
    >>> stated_layer(layer)
    StatedLayer(kind='linear', out_axis=1, in_axis=0, groups=1, ins='in_channels', outs='out_channels')
    """
    weight = module._parameters.get("weight")
    if weight is None or isinstance(weight, nn.parameter.UninitializedParameter) or weight.dim() < 2:
        return None
    groups = getattr(module, "groups", 1) if weight.dim() > 2 else 1
    if not isinstance(groups, int) or groups < 1:
        return None
    for ins, outs in (("in_features", "out_features"), ("in_channels", "out_channels")):
        widths = getattr(module, ins, None), getattr(module, outs, None)
        if not all(isinstance(width, int) and not isinstance(width, bool) for width in widths):
            continue
        first, second = weight.shape[0], weight.shape[1] * groups
        if (second, first) == widths:
            return StatedLayer("linear" if weight.dim() == 2 else "conv", 0, 1, groups, ins, outs)
        if (first, second) == widths:
            kind = "linear" if weight.dim() == 2 else "conv_transpose"
            return StatedLayer(kind, 1, 0, groups, ins, outs)
    return None


def matches(pattern: Pattern, layer: str, parameter: str, module: nn.Module) -> bool:
    """Whether a pattern matches this parameter of this layer.

    >>> matches("layer1", "layer1.0.conv1", "layer1.0.conv1.weight", nn.Conv2d(1, 1, 1))
    True
    >>> matches("layer1.*.conv2", "layer1.0.conv1", "layer1.0.conv1.weight", nn.Conv2d(1, 1, 1))
    False
    """
    if isinstance(pattern, type):
        return isinstance(module, pattern)
    if pattern.startswith("type:"):
        wanted = pattern.removeprefix("type:")
        return any(base.__name__ == wanted for base in type(module).__mro__)
    if layer == pattern or parameter == pattern or layer.startswith(pattern + "."):
        return True
    return fnmatch.fnmatchcase(layer, pattern) or fnmatch.fnmatchcase(parameter, pattern)


def patterns_of(value: Pattern | Iterable[Pattern] | None) -> tuple[Pattern, ...]:
    """One pattern or many, as a tuple.

    >>> patterns_of("fc"), patterns_of(["a", "b"]), patterns_of(None)
    (('fc',), ('a', 'b'), ())
    """
    if value is None:
        return ()
    if isinstance(value, (str, type)):
        return (value,)
    found = tuple(value) if isinstance(value, Iterable) else (value,)
    for pattern in found:
        if not isinstance(pattern, (str, type)):
            raise OptionError(
                f"pattern {pattern!r}: expected a layer's name, a glob such as 'layer1.*' or a module class, got "
                f"{type(pattern).__name__}"
            )
    return found


def select(
    model: nn.Module,
    only: Pattern | Sequence[Pattern] | None = None,
    skip: Pattern | Sequence[Pattern] | None = None,
    parameters: Pattern | Sequence[Pattern] | None = None,
) -> tuple[Target, ...]:
    """The weights that a call prunes, in the model's own order.

    By default the weight of every convolution, transposed convolution, linear and embedding layer, and of layers of
    other libraries that state their widths as these do (see `stated_layer`); adapters that were added to a layer, as
    LoRA's, are left out. `only` narrows, `skip` takes away, `parameters` adds bare parameters (or biases, norm
    weights, adapters) by name. A weight shared by two layers appears once,
    under its first name; a pattern that matches either layer matches it. A pattern that matches nothing is an error,
    and so is an empty result, or a list of no pattern.

    Args:
        model: The model.
        only: Patterns of the layers to prune; None means every layer.
        skip: Patterns of the layers to leave alone.
        parameters: Patterns of parameters to prune in addition to the weights of layers.

    Returns:
        The chosen weights, in the order of `model.named_parameters()`.

    Raises:
        PatternError: A pattern matches nothing that can be pruned.
        NothingToDoError: No weight matches.
        OptionError: `model` is not a module, a pattern is neither text nor a class, or a lazy layer has no shape yet.
    """
    model = module_of(model)
    extra = patterns_of(parameters)
    keep, drop = patterns_of(only), patterns_of(skip)
    if only is not None and not keep:
        raise NothingToDoError(
            f"only={only!r}: no pattern means no layer, so there is nothing to do; leave it out to mean every layer"
        )
    matched = _Matched(model)
    candidates = _candidates(matched, extra)
    chosen = []
    for target in candidates:
        wanted, unwanted = matched.by(keep, target), matched.by(drop, target)
        if (not keep or wanted or target.kind == "parameter") and not unwanted:
            chosen.append(target)
    for pattern in (*keep, *drop, *extra):
        if pattern not in matched.used:
            _unmatched(pattern, model, candidates, bare=pattern in extra)
    if not chosen:
        _nothing_left(model)
    return tuple(chosen)


class _Matched:
    """Which patterns match a parameter under any of its names; `used` holds those that matched a candidate."""

    def __init__(self, model: nn.Module):
        self.model, self.modules = model, dict(model.named_modules())
        self.used: set[Pattern] = set()
        self._names: dict[int, list[str]] = {}
        self._first: dict[str, list[str]] = {}
        self.parameters: dict[str, nn.Parameter] = {}  # by their first name
        for name, parameter in parameters_of(model).items():
            names = self._names.setdefault(id(parameter), [])
            names.append(name)
            if len(names) == 1:
                self._first[name], self.parameters[name] = names, parameter

    def by(self, patterns: tuple[Pattern, ...], target: Target) -> bool:
        """Whether one of the patterns matches the target; the matching ones are noted as used."""
        return self.named(patterns, target.name)

    def named(self, patterns: tuple[Pattern, ...], first: str) -> bool:
        """Whether one of the patterns matches the parameter of this first name."""
        found = [pattern for pattern in patterns if self._matches(pattern, self._first[first])]
        self.used.update(found)
        return bool(found)

    def _matches(self, pattern: Pattern, names: list[str]) -> bool:
        layers = ((name.rpartition(".")[0], name) for name in names)
        return any(matches(pattern, layer, name, self.modules[layer]) for layer, name in layers)


def _candidates(matched: _Matched, extra: tuple[Pattern, ...]) -> list[Target]:
    """Every weight that is pruned by default, and the parameters named by `extra`, in the model's order."""
    found, adapters = [], adapters_of(matched.model)
    for name, parameter in matched.parameters.items():
        layer, _, leaf = name.rpartition(".")
        known = _kind(matched.modules[layer]) if leaf == "weight" and name not in adapters else None
        asked = matched.named(extra, name)
        if known is None and not asked:
            continue
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise OptionError(
                f"{name!r} has no shape yet (a lazy layer): run the model once on an input before pruning it"
            )
        kind, out_axis, in_axis, groups = known or ("parameter", 0, 1 if parameter.dim() > 1 else None, 1)
        found.append(Target(name, layer, kind, tuple(parameter.shape), out_axis, in_axis, groups))
    return found


def _nothing_left(model: nn.Module) -> None:
    """Raise a `NothingToDoError` that says why no weight is left; verbs that prune, share and fold all come here."""
    wrapped = _wrapped(model)
    if wrapped:
        raise NothingToDoError(f"no weight takes part in {type(model).__name__}: {wrapped}")
    raise NothingToDoError(
        f"no weight takes part in {type(model).__name__}: no convolution, linear or embedding weight is left after "
        "only= and skip=; name bare parameters with parameters=[...]"
    )


def _wrapped(model: nn.Module) -> str:
    """Why no weight is found although the model has some: they are held under other names; empty if they are not."""
    for name, _ in model.named_parameters():
        if name.endswith("weight_orig"):
            return (
                f"torch.nn.utils.prune holds {name!r} in the weight's place; read its masks with "
                "sc.Masks.from_torch_prune(model), then make it permanent with torch.nn.utils.prune.remove"
            )
        if "parametrizations.weight." in name:
            return (
                f"a parametrization computes the weight from {name!r} and its like; remove it with "
                "torch.nn.utils.parametrize.remove_parametrizations, or name what it is computed from with "
                "parameters=[...]"
            )
    return ""


def _unmatched(pattern: Pattern, model: nn.Module, candidates: Sequence[Target], *, bare: bool) -> None:
    """Raise for a pattern that matched no candidate.

    Args:
        pattern: The pattern.
        model: The model.
        candidates: The weights that can be pruned.
        bare: Whether it is one of `parameters`, which may name any parameter.
    """
    shown = pattern.__name__ if isinstance(pattern, type) else pattern
    names = [name for name, _ in model.named_modules() if name]
    names += [name for name, _ in model.named_parameters()]
    if isinstance(pattern, str) and (found := fnmatch.filter(names, pattern)):
        what = "names a part" if pattern in names else f"means {found[0]!r}, a part"
        raise PatternError(
            f"pattern {shown!r} {what} of the model without a prunable weight: such parts are left alone without a "
            "pattern; to include them, name their parameters with parameters=[...]"
        )
    wrapped = _wrapped(model)
    if wrapped and not candidates:
        raise PatternError(f"pattern {shown!r} matches no prunable layer: {wrapped}")
    wanted = names if bare else _prunable(pattern, model, candidates)
    raise PatternError(f"pattern {shown!r} matches no prunable layer: {near(str(shown), wanted)}")


def _prunable(pattern: Pattern, model: nn.Module, candidates: Sequence[Target]) -> list[str]:
    """What a pattern of this form could have matched: types, or layers and the parts of the model they are in."""
    kinds = {type(model.get_submodule(target.layer)).__name__ for target in candidates}
    if isinstance(pattern, type):
        return sorted(kinds)
    if pattern.startswith("type:"):
        return [f"type:{kind}" for kind in sorted(kinds)]
    found: dict[str, None] = {}
    for target in candidates:
        parts = target.name.split(".")
        found |= dict.fromkeys(".".join(parts[:length]) for length in range(1, len(parts) + 1))
    return list(found)

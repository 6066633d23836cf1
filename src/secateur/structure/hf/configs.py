"""Configurations of Hugging Face models: `model.config` holds the widths, and the model is rebuilt from it.

The config of a shrunk model is found by trying: fields that hold an old width are set to the new one, a model is built
from the result on meta tensors, and changes that bring its shapes nearer to the shrunk model's are kept. Only if every
shape agrees, and every number that the modules compute from it (the scale of attention), is the config said to describe
the model; widths that differ from layer to layer have no field, and then `plan.apply_` is the way to load.

>>> describes(object(), None)
False
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from secateur.core.out_of_memory import raise_if_out_of_memory
from secateur.structure.cut.attributes import AttributeValue, cut_lists
from secateur.structure.hf.rotary import said

__all__ = ["config_with_fewer_layers", "describes", "fitted_config"]


class _Readable(Protocol):
    """A configuration that can be written as a dict and read back."""

    def to_dict(self) -> dict[str, object]: ...

    @classmethod
    def from_dict(cls, data: dict[str, object]) -> object: ...


Shapes = dict[str, tuple[int, ...]]


def _shapes(model: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


_INITS = frozenset(
    {
        *(value for name, value in vars(nn.init).items() if name.endswith("_") and callable(value)),
        *(torch.Tensor.uniform_, torch.Tensor.normal_, torch.Tensor.fill_, torch.Tensor.zero_),
    }
)


class _WithoutValues(TorchFunctionMode):
    """Leaves out what gives first values to parameters: on meta tensors that is half of the time of building."""

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: tuple[object, ...] = (), kwargs: object = None
    ) -> object:
        options = kwargs if isinstance(kwargs, dict) else {}
        if func in _INITS:
            return args[0] if args else options.get("tensor")
        return func(*args, **options)


def _built(kind: type, config: object) -> nn.Module | None:
    """A model without values built from a config; None where it cannot be built."""
    try:
        with torch.device("meta"), _WithoutValues():
            model: nn.Module = kind(copy.deepcopy(config))
            return model
    except Exception as error:
        raise_if_out_of_memory(error)
        return None


def _wrong(kind: type, config: object, wanted: Shapes) -> int:
    """How many tensors of a model built from a config have another shape."""
    built = _built(kind, config)
    return _apart(None if built is None else _shapes(built), wanted)


def _apart(shapes: Shapes | None, wanted: Shapes) -> int:
    """How many tensors have another shape than they should; many where there are no shapes, or of other tensors."""
    if shapes is None or set(shapes) != set(wanted):
        return 1 << 30
    return sum(shapes[name] != shape for name, shape in wanted.items())


def describes(model: nn.Module, config: object) -> bool:
    """Whether a model built from the config has exactly the shapes of the model."""
    return config is not None and _wrong(_plain(model), config, _shapes(model)) == 0


def _plain(model: nn.Module) -> type:
    return getattr(type(model), "_secateur_base", type(model))


def _fields(config: object) -> list[tuple[object, str, int]]:
    """Whole numbers of a config and of the configs inside it, with where they are."""
    found = []
    for name, value in list(vars(config).items()):
        if isinstance(value, int) and not isinstance(value, bool) and value > 1 and not name.startswith("_"):
            found.append((config, name, value))
        elif hasattr(value, "to_dict") and hasattr(value, "__dict__"):
            found += _fields(value)
    return found


def fitted_config(
    model: nn.Module, small: nn.Module, widths: Iterable[tuple[int, int]]
) -> tuple[object | None, str]:
    """A config that describes the shrunk model, or None and why. `widths` are (before, after) of what was cut."""
    source = getattr(model, "config", None)
    if source is None or not hasattr(source, "to_dict") or not hasattr(model, "save_pretrained"):
        return None, ""
    kind, wanted = _plain(small), _shapes(small)
    config = copy.deepcopy(source)
    try:
        unsaid = not hasattr(config, "head_dim")  # some families read it without having it
        whole, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    except Exception as error:  # fields that hold for one layer each refuse to be read for the whole
        raise_if_out_of_memory(error)
        return None, f"its configuration cannot be read ({str(error).strip().splitlines()[0]})"
    # A list has one for every stage.
    if getattr(config, "head_dim", None) is None and isinstance(whole, int) and isinstance(heads, int):
        config.head_dim = whole // heads
    news: dict[int, set[int]] = {}
    for before, after in widths:
        news.setdefault(before, set()).add(after)
    # Half as many heads, and heads of half the size, have the same shapes.
    sizes = any(_is_head_size(name) and value in news for _, name, value in _fields(config))
    reasons = []
    for sizes_first in (False, True) if sizes else (False,):
        found = _shaped(kind, copy.deepcopy(config), wanted, news, sizes_first)
        if found is None:
            reasons.append(
                "its configuration has no field for these widths, or they differ from layer to layer"
            )
            continue
        if unsaid and "head_dim" in vars(found):
            without = copy.deepcopy(found)
            delattr(without, "head_dim")
            found = found if _wrong(kind, without, wanted) else without
        reason = _numbers_said(model, small, found) or _refused(cast(_Readable, found))
        if not reason:
            return found, ""
        reasons.append(reason)
    return None, reasons[-1]


def _is_head_size(name: str) -> bool:
    """Whether a field of a configuration holds the size of a head, by its name."""
    return name == "d_kv" or ("head" in name and ("dim" in name or "size" in name))


def _refused(config: _Readable) -> str:
    """Why a config cannot be read back from its own dict; empty if it can."""
    try:
        type(config).from_dict(config.to_dict())
    except Exception as error:
        raise_if_out_of_memory(error)
        return f"its configuration refuses these widths ({str(error).strip().splitlines()[-1].strip()})"
    return ""


def _numbers_said(model: nn.Module, small: nn.Module, config: object) -> str:
    """Put the numbers that the shrunk model computes with into the config; returns why not, if that is impossible."""
    built = _built(_plain(small), config)
    if built is None:
        return "no model can be built from its configuration"
    others = dict(built.named_modules())
    ratios = set()
    for path, module in small.named_modules():
        for name, value in vars(module).items():
            other = getattr(others.get(path), name, None)
            if isinstance(value, float) and isinstance(other, float) and value != other:
                if not other or name not in ("scaling", "scale", "softmax_scale", "inv_norm_factor"):
                    return f"built from its configuration, {name} of {path!r} would be {other:.6g}, not {value:.6g}"
                ratios.add(value / other)
    if len(ratios) > 1:
        return "the scale of its attention differs from layer to layer"
    ratio = ratios.pop() if ratios else 1.0
    saved, buffers = _shapes(small), dict(model.named_buffers())
    owners = {
        name.rpartition(".")[0]: small.get_submodule(name.rpartition(".")[0])
        for name, tensor in small.named_buffers()
        if name not in saved and name in buffers and buffers[name].shape != tensor.shape
    }
    if owners:
        return said(config, list(owners.values()), ratio)
    if ratio != 1.0:
        return (
            f"built from its configuration, its attention would be scaled by {1 / ratio:.6g} times what it is"
        )
    return ""


def _shaped(
    kind: type, config: object, wanted: Shapes, news: Mapping[int, set[int]], sizes_first: bool
) -> object | None:
    """The config with fields changed until every shape of a model built from it is as wanted, or None."""
    search = _FieldSearch(kind, config, wanted, news, sizes_first)
    while search.wrong and search.step():
        pass
    return None if search.wrong else config


class _FieldSearch:
    """The search for the fields of a config that bring the shapes of its model nearer to those wanted.

    Building a model takes longer than all else, so fields that change no shape by themselves are left out for good.
    `sizes_first` tries fields that hold the size of a head before those that count heads.
    """

    def __init__(
        self,
        kind: type,
        config: object,
        wanted: Shapes,
        news: Mapping[int, set[int]],
        sizes_first: bool = False,
    ):
        self.kind, self.config, self.wanted, self.news = kind, config, wanted, news
        self.sizes_first = sizes_first
        self.idle: set[tuple[int, str]] = set()
        self.now = self.built()
        self.wrong = _apart(self.now, wanted)

    def built(self) -> Shapes | None:
        """The shapes of a model built from the config as it is."""
        model = _built(self.kind, self.config)
        return None if model is None else _shapes(model)

    def step(self) -> bool:
        """Keep the first change of one or two fields that helps; False where none does."""
        fields = [
            (owner, name, value)
            for owner, name, value in _fields(self.config)
            if value in self.news and (id(owner), name) not in self.idle
        ]
        if self.sizes_first:
            fields.sort(key=lambda field: not _is_head_size(field[1]))
        single = [(owner, name, new) for owner, name, value in fields for new in self.news[value]]
        moving: list[tuple[tuple[object, str, int], Shapes | None]] = []
        for owner, name, new in single:
            shapes = self.tried([(owner, name, new)])
            if shapes is not None and shapes == self.now:
                self.idle.add((id(owner), name))
                continue
            moving.append(((owner, name, new), shapes))
            if self.kept(shapes, [(owner, name, new)]):
                return True
        # Heads and key-value heads, or a size and what is computed from it, may fit only when both change.
        pairs = [
            [a, b]
            for i, (a, first) in enumerate(moving)
            for b, second in moving[i + 1 :]
            if a[:2] != b[:2] and self.could_help(first, second)
        ]
        return any(self.kept(self.tried(pair), pair) for pair in pairs[:200])

    def tried(self, changes: Sequence[tuple[object, str, int]]) -> Shapes | None:
        """The shapes that the model has with these changes, which are taken back."""
        old = [getattr(owner, name) for owner, name, _ in changes]
        for owner, name, new in changes:
            setattr(owner, name, new)
        shapes = self.built()
        for (owner, name, _), value in zip(changes, old):
            setattr(owner, name, value)
        return shapes

    def could_help(self, first: Shapes | None, second: Shapes | None) -> bool:
        """Whether two changes might leave fewer shapes wrong together, from the shapes that the model has with each.

        An axis that one of them changes has that size with both; what both change, or what cannot be built with one of
        them alone, may have any.
        """
        if (
            first is None
            or second is None
            or self.now is None
            or not set(self.wanted) == set(first) == set(second) == set(self.now)
        ):
            return True
        wrong = 0
        for name, wanted in self.wanted.items():
            now, a, b = self.now[name], first[name], second[name]
            if len(now) == len(a) == len(b) == len(wanted):
                wrong += any(
                    size != (x if x != was else y) and (x == was or y == was)
                    for size, was, x, y in zip(wanted, now, a, b)
                )
        return wrong < self.wrong

    def kept(self, shapes: Shapes | None, changes: Sequence[tuple[object, str, int]]) -> bool:
        """Make the changes for good if fewer shapes are wrong with them."""
        wrong = _apart(shapes, self.wanted)
        if wrong >= self.wrong:
            return False
        for owner, name, new in changes:
            setattr(owner, name, new)
        self.wrong, self.now = wrong, shapes
        return True


def config_changes(before: object, after: object) -> dict[str, AttributeValue]:
    """The fields that differ, dotted where they are in a config inside the config."""
    found: dict[str, AttributeValue] = {}
    for name, value in vars(after).items():
        old = getattr(before, name, None)
        if hasattr(value, "to_dict") and hasattr(old, "to_dict"):
            found.update({f"{name}.{key}": new for key, new in config_changes(old, value).items()})
        elif isinstance(value, (int, dict)) and not name.startswith("_") and old != value:
            found[name] = value
    return found


def config_with_fewer_layers(
    model: nn.Module, small: nn.Module, lengths: Mapping[int, Sequence[int] | None]
) -> tuple[dict[str, AttributeValue], str]:
    """The fields of a configuration that count layers, set to what the model without some of them has; or why not.

    Args:
        model: The model.
        small: The model without some of its layers.
        lengths: By the number of layers of a container the positions of those that remain.

    Returns:
        The fields by dotted name, and an empty text; or no field, and why the configuration cannot say it.
    """
    source = getattr(model, "config", None)
    if not hasattr(source, "to_dict") or not hasattr(model, "save_pretrained"):
        return {}, ""
    kind, wanted = _plain(small), set(_shapes(small))
    config = copy.deepcopy(source)
    found: dict[str, AttributeValue] = {}

    def wrong() -> int:
        built = _built(kind, config)
        return 1 << 30 if built is None else len(set(_shapes(built)) ^ wanted)

    least = wrong()
    for owner, name, before in _dotted_fields(config):
        kept = lengths.get(before)
        if kept is None or not least:
            continue
        was = dict(vars(owner))
        cut_lists(owner, before, kept)
        setattr(owner, name.rpartition(".")[2], len(kept))
        now = wrong()
        if now < least:
            least = now
            found[name] = len(kept)
        else:
            vars(owner).update(was)
    if least:
        return {}, "its configuration has no field for the number of remaining layers"
    return found, ""


def _dotted_fields(config: object, start: str = "") -> list[tuple[object, str, int]]:
    """Whole numbers of a config and of the configs inside it, with the object that holds each and its dotted name."""
    found = []
    for name, value in list(vars(config).items()):
        if isinstance(value, int) and not isinstance(value, bool) and value > 0 and not name.startswith("_"):
            found.append((config, start + name, value))
        elif hasattr(value, "to_dict") and hasattr(value, "__dict__"):
            found += _dotted_fields(value, f"{start}{name}.")
    return found

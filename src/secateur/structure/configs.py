"""Configurations: a Hugging Face model keeps its widths in `model.config`, and is rebuilt from it.

The config of a shrunk model is found by trying: fields that hold an old width are set to the new one, a model is built
from the result on meta tensors, and what brings its shapes nearer to the shrunk model's is kept. Only when every shape
agrees is the config said to describe the model; widths that differ from layer to layer have no field, and then
`plan.apply_` is the way to load.

>>> describes(object(), None)
False
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

__all__ = ["describes", "fitted_config"]


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _built(kind: type, config: Any) -> dict[str, tuple[int, ...]] | None:
    """The shapes of a model built from a config; None where it cannot be built."""
    try:
        with torch.device("meta"):
            return _shapes(kind(copy.deepcopy(config)))
    except Exception:
        return None


def _wrong(kind: type, config: Any, wanted: dict[str, tuple[int, ...]]) -> int:
    """How many tensors of a model built from a config have another shape."""
    shapes = _built(kind, config)
    if shapes is None or set(shapes) != set(wanted):
        return 1 << 30
    return sum(shapes[name] != shape for name, shape in wanted.items())


def describes(model: Any, config: Any) -> bool:
    """Whether a model built from the config has exactly the shapes of the model."""
    return config is not None and _wrong(_plain(model), config, _shapes(model)) == 0


def _plain(model: nn.Module) -> type:
    return getattr(type(model), "_secateur_base", type(model))


def _fields(config: Any) -> list[tuple[Any, str, int]]:
    """Whole numbers of a config and of the configs inside it, with where they are."""
    found = []
    for name, value in list(vars(config).items()):
        if isinstance(value, int) and not isinstance(value, bool) and value > 1 and not name.startswith("_"):
            found.append((config, name, value))
        elif hasattr(value, "to_dict") and hasattr(value, "__dict__"):
            found += _fields(value)
    return found


def fitted_config(model: nn.Module, small: nn.Module, widths: Iterable[tuple[int, int]]) -> Any | None:
    """A config that describes the shrunk model, or None. `widths` are (before, after) of what was cut."""
    source = getattr(model, "config", None)
    if source is None or not hasattr(source, "to_dict") or not hasattr(model, "save_pretrained"):
        return None
    kind, wanted = _plain(small), _shapes(small)
    config = copy.deepcopy(source)
    if getattr(config, "head_dim", 0) is None:
        config.head_dim = config.hidden_size // config.num_attention_heads
    wrong = _wrong(kind, config, wanted)
    news: dict[int, set[int]] = {}
    for before, after in widths:
        news.setdefault(before, set()).add(after)
    moved = True
    while wrong and moved:
        moved = False
        fields = [(owner, name, value) for owner, name, value in _fields(config) if value in news]
        single = [[(owner, name, new)] for owner, name, value in fields for new in news[value]]
        # Heads and key-value heads, or a size and what is computed from it, may only fit together.
        pairs = [[a[0], b[0]] for i, a in enumerate(single) for b in single[i + 1 :] if a[0][:2] != b[0][:2]]
        for changes in [*single, *pairs[:200]]:
            old = [getattr(owner, name) for owner, name, _ in changes]
            for owner, name, new in changes:
                setattr(owner, name, new)
            now = _wrong(kind, config, wanted)
            if now < wrong:
                wrong, moved = now, True
                break
            for (owner, name, _), value in zip(changes, old):
                setattr(owner, name, value)
    return config if wrong == 0 else None


def config_changes(before: Any, after: Any) -> dict[str, Any]:
    """The fields that differ, dotted where they are in a config inside the config."""
    found: dict[str, Any] = {}
    for name, value in vars(after).items():
        old = getattr(before, name, None)
        if hasattr(value, "to_dict") and hasattr(old, "to_dict"):
            found.update({f"{name}.{key}": new for key, new in config_changes(old, value).items()})
        elif isinstance(value, int) and not name.startswith("_") and old != value:
            found[name] = value
    return found

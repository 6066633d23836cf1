"""The remaining entries of `nn.Sequential` and `nn.ModuleList`: their names, and how the others are removed. `Entries`
lists, by the container's name in the model before, the keys that remain. Numeric keys are renumbered, as
`nn.Sequential` and `nn.ModuleList` number; others do not change.

>>> entries = {"layer1": ("0", "2")}
>>> [name_after(name, entries) for name in ("conv.weight", "layer1.1.weight", "layer1.2.weight")]
['conv.weight', None, 'layer1.1.weight']
>>> name_before("layer1.1.weight", entries)
'layer1.2.weight'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from secateur.errors import PlanError
from secateur.execution.fast_copy import modules_of

__all__ = [
    "Entries",
    "check_entries",
    "entries_then",
    "kept_positions",
    "name_after",
    "name_before",
    "take_out_",
]

Entries = Mapping[str, Sequence[str]]
"""By the name of a container the keys of the remaining entries, in order."""


def name_after(name: str, entries: Entries) -> str | None:
    """The name of a module or tensor once the other entries are removed; None if it is removed.

    Args:
        name: The name before.
        entries: The entries that remain.
    """
    if not entries:
        return name
    before, found = "", []
    for part in name.split("."):
        kept = entries.get(before)
        if kept is not None and (before or "" in entries):
            if part not in kept:
                return None
            found.append(str(list(kept).index(part)) if part.isdigit() else part)
        else:
            found.append(part)
        before = f"{before}.{part}" if before else part
    return ".".join(found)


def name_before(name: str, entries: Entries) -> str:
    """The inverse of `name_after`.

    Args:
        name: The name after.
        entries: The entries that remain.
    """
    found: list[str] = []
    for part in name.split("."):
        kept = entries.get(".".join(found))
        numbered = kept is not None and part.isdigit() and int(part) < len(kept)
        found.append(kept[int(part)] if kept is not None and numbered else part)
    return ".".join(found)


def entries_then(first: Entries, second: Entries) -> dict[str, tuple[str, ...]]:
    """The entries that remain when first some are removed, and then others.

    Args:
        first: By the names of the model before.
        second: By the names of the model after the first.

    >>> entries_then({"a": ("0", "2", "3")}, {"a": ("0", "2")})
    {'a': ('0', '3')}
    """
    found = {path: tuple(keys) for path, keys in first.items()}
    for path, keys in second.items():
        before = name_before(path, first) if path else ""
        mine = found.get(before)
        if mine is None:
            found[before] = tuple(keys)
        else:
            found[before] = tuple(mine[int(key)] if key.isdigit() else key for key in keys)
    return found


def check_entries(model: nn.Module, entries: Entries) -> None:
    """Raise a `PlanError` unless every container is there, and has the keys in this order.

    Args:
        model: The model.
        entries: The entries that remain.
    """
    known = modules_of(model) if entries else {}
    for path, keys in entries.items():
        module = known.get(path)
        if not isinstance(module, (nn.Sequential, nn.ModuleList)):
            got = "nothing" if module is None else type(module).__name__
            raise PlanError(
                f"the plan takes layers out of {path[:80]!r}: expected an nn.Sequential or nn.ModuleList there, got "
                f"{got}; "
                "apply it to a freshly built model of the original depth"
            )
        have = list(module._modules)
        places = [have.index(key) for key in keys if key in have]
        if len(places) != len(keys) or places != sorted(set(places)):
            raise PlanError(
                f"the plan keeps layers {[key[:20] for key in keys[:8]]} of {path[:80]!r}, which has {len(have)}; "
                "apply it to a freshly built model of the original depth"
            )


def kept_positions(model: nn.Module, entries: Entries) -> dict[int, tuple[int, ...] | None]:
    """By the length of a container the positions that remain; None if containers of one length keep different ones.

    Args:
        model: The model with all of its entries.
        entries: The entries that remain.
    """
    found: dict[int, tuple[int, ...] | None] = {}
    for path, keys in entries.items():
        have = list(model.get_submodule(path)._modules)
        places = tuple(have.index(key) for key in keys)
        found[len(have)] = places if found.get(len(have), places) == places else None
    return found


def take_out_(model: nn.Module, entries: Entries) -> None:
    """Remove the other entries, in place, and renumber the remaining ones; checked by `check_entries` before.

    Where modules inside an entry keep its number as `layer_idx` (for the cache of keys and values), it follows.

    Args:
        model: The model.
        entries: The entries that remain.
    """
    for module, keys in [(model.get_submodule(path), keys) for path, keys in entries.items()]:
        held, have = dict(module._modules), list(module._modules)
        module._modules.clear()
        for place, key in enumerate(keys):
            entry, old = held[key], have.index(key)
            module._modules[str(place) if key.isdigit() else key] = entry
            for inner in entry.modules() if entry is not None else ():
                if vars(inner).get("layer_idx") == old:
                    vars(inner)["layer_idx"] = place

"""Kinds of structure: lists whose units cut the same parameters of the same classes of layers along the same axes.

>>> import torch
>>> from torch import nn
>>> from secateur.core.units import AxisMember, Units
>>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Conv2d(1, 2, 1))
>>> lists = [Units(n, 2, (AxisMember(f"{n}.weight", 0, torch.tensor([[0], [1]])),)) for n in ("0", "1", "2")]
>>> scores = ([1.0, 4], [2.0, 3], [9.0, 8])
>>> candidates = [Candidates(units, torch.tensor(each)) for units, each in zip(lists, scores)]
>>> selection = Selection(tuple(candidates), model)
>>> kind_of(selection, candidates[0]) == kind_of(selection, candidates[1]) != kind_of(selection, candidates[2])
True
>>> [scores.tolist() for scores in by_kind(selection, [one.scores for one in candidates])]
[[0.125, 0.875], [0.375, 0.625], [0.75, 0.25]]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from secateur.budget._selection import Candidates, Selection

__all__ = ["Kind", "by_kind", "kind_of"]

Kind = tuple[tuple[str, str, int], ...]


def kind_of(selection: Selection, candidates: Candidates) -> Kind:
    """The parameters a list's units cut: the layer's class, the parameter's own name, and the axis (-1 for none)."""
    parts = set()
    for member in candidates.units.members:
        layer, _, leaf = member.name.rpartition(".")
        module = selection.model.get_submodule(layer)
        parts.add((type(module).__name__, leaf, int(getattr(member, "axis", -1))))
    return tuple(sorted(parts))


def by_kind(selection: Selection, ranked: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Comparable scores: each unit's rank among those of its kind, from 0 to 1; infinite scores remain infinite.

    Args:
        selection: The lists, and the model that they belong to.
        ranked: The scores of every list.
    """
    kinds: dict[Kind, list[int]] = {}
    for index, candidates in enumerate(selection.candidates):
        kinds.setdefault(kind_of(selection, candidates), []).append(index)
    found = [scores.to("cpu", torch.float64) for scores in ranked]
    for lists in kinds.values():
        whole = torch.cat([found[index] for index in lists])
        places = torch.empty_like(whole)
        places[whole.sort(stable=True).indices] = (torch.arange(len(whole), dtype=torch.float64) + 0.5) / len(
            whole
        )
        places = torch.where(whole.isinf(), whole, places)
        for index, part in zip(lists, places.split([len(found[index]) for index in lists]), strict=True):
            found[index] = part
    return [place.to(scores.device) for place, scores in zip(found, ranked, strict=True)]

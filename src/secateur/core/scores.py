"""`Scores`: the score of each weight, one tensor per parameter, shaped like it.

>>> import torch
>>> scores = Scores({"fc.weight": torch.tensor([[1.0, 2.0]])})
>>> scores["fc.weight"].sum().item()
3.0
>>> Scores({"fc.weight": torch.tensor([float("nan")])})
Traceback (most recent call last):
...
secateur.errors.NonFiniteError: scores of 'fc.weight': 1 of 1 are NaN or infinite; ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from secateur.core.fetching import fetched
from secateur.errors import NonFiniteError

__all__ = ["Scores", "check_all_finite", "check_finite"]


def check_finite(what: str, tensor: torch.Tensor, advice: str) -> None:
    """Raise a `NonFiniteError` naming `what` unless every element is a finite number."""
    if not torch.is_floating_point(tensor) and not torch.is_complex(tensor):
        return
    # One sum instead of a mask as large as the tensor: a sum with infinity or NaN in it is not finite.
    if bool(torch.isfinite(tensor.detach().sum())):
        return
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise NonFiniteError(f"{what}: {bad} of {tensor.numel()} are NaN or infinite; {advice}")


def check_all_finite(tensors: Mapping[str, torch.Tensor], what: str, advice: str) -> None:
    """Raise a `NonFiniteError` unless every element of every tensor is finite; each device is waited for once.

    Args:
        tensors: By name.
        what: What one is called in the error, with `{name!r}` in it.
        advice: What to do next.

    >>> check_all_finite({"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])}, "the {name!r}", "check it")
    Traceback (most recent call last):
    ...
    secateur.errors.NonFiniteError: the 'b': 1 of 2 are NaN or infinite; check it
    """
    if all(fetched(torch.isfinite(tensor.detach().sum()) for tensor in tensors.values())):
        return
    for name, tensor in tensors.items():
        check_finite(what.format(name=name), tensor, advice)


class Scores(Mapping[str, torch.Tensor]):
    """A read-only mapping from parameter name to scores, all of them finite.

    Args:
        tensors: By parameter name one score per weight.
    """

    __slots__ = ("_tensors",)

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        check_all_finite(
            tensors,
            "scores of {name!r}",
            "check the loss and the data, or use a criterion without gradients",
        )
        self._tensors = {name: tensor.detach() for name, tensor in tensors.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"Scores({len(self)} tensors, {sum(t.numel() for t in self._tensors.values()):,} scores)"

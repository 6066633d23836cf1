"""Size: the model fits into a file of a given number of bytes: the real coded file, written and counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from secateur.budget._cost_path import CostSearch, Path, Remaining, check_keep, costs_of
from secateur.budget._depth import ROUGH, at_best_depth
from secateur.budget._selection import FileOptions, Selection, check_share
from secateur.errors import BudgetNotMetError, OptionError

__all__ = ["Size"]


@dataclass(frozen=True)
class Size(Remaining):
    """Removes as little as needed for `sc.save` to write the model in at most a given number of bytes.

    `bytes` is the limit, or `keep` the share of the bytes that the dense tensors take. The file is really written in
    every attempt: with `bits`, of the shared model (`sc.share(model, bits=bits)`); `precision` and `batch_norm` are
    those of `sc.save`. With a granularity whose units are cut out the file holds the shrunk model. The result is within
    `within` of the limit, unless one unit more would exceed it, or `most` files were written.

    >>> import secateur as sc
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Linear(100, 50)
    >>> masks = sc.prune(model, budget=sc.budget.Size(bytes=8_000))
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     size = sc.save(masks.apply(model), pathlib.Path(folder) / "m.sct").size
    >>> 7_900 < size <= 8_000
    True
    """

    measured: ClassVar[bool] = True

    bytes: int | None = None
    keep: float | None = None
    bits: int | None = None
    precision: str | None = None
    batch_norm: str | int | None = None
    spread: str = "per_tensor"
    within: float = 0.01
    most: int = 12

    def __post_init__(self) -> None:
        if (self.bytes is None) == (self.keep is None):
            raise OptionError(
                "Size: give either bytes= (the limit) or keep= (the share of the dense tensors' bytes that remains)"
            )
        if self.keep is not None:
            object.__setattr__(self, "keep", check_keep("Size", self.keep))
        elif isinstance(self.bytes, bool) or not isinstance(self.bytes, int) or self.bytes < 1:
            raise OptionError(f"Size bytes: expected a whole number of at least 1, got {self.bytes!r}")
        if not 0.0 < self.within < 1.0 or self.most < 2:
            raise OptionError(
                f"Size: expected 0 < within < 1 and most of at least 2, got within={self.within!r}, most={self.most!r}"
            )
        self.check_spread()

    @classmethod
    def at(cls, share: float) -> Size:
        """A budget of the dense bytes that remain when this share is removed."""
        return cls(keep=1.0 - (check_share("share", share) or 1e-9))

    def choose(self, selection: Selection) -> dict[str, torch.Tensor]:
        """The choice of the path whose file is just small enough."""
        costs = costs_of(selection, self)
        limit = self.bytes if self.bytes is not None else int((self.keep or 0.0) * costs.dense("bytes"))
        options = FileOptions(bits=self.bits, precision=self.precision, batch_norm=self.batch_norm)

        def search(path: Path, rough: bool) -> dict[str, torch.Tensor]:
            bytes_of = CostSearch(
                path,
                lambda chosen: costs.coded_bytes(chosen, options),
                lambda chosen: costs.remaining("params", chosen),
                limit,
                max(self.within, ROUGH) if rough else self.within,
                self.most,
            )
            best = bytes_of.run()
            if best is None:
                raise self._unmet(bytes_of, limit)
            return best

        return at_best_depth(self, selection, search)

    def _unmet(self, search: CostSearch, limit: int) -> BudgetNotMetError:
        return BudgetNotMetError(
            f"{self}: the smallest of {len(search.done)} files written has {search.least:,.0f} bytes and {limit:,} "
            "were asked; share the weights (bits=4), store the rest narrower (precision='fp16', batch_norm=8), or "
            "let more layers be pruned"
        )

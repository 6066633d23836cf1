"""LatencyTable: all units compete under a limit on the sum of times that a table gives for every width; no width below
which no time is saved.

The constraint of NetAdapt (Yang et al. 2018) and HALP (Shen et al. 2022): times of layers are measured once for each
width, and a choice costs the sum. Kernels work in blocks, so time falls in steps: between two steps removing a channel
saves nothing.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from secateur.budget import Budget
from secateur.budget._cost_path import Path, check_keep, first_within
from secateur.budget._depth import check_comparable
from secateur.budget._selection import Candidates, Selection
from secateur.core.masks import count_true
from secateur.errors import OptionError

__all__ = ["LatencyTable"]

Times = tuple[tuple[int, float], ...]
"""The widths of a list, ascending, with the time of each; a width between two takes as long as the next wider one."""


@dataclass(frozen=True, eq=False)
class LatencyTable(Budget):
    """Removes the units with the lowest scores, in whichever list, until the table's times add up to at most the limit.

    No list becomes narrower than the widest width that takes its least time, and at the end every list gets back the
    units that cost no time. Lists that the table does not name are left whole.

    Args:
        table: For each list of units (`sc.explain` names them) the milliseconds of its widths; the whole width must be
            there, and times must not fall as widths grow. In a recipe the widths are texts.
        ms: The limit of the sum, or
        keep: the share of the sum of the whole widths that remains.

    A width of 4 takes 2 ms, and any other 1 ms. So one unit is removed: to remove more would save nothing.

    >>> from secateur.core.units import Units
    >>> candidates = Candidates(Units("conv", 4, ()), torch.tensor([1.0, 4.0, 3.0, 2.0]))
    >>> budget = LatencyTable({"conv": {4: 2.0, 3: 1.0, 2: 1.0, 1: 1.0}}, keep=0.5)
    >>> budget.choose(Selection((candidates,), torch.nn.Identity()))["conv"].tolist()
    [False, True, True, True]
    """

    measured: ClassVar[bool] = True

    table: Mapping[str, Mapping[int, float]]
    ms: float | None = None
    keep: float | None = None

    def __post_init__(self) -> None:
        if (self.ms is None) == (self.keep is None):
            raise OptionError(
                "LatencyTable: give either ms= (the limit) or keep= (the share of the time that remains)"
            )
        if self.keep is not None:
            object.__setattr__(self, "keep", check_keep("LatencyTable", self.keep))
        object.__setattr__(
            self, "table", {str(name): _times(name, times) for name, times in self.table.items()}
        )
        if not self.table:
            raise OptionError(
                "LatencyTable: expected times of at least one list of units, got an empty table"
            )

    @classmethod
    def at(cls, share: float) -> LatencyTable:
        """Refused: without a table there is no such budget."""
        raise OptionError(
            "LatencyTable: a share alone is not enough: give the table, such as LatencyTable(table, keep=0.5)"
        )

    def choose(self, selection: Selection) -> dict[str, torch.Tensor]:
        """The first choice whose times add up to the limit."""
        missing = [name for name in self.table if name not in {each.name for each in selection.candidates}]
        if missing:
            raise OptionError(
                f"LatencyTable: the table names {missing[0]!r}, which is no list of units here; they are "
                f"{', '.join(each.name for each in selection.candidates[:8])}"
            )
        lists = tuple(self._floored(each) for each in selection.candidates)
        check_comparable(self._named(), dataclasses.replace(selection, candidates=lists))
        whole = sum(self._time(each, each.count) for each in lists)
        limit = (self.ms if self.ms is not None else (self.keep or 0.0) * whole) * (1 + 1e-12)

        def cost(chosen: Mapping[str, torch.Tensor]) -> float:
            return sum(self._time(each, count_true(chosen[each.name])) for each in lists)

        def explain(least: float) -> str:
            return (
                f"{self._named()}: {least:.4g} ms remain of {whole:.4g} at the narrowest widths that pay, and "
                f"{limit:.4g} were asked; let more layers be pruned, or ask for at least {least:.4g} ms"
            )

        path = Path(dataclasses.replace(selection, candidates=lists), "overall")
        found = first_within(path, cost, limit, explain)
        return path.of([each.count - self._wide(each, count_true(found[each.name])) for each in lists])

    def _named(self) -> str:
        return f"LatencyTable({f'ms={self.ms:g}' if self.ms is not None else f'keep={self.keep:g}'})"

    def _of(self, candidates: Candidates) -> Times | None:
        times: Times | None = self.table.get(candidates.name)  # type: ignore[assignment]
        if times is not None and times[-1][0] < candidates.count:
            raise OptionError(
                f"LatencyTable: {candidates.name}: expected the time of its whole width, {candidates.count}, got "
                f"widths up to {times[-1][0]}"
            )
        return times

    def _time(self, candidates: Candidates, width: int) -> float:
        """The milliseconds of a list at a width: those of the next width in the table."""
        times = self._of(candidates)
        return 0.0 if times is None else times[bisect.bisect_left(times, (width, -math.inf))][1]

    def _wide(self, candidates: Candidates, width: int) -> int:
        """The widest width that takes no longer, of those that earlier rounds have left."""
        times = self._of(candidates)
        if times is None:
            return width
        now = self._time(candidates, width)
        same = [each for each, time in times if time <= now]
        return max(width, min(max(same), candidates.count - candidates.removed))

    def _floored(self, candidates: Candidates) -> Candidates:
        """The list with the floor that its table asks for; whole, where the table does not name it."""
        times = self._of(candidates)
        if times is None:
            return dataclasses.replace(candidates, least=candidates.count)
        pays = max(width for width, time in times if time <= times[0][1])
        return dataclasses.replace(candidates, least=max(candidates.least, min(pays, candidates.count)))


def _times(name: object, times: Mapping[int, float]) -> Times:
    """The widths and times of a list, checked."""
    try:
        found = tuple(sorted((int(width), float(time)) for width, time in dict(times).items()))
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"LatencyTable: {name}: expected a table of widths to milliseconds, got {times!r}"
        ) from error
    if not found or any(width < 1 or not 0 <= time < math.inf for width, time in found):
        raise OptionError(
            f"LatencyTable: {name}: expected widths of at least 1 and times of 0 ms or more, got {times!r}"
        )
    falls = [(a, b) for a, b in itertools.pairwise(found) if b[1] < a[1]]
    if falls:
        (narrow, slow), (wide, fast) = falls[0]
        raise OptionError(
            f"LatencyTable: {name}: expected times that do not fall as widths grow, got {slow:g} ms for {narrow} and "
            f"{fast:g} ms for {wide}; measure again, or give both the same"
        )
    return found

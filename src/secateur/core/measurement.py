"""`Measurement`: a number with its unit and the sentence that defines it, so that no table can be misread.

>>> m = Measurement("macs", 651200, "MAC", "one product and sum = 1", per_layer={"fc1": 313600})
>>> m.value, m.per_layer["fc1"]
(651200, 313600)
>>> print(Measurements([m]))
macs  651,200 MAC  one product and sum = 1
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

from secateur.core.html_table import html_table
from secateur.core.json_text import finite, parse
from secateur.core.plotting import plot
from secateur.errors import DataError, OptionError, UnknownNameError, near

if TYPE_CHECKING:
    import altair as alt

__all__ = ["Measurement", "Measurements"]


@dataclass(frozen=True)
class Measurement:
    """One measured number.

    Attributes:
        name: What was measured.
        value: The number; NaN if it diverged.
        unit: Its unit.
        definition: One sentence that says what the number counts.
        per_layer: The parts it is the sum of, by layer, where it can be split.
        trials: The single readings of a timing.
        notes: Remarks for the reader: operators that could not be counted, the device, the batch.
        context: The variant or trial it belongs to (`{"variant": "pruned", "sparsity": 0.5, "seed": 0}`); reports
            group by it.
        spread: How certain the value is: `low` and `high` bound it with 95 % confidence; quartiles, variance.

    >>> Measurement("latency", 2.0, unit="ms", spread={"low": 1.9, "high": 2.25}).text()
    '2 ms [1.9, 2.25]'
    """

    name: str
    value: float | int
    unit: str = ""
    definition: str = ""
    per_layer: Mapping[str, float | int] = field(default_factory=dict)
    trials: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    context: Mapping[str, Any] = field(default_factory=dict)
    spread: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name:
            raise OptionError("a Measurement needs a name, got an empty one")
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)):
            raise OptionError(
                f"measurement {self.name!r}: expected a number, got {self.value!r} of type "
                f"{type(self.value).__name__}; convert it with float() or int()"
            )
        if math.isinf(self.value):
            raise OptionError(
                f"measurement {self.name!r}: expected a number, got {self.value}; write NaN for a value that diverged"
            )
        object.__setattr__(self, "per_layer", dict(self.per_layer))
        object.__setattr__(self, "spread", dict(self.spread))
        object.__setattr__(self, "context", dict(self.context))
        object.__setattr__(self, "trials", tuple(self.trials))
        object.__setattr__(self, "notes", tuple(self.notes))

    def text(self) -> str:
        """The value as text for people."""
        text = f"{_number(self.value)} {self.unit}".rstrip()
        if "low" in self.spread and "high" in self.spread:
            text += f" [{_number(self.spread['low'])}, {_number(self.spread['high'])}]"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "definition": self.definition,
            "per_layer": dict(self.per_layer),
            "trials": list(self.trials),
            "notes": list(self.notes),
            "context": dict(self.context),
            "spread": dict(self.spread),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        """The inverse of `to_dict`, and of `to_json`, which writes NaN as null.

        >>> Measurement.from_dict({"name": "mse", "value": None, "per_layer": {"fc": None}}).per_layer
        {'fc': nan}
        """
        plain = {**data, "value": _or_nan(data.get("value"))}
        for field_name in ("per_layer", "spread"):
            if isinstance(numbers := plain.get(field_name), Mapping):
                plain[field_name] = {name: _or_nan(number) for name, number in numbers.items()}
        if isinstance(trials := plain.get("trials"), (list, tuple)):
            plain["trials"] = tuple(map(_or_nan, trials))
        return cls(**plain)


def _or_nan(number: Any) -> Any:
    """The number, or NaN where JSON has null in its place."""
    return math.nan if number is None else number


def _number(value: float | int) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if not abs(value) >= 1e4 else f"{value:,.0f}"


def _change(before: Measurement, after: Measurement) -> str:
    """How much a measured number changed, in words."""
    old, new = before.value, after.value
    if before.unit == "ms":
        return "of different moments: see compare"
    if old == new:
        return "as before"
    if (isinstance(old, int) and isinstance(new, int)) or before.unit in ("bytes", "MAC"):
        less, more = ("smaller", "larger") if before.unit == "bytes" else ("fewer", "as many")
        if old <= 0 or new <= 0:
            return f"{_number(new - old)}"
        return f"{old / new:.2f} times {less}" if old > new else f"{new / old:.2f} times {more}"
    return f"{new - old:+.4g}"


class Measurements(tuple[Measurement, ...]):
    """A table of Measurements: prints as one, indexes by position or by name."""

    def __new__(cls, items: Iterable[Measurement] = ()) -> Measurements:
        """A table of these rows, in their order."""
        return super().__new__(cls, tuple(items))

    @overload
    def __getitem__(self, key: str | SupportsIndex) -> Measurement: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Measurement, ...]: ...
    def __getitem__(self, key: str | SupportsIndex | slice) -> Measurement | tuple[Measurement, ...]:
        if isinstance(key, str):
            for item in self:
                if item.name == key:
                    return item
            raise UnknownNameError(f"nothing measured under {key!r}: {near(key, [m.name for m in self])}")
        return super().__getitem__(key)

    def __add__(self, other: Iterable[Measurement]) -> Measurements:  # type: ignore[override]
        return Measurements([*self, *other])

    def within(self, context: Mapping[str, object]) -> Measurements:
        """The same rows, with these entries added to the context of each.

        >>> Measurements([Measurement("params", 8)]).within({"variant": "dense"})[0].context
        {'variant': 'dense'}
        """
        return Measurements(replace(item, context={**item.context, **context}) for item in self)

    def against(self, before: Measurements) -> str:
        """What was measured before and after, and the change, as a table in text; `self` is after.

        Counts, bytes and the like are compared as ratios, all else as differences. Times of two calls of `measure` are
        of different moments and get no ratio: `sc.compare` takes them in turns.

        Args:
            before: The same measures of the model as it was.

        Raises:
            OptionError: The two have no measure in common.

        >>> dense, small = (
        ...     Measurements([Measurement("params", p), Measurement("score", s)]) for p, s in ((80, 0.75), (20, 0.5)))
        >>> print(small.against(dense))
                before  after  change
        params      80     20  4.00 times fewer
        score     0.75    0.5  -0.25
        """
        common = [name for name in self.names() if name in before.names()]
        if not common:
            raise OptionError(
                "against: expected two tables with a measure in common, got "
                f"{', '.join(self.names()) or 'nothing'} and {', '.join(before.names()) or 'nothing'}; measure both "
                "models with the same what= and evaluate"
            )
        rows = [("", "before", "after", "change")]
        rows += [
            (name, before[name].text(), self[name].text(), _change(before[name], self[name]))
            for name in common
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join(
            f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows
        )

    def names(self) -> list[str]:
        """The names measured, in order, each once."""
        return list(dict.fromkeys(item.name for item in self))

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """(name, value, definition) of each; where a name occurs for several variants, with the variant.

        >>> dense, small = (Measurement("params", n, context={"variant": v}) for n, v in ((8, "dense"), (2, "small")))
        >>> [name for name, _, _ in Measurements([dense, small]).rows()], [*Measurements([dense]).rows()][0][0]
        (['params of dense', 'params of small'], 'params')
        """
        for item in self:
            yield self._label(item), item.text(), item.definition

    def _label(self, item: Measurement) -> str:
        """A row's name, with its variant where the table has several rows of the name."""
        variant = item.context.get("variant")
        several = variant is not None and sum(other.name == item.name for other in self) > 1
        return f"{item.name} of {variant}" if several else item.name

    def to_json(self) -> str:
        """The table as strict JSON; NaN becomes null."""
        return json.dumps(finite([item.to_dict() for item in self]), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Measurements:
        """The inverse of `to_json`.

        >>> Measurements.from_json(Measurements([Measurement("loss", 0.5)]).to_json())["loss"].value
        0.5
        """
        rows = parse(text, "measurements", DataError)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError("measurements: expected a JSON list of objects, as to_json writes it")
        try:
            return cls(Measurement.from_dict(row) for row in rows if isinstance(row, dict))
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"measurements: a row is damaged ({str(error)[:200]})") from error

    def _repr_html_(self) -> str:
        """The table in a notebook."""
        notes = [f"{self._label(item)}: {note}" for item in self for note in item.notes]
        return html_table(("measure", "value", "definition"), self.rows(), notes)

    def plot(self) -> alt.TopLevelMixin:
        """The charts of the report that these measurements allow; a notebook shows what is returned."""
        return plot("measurements", self)

    def __str__(self) -> str:
        rows = list(self.rows())
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
        lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c}".rstrip() for a, b, c in rows]
        notes = [f"  {self._label(item)}: {note}" for item in self for note in item.notes]
        return "\n".join(lines + notes)

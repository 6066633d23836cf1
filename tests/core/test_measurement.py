"""Measurement: printed with its definition, to JSON and back, and refused when it is no number."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.core.measurement import Measurement, Measurements
from secateur.errors import OptionError, UnknownNameError

numbers = st.one_of(st.integers(-(2**60), 2**60), st.floats(allow_nan=False, allow_infinity=False))
rows = st.builds(
    Measurement,
    name=st.text(min_size=1, max_size=8),
    value=numbers,
    unit=st.text(max_size=4),
    definition=st.text(max_size=20),
    per_layer=st.dictionaries(st.text(max_size=5), numbers, max_size=3),
    trials=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3).map(tuple),
    notes=st.lists(st.text(max_size=5), max_size=2).map(tuple),
    context=st.dictionaries(st.text(max_size=5), st.one_of(numbers, st.text(max_size=5)), max_size=2),
    spread=st.dictionaries(st.sampled_from(["low", "high", "q25"]), numbers.map(float), max_size=3),
)


@settings(max_examples=80, deadline=None)
@given(table=st.lists(rows, max_size=4))
def test_json_and_back(table):
    table = Measurements(table)
    assert Measurements.from_json(table.to_json()) == table
    assert str(table).count("\n") >= len(table) - 1


def test_nan_is_strict_json_and_comes_back():
    table = Measurements([Measurement("loss", math.nan, per_layer={"a": math.nan})])
    plain = json.loads(table.to_json(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert plain[0]["value"] is None
    assert math.isnan(Measurements.from_json(table.to_json())["loss"].value)
    assert table["loss"].text() == "nan"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (651200, "MAC", "651,200 MAC"),
        (0.123456, "", "0.1235"),
        (12345.678, "ms", "12,346 ms"),
        (-12345.678, "", "-12,346"),
        (0, "", "0"),
        (1.0, "x", "1 x"),
    ],
)
def test_text(value, unit, text):
    assert Measurement("m", value, unit).text() == text


def test_spread_is_shown():
    row = Measurement("latency", 2.0, "ms", spread={"low": 1.5, "high": 12345.0, "q25": 1.7})
    assert row.text() == "2 ms [1.5, 12,345]"


def test_table_prints_definitions_and_notes():
    table = Measurements(
        [Measurement("macs", 1200, "MAC", "one = 1", notes=("not counted: x",)), Measurement("b", 1)]
    )
    assert str(table) == "macs  1,200 MAC  one = 1\nb             1\n  macs: not counted: x"


def test_lookup_by_name_and_position():
    table = Measurements([Measurement("a", 1), Measurement("b", 2), Measurement("a", 3)])
    assert (table["a"].value, table[2].value, table.names()) == (1, 3, ["a", "b"])
    assert isinstance(table + [Measurement("c", 4)], Measurements)
    with pytest.raises(UnknownNameError, match="nothing measured under 'mac': did you mean 'macs'"):
        Measurements([Measurement("macs", 1)])["mac"]


def test_within_adds_to_the_context():
    table = Measurements([Measurement("a", 1, context={"seed": 0, "variant": "dense"})]).within(
        {"variant": "pruned"}
    )
    assert table[0].context == {"seed": 0, "variant": "pruned"}


@pytest.mark.parametrize(
    ("value", "got"), [(True, "True of type bool"), ("3", "'3' of type str"), (None, "None of type NoneType")]
)
def test_only_numbers(value, got):
    with pytest.raises(OptionError) as error:
        Measurement("acc", value)
    assert (
        str(error.value)
        == f"measurement 'acc': expected a number, got {got}; convert it with float() or int()"
    )


def test_infinity_and_no_name():
    with pytest.raises(
        OptionError,
        match="measurement 'loss': expected a number, got inf; write NaN for a value that diverged",
    ):
        Measurement("loss", math.inf)
    with pytest.raises(OptionError, match="a Measurement needs a name, got an empty one"):
        Measurement("", 1)


def test_before_and_after_are_one_table_with_the_change() -> None:
    def table(*values: float, unit: str = "") -> Measurements:
        names = ("params", "accuracy", "size", "latency")
        units = ("", "", "bytes", "ms")
        return Measurements(Measurement(*row) for row in zip(names, values, units))

    text = table(25, 0.26, 1000, 1.0).against(table(100, 0.66, 4000, 2.0))
    assert [line.split() for line in text.splitlines()] == [
        ["before", "after", "change"],
        ["params", "100", "25", "4.00", "times", "fewer"],
        ["accuracy", "0.66", "0.26", "-0.4"],
        ["size", "4,000", "bytes", "1,000", "bytes", "4.00", "times", "smaller"],
        ["latency", "2", "ms", "1", "ms", "of", "different", "moments:", "see", "compare"],
    ]
    assert "2.00 times as many" in table(50).against(table(25))
    assert "as before" in table(25).against(table(25))
    with pytest.raises(
        OptionError, match="against: expected two tables with a measure in common, got params and loss"
    ):
        table(25).against(Measurements([Measurement("loss", 0.5)]))

"""`parse`: parse untrusted JSON strictly, with a bound on the memory that its objects take; `finite` for writing it.

Python's own parser is exact but trusting: deep nesting ends in a RecursionError, `NaN` is accepted, and a megabyte of
`{},` becomes 25 megabytes of objects. Here all of these are refused with the error of the caller's choice.

>>> parse('{"a": [1, 2.5, null]}', "the header")
{'a': [1, 2.5, None]}
>>> parse("[" * 100_000, "the header")
Traceback (most recent call last):
...
secateur.errors.FormatError: the header: expected JSON, got something else (nested too deeply)
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import NoReturn, TypeAlias

from secateur.errors import FormatError, SecateurError

__all__ = ["FREE_BYTES", "Json", "are_counts", "check_size", "finite", "is_count", "parse", "texts_of"]

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

FREE_BYTES = 64 << 20  # memory that parsing any file may take ...
BYTES_PER_BYTE = 8  # ... and how much more each byte of the text allows
_COST = {
    "{": 72,
    "[": 64,
    ",": 40,
    '"': 30,
}  # bytes of memory an object takes, by the characters that begin it


def parse(
    text: str | bytes, what: str, error: type[SecateurError] = FormatError, constants: bool = False
) -> Json:
    """The value that a JSON text stands for.

    Args:
        text: The text, or its bytes in UTF-8.
        what: The name of the text, for messages.
        error: The class of error to raise.
        constants: Accept NaN and Infinity, which Python writes and JSON does not have.

    Raises:
        SecateurError: Of class `error`: the text is not JSON, is nested too deeply, or its objects would take more
            memory than `FREE_BYTES` and eight times its length.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError:
            raise error(f"{what}: expected JSON in UTF-8, got other bytes") from None
    check_size(text, what, error)
    try:
        found: Json = json.loads(text, parse_constant=None if constants else _refuse)
    except RecursionError:
        raise error(f"{what}: expected JSON, got something else (nested too deeply)") from None
    except ValueError as reason:
        raise error(f"{what}: expected JSON, got something else ({str(reason)[:200]})") from None
    if "\\ud" in text or "\\uD" in text or not text.isascii():
        _check_characters(found, what, error)
    return found


def _check_characters(found: Json, what: str, error: type[SecateurError]) -> None:
    """Raise where a text in a value is half of a pair of surrogates, which nothing can be encoded with."""
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as reason:
        raise error(f"{what}: expected text in Unicode, got half a character ({reason.reason})") from None


def check_size(text: str, what: str, error: type[SecateurError] = FormatError) -> None:
    """Raise unless the objects of a JSON text fit into the memory that its length allows."""
    allowed = FREE_BYTES + BYTES_PER_BYTE * len(text)
    cost = len(text) + sum(text.count(sign) * size for sign, size in _COST.items())
    if cost > allowed:
        raise error(
            f"{what}: its {len(text):,} characters of JSON would take about {cost:,} bytes of memory, more than "
            f"{allowed:,}; it is not a text that secateur writes"
        )


def finite(value: object) -> object:
    """Plain data as strict JSON can write it: null in place of NaN and infinity, which JSON does not have.

    Args:
        value: Mappings, lists, tuples, texts and numbers.

    >>> finite({"p": float("nan"), "values": (1, float("-inf"))})
    {'p': None, 'values': [1, None]}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def is_count(value: object, most: int = (1 << 63) - 1) -> bool:
    """Whether a value is a whole number from 0 to `most` (and not a bool).

    >>> is_count(3), is_count(True), is_count(-1), is_count(2.0)
    (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def are_counts(values: Collection[object]) -> bool:
    """Whether all values are whole numbers from 0 to 2**63 - 1: what `is_count` says of each, sooner.

    >>> are_counts([3, 0]), are_counts([3, True]), are_counts([3, -1]), are_counts([])
    (True, False, False, True)
    """
    if set(map(type, values)) == {int}:
        return min(values) >= 0 and max(values) < 1 << 63  # type: ignore[type-var, operator]
    return all(map(is_count, values))


def texts_of(value: object) -> Mapping[str, str] | None:
    """The value, if it is a mapping of texts to texts; else None."""
    if isinstance(value, dict) and all(isinstance(each, str) for pair in value.items() for each in pair):
        return value
    return None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")

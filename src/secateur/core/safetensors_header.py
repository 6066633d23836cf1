"""The header of a safetensors file, read strictly: names, dtypes, shapes, and the offsets of each tensor's data. A
header is JSON and is not trusted. Everything in it is checked here: one object per tensor with three fields, whole
numbers that are not negative, texts as metadata.

>>> from secateur.errors import FormatError
>>> read_header(b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "the header", FormatError)
({'w': ('F32', (2,), 0, 8)}, {})
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from secateur.core.json_text import is_count, parse, texts_of
from secateur.errors import SecateurError

__all__ = ["Span", "open_header", "read_header"]

MOST_HEADER = 100 << 20  # bytes of a header; the safetensors library has the same limit
_MOST_DIMS = 64

Span = tuple[str, tuple[int, ...], int, int]
"""Dtype, shape, first byte and end of a tensor's data."""


def read_header(
    header: bytes, what: str, error: type[SecateurError]
) -> tuple[dict[str, Span], Mapping[str, str]]:
    """The tensors a header names, and its metadata.

    Args:
        header: The header's bytes.
        what: The name of the file, for messages.
        error: The class of error to raise.

    Raises:
        SecateurError: Of class `error`: the header is not one that the safetensors format allows.
    """
    fields = parse(header, what, error)
    if not isinstance(fields, dict):
        raise error(f"{what}: expected a safetensors file, got something else (its header is no JSON object)")
    metadata = texts_of(fields.pop("__metadata__", None) or {})
    if metadata is None:
        raise error(
            f"{what}: expected a safetensors file, got something else (its metadata is no JSON object of texts)"
        )
    spans: dict[str, Span] = {}
    for name, field in fields.items():
        span = _span(field)
        if span is None:
            raise error(
                f"{what}: expected a safetensors file, got something else (tensor {name[:80]!r}: no dtype, shape and "
                "data_offsets)"
            )
        spans[name] = span
    return spans, metadata


def open_header(
    path: str | os.PathLike[str], file: BinaryIO, error: type[SecateurError]
) -> tuple[dict[str, Span], Mapping[str, str], bytes]:
    """The tensors of a safetensors file, its metadata, and its header byte for byte.

    The data of the tensors follows the header, in the order of their first bytes, without gaps.

    Args:
        path: The file's name, for messages.
        file: The open file.
        error: The class of error to raise.

    Raises:
        SecateurError: Of class `error`: this is not a valid safetensors file.
    """
    size = Path(path).stat().st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, MOST_HEADER):
        raise error(
            f"{path}: expected a safetensors file, got something else (its header claims {length} of {size} bytes)"
        )
    header = file.read(length)
    spans, metadata = read_header(header, str(path), error)
    return spans, metadata, header


def _span(field: object) -> Span | None:
    if not isinstance(field, dict) or set(field) != {"dtype", "shape", "data_offsets"}:
        return None
    dtype, shape, offsets = field["dtype"], field["shape"], field["data_offsets"]
    if not isinstance(dtype, str) or not isinstance(shape, list) or not isinstance(offsets, list):
        return None
    if len(shape) > _MOST_DIMS or len(offsets) != 2 or not all(map(is_count, (*shape, *offsets))):
        return None
    return dtype, tuple(shape), offsets[0], offsets[1]

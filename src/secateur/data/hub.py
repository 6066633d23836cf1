"""`hub`: any image dataset that Hugging Face's `datasets` can load, by hub name or local path.

>>> Hub.__name__
'Hub'
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch

from secateur.data._kind import Raw, Request
from secateur.data.parquet import IMAGE_COLUMNS, LABEL_COLUMNS, assemble, pick, split_of
from secateur.errors import DataError

__all__ = ["Hub"]


class _Rows:
    """One split of a `datasets.Dataset`, its images left encoded."""

    def __init__(self, dataset: Any, where: str):
        import datasets

        self.where = where
        image = pick(dataset.column_names, IMAGE_COLUMNS, "images", where)
        label = pick(dataset.column_names, LABEL_COLUMNS, "labels", where)
        self._image = image
        self._rows = dataset.cast_column(image, datasets.Image(decode=False))
        self.values: list[Any] = list(dataset[label])
        self.names = getattr(dataset.features[label], "names", None)
        self.labels = torch.zeros(len(self.values), dtype=torch.int64)

    def read(self, index: int) -> bytes:
        """The file of one image."""
        value = self._rows[index][self._image]
        return value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()

    def describe(self, index: int) -> str:
        """Row and dataset."""
        return f"row {index} of {self.where}"

    def digest(self) -> str:
        """SHA-256 over every encoded image."""
        whole = hashlib.sha256()
        for index in range(len(self.values)):
            whole.update(hashlib.sha256(self.read(index)).digest())
        return whole.hexdigest()


@contextmanager
def _hub_or_cache() -> Iterator[None]:
    """Where the hub cannot be reached, ask the cache alone: the library would try five times, for half a minute."""
    import datasets
    from huggingface_hub import constants

    holders: list[Any] = [
        holder for holder in (datasets.config, constants) if hasattr(holder, "HF_HUB_OFFLINE")
    ]
    before = [holder.HF_HUB_OFFLINE for holder in holders]
    if not any(before) and not _reachable(constants.ENDPOINT):
        for holder in holders:
            holder.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for holder, value in zip(holders, before, strict=True):
            holder.HF_HUB_OFFLINE = value


def _reachable(address: str) -> bool:
    """Whether something answers there within three seconds; behind a proxy only the library can tell."""
    if getproxies():
        return True
    place = urlsplit(address)
    try:
        port = place.port or (80 if place.scheme == "http" else 443)
        socket.create_connection((place.hostname or "", port), timeout=3).close()
    except (OSError, ValueError):
        return False
    return True


class Hub:
    """A dataset of Hugging Face's hub (fetched by `datasets` unless it is in its cache) or in any of its
    local forms."""

    def read(self, request: Request) -> Raw:
        """The splits that the dataset has."""
        import datasets

        name = request.path or ""
        try:
            if Path(name, "dataset_dict.json").exists() or Path(name, "state.json").exists():
                loaded = datasets.load_from_disk(name)
            else:
                with _hub_or_cache():
                    loaded = datasets.load_dataset(name)
        except Exception as error:  # `datasets` raises whatever its readers and the network raise
            first = str(error).splitlines()[0] if str(error) else "no reason given"
            raise DataError(
                f"dataset {name!r}: expected a folder on this machine or a dataset that `datasets` can load "
                f"from its cache or from the hub, got {type(error).__name__}: {first}; next: check the name "
                f"and the network, fetch it with `hf download --repo-type dataset {name} --local-dir "
                "data/NAME` and give that folder, or take 'digits', which is embedded and needs no download"
            ) from error
        parts: Mapping[str, Any] = loaded if isinstance(loaded, Mapping) else {"train": loaded}
        found = {split_of(split): _Rows(rows, f"{name}, split {split!r}") for split, rows in parts.items()}
        found.pop(None, None)
        if "train" not in found:
            raise DataError(f"dataset {name!r}: expected a split 'train', got {', '.join(parts)}")
        return assemble({str(split): rows for split, rows in found.items()}, request, name)

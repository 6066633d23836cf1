"""`hub`: any image dataset that Hugging Face's `datasets` can load, by hub name or local path.

>>> Hub.__name__
'Hub'
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch

from secateur.core.json_text import parse
from secateur.core.out_of_memory import raise_if_out_of_memory
from secateur.data._kind import Raw, Request
from secateur.data.parquet import IMAGE_COLUMNS, LABEL_COLUMNS, assemble, pick, split_of
from secateur.errors import DataError

__all__ = ["Hub"]


class _Rows:
    """One split of a `datasets.Dataset`, its images still encoded. Those named by a path must lie in one of `roots`."""

    values: Sequence[object]

    def __init__(self, dataset: Any, where: str, roots: Sequence[Path]):
        import datasets

        self.where, self._roots = where, [root.resolve() for root in roots]
        image = pick(dataset.column_names, IMAGE_COLUMNS, "images", where)
        label = pick(dataset.column_names, LABEL_COLUMNS, "labels", where)
        self._image = image
        try:
            # A table is mapped into memory as it is: offsets that point elsewhere would be followed.
            dataset.data.table.select([image, label]).validate(full=True)
            self._rows = dataset.cast_column(image, datasets.Image(decode=False))
            self.values = list(dataset[label])
        except Exception as error:  # pyarrow raises several kinds of errors for broken tables
            raise_if_out_of_memory(error)
            raise DataError(
                f"{where}: expected a table of images, got something else ({_first(error)})"
            ) from error
        self.names = getattr(dataset.features[label], "names", None)
        self.labels = torch.zeros(len(self.values), dtype=torch.int64)

    def read(self, index: int) -> bytes:
        """The file of one image."""
        value = self._rows[index][self._image]
        if value["bytes"] is not None:
            data: bytes = value["bytes"]
            return data
        # A row may name any file of this machine.
        file = Path(str(value["path"])).resolve()
        if not file.is_file() or not any(file.is_relative_to(root) for root in self._roots):
            raise DataError(
                f"its image is the file {str(value['path'])!r}: expected one in {' or '.join(map(str, self._roots))}; "
                "copy it there, or put the image itself into the dataset"
            )
        return file.read_bytes()

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
    """Where the hub cannot be reached, ask only the cache: the library would try five times, for half a minute."""
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


@contextmanager
def _no_scripts() -> Iterator[None]:
    """Have `datasets` before 4.0 refuse a dataset that is a script, in place of asking on the terminal."""
    import datasets

    config: Any = datasets.config
    asks = getattr(config, _TRUST, False) is None
    if asks:
        setattr(config, _TRUST, False)
    try:
        yield
    finally:
        if asks:
            setattr(config, _TRUST, None)


_TRUST = "HF_DATASETS_TRUST_REMOTE_CODE"


def _reachable(address: str) -> bool:
    """Whether the address answers within three seconds; behind a proxy only the library can tell."""
    if getproxies():
        return True
    place = urlsplit(address)
    try:
        port = place.port or (80 if place.scheme == "http" else 443)
        socket.create_connection((place.hostname or "", port), timeout=3).close()
    except (OSError, ValueError):
        return False
    return True


def _first(error: Exception) -> str:
    """The kind of an error and the first line of its text."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"


def _check_states(folder: Path) -> None:
    """Refuse a saved dataset whose tables are not in its own folder."""
    for file in sorted(folder.rglob("state.json")) if folder.is_dir() else ():
        try:
            if not file.is_file():
                raise ValueError("no plain file")
            held: Any = parse(file.read_bytes(), str(file), DataError)
            names = [table["filename"] for table in held["_data_files"]]
            sound = all(Path(name).name == name and file.with_name(name).is_file() for name in names)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{file}: expected what `datasets` writes, got something else ({error})"
            ) from error
        if not sound:
            raise DataError(
                f"{file}: expected tables in its own folder, got {names[:3]}; save the dataset again"
            )


class Hub:
    """A dataset of Hugging Face's hub (fetched by `datasets` unless it is in its cache) or in any of its
    local forms."""

    def read(self, request: Request) -> Raw:
        """The splits that the dataset has."""
        import datasets

        name = request.path or ""
        try:
            _check_states(Path(name))
            if Path(name, "dataset_dict.json").exists() or Path(name, "state.json").exists():
                loaded = datasets.load_from_disk(name)
            else:
                with _hub_or_cache(), _no_scripts():
                    loaded = datasets.load_dataset(name)
        except DataError:
            raise
        except Exception as error:  # `datasets` raises whatever its readers and the network raise
            raise DataError(
                f"dataset {name!r}: expected a folder on this machine or a dataset that `datasets` can load "
                f"from its cache or from the hub, got {_first(error)}; next: check the name "
                f"and the network, fetch it with `hf download --repo-type dataset {name} --local-dir "
                "data/NAME` and give that folder, or take 'digits', which is embedded and needs no download"
            ) from error
        parts: Mapping[str, Any] = loaded if isinstance(loaded, Mapping) else {"train": loaded}
        local = Path(name)
        # A dataset of the hub lies in its cache.
        roots = [local] if local.exists() else [Path(datasets.config.HF_CACHE_HOME)]
        found = {
            split_of(split): _Rows(rows, f"{name}, split {split!r}", roots) for split, rows in parts.items()
        }
        found.pop(None, None)
        if "train" not in found:
            raise DataError(f"dataset {name!r}: expected a split 'train', got {', '.join(parts)}")
        return assemble({str(split): rows for split, rows in found.items()}, request, name)

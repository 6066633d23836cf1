"""A checkpoint in several safetensors files, in a folder with an index: the layout of Hugging Face.

The folder holds `NAME-00001-of-00002.safetensors` and so on, and `NAME.safetensors.index.json`, which says which file
holds which tensor. A folder with a single .safetensors file needs no index. Both may come from anybody: an index can
only name files of its own folder, and what it says must be what the files hold.

>>> import pathlib, tempfile, torch
>>> from safetensors.torch import save_file
>>> with tempfile.TemporaryDirectory() as folder:
...     save_file({"w": torch.ones(2, 3)}, pathlib.Path(folder) / "model.safetensors")
...     with open_source(folder) as checkpoint:
...         print([shard.file for shard in checkpoint.shards], [entry.name for entry in checkpoint.entries])
['model.safetensors'] ['w']
"""

from __future__ import annotations

import bisect
import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from secateur.coding.room import Room
from secateur.container.checkpoint import Checkpoint, Shard, canonical_header, open_checkpoint
from secateur.container.format import Entry
from secateur.core.json_text import Json, is_count, parse, texts_of
from secateur.core.new_folders import check_new_folder
from secateur.core.safetensors_header import MOST_HEADER, read_header
from secateur.errors import DataError, FormatError, OptionError, SecateurError

__all__ = ["INDEX", "ShardLayout", "check_place", "open_source"]

INDEX = ".safetensors.index.json"
_ENDING = ".safetensors"
_MOST_SHARDS = 10_000
_MOST_NAME = 200  # characters of a file's name


@contextlib.contextmanager
def open_source(path: str | os.PathLike[str], max_bytes: int | None = None) -> Iterator[Checkpoint]:
    """A checkpoint file, or a folder of safetensors files with their index.

    Args:
        path: The file or the folder.
        max_bytes: As in `open_checkpoint`.

    Raises:
        DataError: There is no such checkpoint, or its index does not fit its files.
    """
    if not Path(path).is_dir():
        with open_checkpoint(path, max_bytes) as checkpoint:
            yield checkpoint
        return
    with contextlib.closing(_Folder(Path(path))) as folder:
        yield folder.checkpoint()


class _Folder:
    """The shards of a folder; one of the files is open at a time."""

    def __init__(self, path: Path):
        self._path = path
        self._index = _index_of(path)
        names = _names_in(path, self._index)
        self._shards: list[Shard] = []
        for name in names:
            with open_checkpoint(path / name) as one:
                assert one.header is not None
                self._shards.append(Shard(name, one.header, tuple(one.entries), one.metadata))
        if self._index is not None:
            _check_index(self._index.read_bytes(), self._shards, str(self._index), DataError)
        self._ends = list(accumulate(len(shard.entries) for shard in self._shards))
        self._open = contextlib.ExitStack()
        self._current: tuple[int, Checkpoint] | None = None

    def checkpoint(self) -> Checkpoint:
        """The folder as one checkpoint: the tensors of the first file, then those of the next."""
        entries = [entry for shard in self._shards for entry in shard.entries]
        known = {shard.file for shard in self._shards} | {self._index.name if self._index else ""}
        left_out = tuple(
            sorted(
                each.name
                for each in self._path.iterdir()
                if each.name not in known and not _hidden(each.name)
            )
        )
        index = None if self._index is None else (self._index.name, self._index.read_bytes())
        return Checkpoint(self._path, entries, self._words, None, {}, left_out, tuple(self._shards), index)

    def _words(self, index: int, room: Room | None = None) -> np.ndarray:
        place = bisect.bisect_right(self._ends, index)
        if self._current is None or self._current[0] != place:
            self.close()
            shard = self._shards[place]
            opened = self._open.enter_context(open_checkpoint(self._path / shard.file))
            if opened.header != shard.header:
                raise DataError(f"{self._path / shard.file}: the file was changed while it was read")
            self._current = place, opened
        first = self._ends[place - 1] if place else 0
        return self._current[1].words(index - first, room)

    def close(self) -> None:
        """Close the file that is open."""
        self._open.close()
        self._current = None


def _hidden(name: str) -> bool:
    return name.startswith(".")


def _index_of(folder: Path) -> Path | None:
    """The index of a folder, if it has one."""
    found = sorted(path for path in folder.iterdir() if path.name.endswith(INDEX) and not _hidden(path.name))
    if len(found) > 1:
        raise DataError(
            f"{folder}: expected one index, found {found[0].name!r} and {found[1].name!r}; move the checkpoint that is "
            "not meant to another folder"
        )
    if found and not found[0].is_file():
        raise DataError(f"{found[0]}: expected a file, found something else; fetch the checkpoint again")
    if found and found[0].stat().st_size > MOST_HEADER:
        raise DataError(f"{found[0]}: an index of more than {MOST_HEADER:,} bytes is not read")
    return found[0] if found else None


def _names_in(folder: Path, index: Path | None) -> list[str]:
    """The safetensors files of a checkpoint, in the order of their names; each of them exists."""
    if index is None:
        names = sorted(path.name for path in folder.glob(f"*{_ENDING}") if not _hidden(path.name))
        if len(names) != 1:
            raise DataError(
                f"{folder}: expected an index (*{INDEX}) or exactly one {_ENDING} file, found {len(names)} files "
                "and no index; name the file to read instead"
            )
    else:
        names = sorted(set(_weight_map(index.read_bytes(), str(index), DataError).values()))
    _check_names(names, str(index or folder), DataError)
    for name in names:
        if not (folder / name).is_file():
            raise DataError(
                f"{index or folder}: names the file {name!r}, which is not in the folder; fetch it, or the whole "
                "checkpoint again"
            )
    return names


def _check_names(names: Sequence[str], where: str, error: type[SecateurError]) -> None:
    """Raise unless every name is that of a safetensors file in this very folder, and no two may be one file."""
    for name in names:
        plain = name.isprintable() and not set(name) & set('/\\:<>"|?*') and not _hidden(name)
        if not plain or not name.endswith(_ENDING) or len(name) > _MOST_NAME:
            raise error(
                f"{where}: names the file {name[:80]!r}; expected the plain name of a {_ENDING} file in its own folder"
            )
    if len(names) > _MOST_SHARDS or not names:
        raise error(f"{where}: names {len(names):,} files; expected 1 to {_MOST_SHARDS:,}")
    if len({name.casefold() for name in names}) != len(names):
        raise error(f"{where}: two of its files have the same name but for capitals; rename one of them")


def _weight_map(raw: bytes, where: str, error: type[SecateurError]) -> Mapping[str, str]:
    """Which file holds which tensor, as an index says."""
    parsed = parse(raw, where, error)  # checks its size before a second look
    try:
        json.loads(raw, object_pairs_hook=_each_key_once)
    except ValueError as reason:
        raise error(f"{where}: {reason}") from None
    found = texts_of(parsed.get("weight_map")) if isinstance(parsed, dict) else None
    if not found:
        raise error(
            f"{where}: expected an index, a JSON object whose 'weight_map' gives each tensor its file"
        )
    return found


def _each_key_once(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise ValueError(f"the key {name[:80]!r} comes twice")
        seen.add(name)
    return dict(pairs)


def _check_index(raw: bytes, shards: Sequence[Shard], where: str, error: type[SecateurError]) -> None:
    """Raise unless an index says of every tensor, and of no other, which file holds it."""
    told = dict(_weight_map(raw, where, error))
    for shard in shards:
        for entry in shard.entries:
            file = told.pop(entry.name, None)
            if file != shard.file:
                said = "does not name it, or another file has it too" if file is None else f"says {file!r}"
                raise error(
                    f"{where}: tensor {entry.name[:80]!r} lies in {shard.file!r}, but the index {said}; the index and "
                    "the files are not of one checkpoint"
                )
    if told:
        name, file = next(iter(told.items()))
        raise error(f"{where}: says that {file!r} holds tensor {name[:80]!r}, which it does not")


@dataclass(frozen=True)
class ShardLayout:
    """How the tensors of a .sct file lie in the files of a folder: the text `shards` of the file.

    Attributes:
        shards: The files, in the order of their tensors.
        index: The name of the index and its bytes, or None where one file needs no index.
    """

    shards: tuple[Shard, ...]
    index: tuple[str, bytes] | None

    def to_json(self) -> str:
        """The layout as JSON; a header that can be written again from the tensors is left out."""
        files: list[dict[str, object]] = []
        for shard in self.shards:
            plain = shard.header == canonical_header(list(shard.entries), shard.metadata)
            files.append(
                {"file": shard.file, "tensors": len(shard.entries)}
                | ({"metadata": dict(shard.metadata)} if plain else {"header": shard.header.decode()})
            )
        index = None if self.index is None else {"file": self.index[0], "text": self.index[1].decode()}
        return json.dumps({"files": files, "index": index}, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: bytes, entries: Sequence[Entry]) -> ShardLayout:
        """Read a layout, and check it against the tensors of its file.

        Args:
            text: The JSON text.
            entries: The tensors of the .sct file, in order.

        Raises:
            FormatError: The text is not a layout of these tensors.
        """
        where = "the layout of the shards"
        found = parse(text, where)
        files = found.get("files") if isinstance(found, dict) else None
        if not isinstance(found, dict) or not isinstance(files, list):
            raise FormatError(f"{where}: expected a JSON object with 'files' and 'index'")
        shards: list[Shard] = []
        at = 0
        for field in files:
            shard = _shard(field, entries, at, where)
            shards.append(shard)
            at += len(shard.entries)
        if at != len(entries):
            raise FormatError(f"{where}: gives {at} tensors a file, the file holds {len(entries)}")
        _check_names([shard.file for shard in shards], where, FormatError)
        index = texts_of(found.get("index")) if found.get("index") is not None else None
        if found.get("index") is None:
            return cls(tuple(shards), None)
        if index is None or set(index) != {"file", "text"}:
            raise FormatError(f"{where}: expected the index as a JSON object of 'file' and 'text'")
        name = index["file"]
        if not name.endswith(INDEX):
            raise FormatError(f"{where}: expected an index called *{INDEX}, got {name[:80]!r}")
        _check_names([name.removesuffix(INDEX) + _ENDING], where, FormatError)
        _check_index(index["text"].encode(), shards, where, FormatError)
        return cls(tuple(shards), (name, index["text"].encode()))


def _shard(field: Json, entries: Sequence[Entry], first: int, where: str) -> Shard:
    """One file of a layout; its tensors begin at number `first`."""
    if not isinstance(field, dict) or not isinstance(field.get("file"), str):
        raise FormatError(f"{where}: expected a JSON object with 'file' and 'tensors' for every file")
    count, name = field.get("tensors"), str(field["file"])
    if not isinstance(count, int) or not is_count(count, len(entries) - first):
        raise FormatError(
            f"{where}: file {name[:80]!r} claims {count!r} tensors, {len(entries) - first} are left for it"
        )
    mine = tuple(entries[first : first + count])
    if "header" not in field:
        metadata = texts_of(field.get("metadata"))
        if metadata is None:
            raise FormatError(f"{where}: the metadata of {name[:80]!r} is not a JSON object of texts")
        return Shard(name, canonical_header(list(mine), metadata), mine, metadata)
    header = str(field["header"]).encode()
    claimed, metadata = read_header(header, where, FormatError)
    at = 0
    for entry in mine:
        if claimed.pop(entry.name, None) != (entry.dtype, entry.shape, at, at + entry.nbytes):
            raise FormatError(f"{where}: the header of {name[:80]!r} does not fit tensor {entry.name!r}")
        at += entry.nbytes
    if claimed:
        raise FormatError(f"{where}: the header of {name[:80]!r} names tensors it does not hold")
    return Shard(name, header, mine, metadata)


def check_place(path: Path) -> None:
    """Raise unless a folder of this name can be made and written.

    Args:
        path: The folder. It must not exist, or be empty.

    Raises:
        OptionError: There is something under this name, or no folder to make it in.
    """
    check_new_folder(path)
    if not path.absolute().parent.is_dir():
        raise OptionError(f"{path}: there is no folder {path.absolute().parent}; create it first")


def check_no_shard(path: Path) -> None:
    """Raise if a file is a part of a checkpoint whose index lies beside it: written over, that model would be lost.

    Args:
        path: The file that is to be written.

    Raises:
        OptionError: An index names it.
    """
    if not path.is_file():
        return
    for index in sorted(path.absolute().parent.glob(f"*{INDEX}")):
        if not index.is_file() or index.stat().st_size > MOST_HEADER:
            continue
        try:
            named = set(_weight_map(index.read_bytes(), str(index), DataError).values())
        except DataError:  # no index of a checkpoint
            continue
        if path.name in named:
            raise OptionError(
                f"{path}: is one of the files of a checkpoint, as {index.name} says; writing it would damage that "
                "checkpoint; name a file in another folder"
            )

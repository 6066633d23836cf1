"""`save`: a model or a state dict as one .sct file, from which `loading` reads it back, bit for bit.

>>> import pathlib, tempfile, torch
>>> from torch import nn
>>> from secateur.container.loading import load
>>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
>>> fresh = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
>>> with tempfile.TemporaryDirectory() as folder:
...     saved = save(model, pathlib.Path(folder) / "m.sct")
...     state = load(pathlib.Path(folder) / "m.sct")
...     again = load(pathlib.Path(folder) / "m.sct", into=fresh)
>>> list(state) == list(model.state_dict()), torch.equal(again[2].weight, model[2].weight), saved.size > 0
(True, True, True)
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from secateur.coding import static, varint
from secateur.container import batch_norm as bn
from secateur.container import codebooks, int8_weights, slices, tensors
from secateur.container import format as sct
from secateur.container.archive_checks import check_books, check_masks, read_plan
from secateur.container.arrays import entry_of, to_words
from secateur.container.compact_writer import CompactWriter, compact_enough
from secateur.container.save_options import SaveOptions, check_names
from secateur.container.scalar_rounding import RoundedScalars, round_books, round_scalars
from secateur.container.writer import Writer
from secateur.core.atomic_files import atomic_open
from secateur.core.codebook import Codebook
from secateur.core.cut_mark import warn_of_plan
from secateur.core.file_endings import check_ending
from secateur.core.model_kinds import HasModel, plain_model
from secateur.errors import (
    NothingToDoError,
    OptionError,
)
from secateur.execution.verb import verb

if TYPE_CHECKING:
    pass

__all__ = ["PlanLike", "SavedFile", "Shareable", "save"]

State = Mapping[str, torch.Tensor]


@runtime_checkable
class HasCodebooks(Protocol):
    """The result of `sc.share`: a value with codebooks by tensor name."""

    @property
    def codebooks(self) -> Mapping[str, Codebook]:
        """The codebook of every shared tensor."""
        ...


@runtime_checkable
class HasJson(Protocol):
    """A value that can be written as JSON, such as a shrink plan."""

    def to_json(self) -> str:
        """The value as JSON text."""
        ...


Shareable = HasCodebooks | Mapping[str, Codebook]
PlanLike = str | HasJson


@dataclass(frozen=True)
class SavedFile:
    """The result of `save`: the file, its bytes, and the bytes its tensors take in memory."""

    path: Path
    size: int
    dense: int

    @property
    def ratio(self) -> float:
        """Bytes of the tensors over bytes of the file."""
        return self.dense / self.size

    def __str__(self) -> str:
        less = f"{self.ratio:.2f} times fewer than" if self.size < self.dense else "not fewer than"
        return f"{self.path}: {self.size:,} bytes, {less} the {self.dense:,} of its tensors"


@verb
def save(
    model: nn.Module | State | HasModel,
    path: str | os.PathLike[str],
    shared: Shareable | None = None,
    *,
    masks: Mapping[str, torch.Tensor] | None = None,
    plan: PlanLike | None = None,
    names: Literal["file", "model"] = "file",
    options: SaveOptions | None = None,
) -> SavedFile:
    """Write a model or a state dict as one file; without options every tensor comes back bit for bit.

    Tensors of few distinct values are found and stored as indices, pruned ones without their zeros.

    Args:
        model: A model, or a state dict with at least one tensor; or the result of `shrink`, `factorise` or `share`,
            whose plan, or codebooks, are taken where none are given.
        path: The file to write. It appears under this name only once it is complete.
        shared: The result of `sc.share`, or codebooks by tensor name. A weight that is not one of its codebook's
            values is an error.
        masks: Masks by parameter name. A weight that a mask removes and that is not zero is an error.
        plan: The shrink plan that `load` applies to a freshly built model: JSON text, or a value with `to_json()`.
        names: `"file"` writes names and shapes; `"model"` leaves them out, and such a file can only be loaded
            `into=` the model it came from.
        options: What to round or fold; see `SaveOptions`.

    Returns:
        Where the file is, how many bytes it has, and how many its tensors take in memory.

    Raises:
        NothingToDoError: There is no tensor to save, or nothing of the kind an option rounds.
        OptionError: A tensor cannot be stored, a codebook does not fit its tensor, or the name has the ending of
            another format.
        MaskMismatchError: A mask does not fit its tensor.
    """
    options = options or SaveOptions()
    check_names(names)
    check_ending(path, "save writes a .sct file", ".sct")
    model, shared, plan = _taken_apart(model, shared, plan)
    module = plain_model(model, refuse=False) if isinstance(model, nn.Module) else None
    source: State = int8_weights.plain_state(module) if module is not None else model  # type: ignore[assignment]
    state = {name: value for name, value in source.items() if isinstance(value, torch.Tensor)}
    if not state:
        raise NothingToDoError("there is no tensor to save: expected a model or a state dict with tensors")
    books = dict(shared.codebooks if isinstance(shared, HasCodebooks) else shared or {})
    check_books(state, books)
    check_masks(state, masks)
    integers = _integers(module, state, books, options, names)
    content = _Content.of(int8_weights.with_integers(state, integers), module, books, options)
    text = None if plan is None else _plan_text(plan)
    if module is not None and (text is not None or names == "file"):
        given = None if text is None else read_plan(text.encode())
        shapes, layers = (None, None) if given is None else (given.shapes, given.layers)
        warn_of_plan(module, shapes, path, layers)
    widths = _widths(text, module) if names == "model" else None
    sct.check_entries(content.entries)
    with atomic_open(path) as file:
        writer = _writer(file, content, text, widths, described=names == "model")
        if integers and isinstance(writer, Writer):
            writer.text(int8_weights.TEXT, tensors.text(int8_weights.described(integers).encode()))
        _write_tensors(writer, content, options)
        writer.finish()
    dense = sum(value.nbytes for value in state.values()) if integers else content.dense
    return SavedFile(Path(path), writer.written, dense)


def _taken_apart(
    model: nn.Module | State | HasModel, shared: Shareable | None, plan: PlanLike | None
) -> tuple[nn.Module | State, Shareable | None, PlanLike | None]:
    """The model of a result, with the codebooks and the plan of that result where none were given."""
    if isinstance(model, nn.Module | Mapping):
        return model, shared, plan
    if not isinstance(model, HasModel):
        raise OptionError(
            f"model: expected a model, a state dict, or the result of shrink or share, got {type(model).__name__}"
        )
    if shared is None and isinstance(model, HasCodebooks):
        shared = model
    own = getattr(model, "plan", None)
    return model.model, shared, own if plan is None and isinstance(own, HasJson) else plan


def _integers(
    module: nn.Module | None, state: State, books: Mapping[str, Codebook], options: SaveOptions, names: str
) -> dict[str, int8_weights.Int8Weight]:
    """The weights that are written as integers."""
    if module is None:
        if options.int8:
            raise OptionError(
                "int8: expected a model, whose layers say which weights to round; got a state dict"
            )
        return {}
    found = int8_weights.integers_of(module, state, options.int8)
    if found and names == "model":
        raise OptionError("names: an INT8 file says itself what it holds: expected 'file', got 'model'")
    both = [name for name in books if name in found]
    if both:
        raise OptionError(
            f"int8: {both[0]!r} has a codebook already, which is smaller; leave int8 or shared out"
        )
    return found


def _writer(
    file: BinaryIO, content: _Content, text: str | None, widths: bytes | None, *, described: bool
) -> Writer | CompactWriter:
    """The writer of a file, all before its tensors written: a compact one, where a model describes a small content.

    Args:
        file: Where to write.
        content: The content.
        text: The plan.
        widths: The widths that stand for the plan.
        described: Whether names and shapes come from the model that the file is loaded into.
    """
    entries = content.entries if described else None
    lanes = content.rounded.lanes
    if entries and (text is None or widths is not None) and compact_enough(entries):
        compact = CompactWriter(file, entries, folded=content.left_out, widths=widths)
        if lanes is not None:
            compact.lanes(lanes)
        return compact
    writer = Writer(file, entries, folded=content.left_out, widths=widths)
    if text is not None and widths is None:
        writer.text("plan", tensors.text(text.encode()))
    if lanes is not None:
        short = widths is not None
        writer.numbers(lanes.payload(short), 4 if short else 2)
    return writer


@dataclass(frozen=True)
class _Content:
    """The content of a file, after folding and rounding."""

    state: State
    books: Mapping[str, Codebook]
    folded: State  # the tensors of batch norm, in their folded form
    rounded: RoundedScalars
    left_out: bool  # whether the statistics of batch norm are left to the reader
    dense: int  # bytes of all tensors in memory
    entries: list[sct.Entry]

    @classmethod
    def of(
        cls, state: State, module: nn.Module | None, books: Mapping[str, Codebook], options: SaveOptions
    ) -> _Content:
        """Fold and round as the options say."""
        folded = bn.fold(state, module) if options.batch_norm is not None else {}
        dense = sum(entry_of(name, value).nbytes for name, value in state.items())
        rounded = round_scalars(state, folded, options.norm_bits, options.biases)
        left_out = options.norm_bits is not None and bn.usual(state, module)
        if left_out:
            state = {name: value for name, value in state.items() if name not in bn.statistics(folded)}
        if options.codebook_bits is not None:
            state, books = round_books(state, books, options.codebook_bits)
        entries = [entry_of(name, value) for name, value in state.items()]
        return cls(state, books, folded, rounded, left_out, dense, entries)


def _write_tensors(writer: Writer | CompactWriter, content: _Content, options: SaveOptions) -> None:
    """Write every tensor; one that shares its memory with an earlier one refers to it."""
    first_at: dict[tuple[object, ...], int] = {}
    for index, (name, value) in enumerate(content.state.items()):
        memory = (value.data_ptr(), value.dtype, tuple(value.shape), tuple(value.stride()))
        entry, words = to_words(name, content.folded.get(name, value))
        if name not in content.folded and value.numel():
            if memory in first_at:
                writer.add(entry, words.tobytes(), sct.SAME, [varint.write(index - first_at[memory])])
                continue
            first_at[memory] = index
        method, parts, words = _encode(entry, words, content, options, writer)
        writer.add(entry, words.tobytes(), method, parts)


def _encode(
    entry: sct.Entry,
    words: np.ndarray,
    content: _Content,
    options: SaveOptions,
    writer: Writer | CompactWriter,
) -> tuple[int, list[bytes], np.ndarray]:
    """How one tensor is stored, and the words a reader will get (others where precision was reduced)."""
    rounded, memory = content.rounded, writer.memory
    if entry.name in rounded.words:
        return sct.DRAWN + rounded.lane[entry.name], [], rounded.words[entry.name].reshape(entry.shape)
    if isinstance(writer, Writer):
        sliced = _in_slices(entry, words, content.books.get(entry.name))
        if sliced is not None:
            return *slices.in_slices(entry, sliced, options.coder, memory), words
    if entry.name in content.books:
        few = codebooks.few_levels(words, entry, most=1 << 16)
        if few is not None:
            return *tensors.indexed(entry, *few, options.coder, memory), words
    method, parts = tensors.encode(entry, words, options.coder, memory)
    if entry.dtype != "F32" or method in (sct.ZERO, sct.CONST):
        return method, parts, words
    in_norm = entry.name in content.folded
    narrow = options.narrow_norm if in_norm else options.narrow if method != sct.INDEXED else None
    if narrow:
        return tensors.cast(entry, words, narrow)
    return method, parts, words


def _in_slices(entry: sct.Entry, words: np.ndarray, book: Codebook | None) -> slices.Slices | None:
    """The tensor as slices with few values each, where it has more of them as a whole and that is smaller."""
    axis = 0 if book is None or book.axis is None else book.axis
    few = codebooks.levels_of(words, entry)
    if few is not None and len(few[0]) <= slices.MOST_VALUES and (book is None or book.axis is None):
        return None
    found = slices.few_in_slices(words.reshape(entry.shape), entry, axis)
    if found is None or found.guess() * 2 > entry.nbytes:
        return None
    few = few or codebooks.levels_of(words, entry, most=1 << 16)
    whole = math.inf if few is None else static.entropy(few[1]) * entry.numel / 8 + few[0].nbytes / 2
    return found if found.guess() < whole else None


def _widths(text: str | None, module: nn.Module | None) -> bytes | None:
    """The plan as widths, where these hold all of it."""
    if text is None or module is None:
        return None
    from secateur.structure.cut.kept_widths import encode_widths

    return encode_widths(read_plan(text.encode()), module)


def _plan_text(plan: PlanLike) -> str:
    """The plan as text that `load` can read."""
    if not isinstance(plan, (str, HasJson)):
        raise OptionError(f"plan: expected JSON text or a value with to_json(), got {type(plan).__name__}")
    text = plan if isinstance(plan, str) else plan.to_json()
    read_plan(text.encode("utf-8", "surrogatepass"))
    return text

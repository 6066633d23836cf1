"""`load`, `load_int8`: the tensors of a .sct file, or a model with them in it, bit for bit what `save` was given.

>>> import pathlib, tempfile
>>> from secateur.container.archive import save
>>> model, fresh = nn.Linear(8, 4), nn.Linear(8, 4)
>>> with tempfile.TemporaryDirectory() as folder:
...     saved = save(model, pathlib.Path(folder) / "m.sct")
...     again = load(saved.path, into=fresh)
>>> again is fresh, torch.equal(again.weight, model.weight)
(True, True)
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, overload

import torch
from torch import nn

from secateur.container import batch_norm as bn
from secateur.container import format as sct
from secateur.container import int8_weights, tensors
from secateur.container.archive_checks import check_target, read_plan, wrapper_of
from secateur.container.arrays import entry_of, to_tensor
from secateur.container.frame import Archive
from secateur.container.opened import opened
from secateur.container.reading import words_of
from secateur.container.scalar_rounding import SCALES
from secateur.core.interrupts import uninterrupted
from secateur.core.model_kinds import unwrapped
from secateur.errors import FormatError, NothingToDoError
from secateur.execution.verb import verb

if TYPE_CHECKING:
    from secateur.structure.cut.plan import ShrinkPlan

__all__ = ["entries_of", "load", "load_int8", "plan_in"]

State = Mapping[str, torch.Tensor]


@overload
def load(
    path: str | os.PathLike[str], into: None = None, max_bytes: int | None = None
) -> dict[str, torch.Tensor]: ...
@overload
def load(path: str | os.PathLike[str], into: nn.Module, max_bytes: int | None = None) -> nn.Module: ...
@verb
def load(
    path: str | os.PathLike[str], into: nn.Module | None = None, max_bytes: int | None = None
) -> dict[str, torch.Tensor] | nn.Module:
    """The state dict of a file, or the model `into` with the file's tensors in it.

    A file that holds a shrink plan is loaded into a freshly built model of the original class: the plan is applied
    first. The model is changed only after every byte of the file has been decoded and checked. INT8 weights come as
    floats, unless the model's layers are torch's quantised ones.

    Args:
        path: The .sct file. It need not be trusted: see docs/SECURITY.md.
        into: The model to load into; names, shapes and dtypes must be those of the file.
        max_bytes: The most bytes of decoded tensors to accept from the file. By default 64 MiB and eight times its
            size, or as many as the tensors of `into` have.

    Returns:
        The tensors by name, or the model `into`.

    Raises:
        FormatError: The file is not a valid .sct file, or asks for more memory than allowed.
        PlanError: Its plan does not fit the model.
        DataError: Its tensors do not fit the model.
    """
    given, into = into, None if into is None else unwrapped(into)
    if into is None:
        with opened(path) as file:
            archive = Archive(file, max_bytes=max_bytes)
            if not archive.named:
                raise FormatError(
                    f"{path}: the file leaves its names to the model it was saved from; load it with "
                    f"into=that model"
                )
            weights = _listed(archive)
            archive.check_total(3 * sum(r.entry.numel for r in archive.heads if r.entry.name in weights))
            return _read_state(archive, weights)[0]
    plan, state, integers = _read_into(path, into, max_bytes)
    _fill(into, plan, state, integers)
    return into if given is None else given


@verb
def load_int8(path: str | os.PathLike[str], into: nn.Module, max_bytes: int | None = None) -> nn.Module:
    """A model with torch's own INT8 layers, from a file whose weights are INT8.

    Linear layers and convolutions whose weights the file holds as integers become those of
    `torch.ao.nn.quantized.dynamic`, with the file's integers, scales and zero points; activations are rounded in every
    call. What torch has no such layer for stays in floats.

    Args:
        path: The .sct file, written with `SaveOptions(int8=True)` or from a model that torch quantised.
        into: A float model as it was saved from; it is not changed.
        max_bytes: The most bytes of decoded tensors to accept from the file; see `load`.

    Returns:
        The new model, on the CPU and in evaluation mode.

    Raises:
        NothingToDoError: The file holds no INT8 weight.
        FormatError: The file is not a valid .sct file, or asks for more memory than allowed.
        DataError: Its tensors do not fit the model.
    """
    made = copy.deepcopy(unwrapped(into)).cpu()
    plan, state, integers = _read_into(path, made, max_bytes)
    if not integers:
        raise NothingToDoError(
            f"{path}: the file holds no INT8 weight; write it with save(..., options=SaveOptions(int8=True)), "
            "or read it with load"
        )
    _fill(made, plan, state, integers)
    return int8_weights.with_torch_layers(made, integers).eval()


def plan_in(path: str | os.PathLike[str], into: nn.Module) -> ShrinkPlan | None:
    """The plan of the model that a file holds; None where the model was not cut.

    Args:
        path: The .sct file.
        into: A freshly built model; it is not changed.

    Raises:
        FormatError: The file is not a valid .sct file.
        PlanError: Its plan does not fit the model.
    """
    with opened(path) as file:
        return _target(Archive(file), unwrapped(into))[0]


def _read_into(
    path: str | os.PathLike[str], into: nn.Module, max_bytes: int | None
) -> tuple[ShrinkPlan | None, State, dict[str, int8_weights.Int8Weight]]:
    """The plan of a file, its tensors (as floats) and its INT8 weights, checked against a model."""
    with opened(path) as file:
        archive = Archive(file, max_bytes=max_bytes)
        plan, target = _target(archive, into)
        if not archive.named:
            archive = Archive(file, _entries(archive, target), max_bytes)
        archive.allow(sum(value.nbytes for value in target.values()))
        weights = _listed(archive)
        wrapper = "" if weights else wrapper_of(archive, target)
        check_target(path, archive, {wrapper + name: value for name, value in target.items()}, weights)
        state, integers = _read_state(archive, weights)
    state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return plan, {name: value for name, value in state.items() if name in target}, integers


def _listed(archive: Archive) -> Mapping[str, int | None]:
    """The INT8 weights that a file lists; none where it has no such list."""
    if int8_weights.TEXT not in archive.texts:
        return {}
    if not archive.named:
        raise FormatError("the file lists INT8 weights and has no names")
    text = tensors.read_text(
        archive.texts[int8_weights.TEXT], "the list of INT8 weights", archive.limits.text
    )
    return int8_weights.listed(text, {record.entry.name: record.entry for record in archive.heads})


def _read_state(
    archive: Archive, weights: Mapping[str, int | None]
) -> tuple[dict[str, torch.Tensor], dict[str, int8_weights.Int8Weight]]:
    """Every tensor of the file, INT8 weights as floats; and these as they are."""
    state = _state(archive)
    order = [name for name in state if name not in int8_weights.parts_of(weights)]
    integers = int8_weights.from_file(state, weights)
    return {name: integers[name].floats() if name in integers else state[name] for name in order}, integers


@uninterrupted
def _fill(
    into: nn.Module, plan: ShrinkPlan | None, state: State, integers: Mapping[str, int8_weights.Int8Weight]
) -> None:
    """Change the model; Ctrl-C waits until all of it is changed."""
    if plan is not None:
        plan.apply_(into)
    if int8_weights.has_torch_layers(into):
        int8_weights.fill_quantised(into, state, integers)
    else:
        into.load_state_dict(state, strict=False)


def entries_of(archive: Archive, model: nn.Module) -> list[sct.Entry]:
    """Names, types and shapes of the tensors of a file that leaves them to the model it was saved from."""
    return _entries(archive, _target(archive, model)[1])


def _target(archive: Archive, into: nn.Module) -> tuple[ShrinkPlan | None, State]:
    """The plan the file holds, and the tensors of the model once it is applied."""
    plan = None
    if "plan" in archive.texts:
        text = tensors.read_text(archive.texts["plan"], "the shrink plan", archive.limits.text)
        plan = read_plan(text)
    if archive.widths is not None:
        from secateur.structure.cut.kept_widths import plan_of_widths

        if plan is not None:
            raise FormatError("the file holds both a shrink plan and widths; expected one of them")
        plan = plan_of_widths(archive.widths, into)
    # The plan is tried on a copy: the model is changed only when nothing can fail any more.
    shape = into if plan is None else plan.apply_(copy.deepcopy(into))
    return plan, int8_weights.plain_state(shape)


def _entries(archive: Archive, target: State) -> list[sct.Entry]:
    left_out = bn.statistics(target) if archive.folded else set()
    return [entry_of(name, value) for name, value in target.items() if name not in left_out]


def _state(archive: Archive) -> dict[str, torch.Tensor]:
    """Every tensor of the file, and the batch-norm statistics that a folded file leaves out."""
    state: dict[str, torch.Tensor] = {}
    for record, words in words_of(archive):
        name, value = record.entry.name, to_tensor(record.entry, words)
        state[name] = value
        if archive.folded and record.method == sct.DRAWN + SCALES:
            prefix = name.removesuffix("weight")
            state |= {prefix + part: one for part, one in bn.restored(value).items()}
    return state

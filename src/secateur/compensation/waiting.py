"""`WaitingTensors`: what waiting passes hold, in memory up to a limit and beyond it in temporary files.

All batches wait at the same layer while it is solved, and each holds the tensors that the rest of its forward pass
needs. Their bytes grow with the data. Beyond the limit the bytes of a waiting tensor are written to a file that is
mapped into memory, and the tensor itself is pointed there: the operating system reads what is needed, and gives the
memory back where it is short. Values, shapes and strides stay, so that nothing has to know of it.

Only tensors on the processor that the pass has made are moved; parameters, buffers and inputs are not.

>>> value = torch.arange(600.0)
>>> move_to_file([value], Path(tempfile.mkdtemp()))
2400
>>> value.sum(), value.untyped_storage().filename is not None
(tensor(179700.), True)
"""

from __future__ import annotations

import ctypes
import os
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from secateur.core.nested import map_tensors, tensors_in
from secateur.errors import DataError
from secateur.execution.example import Batch

__all__ = ["WAITING_BYTES", "Made", "WaitingTensors", "move_to_file", "trim"]

WAITING_BYTES = 1 << 30
"""Bytes of waiting tensors that stay in memory."""
_INPUTS = 1 << 27
"""Bytes of inputs that stay in memory where nobody else holds them: each is needed when its pass begins, not while it
waits."""
_SMALL = 1024
"""Bytes up to which a tensor is not worth a place in a file."""
_WORTH = 1 << 27
"""Bytes of waiting tensors from which on freed memory is given back after every layer."""
_GROWN = 1 << 28
"""Bytes by which the memory of the process may grow, since memory was given back, before freed memory is again."""
_ALIGNED = 64
"""Bytes to which places in a file are aligned: as torch aligns memory, so that sums are made in the same order."""


class Made:
    """The tensors that one pass has made and that are still alive.

    A tensor that a function gets and that no function of the pass has given comes from outside: a parameter, an input,
    a constant of the model. What shares its memory is left out.
    """

    def __init__(self) -> None:
        self._made: dict[int, weakref.ref[torch.Tensor]] = {}
        self._outside: set[int] = set()

    def note(self, given: object, result: object) -> None:
        """Count a function's arguments and results in."""
        for tensor in tensors_in(given):
            if not self._holds(tensor):
                self._outside.add(_address(tensor))
        for tensor in tensors_in(result):
            if not self._holds(tensor):
                self._made[id(tensor)] = weakref.ref(tensor)

    def _holds(self, tensor: torch.Tensor) -> bool:
        """Whether a function of the pass has given this very tensor."""
        known = self._made.get(id(tensor))
        return known is not None and known() is tensor

    def in_memory(self) -> list[torch.Tensor]:
        """Those that could be moved: alive, on the processor, not in a file yet, and of the pass alone."""
        alive = {key: tensor for key, known in self._made.items() if (tensor := known()) is not None}
        self._made = {key: self._made[key] for key in alive}
        found = [tensor for tensor in alive.values() if _movable(tensor)]
        return [tensor for tensor in found if _address(tensor) not in self._outside]


class WaitingTensors:
    """Counts what passes hold while they wait, and moves it to files beyond `WAITING_BYTES`; a context manager.

    Leaving the context removes the folder of the files. What still lives keeps its bytes.
    """

    def __init__(self) -> None:
        self._held: dict[int, int] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._least: int | None = None  # bytes of the process, the least since memory was given back

    def paused(self, key: int, made: Made) -> None:
        """A pass waits: what it holds stays in memory while all passes hold no more than the limit."""
        tensors = made.in_memory()
        self._held[key] = 0
        size = _bytes(tensors)
        if sum(self._held.values()) + size <= WAITING_BYTES:
            self._held[key] = size
        else:
            move_to_file(tensors, self._place())
        self._give_back_what_grew()

    def _give_back_what_grew(self) -> None:
        """Give freed memory back within a layer, too, where the process has grown much since that was last done."""
        now = anonymous_bytes()
        if now is None:
            return
        if self._least is not None and now > self._least + _GROWN:
            trim()
            self._least = anonymous_bytes()
        elif self._least is None or now < self._least:
            self._least = now

    def kept(self, batch: Batch) -> Batch:
        """A batch that nobody else holds, in memory or in a file; the batch given stays as it is."""
        tensors = [tensor for tensor in tensors_in([*batch.args, batch.kwargs]) if _movable(tensor)]
        size = _bytes(tensors)
        # where a file that is in use cannot be deleted, inputs would leave theirs behind
        if sum(self._held.values()) + size <= min(_INPUTS, WAITING_BYTES) or os.name != "posix":
            self._held[id(batch)] = size
            return batch
        args, kwargs = map_tensors(lambda tensor: tensor.detach(), (batch.args, batch.kwargs))
        move_to_file([tensor for tensor in tensors_in([*args, kwargs]) if _movable(tensor)], self._place())
        return Batch(args, kwargs, batch.targets, batch.size, batch.valid)

    def layer_done(self) -> None:
        """Give freed memory back to the system, where passes hold much: every pass is a thread, and the C library keeps
        what each has freed for that thread alone.
        """
        if sum(self._held.values()) >= _WORTH:
            trim()

    def _place(self) -> Path:
        """The folder, made when it is first needed."""
        if self._folder is None:
            try:
                self._folder = tempfile.TemporaryDirectory(
                    prefix="secateur-waiting-", ignore_cleanup_errors=True
                )
            except OSError as error:
                raise _unwritten(Path(tempfile.gettempdir()), error) from error
        return Path(self._folder.name)

    def __enter__(self) -> WaitingTensors:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()


def anonymous_bytes() -> int | None:
    """The memory of the process that is no file's, as Linux tells it; None elsewhere."""
    try:
        resident, shared = Path("/proc/self/statm").read_text(encoding="ascii").split()[1:3]
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def trim() -> bool:
    """Give freed memory back to the system; False where the C library has no such function, as on macOS and Windows."""
    try:
        give_back = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # glibc has it; Windows has no library of this name at all
        return False
    give_back(ctypes.c_size_t(0))
    return True


def move_to_file(tensors: Sequence[torch.Tensor], folder: Path) -> int:
    """Write the memory of these tensors to a new file in `folder` and point them there; returns the bytes.

    Tensors that share memory still share it. The file has no name any more where the system allows that, and goes with
    the last tensor.

    Raises:
        DataError: where the file cannot be written.
    """
    by_address: dict[int, list[torch.Tensor]] = {}
    for tensor in tensors:
        by_address.setdefault(_address(tensor), []).append(tensor)
    if not by_address:
        return 0
    places: dict[int, int] = {}
    path = Path(folder) / f"{os.urandom(8).hex()}.waiting"
    try:
        with path.open("xb") as file:
            for address, sharing in by_address.items():
                file.write(b"\0" * (-file.tell() % _ALIGNED))
                places[address] = file.tell()
                storage = sharing[0].untyped_storage()
                file.write(torch.empty(0, dtype=torch.uint8).set_(storage).numpy().data)
            total = file.tell()
        mapped: Any = torch.UntypedStorage.from_file(str(path), True, total)
    except (OSError, RuntimeError) as error:
        path.unlink(missing_ok=True)
        raise _unwritten(folder, error) from error
    if os.name == "posix":
        path.unlink()
    for address, sharing in by_address.items():
        for tensor in sharing:
            start = places[address] // tensor.element_size() + tensor.storage_offset()
            tensor.set_(mapped, start, tensor.shape, tensor.stride())
    return total


def _unwritten(folder: Path, error: Exception) -> DataError:
    return DataError(
        f"waiting activations could not be written to {folder}: {error}; set TMPDIR to a folder on a disk with more "
        "room, or give fewer inputs"
    )


def _address(tensor: torch.Tensor) -> int:
    """What tells a tensor's memory from that of others."""
    if tensor.layout != torch.strided:
        return 0
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # a tensor without memory, such as one of a subclass
        return 0


def _movable(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a plain one whose memory is its own and not in a file."""
    if type(tensor) is not torch.Tensor or tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    if tensor.is_inference() or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        return False
    storage = tensor.untyped_storage()
    return storage.nbytes() > _SMALL and storage.filename is None


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    """The bytes of the memory of tensors, what is shared counted once."""
    return sum({_address(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())

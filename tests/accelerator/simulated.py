"""A simulated accelerator: tensors that say they live on device `sim`, compute on the CPU, and count transfers.

Made of PyTorch's own extension point for back ends. As on a GPU, an operator that gets tensors of two devices is an
error, unless one of them is a number (a CPU tensor without axes). What moves data or makes the processor wait is
counted: `sent` and `fetched` are copies that the code asks for by `.to`, `.cpu` or `copy_`; `hidden` are those that it
causes without saying so: a value read (`item`, `float`, `bool`), a comparison of whole tensors, the places where a mask
is true.
"""

from __future__ import annotations

import functools
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
SYNCHRONISING = {
    aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default,
    aten.is_nonzero.default, aten.unique_consecutive.default, aten._unique2.default, aten._unique.default,
    aten.unique_dim.default, aten.bincount.default, aten.repeat_interleave.Tensor,
}  # fmt: skip
COPIES = {
    aten.copy_.default,
    aten._to_copy.default,
    aten._copy_from.default,
    aten._copy_from_and_resize.default,
}
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


class Transfers:
    """What moved between the simulated device and the CPU."""

    def __init__(self) -> None:
        self.sent = self.fetched = self.hidden = 0
        self.places: Counter[str] = Counter()

    def reset(self) -> None:
        """Count from nothing."""
        self.__init__()  # type: ignore[misc]

    def note(self, func: Any) -> None:
        """A hidden transfer, and the line of the package that caused it."""
        self.hidden += 1
        frames = [f for f in traceback.extract_stack() if "secateur/" in f.filename]
        place = (
            f"{frames[-1].filename.rpartition('secateur/')[2]}:{frames[-1].lineno}" if frames else "elsewhere"
        )
        self.places[f"{place} {func}"] += 1


TRANSFERS = Transfers()


class SimTensor(torch.Tensor):
    """A tensor that says it lives on `sim:0`; `raw` holds its numbers."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> SimTensor:
        made: SimTensor = torch.Tensor._make_wrapper_subclass(
            cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype,
            layout=raw.layout, device=torch.device("sim:0"), requires_grad=False,
        )  # fmt: skip
        made.raw = raw
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def data_ptr(self) -> int:
        """Where the numbers are."""
        return self.raw.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        """What holds them."""
        return self.raw.untyped_storage()

    def tolist(self) -> Any:
        """The numbers, fetched one after the other as a GPU's are."""
        TRANSFERS.note("tolist")
        return self.raw.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """An error, as on a GPU."""
        if force:
            return self.raw.detach().numpy()
        raise TypeError("can't convert sim:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __deepcopy__(self, memo: dict[int, Any]) -> SimTensor:
        if id(self) not in memo:
            made = SimTensor(self.raw.detach().clone())
            if isinstance(self, torch.nn.Parameter):
                made = torch.nn.Parameter(made, self.requires_grad)
            else:
                made.requires_grad_(self.requires_grad)
            if self.grad is not None:
                made.grad = self.grad.__deepcopy__(memo)
            memo[id(self)] = made
        return memo[id(self)]  # type: ignore[return-value]

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """What PyTorch needs to exchange the tensors of a module when their type changes."""
        return ["raw"], None

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, torch.Tensor], context: None, size: Any, stride: Any
    ) -> SimTensor:
        return SimTensor(inner["raw"])

    def __repr__(self, **kwargs: Any) -> str:
        return f"sim({self.raw!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs or {})


def _device_in(kwargs: dict[str, Any]) -> torch.device | None:
    return torch.device(kwargs["device"]) if kwargs.get("device") is not None else None


def dispatched(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator on the numbers inside; what comes out is on the device, if the operator did not move it."""
    flat = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    _refuse_two_devices(func, args, flat)
    target = _device_in(kwargs)
    if func in SYNCHRONISING or (
        func in INDEXED
        and any(isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    ):
        TRANSFERS.note(func)
    unwrap = lambda each: each.raw if isinstance(each, SimTensor) else each  # noqa: E731
    if func is aten.copy_.default:
        to, source = args[0], args[1]
        if isinstance(to, SimTensor) and not isinstance(source, SimTensor):
            TRANSFERS.sent += 1
        if isinstance(source, SimTensor) and not isinstance(to, SimTensor):
            TRANSFERS.fetched += 1
        unwrap(to).copy_(unwrap(source))
        return to
    if target is not None and target.type == "sim":
        kwargs = {**kwargs, "device": torch.device("cpu")}
    out = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
    if func is aten._to_copy.default and target is not None and target.type != "sim":
        TRANSFERS.fetched += 1
        return out
    if target is not None and target.type not in ("sim", "cpu"):
        return out  # a meta tensor made like this one
    if target is not None and target.type == "cpu":
        return out
    wrapped = tree_map(lambda each: SimTensor(each) if isinstance(each, torch.Tensor) else each, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _refuse_two_devices(func: Any, args: Any, flat: list[torch.Tensor]) -> None:
    if func in COPIES:
        return
    others = [each for each in flat if not isinstance(each, SimTensor) and each.dim() > 0]
    if func in INDEXED:  # places may be named on the CPU: they are sent, without being asked
        named = {id(each) for each in args[1] if isinstance(each, torch.Tensor)}
        if any(id(each) in named for each in others):
            TRANSFERS.note(func)
        others = [each for each in others if id(each) not in named]
    if others:
        found = sorted({str(each.device) for each in others})
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found sim:0 and {', '.join(found)} in {func}"
        )


def _copy_from(source: Any, to: Any, non_blocking: bool = False) -> Any:
    """A copy to or from the device that PyTorch makes for itself, as in `new_tensor`."""
    TRANSFERS.sent += not isinstance(source, SimTensor)
    numbers, place = (each.raw if isinstance(each, SimTensor) else each for each in (source, to))
    place.copy_(numbers)
    return to


def _factory(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def kernel(*args: Any, **kwargs: Any) -> torch.Tensor:
        kwargs = {
            key: value for key, value in kwargs.items() if key not in ("device", "layout", "pin_memory")
        }
        return SimTensor(make(*args, **kwargs))

    return kernel


@functools.cache
def register() -> None:
    """Tell PyTorch of the device, once in a process."""
    from torch.utils import backend_registration

    class Backend(backend_registration._DummyBackendModule):
        """What PyTorch asks a device's module for."""

        def is_available(self) -> bool:
            return (
                False  # else DataParallel, in a later test of the process, takes it for the machine's device
            )

        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16, torch.float16]

        def _is_in_bad_fork(self) -> bool:
            return False

        def manual_seed_all(self, seed: int) -> None:
            pass

    backend_registration._setup_privateuseone_for_python_backend("sim", backend_module=Backend())
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty.memory_format", _factory(torch.ops.aten.empty.memory_format), "PrivateUse1")
    library.impl("empty_strided", _factory(torch.ops.aten.empty_strided.default), "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    register.library = library  # type: ignore[attr-defined]


def on_device(value: Any) -> Any:
    """A tensor, or all tensors inside lists and tables, on the device."""
    return tree_map(lambda each: each.to("sim") if isinstance(each, torch.Tensor) else each, value)

"""`is_out_of_memory`: whether an error says that the memory ran out, as Python, torch and CUDA each say it.

A function that takes any error for "this cannot be done" must not take this one for it: on a machine with more memory
it could, and the result would be another. `raise_if_out_of_memory` passes it on.

>>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
(True, False)
"""

from __future__ import annotations

__all__ = ["is_out_of_memory", "raise_if_out_of_memory"]

# What torch's RuntimeError says: of the processor's memory, on Linux and macOS, on Windows, and of a GPU.
_SAYINGS = ("can't allocate memory", "not enough memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory.

    Args:
        error: The error.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    True
    """
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAYINGS)


def raise_if_out_of_memory(error: BaseException) -> None:
    """Raise the error again if it says that there is no memory.

    Args:
        error: The error that was caught.

    Raises:
        BaseException: `error` itself.
    """
    if is_out_of_memory(error):
        raise error

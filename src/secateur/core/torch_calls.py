"""The types of a call that is intercepted: as a `TorchFunctionMode`, a `TorchDispatchMode` or a hook receives it.

Which values a call has depends on the function, so each of these is known to its reader alone.

>>> def counted(function: Function, args: Arguments, kwargs: Keywords) -> Result:
...     return function(*args, **kwargs)
>>> counted(max, (1, 2), {})
2
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

__all__ = ["Arguments", "Function", "Keywords", "Result"]

Function: TypeAlias = Callable[..., Any]
"""The function that is called."""
Arguments: TypeAlias = Sequence[Any]
"""Its arguments by position."""
Keywords: TypeAlias = Mapping[str, Any]
"""Its arguments by name."""
Result: TypeAlias = Any
"""What it returns."""

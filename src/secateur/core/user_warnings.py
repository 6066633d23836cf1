"""Warnings that point at the user's line, not at one of this package or of torch.

How many calls lie between changes with decorators and with the way a function was reached; `stacklevel` cannot say it.

>>> import warnings
>>> with warnings.catch_warnings(record=True) as caught:
...     warnings.simplefilter("always")
...     warn("half of the channels are alike")
>>> caught[0].category.__name__, str(caught[0].message)
('UserWarning', 'half of the channels are alike')
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from pathlib import Path
from types import FrameType

import torch

__all__ = ["warn"]

_PASSED_OVER = (
    str(Path(__file__).parents[1]) + os.sep,
    str(Path(torch.__file__).parent) + os.sep,
    contextlib.__file__,  # decorators and contexts
)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn with the place of the innermost call outside this package and torch.

    Args:
        message: What is so, and what to do.
        category: The kind of warning.
    """
    frame: FrameType | None = sys._getframe(1)
    level = 2
    while frame is not None and frame.f_code.co_filename.startswith(_PASSED_OVER):
        frame = frame.f_back
        level += 1
    warnings.warn(message, category, stacklevel=level)

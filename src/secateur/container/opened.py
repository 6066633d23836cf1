"""`opened`: a file open for reading, whose name stands in every error about its content.

>>> import pathlib, tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     pathlib.Path(folder, "a.sct").touch()
...     try:
...         with opened(pathlib.Path(folder, "a.sct")):
...             raise FormatError("it is damaged")
...     except FormatError as error:
...         print(str(error).removeprefix(folder))
/a.sct: it is damaged
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader

from secateur.errors import FormatError, PlanError

__all__ = ["opened"]


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[BufferedReader]:
    """The file, open for reading; a `FormatError` or `PlanError` of the block gets its name in front.

    Args:
        path: The file.
    """
    with open(path, "rb") as file:
        try:
            yield file
        except (FormatError, PlanError) as error:
            if not str(error).startswith(str(path)):
                error.args = (f"{path}: {error}",)
            raise

"""Refuse, before any work, a folder that something is in (`check_new_folder`), or that cannot be written
(`check_results_folder`).

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     check_new_folder(Path(folder)), check_new_folder(Path(folder, "new"))
(None, None)
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from secateur.errors import OptionError

__all__ = ["check_new_folder", "check_results_folder"]


def check_new_folder(path: Path) -> None:
    """Raise unless a folder of this name can be written: it must not exist, or be empty.

    Args:
        path: The folder.

    Raises:
        OptionError: There is something under this name.
    """
    if not path.exists():
        return
    if path.is_dir() and not any(path.iterdir()):
        return
    what = "a folder that is not empty" if path.is_dir() else "a file"
    raise OptionError(f"{path}: expected a new or an empty folder, found {what}; name another one")


def check_results_folder(path: Path) -> None:
    """Raise unless results can be written into a folder of this name, which may be there already.

    Args:
        path: The folder. Nothing is left in it, nor is it made.

    Raises:
        OptionError: It is a file or lies in one, or nothing can be made in it.
    """
    there = next((place for place in (path, *path.absolute().parents) if place.exists()), path)
    if not there.is_dir():
        raise OptionError(
            f"{path}: expected a folder for the results, and {there} is a file; name another one"
        )
    try:
        tempfile.TemporaryDirectory(dir=there, prefix=".secateur-").cleanup()
    except OSError as error:
        raise OptionError(
            f"{path}: nothing can be written there ({error.strerror}); name a folder that can be written"
        ) from error

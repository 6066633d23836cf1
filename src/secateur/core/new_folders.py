"""`check_new_folder`: refuse, before any work, a folder that something is in.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     check_new_folder(Path(folder)), check_new_folder(Path(folder, "new"))
(None, None)
"""

from __future__ import annotations

from pathlib import Path

from secateur.errors import OptionError

__all__ = ["check_new_folder"]


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

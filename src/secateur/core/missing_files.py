"""`missing`: what an error says of a path where nothing is: the most similar names in its folder.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     Path(folder, "model.sct").touch()
...     missing(Path(folder, "modle.sct")).removeprefix(folder)
"/modle.sct: no such file; in its folder did you mean 'model.sct'?"
"""

from __future__ import annotations

import difflib
import itertools
import os
from pathlib import Path

__all__ = ["missing"]

_MOST = 10_000


def missing(path: str | os.PathLike[str], what: str = "file") -> str:
    """The beginning of a message: the path, that nothing is there, and similar names, if there are any.

    Args:
        path: The path that was given.
        what: What was expected there.
    """
    text = f"{path}: no such {what}"
    folder = Path(path).absolute().parent
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in itertools.islice(entries, _MOST)]
    except NotADirectoryError:
        return f"{text}; {folder} is no folder"
    except FileNotFoundError:
        return f"{text}; nor is there a folder {folder}"
    except OSError:
        return text
    close = difflib.get_close_matches(Path(path).name, names, n=3, cutoff=0.6)
    if not close:
        return text
    return f"{text}; in its folder did you mean {' or '.join(map(repr, close))}?"

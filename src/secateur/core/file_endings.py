"""`check_ending`: refuse a file name whose ending promises another format than the one written.

>>> check_ending("x.pt", "save writes a .sct file", ".sct")
Traceback (most recent call last):
secateur.errors.OptionError: x.pt: save writes a .sct file, and torch.load reads no such file; name it 'x.sct'
"""

from __future__ import annotations

import os
from pathlib import Path

from secateur.errors import OptionError

__all__ = ["TORCH_SUFFIXES", "check_ending"]

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
"""The endings of files that torch.save writes."""
_READERS = {**dict.fromkeys(TORCH_SUFFIXES, "torch.load"), ".safetensors": "safetensors", ".sct": "sc.load"}


def check_ending(path: str | os.PathLike[str], what: str, ending: str, more: str = "") -> None:
    """Raise if a name has the ending of another format.

    Args:
        path: The file to write.
        what: Who writes what.
        ending: The usual ending of that.
        more: Another next step, as the end of the text.

    Raises:
        OptionError: The ending is that of another format.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix)
    if reader is not None and path.suffix != ending:
        raise OptionError(
            f"{path}: {what}, and {reader} reads no such file; name it "
            f"{path.with_suffix(ending).name!r}{more}"
        )

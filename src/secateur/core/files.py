"""Files written beside and renamed, so that nothing half-written ever bears the name asked for.

>>> import pathlib, tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     with replacing(pathlib.Path(folder) / "a.bin") as file:
...         _ = file.write(b"whole")
...     (pathlib.Path(folder) / "a.bin").read_bytes()
b'whole'
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["replacing"]


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file open for writing that takes the name `path` when the block ends well, and vanishes else."""
    path = Path(path)
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent or None)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o666 & ~_umask())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

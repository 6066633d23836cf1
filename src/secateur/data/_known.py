"""The well-known datasets that are read from a local folder; shared by `mnist` and `cifar10`.

>>> KnownFolder("mnist", "ylecun/mnist", "17 MB").missing(None).split(";")[0]
"dataset 'mnist' is not here: looked in ./data/mnist (and in $SECATEUR_DATA/mnist, which is not set)"
"""

from __future__ import annotations

import os
from dataclasses import replace

from secateur.data._kind import Raw, Request, local_folder
from secateur.data.parquet import Parquet
from secateur.errors import DataError

__all__ = ["KnownFolder"]


class KnownFolder:
    """A dataset with a name, a place on the hub and a folder on this machine."""

    def __init__(self, name: str, hub: str, megabytes: str):
        self.name, self.hub, self.megabytes = name, hub, megabytes

    def missing(self, given: str | None) -> str:
        """The text of the error: where it was looked for, how to download it, and what needs no download."""
        root = os.environ.get("SECATEUR_DATA")
        if given is not None:
            looked = given
        elif root:
            looked = f"{root}/{self.name} ($SECATEUR_DATA) and ./data/{self.name}"
        else:
            looked = f"./data/{self.name} (and in $SECATEUR_DATA/{self.name}, which is not set)"
        return (
            f"dataset {self.name!r} is not here: looked in {looked}; next: `hf download --repo-type dataset "
            f"{self.hub} --local-dir data/{self.name}` fetches it ({self.megabytes} of Parquet), or name the "
            f"hub's copy itself, {self.hub!r}, or take 'digits', which is embedded and needs no download"
        )

    def read(self, request: Request) -> Raw:
        """The parts of the folder's Parquet files.

        Raises:
            DataError: There is no such folder; says how to get it.
        """
        folder = local_folder(self.name, request.path)
        if folder is None:
            raise DataError(self.missing(request.path)).as_usage()
        return Parquet().read(replace(request, path=str(folder)))

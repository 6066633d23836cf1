"""The options that say where a sweep's trials are computed: `--engine`, `--address`, `--cpus`, `--gpus`, `--memory`.

>>> ClusterFlags().cluster() is None
True
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.errors import OptionError

if TYPE_CHECKING:
    from secateur.lab.engines import Engine
    from secateur.lab.recipe import Recipe
    from secateur.lab.store import Store

__all__ = ["Address", "Cluster", "ClusterFlags", "EngineChoice", "EngineOption"]


class EngineChoice(StrEnum):
    """The engines."""

    local = "local"
    ray = "ray"


EngineOption = Annotated[
    EngineChoice,
    typer.Option("--engine", help="local: processes here; ray: a Ray cluster.", case_sensitive=False),
]
Address = Annotated[
    str | None, typer.Option("--address", help="The Ray cluster to use, or `auto`; default: start one here.")
]


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and the resources that a trial takes of it."""

    address: str | None
    cpus: float
    gpus: float
    memory: float

    def device(self, recipe: Recipe) -> str | None:
        """Where trials are computed: on GPUs if they take any, whatever this machine has."""
        return "cuda" if self.gpus and recipe.lab.device == "auto" else None

    def engine(self, store: Store, jobs: int, device: str) -> Engine:
        """The engine, connected."""
        from secateur.lab.engines.ray import Needs, RayEngine

        needs = Needs(self.cpus, self.gpus, self.memory)
        wanted = jobs if jobs > 1 else None
        return RayEngine(store, address=self.address, needs=needs, jobs=wanted, device=device)


@dataclass(frozen=True)
class ClusterFlags:
    """Where trials are computed, and the resources that each takes."""

    engine: EngineOption = EngineChoice.local
    address: Address = None
    cpus: Annotated[float, typer.Option("--cpus", min=0, help="Ray: processor cores a trial takes.")] = 1
    gpus: Annotated[
        float, typer.Option("--gpus", min=0, help="GPUs a trial takes; 0.25 puts four on one.")
    ] = 0
    memory: Annotated[float, typer.Option("--memory", min=0, help="Ray: GiB of memory a trial takes.")] = 0

    def cluster(self) -> Cluster | None:
        """The Ray cluster, or None for processes of this machine, which take their `--gpus` without one."""
        if self.engine is EngineChoice.ray:
            return Cluster(self.address, self.cpus, self.gpus, self.memory)
        for name, given in (("--address", self.address), ("--memory", self.memory)):
            if given:
                raise OptionError(
                    f"{name} {given}: belongs to --engine ray; on one machine trials are distributed by --jobs and "
                    "--gpus only; leave it out, or give --engine ray"
                )
        return None

    def local_gpus(self) -> float | None:
        """The share of a GPU that a process of this machine takes, if one was given."""
        return self.gpus if self.engine is EngineChoice.local and self.gpus else None

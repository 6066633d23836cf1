"""The options that say where a sweep's trials are computed: `--engine`, `--address`, `--cpus`, `--gpus`, `--memory`.

>>> cluster_of(EngineChoice.local, None, 1, 0, 0) is None
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

__all__ = ["Address", "Cluster", "Cpus", "EngineChoice", "EngineOption", "Gpus", "Memory", "cluster_of"]


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
Cpus = Annotated[float, typer.Option("--cpus", min=0, help="Ray: processor cores a trial takes.")]
Gpus = Annotated[float, typer.Option("--gpus", min=0, help="GPUs a trial takes; 0.25 puts four on one.")]
Memory = Annotated[float, typer.Option("--memory", min=0, help="Ray: GiB of memory a trial takes.")]


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and what a trial takes of it."""

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


def cluster_of(
    engine: EngineChoice, address: str | None, cpus: float, gpus: float, memory: float
) -> Cluster | None:
    """The cluster that is meant, or None for processes of this machine, which take their `--gpus` without one."""
    if engine is EngineChoice.ray:
        return Cluster(address, cpus, gpus, memory)
    for name, given in (("--address", address), ("--memory", memory)):
        if given:
            raise OptionError(
                f"{name} {given}: belongs to --engine ray; here trials are shared out by --jobs and --gpus alone"
            )
    return None

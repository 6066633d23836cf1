"""`WorkerPool`: the processes of an engine, for verbs that share their work out where no recipe is.

    crew = Crew.local(jobs=2)                    # or Crew.ray(address="auto")
    sc.scan(model, batches, "filter", engine=crew)

A process that is killed is replaced and its part begun again, as for the steps of a recipe. The engine is opened for
each use and closed after it, whatever happens.

>>> WorkerPool.local(jobs=2)
Crew(2 processes here)
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from secateur.errors import OptionError, StoreError
from secateur.lab.engines import Engine, EngineCall, slots
from secateur.lab.store import Store

__all__ = ["WorkerPool"]


class WorkerPool:
    """Calls functions on an engine. `slots` is how many calls run at once, as far as that is known beforehand."""

    def __init__(self, opened: Callable[[Store], Engine], count: int, name: str):
        self._opened, self.slots, self._name = opened, count, name

    @classmethod
    def local(cls, jobs: int) -> WorkerPool:
        """So many processes on this machine, the cores shared out among them."""
        if jobs < 1:
            raise OptionError(f"jobs: expected at least 1, got {jobs}")
        count, threads = slots(jobs, os.cpu_count() or 1)

        def opened(store: Store) -> Engine:
            from secateur.lab.engines.local import LocalEngine

            return LocalEngine(store, count, threads)

        return cls(opened, count, f"{count} {'process' if count == 1 else 'processes'} here")

    @classmethod
    def ray(cls, address: str | None = None, jobs: int | None = None, **needs: float) -> WorkerPool:
        """The Ray cluster at an address, or one started here with room for `jobs`; `needs` are those of one call."""

        def opened(store: Store) -> Engine:
            from secateur.lab.engines.ray import Needs, RayEngine

            return RayEngine(store, address=address, needs=Needs(**needs), jobs=jobs)

        return cls(opened, jobs or 1, f"Ray, {address or 'started here'}")

    def each(
        self,
        function: Callable[..., Iterable[Any]],
        common: tuple[Any, ...],
        parts: Sequence[tuple[Any, ...]],
    ) -> Iterator[Any]:
        """What `function(*common, *part)` yields for every part, as it comes, in no order between parts.

        A part whose process was killed is begun again, so that a value may come twice.
        """
        try:
            shared = pickle.dumps(common)
        except Exception as error:
            raise OptionError(
                f"engine: the model and evaluate go to other processes and cannot ({error}); define them at the top of "
                "a module, or leave the engine out"
            ) from error
        waiting = deque(
            EngineCall(str(i), function, shared, pickle.dumps(part)) for i, part in enumerate(parts)
        )
        running = 0
        with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
            store = Store(folder)
            engine, whole = self._opened(store), False
            try:
                while waiting or running:
                    while waiting and running < engine.slots:
                        engine.submit(waiting.popleft())
                        running += 1
                    for event in engine.events():
                        if event.what == "value":
                            yield event.value
                        elif event.what == "done":
                            running -= 1
                        elif event.what == "failed":
                            raise event.value or StoreError(f"engine: {event.text}")
                whole = True
            finally:
                engine.close(now=not whole)
                store.close()

    def __repr__(self) -> str:
        return f"Crew({self._name})"

"""`WorkerPool`: the processes of an engine, for verbs that distribute their work without a recipe.

    pool = WorkerPool.local(jobs=2)                    # or WorkerPool.ray(address="auto")
    sc.scan(model, batches, "filter", engine=pool)

A process that is killed is replaced and its part begins again, as for the steps of a recipe. The engine is opened for
each use and closed after it, also after an error.

>>> WorkerPool.local(jobs=2)
WorkerPool(2 processes here)
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from secateur.errors import OptionError, StoreError
from secateur.lab.engines import Engine, EngineCall, slots
from secateur.lab.store import Store

__all__ = ["WorkerPool"]

T = TypeVar("T")


class WorkerPool:
    """Calls functions on an engine.

    Args:
        opened: Opens the engine on a store.
        count: How many calls run at once, as far as that is known beforehand.
        name: What the pool is called in messages.
    """

    def __init__(self, opened: Callable[[Store], Engine], count: int, name: str):
        self._opened, self.slots, self._name = opened, count, name

    @classmethod
    def local(cls, jobs: int) -> WorkerPool:
        """Processes on this machine, with its cores distributed among them.

        Args:
            jobs: How many processes.

        Returns:
            The pool; its processes start when it is used.
        """
        if jobs < 1:
            raise OptionError(f"jobs: expected at least 1, got {jobs}")
        count, threads = slots(jobs, os.cpu_count() or 1)

        def opened(store: Store) -> Engine:
            from secateur.lab.engines.local import LocalEngine

            return LocalEngine(store, count, threads)

        return cls(opened, count, f"{count} {'process' if count == 1 else 'processes'} here")

    @classmethod
    def ray(cls, address: str | None = None, jobs: int | None = None, **needs: float) -> WorkerPool:
        """A Ray cluster.

        Args:
            address: Where it is; None starts one here.
            jobs: Calls at once, of a cluster started here.
            needs: What one call needs, as `Needs` has it: cpus, gpus, memory_gib.

        Returns:
            The pool; it connects when it is used.
        """

        def opened(store: Store) -> Engine:
            from secateur.lab.engines.ray import Needs, RayEngine

            return RayEngine(store, address=address, needs=Needs(**needs), jobs=jobs)

        return cls(opened, jobs or 1, f"Ray, {address or 'started here'}")

    def each(
        self,
        function: Callable[..., Iterable[T]],
        common: tuple[object, ...],
        parts: Sequence[tuple[object, ...]],
    ) -> Iterator[T]:
        """What `function(*common, *part)` yields for every part, as it arrives; parts in no order.

        A part whose process was killed begins again, so that a value may come twice.

        Args:
            function: A function at the top of a module.
            common: Its first arguments, the same for all parts.
            parts: Its other arguments, part by part.

        Yields:
            The values.

        Raises:
            OptionError: An argument cannot be pickled.
            StoreError: A part failed.
        """
        try:
            shared = pickle.dumps(common)
        except Exception as error:
            raise OptionError(
                f"engine: the model and evaluate are sent to other processes and cannot be pickled ({error}); "
                "define them at the top of "
                "a module, or leave the engine out"
            ) from error
        waiting = deque(
            EngineCall(str(i), function, shared, pickle.dumps(part)) for i, part in enumerate(parts)
        )
        running = 0
        with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
            store = Store(folder)
            engine, done = self._opened(store), False
            try:
                while waiting or running:
                    while waiting and running < engine.slots:
                        engine.submit(waiting.popleft())
                        running += 1
                    for event in engine.events():
                        if event.what == "value":
                            yield event.value  # type: ignore[misc]  # what `function` yields
                        elif event.what == "done":
                            running -= 1
                        elif event.what == "failed":
                            if isinstance(event.value, BaseException):
                                raise event.value
                            raise StoreError(f"engine: {event.text}")
                done = True
            finally:
                engine.close(now=not done)
                store.close()

    def __repr__(self) -> str:
        return f"WorkerPool({self._name})"

"""The Ray engine: every step is a Ray task, on the cluster at an address or on one started here.

The state after a step goes into Ray's object store: a training that many trials share is computed once, and sent to a
machine at most once. Workers return their outcomes, and only this process writes the store. A step whose worker or
machine is lost is started again by Ray, from the state before it; a training from its last complete epoch where workers
see the store's folder, which is the only place they write to.

>>> Needs(cpus=2, gpus=0.25, memory_gib=4).options() == {"num_cpus": 2, "num_gpus": 0.25, "memory": 4 * 2**30}
True
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from filelock import FileLock, Timeout

from secateur.errors import MissingExtraError, OptionError, StoreError
from secateur.lab.engines import EngineCall, Event, Node
from secateur.lab.engines.driving import numbers
from secateur.lab.engines.gpus import checked_share
from secateur.lab.engines.local import ReportingProgress, failed
from secateur.lab.outcomes import Outcome, Table, objects_of
from secateur.lab.planning import PlannedTrial
from secateur.lab.store import Store

__all__ = ["Needs", "RayEngine"]

_RETRIES = 3
_AHEAD = 2  # tasks submitted for each that can run at once, so that no worker waits for this process
_OTHERS_EVERY = 0.5  # seconds between two looks for outcomes that another run on the same store computes


@dataclass(frozen=True)
class Needs:
    """What one step needs of a machine.

    Args:
        cpus: Cores.
        gpus: GPUs; a fraction such as 0.25 puts four steps on one GPU.
        memory_gib: Memory in GiB; 0: not counted.

    >>> Needs(gpus=1.5)
    Traceback (most recent call last):
    secateur.errors.OptionError: gpus: expected a fraction below 1 or a whole number, got 1.5
    """

    cpus: float = 1
    gpus: float = 0
    memory_gib: float = 0

    def __post_init__(self) -> None:
        for name in ("cpus", "memory_gib"):
            if getattr(self, name) < 0:
                raise OptionError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        checked_share(self.gpus)

    def options(self) -> dict[str, float]:
        """The same as options of a Ray task."""
        found: dict[str, float] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.memory_gib:
            found["memory"] = int(self.memory_gib * 2**30)
        return found


class _Memory:
    """Objects in memory, for workers, which write no files."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}

    def put(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        self.held[name] = data
        return name

    def get(self, name: str) -> bytes:
        return self.held[name]


class _Blob(TypedDict):
    """A state in Ray's object store: the names of its objects, and their bytes."""

    state: Table
    objects: dict[str, bytes]


@dataclass(frozen=True)
class _Task:
    """What a worker is sent to compute one step. `uses` are the addresses of the states that come with it."""

    trial: PlannedTrial
    position: int
    device: str
    threads: int
    beacon: str
    checkpoint: str
    uses: tuple[str, ...]


_Answer = tuple[Literal["done"], Outcome] | tuple[Literal["failed"], str, str]


def _work(task: _Task, board: Any, *blobs: _Blob) -> tuple[_Answer, _Blob | None]:
    """One step in a worker of the cluster; returns its outcome, and the state after it."""
    import torch

    from secateur.lab import computing
    from secateur.lab.planning import builder
    from secateur.lab.state import State, revive

    trial = task.trial
    key = trial.steps[task.position].key
    states = dict(zip(task.uses, blobs))
    kept = _Memory()

    def before(count: int) -> State:
        build = builder(trial.recipe)
        if count == 0:
            return State(build())
        blob = states[trial.steps[count - 1].key]
        source = _Memory()
        source.held = blob["objects"]
        return revive(blob["state"], source, build)

    def report(text: str) -> None:
        board.report.remote(key, text)

    torch.set_num_threads(trial.recipe.lab.threads or task.threads)
    report("")
    with tempfile.TemporaryDirectory() as scratch:
        # A worker sees the beacon's file only where it sees the store's folder: there a training survives the loss of
        # the worker.
        shared = Path(task.beacon).is_file()
        try:
            outcome = computing.compute(
                trial,
                task.position,
                before=before,
                objects=kept,
                checkpoint=Path(task.checkpoint) if shared else Path(scratch) / "training.ckpt",
                progress=ReportingProgress(report),
                device=task.device,
            )
        except Exception as error:
            # Returned, not raised: Ray would wrap it, and its text would be Ray's.
            return ("failed", str(error) or type(error).__name__, traceback.format_exc()), None
    return ("done", outcome), {"state": dict(outcome.state), "objects": kept.held}


def _call(
    key: str, function: Callable[..., Iterable[object]], common: bytes, own: bytes, threads: int
) -> list[Event]:
    """A call in a worker of the cluster: what it yielded, and how it ended."""
    import torch

    torch.set_num_threads(threads)
    call = EngineCall(key, function, common, own)
    events = []
    try:
        for value in call.values():
            events.append(Event("value", call.key, value=value))
    except Exception as error:
        return [*events, failed(call.key, error)]
    return [*events, Event("done", call.key)]


class _Board:
    """A Ray actor that collects the progress of trainings: workers report to it, and this process reads it."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def report(self, key: str, text: str) -> None:
        self._texts[key] = text

    def take(self) -> dict[str, str]:
        texts, self._texts = self._texts, {}
        return texts


_TOKEN_LOG = "ray._private.authentication.authentication_token_setup"


@contextlib.contextmanager
def _token_line_left_out() -> Iterator[None]:
    """Leave out Ray's line that a token protects the cluster, which asks for nothing; that none does is still said."""

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Token authentication is enabled for")

    logger = logging.getLogger(_TOKEN_LOG)
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


class RayEngine:
    """Computes on a Ray cluster: the one at `address`, or one started here and ended with this engine.

        engine = RayEngine(Store("runs"), address="ray://head:10001", needs=Needs(cpus=2, gpus=0.5))

    Args:
        store: Where outcomes are kept.
        address: Of a cluster; None starts one here.
        needs: What one step needs of a machine.
        jobs: Steps at once, of a cluster started here; None: as many as the machine has cores for.
        device: Where steps compute: cpu or cuda.

    Raises:
        MissingExtraError: Ray is not installed.
        StoreError: There is no cluster at the address, or none could be started.
        OptionError: The cluster is too small for one step.
    """

    def __init__(
        self,
        store: Store,
        *,
        address: str | None = None,
        needs: Needs = Needs(),
        jobs: int | None = None,
        device: str = "cpu",
    ):
        # Nothing is sent anywhere unless the user asks for it.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
            import ray.util.scheduling_strategies
        except ImportError as error:
            raise MissingExtraError("--engine ray needs Ray: pip install 'secateur[ray]'") from error
        self._ray, self._store, self._needs, self._device = ray, store, needs, device
        self._own = not ray.is_initialized()
        if self._own:
            self._connect(address, jobs)
        self.slots = _AHEAD * self._room(ray.cluster_resources())
        options = {"name": "secateur", "max_retries": _RETRIES, **needs.options()}
        self._task = ray.remote(_work).options(num_returns=2, **options)
        self._caller = ray.remote(_call).options(**options)
        self._common: dict[
            bytes, Any
        ] = {}  # arguments that calls have in common, in the cluster's object store
        # On this machine, so that reports are not lost with a worker's machine.
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=True
        )
        self._board: Any = (
            ray.remote(_Board).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()
        )
        self._beacon = store.checkpoint(f"cluster-{uuid.uuid4().hex}").resolve()
        self._beacon.touch()
        self._running: dict[Any, tuple[Node | EngineCall, Any]] = {}
        self._blobs: dict[str, Any] = {}
        self._locks: dict[str, FileLock] = {}
        self._elsewhere: list[Node] = []  # steps that another run on this store is computing
        self._looked = self._asked = 0.0
        self._answer: Any = None
        self._started: set[str] = set()

    def _connect(self, address: str | None, jobs: int | None) -> None:
        """Join the cluster at an address, or start one here."""
        ray, fresh = self._ray, Table(include_dashboard=False)
        if address is None and jobs is not None:
            fresh["num_cpus"] = max(1, round(jobs * max(self._needs.cpus, 1)))
        try:
            with _token_line_left_out():
                ray.init(
                    address=address or "local",
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    configure_logging=False,
                    **({} if address else fresh),
                )
        except ConnectionError as error:
            raise StoreError(
                f"--address {address}: no Ray cluster answers there ({error}); start one with `ray start --head`, "
                "or leave --address out to start one here"
            ) from error
        except Exception as error:  # Ray raises a bare Exception where starting takes too long
            with contextlib.suppress(Exception):
                ray.shutdown()
            where = "start here" if address is None else f"let this process join {address}"
            raise StoreError(
                f"Ray did not {where} ({str(error).splitlines()[0] if str(error) else type(error).__name__}); on a "
                "busy machine wait until it is less so, or start Ray first with `ray start --head` and give "
                "--address auto"
            ) from error

    def _room(self, there: dict[str, float]) -> int:
        """How many steps the cluster can compute at once; raises if there is not room for one."""
        wanted = {"CPU": self._needs.cpus, "GPU": self._needs.gpus, "memory": self._needs.memory_gib * 2**30}
        for name, amount in wanted.items():
            if amount > there.get(name, 0):
                has = there.get(name, 0)
                unit = 2**30 if name == "memory" else 1
                self.close(now=True)
                raise OptionError(
                    f"a step needs {amount / unit:g} {name}{' GiB' if unit > 1 else ''}, and the whole cluster has "
                    f"{has / unit:g}; ask for less, or name a larger cluster with --address"
                )
        return max(1, int(min(there.get(name, 0) // amount for name, amount in wanted.items() if amount)))

    def submit(self, node: Node | EngineCall) -> None:
        """Submit it to the cluster, or wait while another run computes it."""
        if isinstance(node, EngineCall):
            if node.common not in self._common:
                self._common[node.common] = self._ray.put(node.common)
            threads = max(1, int(self._needs.cpus))
            head = self._caller.remote(node.key, node.function, self._common[node.common], node.own, threads)
            self._running[head] = (node, None)
            return
        lock = self._store.lock(node.key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self._elsewhere.append(node)
            return
        self._locks[node.key] = lock
        blobs = [self._blob(key) for key in node.uses]
        task = _Task(
            trial=node.trial,
            position=node.position,
            device=self._device,
            threads=max(1, int(self._needs.cpus)),
            beacon=str(self._beacon),
            checkpoint=str(self._store.checkpoint(node.key).resolve()),
            uses=node.uses,
        )
        head, blob = self._task.remote(task, self._board, *blobs)
        self._running[head] = (node, blob)

    def _blob(self, key: str) -> object:
        """The state after a step, in the cluster's object store; read from the store where a past run computed it."""
        if key not in self._blobs:
            outcome = self._store.outcome(key)
            if outcome is None:
                raise StoreError(f"the outcome of step {key[:12]} is gone; run the recipe again")
            held = {name: self._store.objects.get(name) for name in objects_of(outcome.state)}
            self._blobs[key] = self._ray.put({"state": dict(outcome.state), "objects": held})
        return self._blobs[key]

    def events(self) -> Iterable[Event]:
        """What the workers returned; outcomes are in the store before they are reported."""
        found = [*self._from_elsewhere(), *self._from_board()]
        ready: list[Any] = []
        if self._running:
            count = len(self._running)
            ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=0.0 if found else 0.2)
            if ready and count > 1:
                more, _ = self._ray.wait(list(self._running), num_returns=count, timeout=0)
                ready = list(dict.fromkeys([*ready, *more]))
        elif not found:
            time.sleep(0.05)
        for head in ready:
            node, blob = self._running.pop(head)
            if isinstance(node, EngineCall):
                found += self._returned(head, node.key)
                continue
            found.append(self._settle(head, node, blob))
            self._locks.pop(node.key).release()
        return found

    def _returned(self, head: Any, key: str) -> list[Event]:
        try:
            events: list[Event] = self._ray.get(head)
        except self._ray.exceptions.RayError as error:
            why = f"the cluster lost it {_RETRIES + 1} times ({type(error).__name__}); run it again"
            return [Event("failed", key, text=why, trace=f"{why}\n{error}")]
        return events

    def _settle(self, head: Any, node: Node, blob: Any) -> Event:
        try:
            what, *rest = self._ray.get(head)
            if what == "failed":
                return Event("failed", node.key, text=rest[0], trace=rest[1])
            outcome: Outcome = rest[0]
            whole = self._ray.get(blob)
        except self._ray.exceptions.RayError as error:
            why = f"the cluster lost it {_RETRIES + 1} times ({type(error).__name__}); run the recipe again"
            return Event("failed", node.key, text=why, trace=f"{why}\n{error}")
        for name, data in whole["objects"].items():
            if self._store.objects.put(data) != name:
                why = f"object {name[:12]} arrived damaged; run the recipe again"
                return Event("failed", node.key, text=why, trace=why)
        self._store.keep(outcome)
        self._store.checkpoint(node.key).unlink(missing_ok=True)
        self._blobs[node.key] = blob
        if len(self._blobs) > 4 * self.slots + 64:
            # Drop the oldest; they are read from the store where needed again.
            for key in list(self._blobs)[: 2 * self.slots]:
                del self._blobs[key]
        text = str(outcome.log.get("line", ""))
        return Event("done", node.key, "computed", outcome.seconds, text, found=numbers(outcome.measurements))

    def _from_elsewhere(self) -> list[Event]:
        if not self._elsewhere or time.monotonic() - self._looked < _OTHERS_EVERY:
            return []
        self._looked = time.monotonic()
        waiting, self._elsewhere = self._elsewhere, []
        found = []
        for node in waiting:
            outcome = self._store.outcome(node.key)
            if outcome is None:
                self.submit(node)
            else:
                line = str(outcome.log.get("line", ""))
                shown = numbers(outcome.measurements)
                found.append(Event("done", node.key, "cached", outcome.seconds, line, found=shown))
        return found

    def _from_board(self) -> list[Event]:
        """What workers reported of their trainings; asked for at most once a second, and never waited for."""
        if self._answer is None:
            if self._running and time.monotonic() - self._asked > 1:
                self._asked, self._answer = time.monotonic(), self._board.take.remote()
            return []
        ready, _ = self._ray.wait([self._answer], timeout=0)
        if not ready:
            return []
        texts: dict[str, str] = {}
        with contextlib.suppress(self._ray.exceptions.RayError):
            texts = self._ray.get(self._answer)
        self._answer = None
        under_way = {node.key for node, _ in self._running.values()}
        found = []
        for key, text in texts.items():
            if key in under_way:
                if key not in self._started:
                    self._started.add(key)
                    found.append(Event("start", key))
                if text:
                    found.append(Event("epoch", key, text=text))
        return found

    def close(self, *, now: bool) -> None:
        """Stop the tasks, free the locks, and end the cluster where it was started here."""
        if now:
            for head in getattr(self, "_running", {}):
                with contextlib.suppress(Exception):
                    self._ray.cancel(head, force=True)
        if hasattr(self, "_beacon"):
            self._beacon.unlink(missing_ok=True)
        for lock in getattr(self, "_locks", {}).values():
            lock.release()
        self._locks = {}
        if hasattr(self, "_board"):
            with contextlib.suppress(Exception):
                self._ray.kill(self._board)
        self._blobs, self._common = {}, {}
        if self._own:
            self._ray.shutdown()

"""`deferring`: signals that wait while a model is being restored.

A Python signal handler runs between any two instructions, also inside a `finally:` or an `__exit__` that is restoring
a model, and the exception that it raises ends the restoring half way. `deferring` wraps a handler: while the program is
in a function marked `uninterrupted`, or in an `__enter__` or `__exit__`, the signal is sent again a moment later. So it
is in a `__del__` or a callback of a weak reference: Python prints an exception that is raised there, and goes on.

Not all such places can be seen from a handler: the garbage collector calls callbacks and closes generators, too. Within
`InterruptsDeferred`, an exception of a handler that Python dropped is not printed; its signal is sent again.

>>> import signal
>>> @uninterrupted
... def restore() -> str:
...     signal.raise_signal(signal.SIGINT)
...     return "restored"
>>> before = signal.signal(signal.SIGINT, deferring(signal.default_int_handler))
>>> try:
...     done = restore()
...     time.sleep(1)
... except KeyboardInterrupt:
...     print(done, "then interrupted")
... finally:
...     _ = signal.signal(signal.SIGINT, before)
restored then interrupted
"""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import TypeVar

__all__ = ["InterruptsDeferred", "boundary", "deferring", "ending_signals", "settle", "uninterrupted"]

Handler = Callable[[int, FrameType | None], object]
Hook = Callable[["sys.UnraisableHookArgs"], object]
_FunctionT = TypeVar("_FunctionT", bound=Callable[..., object])

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals that ask a process to end."""

# Seconds after which a signal is no longer deferred: of the processor's time and of the clock as well, so that
# restoring is cut off neither on a busy machine nor beside other threads, whose time is counted with it; or of the
# clock alone, so that something that waits for ever can be ended.
_PATIENCE, _LONGEST = 10.0, 120.0
_SETTLED = 10.0  # seconds that a program waits at its end for a deferred signal
_AGAIN = 0.002  # seconds until a deferred signal is sent again
_NAMES = frozenset(["__enter__", "__exit__", "__del__"])
_SWALLOWING = (
    frozenset(  # the files of callbacks of weak references: Python prints what they raise, and goes on
        function.__code__.co_filename
        for function in (weakref.WeakSet.__init__, weakref.WeakKeyDictionary.__init__)
    )
)
_uninterrupted: set[CodeType] = {contextlib.ExitStack.enter_context.__code__}
_boundaries: set[CodeType] = set()
_waiting: set[int] = set()  # signals that are deferred and have not come again
_unsent: set[int] = set()  # those of them that no thread could be started for
_SIGNAL = "secateur_signal"  # the attribute of an exception that says which signal's handler raised it


def uninterrupted(function: _FunctionT) -> _FunctionT:
    """Mark a short function that a deferring handler never interrupts, nor what it calls.

    Args:
        function: A plain function or method.
    """
    _uninterrupted.add(function.__code__)
    return function


def boundary(function: _FunctionT) -> _FunctionT:
    """Mark a function that is not interrupted itself, while the functions that it calls may be, whoever called it.

    Args:
        function: A plain function or method.
    """
    _boundaries.add(function.__code__)
    return function


def deferring(handler: Handler) -> Handler:
    """A handler that calls another one as soon as nothing uninterrupted is running.

    Args:
        handler: The handler to call, such as `signal.default_int_handler`.
    """
    since: list[tuple[float, float]] = []

    def tried() -> bool:
        """Whether it was deferred for too long."""
        if not since:
            return False
        worked, waited = time.process_time() - since[0][0], time.monotonic() - since[0][1]
        return min(worked, waited) > _PATIENCE or waited > _LONGEST

    def deferred(number: int, frame: FrameType | None) -> object:
        if _may_interrupt(frame) or tried():
            since.clear()
            _waiting.discard(number)
            try:
                return handler(number, frame)
            except BaseException as error:
                vars(error)[_SIGNAL] = number
                raise
        if not since:
            since.append((time.process_time(), time.monotonic()))
        _defer(number)
        return None

    deferred.handler = handler  # type: ignore[attr-defined]
    return deferred


def _defer(number: int) -> None:
    """Send a signal again in a moment; where the system gives no thread for that, when the block has ended."""
    _waiting.add(number)
    try:
        _thread.start_new_thread(_send_again, (number,))
    except (RuntimeError, MemoryError):
        _waiting.discard(number)
        _unsent.add(number)


def _rescuing(hook: Hook) -> Hook:
    """A `sys.unraisablehook` that sends a signal again if Python dropped the exception of its deferring handler.

    Args:
        hook: The hook to call for every other exception.
    """

    def rescued(dropped: sys.UnraisableHookArgs) -> None:
        number = getattr(dropped.exc_value, _SIGNAL, None)
        if number is None:
            hook(dropped)
        else:
            _defer(number)

    rescued.hook = hook  # type: ignore[attr-defined]
    return rescued


def settle() -> None:
    """Wait a little for a signal that is deferred: it must not come when the program has left."""
    end = time.monotonic() + _SETTLED
    while _waiting and time.monotonic() < end:
        time.sleep(_AGAIN)
    _waiting.clear()


def _send_again(number: int) -> None:
    time.sleep(_AGAIN)
    _send(number)


def _send(number: int) -> None:
    """Send a signal to the main thread: a real one, which ends a sleep too, if Python handles it."""
    main = threading.main_thread().ident
    if main is not None and hasattr(signal, "pthread_kill") and callable(signal.getsignal(number)):
        signal.pthread_kill(main, number)
    else:
        _thread.interrupt_main(signal.Signals(number))


def _may_interrupt(frame: FrameType | None) -> bool:
    """Whether the program is nowhere inside an uninterrupted function, seen from the nearest boundary."""
    innermost = frame
    while frame is not None:
        code = frame.f_code
        if code in _boundaries:
            return frame is not innermost
        if code in _uninterrupted or code.co_name in _NAMES or code.co_filename in _SWALLOWING:
            return False
        frame = frame.f_back
    return True


class InterruptsDeferred:
    """A block in which the handlers of Ctrl-C, SIGTERM and SIGHUP are deferring ones, where they are Python functions.

    An exception of theirs that Python drops, as in a generator that the garbage collector closes, is raised again.
    Only the main thread can set handlers, and only it runs them; in another one this does nothing.
    """

    def __init__(self) -> None:
        self._before: dict[int, Handler] = {}
        self._hook: Hook | None = None

    def __enter__(self) -> InterruptsDeferred:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler) and not hasattr(handler, "handler"):
                    self._before[number] = handler
                    signal.signal(number, deferring(handler))
            if not hasattr(sys.unraisablehook, "hook"):
                self._hook = sys.unraisablehook
                sys.unraisablehook = _rescuing(self._hook)
        return self

    def __exit__(self, *error: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # the handlers stay deferring ones, which only changes when they are called
        while self._before:
            number, handler = self._before.popitem()
            if getattr(signal.getsignal(number), "handler", None) is handler:
                # nobody has set another one since
                signal.signal(number, handler)
        hook, self._hook = self._hook, None
        now = getattr(sys.unraisablehook, "hook", None)
        if hook is not None and now == hook:  # likewise
            sys.unraisablehook = hook
        for number in [*_unsent]:  # once each: within another block it is deferred again
            _unsent.discard(number)
            _send(number)


@contextlib.contextmanager
def ending_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block by `SystemExit` with 128 + their number, so that everything is restored first;
    neither they nor Ctrl-C interrupt functions marked `uninterrupted`.

    A signal that this process ignores, as under nohup, stays ignored.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with InterruptsDeferred():
        defaults = []
        if threading.current_thread() is threading.main_thread():
            defaults = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
        for number in defaults:
            signal.signal(number, deferring(leave))
        try:
            yield
        finally:
            for number in defaults:
                signal.signal(number, signal.SIG_DFL)

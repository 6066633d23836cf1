"""The command line: one thin function per verb, results on standard output, progress on standard error.

Exit codes: 0 done, 1 failed, 2 usage, 3 budget not met, 4 nothing to do; ended by Ctrl-C 130, by SIGTERM 143, by
SIGHUP 129. An error is one paragraph; `--debug`
adds the traceback. Nothing here imports torch before a verb needs it, so that `secateur --help` prints at once.

>>> from secateur.cli.app import app
>>> "run" in [command.name or command.callback.__name__ for command in app.registered_commands]
True
"""

from __future__ import annotations

import io
import os
import sys
import warnings

__all__ = ["main"]

_INTERRUPTED = "interrupted; finished steps are kept, and the same command continues from there"
_OUT_OF_MEMORY = (
    "out of memory; close other programs, or give less at a time (a smaller batch size, fewer --jobs or --workers), "
    "and run the same command again: finished steps are kept; --debug shows what was being done"
)


def main() -> None:
    """Run the command line and leave with its exit code."""
    from secateur.core.interrupts import ending_signals, settle

    # Python looks for the modules of a process that it starts, its own among them, in the folder first that it runs in.
    safe, os.environ["PYTHONSAFEPATH"] = os.environ.get("PYTHONSAFEPATH"), "1"
    try:
        _print_anything()
        with ending_signals():
            try:
                _run()
            finally:
                settle()
    except KeyboardInterrupt:  # it came when the command had ended, or before it began
        _leave(_INTERRUPTED, 130)
    finally:
        if safe is None:
            os.environ.pop("PYTHONSAFEPATH", None)
        else:
            os.environ["PYTHONSAFEPATH"] = safe


def _print_anything() -> None:
    """Where the locale is not UTF-8, print characters it cannot express as escapes instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower().replace("-", "") != "utf8":
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = _warning


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as text that is safe to print: it may name a layer or a file."""
    from secateur.core.terminal import printable

    return f"{printable(f'{category.__name__}: {message}')}\n"


def _advice(error: OSError) -> str:
    """What to do about a full disk; "" for another error."""
    import errno

    full = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    return (
        "free some space and run the same command again (what a run store holds is kept); "
        if error.errno in full
        else ""
    )


def _run() -> None:
    """Run the command line; errors become one paragraph and an exit code."""
    from secateur.cli.app import app
    from secateur.errors import SecateurError

    try:
        app(prog_name="secateur")
    except SecateurError as error:
        _leave(str(error), error.exit_code)
    except KeyboardInterrupt:
        _leave(_INTERRUPTED, 130)
    except SystemExit as leaving:
        if isinstance(getattr(leaving.__context__, "__cause__", None), KeyboardInterrupt):
            _leave(_INTERRUPTED, 130)  # typer has caught it
        raise
    except BrokenPipeError:
        # The reader of our output has closed it; silence the interpreter's own message about it, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a full disk, a file that may not be read
        where = f"{error.filename}: " if error.filename else ""
        _leave(f"{where}{error.strerror or error}; {_advice(error)}--debug shows what was being done", 1)
    except Exception as error:
        from secateur.core.out_of_memory import is_out_of_memory

        if is_out_of_memory(error):
            _leave(_OUT_OF_MEMORY, 1)
        _leave(
            f"unexpected {type(error).__name__}: {error}. This is a fault of secateur or of the model's own "
            "code; run the "
            "same command with --debug to see where",
            1,
        )


def _leave(message: str, code: int) -> None:
    """Print the error as one paragraph, and exit."""
    from secateur.cli.options import debugging
    from secateur.core.terminal import say

    if debugging():
        import traceback

        say(traceback.format_exc(), error=True, end="")
    say(f"error: {' '.join(message.split())}", error=True)
    sys.exit(code)

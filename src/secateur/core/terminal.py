"""Text that is safe to print on a terminal, whatever file it came from.

A name in a file may hold escape sequences that move the cursor, change the title or the clipboard, and characters that
reverse the direction of what follows. `printable` writes all of them as their codes.

>>> printable("conv1\\x1b[2J\\u202egnp.txt")
'conv1\\\\x1b[2J\\\\u202egnp.txt'
>>> printable("Größe 模型")
'Größe 模型'

Every command prints with `say`; `print` is refused by the linter, as it would send the terminal what a file says.

>>> say("conv1\x1b[2J")
conv1\\x1b[2J
"""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["printable", "say", "shows_bars", "unmarked"]


def shows_bars() -> bool:
    """Whether a bar that is drawn again and again shows: on a terminal, and in a notebook that has widgets.

    rich draws in a notebook by itself, into a widget of `ipywidgets`; without that package it would show nothing.
    """
    if sys.stderr.isatty():
        return True
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    # Colab and others have a shell of their own, derived from this class.
    notebook = any(each.__name__ == "ZMQInteractiveShell" for each in type(shell).__mro__)
    return notebook and importlib.util.find_spec("ipywidgets") is not None


def printable(text: str, keep: str = "") -> str:
    """The text with every character that is not printable written as its code.

    Args:
        text: Any text.
        keep: Characters to leave as they are, such as line ends.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode("ascii")
        for each in text
    )


def say(text: object = "", *, error: bool = False, end: str = "\n", flush: bool = False) -> None:
    """Print a text, with every character that is not printable as its code, but for ends of lines.

    Args:
        text: Any value; what `str` gives is printed.
        error: Print to standard error, in place of standard output.
        end: What follows the text.
        flush: Print it at once.
    """
    shown = printable(str(text), keep="\n")
    print(shown, end=end, file=sys.stderr if error else sys.stdout, flush=flush)


def unmarked(text: str) -> str:
    """The text for rich's displays: printable, and what looks like rich's markup is shown as it is.

    Args:
        text: Any text.

    >>> unmarked("[red]") == "\\\\[red]", unmarked("\\x1b[2J") == "\\\\x1b[2J"
    (True, True)
    """
    from rich.markup import escape

    return escape(printable(text, keep="\n"))

"""Text that is safe to print on a terminal, whatever file it came from.

A name in a file may hold escape sequences that move the cursor, change the title or the clipboard, and characters that
reverse the direction of what follows. `printable` writes all of them as their codes.

>>> printable("conv1\\x1b[2J\\u202egnp.txt")
'conv1\\\\x1b[2J\\\\u202egnp.txt'
>>> printable("Größe 模型")
'Größe 模型'
"""

from __future__ import annotations

__all__ = ["printable"]


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

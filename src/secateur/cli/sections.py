"""`Sections`: the help of the command line with the verbs in groups, and a whole sentence for each.

>>> [title for title, _ in SECTIONS]
['A model', 'Files', 'Checkpoints larger than memory', 'Recipes', 'Runs', 'Names']
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

__all__ = ["SECTIONS", "Sections"]

SECTIONS = (
    ("A model", ("explain", "shrink", "compress", "measure", "scan", "factorise", "export", "serve-check")),
    ("Files", ("pack", "unpack", "inspect")),
    ("Checkpoints larger than memory", ("prune", "share", "compensate")),
    ("Recipes", ("demo", "run", "sweep", "compare", "search", "auto", "smallest", "study")),
    ("Runs", ("runs", "show", "report", "watch", "gc")),
    ("Names", ("list", "schema")),
)


class Sections(TyperGroup):
    """The verbs in groups, those that are in none last."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of verbs.

        Args:
            ctx: The call.
            formatter: Where to write.
        """
        left = dict.fromkeys(self.list_commands(ctx))
        for title, names in (*SECTIONS, ("More", tuple(left))):
            rows = [(name, self._sentence(ctx, name)) for name in names if name in left]
            for name, _ in rows:
                left.pop(name)
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def _sentence(self, ctx: Any, name: str) -> str:
        """The first sentence of a verb's help."""
        command = self.get_command(ctx, name)
        text = " ".join(((command and command.help) or "").partition("\n\n")[0].split())
        return text.partition(". ")[0].removesuffix(".") + "."

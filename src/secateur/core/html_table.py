"""Tables as HTML, for notebooks: every cell is escaped, so that no name can inject markup.

>>> html_table(("layer", "MACs"), [("<b>", 12)])
'<table><thead><tr><th>layer</th><th>MACs</th></tr></thead><tbody><tr><td>&lt;b&gt;</td><td>12</td></tr></tbody></table>'
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

__all__ = ["html_table"]


def html_table(head: Sequence[str], rows: Iterable[Sequence[object]], notes: Sequence[str] = ()) -> str:
    """A table as plain HTML.

    Args:
        head: The column titles.
        rows: The cells, row by row; each is shown as its text.
        notes: Paragraphs below the table.
    """

    def row(cells: Sequence[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    below = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return f"<table><thead>{row(head, 'th')}</thead><tbody>{body}</tbody></table>{below}"

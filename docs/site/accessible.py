"""What the theme's pages lack for a screen reader, added to each page as it is built. A hook of MkDocs.

What the theme does later, in the browser, is mended by `docs/assets/site.js`, its colours by `docs/assets/site.css`;
`python docs/site/check.py site` finds with axe-core what is missing.
"""

from __future__ import annotations

import re
from collections import Counter

__all__ = ["accessible", "on_post_page"]

_LABEL = re.compile(r'id="(__nav_[\w]+_label)"[^>]*>(.*?)</label>', re.DOTALL)
_LABELLED = re.compile(r'aria-labelledby="(__nav_[\w]+_label)"')


def on_post_page(output: str, **_: object) -> str:
    """The page as it is written."""
    return accessible(output)


def accessible(page: str) -> str:
    """A page of the theme with names and headings as a screen reader needs them.

    Args:
        page: The page as HTML.

    Returns:
        The page whose search is a dialog with a name, whose lists of pages are named by their section, and
        whose tables have no heading without text.
    """
    titles = {label: " ".join(re.sub(r"<[^>]*>", " ", text).split()) for label, text in _LABEL.findall(page)}
    page = _LABELLED.sub(lambda found: f'aria-label="Pages of {titles.get(found[1]) or found[1]}"', page)
    page = page.replace(
        'data-md-component="search" role="dialog"',
        'data-md-component="search" role="dialog" aria-label="Search"',
    )
    page = page.replace(
        'class="md-search__options" aria-label="Search"', 'class="md-search__options" aria-label="Sharing"'
    )
    seen: Counter[str] = Counter()

    def numbered(found: re.Match[str]) -> str:
        seen[found[1]] += 1
        again = f", {seen[found[1]]}" if seen[found[1]] > 1 else ""
        return f'<nav class="md-nav" aria-label="Parts of {found[1]}{again}">'

    page = re.sub(r'<nav class="md-nav" aria-label="([^"]*)">', numbered, page)
    return re.sub(r"<th(\s[^>]*)?>\s*</th>", r"<td\1></td>", page)

"""What the documentation site's hook adds to the theme's pages."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "site"))

from accessible import accessible

PAGE = """
<div class="md-search" data-md-component="search" role="dialog">
<nav class="md-search__options" aria-label="Search"></nav></div>
<nav class="md-nav" data-md-level="1" aria-labelledby="__nav_2_label"></nav>
<label class="md-nav__title" id="__nav_2_label"> <span></span> How to </label>
<nav class="md-nav" aria-label="Example"></nav><nav class="md-nav" aria-label="Example"></nav>
<table><tr><th></th><th style="text-align: right"> </th><th>goal</th></tr></table>
"""


def test_a_page_has_names_of_its_own_and_no_heading_without_text():
    made = accessible(PAGE)
    assert 'role="dialog" aria-label="Search">' in made
    assert '<nav class="md-search__options" aria-label="Sharing">' in made
    assert '<nav class="md-nav" data-md-level="1" aria-label="Pages of How to">' in made
    assert (
        made.count('aria-label="Parts of Example">') == made.count('aria-label="Parts of Example, 2">') == 1
    )
    assert '<td></td><td style="text-align: right"></td><th>goal</th>' in made

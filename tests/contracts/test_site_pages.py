"""What the documentation site's hook adds to the theme's pages."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "site"))

import notebooks
from accessible import accessible

from secateur.report.theme import THEMES

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


def test_a_notebook_is_a_page_with_its_outputs_and_both_themes_charts() -> None:
    path = notebooks.FOLDER / "shrink-a-cnn.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    text, pictures = notebooks.page(notebook, path.stem)
    assert text.startswith("# Shrink a CNN\n")
    assert text.count("download the notebook](shrink-a-cnn.ipynb)") == 1
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert text.count("```python\n") == len(code)
    assert "```text\n0.9750 masked, 0.9750 small\n```" in text
    assert "<td>nonzeros</td><td>3,866</td>" in text
    assert [*pictures] == ["shrink-a-cnn-1-light.svg", "shrink-a-cnn-1-dark.svg"]
    for name, picture in pictures.items():
        theme = name.split("-")[-1].removesuffix(".svg")
        assert f"]({name}#only-{theme})" in text
        assert picture.startswith(b"<svg")
        assert THEMES[theme]["page"].encode() in picture
        assert b"multiply-accumulates" in picture

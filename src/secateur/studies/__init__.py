"""Published studies as recipes: one TOML file a study, and one with the published figures. A study is a recipe for
several sweeps at once: common steps, parts with a grid each, scales from a minute on embedded data to the published
epochs, and the tables to print. The file's name is the study's; nothing else has to be edited to add one.

In reading order: `study` (the value that a recipe is read into), `running` (its parts as sweeps), `table` (its tables),
`page` and `section` (the results as text, and as they are kept beside a page).

>>> "vae" in names()
True
>>> read("vae").scale["smoke"].set["data.name"]
'digits'
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from secateur.errors import UnknownNameError, near

if TYPE_CHECKING:
    from secateur.studies.study import Study

__all__ = ["described", "names", "read", "text_of"]

_PUBLISHED = ".published"


def _files() -> dict[str, str]:
    folder = resources.files(__name__)
    return {
        entry.name.removesuffix(".toml"): entry.name
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".toml")
    }


def names() -> list[str]:
    """The names of all studies."""
    return [name for name in _files() if not name.endswith(_PUBLISHED)]


def text_of(name: str, *, published: bool = False) -> str:
    """The text of a study's recipe, or of the figures published; empty where none were."""
    if name not in names():
        raise UnknownNameError(f"unknown study {name!r}: {near(name, names())}")
    wanted = _files().get(name + _PUBLISHED if published else name)
    return resources.files(__name__).joinpath(wanted).read_text(encoding="utf-8") if wanted else ""


def read(name: str) -> Study:
    """A study by its name."""
    from secateur.studies.study import Study

    return Study.parse(text_of(name), name)


def described() -> list[tuple[str, str]]:
    """(name, title) of every study.

    >>> dict(described())["vae"]
    'Structured pruning of a variational auto-encoder'
    """
    import tomllib

    return [(name, str(tomllib.loads(text_of(name))["title"])) for name in names()]

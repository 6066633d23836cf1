"""`Registry`: the plug-ins of one folder, found by file name and imported when first asked for.

The file name is the word used in recipes and on the command line; the class is its CamelCase. So `criteria/fpgm.py`
holds the class `Fpgm` and answers to the word `fpgm`. To add a plug-in, add a file: no list has to be edited. Listing
the words reads file names only, so it imports neither the plug-ins nor torch.

>>> from secateur import criteria
>>> "magnitude" in criteria.registry.names()
True
>>> criteria.registry.get("magnitude").__name__
'Magnitude'
"""

from __future__ import annotations

import importlib
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from secateur.errors import OptionError, UnknownNameError, near

__all__ = ["Registry", "camel"]

_TABLE = "per_layer"  # the word of a plug-in that takes a dict, in folders that have one


def camel(word: str) -> str:
    """The class name that belongs to a file name.

    >>> camel("per_tensor"), camel("n_of_m"), camel("l1")
    ('PerTensor', 'NOfM', 'L1')
    """
    return "".join(part[:1].upper() + part[1:] for part in word.split("_"))


class Registry:
    """The plug-ins of one folder.

    Args:
        package: The dotted path of the folder.
        path: The folder itself, as a package's `__path__`.
        kind: The name of one plug-in in messages, such as "criterion".
        base: Where the base class is, as "module:Class"; values of it are taken as they are.
        aliases: Other words for a plug-in, such as "k-means" for "kmeans".
        deprecated: Words of earlier versions and their present names; they work, with a `DeprecationWarning`.
        suffix: The ending of a class name after the CamelCase of its file name, such as "Step".
        number: The word of the plug-in that a bare number means.

    >>> from secateur import budget
    >>> budget.registry.make(0.5)
    PerTensor(sparsity=0.5)
    """

    def __init__(
        self,
        package: str,
        path: Sequence[str],
        kind: str,
        *,
        base: str = "",
        aliases: Mapping[str, str] | None = None,
        deprecated: Mapping[str, str] | None = None,
        suffix: str = "",
        number: str | None = None,
    ):
        self.package = package
        self.kind = kind
        self.aliases = dict(aliases or {})
        self.deprecated = dict(deprecated or {})
        self._base = base
        self._path = list(path)
        self._suffix = suffix
        self._number = number

    def names(self) -> list[str]:
        """The words of this folder, sorted; read from the file names."""
        # A folder inside is no plug-in: it may be a registry of its own.
        files = (file for folder in self._path for file in os.listdir(folder))
        return sorted(
            {name for name, end in map(os.path.splitext, files) if end == ".py" and name[:1] != "_"}
        )

    def word(self, word: str) -> str:
        """The file name behind a word or an alias, or an error with the nearest words.

        >>> from secateur import criteria
        >>> criteria.registry.word("level")
        'magnitude'
        """
        if word in self.deprecated:
            name = self.deprecated[word]
            message = f"the {self.kind} {word!r} is called {name!r} now; the old word will be removed in 1.0"
            warnings.warn(message, DeprecationWarning, stacklevel=3)
            return name
        name = self.aliases.get(word, word)
        names = self.names()
        if name not in names:
            hint = near(word, [*names, *self.aliases])
            if self._number is not None and hint.startswith("known"):
                hint += "; or a number such as 0.5"
            raise UnknownNameError(f"unknown {self.kind} {word!r}: {hint}")
        return name

    def get(self, word: str) -> Any:
        """The class behind a word, or an error with the nearest words."""
        name = self.word(word)
        module = importlib.import_module(f"{self.package}.{name}")
        return getattr(module, camel(name) + self._suffix)

    def make(self, value: Any, **options: Any) -> Any:
        """A plug-in value from a word, a number (where the folder says what one means), a class or a value."""
        if isinstance(value, str):
            self._refuse_number(value)
            return self.get(value)(**options)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and self._number is not None:
            return self.get(self._number)(value, **options)
        if isinstance(value, type):
            return value(**options)
        if self._base:
            module, _, name = self._base.partition(":")
            if not isinstance(value, getattr(importlib.import_module(module), name)):
                hint = ""
                if isinstance(value, Mapping) and _TABLE in self.names():
                    hint = f"; a table is sc.{self.package.rpartition('.')[2]}.{camel(_TABLE)}({value!r})"
                raise OptionError(
                    f"expected a {self.kind} (a name such as {self.names()[0]!r}, or a value), got {value!r} of "
                    f"type {type(value).__name__}{hint}"
                )
        return value

    def _refuse_number(self, text: str) -> None:
        """Raise where a bare number is allowed, and the text is one, or a percentage."""
        found = re.fullmatch(r"\s*(\d*\.?\d+)\s*(%?)\s*", text)
        if found is None or self._number is None:
            return
        share = float(found[1]) / 100 if found[2] else float(found[1])
        raise OptionError(
            f"{self.kind}: expected a number or a name such as {self.names()[0]!r}, got the text {text!r}; write "
            f"{share:g}"
        )

    def attribute(self, name: str) -> Any:
        """The class of this name: what a package's `__getattr__` calls."""
        for word in [*self.names(), *self.deprecated]:
            if camel(word) + self._suffix == name:
                return self.get(word)
            if camel(word) == name:  # the name from before classes of this folder had a suffix
                message = f"{self.package}.{name} is called {name}{self._suffix} now"
                warnings.warn(message, DeprecationWarning, stacklevel=3)
                return self.get(word)
        known = [camel(word) + self._suffix for word in self.names()]
        raise AttributeError(f"module {self.package!r} has no attribute {name!r}: {near(name, known)}")

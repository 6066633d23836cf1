"""A plug-in folder IS its registry: the file name is the word used in recipes, the class its CamelCase.

`criteria/fpgm.py` holds the class `Fpgm` and answers to the word `fpgm`; nothing else has to be edited. Names are
read from the folder without importing anything, so listing them costs no torch.

>>> from secateur import criteria
>>> "magnitude" in criteria.registry.names()
True
>>> criteria.registry.get("magnitude").__name__
'Magnitude'
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any

from secateur.errors import OptionError, UnknownNameError, near

__all__ = ["Registry", "camel"]


def camel(word: str) -> str:
    """The class name that belongs to a file name.

    >>> camel("per_tensor"), camel("n_of_m"), camel("l1")
    ('PerTensor', 'NOfM', 'L1')
    """
    return "".join(part[:1].upper() + part[1:] for part in word.split("_"))


class Registry:
    """The plug-ins of one folder, imported only when asked for. `kind` is the word used in messages.

    >>> from secateur import budget
    >>> budget.registry.make(0.5)
    PerTensor(sparsity=0.5)
    """

    def __init__(
        self,
        package: str,
        path: Sequence[str],
        kind: str,
        aliases: dict[str, str] | None = None,
        number: str | None = None,
    ):
        self.package = package
        self.kind = kind
        self.aliases = dict(aliases or {})
        self._path = list(path)
        self._number = number

    def names(self) -> list[str]:
        """The words of this folder, sorted; read from the file names."""
        # A folder inside is no plug-in: it may be a registry of its own.
        found = (module.name for module in pkgutil.iter_modules(self._path) if not module.ispkg)
        return sorted(name for name in found if not name.startswith("_"))

    def get(self, word: str) -> Any:
        """The class behind a word, or an error with the nearest words."""
        name = self.aliases.get(word, word)
        names = self.names()
        if name not in names:
            raise UnknownNameError(f"unknown {self.kind} {word!r}: {near(word, [*names, *self.aliases])}")
        module = importlib.import_module(f"{self.package}.{name}")
        return getattr(module, camel(name))

    def make(self, value: Any, **options: Any) -> Any:
        """A plug-in value from a word, a number (where the folder says what one means), a class or a value."""
        if isinstance(value, str):
            return self.get(value)(**options)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and self._number is not None:
            return self.get(self._number)(value, **options)
        if isinstance(value, type):
            return value(**options)
        base = importlib.import_module(self.package)
        wanted = getattr(base, "Base", None)
        if wanted is not None and not isinstance(value, wanted):
            raise OptionError(
                f"expected a {self.kind} (a name such as {self.names()[0]!r}, or a value), got {value!r} of type "
                f"{type(value).__name__}"
            )
        return value

    def attribute(self, name: str) -> Any:
        """Serve `package.CamelCase`: what a package's `__getattr__` calls."""
        for word in self.names():
            if camel(word) == name:
                return self.get(word)
        raise AttributeError(
            f"module {self.package!r} has no attribute {name!r}: {near(name, [camel(word) for word in self.names()])}"
        )

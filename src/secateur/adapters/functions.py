"""Functions that a user names as `package.module:function`: of a model, of data, of a judgement.

Whether a name may be imported at all is decided before (`lab.trust`); here it is.

>>> find("math:hypot", "evaluate")(3, 4)
5.0
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

from secateur.adapters.own_sources import OwnSource, own_sources
from secateur.errors import OptionError, UnknownNameError, near

__all__ = ["check_options", "find", "source_digest"]

_EXPECTED = "package.module:function, with the package installed or its folder in PYTHONPATH"
_MAKES = {"model": "a function or class that makes a model", "data": "a function that returns data"}
_MAKES |= {
    kind: f"a class of your own, or a function that makes a {kind}"
    for kind in ("criterion", "granularity", "budget")
}


def find(reference: str, kind: str) -> Callable[..., Any]:
    """The function of a name; its module is imported.

    Args:
        reference: `package.module:function`.
        kind: What is asked for, in messages: model, data, evaluate.

    Returns:
        The function, or the class.

    Raises:
        UnknownNameError: There is no such module or function.
        OptionError: It is no `module:function`, or what it names cannot be called.

    >>> find("./mine:build", "model")
    Traceback (most recent call last):
    secateur.errors.UnknownNameError: model './mine:build': a module is written without its folder and ending: did
    you mean mine:build? ...
    """
    module_name, colon, attribute = reference.partition(":")
    if not colon or not module_name or not attribute:
        raise OptionError(f"{kind} {reference!r}: expected {_EXPECTED}, got no module:function")
    if module_name.startswith(".") or "/" in module_name or "\\" in module_name:
        raise UnknownNameError(
            f"{kind} {reference!r}: a module is written without its folder and ending: did you mean "
            f"{_plain(module_name)}:{attribute}? expected {_EXPECTED}"
        )
    try:
        found: Any = _imported(module_name)
    except ModuleNotFoundError as error:
        meant = f"did you mean {_plain(module_name)}:{attribute}? " if module_name.endswith(".py") else ""
        raise UnknownNameError(
            f"{kind} {reference!r}: no module {error.name!r} on the import path or in this folder; {meant}expected "
            f"{_EXPECTED}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in dir(found) if not name.startswith("_")]
            hint = near(part, public) if public else "it has no public name"
            raise UnknownNameError(f"{kind} {reference!r}: module {module_name} has no {attribute!r}; {hint}")
        found = getattr(found, part)
    if not callable(found):
        raise OptionError(
            f"{kind} {reference!r}: expected {_MAKES.get(kind, 'a function')}, got {type(found).__name__}"
        )
    made: Callable[..., Any] = found
    return made


def _plain(module: str) -> str:
    """A module's name where its file was written: `./a/b.py` is `a.b`; of a folder elsewhere only the file's name."""
    path = module.replace("\\", "/").removesuffix(".py")
    if path.startswith(("/", "../", "~")) or ":" in path:
        path = path.rpartition("/")[2]
    return path.replace("/", ".").strip(".")


def _imported(name: str) -> ModuleType:
    """Import a module; the folder a command is run in is searched too, as Python does for a script's own folder."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        here = os.getcwd()
        if here in sys.path or error.name not in (name, name.partition(".")[0]):
            raise
    sys.path.append(here)  # last, so that it hides nothing
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        sys.path.remove(here)
        raise


def check_options(function: Callable[..., Any], options: dict[str, object], what: str) -> None:
    """Refuse options that a function does not take.

    Args:
        function: The function.
        options: What it would be called with, by keyword.
        what: What it is, in messages: `model 'mine:net'`.

    Raises:
        OptionError: They do not fit.
    """
    try:
        inspect.signature(function).bind(**options)
    except TypeError as error:
        raise OptionError(f"{what}: the options {options} do not fit it: {error}") from error
    except ValueError:
        pass  # some callables have no signature to check; the call itself will tell


def source_digest(reference: str, kind: str) -> str:
    """What identifies the code of a function, so that outcomes in a store depend on it; "" without a file.

    Args:
        reference: `package.module:function`.
        kind: As in `find`.

    Returns:
        The SHA-256 of the file that its module is in; where that reaches other modules of the user's own by imports
        (`own_sources`), one of the names and files of all of them.

    Raises:
        OptionError: One of the files has changed since this process asked first: it runs the code of before.
    """
    function = find(reference, kind)
    module = reference.partition(":")[0]
    files = own_sources(module)
    if module not in files:
        return ""
    try:
        first = _FIRST.setdefault(function, files)
    except TypeError:  # a callable that cannot be remembered
        first = files
    # a module that is found only since the code ran, as in a folder that it adds to sys.path, is no change
    changed = [own.path for name, own in files.items() if name in first and first[name].digest != own.digest]
    if changed:
        raise OptionError(
            f"{kind} {reference!r}: {changed[0]} has changed since this process imported it: expected the same file, "
            "got another; start Python again, so that what is stored belongs to the code that ran"
        )
    if len(first) == 1:
        return first[module].digest
    text = "".join(f"{name} {own.digest}\n" for name, own in first.items())
    return hashlib.sha256(text.encode()).hexdigest()


_FIRST: weakref.WeakKeyDictionary[Callable[..., object], dict[str, OwnSource]] = weakref.WeakKeyDictionary()
"""The files of a function when they were first asked for."""

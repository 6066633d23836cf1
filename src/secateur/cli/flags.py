"""Groups of options as frozen dataclasses, and `with_flags`, which turns a function of such groups into a command.

A command with twenty options is a function of a few values. Each value is a frozen dataclass whose fields are
options, written as Typer writes them; `with_flags` replaces the value by its fields in the function's signature, so
that Typer sees every option, and puts the value together again when the command runs.

>>> from secateur.cli.options import OutputFlags
>>> def hello(name: str, output: OutputFlags) -> None:
...     print({"hello": name} if output.json else f"hello {name}")
>>> command = with_flags(hello)
>>> list(inspect.signature(command).parameters)
['name', 'json', 'debug']
>>> command(name="Ada", json=True, debug=False)
{'hello': 'Ada'}
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import get_type_hints

__all__ = ["with_flags"]

_Command = Callable[..., None]


def with_flags(command: Callable[..., None]) -> _Command:
    """The command whose options are the fields of the frozen dataclasses that `command` takes.

    Args:
        command: A function; a parameter annotated with a dataclass is a group of options, any other is one option.

    Returns:
        A function of keyword arguments, one for each option.

    Raises:
        TypeError: Two options have the same name.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, tuple[type, list[str]]] = {}
    options: dict[str, inspect.Parameter] = {}
    for parameter in inspect.signature(command).parameters.values():
        annotation = hints[parameter.name]
        if not dataclasses.is_dataclass(annotation):
            found = [_option(parameter.name, annotation, parameter.default)]
        else:
            assert isinstance(annotation, type)
            found = _options_of(annotation)
            groups[parameter.name] = annotation, [option.name for option in found]
        for option in found:
            if option.name in options:
                raise TypeError(
                    f"{command.__name__}: two options are called {option.name!r}; rename one of them"
                )
            options[option.name] = option

    @functools.wraps(command)
    def expanded(**given: object) -> None:
        values = {
            name: kind(**{key: given.pop(key) for key in keys}) for name, (kind, keys) in groups.items()
        }
        command(**values, **given)

    # Typer reads the signature; without `__wrapped__` it cannot find the unexpanded one behind it.
    del expanded.__wrapped__
    expanded.__signature__ = inspect.Signature(list(options.values()))  # type: ignore[attr-defined]
    expanded.__annotations__ = {option.name: option.annotation for option in options.values()}
    return expanded


def _option(name: str, annotation: object, default: object) -> inspect.Parameter:
    """One parameter, given by keyword."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _options_of(group: type) -> list[inspect.Parameter]:
    """The fields of a dataclass as parameters."""
    hints = get_type_hints(group, include_extras=True)
    empty = inspect.Parameter.empty
    return [
        _option(
            field.name, hints[field.name], empty if field.default is dataclasses.MISSING else field.default
        )
        for field in dataclasses.fields(group)
    ]

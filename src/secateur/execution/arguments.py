"""`Arguments`: the models and masks among a verb's arguments, checked and unwrapped in one place for all verbs.

A result that holds a model, such as those of `shrink`, `share` and `compensate`, stands for its model, unless the verb
names its class among what it takes. What is no model at all is refused, with the next step.

>>> from types import SimpleNamespace
>>> from torch import nn
>>> def count(model: nn.Module, masks: Masks | None = None) -> int: ...
>>> arguments, net = Arguments(count), nn.Linear(1, 1)
>>> given, _ = arguments.read((SimpleNamespace(model=net),), {})
>>> given[0] is net
True
>>> arguments.read((nn.Linear,), {})
Traceback (most recent call last):
secateur.errors.OptionError: model: expected a torch.nn.Module, got the class Linear; make one first: Linear(...)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from secateur.core.masks import Masks, as_masks
from secateur.core.model_kinds import module_of
from secateur.errors import OptionError
from secateur.execution.example import takes_a_dict

__all__ = ["Arguments"]

_MODELS = ("model", "into", "a", "b", "before", "after")
"""The parameters of a verb that are models it works on."""
_READ = ("dense",)
"""The parameters that are models a verb only reads."""


class Arguments:
    """The parameters of a verb that are models or masks.

    Args:
        function: The verb; its annotations say which other kinds it takes.
    """

    def __init__(self, function: Callable[..., object]):
        self.names = list(inspect.signature(function).parameters)
        self._kinds = {
            name: _words(each.annotation)
            for name, each in inspect.signature(function).parameters.items()
            if name in (*_MODELS, *_READ, "masks")
        }

    def read(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with every model and all masks as the verb takes them.

        Raises:
            OptionError: A model or masks are of another kind; the text says which, and what to do.
        """
        places, named = list(args), dict(kwargs)
        for name, kinds in self._kinds.items():
            where: Any = places if (at := self.names.index(name)) < len(places) else named
            key: Any = at if where is places else name
            if where is named and name not in named:
                continue
            value = where[key]
            if type(value).__name__ in kinds or (value is None and "None" in kinds):
                continue
            if "MasksLike" in kinds and (value is None or isinstance(value, str)):
                continue  # words that the verb checks
            try:
                where[key] = as_masks(value) if name == "masks" else _model(value, name, kinds)
            except OptionError as error:
                raise OptionError(f"{error}{self._order(args)}") from None
        self._whole_dict(places, named)
        return tuple(places), named

    def _whole_dict(self, places: list[Any], named: dict[str, Any]) -> None:
        """Make a dict the one argument of a model that takes it whole; else it would be taken for keywords."""
        at = self.names.index("example") if "example" in self.names else len(places)
        where: Any = places if at < len(places) else named
        key: Any = at if where is places else "example"
        value = where[key] if where is places else named.get(key)
        if isinstance(value, Mapping) and any(
            takes_a_dict(each, value) for each in self.models(tuple(places), named)
        ):
            where[key] = (value,)

    def models(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[nn.Module]:
        """The models that the verb works on, with those inside results that it takes as they are."""
        given = [
            args[at] if (at := self.names.index(name)) < len(args) else kwargs.get(name)
            for name in self._kinds
            if name in _MODELS
        ]
        models = [each if isinstance(each, nn.Module) else getattr(each, "model", None) for each in given]
        return [model for model in models if isinstance(model, nn.Module)]

    def _order(self, args: tuple[Any, ...]) -> str:
        """The order of the arguments, where masks and model may have been exchanged."""
        if "masks" not in self._kinds or not any(isinstance(each, (Masks, nn.Module)) for each in args):
            return ""
        return f". The order of the arguments is {', '.join(self.names[: max(2, len(args))])}"


def _words(annotation: object) -> frozenset[str]:
    """The names of the kinds in an annotation, without their modules: of "nn.Module | None" Module and None."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return frozenset(each.strip().partition("[")[0].rpartition(".")[2] for each in text.split("|"))


def _model(value: Any, name: str, kinds: frozenset[str]) -> Any:
    """The model that is meant, or the value itself where the verb takes other kinds too."""
    if isinstance(value, type) or not kinds - {"Module", "None"}:
        return module_of(value, name)
    if isinstance(value, nn.Module):
        return value  # one with a module called `model` is meant itself
    held = getattr(value, "model", None)
    return held if "HasModel" not in kinds and isinstance(held, nn.Module) else value

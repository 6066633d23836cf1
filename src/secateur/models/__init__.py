"""The studies' networks, one file each, and any other model by name: `build` makes them all.

A name is a file of this folder (`resnet20`, `vgg16-lottery`; hyphen and underscore are the same), a name of
another library (`timm/NAME`, `torchvision/NAME`, `hf/NAME`), or a function of your own
(`package.module:function`).

>>> model = build("resnet20", num_classes=10)
>>> sum(parameter.numel() for parameter in model.parameters()), input_shape(model)
(269722, (3, 32, 32))
"""

from __future__ import annotations

from typing import Any

from torch import nn

from secateur.errors import OptionError, UnknownNameError, near
from secateur.registry import Registry

__all__ = ["build", "input_shape", "names", "normalisation", "registry"]

registry = Registry(__name__, __path__, "model")

_LIBRARIES = ("timm", "torchvision", "hf")


def __getattr__(name: str) -> Any:
    return registry.attribute(name)


def names() -> list[str]:
    """The models of this folder, as recipes write them.

    >>> "vgg16-lottery" in names()
    True
    """
    return [word.replace("_", "-") for word in registry.names()]


def build(name: str, **options: Any) -> nn.Module:
    """A fresh model from its name, initialised from torch's global random state.

    Options go to the model: `num_classes` and `in_channels` are understood wherever they make sense, also for
    `timm/`, `torchvision/` and `hf/` names. `package.module:function` is imported and called with the
    options.

    >>> build("fc")(__import__("torch").zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    library, slash, rest = name.partition("/")
    if slash and library in _LIBRARIES:
        from secateur.adapters import names as elsewhere

        return elsewhere.build(library, rest, options)
    if ":" in name:
        from secateur.adapters import names as elsewhere

        return elsewhere.call(name, options)
    word = name.replace("-", "_").lower()
    if word not in registry.names():
        raise UnknownNameError(
            f"unknown model {name!r}: {near(name, names())}; models of other libraries are written timm/NAME, "
            "torchvision/NAME or hf/NAME, your own package.module:function"
        )
    kind = registry.get(word)
    try:
        return kind(**options)
    except TypeError as error:
        import inspect

        known = [key for key in inspect.signature(kind.__init__).parameters if key != "self"]
        unknown = [key for key in options if key not in known]
        if not unknown:
            raise
        raise OptionError(
            f"model {name!r} has no option {unknown[0]!r}: {near(unknown[0], known)}"
        ) from error


def input_shape(model: nn.Module) -> tuple[int, int, int] | None:
    """The (channels, height, width) a model was made for: its `input_shape`, else what timm wrote on it, else
    None.

    >>> input_shape(build("cnn"))
    (1, 28, 28)
    """
    shape = getattr(model, "input_shape", None)
    if shape is None:
        shape = (getattr(model, "default_cfg", None) or {}).get("input_size")
    return None if shape is None else (int(shape[0]), int(shape[1]), int(shape[2]))


def normalisation(model: nn.Module) -> str:
    """How a model wants its inputs: `data` (mean and deviation of the training images) or `none` (pixels in
    0..1).

    >>> normalisation(build("vae")), normalisation(build("cnn"))
    ('none', 'data')
    """
    return str(getattr(model, "input_normalise", "data"))

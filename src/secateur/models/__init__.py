"""Models by name: the networks of the studies, one file each, and those of other libraries.

A name is a file of this folder (`resnet20`, `vgg16-lottery`; hyphen and underscore are the same), a name of another
library (`timm/NAME`, `torchvision/NAME`, `hf/NAME`, `ultralytics/NAME`), or a function of your own
(`package.module:function`), which is imported and called: `runs_code` says whether a name is of that kind.

>>> model = build("resnet20", num_classes=10)
>>> sum(parameter.numel() for parameter in model.parameters()), input_shape(model)
(269722, (3, 32, 32))
"""

from __future__ import annotations

from typing import Any

from torch import nn

from secateur.errors import OptionError, UnknownNameError, near
from secateur.registry import Registry

__all__ = ["build", "input_shape", "names", "normalisation", "registry", "runs_code"]

registry = Registry(__name__, __path__, "model")

_LIBRARIES = ("timm", "torchvision", "hf", "ultralytics")


def __getattr__(name: str) -> object:
    return registry.attribute(name)


def names() -> list[str]:
    """The models of this folder, as recipes write them.

    >>> "vgg16-lottery" in names()
    True
    """
    return [word.replace("_", "-") for word in registry.names()]


def runs_code(name: str) -> bool:
    """Whether building this name imports and calls a function of the user's, not a model of a known library.

    Args:
        name: A model's name.

    Returns:
        True for `package.module:function`.

    >>> runs_code("os:system"), runs_code("resnet20"), runs_code("timm/hf_hub:timm/resnet18.a1_in1k")
    (True, False, False)
    """
    library, slash, _ = name.partition("/")
    return ":" in name and not (slash and library in _LIBRARIES)


def build(name: str, **options: Any) -> nn.Module:
    """A fresh model, initialised from torch's global random state.

    `package.module:function` is imported and called with the options.

    Args:
        name: The model's name.
        options: Passed to the model. All libraries accept `num_classes` and `in_channels`.

    Returns:
        The model.

    Raises:
        UnknownNameError: There is no model of that name.
        OptionError: The model has no such option.

    >>> build("fc")(__import__("torch").zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    library, slash, rest = name.partition("/")
    if slash and library in _LIBRARIES:
        from secateur.adapters import names as elsewhere

        return elsewhere.build(library, rest, options)
    if runs_code(name):
        from secateur.adapters import names as elsewhere

        return elsewhere.call(name, options)
    word = name.replace("-", "_").lower()
    if word not in registry.names():
        if name.endswith((".pt", ".pth", ".safetensors", ".sct")):
            raise UnknownNameError(
                f"unknown model {name!r}: expected the name of a model first, got a file; weights follow the name of "
                f"their model, as in 'resnet20 {name}', and a checkpoint of ultralytics is written ultralytics/{name}"
            )
        raise UnknownNameError(
            f"unknown model {name!r}: {near(name, names())}; models of other libraries are written timm/NAME, "
            "torchvision/NAME, hf/NAME or ultralytics/NAME, your own package.module:function, and a model of Hugging "
            "Face may be a folder with its config.json, or a checkpoint of ultralytics the file ultralytics/FILE.pt"
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
    """The channels, height and width that a model was made for: its `input_shape`, else timm's `default_cfg`.

    Args:
        model: The model.

    Returns:
        (channels, height, width), or None where the model does not state it.

    >>> input_shape(build("cnn"))
    (1, 28, 28)
    """
    shape = getattr(model, "input_shape", None)
    if shape is None:
        shape = (getattr(model, "default_cfg", None) or {}).get("input_size")
    return None if shape is None else (int(shape[0]), int(shape[1]), int(shape[2]))


def normalisation(model: nn.Module) -> str:
    """How a model expects its inputs to be normalised.

    Args:
        model: The model.

    Returns:
        `data` (mean and deviation of the training images) or `none` (pixels in 0..1).

    >>> normalisation(build("vae")), normalisation(build("cnn"))
    ('none', 'data')
    """
    return str(getattr(model, "input_normalise", "data"))

"""Models of other libraries by name: `timm/NAME`, `torchvision/NAME`, `hf/NAME`, `ultralytics/NAME`
and `package.module:function`.

A library is imported only when one of its names is asked for. Weights are fetched only with `pretrained=True`.

>>> call("torch.nn:Linear", {"in_features": 3, "out_features": 2})
Linear(in_features=3, out_features=2, bias=True)
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import nn

from secateur.adapters import functions
from secateur.adapters.ultralytics import build_yolo
from secateur.errors import MissingExtraError, OptionError, UnknownNameError, near
from secateur.structure.hf.auto_classes import auto_class, classifying
from secateur.structure.hf.hub_code import check_attention

__all__ = ["build", "call"]

# The options that say which of a checkpoint's files are read: what is checked has to be what is loaded.
_HUB = ("cache_dir", "token", "local_files_only", "proxies", "force_download")
_WHERE = ("revision", "subfolder", "gguf_file", *_HUB)


def _need(module: str, extra: str, name: str) -> ModuleType:
    """A library, or the error that names the extra which brings it."""
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:
        # torchvision raises RuntimeError when it was built for another torch.
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == module
        if missing:
            raise MissingExtraError(
                f"model {name!r} needs the library {module}, but it is not installed; next: pip install "
                f"'secateur[{extra}]'"
            ) from error
        # timm and transformers import torchvision, which breaks with a torch it was not built for.
        culprit = "torchvision" if "torchvision" in str(error) else module
        raise MissingExtraError(
            f"model {name!r} needs the library {module}, which is installed but cannot be imported "
            f"({str(error).splitlines()[0]}); next: install the {culprit} that was built for torch "
            f"{torch.__version__.partition('+')[0]}, or uninstall it if nothing needs it"
        ) from error


def _timm(name: str, options: dict[str, object]) -> nn.Module:
    timm = _need("timm", "timm", f"timm/{name}")
    if "in_channels" in options:
        options["in_chans"] = options.pop("in_channels")
    base = name.split(".")[0]
    if "/" not in name and not timm.is_model(base):
        raise UnknownNameError(f"timm has no model {name!r}: {near(base, timm.list_models())}")
    return timm.create_model(name, **options)


def _torchvision(name: str, options: dict[str, object]) -> nn.Module:
    models = _need("torchvision", "torchvision", f"torchvision/{name}").models
    pretrained = options.pop("pretrained", False)
    if options.pop("in_channels", 3) != 3:
        raise OptionError(
            f"model 'torchvision/{name}': torchvision's models take 3 input channels and have no option for "
            "another number; load the data with channels=3"
        )
    if name not in models.list_models():
        raise UnknownNameError(f"torchvision has no model {name!r}: {near(name, models.list_models())}")
    return models.get_model(name, weights="DEFAULT" if pretrained else None, **options)


def _refuse_adapter(name: str, options: dict[str, object]) -> None:
    """Raise where transformers would find an adapter of PEFT, by whichever of its lookups.

    An adapter names the model that is really loaded, and modules that are imported.

    Args:
        name: The checkpoint.
        options: What it is loaded with.

    Raises:
        OptionError: It has an adapter_config.json, and PEFT is installed.
    """
    utils: Any = importlib.import_module("transformers.utils")
    if not utils.is_peft_available():
        return
    where: dict[str, Any] = {key: options[key] for key in _HUB if key in options}
    for revision in {None, options.get("revision")}:
        for subfolder in {"", options.get("subfolder") or ""}:
            at: dict[str, Any] = {"subfolder": subfolder, "revision": revision}
            if utils.find_adapter_config_file(name, **where, **at) is not None:
                raise OptionError(
                    f"model 'hf/{name}': expected a whole model, got an adapter (adapter_config.json), which names "
                    "another model and modules to import; merge it into its model with PEFT (merge_and_unload, then "
                    "save_pretrained) and give that folder, or build the model in Python"
                )


def _hf(name: str, options: dict[str, object]) -> nn.Module:
    transformers = _need("transformers", "transformers", f"hf/{name}")
    pretrained = options.pop("pretrained", None)
    for ours, theirs in (("num_classes", "num_labels"), ("in_channels", "num_channels")):
        if ours in options:
            options[theirs] = options.pop(ours)
    word = options.pop("auto_class", None)
    if word is not None and not (str(word).startswith("AutoModel") and hasattr(transformers, str(word))):
        raise OptionError(
            f"model 'hf/{name}': auto_class: expected a class of transformers such as AutoModelForImageClassification, "
            f"got {word!r}"
        )
    if word is None and "num_labels" in options:
        word = classifying  # whatever task the checkpoint is of
    # Never left open: transformers would ask on the terminal whether to run the code that a checkpoint brings.
    trusted = bool(options.pop("trust_remote_code", False))
    trust = {"trust_remote_code": trusted}
    architecture = name in transformers.CONFIG_MAPPING
    if architecture and pretrained:
        raise OptionError(
            f"model 'hf/{name}' is an architecture, which has no weights of its own; name a checkpoint (a "
            "hub name or a local folder) for pretrained=True"
        )
    try:
        if not (architecture or trusted):
            _refuse_adapter(name, options)
        if architecture:
            config = transformers.AutoConfig.for_model(name, **options)
            return _class(transformers, word, config, name, trusted=False).from_config(config)
        if pretrained is False:
            config = _config(transformers, name, trusted, options)
            check_attention(config, f"model 'hf/{name}'")
            return _class(transformers, word, config, name, trusted).from_config(config, **trust)
        where = {key: options[key] for key in _WHERE if key in options}
        config = _config(transformers, name, trusted, where)
        if "attn_implementation" not in options and not trusted:
            check_attention(config, f"model 'hf/{name}'")
        return _class(transformers, word, config, name, trusted).from_pretrained(name, **trust, **options)
    except ImportError as error:
        raise MissingExtraError(
            f"model 'hf/{name}': transformers could not import what it needs ({str(error).splitlines()[0]}); "
            "next: pip install 'secateur[transformers]', and torchvision in the build that belongs to your "
            "torch"
        ) from error
    except OSError as error:
        raise UnknownNameError(
            f"transformers finds no checkpoint {name!r} here or on the hub ({str(error).splitlines()[0]}); "
            "give a local folder, a name that is in the cache, or an architecture: "
            f"{near(name, transformers.CONFIG_MAPPING)}"
        ) from error


def _config(transformers: Any, name: str, trusted: bool, options: Mapping[str, object]) -> Any:
    """The configuration of a checkpoint; one that transformers cannot read is refused in a sentence."""
    try:
        return transformers.AutoConfig.from_pretrained(name, trust_remote_code=trusted, **options)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise OptionError(
            f"model 'hf/{name}': transformers {transformers.__version__} cannot read its config.json "
            f"({str(error).splitlines()[0][:160] if str(error) else type(error).__name__}); "
            "expected that of a model it knows"
        ) from error


def _class(transformers: Any, word: object, config: Any, name: str, trusted: bool) -> Any:
    """The AutoModel class: the one asked for, or a classifier of that kind (`classifying`), else the one that builds
    what the configuration is of.
    """
    if word is classifying:
        return getattr(transformers, classifying(config, f"model 'hf/{name}'"))
    if word is not None:
        return getattr(transformers, str(word))
    given = getattr(config, "auto_map", None)
    own = [each for each in given if str(each).startswith("AutoModel")] if isinstance(given, dict) else []
    try:
        return getattr(
            transformers, (own[0] if own and trusted else auto_class(config, f"model 'hf/{name}'"))
        )
    except (AttributeError, OptionError) as error:
        if own and not trusted:
            raise OptionError(
                f"model 'hf/{name}': the checkpoint brings the code of its model, which is not run unasked; read it, "
                "and then give the option trust_remote_code=true"
            ) from None
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"model 'hf/{name}': {error}; give auto_class=AutoModelFor...") from None


_BUILDERS: dict[str, Callable[[str, dict[str, Any]], nn.Module]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "hf": _hf,
    "ultralytics": build_yolo,
}


def build(library: str, name: str, options: dict[str, object]) -> nn.Module:
    """Build a model of another library.

    `hf/NAME` is a checkpoint (hub name or local folder: its weights are loaded) or an architecture such as `resnet` or
    `vit` (random weights; the options go to its configuration). A checkpoint is of the class that its config.json
    names; an architecture is built to classify images, to write text or to classify it, the first that it can.

    Args:
        library: "timm", "torchvision", "hf" or "ultralytics".
        name: The library's name for the model.
        options: The library's options. `num_classes`, `in_channels` and `pretrained` are translated to its own words.

    Raises:
        UnknownNameError: There is no such library or model.
        OptionError: An option does not fit.
        MissingExtraError: The library is not installed, or cannot be imported.

    >>> build("keras", "vgg", {})
    Traceback (most recent call last):
    secateur.errors.UnknownNameError: unknown library 'keras': known: 'hf', 'timm', 'torchvision', 'ultralytics'
    """
    if library not in _BUILDERS:
        raise UnknownNameError(f"unknown library {library!r}: {near(library, _BUILDERS)}")
    if not name:
        raise OptionError(f"model '{library}/' lacks a name; write {library}/NAME")
    return _BUILDERS[library](name, dict(options))


def call(reference: str, options: dict[str, object]) -> nn.Module:
    """Build the model that a function returns.

    Args:
        reference: `package.module:function`.
        options: What the function is called with.

    Raises:
        UnknownNameError: There is no such module or function.
        OptionError: The options do not fit, or the function returns something else than a model.

    >>> call("torch.nn:Lineer", {})
    Traceback (most recent call last):
    secateur.errors.UnknownNameError: model 'torch.nn:Lineer': module torch.nn has no 'Lineer'; did you mean
    'Linear' ...
    """
    maker = functions.find(reference, "model")
    functions.check_options(maker, options, f"model {reference!r}")
    made = maker(**options)
    if not isinstance(made, nn.Module):
        raise OptionError(
            f"model {reference!r}: expected a torch.nn.Module, got {type(made).__name__}; the function must "
            "return the model"
        )
    return made

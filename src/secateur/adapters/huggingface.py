"""`save_pretrained`: a model as a folder that transformers loads without secateur, and `push_to_hub` for such a folder.

Even widths are a plain configuration, which any server takes. Widths that differ from layer to layer are said by
`per_layer_config` where the installed transformers reads it for this family, else by a short modelling file in the
folder, which is loaded with `trust_remote_code=True`. What was written is loaded in a process that cannot import
secateur, and its outputs must equal the model's bit for bit; otherwise nothing is left on disk. Only rotary frequencies
that a cut kept are said as factors, which gives the same up to rounding: outputs differ by at most 1e-4 of the largest,
or by eight times the precision (`eps`) of the model's own type where that is more.

>>> HuggingFaceOptions().check
True
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from secateur.adapters import hf_modelling
from secateur.adapters.hf_forms import Answer, described, outputs_of, wraps_forward
from secateur.adapters.promises import promise
from secateur.adapters.served import ServeRequest, difference, serve
from secateur.core.measurement import Measurements
from secateur.core.new_folders import check_new_folder
from secateur.errors import MissingExtraError, OptionError, ProofError
from secateur.execution.verb import verb
from secateur.structure.hf.rotary import rebuilt
from secateur.structure.shrink import Shrunk

__all__ = ["HuggingFaceOptions", "SavedFolder", "Tokenizer", "push_to_hub", "save_pretrained"]

_FORMS = ("auto", "config", "per_layer_config", "code")


class Tokenizer(Protocol):
    """A tokenizer or processor of transformers."""

    def save_pretrained(self, save_directory: str, /) -> object:
        """Write it into a folder."""


@dataclass(frozen=True)
class HuggingFaceOptions:
    """How `save_pretrained` writes a folder.

    Attributes:
        form: "auto" for the simplest form that can hold all widths, or "config", "per_layer_config" or "code".
        max_shard_size: The largest size of one safetensors file.
        check: Whether the folder is loaded in a process without secateur and compared.
        generate: How many tokens are generated and compared as well, where the model can; 0 for none.
        measurements: What the card's table shows, with `variant` "before" or "after" in the context.
    """

    form: str = "auto"
    max_shard_size: str = "5GB"
    check: bool = True
    generate: int = 8
    measurements: Measurements | None = None


@dataclass(frozen=True)
class SavedFolder:
    """The result of `save_pretrained`.

    Attributes:
        folder: The folder.
        form: "config", "per_layer_config" or "code".
        loader: The class of transformers to load it with.
        size: The bytes of its weights.
        error: The largest difference of outputs in the fresh process; None where it was not checked.
        files: The names of its files.
        differing: The modules whose widths the configuration cannot state, for which the form "code" was needed.
    """

    folder: Path
    form: str
    loader: str
    size: int
    error: float | None
    files: tuple[str, ...] = field(default=())
    differing: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        trust = ", trust_remote_code=True" if self.form == "code" else ""
        checked = (
            "not checked" if self.error is None else f"outputs differ by {self.error:.1e} in a new process"
        )
        why = ""
        if self.differing:
            more = f" and {len(self.differing) - 1} more" if len(self.differing) > 1 else ""
            why = f" (the configuration cannot state the widths of {self.differing[0]!r}{more})"
        return (
            f"{self.folder}: {self.size:,} bytes of weights as {self.form}{why}, {checked}\n"
            f'  {self.loader}.from_pretrained("{self.folder}"{trust})'
        )


@verb
def save_pretrained(
    model: nn.Module | Shrunk,
    folder: str | os.PathLike[str],
    example: Mapping[str, torch.Tensor],
    *,
    tokenizer: Tokenizer | None = None,
    options: HuggingFaceOptions | None = None,
) -> SavedFolder:
    """Write a Hugging Face model, shrunk or not, as a folder that `from_pretrained` loads without secateur.

    Args:
        model: The model, or the result of `shrink`. It is not changed.
        folder: A new or empty folder.
        example: The keywords that the model is called with.
        tokenizer: A tokenizer or processor whose files are written beside the model.
        options: The form, the size of a shard, and whether the folder is checked.

    Returns:
        What was written, and how to load it.

    Raises:
        OptionError: The folder is not empty, the model is not one of transformers, or its widths do not fit the form.
        PlanError: No modelling file can express what the model computes.
        ProofError: The folder does not load, or its outputs differ. Nothing is left.
    """
    options = options or HuggingFaceOptions()
    if tokenizer is not None and not hasattr(tokenizer, "save_pretrained"):
        raise OptionError(
            f"tokenizer: expected a tokenizer or processor of transformers, got {type(tokenizer).__name__}; load it "
            "first: transformers.AutoTokenizer.from_pretrained(...)"
        )
    net = model.model if isinstance(model, Shrunk) else model
    target = Path(folder)
    _check(net, target, options)
    kind = hf_modelling.original_class(net)
    own = Answer(example, outputs_of(net, example, options.generate), options.generate)
    form, config, source, served = described(net, kind, options.form, own)
    loader, auto = _loaders(kind, config)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".secateur-") as scratch:
        place = Path(scratch) / "model"
        _write_weights(net, place, config, options.max_shard_size, as_named=bool(source))
        if source:
            (place / hf_modelling.FILE).write_text(source, encoding="utf-8")
            _name_the_class(place, kind, auto)
        if tokenizer is not None:
            tokenizer.save_pretrained(str(place))
        request = ServeRequest(
            place,
            "transformers",
            loader,
            bool(source),
            str(getattr(config, "_attn_implementation", None) or ""),
            options.generate if "generated" in served.outputs else 0,
            repeats=5,
        )
        seconds = _checked(request, target, served, net) if options.check else 0.0
        _card(place, model, form, loader, options.measurements)
        promise(place, request, example, served.outputs, seconds=seconds)
        if target.exists():
            target.rmdir()
        place.replace(target)
    differing = tuple(getattr(config, hf_modelling.KEY)) if form == "code" else ()
    return _saved_folder(target, form, loader, own.error(served) if options.check else None, differing)


def _saved_folder(
    target: Path, form: str, loader: str, error: float | None, differing: tuple[str, ...]
) -> SavedFolder:
    weights = sum(each.stat().st_size for each in target.glob("*.safetensors"))
    files = tuple(sorted(str(each.relative_to(target)) for each in target.rglob("*") if each.is_file()))
    return SavedFolder(target, form, loader, weights, error, files, differing)


def _check(model: nn.Module, target: Path, options: HuggingFaceOptions) -> None:
    if not hasattr(model, "save_pretrained") or not hasattr(getattr(model, "config", None), "to_dict"):
        raise OptionError(
            f"{type(model).__name__}: expected a model of transformers, which has save_pretrained and config; "
            "write other models with sc.save or sc.export"
        )
    if options.form not in _FORMS:
        raise OptionError(f"form: expected one of {', '.join(_FORMS)}, got {options.form!r}")
    if wraps_forward(model) is False:
        raise OptionError(
            f"model: {type(model).__name__} has a forward of its own, {_qualified(vars(model)['forward'])}, which no "
            "folder holds: expected its class's; remove it first (del model.forward), or make it the forward of a "
            "class of your own and write that with small.save or sc.save"
        )
    check_new_folder(target)


def _qualified(function: object) -> str:
    """The name of a function, with its module."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '')}.{name}".lstrip(".")


def _loaders(kind: type[nn.Module], config: object) -> tuple[str, list[str]]:
    """The class to load with, and every automatic class that knows the model's class."""
    try:
        automatic: Any = importlib.import_module("transformers.models.auto.modeling_auto")
    except ImportError as error:
        raise MissingExtraError(
            "save_pretrained needs the library transformers; next: pip install 'secateur[transformers]'"
        ) from error
    word, found = str(getattr(config, "model_type", "")), []
    for name, each in vars(automatic).items():
        mapping = getattr(each, "_model_mapping", None)
        if name.startswith("AutoModel") and mapping is not None:
            known = getattr(mapping, "_model_mapping", {}).get(word)
            if kind.__name__ == known or (isinstance(known, tuple) and kind.__name__ in known):
                found.append(name)
    found.sort(key=lambda name: (name == "AutoModelForPreTraining", name))
    if found:
        return found[0], found
    return kind.__name__, ["AutoModel"]


def _write_weights(model: Any, place: Path, config: Any, shard: str, as_named: bool) -> None:
    """The weights and the configuration, as the model's own class writes them.

    transformers renames some tensors when it writes a file, and renames them back for its own classes only: a class of
    a modelling file gets them `as_named` in the model.
    """
    own, more = model.config, {}
    if as_named and "save_original_format" in inspect.signature(model.save_pretrained).parameters:
        more["save_original_format"] = False
    try:
        model.config = config
        with _without_progress_bars():
            model.save_pretrained(str(place), max_shard_size=shard, **more)
    finally:
        model.config = own
    written = json.loads((place / "config.json").read_text(encoding="utf-8"))
    written["architectures"] = [hf_modelling.original_class(model).__name__]
    (place / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Without the progress bars of transformers; they are as they were afterwards."""
    bars: Any = importlib.import_module("transformers.utils.logging")
    shown = bars.is_progress_bar_enabled()
    if shown:
        bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _name_the_class(place: Path, kind: type, auto: Sequence[str]) -> None:
    """Name in the configuration the class of the modelling file that the automatic classes build."""
    path = place / "config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    name = f"Shrunk{kind.__name__}"
    written["architectures"] = [name]
    module = hf_modelling.FILE.removesuffix(".py")
    written["auto_map"] = dict.fromkeys(auto, f"{module}.{name}")
    path.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def _checked(request: ServeRequest, target: Path, answer: Answer, model: nn.Module) -> float:
    """The seconds of a call in a fresh process; raises where it gives other outputs there."""
    otherwise = "use small.save and sc.load_shrunk" if request.code else "use form='code', or small.save"
    try:
        served = serve(request, answer.example)
    except ProofError as failure:
        raise ProofError(f"{failure}. Nothing was written to {target}; {otherwise}") from failure
    if served.loading:
        what, names = next(iter(served.loading.items()))
        raise ProofError(
            f"{target}: loading reports {what}: {', '.join(names)[:200]}; nothing was written; {otherwise}"
        )
    error = difference(answer.outputs, served.outputs)
    if error:
        raise ProofError(
            f"{target}: loaded in a new process, its outputs differ by {error:.3g} of the largest; expected none. "
            f"Nothing was written; {_rounded(model) or otherwise}"
        )
    return served.seconds


def _rounded(model: nn.Module) -> str:
    """Which buffers `model.to(dtype)` rounded that no file holds, and what to do; empty where there are none."""
    kept = model.state_dict()
    for path, module in model.named_modules():
        halves = {
            name: buffer
            for name, buffer in module._buffers.items()
            if f"{path}.{name}" not in kept
            and getattr(buffer, "dtype", None) in (torch.bfloat16, torch.float16)
        }
        if not path or not halves or next(module.parameters(), None) is not None:
            continue
        for owner, config in _configurations(model, path):
            again = dict((rebuilt(module, config) or module).named_buffers())
            for name, here in halves.items():
                there = again.get(name)
                if there is None or here is None or here.dtype == there.dtype:
                    continue
                if not torch.equal(there.to(here), here):
                    # another configuration than the one it was built from
                    continue
                kind, dtype = type(module).__name__, str(here.dtype)
                return (
                    f"{path}.{name} is rounded to {dtype}, which model.to({dtype}) does, and from_pretrained builds "
                    f"it in {there.dtype}. Load the model with from_pretrained(..., dtype={dtype}), or build this "
                    f"module again: {_written('model.' + path)} = {kind}(config={_written(owner)}.config)"
                )
    return ""


def _configurations(model: nn.Module, path: str) -> Iterator[tuple[str, object]]:
    """The configurations that a module may be built from, with their owners: of the model, and of what holds it.

    A model of several parts has a configuration for each, and that of the whole does not build a module of one.
    """
    parts = path.split(".")
    for end in (0, *range(len(parts), 0, -1)):
        config = getattr(model.get_submodule(".".join(parts[:end])), "config", None)
        if config is not None:
            yield ".".join(("model", *parts[:end])), config


def _written(path: str) -> str:
    """A module's path as Python writes it.

    >>> _written("model.layers.0.rotary")
    'model.layers[0].rotary'
    """
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", path)


def _card(place: Path, model: nn.Module | Shrunk, form: str, loader: str, found: Measurements | None) -> None:
    """README.md: how to load it, what was measured, which tensors have widths of their own."""
    net = model.model if isinstance(model, Shrunk) else model
    lines = ["---", "library_name: transformers", "tags: [pruned]", "---", "", f"# {place_name(net)}", ""]
    trust = ", trust_remote_code=True" if form == "code" else ""
    lines += ["```python", f"from transformers import {loader}", ""]
    lines += [f'model = {loader}.from_pretrained("."{trust})', "```", ""]
    params = sum(each.numel() for each in net.parameters())
    rows = [("parameters", f"{params:,}")]
    rows.append(("weights", f"{sum(each.stat().st_size for each in place.glob('*.safetensors')):,} bytes"))
    if isinstance(model, Shrunk):
        rows.append(("proof", str(model.proof).replace("|", "/")))
    for each in found or ():
        rows.append((f"{each.name} {each.context.get('variant', '')}".strip(), each.text()))
    lines += ["| measure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    if hf_modelling.KEY in config:
        lines += ["| tensor | shape |", "|---|---|", *hf_modelling.table_of(config[hf_modelling.KEY]), ""]
    (place / "README.md").write_text("\n".join(lines), encoding="utf-8")


def place_name(model: nn.Module) -> str:
    """The title of a model's card."""
    return f"{hf_modelling.original_class(model).__name__}, pruned"


def push_to_hub(
    folder: str | os.PathLike[str],
    repository: str,
    *,
    private: bool = True,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Upload a folder that `save_pretrained` wrote to the Hugging Face Hub, as one commit.

    Args:
        folder: The folder.
        repository: Owner and name, as in "me/small-llama"; it is created where it is missing.
        private: Whether a new repository is private.
        token: The access token; None for the one that `hf auth login` stored.
        endpoint: The address of the Hub; None for the usual one.

    Returns:
        The address of the commit.

    Raises:
        OptionError: The folder holds no model.
        MissingExtraError: huggingface_hub is not installed.
    """
    if not (Path(folder) / "config.json").is_file():
        raise OptionError(
            f"{folder}: expected a folder that sc.save_pretrained wrote, got no config.json in it"
        )
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise MissingExtraError(
            "push_to_hub needs the library huggingface_hub; next: pip install huggingface_hub"
        ) from error
    api = hub.HfApi(endpoint=endpoint, token=token)
    api.create_repo(repository, private=private, exist_ok=True)
    done = api.upload_folder(
        repo_id=repository, folder_path=str(folder), commit_message="A pruned model, written by secateur"
    )
    return str(done.commit_url)

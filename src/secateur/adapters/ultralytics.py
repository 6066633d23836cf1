"""Models of ultralytics (YOLO): a cut model as a checkpoint that `YOLO(...)` loads, and a trainer that keeps it cut.

    yolo = YOLO("yolov8n.pt")
    masks = sc.prune(yolo.model, granularity="channel", budget=0.5, example=image)
    small = sc.shrink(yolo.model, masks, image)
    sc.save_yolo(small, "small.pt")

    yolo = YOLO("small.pt")
    yolo.train(trainer=sc.yolo_trainer("detect"), data="coco8.yaml", epochs=10)

ultralytics' own trainer rebuilds the model from its yaml, at the dense widths, and copies the weights whose shapes
agree: after a cut, few do, and no error says so. The trainer made here takes the model as it was loaded. Masks given to
`save_yolo` are stored in the checkpoint; the trainer holds them, also after `resume=True` and in every process of a
distributed run.

>>> sorted(_TRAINERS)
['classify', 'detect', 'obb', 'pose', 'segment']
"""

from __future__ import annotations

import copy
import importlib
import io
import math
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from secateur.core.atomic_files import atomic_path
from secateur.core.masks import Masks
from secateur.core.model_kinds import plain_model
from secateur.core.nested import tensors_in
from secateur.errors import (
    FormatError,
    MissingExtraError,
    NothingToDoError,
    OptionError,
    PlanError,
    ProofError,
    UnknownNameError,
    near,
)
from secateur.execution.verb import verb
from secateur.structure.cut.plan import ShrinkPlan
from secateur.structure.own_forwards import rewritten_modules, with_own_forwards
from secateur.structure.shrink import Shrunk

if TYPE_CHECKING:
    from secateur.pruning.hold import Held

__all__ = ["build_yolo", "is_yolo", "save_yolo", "yolo_library", "yolo_trainer"]

_TRAINERS = {
    "detect": "DetectionTrainer",
    "segment": "SegmentationTrainer",
    "pose": "PoseTrainer",
    "obb": "OBBTrainer",
    "classify": "ClassificationTrainer",
}
_RESTRICTED = (8, 4, 70)
"""The first release whose restricted loader is torch's own, with a list of classes."""
_MASKS = "secateur_masks"
"""The attribute of a model that holds its masks, packed: name -> (shape, bits). It is pickled with the model."""


@verb
def save_yolo(
    model: nn.Module | Shrunk,
    path: str | os.PathLike[str],
    *,
    masks: Masks | None = None,
    half: bool | None = None,
) -> Path:
    """Write a YOLO model, cut or not, as a checkpoint that `YOLO(path)` loads, without secateur.

    The file is read back by ultralytics' own loader and compared before it is renamed to `path`. Where unlike widths
    met in a forward of ultralytics and `shrink` rewrote it, the channels that it did without are in the file as zeros:
    it computes the same, and is somewhat wider there.

    Args:
        model: The model inside `YOLO(...)` (`yolo.model`), or the result of `shrink` for it. It is not changed.
        path: The file to write; it ends in ".pt".
        masks: Masks of zeros that stay in the model; `yolo_trainer` holds them while it trains.
        half: Store floats as float16, as ultralytics does after training: the file is half as large, and the weights
            are rounded. None does so where nothing is rounded, as for a model that was cut from such a checkpoint.

    Returns:
        The path of the file.

    Raises:
        OptionError: The path does not end in ".pt", or the model is not one of ultralytics.
        PlanError: The model needs secateur to be loaded: it holds one of its objects, or a forward was rewritten and
            the channels it does without cannot be put back.
        ProofError: What ultralytics reads back differs from the model.
        MissingExtraError: ultralytics is not installed.
    """
    tasks = yolo_library("save_yolo", "ultralytics.nn.tasks")
    target = Path(path)
    net = plain_model(model.model if isinstance(model, Shrunk) else model)
    if target.suffix != ".pt":
        raise OptionError(f"{target}: YOLO(...) loads files that end in .pt; name the file {target.stem}.pt")
    if not isinstance(net, tasks.BaseModel):
        raise OptionError(
            f"save_yolo: expected a model of ultralytics, got {type(net).__name__}; give yolo.model, or what "
            "shrink returned for it"
        )
    plan = model.plan if isinstance(model, Shrunk) else None
    if rewritten_modules(net):
        net, plan, masks = _own(net, plan, masks)
    checkpoint = _checkpoint(net, plan, masks, _exact_in_half(net) if half is None else half)
    with atomic_path(target) as scratch:
        torch.save(checkpoint, scratch)
        _check_written(checkpoint["model"], scratch, target, tasks)
    return target


def _own(
    net: nn.Module, plan: ShrinkPlan | None, masks: Masks | None
) -> tuple[nn.Module, ShrinkPlan, Masks | None]:
    """The model with the forwards of ultralytics: channels that a rewritten one did without come back as zeros."""
    found = rewritten_modules(net)
    path, kind = next(iter(found.items()))
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    why = (
        f"save_yolo: the forward of {path!r} ({kind}){more} was rewritten for its new widths, and ultralytics has no "
        "such class"
    )
    if plan is None:
        raise PlanError(
            f"{why}; give what shrink returned, which holds the plan, and not its model alone: save_yolo(small, ...)"
        )
    described = getattr(net, "yaml", {})
    image = torch.rand(1, described.get("channels", 3), 64, 64, generator=torch.Generator().manual_seed(0))
    try:
        base = getattr(type(net), "_secateur_base", type(net))
        dense = base(copy.deepcopy(described), verbose=False).to(next(net.parameters()).device).eval()
        for key, value in vars(net).items():
            if key in ("names", "args", "stride", "task"):
                vars(dense)[key] = copy.deepcopy(value)
        done = with_own_forwards(net, plan, dense, image, masks)
    except (PlanError, NothingToDoError, KeyError, TypeError) as error:
        raise PlanError(
            f"{why}; its channels cannot be put back into the model that its yaml describes ({error}). Leave the block "
            f"whole, sc.prune(..., skip=[{path + '.*'!r}]), or write the model with small.save()"
        ) from error
    return done.model, done.plan, done.masks


def _checkpoint(net: nn.Module, plan: ShrinkPlan | None, masks: Masks | None, half: bool) -> dict[str, Any]:
    """What ultralytics keeps in a checkpoint, and the plan of a shrunk model."""
    written = copy.deepcopy(net).cpu()
    written.train(False)
    for name in ("criterion", _MASKS):
        if getattr(written, name, None) is not None:
            setattr(written, name, None)
    if masks is not None:
        masks.apply_(written)
        setattr(written, _MASKS, _packed(masks))
    _check_own(written)
    _set_halves(written)
    for parameter in written.parameters():
        parameter.requires_grad_(False)
    options = getattr(net, "args", {})
    task = yolo_library("save_yolo", "ultralytics.nn.tasks").guess_model_task(net)
    vars(written)["task"] = task
    return {
        "epoch": -1,
        "best_fitness": None,
        "model": written.half() if half else written,
        "ema": None,
        "updates": None,
        "optimizer": None,
        "train_args": {**(options if isinstance(options, Mapping) else vars(options)), "task": task},
        "date": datetime.now(UTC).isoformat(),
        "version": importlib.import_module("ultralytics").__version__,
        "secateur": {} if plan is None else {"plan": plan.to_json()},
    }


def _exact_in_half(model: nn.Module) -> bool:
    """Whether every value of a model is one of float16."""
    floats = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    return all(torch.equal(tensor, tensor.half().to(tensor.dtype)) for tensor in floats)


def _set_halves(model: nn.Module) -> None:
    """Set the width `c` of blocks that export splits by it, whose forward halves its input (C2f and others).

    The forward that was cut does not read it, so the cut left it as it was.

    Raises:
        ProofError: The form that export uses computes something else.
    """
    blocks: list[Any] = [
        module for module in model.modules() if hasattr(module, "forward_split") and hasattr(module, "c")
    ]
    for block in blocks:
        block.c = next(m for m in block.cv1.modules() if isinstance(m, nn.Conv2d)).out_channels // 2
    described = getattr(model, "yaml", {})
    image = torch.rand(1, described.get("channels", 3), 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = list(tensors_in(model(image)))
        try:
            for block in blocks:
                block.forward = block.forward_split
            found = list(tensors_in(model(image)))
        finally:
            for block in blocks:
                vars(block).pop("forward", None)
    if len(found) != len(expected) or not all(map(torch.equal, found, expected)):
        raise ProofError("the model computes something else in the form that export uses (forward_split)")


def _check_own(model: nn.Module) -> None:
    """Raise where a pickle of the model names a class of secateur, as that of a rewritten forward does."""
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    named = torch.serialization.get_unsafe_globals_in_checkpoint(buffer)
    own = [name for name in named if name.startswith("secateur.")]
    if own:
        raise PlanError(
            f"save_yolo: the file would need {own[0]} to load, which {type(model).__name__} holds; remove that from "
            "the model, or write it with small.save()"
        )


def _check_written(model: nn.Module, file: Path, target: Path, tasks: Any) -> None:
    """Raise unless ultralytics reads back the same tensors."""
    read = tasks.load_checkpoint(file)[0].state_dict()
    for name, tensor in model.state_dict().items():
        found = read.get(name)
        if found is None or found.shape != tensor.shape:
            got = "nothing" if found is None else list(found.shape)
            raise ProofError(
                f"{target}: not written: tensor {name!r}: expected {list(tensor.shape)}, read {got}"
            )
        if not torch.equal(found, tensor.to(found.dtype)):
            raise ProofError(
                f"{target}: not written: the values of tensor {name!r} are read back differently"
            )


def _check_task(task: object) -> None:
    if not isinstance(task, str):
        raise OptionError(
            f"yolo_trainer: expected a task such as 'detect', as YOLO(...).task gives it, got {type(task).__name__}"
        )
    if task not in _TRAINERS:
        raise OptionError(f"yolo_trainer: unknown task {task!r}: {near(task, _TRAINERS)}")


def yolo_trainer(task: str = "detect") -> type:
    """Make a trainer class that trains the model as it was loaded, instead of building a dense one from its yaml.

    Everything else is ultralytics' own: data, losses, augmentation, EMA copy, validation, checkpoints, `resume`.
    Masks that `save_yolo` put into the checkpoint are held in every optimizer step.

    Args:
        task: The task of the model, as `YOLO(...).task` gives it: "detect", "segment", "pose", "obb" or "classify".

    Returns:
        A class for `YOLO("small.pt").train(trainer=...)`.

    Raises:
        OptionError: There is no such task. The trainer itself raises it where the model was not loaded from a
            checkpoint, was fused by `predict` or `val`, or has another number of classes or keypoints than the data.
        MissingExtraError: ultralytics is not installed.
    """
    _check_task(task)
    base: Any = getattr(yolo_library("yolo_trainer", f"ultralytics.models.yolo.{task}"), _TRAINERS[task])

    class CutTrainer(base):
        """ultralytics' trainer for a model that keeps its widths and its masks."""

        held: Held | None = None

        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            self.add_callback("on_train_start", type(self).hold_masks)
            self.add_callback("teardown", type(self).release_masks)

        def get_model(
            self, cfg: object = None, weights: nn.Module | None = None, verbose: bool = True
        ) -> nn.Module:
            """Give the loaded model as it is, with its masks applied."""
            model = _trainable(weights, self.data)
            masks = _unpacked(model)
            if masks is not None:
                masks.apply_(model)
            return model

        def hold_masks(self) -> None:
            """Begin to hold: the model is placed, the optimizer and the EMA copy are made by now."""
            from secateur.pruning.hold import hold

            masks = _unpacked(plain_model(self.model))
            if masks is not None:
                self.held = hold(self.model, masks, self.optimizer, copies=self.ema.ema)

        def release_masks(self) -> None:
            """Release the masks, also after a training that failed; the weights stay masked."""
            if self.held is not None:
                self.held.close(complain=False)
                self.held = None

    CutTrainer.__name__ = CutTrainer.__qualname__ = f"Cut{base.__name__}"
    return CutTrainer


def is_yolo(model: nn.Module) -> bool:
    """Whether a model is one of ultralytics, which need not be imported to say so.

    Args:
        model: Any model.

    >>> is_yolo(nn.Linear(1, 1))
    False
    """
    return any(kind.__module__.startswith("ultralytics.nn.tasks") for kind in type(model).__mro__)


def build_yolo(name: str, options: Mapping[str, Any]) -> nn.Module:
    """Build a YOLO model with random weights, or read one from a checkpoint.

    Args:
        name: The name of one of ultralytics' yaml files without its ending, such as "yolov8n-seg", or the path of a
            .pt file, from which only known classes are read.
        options: `num_classes` for a yaml; a checkpoint takes none.

    Raises:
        UnknownNameError: There is no such yaml, and no such file.
        OptionError: An option does not fit.
        FormatError: ultralytics cannot read the file without running code of the file.
        MissingExtraError: ultralytics is not installed.
    """
    tasks = yolo_library(f"model 'ultralytics/{name}'", "ultralytics.nn.tasks")
    given = dict(options)
    if name.endswith(".pt"):
        if given:
            raise OptionError(
                f"model 'ultralytics/{name}': a checkpoint has its widths and classes already; leave out "
                f"{', '.join(given)}"
            )
        return _read(name, tasks)
    described = _described(name, tasks)
    classes = given.pop("num_classes", None)
    if given:
        raise OptionError(
            f"model 'ultralytics/{name}' has no option {next(iter(given))!r}; it has num_classes"
        )
    task = tasks.guess_model_task(described)
    if task not in _MODELS:
        raise OptionError(
            f"model 'ultralytics/{name}': expected one of {sorted(_MODELS)}, got a model to {task}"
        )
    built: nn.Module = getattr(tasks, _MODELS[task])(described, nc=classes, verbose=False)
    return built.eval()


def _described(name: str, tasks: Any) -> dict[str, object]:
    """What a yaml of the installed ultralytics says; other folders are not searched, as a yaml can name code."""
    own = Path(tasks.__file__).parents[1] / "cfg" / "models"
    without_scale = re.sub(r"(\d+)[nslmx](-.+)?$", r"\1\2", name)
    plain = re.fullmatch(r"[A-Za-z0-9_-]+", name)
    found = [path for word in (without_scale, name) for path in own.rglob(f"{word}.yaml")] if plain else []
    if not found:
        raise UnknownNameError(
            f"ultralytics has no model {name!r}; give the name of one of its yaml files such as yolov8n or "
            "yolo26n-pose, or the path of a .pt file"
        )
    described: dict[str, object] = tasks.yaml_model_load(found[0].with_name(f"{name}.yaml"))
    return described


def _read(path: str, tasks: Any) -> nn.Module:
    """The model of a checkpoint, by ultralytics' restricted loader, which takes known classes only."""
    if not Path(path).is_file():
        raise UnknownNameError(f"model 'ultralytics/{path}': no such file; give the path of a checkpoint")
    version = str(yolo_library(f"model 'ultralytics/{path}'", "ultralytics").__version__)
    if tuple(int(part) for part in re.findall(r"\d+", version)[:3]) < _RESTRICTED:
        wanted = ".".join(map(str, _RESTRICTED))
        raise MissingExtraError(
            f"model 'ultralytics/{path}': expected ultralytics {wanted} or later, got {version}, whose restricted "
            "loader lets a checkpoint call builtins such as exec; next: pip install --upgrade ultralytics, or, if you "
            "trust the file, load it in Python: YOLO(path).model"
        )
    try:
        checkpoint = tasks.torch_safe_load(path, safe_only=True)[0]
    except TypeError as error:
        raise FormatError(
            f"model 'ultralytics/{path}': ultralytics does not read it without running code of the file "
            f"({str(error).splitlines()[0]}); if you trust it, load it in Python: YOLO(path).model"
        ) from error
    model = checkpoint.get("ema") or checkpoint.get("model")
    if not isinstance(model, tasks.BaseModel):
        raise FormatError(f"model 'ultralytics/{path}': expected a model in it, got {type(model).__name__}")
    whole: nn.Module = model.float()
    return whole.eval()


_MODELS = {
    "detect": "DetectionModel",
    "segment": "SegmentationModel",
    "pose": "PoseModel",
    "obb": "OBBModel",
    "classify": "ClassificationModel",
}


def _trainable(model: nn.Module | None, data: Mapping[str, Any]) -> nn.Module:
    """The loaded model, or an `OptionError` where it cannot be trained on this data as it is."""
    if model is None:
        raise OptionError(
            "yolo_trainer: no checkpoint was loaded, so there is no cut model to train; write it with "
            "sc.save_yolo(small, 'small.pt') and train YOLO('small.pt'), without pretrained=False"
        )
    if getattr(model, "is_fused", lambda: False)():
        raise OptionError(
            "yolo_trainer: the model was fused by predict, val or export and has no batch norm left; load it again "
            "from its file and train that"
        )
    described = getattr(model, "yaml", {})
    for key, what in (("nc", "classes"), ("kpt_shape", "keypoints (number, values of each)")):
        has, wanted = described.get(key), data.get(key)
        if has is not None and wanted is not None and _plain(has) != _plain(wanted):
            raise OptionError(
                f"yolo_trainer: the model has {has} {what}, the data {wanted}; give the dense model the data's head "
                "(train it with ultralytics for some steps) and cut it afterwards"
            )
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return model.float()


def _plain(value: object) -> object:
    return list(value) if isinstance(value, (list, tuple)) else value


def _packed(masks: Masks) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Masks as plain data, one bit for a weight."""
    return {
        name: (tuple(mask.shape), np.packbits(mask.cpu().numpy().ravel()).tobytes())
        for name, mask in masks.items()
    }


def _unpacked(model: nn.Module) -> Masks | None:
    """The masks stored in a model; None if it has none."""
    packed = getattr(model, _MASKS, None)
    if not packed:
        return None
    tensors: dict[str, torch.Tensor] = {}
    for name, (shape, bits) in packed.items():
        flat = np.unpackbits(np.frombuffer(bits, np.uint8), count=math.prod(shape)).astype(bool)
        tensors[name] = torch.from_numpy(flat).reshape(shape)
    masks = Masks(tensors)
    masks.check(model)
    return masks


def yolo_library(verb: str, module: str) -> Any:
    """A module of ultralytics, or the error that says how to get it.

    Args:
        verb: What needs it.
        module: Its name.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{verb} needs the library ultralytics, which cannot be imported ({str(error).splitlines()[0]}); next: "
            "pip install ultralytics"
        ) from error

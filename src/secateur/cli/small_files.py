"""`write_small`: a small model as a .sct file, the folder of a Hugging Face model, or a checkpoint of ultralytics.

>>> is_folder(Path("small")), is_folder(Path("small.sct"))
(True, False)
>>> is_checkpoint(Path("small.pt"))
True
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.core.new_folders import check_new_folder
from secateur.core.terminal import printable, say
from secateur.errors import OptionError

if TYPE_CHECKING:
    from torch import nn

    from secateur.adapters.huggingface import SavedFolder
    from secateur.structure.shrink import Shrunk

__all__ = ["check_out", "is_checkpoint", "is_folder", "write_folder", "write_small"]


def is_folder(out: Path) -> bool:
    """Whether a name is one of a folder: it has no ending."""
    return not out.suffix


def is_checkpoint(out: Path) -> bool:
    """Whether a name is one of a checkpoint of ultralytics."""
    return out.suffix == ".pt"


def write_small(small: Shrunk, out: Path, example: Any, source: Path | None) -> tuple[int, str]:
    """Write what `shrink` made.

    Args:
        small: The small model with its plan.
        out: A .sct file, a new folder, or a .pt file of a model of ultralytics.
        example: What the model is called with.
        source: The Hugging Face folder that the model came from, whose tokenizer goes along.

    Returns:
        The bytes, and how the folder or the checkpoint is loaded.
    """
    from secateur.container.archive import save

    if is_checkpoint(out):
        from secateur.adapters.ultralytics import save_yolo

        return save_yolo(small, out).stat().st_size, f'  YOLO("{out}")'
    if is_folder(out):
        done = write_folder(small, out, example, source)
        return done.size, str(done)
    return save(small.model, out, plan=small.plan).size, ""


def check_out(out: Path, model: nn.Module) -> None:
    """Refuse a place that a small model could not be written to, before any work.

    Args:
        out: The file or the folder.
        model: The model that will be cut.
    """
    if is_checkpoint(out):
        from secateur.adapters.ultralytics import is_yolo

        if not is_yolo(model):
            raise OptionError(
                f"{out}: a .pt file is written of a model of ultralytics, and this is {type(model).__name__}; expected "
                f"a file that ends in .sct, such as {out.with_suffix('.sct')}"
            )
    if not is_folder(out):
        return
    if not hasattr(model, "save_pretrained"):
        raise OptionError(
            f"{out}: a folder is written of a Hugging Face model, and this is {type(model).__name__}; expected a file "
            f"that ends in .sct, such as {out}.sct"
        )
    check_new_folder(out)


def write_folder(model: nn.Module | Shrunk, out: Path, example: Any, source: Path | None) -> SavedFolder:
    """Write a Hugging Face model as a folder that transformers loads.

    Args:
        model: The model, shrunk or not.
        out: The new folder.
        example: What the model is called with.
        source: The folder that it came from, whose tokenizer goes along; None for none.
    """
    from secateur.adapters.huggingface import save_pretrained
    from secateur.structure.shrink import Shrunk

    net = model.model if isinstance(model, Shrunk) else model
    check_out(out, net)
    named = str(getattr(net, "main_input_name", "input_ids"))
    given = example if isinstance(example, dict) else {named: example}
    return save_pretrained(model, out, given, tokenizer=None if source is None else _tokenizer(source))


def _tokenizer(source: Path) -> Any:
    """The tokenizer or image processor of a folder; None where transformers can read none."""
    from secateur.streaming.tokenizers import IMAGES, TEXTS, read_tokenizer

    try:
        return read_tokenizer(source, TEXTS, IMAGES)
    except OptionError:
        say(
            f"{printable(str(source))}: has no tokenizer that transformers can read, so none goes along",
            error=True,
        )
        return None

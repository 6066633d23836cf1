"""`read_tokenizer`: what reads a model's inputs, from the model's folder; no code of the folder runs.

>>> try:
...     read_tokenizer(Path("nowhere"))
... except (OptionError, MissingExtraError) as error:
...     print(type(error).__name__ in ("OptionError", "MissingExtraError"))
True
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secateur.core.out_of_memory import raise_if_out_of_memory
from secateur.errors import MissingExtraError, OptionError

__all__ = ["IMAGES", "TEXTS", "read_tokenizer"]

TEXTS, IMAGES = "AutoTokenizer", "AutoImageProcessor"
"""The classes of transformers that read texts, and images."""


def read_tokenizer(folder: Path, *kinds: str) -> Any:
    """The tokenizer of a folder, or its image processor.

    Args:
        folder: The folder of a model.
        *kinds: What is looked for, in this order: `TEXTS`, `IMAGES`. None means texts.

    Raises:
        OptionError: The folder has none that transformers can read.
        MissingExtraError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise MissingExtraError(
            "reading a text needs transformers: pip install 'secateur[transformers]'"
        ) from None
    said = ""
    for kind in kinds or (TEXTS,):
        try:
            return getattr(transformers, kind).from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # transformers raises whatever the values of a changed file lead to
            raise_if_out_of_memory(error)
            said = said or str(error)[:120]
    raise OptionError(f"{folder}: has no tokenizer that transformers can read ({said})")

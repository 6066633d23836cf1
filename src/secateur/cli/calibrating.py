"""The option `--calibrate` of `shrink` and `pack`: unlabelled inputs on which accuracy is kept without training.

>>> CalibrationFlags().wanted
False
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

__all__ = ["CalibrationFlags", "calibration_inputs"]


@dataclass(frozen=True)
class CalibrationFlags:
    """Which images or sentences, and how many of them."""

    calibrate: Annotated[
        str | None,
        typer.Option(
            "--calibrate",
            metavar="DATA",
            help="Refit the remaining weights on training images of this dataset, by name or folder, without their "
            "labels; or, for a Hugging Face model of text, on a .txt file with a sentence in each line.",
        ),
    ] = None
    calibrate_images: Annotated[
        int, typer.Option("--calibrate-images", min=1, help="How many images or sentences --calibrate uses.")
    ] = 2000
    calibrate_passes: Annotated[
        int,
        typer.Option(
            "--calibrate-passes",
            min=0,
            help="Passes of gradient steps on the outputs of blocks and of the whole model afterwards, without labels.",
        ),
    ] = 0

    @property
    def wanted(self) -> bool:
        """Whether `--calibrate` was given."""
        return self.calibrate is not None

    def check(self) -> None:
        """Refuse passes over inputs where no inputs were named."""
        if self.calibrate_passes and not self.wanted:
            raise OptionError(
                "--calibrate-passes are steps on inputs: expected --calibrate with them; give it"
            )

    def inputs(self, model: nn.Module, folder: Path | None) -> Iterable[object]:
        """The images or sentences in batches, as the model takes them.

        Args:
            model: The model.
            folder: The Hugging Face folder that it is of, whose tokenizer reads a text; None for another model.
        """
        assert self.calibrate is not None
        return calibration_inputs(model, self.calibrate, self.calibrate_images, folder)


def calibration_inputs(model: nn.Module, source: str, count: int, folder: Path | None) -> Iterable[object]:
    """Inputs in batches, without labels.

    Args:
        model: The model that takes them.
        source: A dataset, by name or folder, or a text with a sentence in each line.
        count: The most images or sentences.
        folder: The Hugging Face folder that the model is of; None for another model.
    """
    if Path(source).suffix == ".txt":
        from secateur.streaming.sequences import sentences_of

        if folder is None:
            raise OptionError(
                f"{source}: a text is read by the tokenizer in the folder of a Hugging Face model, and the model is "
                "none; give the folder in place of the model's name, or a dataset of images"
            )
        return sentences_of(source, folder, count)
    from secateur import data
    from secateur.lab.calibration import CalibrationImages

    return CalibrationImages(data.load_for(model, source).train, count)

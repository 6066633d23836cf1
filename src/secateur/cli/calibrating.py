"""The option `--calibrate` of `shrink` and `pack`: unlabelled inputs on which accuracy is kept without training.

>>> CalibrationFlags().wanted
False
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from torch import nn

__all__ = ["CalibrationFlags"]


@dataclass(frozen=True)
class CalibrationFlags:
    """Which images, and how many of them."""

    calibrate: Annotated[
        str | None,
        typer.Option(
            "--calibrate",
            metavar="DATA",
            help="Refit the remaining weights on training images of this dataset, by name or folder, without their "
            "labels.",
        ),
    ] = None
    calibrate_images: Annotated[
        int, typer.Option("--calibrate-images", min=1, help="How many images --calibrate uses.")
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

    def images(self, model: nn.Module) -> Iterable[torch.Tensor]:
        """The images in batches, as the model takes them."""
        from secateur import data
        from secateur.lab.calibration import CalibrationImages

        assert self.calibrate is not None
        train = data.load_for(model, self.calibrate).train
        return CalibrationImages(train, self.calibrate_images)

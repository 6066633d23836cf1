"""`Tensorboard`: Measurements as TensorBoard scalars and histograms; needs the extra `tensorboard`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from secateur.core.measurement import Measurement
from secateur.errors import MissingExtraError
from secateur.report.sinks import tag, to_send

__all__ = ["Tensorboard"]


@dataclass(frozen=True)
class Tensorboard:
    """Writes into `folder`, one event file a call."""

    folder: str | os.PathLike[str]

    def send(self, measurements: Iterable[Measurement]) -> int:
        """Send every number and every epoch; returns how many scalars were written."""
        rows = to_send(measurements, "tensorboard")
        writer = _writer(os.fspath(self.folder))
        try:
            for item in rows:
                writer.add_scalar(tag(item), float(item.value), int(item.context.get("epoch", 0)))
        finally:
            writer.close()
        return len(rows)


def _writer(folder: str) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError(
            "the tensorboard sink needs the package tensorboard, which is not installed; install it with "
            "`pip install secateur[tensorboard]`"
        ) from error
    return SummaryWriter(folder)

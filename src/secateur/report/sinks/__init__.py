"""Sinks: other programs that Measurements can be sent to, TensorBoard and MLflow. Both are extras.

>>> names()
['mlflow', 'tensorboard']
"""

from __future__ import annotations

from collections.abc import Iterable

from secateur.core.measurement import Measurement
from secateur.errors import NothingToDoError
from secateur.registry import Registry
from secateur.report.forms import is_plain
from secateur.report.reading import finite

__all__ = ["names", "registry", "tag", "to_send"]

registry = Registry(__name__, __path__, "sink")


def names() -> list[str]:
    """The names of all sinks."""
    return registry.names()


def tag(item: Measurement) -> str:
    """The name of a Measurement in another program: run, trial, variant, name.

    >>> tag(Measurement("accuracy", 0.9, context={"run": "demo", "trial": 1, "variant": "file"}))
    'demo/trial-2/file/accuracy'
    """
    context = item.context
    trial = [f"trial-{int(context['trial']) + 1}"] if context.get("trial") else []
    parts = [str(context.get("run", "")), *trial, str(context.get("variant", "")), item.name]
    return "/".join(part for part in parts if part)


def to_send(measurements: Iterable[Measurement], sink: str) -> list[Measurement]:
    """Our own numbers, and those of every epoch; raises if there are none.

    >>> [item.name for item in to_send([Measurement("accuracy", 0.9), Measurement("loss", float("nan"))], "mlflow")]
    ['accuracy']
    """
    rows = [
        item
        for item in measurements
        if "published" not in item.context
        and finite(item.value) is not None
        and (is_plain(item) or "epoch" in item.context)
    ]
    if not rows:
        raise NothingToDoError(
            f"{sink}: expected at least one Measurement to send, got none; add a `measure` step"
        )
    return rows

"""Where Measurements can be sent for those who live elsewhere: TensorBoard and MLflow. Both are extras.

>>> names()
['mlflow', 'tensorboard']
"""

from __future__ import annotations

from secateur.core.measurement import Measurement
from secateur.registry import Registry

__all__ = ["names", "registry", "tag"]

registry = Registry(__name__, __path__, "sink")


def names() -> list[str]:
    """The sinks there are."""
    return registry.names()


def tag(item: Measurement) -> str:
    """The name a Measurement goes by elsewhere: run, trial, variant, name.

    >>> tag(Measurement("accuracy", 0.9, context={"run": "demo", "trial": 1, "variant": "file"}))
    'demo/trial-2/file/accuracy'
    """
    context = item.context
    trial = [f"trial-{int(context['trial']) + 1}"] if context.get("trial") else []
    parts = [str(context.get("run", "")), *trial, str(context.get("variant", "")), item.name]
    return "/".join(part for part in parts if part)

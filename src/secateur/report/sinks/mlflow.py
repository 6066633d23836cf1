"""`Mlflow`: Measurements as the metrics of an MLflow run; needs the extra `mlflow`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from secateur.core.measurement import Measurement
from secateur.errors import MissingExtraError
from secateur.report.run import without_home
from secateur.report.sinks import tag, to_send

__all__ = ["Mlflow"]


@dataclass(frozen=True)
class Mlflow:
    """Starts a run of that name; `params` are logged with it."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)

    def send(self, measurements: Iterable[Measurement]) -> int:
        """Send every number and every epoch; returns how many metrics were logged."""
        rows = to_send(measurements, "mlflow")
        try:
            mlflow: Any = importlib.import_module("mlflow")
        except ImportError as error:
            raise MissingExtraError(
                "the mlflow sink needs the package mlflow, which is not installed; install it with "
                "`pip install secateur[mlflow]`"
            ) from error
        with mlflow.start_run(run_name=self.name):
            if self.params:
                mlflow.log_params(without_home(dict(self.params)))
            for item in rows:
                # MLflow allows letters, digits, and these alone in a metric's name.
                name = re.sub(r"[^\w\-. /]", "_", tag(item))
                mlflow.log_metric(name, float(item.value), step=int(item.context.get("epoch", 0)))
        return len(rows)

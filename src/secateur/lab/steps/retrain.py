"""`retrain`: train a pruned model again; removed weights are held at exactly zero, and the default rate is lower.

The validation split is also evaluated before the first epoch. Where retraining ends worse than that, the step says so,
and with `keep = "best"` it keeps the weights from before it.

>>> RetrainStep().training().lr
0.01
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import create_model

from secateur.errors import NothingToDoError
from secateur.lab.state import State
from secateur.lab.steps import Result, Work
from secateur.lab.steps.train import EPOCH_ROWS, TrainBase, training_fields
from secateur.lab.training import evaluate

__all__ = ["RetrainStep"]


class _Retrain(TrainBase):
    """Training of a model that was pruned."""

    measures: ClassVar[tuple[str, ...] | None] = EPOCH_ROWS

    def run(self, state: State, work: Work) -> Result:
        """Train with the masks held."""
        if state.masks is None and state.plan is None:
            raise NothingToDoError(
                f"step {self.label!r}: nothing was pruned before it, so there is nothing to recover from; "
                "use a `train` step to train a dense model further"
            )
        best = self.training().keep == "best"
        before = _validated(state, work)
        weights = {k: v.detach().clone() for k, v in state.model.state_dict().items()} if best else {}
        result = super().run(state, work)
        if before is None:
            return result
        metric, start = before
        epochs = _by_epoch(result, metric)  # after rewinding the first is not 1
        after = epochs[result.log["best_epoch"] if best else max(epochs)]
        result.log |= {"validation_before": start, "validation_after": after}
        if after == start or (after > start) == (metric == "accuracy"):
            return result
        shown = f"{start:.2%}" if metric == "accuracy" else f"{start:.4g}"
        if best:
            result.state.model.load_state_dict(weights)
            result.log |= {"best_epoch": 0, "validation_after": start}
            result.line += f"; no epoch was better than before it: kept validation {metric} {shown}"
        else:
            result.line += f"; worse than before it ({shown}): keep = 'best' would keep the better weights"
        return result


def _validated(state: State, work: Work) -> tuple[str, float] | None:
    """The metric that epochs are compared by, and its value now; None without a validation split."""
    if len(work.data.validation) == 0:
        return None
    found = evaluate(state.model, work.data.validation, device=work.device)
    metric = "accuracy" if "accuracy" in found else "loss"
    return metric, float(found[metric])


def _by_epoch(result: Result, metric: str) -> dict[int, float]:
    """The validation metric after each epoch."""
    name = f"epoch_validation_{metric}"
    return {row.context["epoch"]: float(row.value) for row in result.measurements if row.name == name}


RetrainStep: Any = create_model(
    "RetrainStep", __base__=_Retrain, __module__=__name__, **training_fields(lr=0.01)
)
RetrainStep.__doc__ = "Retrain a pruned model with its masks held."

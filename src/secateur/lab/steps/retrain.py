"""`retrain`: train a pruned model again; removed weights are held at exactly zero, and the default rate is lower.

>>> RetrainStep().training().lr
0.01
"""

from __future__ import annotations

from typing import Any

from pydantic import create_model

from secateur.errors import NothingToDoError
from secateur.lab.state import State
from secateur.lab.steps import Result, Work
from secateur.lab.steps.train import TrainBase, training_fields

__all__ = ["RetrainStep"]


class _Retrain(TrainBase):
    """Training of a model that was pruned."""

    def run(self, state: State, work: Work) -> Result:
        """Train with the masks held."""
        if state.masks is None and state.plan is None:
            raise NothingToDoError(
                f"step {self.label!r}: nothing was pruned before it, so there is nothing to recover from; "
                "use a `train` step to train a dense model further"
            )
        return super().run(state, work)


RetrainStep: Any = create_model(
    "RetrainStep", __base__=_Retrain, __module__=__name__, **training_fields(lr=0.01)
)
RetrainStep.__doc__ = "Retrain a pruned model with its masks held."

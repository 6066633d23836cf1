"""`Probe`: the time of an epoch of training on this machine, measured with a few batches before anything is trained.

A fresh copy of the model is trained on one batch, again and again, for about a second.

>>> recipe = Recipe.parse('''
... [model]
... name = "lenet-300-100"
... [[step]]
... kind = "train"
... ''')
>>> 0 < Probe(seconds=0.1)(recipe) < 60
True
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from secateur.execution.devices import device_word
from secateur.execution.undisturbed import kept_random_state
from secateur.lab.outcomes import canonical
from secateur.lab.planning import builder, data_of
from secateur.lab.recipe import Recipe
from secateur.lab.training.evaluation import loss_of

__all__ = ["Probe"]


@dataclass
class Probe:
    """Times trainings; equal model, data and machine options are timed once.

    Args:
        seconds: How long to time.
        batch: Images of the batch.
    """

    seconds: float = 1.0
    batch: int = 128
    _known: dict[str, float] = field(default_factory=dict)

    def __call__(self, recipe: Recipe) -> float:
        """Seconds of one epoch of the recipe's model on its data, with its validation."""
        plain = recipe.plain()
        what = canonical([plain["model"], plain["data"], plain["lab"]])
        if what not in self._known:
            self._known[what] = self._time(recipe)
        return self._known[what]

    def _time(self, recipe: Recipe) -> float:
        data, device = data_of(recipe), device_word(recipe.lab.device)
        with kept_random_state(), torch.enable_grad():
            model = builder(recipe)().to(device).train()
            loss, _ = loss_of(model)
            images, labels = (part.to(device) for part in data.train.first(self.batch))
            began = time.perf_counter()
            readings: list[float] = []
            # The first pass warms up; a slow model is timed by one more.
            while len(readings) < 2 or time.perf_counter() - began < self.seconds:
                start = time.perf_counter()
                loss(model(images), images, labels).backward()
                model.zero_grad()
                float(next(model.parameters()).detach().flatten()[0])  # waits for the device
                readings.append(time.perf_counter() - start)
        # The fastest pass has the least of other work on the machine.
        each = min(readings[1:]) / len(labels)
        # Validation is a forward pass, about a third of a training step.
        return each * (len(data.train) + len(data.validation) / 3)

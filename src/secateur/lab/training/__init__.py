"""Training: one plain loop on Hugging Face accelerate; the same seed gives the same bytes, also after an interruption.

In go a model, a dataset and `TrainingOptions`; out come the trained model (in place) and `Trained`, its history.
Masks given are held: removed weights stay exactly 0. With `GradualPruning` the sparsity rises while training runs.
Everything else a training may use (a teacher, a custom loss, a checkpoint, a display) is a `TrainingContext`.

The files in reading order: `options` (how to train, as one value), `context` (what else a training uses), `loop`
(`train`), `parts` (what is refused), `optimizer`, `objective` (the loss, with a teacher), `evaluation` (metrics),
`pruning` (sparsity that rises), `distill/` (layers compared with a teacher's),
`snapshot` (a step to go back to), `mix` (images mixed in pairs), `average` (running average of weights), `checkpoint`,
`surroundings` (accelerator, random state, deterministic kernels), `progress` (what a display implements).

>>> import torch; from secateur import data, models
>>> digits = data.load("digits", size=28, limit=200)
>>> _ = torch.manual_seed(0); model = models.build("lenet-300-100")
>>> trained = train(model, digits, TrainingOptions(epochs=2, lr=0.05, batch_size=16), device="cpu")
>>> [record.epoch for record in trained.history], evaluate(model, digits.test, device="cpu")["accuracy"] > 0.5
([1, 2], True)
"""

from __future__ import annotations

from secateur.lab.training.context import Evaluate, TrainingContext
from secateur.lab.training.evaluation import Loss, evaluate
from secateur.lab.training.loop import train
from secateur.lab.training.options import EpochRecord, Trained, TrainingOptions, rate
from secateur.lab.training.progress import Bars, TrainingProgress
from secateur.lab.training.pruning import GradualPruning
from secateur.lab.training.snapshot import Snapshot

__all__ = [
    "Bars",
    "EpochRecord",
    "Evaluate",
    "GradualPruning",
    "Loss",
    "Snapshot",
    "Trained",
    "TrainingContext",
    "TrainingOptions",
    "TrainingProgress",
    "evaluate",
    "rate",
    "train",
]

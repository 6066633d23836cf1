"""The loss a model is trained with, and its metrics over a split.

>>> import torch; from secateur import data, models
>>> sorted(evaluate(models.build("fc"), data.load("digits", size=28, limit=20).test, device="cpu"))
['accuracy', 'loss']
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from secateur.data import Split
from secateur.errors import DataError, NonFiniteError, OptionError
from secateur.execution.devices import chosen_device

__all__ = ["Loss", "distillation", "evaluate", "in_mode", "logits_of", "loss_of", "placed"]

Loss = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]
"""`loss(outputs, inputs, labels)`: a scalar, the mean over the batch."""


def logits_of(outputs: object) -> torch.Tensor:
    """The logits in what a model returned: the tensor itself, its `logits`, or the first item of a tuple.

    Args:
        outputs: What the model returned.

    Returns:
        The logits.

    Raises:
        OptionError: No logits were found.

    >>> logits_of((torch.zeros(1, 2), None)).shape
    torch.Size([1, 2])
    """
    if isinstance(outputs, torch.Tensor):
        return outputs
    logits = getattr(outputs, "logits", None)
    if isinstance(logits, torch.Tensor):
        return logits
    if isinstance(outputs, (tuple, list)) and outputs and isinstance(outputs[0], torch.Tensor):
        return outputs[0]
    raise OptionError(
        f"the model returned {type(outputs).__name__}: expected logits (a tensor, an object with .logits, or "
        "a tuple that begins with them); give loss=, a function of (outputs, inputs, labels)"
    )


def loss_of(model: nn.Module, loss: Loss | None = None, label_smoothing: float = 0.0) -> tuple[Loss, bool]:
    """The loss a model is trained with, and whether its outputs are logits to be compared with labels.

    Args:
        model: Its own `training_loss` is used where it has one.
        loss: Takes the place of any other loss.
        label_smoothing: Of cross-entropy; another loss has none.

    Returns:
        The loss, and whether the model classifies.

    Raises:
        OptionError: `label_smoothing` with a loss that is not cross-entropy.

    >>> from secateur import models
    >>> loss_of(models.build("vae"))[1], loss_of(models.build("fc"))[1]
    (False, True)
    """
    own = getattr(model, "training_loss", None)
    if (loss is not None or own is not None) and label_smoothing:
        raise OptionError(
            f"label_smoothing: only cross-entropy has it, and {type(model).__name__} is trained with another "
            "loss"
        )
    if loss is not None:
        return loss, own is None
    if own is not None:
        return own, False

    def cross_entropy(outputs: object, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits_of(outputs).float(), labels, label_smoothing=label_smoothing)

    return cross_entropy, True


def distillation(student: object, teacher: object, temperature: float) -> torch.Tensor:
    """Distance of the student's softened outputs from the teacher's: T² · KL(teacher || student), mean of the batch.

    Args:
        student: The output of the network that learns.
        teacher: The output of the network that teaches.
        temperature: T, by which both logits are divided before the softmax.

    Returns:
        A scalar.

    >>> answer = torch.tensor([[1.0, 2.0]])
    >>> distillation(answer, answer, 4.0).abs().item() < 1e-6
    True
    """
    ours = functional.log_softmax(logits_of(student).float() / temperature, dim=1)
    theirs = functional.log_softmax(logits_of(teacher).float() / temperature, dim=1)
    return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put every module into training or evaluation mode, and restore the mode of each afterwards."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


@contextmanager
def placed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Move the model to a device, and back afterwards."""
    first = next((tensor for tensor in (*model.parameters(), *model.buffers())), None)
    before = device if first is None else first.device
    model.to(device)
    try:
        yield
    finally:
        model.to(before)


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    batch_size: int = 500,
    device: str | torch.device = "auto",
    loss: Loss | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Metrics of a model over a split: `accuracy` and `loss`, or those of the model's own `evaluation_metrics`.

    The model is evaluated in fp32 and left as it was: mode, device and random state.

    Args:
        model: The network.
        split: The images and labels.
        batch_size: Images of one forward pass.
        device: `auto`, or a device's name.
        loss: `loss(outputs, inputs, labels)`, in place of the model's own or of cross-entropy.
        seed: Of the generator that the model's own `evaluation_metrics` is given.

    Returns:
        The metrics by name, means over the split.

    Raises:
        DataError: The split is empty.
        NonFiniteError: A metric is NaN or infinite.

    >>> from secateur import data, models
    >>> images = data.load("digits", size=28, limit=20, normalise="none")
    >>> list(evaluate(models.build("vae"), images.test, device="cpu"))
    ['loss', 'reconstruction', 'kld']
    """
    if len(split) == 0:
        raise DataError("evaluate: expected a split with images, got an empty one; is validation=0?")
    where = chosen_device(device)
    own = getattr(model, "evaluation_metrics", None) if loss is None else None
    measure, classifies = loss_of(model, loss)
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, torch.Tensor] = {}
    with torch.no_grad(), placed(model, where), in_mode(model, False):
        for images, labels in split.batches(batch_size, device=where):
            if own is not None:
                found = own(images, labels, generator)
            else:
                outputs = model(images)
                found = {"loss": measure(outputs, images, labels) * len(labels)}
                if classifies:
                    correct = logits_of(outputs).argmax(1) == labels
                    found = {"accuracy": correct.sum()} | found
            for name, value in found.items():
                value = value.detach().to("cpu", torch.float64)
                sums[name] = sums[name] + value if name in sums else value
    metrics = {name: float(value) / len(split) for name, value in sums.items()}
    if not all(math.isfinite(value) for value in metrics.values()):
        raise NonFiniteError(
            f"{type(model).__name__}: expected finite metrics, got {metrics}; its weights or its inputs hold "
            "NaN or infinity"
        )
    return metrics

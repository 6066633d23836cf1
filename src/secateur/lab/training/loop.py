"""Training: one plain loop on Hugging Face accelerate; the same bytes for the same seed, resumed to the bit.

>>> from secateur import data, models
>>> digits = data.load("digits", size=28, limit=200)
>>> _ = torch.manual_seed(0); model = models.build("lenet-300-100")
>>> trained = train(model, digits, TrainingOptions(epochs=2, lr=0.05, batch_size=16), device="cpu")
>>> [record.epoch for record in trained.history], evaluate(model, digits.test, device="cpu")["accuracy"] > 0.5
([1, 2], True)
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.core.masks import Masks
from secateur.data import Data
from secateur.errors import DataError, NonFiniteError, NothingToDoError, OptionError
from secateur.execution.devices import chosen_device
from secateur.lab.training import checkpoint as checkpoints
from secateur.lab.training import mix as mixing
from secateur.lab.training.average import WeightAverage
from secateur.lab.training.evaluate import (
    Loss,
    distillation,
    evaluate,
    in_mode,
    logits_of,
    loss_of,
    placed,
)
from secateur.lab.training.options import EpochRecord, Trained, TrainingOptions, rate
from secateur.lab.training.progress import Bars, TrainingProgress, watcher
from secateur.lab.training.pruning import GradualPruning
from secateur.lab.training.surroundings import accelerated, exact, own_random_state

__all__ = [
    "Bars",
    "EpochRecord",
    "GradualPruning",
    "Loss",
    "Trained",
    "TrainingOptions",
    "TrainingProgress",
    "evaluate",
    "rate",
    "train",
]

Evaluate = Callable[[nn.Module], Mapping[str, float]]
_evaluate = evaluate  # `train` has a parameter of that name


def train(
    model: nn.Module,
    data: Data,
    options: TrainingOptions | None = None,
    *,
    masks: Masks | None = None,
    pruning: GradualPruning | None = None,
    teacher: nn.Module | None = None,
    loss: Loss | None = None,
    evaluate: Evaluate | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    progress: TrainingProgress | str | None = None,
) -> Trained:
    """Train the model in place; afterwards it is on the device and in the mode it came in.

    `masks` are held: removed weights stay exactly 0. `pruning` makes them grow while the training runs, and
    what it came to is in `Trained.masks`. `teacher` is distilled from (needs `distill_alpha` above
    0). `loss(outputs, inputs, labels)` replaces cross-entropy; without it the model's own `training_loss` is
    used where it has one. `evaluate(model) -> metrics` replaces the pass over data.validation. `checkpoint`
    is a file, written after every epoch and resumed from when it is there; it is left where it is when
    training is done. `progress` is `auto` (bars on a terminal, else nothing), None, or a `TrainingProgress`.

    The same start, options, data, seed, masks and machine give the same bytes: random numbers are drawn
    afresh every epoch from (seed, epoch), and torch's global random state is given back as it was. A last
    batch of one image is left out, since batch norm cannot train on it.
    """
    options = options or TrainingOptions()
    run = _Run(model, data, options, masks, pruning, teacher, loss, evaluate, seed)
    file = None if checkpoint is None else Path(checkpoint)
    shown = watcher(progress)
    with ExitStack() as stack:
        accelerator = stack.enter_context(accelerated(options, chosen_device(device)))
        stack.enter_context(placed(model, accelerator.device))
        stack.enter_context(in_mode(model, True))
        if teacher is not None:
            stack.enter_context(placed(teacher, accelerator.device))
            stack.enter_context(in_mode(teacher, False))
        stack.enter_context(own_random_state(accelerator.device))
        stack.enter_context(exact(accelerator.device, options))
        return run.go(accelerator, file, shown if accelerator.is_main_process else None)


class _Run:
    """One training: what it needs, and how far it has come."""

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        options: TrainingOptions,
        masks: Masks | None,
        pruning: GradualPruning | None,
        teacher: nn.Module | None,
        loss: Loss | None,
        evaluate: Evaluate | None,
        seed: int,
    ):
        self.model, self.data, self.options, self.masks = model, data, options, masks
        self.pruning, self.held = pruning, ExitStack()
        self.teacher, self.seed = teacher, seed
        self.loss, self.classifies = loss_of(model, loss, options.label_smoothing)
        self.evaluate = evaluate
        self.custom_loss = loss
        self.history: list[EpochRecord] = []
        self.best: dict[str, torch.Tensor] = {}
        self.average: WeightAverage | None = None
        self._refuse()

    def _refuse(self) -> None:
        """Everything that can be known to be wrong before the first step."""
        name = type(self.model).__name__
        if len(self.data.train) == 0:
            raise DataError(f"{self.data.name}: expected training images, got none")
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise NothingToDoError(
                f"{name} has no parameter that requires a gradient: there is nothing to train"
            )
        if (self.teacher is not None) != (self.options.distill_alpha > 0):
            raise OptionError(
                "distillation needs both a teacher and distill_alpha above 0; got "
                f"{'a teacher' if self.teacher is not None else 'no teacher'} and "
                f"distill_alpha={self.options.distill_alpha}"
            )
        if self.teacher is not None and not self.classifies:
            raise OptionError(
                f"distillation compares logits, which {name} does not return; leave the teacher out"
            )
        validated = self.evaluate is not None or len(self.data.validation) > 0
        if not validated and (self.options.keep == "best" or self.options.early_stop is not None):
            raise OptionError(
                "keep='best' and early_stop choose by the validation split, which is empty; load the data "
                "with validation=0.1"
            )
        if self.pruning is not None and (self.options.keep == "best" or self.options.early_stop is not None):
            raise OptionError(
                "pruning: the best epoch may come before the last weights leave; expected keep='last' and no "
                "early_stop"
            )
        if self.options.mix and (self.custom_loss is not None or not self.classifies):
            raise OptionError(
                f"mix: only cross-entropy takes two labels an image, and {name} is trained with another loss"
            )
        if self.masks is not None:
            self.masks.check(self.model)

    # -- the loop
    def go(self, accelerator: Any, file: Path | None, shown: TrainingProgress | None) -> Trained:
        """Train until the epochs are done or nothing gets better."""
        options, data = self.options, self.data
        about = self._about() if file is not None else {}
        optimizer = self._optimizer()
        scaler_state = None
        if options.average is not None:
            self.average = WeightAverage(self.model, options.average)
        if file is not None and file.exists():
            scaler_state = self._resume(file, about, optimizer)
        resumed_from = len(self.history)
        steps = len(range(0, len(data.train), options.batch_size))
        if steps > 1 and 0 < len(data.train) % options.batch_size < 2 * accelerator.num_processes:
            steps -= 1
        with ExitStack() as stack:
            self.held = stack.enter_context(ExitStack())
            self._hold(self.masks, optimizer)
            if self.average is not None and not self.history:  # the masked weights are zero only now
                self.average.restart(self.model)
            network = self.model
            if accelerator.num_processes > 1:
                network = accelerator.prepare_model(self.model)
                stack.callback(accelerator.unwrap_model, network, keep_fp32_wrapper=False)
            # accelerate's wrapper costs small networks a sixth of their time, and is needed to scale or to share only.
            plain = accelerator.num_processes == 1 and accelerator.scaler is None
            stepper = optimizer if plain else accelerator.prepare_optimizer(optimizer)
            if scaler_state is not None and accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(scaler_state)
            if shown is not None:
                stack.callback(shown.finish)
                shown.start(options.epochs, steps, resumed_from)
            for epoch in range(resumed_from + 1, options.epochs + 1):
                if self._is_over():
                    break
                record = self._epoch(epoch, steps, network, stepper, accelerator, shown)
                self.history.append(record)
                if options.keep == "best" and self.best_epoch() == epoch:
                    with self._averaged():
                        state = self.model.state_dict()
                        self.best = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
                if file is not None and accelerator.is_main_process:
                    self._save(file, about, optimizer, accelerator.scaler)
                if shown is not None:
                    shown.epoch(record)
        if options.keep == "best" and self.best_epoch() != len(self.history):
            self.model.load_state_dict(self.best)
        elif self.average is not None:
            self.average.put(self.model)
        return Trained(
            history=tuple(self.history),
            best_epoch=self.best_epoch(),
            stopped_early=len(self.history) < options.epochs,
            resumed_from=resumed_from,
            seconds=sum(record.seconds for record in self.history),
            masks=self.masks,
        )

    def _hold(self, masks: Masks | None, optimizer: Any) -> None:
        """Hold these masks from here on, in place of those before."""
        from secateur.pruning.hold import hold

        self.masks = masks
        self.held.close()
        if masks is not None:
            self.held.enter_context(hold(self.model, masks, optimizer))

    def _epoch(
        self,
        epoch: int,
        steps: int,
        network: nn.Module,
        stepper: Any,
        accelerator: Any,
        shown: TrainingProgress | None,
    ) -> EpochRecord:
        """One pass over the training images, and one over the validation images."""
        options, device = self.options, accelerator.device
        began = told = time.perf_counter()
        rank, processes = accelerator.process_index, accelerator.num_processes
        torch.manual_seed(_mixed(self.seed, epoch, rank))
        total = torch.zeros((), device=device)
        right = torch.zeros((), dtype=torch.int64, device=device)
        seen = 0
        lr = options.lr
        batches = self.data.train.batches(
            options.batch_size,
            shuffle=True,
            seed=self.seed,
            epoch=epoch,
            augment=options.augment,
            device=device,
            share=(rank, processes),
        )
        for step, (images, labels) in enumerate(batches, start=1):
            if step > steps:
                break
            lr = rate(options, epoch - 1 + (step if epoch <= options.warmup else step - 1) / steps)
            for group in stepper.param_groups:
                group["lr"] = lr
            self._prune((epoch - 1) * steps + step - 1, steps * options.epochs, stepper)
            # What this batch counts over all processes: its parts may differ by one image.
            whole = min(options.batch_size, len(self.data.train) - (step - 1) * options.batch_size)
            parts = list(zip(images.chunk(options.accumulate), labels.chunk(options.accumulate)))
            for index, (some, theirs) in enumerate(parts, start=1):
                last = index == len(parts)
                with nullcontext() if last or processes == 1 else accelerator.no_sync(network):
                    value, correct = self._loss(network, some, theirs, accelerator)
                    accelerator.backward(value * (len(theirs) * processes / whole))
                total += value.detach() * len(theirs)
                right += correct
            if options.grad_clip is not None:
                accelerator.clip_grad_norm_(network.parameters(), options.grad_clip)
            stepper.step()
            stepper.zero_grad()
            if self.average is not None:
                self.average.take(self.model)
            seen += len(labels)
            now = time.perf_counter()
            if shown is not None and (now - told > 0.2 or step == steps):
                told = now
                shown.step(epoch, step, float(total) / seen)
        if processes > 1:
            total, right, count = (
                accelerator.reduce(part) for part in (total, right, torch.tensor(seen, device=device))
            )
            seen = int(count)
        mean = float(total) / seen
        if not math.isfinite(mean):
            raise NonFiniteError(
                f"{type(self.model).__name__}: the training loss became {mean} in epoch {epoch}; lower lr "
                f"({options.lr}), set grad_clip, or add warmup"
            )
        with self._averaged():
            metrics = self._metrics(device)
        return EpochRecord(
            epoch=epoch,
            train_loss=mean,
            train_accuracy=int(right) / seen if self.classifies else None,
            lr=lr,
            metrics=metrics,
            seconds=time.perf_counter() - began,
        )

    def _prune(self, step: int, steps: int, optimizer: Any) -> None:
        """Take more weights away, where the plan says that it is time."""
        if self.pruning is None or not self.pruning.is_due(step, steps):
            return
        masks = self.pruning.masks(self.model, step, steps, self.masks)
        if masks is not self.masks:
            self._hold(masks, optimizer)
            if self.average is not None:  # of weights that have just left nothing may remain
                self.average.restart(self.model)

    def _loss(
        self, network: nn.Module, images: torch.Tensor, labels: torch.Tensor, accelerator: Any
    ) -> tuple[torch.Tensor, torch.Tensor | int]:
        """The loss of some images, and how many of them are classified right."""
        options = self.options
        pairs = mixing.mixed(images, labels, options.mix) if options.mix else None
        images = images if pairs is None else pairs.images
        with accelerator.autocast():
            outputs = network(images)
            answers = None
            if self.teacher is not None:
                with torch.no_grad():
                    answers = self.teacher(images)
        if pairs is None:
            value = self.loss(outputs, images, labels)
        else:
            value = mixing.cross_entropy(logits_of(outputs).float(), pairs, options.label_smoothing)
        if answers is not None:
            taught = distillation(outputs, answers, options.distill_temperature)
            value = options.distill_alpha * taught + (1 - options.distill_alpha) * value
        if not self.classifies:
            return value, 0
        return value, (logits_of(outputs).detach().argmax(1) == labels).sum()

    def _averaged(self) -> AbstractContextManager[None]:
        """The model as it will be given back."""
        return nullcontext() if self.average is None else self.average.shown(self.model)

    def _metrics(self, device: torch.device) -> dict[str, float]:
        """The validation split's metrics."""
        if self.evaluate is not None:
            with in_mode(self.model, False):
                return {name: float(value) for name, value in self.evaluate(self.model).items()}
        if len(self.data.validation) == 0:
            return {}
        return _evaluate(self.model, self.data.validation, device=device, loss=self.custom_loss)

    # -- which epoch is best
    def best_epoch(self) -> int:
        """The earliest epoch with the best validation result, or the last one where nothing was validated."""

        def worth(record: EpochRecord) -> float:
            metrics = record.metrics
            return metrics["accuracy"] if "accuracy" in metrics else -metrics.get("loss", -record.epoch)

        return (
            max(self.history, key=lambda record: (worth(record), -record.epoch)).epoch if self.history else 0
        )

    def _is_over(self) -> bool:
        patience = self.options.early_stop
        return patience is not None and len(self.history) - self.best_epoch() >= patience

    # -- the checkpoint
    def _optimizer(self) -> torch.optim.Optimizer:
        options = self.options
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if options.optimizer == "sgd":
            return torch.optim.SGD(
                parameters,
                lr=options.lr,
                momentum=options.momentum,
                nesterov=options.nesterov,
                weight_decay=options.weight_decay,
            )
        kind = torch.optim.Adam if options.optimizer == "adam" else torch.optim.AdamW
        # torch's one-pass step, several times faster on a processor; elsewhere its own choice is fast enough.
        fused = all(one.device.type == "cpu" and one.is_floating_point() for one in parameters)
        return kind(
            parameters,
            lr=options.lr,
            betas=options.betas,
            weight_decay=options.weight_decay,
            fused=fused or None,
        )

    def _about(self) -> dict[str, Any]:
        """What makes this training this training."""
        custom = [
            getattr(part, "__qualname__", type(part).__name__) for part in (self.custom_loss, self.evaluate)
        ]
        return {
            **{name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self.options).items()},
            "seed": self.seed,
            "data": self.data.fingerprint,
            "start": checkpoints.tensors_digest(self.model),
            "teacher": checkpoints.tensors_digest(self.teacher),
            "masks": None if self.masks is None else self.masks.digest(),
            "functions": custom,
            **(
                {}
                if self.pruning is None
                else {"pruning": json.loads(json.dumps(asdict(self.pruning), default=repr))}
            ),
        }

    def _save(
        self, file: Path, about: Mapping[str, Any], optimizer: torch.optim.Optimizer, scaler: Any
    ) -> None:
        tensors, numbers = checkpoints.optimizer_tensors(optimizer)
        tensors |= {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self.best.items()}
        if self.average is not None:
            tensors |= {f"average/{name}": tensor for name, tensor in self.average.tensors.items()}
        if self.pruning is not None and self.masks is not None:
            tensors |= {f"masks/{name}": mask for name, mask in self.masks.items()}
        state = {
            "training": about,
            "history": [asdict(record) for record in self.history],
            "numbers": numbers,
            "scaler": None if scaler is None else scaler.state_dict(),
            "averaged": None if self.average is None else self.average.count,
        }
        checkpoints.write(file, tensors, state)

    def _resume(self, file: Path, about: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> Any:
        """Take up a training where its checkpoint left it; returns the gradient scaler's state."""
        tensors, state = checkpoints.read(file)
        checkpoints.identity(state["training"], about, file)
        self.model.load_state_dict(checkpoints.under("model/", tensors))
        self.best = checkpoints.under("best/", tensors)
        if self.average is not None:
            self.average.load(checkpoints.under("average/", tensors), state["averaged"])
        checkpoints.load_optimizer(optimizer, tensors, state["numbers"])
        self.history = [EpochRecord(**record) for record in state["history"]]
        if self.pruning is not None and (masks := checkpoints.under("masks/", tensors)):
            self.masks = Masks(masks)
        return state["scaler"]


def _mixed(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "little") >> 1

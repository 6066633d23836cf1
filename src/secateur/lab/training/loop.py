"""`train`: the training loop, and one training's progress through it.

>>> from secateur import data, models
>>> digits = data.load("digits", size=28, limit=200)
>>> _ = torch.manual_seed(0); model = models.build("lenet-300-100")
>>> trained = train(model, digits, TrainingOptions(epochs=2, lr=0.05, batch_size=16), device="cpu")
>>> [record.epoch for record in trained.history]
[1, 2]
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from secateur.core.masks import Masks
from secateur.core.out_of_memory import raise_if_out_of_memory
from secateur.data import Data
from secateur.errors import (
    NonFiniteError,
    OptionError,
    SecateurError,
    StoreError,
)
from secateur.execution.devices import chosen_device
from secateur.lab.training import checkpoint as checkpoints
from secateur.lab.training.average import WeightAverage
from secateur.lab.training.context import TrainingContext
from secateur.lab.training.evaluation import evaluate, in_mode, placed
from secateur.lab.training.objective import Objective
from secateur.lab.training.optimizer import optimizer_of
from secateur.lab.training.options import EpochRecord, Trained, TrainingOptions, best_epoch, rate
from secateur.lab.training.parts import TrainingParts
from secateur.lab.training.progress import TrainingProgress, watcher
from secateur.lab.training.pruning import GradualPruning
from secateur.lab.training.snapshot import Snapshot
from secateur.lab.training.surroundings import accelerated, exact, own_random_state
from secateur.sparsify import Sparsifier, Sparsifying

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["train"]

_SHOW_EVERY = 0.2  # seconds between two updates of a display within an epoch


def train(
    model: nn.Module,
    data: Data,
    options: TrainingOptions | None = None,
    *,
    masks: Masks | None = None,
    pruning: GradualPruning | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    context: TrainingContext | None = None,
) -> Trained:
    """Train the model in place; afterwards it is on the device and in the mode that it was in before.

    The same start, options, data, seed, masks and machine give the same bytes: random generators are seeded in every
    epoch from (seed, epoch), and torch's global random state is restored afterwards. A last batch of one image is left
    out, since batch norm cannot train on it.

    Args:
        model: The network; its parameters that require a gradient are trained.
        data: Its `train` split is trained on, its `validation` split measured after every epoch.
        options: How to train; None: the defaults.
        masks: Held while training: removed weights stay exactly 0.
        pruning: Removes more weights while training runs; `Trained.masks` are those at the end.
        seed: Draws the order of images, their augmentation and dropout.
        device: `auto`, or a device's name.
        context: A teacher, a custom loss or evaluation, a checkpoint or a display.

    Returns:
        The history of the epochs; the weights are in the model.

    Raises:
        OptionError: Options that conflict.
        DataError: No training images.
        NothingToDoError: No parameter requires a gradient.
        NonFiniteError: The loss became NaN or infinite.
    """
    options = options or TrainingOptions()
    context = context or TrainingContext()
    run = _Run(TrainingParts(model, data, options, masks, pruning, context), seed)
    shown = watcher(context.progress)
    with ExitStack() as stack:
        accelerator = stack.enter_context(accelerated(options, chosen_device(device)))
        stack.enter_context(placed(model, accelerator.device))
        stack.enter_context(in_mode(model, True))
        if context.teacher is not None:
            stack.enter_context(placed(context.teacher, accelerator.device))
            stack.enter_context(in_mode(context.teacher, False))
        stack.enter_context(own_random_state(accelerator.device))
        stack.enter_context(exact(accelerator.device, options))
        return run.go(accelerator, shown if accelerator.is_main_process else None)


@dataclass(frozen=True)
class _Machinery:
    """What the loop runs on: the network as accelerate wraps it, the optimizer, and where progress is shown."""

    accelerator: Accelerator
    network: nn.Module
    optimizer: Any  # a torch optimizer, or accelerate's wrapper of one, which is no subclass in its types
    steps: int  # optimizer steps in an epoch
    shown: TrainingProgress | None


class _Sums:
    """Sums over one epoch, on the device, so that no step waits for a transfer."""

    def __init__(self, device: torch.device):
        self.loss = torch.zeros((), device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.images = 0

    def reduce(self, accelerator: Accelerator) -> None:
        """Add up over all processes."""
        if accelerator.num_processes > 1:
            count = torch.tensor(self.images, device=self.loss.device)
            self.loss, self.correct, whole = (
                accelerator.reduce(part) for part in (self.loss, self.correct, count)
            )
            self.images = int(whole)


class _Run:
    """One training: its parts, and its progress."""

    def __init__(self, parts: TrainingParts, seed: int):
        self.parts, self.seed = parts, seed
        self.model, self.data, self.options = parts.model, parts.data, parts.options
        self.masks, self.pruning, self.context = parts.masks, parts.pruning, parts.context
        self.held = ExitStack()
        self.objective = Objective(self.model, self.options, self.context)
        self.file = None if self.context.checkpoint is None else Path(self.context.checkpoint)
        self.history: list[EpochRecord] = []
        self.best: dict[str, torch.Tensor] = {}
        self.average: WeightAverage | None = None
        self.sparsifying: Sparsifying | None = None
        self.snapshot: Snapshot | None = None
        self.parts.check(self.objective.classifies)

    # -- the loop
    def go(self, accelerator: Accelerator, shown: TrainingProgress | None) -> Trained:
        """Train until the epochs are done or `early_stop` ends it."""
        about = self.parts.identity(self.seed) if self.file is not None else {}
        optimizer = optimizer_of(self.model, self.options)
        if self.options.average is not None:
            self.average = WeightAverage(self.model, self.options.average)
        scaler: dict[str, Any] | None = None
        sparsified: dict[str, torch.Tensor] = {}
        if self.file is not None and self.file.exists():
            scaler, sparsified = self._resume(self.file, about, optimizer)
        elif self.context.rewind is not None and self.context.rewind_weights:
            self.context.rewind.restore(self.model, optimizer)
        resumed_from = len(self.history)
        with ExitStack() as stack:
            self.held = stack.enter_context(ExitStack())
            self._hold(self.masks, optimizer)
            if self.average is not None and not self.history:  # only now are the masked weights zero
                self.average.restart(self.model)
            machinery = self._machinery(stack, accelerator, optimizer, scaler, shown)
            self._sparsify(stack, machinery, sparsified)
            self.objective.record(stack)
            first = self._first_step(machinery)
            done = first // machinery.steps + resumed_from
            if shown is not None:
                stack.callback(shown.finish)
                shown.start(self.options.epochs, machinery.steps, done)
            for epoch in range(done + 1, self.options.epochs + 1):
                if self._is_over():
                    break
                record = self._epoch(epoch, machinery, max(0, first - (epoch - 1) * machinery.steps))
                self.history.append(record)
                self._remember_best(epoch)
                if self.file is not None and accelerator.is_main_process:
                    self._save(self.file, about, optimizer, accelerator.scaler)
                if shown is not None:
                    shown.epoch(record)
        return self._trained(resumed_from)

    def _machinery(
        self,
        stack: ExitStack,
        accelerator: Accelerator,
        optimizer: torch.optim.Optimizer,
        scaler_state: dict[str, Any] | None,
        shown: TrainingProgress | None,
    ) -> _Machinery:
        """Wrap network and optimizer as accelerate needs them; `stack` removes the wrapping."""
        network = self.model
        if accelerator.num_processes > 1:
            network = accelerator.prepare_model(self.model)
            stack.callback(accelerator.unwrap_model, network, keep_fp32_wrapper=False)
        # accelerate's wrapper costs small networks a sixth of their time; only scaling and several processes need it.
        plain = accelerator.num_processes == 1 and accelerator.scaler is None
        wrapped = optimizer if plain else accelerator.prepare_optimizer(optimizer)
        if scaler_state is not None and accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(scaler_state)
        images, size = len(self.data.train), self.options.batch_size
        steps = len(range(0, images, size))
        if steps > 1 and 0 < images % size < 2 * accelerator.num_processes:
            steps -= 1  # every process needs two images of a batch, for batch norm
        return _Machinery(accelerator, network, wrapped, steps, shown)

    def _sparsify(self, stack: ExitStack, machinery: _Machinery, tensors: Mapping[str, torch.Tensor]) -> None:
        """Start the sparse training method, from a checkpoint's tensors where there is one."""
        method, device = self.options.sparsify, machinery.accelerator.device
        if not isinstance(method, Sparsifier):
            return
        active = method.start(
            self.model,
            example=self.data.example.to(device),
            masks=self.masks,
            steps=machinery.steps * self.options.epochs,
            seed=self.seed,
        )
        if self.history:
            active.load(
                {name: tensor.to(device) for name, tensor in tensors.items()},
                machinery.steps * len(self.history),
            )
        self.sparsifying = stack.enter_context(active)

    def _first_step(self, machinery: _Machinery) -> int:
        """The optimizer step that training starts at: 0, or that of the snapshot it rewinds to."""
        total = machinery.steps * self.options.epochs
        rewind = None if self.context.rewind is None else self.context.rewind.step
        for name, step in (("save_at", self.options.save_at), ("rewind", rewind)):
            if step is not None and step >= total:
                raise OptionError(
                    f"{name}: expected a step below {total}, as {self.options.epochs} epochs of {machinery.steps} "
                    f"have, got {step}"
                )
        return rewind or 0

    def _trained(self, resumed_from: int) -> Trained:
        """Put the weights that were asked for into the model, and return the history."""
        last = self.history[-1].epoch if self.history else 0
        if self.options.keep == "best" and best_epoch(self.history) != last:
            self.model.load_state_dict(self.best)
        elif self.average is not None:
            self.average.put(self.model)
        if self.sparsifying is not None:
            self.masks = self.sparsifying.finish()
        return Trained(
            history=tuple(self.history),
            best_epoch=best_epoch(self.history),
            stopped_early=last < self.options.epochs,
            resumed_from=resumed_from,
            seconds=sum(record.seconds for record in self.history),
            masks=self.masks,
            snapshot=self.snapshot,
        )

    def _hold(self, masks: Masks | None, optimizer: Any) -> None:
        """Hold these masks in place of those before."""
        from secateur.pruning.hold import hold

        self.masks = masks
        self.held.close()
        moves = isinstance(self.options.sparsify, Sparsifier) and self.options.sparsify.moves
        if masks is not None and not moves:  # a method whose masks move holds them itself
            self.held.enter_context(hold(self.model, masks, optimizer))

    def _batches(self, epoch: int, accelerator: Accelerator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This process's part of each batch of an epoch."""
        return self.data.train.batches(
            self.options.batch_size,
            shuffle=True,
            seed=self.seed,
            epoch=epoch,
            augment=self.options.augment,
            device=accelerator.device,
            share=(accelerator.process_index, accelerator.num_processes),
        )

    def _epoch(self, epoch: int, machinery: _Machinery, skip: int = 0) -> EpochRecord:
        """One pass over the training images, except those of the first `skip` steps, and one over the validation
        images.
        """
        options, accelerator, steps = self.options, machinery.accelerator, machinery.steps
        began = last_shown = time.perf_counter()
        torch.manual_seed(_mixed(self.seed, epoch, accelerator.process_index))
        sums = _Sums(accelerator.device)
        lr = options.lr
        for step, (images, labels) in enumerate(self._batches(epoch, accelerator), start=1):
            if step > steps:
                break
            if step <= skip:
                continue  # drawn anyway, so that the random numbers after it are the same
            self._take_up((epoch - 1) * steps + step - 1, machinery.optimizer)
            lr = rate(options, epoch - 1 + (step if epoch <= options.warmup else step - 1) / steps)
            for group in machinery.optimizer.param_groups:
                group["lr"] = lr
            self._prune((epoch - 1) * steps + step - 1, steps * options.epochs, machinery.optimizer)
            self._accumulate(step, images, labels, machinery, sums)
            self._update(machinery)
            now = time.perf_counter()
            if machinery.shown is not None and (now - last_shown > _SHOW_EVERY or step == steps):
                last_shown = now
                machinery.shown.step(epoch, step, float(sums.loss) / sums.images)
        sums.reduce(accelerator)
        mean = float(sums.loss) / sums.images
        if not math.isfinite(mean):
            raise NonFiniteError(
                f"{type(self.model).__name__}: the training loss became {mean} in epoch {epoch}; lower lr "
                f"({options.lr}), set grad_clip, or add warmup"
            )
        with self._averaged():
            metrics = self._metrics(accelerator.device)
        return EpochRecord(
            epoch=epoch,
            train_loss=mean,
            train_accuracy=int(sums.correct) / sums.images if self.objective.classifies else None,
            lr=lr,
            metrics=metrics,
            seconds=time.perf_counter() - began,
        )

    def _take_up(self, step: int, optimizer: Any) -> None:
        """Before a step: restore the random state of the snapshot rewound to, and take a snapshot where one is asked
        for.
        """
        rewind = self.context.rewind
        if rewind is not None and step == rewind.step:
            torch.set_rng_state(rewind.tensors["random"])
        if step == self.options.save_at:
            self.snapshot = Snapshot.take(self.model, getattr(optimizer, "optimizer", optimizer), step)

    def _accumulate(
        self, step: int, images: torch.Tensor, labels: torch.Tensor, machinery: _Machinery, sums: _Sums
    ) -> None:
        """Gradients of one batch, micro-batch by micro-batch, added to the present ones."""
        options, accelerator = self.options, machinery.accelerator
        processes = accelerator.num_processes
        # The batch over all processes: each has its own part, and parts may differ by one image.
        whole = min(options.batch_size, len(self.data.train) - (step - 1) * options.batch_size)
        parts = list(zip(images.chunk(options.accumulate), labels.chunk(options.accumulate)))
        if self.sparsifying is not None:
            self.sparsifying.before_forward()
        for index, (some, theirs) in enumerate(parts, start=1):
            last = index == len(parts)
            with nullcontext() if last or processes == 1 else accelerator.no_sync(machinery.network):
                value, correct = self.objective.of(machinery.network, some, theirs, accelerator)
                share = value * (len(theirs) * processes / whole)
                if last and self.sparsifying is not None:
                    share = share + self.sparsifying.penalty()
                accelerator.backward(share)
            sums.loss += value.detach() * len(theirs)
            sums.correct += correct
        sums.images += len(labels)

    def _update(self, machinery: _Machinery) -> None:
        """One optimizer step with the present gradients; none where a sparse training method removed them all."""
        active = self.sparsifying
        if active is not None and machinery.accelerator.scaler is not None:
            machinery.accelerator.unscale_gradients()
        if self.options.grad_clip is not None:
            machinery.accelerator.clip_grad_norm_(machinery.network.parameters(), self.options.grad_clip)
        if active is not None:
            active.before_step()
        if active is None or any(parameter.grad is not None for parameter in self.model.parameters()):
            machinery.optimizer.step()
        machinery.optimizer.zero_grad()
        if active is not None:
            active.after_step()
        if self.average is not None:
            self.average.take(self.model)

    def _prune(self, step: int, steps: int, optimizer: Any) -> None:
        """Remove more weights before this step, where `GradualPruning` says so."""
        if self.pruning is None or not self.pruning.is_due(step, steps):
            return
        device = next(self.model.parameters()).device
        example = self.data.example.to(device) if self.pruning.needs_example else None
        masks = self.pruning.masks(self.model, step, steps, self.masks, example)
        if masks is not self.masks:
            self._hold(masks, optimizer)
            if self.average is not None:  # weights just removed must leave the average too
                self.average.restart(self.model)

    def _averaged(self) -> AbstractContextManager[None]:
        """The model as it will be returned: with averaged weights, or with the masks of a sparse training method."""
        if self.sparsifying is not None and self.average is None:
            return self.sparsifying.shown()
        return nullcontext() if self.average is None else self.average.shown(self.model)

    def _metrics(self, device: torch.device) -> dict[str, float]:
        """The validation split's metrics."""
        if self.context.evaluate is not None:
            with in_mode(self.model, False):
                return {name: float(value) for name, value in self.context.evaluate(self.model).items()}
        if len(self.data.validation) == 0:
            return {}
        return evaluate(self.model, self.data.validation, device=device, loss=self.context.loss)

    # -- which epoch is best
    def _remember_best(self, epoch: int) -> None:
        """Copy the weights where this epoch is the best so far and the best is to be kept."""
        if self.options.keep == "best" and best_epoch(self.history) == epoch:
            with self._averaged():
                state = self.model.state_dict()
                self.best = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def _is_over(self) -> bool:
        patience = self.options.early_stop
        if patience is None or not self.history:
            return False
        return self.history[-1].epoch - best_epoch(self.history) >= patience

    # -- the checkpoint
    def _save(
        self, file: Path, about: Mapping[str, object], optimizer: torch.optim.Optimizer, scaler: Any
    ) -> None:
        tensors, numbers = checkpoints.optimizer_tensors(optimizer)
        tensors |= {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self.best.items()}
        if self.average is not None:
            tensors |= {f"average/{name}": tensor for name, tensor in self.average.tensors.items()}
        if self.pruning is not None and self.masks is not None:
            tensors |= {f"masks/{name}": mask for name, mask in self.masks.items()}
        if self.snapshot is not None:
            tensors |= {f"snapshot/{name}": tensor for name, tensor in self.snapshot.tensors.items()}
        if self.sparsifying is not None:
            tensors |= {f"sparsify/{name}": tensor for name, tensor in self.sparsifying.tensors().items()}
        state = {
            "training": about,
            "history": [asdict(record) for record in self.history],
            "numbers": numbers,
            "scaler": None if scaler is None else scaler.state_dict(),
            "snapshot": None if self.snapshot is None else self.snapshot.numbers,
            "averaged": None if self.average is None else self.average.count,
        }
        checkpoints.write(file, tensors, state)

    def _resume(
        self, file: Path, about: Mapping[str, object], optimizer: torch.optim.Optimizer
    ) -> tuple[dict[str, Any] | None, dict[str, torch.Tensor]]:
        """Continue from a checkpoint; returns the gradient scaler's state, and a sparse training method's tensors."""
        tensors, state = checkpoints.read(file)
        try:
            checkpoints.identity(state["training"], about, file)
            return self._restored(tensors, state, optimizer)
        except SecateurError:
            raise
        except Exception as error:  # whatever the values of a changed file lead to
            raise_if_out_of_memory(error)
            raise StoreError(
                f"checkpoint {file}: expected a training's file, got something else ({type(error).__name__}: {error}); "
                "delete it to train from the start, or give another path"
            ) from error

    def _restored(
        self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any], optimizer: torch.optim.Optimizer
    ) -> tuple[dict[str, Any] | None, dict[str, torch.Tensor]]:
        """Put what a checkpoint holds into the training; returns what `_resume` does. The model is changed last."""
        weights, best = checkpoints.under("model/", tensors), checkpoints.under("best/", tensors)
        checkpoints.check_weights(weights, self.model)
        history = [EpochRecord.of(record) for record in state["history"]]
        if [record.epoch for record in history] != list(range(1, len(history) + 1)):
            raise ValueError("its epochs are not numbered from 1")
        if self.options.keep == "best" and history:
            checkpoints.check_weights(best, self.model)
        if self.pruning is not None and (found := checkpoints.under("masks/", tensors)):
            masks = Masks(found)
            masks.check(self.model)
            self.masks = masks
        if (numbers := state.get("snapshot")) is not None and self.options.save_at is not None:
            self.snapshot = Snapshot(
                self.options.save_at, checkpoints.under("snapshot/", tensors), dict(numbers)
            )
        scaler: dict[str, Any] | None = state["scaler"]
        if not (scaler is None or isinstance(scaler, dict)):
            raise ValueError(f"its gradient scaler is {type(scaler).__name__}")
        if self.average is not None:
            self.average.load(checkpoints.under("average/", tensors), state["averaged"])
        checkpoints.load_optimizer(optimizer, tensors, state["numbers"])
        self.history, self.best = history, best
        self.model.load_state_dict(weights)
        return scaler, checkpoints.under("sparsify/", tensors)


def _mixed(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "little") >> 1

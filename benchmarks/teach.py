"""The teacher of ResNet-20's smallest file, from nothing: `python benchmarks/teach.py --data FOLDER --out FILE`.

FOLDER holds CIFAR-10 as the data package reads it. `wide_cnn` learns in twelve epochs (some 20 minutes of two cores
with bf16) on the training images without the validation images. Large steps with Nesterov's momentum, which rise in
the first quarter and then fall; the biases of batch norm learn 64 times as fast; every fifth step the weights go back
to their running average (lookahead); images are mirrored in every second epoch instead of at random.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from safetensors.torch import save

from secateur import data, models
from secateur.core.atomic_files import atomic_open
from secateur.lab.training import evaluate

BATCH, HALF = 1000, 500
RATE, MOMENTUM, DECAY = 11.5, 0.85, 0.0153
BIAS_RATE = 64.0
LOOK_BACK = 5


def share_of_rate(step: int, steps: int) -> float:
    """The learning rate's share of its peak: from a fifth up to 1 in the first 23 %, then down to 0.07."""
    rise = int(steps * 0.23)
    return 0.2 + 0.8 * step / rise if step < rise else 1 - 0.93 * (step - rise) / (steps - rise)


class Lookahead:
    """A running average of everything a model has, which the model steps back to."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.average = {name: value.clone() for name, value in self._values()}

    def _values(self) -> list[tuple[str, torch.Tensor]]:
        return [(n, v) for n, v in self.model.state_dict().items() if v.is_floating_point()]

    @torch.no_grad()
    def step_back(self, kept: float) -> None:
        for name, value in self._values():
            self.average[name].lerp_(value, 1 - kept)
            value.copy_(self.average[name])


class Pictures:
    """All training images in memory, beyond their edges what a mirror shows."""

    def __init__(self, images: data.Split, generator: torch.Generator) -> None:
        self.padded = torch.cat([F.pad(x, (4, 4, 4, 4), mode="reflect") for x, _ in images.batches(5000)])
        self.labels = images.labels
        self.generator = generator
        self.mirrored = torch.rand(len(images), generator=generator) < 0.5

    def order(self) -> torch.Tensor:
        return torch.randperm(len(self.labels), generator=self.generator)

    def windows(self, at: torch.Tensor, epoch: int) -> torch.Tensor:
        """A window of each image at a place drawn at random, every second time mirrored."""
        left, top = (torch.randint(0, 9, (len(at),), generator=self.generator) for _ in range(2))
        rows = (top[:, None] + torch.arange(32))[:, None, :, None]
        columns = left[:, None] + torch.arange(32)
        flip = (self.mirrored[at] ^ (epoch % 2 == 0))[:, None]
        columns = torch.where(flip, columns.flip(1), columns)[:, None, None, :]
        channels = torch.arange(self.padded.shape[1])[None, :, None, None]
        found = self.padded[at[:, None, None, None], channels, rows, columns]
        return found.contiguous(memory_format=torch.channels_last)


def optimizer(model: torch.nn.Module) -> torch.optim.SGD:
    """Nesterov's momentum; `initial` in every group is its peak rate."""
    scale = 1024 * (1 + 1 / (1 - MOMENTUM))  # so that the rate is said per thousand images and their momentum
    rate, decay = RATE / scale, DECAY * BATCH / scale
    biases = [p for n, p in model.named_parameters() if n.endswith(("bn1.bias", "bn2.bias"))]
    known = {id(p) for p in biases}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    groups = [
        {"params": params, "lr": lr, "initial": lr, "weight_decay": decay / lr}
        for params, lr in ((biases, rate * BIAS_RATE), (others, rate))
    ]
    return torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder with CIFAR-10")
    parser.add_argument("--out", required=True, help="the .safetensors file to write, after every epoch")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--validation", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    images = data.load("cifar10", path=options.data, validation=options.validation, normalise="imagenet")
    model = models.build("wide-cnn")
    pictures = Pictures(images.train, torch.Generator().manual_seed(options.seed))
    model.whiten(pictures.padded[:5000, :, 4:-4, 4:-4])
    model.to(memory_format=torch.channels_last)
    steps_each = len(images.train) // BATCH
    steps, step = steps_each * options.epochs, 0
    optim, lookahead = optimizer(model), Lookahead(model)
    for epoch in range(1, options.epochs + 1):
        began, total, right = time.perf_counter(), 0.0, 0
        model.train()
        model.white.bias.requires_grad_(epoch <= 3)
        order = pictures.order()
        for first in range(0, steps_each * BATCH, BATCH):
            at = order[first : first + BATCH]
            x, y = pictures.windows(at, epoch), pictures.labels[at]
            for group in optim.param_groups:
                group["lr"] = group["initial"] * share_of_rate(step, steps)
            optim.zero_grad()
            # In halves: little memory, and statistics of 500 images, as many as were chosen with.
            for half in (slice(0, HALF), slice(HALF, BATCH)):
                with torch.autocast("cpu", torch.bfloat16):
                    answers = model(x[half])
                loss = F.cross_entropy(answers.float(), y[half], reduction="sum")
                loss.backward()
                total += loss.item()
                right += int((answers.argmax(1) == y[half]).sum())
            optim.step()
            step += 1
            if step % LOOK_BACK == 0:
                lookahead.step_back(0.95**LOOK_BACK * (step / steps) ** 3)
        if epoch == options.epochs:
            lookahead.step_back(1.0)
        model.eval()
        found = evaluate(model, images.validation, device="cpu")
        print(
            f"epoch {epoch}: training loss {total / steps_each / BATCH:.4f}, "
            f"accuracy {right / steps_each / BATCH:.4f}, "
            f"validation {found}, {time.perf_counter() - began:.0f} s",
            flush=True,
        )
        with atomic_open(options.out) as file:
            file.write(save({n: v.detach().contiguous().clone() for n, v in model.state_dict().items()}))


if __name__ == "__main__":
    main()

"""`Data` and `Split`: what `load` returns, and how batches come out of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

__all__ = ["Augment", "Data", "Split"]


@dataclass(frozen=True)
class Augment:
    """What is done to training images at random: `crop` pads so many pixels of black on each side and cuts a window
    of the old size, `flip` mirrors left and right with probability one half."""

    crop: int = 4
    flip: bool = True


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a dataset: `len(split)`, `split.images` and `split.labels` (uint8 [N,C,H,W], int64 [N]; None when it
    is streamed), and `split.batches(...)`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def images(self) -> torch.Tensor | None: ...

    @property
    def labels(self) -> torch.Tensor | None: ...

    def __len__(self) -> int:
        raise NotImplementedError

    def batches(
        self,
        batch_size: int = 128,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        augment: Augment | str | None = None,
        device: torch.device | str = "cpu",
        drop_last: bool = False,
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of (float images, normalised; int64 labels); order and augmentation drawn from (seed, epoch)."""
        raise NotImplementedError

    def first(self, count: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """The first so many images and labels, as a batch."""
        raise NotImplementedError

    def per_class(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first `count` images of every class, as one batch (SNIP and GraSP want ten)."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Data:
    """A dataset ready to train on. `fingerprint` is a hash of its content and of everything `load` did to it."""

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def example(self) -> torch.Tensor:
        """One normalised test image as a batch of one: what measuring and tracing take."""
        return self.test.first(1)[0]

"""`Data` and `Split`: the result of `load`, and its batches.

Images stay uint8 until a batch is made; cropping, flipping and normalising are a few operations on whole batches, on
the device that trains, so that feeding takes little time.

>>> pixels = torch.arange(2 * 1 * 4 * 4, dtype=torch.uint8).reshape(2, 1, 4, 4)
>>> split = Split(ImageMemory(pixels, torch.tensor([3, 5])), mean=(0.0,), std=(1.0,))
>>> images, labels = next(iter(split.batches(2)))
>>> labels.tolist(), round(images[1, 0, 3, 3].item() * 255)
([3, 5], 31)
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch.nn import functional

from secateur.errors import DataError, OptionError

__all__ = ["Augment", "Data", "Draws", "ImageMemory", "Source", "Split", "Subset", "TensorMemory"]

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Augment:
    """Random changes of training images, drawn again in every epoch.

    Args:
        crop: Pads this number of pixels on each side, and cuts a window of the old size out.
        flip: Mirrors left and right with probability one half.
        edges: The padding: `black`, or `mirrored` for the image reflected at its edge.

    >>> Augment.of("standard"), Augment.of("none")
    (Augment(crop=4, flip=True, edges='black'), None)
    """

    crop: int = 4
    flip: bool = True
    edges: str = "black"

    def __post_init__(self) -> None:
        if self.crop < 0:
            raise OptionError(f"augment: expected crop >= 0 pixels, got {self.crop}")
        if self.edges not in ("black", "mirrored"):
            raise OptionError(f"augment: expected edges black or mirrored, got {self.edges!r}")

    @classmethod
    def of(cls, value: Augment | str | bool | None) -> Augment | None:
        """The augmentation of a word: True or `standard` (crop 4, flip), `crop`, `flip`, or None, False or `none`."""
        if value is None or isinstance(value, Augment):
            return value
        known = {
            "standard": cls(),
            "crop": cls(flip=False),
            "flip": cls(crop=0),
            "none": None,
            True: cls(),
            False: None,
        }
        if value not in known:
            raise OptionError(f"augment: expected standard, crop, flip, none or an Augment, got {value!r}")
        return known[value]


class Source(Protocol):
    """The interface of a split's pixels and labels."""

    @property
    def labels(self) -> torch.Tensor:
        """int64 [N]."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width) of every image; of other inputs the shape of each."""
        ...

    def fetch(self, index: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The images of these indices, uint8 [n, C, H, W], or other inputs as they are, on the device."""
        ...

    def digest(self) -> str:
        """A hash of the content."""
        ...


class ImageMemory:
    """Images held as one uint8 tensor; a copy is kept on the accelerator that asks for them.

    >>> ImageMemory(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)).shape
    (3, 8, 8)
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor):
        if images.dtype != torch.uint8 or images.dim() != 4 or len(images) != len(labels):
            raise DataError(
                f"images: expected uint8 [N, C, H, W] and as many labels, got {images.dtype} "
                f"{tuple(images.shape)} and {len(labels)} labels"
            )
        self.images = images
        self.labels = labels.to(torch.int64)
        self._copies: dict[torch.device, torch.Tensor] = {}

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def fetch(self, index: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The images of these indices."""
        if device.type == "cpu":
            return self.images.index_select(0, index)
        if device not in self._copies:
            self._copies[device] = self.images.to(device)
        return self._copies[device].index_select(0, index.to(device))

    def digest(self) -> str:
        """SHA-256 over shape, pixels and labels."""
        whole = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        whole.update(self.images.contiguous().numpy().data)
        whole.update(self.labels.contiguous().numpy().data)
        return whole.hexdigest()


class TensorMemory:
    """Inputs that are no images, such as rows of a table or tokens, held as one tensor of any type.

    >>> TensorMemory(torch.zeros(2, 7), torch.tensor([0, 1])).shape
    (7,)
    """

    def __init__(self, inputs: torch.Tensor, labels: torch.Tensor):
        self.inputs = inputs
        self.labels = labels if labels.is_floating_point() or labels.is_complex() else labels.to(torch.int64)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.inputs.shape[1:])

    def fetch(self, index: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The inputs of these indices."""
        return self.inputs.index_select(0, index).to(device)

    def digest(self) -> str:
        """SHA-256 over types, shapes, inputs and labels."""
        whole = hashlib.sha256()
        for tensor in (self.inputs, self.labels):
            whole.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            whole.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        return whole.hexdigest()


class Subset:
    """Some images of another source, in a given order; nothing is copied.

    >>> whole = ImageMemory(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([7, 8, 9]))
    >>> Subset(whole, torch.tensor([2, 0])).labels.tolist()
    [9, 7]
    """

    def __init__(self, whole: Source, index: torch.Tensor):
        self.whole, self.index = whole, index
        self.labels = whole.labels[index]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image or input."""
        return self.whole.shape

    def fetch(self, index: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The images of these indices."""
        return self.whole.fetch(self.index[index], device)

    def digest(self) -> str:
        """The content's hash and the indices'."""
        whole = hashlib.sha256(self.whole.digest().encode())
        whole.update(self.index.numpy().data)
        return whole.hexdigest()


@dataclass(frozen=True)
class Draws:
    """The random numbers of one epoch, drawn at once from (seed, epoch) on the CPU: the same on every device.

    >>> torch.equal(Draws.of(10, 4, seed=1, epoch=2).order, Draws.of(10, 4, seed=1, epoch=2).order)
    True
    >>> torch.equal(Draws.of(10, 4, seed=1, epoch=2).order, Draws.of(10, 4, seed=1, epoch=3).order)
    False
    """

    order: torch.Tensor  # a permutation
    shift: torch.Tensor  # [N, 2] top and left corner of the window
    mirrored: torch.Tensor  # [N] bool

    @classmethod
    def of(cls, count: int, crop: int, *, seed: int, epoch: int) -> Draws:
        """Draw them."""
        generator = torch.Generator().manual_seed(_mix(seed, epoch))
        order = torch.randperm(count, generator=generator)
        shift = torch.randint(0, 2 * crop + 1, (count, 2), generator=generator)
        mirrored = torch.rand(count, generator=generator) < 0.5
        return cls(order, shift, mirrored)


def _mix(seed: int, epoch: int) -> int:
    """One 63-bit seed from two numbers: neighbouring pairs must not give related streams."""
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _augmented(
    images: torch.Tensor, how: Augment, shift: torch.Tensor, mirrored: torch.Tensor
) -> torch.Tensor:
    """Crop and flip a batch in one gather, by the place of every output pixel in the padded image."""
    count, channels, height, width = images.shape
    pad = how.crop
    if how.edges == "mirrored" and pad >= min(height, width):
        raise OptionError(
            f"augment: mirrored edges of crop={pad} pixels need larger images, got {height} x {width}"
        )
    device = images.device
    rows = torch.arange(height, device=device)[None] + shift[:, :1]
    columns = torch.arange(width, device=device)[None].expand(count, width)
    if how.flip:
        columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    columns = columns + shift[:, 1:]
    if how.edges == "mirrored":
        rows, columns = (
            size - 1 - (size - 1 - (place - pad).abs()).abs()
            for place, size in ((rows, height), (columns, width))
        )
        padded, pad = images, 0
    else:
        padded = functional.pad(images, (pad, pad, pad, pad))
    flat = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]
    index = flat.reshape(count, 1, height * width).expand(count, channels, height * width)
    return padded.flatten(2).gather(2, index).reshape(images.shape)


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a dataset: its source, and the normalisation (without a `std` none) and device of its batches."""

    source: Source
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device | str = "cpu"

    def __len__(self) -> int:
        return len(self.source.labels)

    def __repr__(self) -> str:
        return f"Split({len(self)} {self.word} of {'x'.join(map(str, self.source.shape))})"

    @property
    def word(self) -> str:
        """What its inputs are called: images, or inputs where they are none."""
        return "images" if self.std else "inputs"

    @property
    def labels(self) -> torch.Tensor:
        """int64 [N]."""
        return self.source.labels

    @property
    def images(self) -> torch.Tensor:
        """All images as they are stored, uint8 [N, C, H, W]. For a streamed split this decodes them all."""
        return self.source.fetch(torch.arange(len(self)), torch.device("cpu"))

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images as the floats a model is given: (pixel / 255 - mean) / std, per channel; other inputs as they
        are."""
        if not self.std:
            return images
        scale = torch.tensor([1 / (255 * std) for std in self.std], device=images.device).reshape(1, -1, 1, 1)
        offset = torch.tensor([-m / s for m, s in zip(self.mean, self.std)], device=images.device)
        return torch.addcmul(offset.reshape(1, -1, 1, 1), images.to(torch.float32), scale)

    def batches(
        self,
        batch_size: int = 128,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        augment: Augment | str | bool | None = None,
        device: torch.device | str | None = None,
        drop_last: bool = False,
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]:
        """Batches of normalised float images and their labels.

        Args:
            batch_size: Images of a batch; the last may be smaller.
            shuffle: In a random order, drawn from (seed, epoch).
            seed: Draws order and augmentation.
            epoch: Draws order and augmentation.
            augment: An augmentation, or its word.
            device: Where the batches are made; None for the split's own.
            drop_last: Leave a smaller last batch out.
            share: (rank, processes): every process gets its own part of each batch.

        Yields:
            Images and labels, on the device.

        >>> split = Split(ImageMemory(torch.zeros(5, 1, 4, 4, dtype=torch.uint8), torch.arange(5)), (0.5,), (0.5,))
        >>> [labels.tolist() for _, labels in split.batches(2)]
        [[0, 1], [2, 3], [4]]
        """
        if batch_size < 1:
            raise OptionError(f"batch_size: expected at least 1, got {batch_size}")
        how = self._augmentation(augment)
        where = torch.device(self.device if device is None else device)
        if where.type == "cuda" and where.index is None:
            where = torch.device("cuda", torch.cuda.current_device())
        crop = how.crop if how is not None else 0
        drawn = Draws.of(len(self), crop, seed=seed, epoch=epoch) if shuffle or how is not None else None
        order = drawn.order if shuffle and drawn is not None else torch.arange(len(self))
        rank, processes = share
        stop = len(self) - len(self) % batch_size if drop_last else len(self)

        def make(start: int) -> tuple[torch.Tensor, torch.Tensor]:
            place = torch.arange(start, min(start + batch_size, stop))[rank::processes]
            index = order[place]
            images = self.source.fetch(index, where)
            if how is not None and drawn is not None:
                images = _augmented(
                    images, how, drawn.shift[place].to(where), drawn.mirrored[place].to(where)
                )
            return self.normalise(images), self.source.labels[index].to(where)

        starts = range(0, stop, batch_size)
        whole = self.source.whole if isinstance(self.source, Subset) else self.source
        if isinstance(whole, ImageMemory | TensorMemory):
            yield from map(make, starts)
        else:
            yield from _ahead(make, starts)

    def _augmentation(self, augment: Augment | str | bool | None) -> Augment | None:
        how = Augment.of(augment)
        if how is not None and not self.std:
            raise OptionError(
                f"augment: expected images, got inputs of shape {self.source.shape}; leave augment out"
            )
        return how

    def first(self, count: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """The first `count` images and labels, as one batch."""
        index = torch.arange(min(count, len(self)))
        return self.normalise(self.source.fetch(index, torch.device("cpu"))), self.labels[index]

    def leading(self, count: int | None) -> Split:
        """The first `count` images as a split; the split itself for None, or where it has no more.

        >>> whole = Split(ImageMemory(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.arange(5)), (0.0,), (1.0,))
        >>> whole.leading(2), whole.leading(None) is whole
        (Split(2 images of 1x2x2), True)
        """
        if count is None or count >= len(self):
            return self
        return Split(Subset(self.source, torch.arange(count)), self.mean, self.std)

    def halves(self) -> tuple[Split, Split]:
        """Every second image as one split, beginning with the first, and the others as another.

        >>> whole = Split(ImageMemory(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.arange(5)), (0.0,), (1.0,))
        >>> [half.labels.tolist() for half in whole.halves()]
        [[0, 2, 4], [1, 3]]
        """
        parts = (Subset(self.source, torch.arange(first, len(self), 2)) for first in (0, 1))
        even, odd = (replace(self, source=part) for part in parts)
        return even, odd

    def per_class(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first `count` images of every class, as one batch in the split's order (SNIP and GraSP take ten).
        Where labels are no classes, the first ten times as many.

        >>> labels = torch.tensor([0, 0, 0, 1, 1])
        >>> Split(ImageMemory(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), labels), (0.0,), (1.0,)).per_class(2)[1]
        tensor([0, 0, 1, 1])
        """
        if self.labels.dim() != 1 or self.labels.is_floating_point():
            return self.first(10 * count)
        chosen = [(self.labels == label).nonzero().flatten()[:count] for label in self.labels.unique()]
        index = torch.cat(chosen).sort().values
        return self.normalise(self.source.fetch(index, torch.device("cpu"))), self.labels[index]


def _ahead(make: Callable[[int], Batch], starts: range) -> Iterator[Batch]:
    """Make batches in another thread, two ahead, so that decoding overlaps with training."""
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(make, start) for start in starts[:2])
        for start in [*starts[2:], None, None]:
            if not waiting:
                return
            ready = waiting.popleft().result()
            if start is not None:
                waiting.append(pool.submit(make, start))
            yield ready


@dataclass(frozen=True, eq=False)
class Data:
    """A dataset ready to train on. `fingerprint` is a hash of its content and of how it was loaded."""

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    own: tuple[int, ...] | None = None
    """The shape that the images have in their files, before they were resized or their channels changed."""

    @property
    def reshaped(self) -> str:
        """What was changed of the images' shape, in words; "" where nothing was, or it is not known."""
        if self.own is None or self.own == self.shape:
            return ""
        before, after = ("x".join(map(str, shape)) for shape in (self.own, self.shape))
        return f"images of {before} are given as {after}"

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        counts = f"{len(self.train)} + {len(self.validation)} + {len(self.test)}"
        return f"Data({self.name!r}, {counts} {self.train.word} of {shape}, {self.num_classes} classes)"

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def example(self) -> torch.Tensor:
        """One normalised test image (or other input) as a batch of one, for measuring and tracing."""
        return self.test.first(1)[0]

"""Batches: order, augmentation, shares of several processes, and that all is drawn from (seed, epoch)."""

from __future__ import annotations

import pytest
import torch

from secateur.data import Augment, Split
from secateur.data._splits import Draws, ImageMemory, Subset
from secateur.errors import DataError, OptionError


def split(count: int = 20, size: int = 6, channels: int = 2) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (count, channels, size, size), generator=generator).to(torch.uint8)
    return Split(ImageMemory(images, torch.arange(count)), (0.0,) * channels, (1.0,) * channels)


def labels(batches) -> list[int]:
    return torch.cat([theirs for _, theirs in batches]).tolist()


def test_every_image_once_an_epoch_in_an_order_of_seed_and_epoch():
    part = split()
    first = labels(part.batches(6, shuffle=True, seed=1, epoch=1))
    assert sorted(first) == list(range(20))
    assert first != list(range(20))
    assert first == labels(part.batches(7, shuffle=True, seed=1, epoch=1))  # whatever the batch size
    assert first != labels(part.batches(6, shuffle=True, seed=1, epoch=2))
    assert first != labels(part.batches(6, shuffle=True, seed=2, epoch=1))
    assert labels(part.batches(6)) == list(range(20))
    assert len(labels(part.batches(6, drop_last=True))) == 18


@pytest.mark.parametrize(("edges", "mode"), [("black", "constant"), ("mirrored", "reflect")])
def test_an_augmented_image_is_a_window_of_the_padded_one(edges, mode):
    part = split()
    pad = 2
    drawn = Draws.of(20, pad, seed=4, epoch=7)
    batches = part.batches(8, seed=4, epoch=7, augment=Augment(pad, True, edges))
    seen = torch.cat([images for images, _ in batches])
    assert drawn.mirrored.any()
    assert not drawn.mirrored.all()
    assert {tuple(row) for row in drawn.shift.tolist()} != {(pad, pad)}
    for index in range(20):
        padded = torch.nn.functional.pad(part.images[index].float(), (pad,) * 4, mode=mode)
        top, left = drawn.shift[index].tolist()
        window = padded[:, top : top + 6, left : left + 6]
        if drawn.mirrored[index]:
            window = window.flip(2)
        torch.testing.assert_close(seen[index], window / 255)


def test_crop_alone_and_flip_alone():
    part = split()
    flipped = torch.cat([images for images, _ in part.batches(8, augment="flip")])
    plain = part.images / 255
    same = [torch.allclose(a, b) for a, b in zip(flipped, plain)]
    turned = [torch.allclose(a, b.flip(2)) for a, b in zip(flipped, plain)]
    assert all(one or other for one, other in zip(same, turned))
    assert any(same)
    assert any(turned)
    cropped = torch.cat([images for images, _ in part.batches(8, augment="crop")])
    assert (cropped == 0).any()  # black from the border; the images themselves have none
    assert Augment.of(True) == Augment(4, True)
    with pytest.raises(OptionError, match="augment: expected standard"):
        next(part.batches(8, augment="wild"))
    with pytest.raises(OptionError, match="expected crop >= 0"):
        Augment(crop=-1)
    with pytest.raises(OptionError, match="expected edges black or mirrored, got 'wrapped'"):
        Augment(edges="wrapped")
    with pytest.raises(OptionError, match="mirrored edges of crop=6 pixels need larger images, got 6 x 6"):
        next(part.batches(8, augment=Augment(crop=6, edges="mirrored")))


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_every_batch(processes):
    part = split()
    options = {"shuffle": True, "seed": 1, "epoch": 1, "augment": "standard"}
    whole = list(part.batches(6, **options))
    shares = [list(part.batches(6, **options, share=(rank, processes))) for rank in range(processes)]
    for step, (images, theirs) in enumerate(whole):
        together = torch.cat([share[step][1] for share in shares])
        assert sorted(together.tolist()) == sorted(theirs.tolist())
        for share in shares:
            for image, label in zip(*share[step]):
                assert torch.equal(image, images[theirs == label][0])


def test_every_pixel_value_is_normalised():
    values = torch.arange(256).to(torch.uint8).reshape(256, 1, 1, 1)
    images, _ = Split(ImageMemory(values, torch.arange(256)), (0.5,), (0.25,)).first(256)
    expected = (torch.arange(256, dtype=torch.float64) / 255 - 0.5) / 0.25
    torch.testing.assert_close(images.flatten().double(), expected, rtol=0, atol=1e-6)


def test_subsets_of_subsets():
    part = split()
    inner = Subset(Subset(part.source, torch.tensor([5, 6, 7])), torch.tensor([2, 0]))
    assert inner.labels.tolist() == [7, 5]
    assert torch.equal(inner.fetch(torch.tensor([0]), torch.device("cpu"))[0], part.images[7])
    assert inner.digest() != Subset(part.source, torch.tensor([7, 6])).digest()


def test_wrong_tensors_are_refused():
    with pytest.raises(DataError, match=r"expected uint8 \[N, C, H, W\]"):
        ImageMemory(torch.zeros(2, 1, 4, 4), torch.zeros(2))
    with pytest.raises(DataError, match="and 3 labels"):
        ImageMemory(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3))
    with pytest.raises(OptionError, match="batch_size: expected at least 1"):
        next(split().batches(0))

"""Mixup: images are blended in pairs, and so are their labels in the loss, as regularization.

>>> _ = torch.manual_seed(0)
>>> pairs = mixed(torch.arange(4.0).reshape(4, 1, 1, 1), torch.arange(4), 1.0)
>>> pairs.share.min().item() >= 0.5, sorted(pairs.others.tolist())
(True, [0, 1, 2, 3])
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

__all__ = ["MixedBatch", "cross_entropy", "mixed"]


@dataclass(frozen=True)
class MixedBatch:
    """Blended images: `share` of each, at least half, is its own; the rest is another, with label in `others`."""

    images: torch.Tensor
    labels: torch.Tensor
    others: torch.Tensor
    share: torch.Tensor


def mixed(images: torch.Tensor, labels: torch.Tensor, part: float) -> MixedBatch:
    """Blend a random `part` of the images, each with another one of the batch; the rest stay as they are."""
    count, device = len(images), images.device
    partner = torch.randperm(count, device=device)
    share = torch.where(
        torch.rand(count, device=device) < part, 0.5 + 0.5 * torch.rand(count, device=device), 1.0
    )
    by_image = share.to(images.dtype).reshape(-1, *[1] * (images.dim() - 1))
    return MixedBatch(torch.lerp(images[partner], images, by_image), labels, labels[partner], share)


def cross_entropy(logits: torch.Tensor, pairs: MixedBatch, label_smoothing: float) -> torch.Tensor:
    """Cross-entropy with both labels, each weighted by its share of the image; the mean of the batch.

    >>> pairs = MixedBatch(torch.zeros(1, 1), torch.tensor([0]), torch.tensor([1]), torch.tensor([0.75]))
    >>> logits = torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
    >>> round(cross_entropy(logits, pairs, 0.0).item(), 4), round(0.75 * 0.6931 + 0.25 * 1.3863, 4)
    (0.8664, 0.8664)
    """
    ours, theirs = (
        functional.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
        for labels in (pairs.labels, pairs.others)
    )
    return torch.lerp(theirs, ours, pairs.share).mean()

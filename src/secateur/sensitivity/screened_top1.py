"""`ScreenedTop1`: top-1 of a model under changes, computed faster, and exactly the count that the model itself gives.

`FoldedForward` computes outputs up to rounding. Rounding changes whether a prediction is correct only if the target's
output and the largest of the others differ by less than the rounding error; their difference is the image's margin.
(Which of two wrong classes wins does not matter.) So the size of the rounding is measured under every change, on images
spread over the data, and each image whose margin is not several times larger is computed again, in up to three stages:

1. in bfloat16, where the processor has instructions for it; margins below `_HALF` times the widest difference to
   float32 continue with 2. All images that did are new readings of that difference, and may widen it.
2. in float32, folded and rearranged; margins below `_SINGLE` times the widest difference to the model continue with 3.
3. as the model runs, in the batch as it was given.

>>> import torch
>>> from torch import nn
>>> _ = torch.manual_seed(0)
>>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
>>> batches = [(torch.randn(50, 3, 2, 2), torch.randint(0, 4, (50,))) for _ in range(3)]
>>> screened = ScreenedTop1.of(model, batches)
>>> with torch.no_grad(), screened.before(["1.weight"]):
...     _ = model[1].weight.mul_(0.5)
...     found = screened.count()
...     wanted = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
>>> found == wanted
True
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from secateur.core.out_of_memory import raise_if_out_of_memory
from secateur.execution.processors import multiplies_bfloat16
from secateur.sensitivity.folded_forward import FoldedForward, record

__all__ = ["ScreenedTop1"]

_HALF, _SINGLE = 5.0, 32.0  # margins this many times wider than the widest difference measured are safe
_SAMPLE, _REFERENCE = 32, 8  # images that are always evaluated in float32 and by the model itself as well
_SOUND = 1e-3  # a float32 difference above this share of the largest output is more than rounding
_WORTH = 0.4  # if more than this share of the images is evaluated again, bfloat16 saves nothing


class ScreenedTop1:
    """Counts of correct predictions under changes of one model, equal to the model's own."""

    def __init__(self, model: nn.Module, folded: FoldedForward, targets: Sequence[torch.Tensor], half: bool):
        self.model = model
        self.folded = folded
        self.targets = torch.cat(list(targets))
        self.half = half
        self._rough = False  # bfloat16 saved nothing under the last change of this part
        self.counts = [len(target) for target in targets]
        self.starts = [sum(self.counts[:i]) for i in range(len(self.counts))]
        self.total = sum(self.counts)
        self.looked = self.again = self.as_it_runs = 0  # images: in all, again in float32, again by the model

    @classmethod
    def of(cls, model: nn.Module, batches: Sequence[Any], limit: int = 1 << 30) -> ScreenedTop1 | str:
        """For a classifier in evaluation mode and its batches (inputs, targets); or the reason why the model has to be
        run as it is.
        """
        for batch in batches:
            pair = isinstance(batch, (tuple, list)) and len(batch) == 2
            if not pair or not all(isinstance(part, torch.Tensor) for part in batch):
                return "its batches are not pairs of tensors"
            if batch[1].dim() != 1 or len(batch[0]) != len(batch[1]) or not len(batch[1]):
                return "its targets are not one number an example"
            if batch[1].is_floating_point():
                return "its targets are not whole numbers"
        if len({batch[0].shape[1:] for batch in batches}) != 1:
            return "its batches hold inputs of several shapes"
        folded = record(model, [batch[0] for batch in batches], limit)
        if isinstance(folded, str):
            return folded
        found = cls(model, folded, [batch[1] for batch in batches], multiplies_bfloat16())
        try:
            with torch.no_grad():
                first = torch.arange(min(_REFERENCE, found.counts[0]))
                sound = found._rounding(folded.gathered([(0, first)]), first) is not None
        except Exception as error:  # the recorded steps do not run on other values
            raise_if_out_of_memory(error)
            return f"its recorded forward pass fails ({type(error).__name__})"
        return found if sound else "its recorded forward pass gives other outputs"

    @property
    def summary(self) -> str:
        """How the images were evaluated, in one sentence."""
        share = [100.0 * count / max(1, self.looked) for count in (self.again, self.as_it_runs)]
        first = "bfloat16" if self.half else "float32 with batch norm folded"
        text = f"{self.looked:,} evaluations of an image in {first} where its margin allows"
        if self.half:
            text += f", {share[0]:.2g} % again in float32"
        return f"{text}, {share[1]:.2g} % as the model runs"

    @contextmanager
    def before(self, names: Sequence[str], rows: bool = False) -> Iterator[None]:
        """A block in which only these parameters of the model change; `rows` as for `FoldedForward.changing`."""
        self._rough = False
        with self.folded.changing(names, rows):
            yield

    def count(self) -> int:
        """The number of correct predictions with the present parameters."""
        self.folded.refresh()
        self.looked += self.total
        sample = torch.linspace(0, self.total - 1, min(_SAMPLE, self.total)).long().unique()
        precise = self._single(sample)
        rounding = self._rounding(precise[: min(_REFERENCE, len(sample))], sample[:_REFERENCE])
        if rounding is None:
            return self._plain()
        if self.half and not self._rough:
            outputs, single = self._screened(sample, precise)
        else:
            self.again += self.total if self.half else 0
            outputs = torch.cat([self.folded.outputs(i) for i in range(len(self.counts))])
            single = torch.arange(self.total)
        unsure = single[~(_margins(outputs[single], self.targets[single]) > _SINGLE * rounding)]
        predicted = outputs.argmax(1)
        self.as_it_runs += len(unsure)
        for index, rows in self._by_batch(unsure):
            found = self._model(self.folded.batches[index]).argmax(1)
            predicted[rows + self.starts[index]] = found[rows]
        return int((predicted == self.targets).sum())

    def _screened(self, sample: torch.Tensor, precise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs in bfloat16, those whose margin is small in float32, and which these are."""
        outputs = torch.cat([self.folded.outputs(i, half=True) for i in range(len(self.counts))])
        margins = _margins(outputs, self.targets)
        widest = _difference(outputs[sample], precise)
        seen = torch.zeros(self.total, dtype=torch.bool)
        seen[sample] = True
        outputs[sample] = precise
        while True:
            unsure = (~(margins > _HALF * widest) & ~seen).nonzero().flatten()
            if not len(unsure):
                break
            found = self._single(unsure)
            widest = max(widest, _difference(outputs[unsure], found))
            outputs[unsure] = found
            seen[unsure] = True
        looked = seen.nonzero().flatten()
        self.again += len(looked)
        # where bfloat16 is too coarse for one change of a part, it usually is for the next one
        self._rough = len(looked) > _WORTH * self.total and self.total > 4 * _SAMPLE
        return outputs, looked

    def _single(self, rows: torch.Tensor) -> torch.Tensor:
        """The outputs of images, by their number over all batches, in float32."""
        return self.folded.gathered(self._by_batch(rows))

    def _by_batch(self, rows: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
        """Images by their number over all batches -> (batch, rows of it), rising."""
        chosen = []
        for index, begin in enumerate(self.starts):
            within = rows[(rows >= begin) & (rows < begin + self.counts[index])]
            if len(within):
                chosen.append((index, within - begin))
        return chosen

    def _rounding(self, found: torch.Tensor, rows: torch.Tensor) -> float | None:
        """The widest difference between float32 outputs and the model's; None if it is more than rounding."""
        wanted = self._model(torch.cat([self.folded.batches[i][some] for i, some in self._by_batch(rows)]))
        if found.shape != wanted.shape or found.dim() != 2 or found.shape[1] < 2:
            return None
        largest = float(wanted.abs().max())
        widest = _difference(found, wanted)
        if not widest <= _SOUND * largest:
            return None
        return max(widest, 4 * torch.finfo(torch.float32).eps * largest)

    def _model(self, images: torch.Tensor) -> torch.Tensor:
        outputs = self.model(images)
        return getattr(outputs, "logits", outputs)

    def _plain(self) -> int:
        self.as_it_runs += self.total
        predicted = torch.cat([self._model(batch).argmax(1) for batch in self.folded.batches])
        return int((predicted == self.targets).sum())


def _margins(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """How far the target's output is from the largest of the others; NaN where an output is not finite.

    A target that is no class at all is wrong whatever the outputs are.
    """
    known = (targets >= 0) & (targets < outputs.shape[1])
    column = targets.where(known, 0).long()[:, None]
    others = outputs.scatter(1, column, -torch.inf).amax(1)
    apart = (outputs.gather(1, column)[:, 0] - others).abs()
    return apart.where(known, torch.inf) + 0.0 * outputs.sum(1)


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """By how much, at most, a difference of two outputs of one image differs: NaN where something is not finite."""
    apart = one - other
    return float((apart.amax(1) - apart.amin(1)).max())

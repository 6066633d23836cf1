"""`Shared`: the result of sharing a model, its cost in bits, and the training of its codebooks.

>>> import torch
>>> from torch import nn
>>> import secateur as sc
>>> shared = sc.share(nn.Linear(64, 8, bias=False), bits=2)
>>> row = shared.summary()[0]
>>> row.name, row.kept, row.values, shared.bits_per_weight <= 2
('weight', 512, 4, True)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from secateur.core.codebook import Codebook
from secateur.core.html_table import html_table
from secateur.core.plotting import plot
from secateur.errors import MaskMismatchError, near
from secateur.quantize import Quantizer
from secateur.quantize.codebook_training import CodebookTraining
from secateur.quantize.rates import entropy_bits, huffman_bits

if TYPE_CHECKING:
    import altair as alt

__all__ = ["Shared", "SharedTensor", "zeroed"]


def zeroed(books: Mapping[str, Codebook]) -> dict[str, torch.Tensor]:
    """The masks that codebooks imply, where the first value is the 0.0 of masked weights.

    Args:
        books: Codebooks by parameter name.
    """
    return {name: book.indices != 0 for name, book in books.items() if book.reserved and book.axis is None}


@dataclass(frozen=True)
class SharedTensor:
    """One row of `Shared.summary()`: the result of sharing a tensor.

    Attributes:
        name: The parameter's name.
        shape: Its shape.
        numel: The number of its weights.
        kept: Weights that are not masked.
        values: Distinct values of the kept weights.
        distortion: Mean squared difference between the kept weights before and after.
        entropy: Bits per kept weight of an ideal code of the indices (per channel: of a code for each channel).
        huffman: Bits per kept weight of a Huffman code of this tensor's indices, its table not counted.
    """

    name: str
    shape: tuple[int, ...]
    numel: int
    kept: int
    values: int
    distortion: float
    entropy: float
    huffman: float


@dataclass(frozen=True, eq=False)
class Shared:
    """The result of `share`: a model with few distinct weights, its codebooks and their cost in bits.

    Attributes:
        model: The shared model.
        codebooks: The codebook of each shared parameter, by name.
        masks: True where a weight is kept, by name; a parameter that is not here has no masked weight.
        distortion: The mean squared change of the kept weights, by name.
        method: How the values were found.
        summed: With `data`: layers that were solved for a sum, as in a residual connection, and so compensate for the
            errors of others.
    """

    model: nn.Module
    codebooks: Mapping[str, Codebook]
    masks: Mapping[str, torch.Tensor]
    distortion: Mapping[str, float]
    method: Quantizer
    summed: tuple[str, ...] = ()

    def __getstate__(self) -> dict[str, object]:
        """What `copy.deepcopy`, `pickle` and `torch.save` keep: they take no read-only view of a dict."""
        return {
            name: dict(value) if isinstance(value, MappingProxyType) else value
            for name, value in vars(self).items()
        }

    def __setstate__(self, state: dict[str, object]) -> None:
        for name, value in state.items():
            vars(self)[name] = MappingProxyType(value) if isinstance(value, dict) else value

    def __repr__(self) -> str:
        return (
            f"Shared({len(self.codebooks)} tensors, {self.numel:,} weights, {self.kept:,} kept, "
            f"{self.bits_per_weight:.3f} bits per kept weight by Huffman)"
        )

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> nn.Module:
        """Write the shared weights into a model, in place. All are checked before any is written.

        Args:
            model: A model with these parameters.

        Returns:
            The same model.

        Raises:
            MaskMismatchError: A parameter is missing or of another shape.
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, book in self.codebooks.items():
            if name not in parameters:
                raise MaskMismatchError(
                    f"codebook of {name!r}: {type(model).__name__} has no such parameter; "
                    f"{near(name, parameters)}"
                )
            if tuple(parameters[name].shape) != tuple(book.indices.shape):
                raise MaskMismatchError(
                    f"codebook of {name!r}: expected shape {tuple(book.indices.shape)}, got "
                    f"{tuple(parameters[name].shape)} in {type(model).__name__}; are these the codebooks "
                    f"of another model?"
                )
        for name, book in self.codebooks.items():
            parameters[name].copy_(book.tensor())
        return model

    def train(
        self,
        model: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        remake_every: int | None = None,
        rate: float = 0.0,
    ) -> CodebookTraining:
        """Train the centroids: `with shared.train(model) as training: ...`, around any loop.

        Inside the block the parameters of the shared layers are their centroids. The gradient of a centroid is the sum
        over its weights, so the learning rate should be small. Masked weights stay 0.0. Make the optimizer inside the
        block, from `model.parameters()` (centroids and all tensors that are not shared) or `training.parameters()`
        (centroids alone). Wrap the model (DistributedDataParallel) inside. Leaving the block restores ordinary
        parameters, under their own names, with at most as many values as centroids. `shared.trained(training)` gives
        the new codebooks.

        Assignments are frozen unless `remake_every` is given.

        Args:
            model: The model to train; `shared.model` unless given. For `remake_every`, give it as it was before
                sharing, so that the weights start from their own values.
            optimizer: An optimizer made before; in its groups the centroids stand for the weights until the block is
                left.
            remake_every: Assign every weight to its nearest centroid again after this many optimizer steps. The
                weights are then trained too (straight-through).
            rate: The cost of a bit for `remake_every`, in mean squared weights of the tensor: weights are assigned
                where error and cost together are least, to zero if the tensor has masked weights. A weight set to zero
                may become non-zero again; one that is 0.0 in the model given does not.

        Returns:
            The context to train in.

        >>> import secateur as sc
        >>> shared = sc.share(nn.Linear(16, 4, bias=False), bits=2)
        >>> with shared.train() as training:
        ...     optimizer = torch.optim.SGD(training.parameters(), lr=0.01)
        ...     shared.model(torch.ones(8, 16)).square().mean().backward()
        ...     optimizer.step()
        >>> len(shared.model.weight.unique()), list(shared.model.state_dict())
        (4, ['weight'])
        """
        model = self.model if model is None else model
        training = CodebookTraining(model, self.codebooks, self.masks, optimizer, remake_every, rate)
        if remake_every is None:
            self.apply_(model)
        return training

    def trained(self, training: CodebookTraining) -> Shared:
        """The result after training: its model and codebooks; `distortion` counts from before the training.

        Args:
            training: The context, after its block was left.
        """
        books = {**self.codebooks, **training.codebooks()}
        masks = {**self.masks, **zeroed(books)} if training.rate else self.masks
        distortion = {}
        for name, book in books.items():
            away = (book.tensor().cpu().double() - self.codebooks[name].tensor().cpu().double()).square()
            kept = self.masks[name].cpu() if name in self.masks else torch.ones_like(away, dtype=torch.bool)
            distortion[name] = float(away[kept].mean()) if bool(kept.any()) else 0.0
        return Shared(
            training.model,
            MappingProxyType(books),
            MappingProxyType(dict(masks)),
            MappingProxyType(distortion),
            self.method,
        )

    def summary(self) -> list[SharedTensor]:
        """One row per tensor, in order."""
        rows = []
        for name, book in self.codebooks.items():
            codes = self._counts(name)
            kept = sum(int(counts.sum()) for counts in codes)
            per = max(1, kept)
            rows.append(
                SharedTensor(
                    name=name,
                    shape=tuple(book.indices.shape),
                    numel=book.indices.numel(),
                    kept=kept,
                    values=sum(int((counts > 0).sum()) for counts in codes),
                    distortion=self.distortion[name],
                    entropy=sum(map(entropy_bits, codes)) / per,
                    huffman=sum(map(huffman_bits, codes)) / per,
                )
            )
        return rows

    def _counts(self, name: str) -> list[npt.NDArray[np.int64]]:
        """The number of kept weights at each value, for each code: one of the tensor, or one per channel."""
        book = self.codebooks[name]
        kept = book.indices[self.masks[name].to(book.indices.device)] if name in self.masks else book.indices
        counts = torch.bincount(kept.reshape(-1).long().cpu(), minlength=book.values.numel()).numpy()
        return np.split(counts, book.offsets[1:-1]) if book.offsets is not None else [counts]

    @property
    def numel(self) -> int:
        """The number of shared weights, masked ones included."""
        return sum(book.indices.numel() for book in self.codebooks.values())

    @property
    def kept(self) -> int:
        """The number of shared weights that are not masked."""
        return sum(row.kept for row in self.summary())

    @property
    def entropy(self) -> float:
        """Bits per kept weight of an ideal code, one code per tensor; positions not counted."""
        rows = self.summary()
        return sum(row.entropy * row.kept for row in rows) / max(1, sum(row.kept for row in rows))

    @property
    def bits_per_weight(self) -> float:
        """Bits per kept weight of Huffman codes, one per tensor; tables and positions not counted."""
        rows = self.summary()
        return sum(row.huffman * row.kept for row in rows) / max(1, sum(row.kept for row in rows))

    @property
    def formula_ratio(self) -> float:
        """A formula, not a file: 1 / (nonzero share x Huffman bits / 32), of the shared tensors alone.

        It leaves out the positions of the kept weights, the codebooks, the code tables and every parameter that is
        not shared: a real file is larger.
        With 36 % of the weights kept at 4.298 bits it is 20.7:

        >>> round(1 / (0.36 * 4.298 / 32), 2)
        20.68
        """
        rows = self.summary()
        share_kept = sum(row.kept for row in rows) / max(1, sum(row.numel for row in rows))
        return (
            32.0 / (share_kept * self.bits_per_weight)
            if share_kept and self.bits_per_weight
            else float("inf")
        )

    def _repr_html_(self) -> str:
        """The summary in a notebook."""
        head = ("tensor", "weights", "kept", "values", "distortion", "entropy", "huffman")
        rows = (
            (r.name, r.numel, r.kept, r.values, f"{r.distortion:.3e}", f"{r.entropy:.4f}", f"{r.huffman:.4f}")
            for r in self.summary()
        )
        return html_table(head, rows, [repr(self)])

    def plot(self) -> alt.TopLevelMixin:
        """The values that each layer's weights take, as the report draws them; a notebook shows what is returned."""
        return plot("shared", self)

    def table(self) -> str:
        """The summary as text: one line per tensor, a total, and the formula under its name."""
        rows = self.summary()
        width = max(len("total"), *(len(row.name) for row in rows))
        head = f"{'weights':>12}  {'kept':>12}  values  {'distortion':>10}  entropy  huffman"
        lines = [f"{'tensor':<{width}}  {head}"]
        lines += [
            f"{r.name:<{width}}  {r.numel:>12,}  {r.kept:>12,}  {r.values:>6}  {r.distortion:>10.3e}  "
            f"{r.entropy:>7.4f}  {r.huffman:>7.4f}"
            for r in rows
        ]
        kept = sum(row.kept for row in rows)
        error = sum(row.distortion * row.kept for row in rows) / max(1, kept)
        lines.append(
            f"{'total':<{width}}  {self.numel:>12,}  {kept:>12,}  {'':>6}  {error:>10.3e}  "
            f"{self.entropy:>7.4f}  {self.bits_per_weight:>7.4f}"
        )
        lines.append(
            f"formula, not a file (nonzero share x huffman bits / 32; no positions, codebooks, tables or "
            f"other parameters): {self.formula_ratio:.2f}x"
        )
        return "\n".join(lines)

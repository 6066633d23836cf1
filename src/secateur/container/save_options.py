"""`SaveOptions`: what `save` rounds or folds, checked when made.

>>> SaveOptions(batch_norm="fp16").narrow_norm
'F16'
>>> SaveOptions(codebook_bits=9)
Traceback (most recent call last):
...
secateur.errors.OptionError: codebook_bits: expected a whole number from 2 to 8, got 9
"""

from __future__ import annotations

from dataclasses import dataclass

from secateur.coding import indices
from secateur.errors import OptionError, UnknownNameError, near

__all__ = ["SaveOptions", "check_names"]

_PRECISIONS = {"fp16": "F16", "bf16": "BF16"}
_SINGLE = (None, "fp32")


@dataclass(frozen=True)
class SaveOptions:
    """What `save` rounds or folds; with the defaults every tensor comes back bit for bit.

    Attributes:
        batch_norm: Fold batch norm into a scale and a shift per channel, kept as "fp32", "fp16", "bf16" or in a
            number of bits, 2 to 12. None keeps it as it is.
        biases: Bits to round the other biases to, 2 to 12.
        codebook_bits: Bits to round the values of codebooks to, 2 to 8.
        precision: Store every other float tensor that is not shared as "fp16" or "bf16".
        coder: "fast", "mixed" or "strong": the smaller the file, the longer it takes.
        int8: Round the weights of linear layers and convolutions to 8 bits, with a scale for each output channel;
            `load` gives floats, `load_int8` torch's INT8 layers.
    """

    batch_norm: str | int | None = None
    biases: int | None = None
    codebook_bits: int | None = None
    precision: str | None = None
    coder: str = indices.DEFAULT
    int8: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.batch_norm, int):
            _check_bits("batch_norm", self.batch_norm, 12)
        elif self.batch_norm not in (*_SINGLE, *_PRECISIONS):
            raise OptionError(
                f"batch_norm: expected None, 'fp32', 'fp16', 'bf16' or a number of bits, got {self.batch_norm!r}"
            )
        _check_bits("biases", self.biases, 12)
        _check_bits("codebook_bits", self.codebook_bits, 8)
        if self.precision not in (*_SINGLE, *_PRECISIONS):
            raise OptionError(f"precision: expected None, 'fp32', 'fp16' or 'bf16', got {self.precision!r}")
        if self.coder not in indices.MODELS:
            raise UnknownNameError(f"unknown coder {self.coder!r}: {near(str(self.coder), indices.MODELS)}")

    @property
    def norm_bits(self) -> int | None:
        """Bits of a folded batch norm's scales and shifts; None where they are not rounded to bits."""
        return self.batch_norm if isinstance(self.batch_norm, int) else None

    @property
    def narrow_norm(self) -> str | None:
        """The dtype a folded batch norm is stored in; None keeps its own."""
        return _PRECISIONS.get(str(self.batch_norm))

    @property
    def narrow(self) -> str | None:
        """The dtype that tensors without a codebook are stored in; None keeps their own."""
        return _PRECISIONS.get(str(self.precision))


def check_names(names: str) -> None:
    """Raise an `OptionError` unless `names` says where the names of tensors are kept: "file" or "model"."""
    if names not in ("file", "model"):
        raise OptionError(f"names: expected 'file' or 'model', got {names!r}")


def _check_bits(option: str, bits: int | None, most: int) -> None:
    if bits is None:
        return
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= most:
        raise OptionError(f"{option}: expected a whole number from 2 to {most}, got {bits!r}")

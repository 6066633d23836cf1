"""The settings of `smallest`: what it starts from, and what one of its attempts is made with.

>>> ByteSettings(target=3000).text()
'trained for 3,000 bytes'
>>> SizeSettings(keep=0.02, bits={"fc1": 2, "fc2": 3}, rate=0.02).text()
'2 % of the weights, bits fc1 2, fc2 3, rate 0.02'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from secateur.errors import OptionError
from secateur.search.frame import (
    check_calibrate,
)

__all__ = ["ByteSettings", "Settings", "SizeSettings", "SmallestOptions", "bytes_of"]

_FIRST = 40  # times smaller than the dense model: the first target in bytes


@dataclass(frozen=True)
class SizeSettings:
    """The settings of one attempt.

    Attributes:
        keep: The share of weights that remain.
        bits: Bits of a shared value: of all layers, or by layer.
        rate: The cost of a bit, in mean squared weights.
    """

    keep: float
    bits: int | Mapping[str, int] = 3
    rate: float = 0.01

    def text(self) -> str:
        """The settings in a phrase."""
        bits = (
            f"bits {', '.join(f'{name} {bits}' for name, bits in self.bits.items())}"
            if isinstance(self.bits, Mapping)
            else f"{self.bits} bits"
        )
        return f"{100 * self.keep:.3g} % of the weights, {bits}, rate {self.rate:g}"


@dataclass(frozen=True)
class ByteSettings:
    """The settings of one attempt that is trained for bytes.

    Attributes:
        target: The bytes of the file that training aims at.
    """

    target: int

    def text(self) -> str:
        """The settings in a phrase."""
        return f"trained for {self.target:,} bytes"


Settings = SizeSettings | ByteSettings


@dataclass(frozen=True)
class SmallestOptions:
    """The starting values of `smallest`, and how it trains.

    Attempts are trained for bytes, unless one of `keep`, `bits`, `rate` and `calibrate` is given.

    Attributes:
        keep: The share of weights that remain in the first attempt; None for 0.1.
        bits: The bits of a shared value in the first attempt, 1 to 8; None for 3.
        rate: The price of a bit in the first attempt, in mean squared weights; None for 0.01.
        train: Options of the training, beside the defaults. Trained for bytes, the values take a fifth of its epochs
            more; pruned and shared, a third, twice.
        calibrate: Training images, without their labels, on which an attempt first compensates for pruning and sharing.
            It is trained only if that does not hold; with 0 it is trained at once.
        target: The bytes that the first attempt is trained for; None for a fortieth of the dense model's.
        evaluate: `package.module:function`, a function of the model (or of the model and the split) that gives the
            number to hold, more being better, in place of accuracy.
    """

    keep: float | None = None
    bits: int | None = None
    rate: float | None = None
    train: Mapping[str, object] = field(default_factory=dict)
    calibrate: int = 0
    target: int | None = None
    evaluate: str | None = None

    def __post_init__(self) -> None:
        check_calibrate(self.calibrate)
        if self.keep is not None and not 0.0 < self.keep < 1.0:
            raise OptionError(
                f"keep is the share of weights that remain: expected 0 < keep < 1, got {self.keep!r}"
            )
        if self.bits is not None and (isinstance(self.bits, bool) or not 1 <= self.bits <= 8):
            raise OptionError(f"bits: expected a whole number from 1 to 8, got {self.bits!r}")
        if self.target is not None and (isinstance(self.target, bool) or self.target < 1):
            raise OptionError(f"target: expected at least 1 byte, got {self.target!r}")
        others = [name for name in ("keep", "bits", "rate") if getattr(self, name) is not None]
        others += ["calibrate"] if self.calibrate else []
        if self.target is not None and others:
            raise OptionError(
                f"target and {others[0]}: a model is trained for bytes, or pruned and its weights shared; expected one "
                "of the two"
            )

    @property
    def for_bytes(self) -> bool:
        """Whether attempts are trained for bytes."""
        return self.keep is None and self.bits is None and self.rate is None and not self.calibrate

    def first(self, model: nn.Module) -> Settings:
        """The settings of the first attempt.

        Args:
            model: The dense model.
        """
        if self.for_bytes:
            return ByteSettings(self.target or max(1, bytes_of(model) // _FIRST))
        found = SizeSettings(0.1 if self.keep is None else self.keep, 3 if self.bits is None else self.bits)
        return found if self.rate is None else replace(found, rate=self.rate)


def bytes_of(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())

"""Rotary embeddings that lost frequencies, described by a configuration.

A model is rebuilt from its configuration with frequencies computed from the size of a head, which differ from those
kept by a cut. Kind "longrope", which Hugging Face reads for every rotary model, divides each frequency by its own
number and multiplies the rotated values by one more; with these the kept frequencies, and the original scale of
attention, can be expressed exactly, up to the rounding of the model's own type.

>>> factors = divisors([1.0, 0.01], theta=100.0)
>>> [round(1 / (f * 100.0 ** (i / 2)), 6) for i, f in enumerate(factors)]
[1.0, 0.01]
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from secateur.core.out_of_memory import raise_if_out_of_memory

__all__ = ["divisors", "rebuilt", "said"]


def divisors(frequencies: Sequence[float], theta: float) -> list[float]:
    """The divisor by which each frequency from `theta` becomes one of these."""
    size = len(frequencies)
    usual = torch.tensor(theta) ** (torch.arange(size, dtype=torch.float) / size)
    return [1.0 / (kept * power) for kept, power in zip(frequencies, usual.tolist())]


def rebuilt(module: nn.Module, config: object) -> nn.Module | None:
    """A module that is built from the configuration alone, with its buffers; None where it cannot be."""
    try:
        with torch.device("cpu"):
            return type(module)(config=copy.deepcopy(config))
    except Exception as error:
        raise_if_out_of_memory(error)
        return None


def said(config: object, owners: Collection[nn.Module], scale: float) -> str:
    """Put the frequencies of these modules into the configuration; returns why not, if that is impossible.

    `scale` is the scale of attention over the one that follows from the new size of a head.
    """
    parameters = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, dict) or "rope_theta" not in parameters:
        return "its configuration has no field for the rotary frequencies that were kept"
    if parameters.get("rope_type", "default") not in _STILL:
        return f"its rotary frequencies change with the length of the text ({parameters['rope_type']})"
    kept: list[Any] = [getattr(owner, "inv_freq", None) for owner in owners]
    if not kept or any(line is None or not torch.equal(line, kept[0]) for line in kept):
        return "its rotary frequencies differ from layer to layer, and a configuration has one set"
    frequencies = kept[0].detach().double().cpu().tolist()
    if parameters.get("partial_rotary_factor", 1.0) != 1.0 and scale != 1.0:
        return "part of each head is not rotated, so that its configuration cannot express the scale of attention"
    factors = divisors(frequencies, float(parameters["rope_theta"]))
    attention_factor = scale**0.5 * float(getattr(next(iter(owners)), "attention_scaling", 1.0))
    rope = {
        **{key: parameters[key] for key in ("rope_theta", "partial_rotary_factor") if key in parameters},
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "factor": 1.0,
        "attention_factor": attention_factor,
        "original_max_position_embeddings": int(getattr(config, "max_position_embeddings", 0)) or 1,
    }
    setattr(config, "rope_parameters", rope)  # noqa: B010 - a configuration of any class
    for owner in owners:
        again = rebuilt(owner, config)
        if again is None or not _alike(again, owner, attention_factor):
            return "its rotary embedding does not read frequencies from its configuration"
    return ""


_STILL = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embedding whose frequencies never change."""


def _alike(again: nn.Module, owner: nn.Module, attention_factor: float) -> bool:
    """Whether a rotary embedding has the frequencies of another and multiplies by this factor."""
    line, kept = getattr(again, "inv_freq", None), getattr(owner, "inv_freq", None)
    factor = getattr(again, "attention_scaling", None)
    if line is None or kept is None or factor is None or line.shape != kept.shape:
        return False
    close = torch.allclose(line.double().cpu(), kept.double().cpu(), rtol=1e-6, atol=0.0)
    return close and abs(float(factor) - attention_factor) < 1e-12

"""The step `shrink`: what is proved is an option, and a step that does not use it keeps its address."""

from __future__ import annotations

import pytest
from torch import nn

from secateur.errors import OptionError
from secateur.lab.steps.shrink import ShrinkStep
from secateur.structure.proof import ProofOptions


def test_modes_are_part_of_the_address_only_where_they_are_named() -> None:
    usual, named = ShrinkStep(), ShrinkStep(proof=["no_grad", "compile"])
    assert "proof" not in usual.chosen()
    assert named.chosen() == {**usual.chosen(), "proof": ["no_grad", "compile"]}


def test_the_proof_has_the_modes_and_the_tolerance_of_the_step() -> None:
    step = ShrinkStep(proof=["no_grad", "compile"], tolerance=1e-6)
    wanted = ProofOptions(modes=("no_grad", "compile"), every=True, tolerance=1e-6)
    assert step.proven() == wanted
    assert ShrinkStep(tolerance=1e-6).proven() == ProofOptions(tolerance=1e-6)


def test_an_unknown_mode_is_refused_before_anything_runs() -> None:
    with pytest.raises(OptionError, match=r"proof: expected modes among .*, got \['jit'\]"):
        ShrinkStep(proof=["jit"]).check(nn.Linear(2, 2), [])

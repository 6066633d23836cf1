"""Half of every group of every hand-made worst case leaves, the proof holds, and the widths are the ones expected."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.core.masks import Masks
from secateur.structure.cut.choose import extended
from secateur.structure.groups.couplings import analyse

_SPEC = importlib.util.spec_from_file_location("structure_cases", Path(__file__).with_name("cases.py"))
assert _SPEC
assert _SPEC.loader
cases = importlib.util.module_from_spec(_SPEC)
sys.modules["structure_cases"] = cases
_SPEC.loader.exec_module(cases)


def made(name: str) -> tuple[nn.Module, object]:
    torch.manual_seed(0)
    model = cases.CASES[name].build().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.normal_(1, 0.3)
                module.bias.normal_()
    return model, cases.CASES[name].example()


def half_masks(model: nn.Module, example: object, seed: int = 0) -> Masks:
    """Masks that drop a random half of every group: which half must not matter."""
    structure = analyse(model, example)
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in structure.groups:
        order = torch.randperm(group.count, generator=generator)
        bits = torch.ones(group.count, dtype=torch.bool)
        bits[order[: group.count // 2]] = False
        keep[group.index] = bits.numpy()
    return extended(structure, Masks.ones(model), structure.alive(keep), model)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", sorted(cases.CASES))
def test_half_leaves_and_the_proof_holds(name: str, seed: int) -> None:
    model, example = made(name)
    before = copy.deepcopy(model.state_dict())
    small = sc.shrink(model, half_masks(model, example, seed), example)
    assert small.proof.error < 1e-9
    assert small.proof.scale > 1e-3  # an output of zeros would prove nothing
    assert not small.locked
    shapes = {key: tuple(value.shape) for key, value in small.model.state_dict().items()}
    shapes.update({key: tuple(value.shape) for key, value in small.model.named_buffers()})
    for key, wanted in cases.CASES[name].shapes.items():
        assert shapes[key] == wanted, key
    assert isinstance(small.model, type(model))
    assert list(small.model.state_dict()) == list(before)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])

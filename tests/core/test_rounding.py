"""How far rounding may move outputs: hand-worked numbers."""

from __future__ import annotations

import pytest
import torch

from secateur.core.rounding import FLOAT32, rounding_allowed


@pytest.mark.parametrize(
    ("kinds", "allowed"),
    [
        ([], FLOAT32),
        ([torch.float32, torch.int64], FLOAT32),
        ([torch.float32, torch.float16], 8 * 2.0**-10),
        ([torch.float16, torch.bfloat16], 8 * 2.0**-7),
        ([torch.float8_e4m3fn, torch.float8_e5m2], FLOAT32),
    ],
)
def test_only_half_precision_allows_more_than_float32(kinds, allowed):
    assert rounding_allowed(kinds) == allowed

"""Lists of several granularities: equal cuts are taken once, others of one name are told apart."""

from __future__ import annotations

import torch

from secateur.core.units import AxisMember, Units, one_of_each


def test_lists_that_select_other_slices_are_other_lists() -> None:
    """Four heads of size four, and size four of every head: one name and one count, but other columns."""
    columns = torch.arange(16).reshape(4, 4)
    heads = Units("attn", 4, (AxisMember("attn.weight", 0, columns),))
    sizes = Units("attn", 4, (AxisMember("attn.weight", 0, columns.T),))
    same = Units("attn", 4, (AxisMember("attn.weight", 0, columns.clone()),))
    found = one_of_each([[heads], [sizes], [same]])
    assert [[each.name for each in part] for part in found] == [["attn"], ["attn#1"], []]
    assert found[1][0].members is sizes.members


def test_a_number_that_a_list_already_has_is_not_given_twice() -> None:
    first, second, third = Units("a", 2, ()), Units("a#1", 2, ()), Units("a", 3, ())
    found = one_of_each([[first, second], [third]])
    assert [[each.name for each in part] for part in found] == [["a", "a#1"], ["a#2"]]

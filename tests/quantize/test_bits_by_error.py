"""How many bits each layer should have, by the error that it alone causes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import NothingToDoError, OptionError, PatternError
from secateur.quantize.bits_by_error import _reached, allotted


class Two(nn.Module):
    """A branch of great weight in the outputs, and one of little."""

    def __init__(self, apart: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.great, self.little = nn.Linear(32, 16), nn.Linear(32, 16)
        self.apart = apart

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = 10 * self.great(x), 0.1 * self.little(x)
        return torch.cat(parts, 1) if self.apart else parts[0] + parts[1]


def inputs() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(200, 32), torch.randn(100, 32)]


def off(model: nn.Module, other: nn.Module) -> float:
    return float(sum((other(x) - model(x)).square().sum() for x in inputs()).detach())


@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_bits_go_where_the_outputs_gain_and_their_mean_is_held(per: str) -> None:
    model = Two()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    equal = sc.share(model, bits=3, per=per, data=inputs())
    seen: list[str] = []
    bits = sc.error_bits(model, equal, inputs(), 3, progress=lambda step: seen.append(str(step)))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert seen[0].startswith("layer 1 of 2: great.weight")
    assert bits == {"great.weight": 5, "little.weight": 1}
    better = sc.share(model, per=per, data=inputs(), bits_of=bits)
    assert off(model, better.model) < 0.2 * off(model, equal.model)
    great, little = (better.codebooks[f"{name}.weight"] for name in ("great", "little"))
    channels = 16 if per == "channel" else 1
    assert len(great.values) <= 32 * channels
    assert len(little.values) <= 2 * channels
    plain = sc.share(model, bits=2, per=per, bits_of={"great": 3})
    assert [len(book.values) // channels for book in plain.codebooks.values()] == [8, 4]


def test_bits_by_hand() -> None:
    """From 3 bits to 4 the error falls from 0.03454 to 0.009497 of a normal number's, to 2 it grows to 0.1175."""
    sizes, now = {"a": 100, "b": 100}, {"a": 3, "b": 3}
    # one bit more for a gains 0.725 of its error, one less for b costs 2.40 of its own
    assert allotted({"a": 3.4, "b": 1.0}, sizes, now, 3) == {"a": 4, "b": 2}
    assert allotted({"a": 3.2, "b": 1.0}, sizes, now, 3) == {"a": 3, "b": 3}
    # b is three times as large: its bit costs three of a's
    assert allotted({"a": 1.0, "b": 1.0}, {"a": 100, "b": 300}, now, 3) == {"a": 3, "b": 3}
    assert allotted({"a": 8.0, "b": 1.0}, {"a": 100, "b": 300}, now, 3.25) == {"a": 4, "b": 3}
    # errors are those of the present bits: 0.03454 at 3 is as 0.1175 at 2
    assert allotted({"a": 0.03454, "b": 0.1175}, sizes, {"a": 3, "b": 2}, 3) == {"a": 3, "b": 3}
    assert allotted({"a": 1e9, "b": 1e-9}, sizes, now, 3) == {"a": 5, "b": 1}
    assert allotted({"a": 1.0, "b": 1.0}, sizes, now, 1) == {"a": 1, "b": 1}
    assert allotted({"a": 1.0, "b": 0.0}, sizes, now, 8) == {"a": 8, "b": 8}


def test_what_is_compared_can_be_chosen() -> None:
    model = Two(apart=True)
    first = sc.share(model, bits=3, data=inputs())

    def second(output: object, _inputs: object) -> object:
        assert isinstance(output, torch.Tensor)
        return output[:, 16:]

    bits = sc.error_bits(model, first, inputs(), 3, compare=second)
    assert bits == {"great.weight": 1, "little.weight": 5}
    assert sc.error_bits(model, first, inputs(), 3) == {"great.weight": 5, "little.weight": 1}


def test_what_is_refused() -> None:
    model, data = Two(), inputs()
    first = sc.share(model, bits=3, data=data)
    with pytest.raises(OptionError, match="mean from 1 to 8, got 9"):
        sc.error_bits(model, first, data, 9)
    with pytest.raises(OptionError, match="method 'kmeans'"):
        sc.error_bits(model, sc.share(model, method="uniform", data=data), data, 3)
    alone = sc.share(model, bits=3, data=data, options=sc.ShareOptions(only="great"))
    with pytest.raises(NothingToDoError, match="at least two"):
        sc.error_bits(model, alone, data, 3)
    with pytest.raises(PatternError, match="'grate' is no tensor that is shared: "):
        sc.share(model, bits=3, bits_of={"grate": 2})
    with pytest.raises(OptionError, match=r"bits_of\['great'\] of K-means: .*got 9"):
        sc.share(model, bits=3, bits_of={"great": 9})
    with pytest.raises(OptionError, match="'great' is in the group 'model'"):
        sc.share(model, bits=3, per="model", bits_of={"great": 2})


def test_a_first_result_that_was_solved_for_sums_is_refused() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.layer(torch.relu(x))

    torch.manual_seed(0)
    model, data = nn.Sequential(Around(), Around()), [torch.randn(50, 8)]
    with pytest.raises(OptionError, match=r"1\.layer\.weight compensate.*ShareOptions\(sums=False\)"):
        sc.error_bits(model, sc.share(model, bits=2, data=data), data, 2)
    first = sc.share(model, bits=2, data=data, options=sc.ShareOptions(sums=False))
    assert set(sc.error_bits(model, first, data, 2)) == {"0.layer.weight", "1.layer.weight"}


def test_a_tensor_that_the_inputs_do_not_reach_keeps_its_bits() -> None:
    found = _reached({"a": 1.0, "b": 8.0, "c": 0.0}, dict.fromkeys("abc", 100), dict.fromkeys("abc", 3), 3.0)
    assert found == {"a": 2, "b": 4, "c": 3}

"""carry: the state of an optimizer is cut like the weights where that is clear, and refused where it is not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import OptionError

X = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
HALF = {"0.weight": torch.tensor([True, False, True, False])[:, None, None, None].expand(4, 3, 3, 3)}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 2),
    )


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(X).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)


class Sign(torch.optim.Optimizer):
    """An optimizer of one's own: what its constructor asks for is no option of its groups."""

    def __init__(self, params, lr=0.01, *, extra):
        super().__init__(params, {"lr": lr})
        self.extra = extra

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state.setdefault("seen", [torch.zeros_like(parameter)])[0] += parameter.grad
                state["rows"] = (
                    parameter.grad.flatten(1).sum(1) if parameter.dim() > 1 else parameter.grad.clone()
                )
                parameter -= group["lr"] * state["seen"][0].sign()


class Rows(Sign):
    def __init__(self, params, lr=0.01):
        super().__init__(params, lr, extra=1)


def test_adafactor_keeps_its_rows_and_columns() -> None:
    model = net()
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    for _ in range(2):
        step(model, optimizer)
    small = sc.shrink(model, sc.Masks(HALF), X)
    carried = small.carry(optimizer, model)
    before, after = optimizer.state[model[0].weight], carried.state[small.model[0].weight]
    assert [tuple(before[key].shape) for key in ("row_var", "col_var")] == [(4, 3, 3, 1), (4, 3, 1, 3)]
    for key in ("row_var", "col_var"):
        assert torch.equal(after[key], before[key][[0, 2]])
    # The second convolution loses two of its four inputs.
    before, after = optimizer.state[model[2].weight], carried.state[small.model[2].weight]
    assert tuple(after["row_var"].shape) == (5, 2, 3, 1)
    assert torch.equal(after["row_var"], before["row_var"][:, [0, 2]])
    step(small.model, carried)


def test_rows_of_a_linear_layer_that_loses_inputs_stay() -> None:
    """The row means have one number for each output, whatever inputs leave; the column means lose theirs."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 3)
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    model(x).sum().backward()
    optimizer.step()
    masks = sc.Masks({"0.weight": torch.tensor([True, False, True, True])[:, None].expand(4, 3)})
    small = sc.shrink(model, masks, x)
    before = optimizer.state[model[2].weight]
    after = small.carry(optimizer, model).state[small.model[2].weight]
    assert torch.equal(after["row_var"], before["row_var"])  # [2, 1]
    assert torch.equal(after["col_var"], before["col_var"][:, [0, 2, 3]])  # [1, 4]


def test_flat_state_is_refused() -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters())
    step(model, optimizer)
    small = sc.shrink(model, sc.Masks(HALF), X)
    with pytest.raises(OptionError) as caught:
        small.carry(optimizer, model)
    size = sum(parameter.numel() for parameter in model.parameters())
    assert str(caught.value) == (
        "carry: state 'd' that LBFGS has of '0.weight': expected the parameter's shape (4, 3, 3, 3), where axes may "
        f"have length 1, or one number, got ({size},), which cannot be cut like the parameter; make a new optimizer: "
        "LBFGS(small.model.parameters(), ...)"
    )


def test_flat_state_is_refused_where_only_another_parameter_was_cut() -> None:
    """LBFGS keeps its vectors with its first parameter, which stays whole here."""
    model = net()
    optimizer = torch.optim.LBFGS([*model[5].parameters(), *model[:5].parameters()])
    step(model, optimizer)
    small = sc.shrink(model, sc.Masks(HALF), X)
    with pytest.raises(OptionError, match=r"carry: state 'd' that LBFGS has of '5\.weight'"):
        small.carry(optimizer, model)


def test_a_vector_for_each_row_is_refused_and_lists_are_looked_into() -> None:
    model = net()
    optimizer = Rows(model.parameters())
    step(model, optimizer)
    small = sc.shrink(model, sc.Masks(HALF), X)
    with pytest.raises(OptionError, match=r"'rows' that Rows has of '0\.weight'.*, got \(4,\)"):
        small.carry(optimizer, model)
    for state in optimizer.state.values():
        del state["rows"]
    carried = small.carry(optimizer, model)
    seen = optimizer.state[model[0].weight]["seen"][0]
    assert torch.equal(carried.state[small.model[0].weight]["seen"][0], seen[[0, 2]])


def test_a_constructor_that_asks_for_more_is_refused() -> None:
    model = net()
    optimizer = Sign(model.parameters(), extra=3)
    small = sc.shrink(model, sc.Masks(HALF), X)
    with pytest.raises(OptionError) as caught:
        small.carry(optimizer, model)
    assert str(caught.value) == (
        "carry: calls Sign again, with the parameters of the smaller model and the options ['lr'], which failed: "
        "Sign.__init__() missing 1 required keyword-only argument: 'extra'; make the optimizer yourself from "
        "small.model.parameters(), or give what it asks for a default or a place in the defaults that Sign passes to "
        "torch.optim.Optimizer"
    )


def test_where_nothing_of_it_is_cut_all_state_is_copied() -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model[5].parameters())
    step(model, optimizer)
    small = sc.shrink(model, sc.Masks(HALF), X)
    carried = small.carry(optimizer, model)
    before, after = (
        each.state[layer.weight] for each, layer in ((optimizer, model[5]), (carried, small.model[5]))
    )
    assert torch.equal(before["d"], after["d"])
    assert before["d"] is not after["d"]
    step(small.model, carried)


def test_learning_rates_that_a_schedule_began_with_are_kept() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    step(model, optimizer)
    schedule.step()
    small = sc.shrink(model, sc.Masks(HALF), X)
    (group,) = small.carry(optimizer, model).param_groups
    assert (group["lr"], group["initial_lr"]) == (0.2, 0.4)

"""`factorise`: hand-worked ranks, the decomposition's optimality, the proof, and what is refused."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur import cli
from secateur.compensation import low_rank
from secateur.errors import (
    BudgetNotMetError,
    NothingToDoError,
    OptionError,
    PatternError,
    PlanError,
    ProofError,
    RecipeError,
    StructureError,
)
from secateur.lab.engine import final_state, run
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store


def _net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)
    ).eval()


EXAMPLE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def test_a_diagonal_weight_keeps_its_largest_values():
    model = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([1.0, 4.0, 3.0, 2.0])))
    small = sc.factorise(model, {"0": 1}, torch.ones(1, 4))
    product = small.model[0][1].weight @ small.model[0][0].weight
    assert torch.allclose(product, torch.diag(torch.tensor([0.0, 4.0, 0.0, 0.0])), atol=1e-6)
    assert (small.parameters_before, small.parameters_after) == (20, 12)


def test_data_decide_which_value_stays():
    model = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([1.0, 4.0, 3.0, 2.0])))
    inputs = torch.diag(torch.tensor([9.0, 1.0, 1.0, 1.0]))  # 1 * 9 is more than 4 * 1
    small = sc.factorise(model, {"0": 1}, torch.ones(1, 4), data=[inputs])
    product = small.model[0][1].weight @ small.model[0][0].weight
    assert torch.allclose(product, torch.diag(torch.tensor([1.0, 0.0, 0.0, 0.0])), atol=1e-6)


def test_a_share_gives_the_largest_rank_within_it_and_the_model_given_stays():
    model = _net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = sc.factorise(model, 0.5, EXAMPLE)
    # 8 x 27 = 216: 108 // 35 = 3; 10 x 128 = 1280: 640 // 138 = 4
    assert small.ranks == {"0": 3, "3": 4}
    assert small.parameters_after == 3 * 35 + 8 + 4 * 138 + 10
    assert small.proof_error < 1e-9
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_data_lower_the_error_of_a_convolution_on_them():
    model = _net()
    data = torch.randn(64, 1, 8, 8) * torch.tensor([1.0, 0.1, 3.0])[None, :, None, None]
    with torch.no_grad():
        off = [
            float((sc.factorise(model, {"0": 2}, EXAMPLE, data=given).model[0](data) - model[0](data)).norm())
            for given in (None, [data])
        ]
    assert off[1] < 0.9 * off[0]


def test_a_fresh_model_takes_the_weights_and_what_comes_out_shrinks():
    low = sc.factorise(_net(), 0.5, EXAMPLE)
    again = sc.factorise(_net(), low.ranks, EXAMPLE).model
    again.load_state_dict(low.model.state_dict())
    assert torch.equal(again(EXAMPLE), low.model(EXAMPLE))
    small = sc.shrink(low.model, sc.prune(low.model, "l2", "channel", 0.5, example=EXAMPLE), EXAMPLE)
    assert small.proof.holds
    assert sum(p.numel() for p in small.model.parameters()) < low.parameters_after


def test_a_wrong_factor_is_refused_by_the_proof(monkeypatch):
    right = low_rank._fill

    def wrong(layer, pair, left, *rest):
        product = right(layer, pair, left, *rest)
        with torch.no_grad():
            pair[0].weight[0] *= 1.001
        return product

    monkeypatch.setattr(low_rank, "_fill", wrong)
    with pytest.raises(ProofError, match="expected the outputs of the truncated dense weights"):
        sc.factorise(_net(), 0.5, EXAMPLE)


def test_a_layer_whose_weight_the_model_reads_itself_is_refused():
    class Reads(nn.Module):
        """Its forward's own source does not show that the weight is read."""

        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return self.mix(x)

        def mix(self, x):
            return x @ self.fc.weight

    with pytest.raises(StructureError, match="reads a layer's weight itself"):
        sc.factorise(Reads(), {"fc": 2}, torch.randn(2, 8))


@pytest.mark.parametrize(
    ("ranks", "error", "text"),
    [
        ({"3": 10}, OptionError, r"3: expected a whole number from 1 to 9, the largest rank .* got 10"),
        ({"2": 1}, PatternError, "'2' is not a layer that can be factorised"),
        (1.5, OptionError, r"share of weights kept in \(0, 1\), sc.budget.Macs or sc.budget.Params, got 1.5"),
        (0.01, NothingToDoError, "no layer is left to factorise"),
    ],
)
def test_what_cannot_be_is_said(ranks, error, text):
    with pytest.raises(error, match=text):
        sc.factorise(_net(), ranks, EXAMPLE)


def test_tied_weights_are_left():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    assert list(sc.factorise(model, 0.5, torch.randn(2, 8)).ranks) == ["2"]


def test_a_layer_that_the_data_never_reach_is_named():
    model = _net()
    model.spare = nn.Linear(8, 8)
    model.forward = lambda inputs: nn.Sequential(*list(model)[:4])(inputs)
    with pytest.raises(StructureError, match="spare did not run on the data"):
        sc.factorise(model, 0.5, EXAMPLE, data=[EXAMPLE])


# -- ranks by a budget ------------------------------------------------------------------------------------------


def _diagonals() -> nn.Sequential:
    """Two layers of 64 weights each: diagonals 8, 1, 1, ... and 4, 4, 4, ..."""
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([8.0, *[1.0] * 7])))
        model[2].weight.copy_(torch.diag(torch.full((8,), 4.0)))
    return model


@pytest.mark.parametrize("budget", [sc.budget.Params(0.5), sc.budget.Macs(0.5)])
def test_a_budget_takes_the_ranks_of_least_error(budget):
    # a rank costs 16. Of 128, 64 may remain: 1 + 3 ranks lose 7/71 + 5/8 = 0.724 of the squares, 2 + 2 lose 0.835,
    # 3 + 1 lose 0.945; one layer dense and the other gone is no choice
    small = sc.factorise(_diagonals(), budget, torch.ones(1, 8))
    assert small.ranks == {"0": 1, "2": 3}
    assert small.parameters_after == 64
    assert small.errors == pytest.approx({"0": 7 / 71, "2": 5 / 8})


def test_layers_that_need_not_change_stay_dense():
    small = sc.factorise(_diagonals(), sc.budget.Params(0.63), torch.ones(1, 8))  # 80 of 128 remain: 16 + 64
    assert small.ranks == {"0": 1}
    assert small.parameters_after == 80


def test_a_budget_counts_the_whole_model_and_weighs_by_data():
    # only the last input is ever there, so rank 1 of the first layer loses nothing
    data = [torch.tensor([[0.0] * 7 + [1.0]])]
    small = sc.factorise(_diagonals(), sc.budget.Params(0.9), torch.ones(1, 8), data=data)
    assert max(small.errors.values()) < 1e-12
    model = _net()
    macs = sc.measure(model, EXAMPLE, what="macs")["macs"].value
    low = sc.factorise(model, sc.budget.Macs(0.5), EXAMPLE)
    after = sc.measure(low.model, EXAMPLE, what="macs")["macs"].value
    assert after <= 0.5 * macs
    more = {name: rank + 1 for name, rank in low.ranks.items()}
    with torch.no_grad():
        for name in low.ranks:
            if more[name] <= low_rank.most_rank(low_rank.factorisable(model)[name]):
                one = sc.factorise(model, {**low.ranks, name: more[name]}, EXAMPLE).model
                assert sc.measure(one, EXAMPLE, what="macs")["macs"].value > 0.5 * macs


def test_a_budget_below_rank_one_says_what_remains():
    with pytest.raises(
        BudgetNotMetError, match=r"32 of 128 parameters remain \(0.2500\) at rank 1 everywhere"
    ):
        sc.factorise(_diagonals(), sc.budget.Params(0.2), torch.ones(1, 8))


# -- the spatial form -------------------------------------------------------------------------------------------


def _convolutions() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=(2, 1)), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 4, 1)
    ).eval()  # fmt: skip


def test_a_separable_kernel_is_exact_at_rank_one():
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    high, wide = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 0.0, -1.0])
    with torch.no_grad():
        layer.weight.copy_(torch.outer(high, wide)[None, None])
    x = torch.randn(1, 1, 5, 5)
    small = sc.factorise(nn.Sequential(layer), {"0": 1}, x, spatial=True)
    first, second = small.model[0]
    assert (first.kernel_size, second.kernel_size) == ((3, 1), (1, 3))
    assert (small.parameters_before, small.parameters_after) == (9, 6)
    assert torch.allclose(small.model(x), layer(x), atol=1e-5)


def test_only_convolutions_that_keep_the_width_take_the_spatial_form(tmp_path):
    model = _convolutions()
    small = sc.factorise(model, {"0": 2, "2": 3}, EXAMPLE, spatial=True)
    # 0 keeps the width (its stride is along the height): 3 * 3 inputs and 8 * 3 outputs for each rank
    assert small.plan.spatial == ("0",)
    assert [layer.kernel_size for layer in small.model[0]] == [(3, 1), (1, 3)]
    assert [layer.kernel_size for layer in small.model[2]] == [(3, 3), (1, 1)]
    assert sum(layer.weight.numel() for layer in small.model[0]) == 2 * (9 + 24)
    assert small.proof_error < 1e-9
    sc.save(small.model, tmp_path / "low.sct", plan=small.plan)
    again = sc.load(tmp_path / "low.sct", into=_convolutions())
    assert torch.equal(again(EXAMPLE), small.model(EXAMPLE))
    assert sc.ShrinkPlan.from_json(small.plan.to_json()) == small.plan


def test_a_budget_counts_the_spatial_form():
    small = sc.factorise(_convolutions(), sc.budget.Macs(keep=0.6), EXAMPLE, spatial=True)
    before, after = (
        sc.measure(one, EXAMPLE[:1], what="macs")["macs"].value for one in (_convolutions(), small.model)
    )
    assert "0" in small.ranks
    assert 0.4 < after / before <= 0.6


def test_a_spatial_form_that_cannot_be_is_refused():
    with pytest.raises(OptionError, match="expected data or spatial=True, got both"):
        sc.factorise(_convolutions(), 0.5, EXAMPLE, data=[EXAMPLE], spatial=True)
    with pytest.raises(NothingToDoError, match="found no convolution with a kernel of two axes"):
        sc.factorise(_diagonals(), 0.5, torch.ones(1, 8), spatial=True)
    plan = sc.ShrinkPlan(keep={}, factors={"2": 1}, spatial=("2",))
    with pytest.raises(
        PlanError, match="expected a convolution with a kernel of two axes that keeps the width"
    ):
        plan.apply_(_convolutions())
    text = plan.to_json().replace('"spatial":["2"]', '"spatial":["0"]')
    with pytest.raises(PlanError, match="the layers in the spatial form as a list of names in factors"):
        sc.ShrinkPlan.from_json(text)


# -- the plan ---------------------------------------------------------------------------------------------------


def test_a_file_carries_the_ranks_and_what_is_shrunk_after(tmp_path):
    low = sc.factorise(_net(), 0.5, EXAMPLE)
    sc.save(low.model, tmp_path / "low.sct", plan=low.plan)
    again = sc.load(tmp_path / "low.sct", into=_net())
    assert torch.equal(again(EXAMPLE), low.model(EXAMPLE))
    small = sc.shrink(low.model, sc.prune(low.model, "l2", "channel", 0.5, example=EXAMPLE), EXAMPLE)
    sc.save(small.model, tmp_path / "small.sct", plan=low.plan.then(small.plan))
    again = sc.load(tmp_path / "small.sct", into=_net())
    assert torch.equal(again(EXAMPLE), small.model(EXAMPLE))
    with pytest.raises(
        PlanError, match="the second plan factorises '3' of a model that the first has changed"
    ):
        small.plan.then(sc.ShrinkPlan(keep={}, factors={"3": 1}))
    with pytest.raises(
        PlanError, match=r"the second plan factorises '3\.0' of a model that the first has changed"
    ):
        low.plan.then(sc.ShrinkPlan(keep={}, factors={"3.0": 1}))


@pytest.mark.parametrize(
    ("factors", "text"),
    [
        ({"3": 10**9}, "the plan factorises what Sequential does not have: .*from 1 to 9.*got 1000000000"),
        ({"9": 1}, "'9' is not a layer that can be factorised"),
        ({"1": 1}, "'1' is not a layer that can be factorised"),
        ({"": 1}, "'' is not a layer that can be factorised"),
        ({"3": True}, "expected a whole number of at least 1 as a rank, got 'True'"),
        ({"3": 0}, "expected a whole number of at least 1 as a rank, got '0'"),
        ({"3": "4"}, "expected a whole number of at least 1 as a rank, got '4'"),
        (["3"], "expected an object, got list"),
    ],
)
def test_a_hostile_plan_is_refused_and_leaves_the_model(factors, text):
    model = _net()
    before = repr(model)
    data = {**sc.ShrinkPlan(keep={}).to_dict(), "factors": factors}
    with pytest.raises(PlanError, match=text):
        sc.ShrinkPlan.from_dict(data).apply_(model)
    assert repr(model) == before


def test_a_cut_that_does_not_fit_leaves_the_model_as_it_was():
    model = _net()
    before = repr(model)
    plan = sc.ShrinkPlan(keep={"3.0.weight": {0: (7,)}}, factors={"3": 4})
    with pytest.raises(PlanError, match="indices do not fit"):
        plan.apply_(model)
    assert repr(model) == before


# -- the step ---------------------------------------------------------------------------------------------------

RECIPE = """
data = {name = "digits", limit = 120, size = 28, channels = 1}
model = {name = "lenet5"}
lab = {threads = 1}
step = [
  {kind = "factorise", keep = 0.6, calibrate = 50},
  {kind = "train", epochs = 1, lr = 0.02, batch_size = 30},
  {kind = "prune", criterion = "l2", granularity = "channel", budget = 0.25},
  {kind = "shrink"},
  {kind = "pack"},
  {kind = "measure", what = ["macs"]},
]
"""


def test_a_recipe_factorises_trains_prunes_shrinks_and_packs(tmp_path):
    store = Store(tmp_path / "store")
    ran = run(Recipe.parse(RECIPE), store)
    state = final_state(ran.plan.trials[0], store)
    (tmp_path / "small.sct").write_bytes(next(iter(state.files.values())))
    again = sc.load(tmp_path / "small.sct", into=sc.models.build("lenet5")).eval()
    images = torch.rand(2, 1, 28, 28)
    assert torch.allclose(again(images), state.model.eval()(images))
    assert isinstance(
        again.get_submodule(next(iter(sc.ShrinkPlan.from_json(state.plan).factors))), nn.Sequential
    )


@pytest.mark.parametrize(
    ("step", "error", "text"),
    [
        ('{kind = "factorise"}', RecipeError, "expected either keep or ranks, got both or neither"),
        (
            '{kind = "factorise", keep = 0.5, of = "bytes"}',
            RecipeError,
            "of: expected 'macs' or 'params', got 'bytes'",
        ),
        ('{kind = "prune"}, {kind = "factorise", keep = 0.5}', OptionError, "the weights are pruned"),
    ],
)
def test_a_step_that_cannot_be_is_refused(step, error, text, tmp_path):
    recipe = Recipe.parse(f'model = {{name = "lenet-300-100"}}\nstep = [{step}]')
    with pytest.raises(error, match=text):
        run(recipe, Store(tmp_path))


def test_the_verb_writes_a_file_that_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["secateur", "factorise", "lenet5", "--keep", "0.6", "--out", f"{tmp_path}/low.sct"]
    )
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code == 0
    assert "in float64" in capsys.readouterr().out
    low = sc.load(tmp_path / "low.sct", into=sc.models.build("lenet5"))
    dense = sc.models.build("lenet5")
    images = torch.zeros(1, 1, 28, 28)
    assert (
        sc.measure(low, images, what="macs")["macs"].value
        <= 0.6 * sc.measure(dense, images, what="macs")["macs"].value
    )


def test_layers_that_their_owner_reads_are_left_as_they_are():
    """nn.TransformerEncoderLayer hands linear1.weight to a fused operator; the layers beside it are factorised."""
    torch.manual_seed(0)
    inner = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.Sequential(
        nn.Linear(16, 16), nn.TransformerEncoder(inner, 1, enable_nested_tensor=False), nn.Linear(16, 16)
    ).eval()
    found = sc.factorise(model, sc.budget.Params(keep=0.95), torch.randn(2, 5, 16))
    assert set(found.ranks) <= {"0", "2"}
    assert found.ranks
    with pytest.raises(PatternError, match="is not a layer that can be factorised"):
        sc.factorise(model, {"1.layers.0.linear1": 4}, torch.randn(2, 5, 16))

"""Models of other kinds: each verb works on the model inside a wrapper, keeps memory formats, or says what to do."""

from __future__ import annotations

import copy
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

import secateur as sc
from secateur.errors import OptionError
from secateur.execution.undisturbed import undisturbed

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
BATCHES = [(X, torch.tensor([1, 2]))]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).eval()


def masks_of(model: nn.Module) -> sc.Masks:
    return sc.prune(model, "l2", "channel", 0.5, example=X)


VERBS: dict[str, Callable[[nn.Module, sc.Masks], object]] = {
    "prune": lambda model, masks: sc.prune(model),
    "channel": lambda model, masks: masks_of(model),
    "explain": lambda model, masks: sc.explain(model, X, budget=0.5),
    "shrink": lambda model, masks: sc.shrink(model, masks, X),
    "scan": lambda model, masks: sc.scan(
        model, BATCHES, levels=[0.5], options=sc.ScanOptions(loss=nn.functional.cross_entropy)
    ),
    "share": lambda model, masks: sc.share(model, bits=2),
    "compensate": lambda model, masks: sc.compensate(model, masks, [X]),
}


def compiled() -> nn.Module:
    return torch.compile(net(), backend="eager")  # type: ignore[return-value]


def distributed() -> nn.Module:
    if not torch.distributed.is_initialized():
        file = Path(tempfile.mkdtemp()) / "init"
        torch.distributed.init_process_group("gloo", init_method=file.as_uri(), rank=0, world_size=1)
    return nn.parallel.DistributedDataParallel(net())


WRAPPED = {"compile": compiled, "data_parallel": lambda: nn.DataParallel(net()), "distributed": distributed}


@pytest.fixture(autouse=True)
def _no_process_group() -> object:
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_works_on_the_model_inside_a_wrapper_and_says_so(kind: str, verb: str) -> None:
    model, masks = WRAPPED[kind](), masks_of(net())
    with pytest.warns(UserWarning, match="is a wrapper: the Sequential inside is worked on"):
        found = VERBS[verb](model, masks)
    if isinstance(found, sc.Masks):
        assert found == (masks if verb == "channel" else sc.prune(net()))
    if isinstance(found, sc.Shrunk):
        assert type(found.model) is nn.Sequential
        assert found.proof.holds
        assert found.plan == sc.shrink(net(), masks, X).plan


@pytest.mark.parametrize("kind", WRAPPED)
def test_masks_hold_and_files_of_a_wrapped_model_are_those_of_the_model_inside(
    kind: str, tmp_path: Path
) -> None:
    masks = masks_of(net())
    small = sc.shrink(net(), masks, X)
    masks.apply_(model := WRAPPED[kind]())
    torch.testing.assert_close(model(X), small.model(X))
    with sc.hold(model, masks) as held:
        held.apply()
    sc.save(small.model, tmp_path / "m.sct", plan=small.plan)
    again = WRAPPED[kind]()
    assert sc.load(tmp_path / "m.sct", into=again) is again
    torch.testing.assert_close(again(X), small.model(X))
    with pytest.warns(UserWarning, match="is a wrapper"):
        sc.save(again, tmp_path / "again.sct", plan=small.plan)
    assert list(sc.load(tmp_path / "again.sct")) == list(small.model.state_dict())


def scripted() -> nn.Module:
    return torch.jit.script(net())


def traced() -> nn.Module:
    return torch.jit.trace(net(), X)


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(net())


def masked_by_torch() -> nn.Module:
    model = net()
    torch_prune.ln_structured(model[3], "weight", 0.5, n=2, dim=0)
    return model


def old_weight_norm() -> nn.Module:
    model = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(model[3])
    return model


def old_spectral_norm() -> nn.Module:
    model = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.spectral_norm(model[3])
    return model


REFUSED = {
    "script": (
        scripted,
        r"RecursiveScriptModule is compiled by TorchScript.*torch\.jit\.script\(small\.model\)",
    ),
    "trace": (traced, r"TopLevelTracedModule is compiled by TorchScript.*pass the Python model"),
    "int8": (quantized, r"'6' is an int8 layer \(Linear\).*shrink the float model first, and quantize"),
    "torch.prune": (masked_by_torch, r"torch\.nn\.utils\.prune holds '3\.weight_orig'.*prune\.remove"),
    "weight_norm": (old_weight_norm, r"'3\.weight' is computed from '3\.weight_g'.*remove_weight_norm"),
    "spectral_norm": (
        old_spectral_norm,
        r"'3\.weight' is computed from '3\.weight_orig'.*remove_spectral_norm",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_what_it_cannot_work_on_and_says_what_to_do(kind: str, verb: str) -> None:
    make, text = REFUSED[kind]
    with pytest.raises(OptionError, match=text):
        VERBS[verb](make(), masks_of(net()))


@pytest.mark.parametrize("kind", ["script", "trace", "int8"])
def test_measuring_macs_refuses_what_hides_its_operators(kind: str) -> None:
    make, text = REFUSED[kind]
    with pytest.raises(OptionError, match=text):
        sc.measure(make(), X, what="macs")


def test_weight_norm_is_cut_through_both_ways_and_masks_zero_no_direction() -> None:
    """The layer after it reads fewer channels, the one before it puts out fewer; widths stated follow."""
    model = net()
    for index in (0, 3):
        parametrizations.weight_norm(model[index])
    assert [row.count for row in sc.explain(model, X).groups] == [8, 8]
    small = sc.shrink(model, masks_of(model), X)
    assert small.proof.holds
    assert {case.mode for case in small.proof.cases} == {"eager", "no_grad"}
    assert len({case.shapes for case in small.proof.cases}) == 2
    first, second = small.model[0], small.model[3]
    assert tuple(second.parametrizations.weight.original1.shape) == (4, 4, 3, 3)
    assert (first.out_channels, second.in_channels, second.out_channels) == (4, 4, 4)
    fresh = net()
    for index in (0, 3):
        parametrizations.weight_norm(fresh[index])
    small.plan.apply_(fresh).load_state_dict(small.model.state_dict())
    assert torch.equal(fresh(X), small.model(X))


def test_spectral_norm_divides_by_what_is_left_as_it_does_under_the_masks() -> None:
    """By hand: u = (0.6, 0.8), v = (1, 0), W v = (3, 4), so that sigma is 5; without the first row it is 0.8 * 4."""
    layer = parametrizations.spectral_norm(nn.Linear(2, 2, bias=False))
    model, x = nn.Sequential(layer, nn.Linear(2, 1)).eval(), torch.tensor([[2.0, 7.0]])
    layer.parametrizations.weight.original.data.copy_(torch.tensor([[3.0, 0.0], [4.0, 0.0]]))
    layer.parametrizations.weight[0]._u.copy_(torch.tensor([0.6, 0.8]))
    layer.parametrizations.weight[0]._v.copy_(torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(layer.weight, torch.tensor([[0.6, 0.0], [0.8, 0.0]]))
    model[1].weight.data.fill_(1.0)
    masks = sc.prune(model, "l2", "channel", 0.5, example=x)
    small = sc.shrink(model, masks, x)
    assert small.proof.holds
    torch.testing.assert_close(small.model[0].weight, torch.tensor([[4 / 3.2, 0.0]]))
    masks.apply_(model)
    torch.testing.assert_close(small.model(x), model(x))


@pytest.mark.parametrize("iterations", [1, 3])
def test_spectral_norm_of_convolutions_is_cut_on_both_sides_and_trains_on(iterations: int) -> None:
    model = net()
    for index in (0, 3):
        parametrizations.spectral_norm(model[index], n_power_iterations=iterations)
    model.eval()
    found = sc.explain(model, X, budget=0.5)
    assert [(row.count, row.removed) for row in found.groups] == [(8, 4), (8, 4)]
    assert "no rule" not in str(found)
    assert "folded" not in str(found)  # the places of a kernel hold no channels
    masks = sc.prune(model, "l2", "channel", 0.5, example=X)
    small = sc.shrink(model, masks, X, proof=sc.ProofOptions(every=True))
    assert small.proof.holds
    assert tuple(small.model[3].parametrizations.weight.original.shape[:2]) == (4, 4)
    assert [tuple(each.shape) for each in small.model[3].parametrizations.weight[0].buffers()] == [
        (4,),
        (36,),
    ]
    masks.apply_(model)
    for each in (model, small.model):
        each.train()
        for _ in range(3):  # the power iteration goes on from the cut vectors
            each(X)
        each.eval()
    torch.testing.assert_close(small.model(X), model(X))


def test_spectral_norm_of_transposed_convolutions_is_cut_on_both_sides() -> None:
    """Their outputs are on axis 1, which is the first of the matrix whose norm is taken."""
    torch.manual_seed(0)
    spectral = parametrizations.spectral_norm
    up = [spectral(nn.ConvTranspose2d(ins, outs, 3, stride=2)) for ins, outs in ((3, 8), (8, 6))]
    model = nn.Sequential(up[0], nn.ReLU(), up[1], nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    found = sc.explain(model, X)
    assert [(row.name, row.count) for row in found.groups] == [
        ("0.parametrizations.weight", 8),
        ("2.parametrizations.weight", 6),
    ]
    assert "folded" not in str(found)
    masks = sc.prune(model, "l2", "channel", 0.5, example=X)
    small = sc.shrink(model, masks, X, proof=sc.ProofOptions(every=True))
    assert small.proof.holds
    weights = [small.model[index].parametrizations.weight for index in (0, 2)]
    assert [tuple(each.original.shape) for each in weights] == [(3, 4, 3, 3), (4, 3, 3, 3)]
    sizes = [[tuple(buffer.shape) for buffer in each[0].buffers()] for each in weights]
    assert sizes == [[(4,), (27,)], [(3,), (36,)]]
    masks.apply_(model)
    for each in (model, small.model):
        each.train()
        for _ in range(3):
            each(X)
        each.eval()
    torch.testing.assert_close(small.model(X), model(X))


class Doubled(nn.Module):
    """A parametrization that knows its width."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight if len(weight) == 8 else weight.exp()


def test_a_lock_that_shrink_meets_inside_a_parametrization_says_how_to_fold_it() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)).eval(), torch.randn(3, 4)
    nn.utils.parametrize.register_parametrization(model[0], "weight", Doubled())
    half = {"0.parametrizations.weight.original": torch.arange(8)[:, None].expand(8, 4) >= 4}
    met = (
        "0.parametrizations.weight.0: the forward has this width hard-coded [mul]; fold it first: "
        "torch.nn.utils.parametrize.remove_parametrizations(model.get_submodule('0'), 'weight')"
    )
    with pytest.raises(sc.errors.NothingToDoError) as caught:
        sc.shrink(model, sc.Masks(half), x)
    assert str(caught.value) == f"no channel of Sequential can be removed: {met}"
    both = {**half, "1.weight": torch.arange(6)[:, None].expand(6, 8) >= 3}
    assert f"kept whole at {met}" in str(sc.shrink(model, sc.Masks(both), x)).splitlines()


def test_a_lock_inside_a_parametrization_says_how_to_fold_it() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)).eval(), torch.randn(3, 4)
    parametrizations.orthogonal(model[1])
    fold = r"fold it first: .*remove_parametrizations\(model\.get_submodule\('1'\), 'weight'\)"
    with pytest.raises(sc.errors.NothingToDoError, match=rf"in 1\.parametrizations\.weight\.0\); {fold}"):
        sc.prune(model, "l2", "channel", 0.5, example=x)
    assert re.search(fold, str(sc.explain(model, x)))
    nn.utils.parametrize.remove_parametrizations(model[1], "weight")
    assert [row.count for row in sc.explain(model, x).groups] == [8, 8]


def test_a_parametrized_weight_that_takes_no_part_is_said() -> None:
    model = net()
    parametrizations.weight_norm(model[3])
    with pytest.warns(
        UserWarning,
        match=r"weight of '3' is computed by a parametrization.*remove_parametrizations.*='\*original1'$",
    ):
        assert "3.weight" not in sc.prune(model)
    options = sc.PruneOptions(parameters="*original1")
    assert "3.parametrizations.weight.original1" in sc.prune(model, options=options)


def test_where_all_weights_are_computed_the_error_fits_every_verb() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)))
    text = r"no weight takes part in Sequential: a parametrization .*, or name what it is computed from"
    for verb in (lambda: sc.share(model, 2), lambda: sc.prune(model)):
        with pytest.raises(sc.errors.NothingToDoError, match=text) as caught:
            verb()
        assert "to prune" not in str(caught.value)


def test_channels_last_is_kept_by_shrink_and_by_files(tmp_path: Path) -> None:
    def last(model: nn.Module) -> list[bool]:
        return [
            p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
            for p in model.parameters()
            if p.dim() == 4
        ]

    model = net().to(memory_format=torch.channels_last)
    assert last(model) == [True, True]
    small = sc.shrink(model, masks_of(model), X)
    assert last(small.model) == [True, True]
    assert last(copy.deepcopy(small.model)) == [True, True]
    small.save(tmp_path / "m.safetensors")
    sc.save(small.model, tmp_path / "m.sct", plan=small.plan)
    for read, name in ((sc.load_shrunk, "m.safetensors"), (sc.load, "m.sct")):
        again = read(tmp_path / name, into=net().to(memory_format=torch.channels_last))
        assert last(again) == [True, True]
        assert torch.equal(again(X), small.model(X))
    assert last(sc.shrink(net(), masks_of(net()), X).model) == [False, False]


def exported() -> nn.Module:
    return torch.export.export(net(), (X,)).module()


def test_what_torch_export_made_is_measured_and_shrunk() -> None:
    model = exported()
    found = {each.name: each.value for each in sc.measure(model, X, what=["params", "macs"])}
    assert found["params"] == sum(parameter.numel() for parameter in model.parameters())
    small = sc.shrink(model, masks_of(model), X)
    assert small.proof.holds
    assert small.model.get_parameter("0.weight").shape == (4, 3, 3, 3)


def test_an_exported_program_has_no_train_mode() -> None:
    with (
        pytest.raises(
            OptionError, match=r"GraphModule was made by torch.export, whose mode is fixed, and train mode"
        ),
        undisturbed(exported(), mode="train"),
    ):
        pass


def test_the_layers_of_an_exported_program_cannot_be_compensated() -> None:
    model = exported()
    with pytest.raises(
        OptionError, match=r"compensate: GraphModule was made by torch.export, .* the Python model"
    ):
        sc.compensate(model, masks_of(model), [X])

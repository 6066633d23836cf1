"""Masks: fit, applied, merged, inverted, saved, to and from torch's own form; every error's text."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as torch_prune

import secateur as sc
from secateur.core.masks import Masks, MaskSummary
from secateur.errors import FormatError, MaskMismatchError, NothingToDoError, UnknownNameError


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


def some(model: nn.Module, seed: int = 0) -> Masks:
    generator = torch.Generator().manual_seed(seed)
    return Masks(
        {
            n: torch.rand(p.shape, generator=generator) > 0.5
            for n, p in model.named_parameters()
            if p.dim() > 1
        }
    )


shapes = st.lists(st.integers(0, 4), min_size=0, max_size=3)
names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda name: name != "__metadata__"
)


@st.composite
def any_masks(draw, keys=None):
    keys = keys or draw(st.lists(names, min_size=1, max_size=4, unique=True))
    tensors = {}
    for key in keys:
        shape = draw(shapes)
        count = 1
        for size in shape:
            count *= size
        bits = draw(st.lists(st.booleans(), min_size=count, max_size=count))
        tensors[key] = torch.tensor(bits, dtype=torch.bool).reshape(shape)
    return Masks(tensors)


@st.composite
def same_shape(draw, count: int):
    first = draw(any_masks(keys=["a", "b.weight"]))
    found = [first]
    for _ in range(count - 1):
        found.append(
            Masks(
                {
                    name: torch.tensor(
                        draw(st.lists(st.booleans(), min_size=mask.numel(), max_size=mask.numel())),
                        dtype=torch.bool,
                    ).reshape(mask.shape)
                    for name, mask in first.items()
                }
            )
        )
    return found


@settings(max_examples=40, deadline=None)
@given(masks=any_masks())
def test_save_and_load_give_back_the_same(tmp_path_factory, masks):
    path = tmp_path_factory.mktemp("masks") / "m.safetensors"
    masks.save(path)
    back = Masks.load(path)
    assert back == masks
    assert back.digest() == masks.digest()
    assert {n: (t.dtype, t.shape) for n, t in back.items()} == {
        n: (t.dtype, t.shape) for n, t in masks.items()
    }
    assert [p.name for p in path.parent.iterdir()] == ["m.safetensors"], "no scratch file is left"
    before = path.read_bytes()
    back.save(path)
    assert path.read_bytes() == before, "the same masks, the same bytes"


@settings(max_examples=60, deadline=None)
@given(three=same_shape(3))
def test_merge_is_an_intersection(three):
    a, b, c = three
    assert a & b == b & a
    assert (a & b) & c == a & (b & c)
    assert a & a == a
    assert ~~a == a
    assert (a & ~a).kept == 0
    assert (a & b).kept <= min(a.kept, b.kept)
    assert a.kept + (~a).kept == a.numel
    for name in a:
        assert torch.equal((a & b)[name], a[name] & b[name])


def test_merge_takes_over_what_one_side_alone_has():
    a, b = Masks({"a": torch.tensor([True])}), Masks({"b": torch.tensor([False])})
    assert a.merge(b) == Masks({"a": torch.tensor([True]), "b": torch.tensor([False])})
    with pytest.raises(MaskMismatchError) as error:
        a.merge(Masks({"a": torch.tensor([[True]])}))
    assert str(error.value) == (
        "mask of 'a': cannot merge shapes (1,) and (1, 1); are these the masks of another model?"
    )


def test_apply_zeroes_exactly_and_the_copy_leaves_the_model_alone():
    model = net()
    with torch.no_grad():
        model[3].weight[0] = torch.tensor([float("nan"), float("inf"), -1.0, -0.0, 1, 2, 3, 4])
    before = copy.deepcopy(model.state_dict())
    masks = some(model).merge(Masks({"3.weight": torch.tensor([[False] * 4 + [True] * 4] * 3)}))
    pruned = masks.apply(model)
    assert all(torch.equal(v.nan_to_num(7), before[k].nan_to_num(7)) for k, v in model.state_dict().items())
    assert masks.apply_(model) is model
    for one in (model, pruned):
        for name, mask in masks.items():
            gone = one.get_parameter(name).detach()[~mask]
            assert bool((gone == 0).all())
            assert not bool(torch.signbit(gone).any())
            assert torch.equal(one.get_parameter(name).detach()[mask], before[name][mask])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_apply_is_all_or_nothing():
    model = net()
    before = copy.deepcopy(model.state_dict())
    wrong = Masks(
        {"0.weight": torch.zeros(2, 1, 3, 3, dtype=torch.bool), "3.weight": torch.ones(1, dtype=torch.bool)}
    )
    with pytest.raises(MaskMismatchError):
        wrong.apply_(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_counts_summary_and_table():
    masks = Masks({"fc": torch.tensor([[True, False, False, False]]), "b": torch.tensor([True, True])})
    assert (masks.numel, masks.kept, masks.sparsity) == (6, 3, 0.5)
    assert masks.summary() == [MaskSummary("fc", (1, 4), 4, 1), MaskSummary("b", (2,), 2, 2)]
    assert masks.summary()[0].sparsity == 0.75
    assert masks.table().splitlines() == [
        "tensor       weights          kept  sparsity",
        "fc                4             1  0.7500",
        "b                 2             2  0.0000",
        "total             6             3  0.5000",
    ]
    assert repr(masks) == "Masks(2 tensors, 6 weights, sparsity 0.5000)"
    empty = Masks({"w": torch.zeros(0, 3, dtype=torch.bool)})
    assert (empty.sparsity, empty.summary()[0].sparsity) == (0.0, 0.0)


def test_a_mapping_that_cannot_be_hashed_but_compared_pickled_and_copied():
    masks = some(net())
    assert dict(masks).keys() == {"0.weight", "3.weight"}
    assert masks != some(net(), seed=1)
    assert masks != "masks"
    with pytest.raises(TypeError):
        hash(masks)
    with pytest.raises(TypeError):
        masks["0.weight"] = torch.ones(1)
    assert pickle.loads(pickle.dumps(masks)) == copy.deepcopy(masks) == masks == masks.to("cpu")


def test_digest_tells_names_shapes_and_bits_apart():
    variants = [
        {"a": torch.tensor([True, False])},
        {"b": torch.tensor([True, False])},
        {"a": torch.tensor([[True, False]])},
        {"a": torch.tensor([False, True])},
        {"a": torch.tensor([True]), "b": torch.tensor([False])},
    ]
    digests = [Masks(variant).digest() for variant in variants]
    assert len(set(digests)) == len(digests)
    transposed = torch.tensor([[True, False], [True, True]]).t()
    assert Masks({"a": transposed}).digest() == Masks({"a": transposed.contiguous()}).digest()


def test_ones_and_of_zeros():
    model = net()
    assert Masks.ones(model).kept == sum(p.numel() for p in model.parameters())
    assert list(Masks.ones(model, ["3.bias"])) == ["3.bias"]
    masks = some(model)
    assert Masks.of_zeros(masks.apply(model), list(masks)) == masks
    with pytest.raises(
        UnknownNameError, match=r"Sequential has no parameter '3\.wieght': did you mean '3\.weight'"
    ):
        Masks.ones(model, ["3.wieght"])
    with pytest.raises(NothingToDoError, match="masks over no tensor at all"):
        Masks.of_zeros(model, [])


def test_torch_prune_both_ways():
    model, plain = net(), net()
    masks = some(model)
    assert masks.to_torch_prune_(model) is model
    assert {"0.weight_mask", "3.weight_orig"} <= set(model.state_dict())
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(model(x), masks.apply(plain)(x))
    assert Masks.from_torch_prune(model) == masks
    with pytest.raises(MaskMismatchError) as error:
        masks.check(model)
    assert str(error.value) == (
        "mask of '0.weight': the model holds torch.nn.utils.prune's 0.weight_orig instead; read it with "
        "Masks.from_torch_prune(model), or make it permanent with torch.nn.utils.prune.remove"
    )
    for layer in (model[0], model[3]):
        torch_prune.remove(layer, "weight")
    assert Masks.of_zeros(model, list(masks)) == masks
    with pytest.raises(NothingToDoError) as nothing:
        Masks.from_torch_prune(model)
    assert str(nothing.value) == (
        "Sequential holds no torch.nn.utils.prune mask; use Masks.of_zeros(model) for a model whose pruning "
        "was made permanent"
    )


def test_masks_made_by_torch_prune_itself():
    model = net()
    torch_prune.l1_unstructured(model[3], "weight", amount=10)
    torch_prune.random_unstructured(model[3], "bias", amount=1)
    found = Masks.from_torch_prune(model)
    assert {row.name: row.numel - row.kept for row in found.summary()} == {"3.weight": 10, "3.bias": 1}
    assert torch.equal(found["3.weight"], model[3].weight_mask.bool())


def test_tied_weights_are_found_by_either_name_and_saved(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    mask = torch.eye(3) > 0
    masks = Masks({"0.weight": mask, "1.weight": mask})
    masks.apply_(model)
    assert int(torch.count_nonzero(model[1].weight)) == 3
    masks.save(tmp_path / "m.safetensors")
    assert Masks.load(tmp_path / "m.safetensors") == masks


def test_another_models_masks():
    model = net()
    with pytest.raises(MaskMismatchError) as error:
        Masks({"3.wieght": torch.ones(3, 8, dtype=torch.bool)}).check(model)
    assert str(error.value) == (
        "mask of '3.wieght': Sequential has no such parameter; did you mean '3.weight' or '0.weight'?"
    )
    with pytest.raises(MaskMismatchError) as error:
        Masks({"3.weight": torch.ones(8, 3, dtype=torch.bool)}).apply(model)
    assert str(error.value) == (
        "mask of '3.weight': expected shape (3, 8) as in Sequential, got (8, 3); are these the masks of "
        "another model?"
    )


def test_what_is_no_mask():
    with pytest.raises(NothingToDoError) as nothing:
        Masks({})
    assert (
        str(nothing.value) == "masks over no tensor at all would change nothing; name at least one parameter"
    )
    with pytest.raises(MaskMismatchError) as error:
        Masks({"w": torch.ones(2)})
    assert str(error.value) == (
        "mask of 'w': expected a boolean tensor (True = kept), got torch.float32; write `tensor != 0`"
    )
    with pytest.raises(MaskMismatchError, match=r"mask of 'w': expected a boolean tensor .*, got list"):
        Masks({"w": [True, False]})


def test_files_that_are_not_masks(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    with pytest.raises(FormatError, match=r"no such file; write one with masks\.save"):
        Masks.load(path)
    path.write_bytes(b"no masks here")
    with pytest.raises(FormatError, match="expected a safetensors file, got something else"):
        Masks.load(path)
    some(net()).save(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(FormatError, match="found the end: the file was cut short"):
        Masks.load(path)
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(FormatError, match=r"expected a file written by Masks\.save .*, got metadata"):
        Masks.load(path)
    meta = {"secateur-masks": "9"}
    save_file({"w": torch.ones(2, dtype=torch.bool)}, path, metadata=meta)
    with pytest.raises(FormatError, match="expected version 1 of secateur-masks, got '9'; write it again"):
        Masks.load(path)
    meta["secateur-masks"] = "1"
    save_file({"w": torch.ones(2)}, path, metadata=meta)
    with pytest.raises(FormatError, match=r"expected boolean tensors .*, got F32 under 'w'"):
        Masks.load(path)
    save_file({}, path, metadata=meta)
    with pytest.raises(FormatError, match=r"expected boolean tensors .*, got none at all"):
        Masks.load(path)


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    import os

    path = tmp_path / "m.safetensors"
    masks = some(net())
    masks.save(path)
    before = path.read_bytes()

    def broken(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        some(net(), 5).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_public_name():
    assert sc.Masks is Masks

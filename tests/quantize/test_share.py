"""`share` on models: masks, groups, channels, dtypes, ties, the published formula, and what errors say."""

import copy
import math
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from secateur.core.codebook import Codebook
from secateur.core.masks import Masks
from secateur.errors import (
    MaskMismatchError,
    NonFiniteError,
    NothingToDoError,
    OptionError,
    PatternError,
    UnknownNameError,
)
from secateur.quantize.share import ShareOptions


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 10)
    )


def pruned(model: nn.Module, share: float = 0.64) -> Masks:
    masks = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            masks[name] = parameter.detach().abs() > parameter.detach().abs().flatten().quantile(share)
    return Masks(masks)


def distinct(tensor: torch.Tensor) -> int:
    return len(torch.unique(tensor.detach()))


# -- by hand ---------------------------------------------------------------------------------------


def test_a_whole_model_by_hand():
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 1.0, 9.0, 11.0]]))
    shared = sc.share(model, bits=1, masks=None)
    assert shared.model.weight.tolist() == [[0.5, 0.5, 10.0, 10.0]]
    assert shared.codebooks["weight"].indices.tolist() == [[0, 0, 1, 1]]
    assert shared.distortion["weight"] == (0.25 + 0.25 + 1 + 1) / 4
    assert model.weight.tolist() == [[0.0, 1.0, 9.0, 11.0]], "the model itself stays as it is"
    assert (shared.entropy, shared.bits_per_weight, shared.formula_ratio) == (1.0, 1.0, 32.0)


def test_a_masked_zero_costs_no_centroid():
    model = nn.Linear(5, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 1.0, 2.0, 9.0, 11.0]]))
    shared = sc.share(model, bits=1)
    assert shared.model.weight.tolist() == [[0.0, 1.5, 1.5, 10.0, 10.0]]
    book = shared.codebooks["weight"]
    assert book.values.tolist() == [0.0, 1.5, 10.0]
    assert book.reserved
    assert book.zero == 0
    row = shared.summary()[0]
    assert (row.kept, row.values, row.huffman) == (4, 2, 1.0)
    assert shared.formula_ratio == 32 / (4 / 5 * 1.0)


def test_masks_zero_what_they_remove_and_nothing_else():
    model = net()
    masks = pruned(model)
    shared = sc.share(model, bits=3, masks=masks)
    for name, book in shared.codebooks.items():
        weight = shared.model.get_parameter(name)
        assert torch.equal(weight != 0, masks[name])
        assert torch.equal(weight, book.tensor())
        assert distinct(weight) == 9
        removed = weight[~masks[name]]
        assert not torch.signbit(removed).any(), "a removed weight is +0.0"


def test_without_masks_zeros_are_weights_like_any_other():
    model = net()
    pruned(model).apply_(model)
    shared = sc.share(model, bits=2, masks=None)
    assert all(not book.reserved for book in shared.codebooks.values())
    assert all(distinct(shared.model.get_parameter(name)) <= 4 for name in shared.codebooks)


def test_what_is_not_shared_is_untouched():
    model = net()
    shared = sc.share(model, bits=3, options=ShareOptions(skip=["5"]))
    before, after = model.state_dict(), shared.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"0.weight", "3.weight"} == set(shared.codebooks)
    assert list(before) == list(after)


def test_apply_writes_into_another_model_in_place():
    model = net()
    shared = sc.share(model, bits=3)
    other = net(seed=1)
    weight = other[0].weight
    assert shared.apply_(other) is other
    assert other[0].weight is weight
    assert torch.equal(weight, shared.model[0].weight)
    with pytest.raises(MaskMismatchError, match=r"codebook of '0.weight': Linear has no such parameter"):
        shared.apply_(nn.Linear(2, 2))
    before = copy.deepcopy(model)
    odd = nn.Sequential(*copy.deepcopy(model)[:5], nn.Linear(64, 10))
    with pytest.raises(
        MaskMismatchError, match=r"codebook of '5.weight': expected shape \(10, 128\), got \(10, 64\)"
    ):
        shared.apply_(odd)
    assert torch.equal(odd[0].weight, before[0].weight), "all or nothing"


# -- the published formula ---------------------------------------------------------------------------


def test_the_published_formula():
    # 64 % removed, 5 bits, 4.298 bits by Huffman: nonzero share x bits/32 x huffman/bits.
    assert pytest.approx(20.67, abs=0.02) == 1 / (0.36 * 5 / 32 * 4.298 / 5)
    model = net()
    shared = sc.share(model, bits=5, masks=pruned(model))
    nonzero = sum(row.kept for row in shared.summary()) / shared.numel
    assert shared.formula_ratio == pytest.approx(1 / (nonzero * 5 / 32 * shared.bits_per_weight / 5))
    assert "formula, not a file" in shared.table()
    assert all(row.values <= 32 for row in shared.summary())


def test_huffman_is_the_mean_over_kept_weights_with_a_code_per_tensor():
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(8, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 0.0, 1.0, 1.01]]))
        # Counts 4, 2, 1, 1 around 1, 2, 3, 4: 14 bits.
        model[1].weight.copy_(torch.tensor([[1.0, 1.0, 1.0, 1.0001, 2.0, 2.0001, 3.0, 4.0]]))
    shared = sc.share(model, bits=2)
    rows = {row.name: row for row in shared.summary()}
    assert (rows["0.weight"].kept, rows["0.weight"].huffman) == (2, 1.0)
    assert rows["1.weight"].huffman == 14 / 8
    assert shared.bits_per_weight == (2 * 1.0 + 14) / 10
    assert shared.formula_ratio == 32 / (10 / 12 * 1.6)


# -- who shares with whom --------------------------------------------------------------------------


def test_groups_share_one_codebook():
    model = net()
    shared = sc.share(model, bits=3, per=[["0", "3"]])
    one, two, three = (shared.codebooks[f"{i}.weight"] for i in (0, 3, 5))
    assert torch.equal(one.values, two.values)
    assert one.group == two.group == "0+3"
    assert three.group is None
    both = torch.cat([shared.model[0].weight.flatten(), shared.model[3].weight.flatten()])
    assert distinct(both) <= 8


def test_the_whole_model_shares_one_codebook():
    model = net()
    shared = sc.share(model, bits=4, per="model", masks=pruned(model))
    every = torch.cat([shared.model.get_parameter(name).flatten() for name in shared.codebooks])
    assert distinct(every) == 17


@pytest.mark.parametrize("masked", [False, True])
def test_a_codebook_per_channel(masked):
    model = net()
    masks = pruned(model) if masked else None
    shared = sc.share(model, bits=2, per="channel", masks=masks)
    whole = sc.share(model, bits=2, masks=masks)
    for name, book in shared.codebooks.items():
        weight = shared.model.get_parameter(name)
        assert torch.equal(weight, book.tensor())
        assert book.offsets is not None
        for channel in range(weight.shape[0]):
            assert distinct(weight[channel]) <= 4 + masked
            begin, end = book.offsets[channel], book.offsets[channel + 1]
            assert int(book.indices[channel].min()) >= begin
            assert int(book.indices[channel].max()) < end
        assert shared.distortion[name] < whole.distortion[name]
    assert shared.bits_per_weight <= 2, "each channel has a code of its own"


def test_a_channel_without_a_kept_weight():
    model = net()
    masks = pruned(model)
    masks["0.weight"][3] = False
    shared = sc.share(model, bits=2, per="channel", masks=masks)
    assert (shared.model[0].weight[3] == 0).all()


def test_a_transposed_convolution_has_its_channels_on_axis_one():
    model = nn.ConvTranspose2d(6, 4, 3)
    shared = sc.share(model, bits=2, per="channel")
    assert shared.codebooks["weight"].axis == 1
    assert all(distinct(shared.model.weight[:, channel]) <= 4 for channel in range(4))


def test_tied_weights_are_shared_once_and_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(50, 16)
            self.head = nn.Linear(16, 50, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    mask = model.embed.weight.detach().abs() > 0.5
    shared = sc.share(model, bits=3, masks={"head.weight": mask})
    assert list(shared.codebooks) == ["embed.weight"]
    assert shared.model.head.weight is shared.model.embed.weight
    assert torch.equal(shared.model.head.weight != 0, mask)


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["kmeans", "uniform"])
def test_every_dtype(dtype, method):
    model = net().to(dtype)
    masks = pruned(net())
    shared = sc.share(model, bits=4, method=method, masks=masks)
    for name, book in shared.codebooks.items():
        weight = shared.model.get_parameter(name)
        assert weight.dtype == book.values.dtype == dtype
        assert torch.equal(weight, book.tensor())
        kept = weight[masks[name]]
        assert distinct(kept) <= 16
        assert (weight[~masks[name]] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_weight_goes_to_its_nearest_value(dtype):
    model = net().to(dtype)
    shared = sc.share(model, bits=4)
    for name, book in shared.codebooks.items():
        before = model.get_parameter(name).detach().double().reshape(-1, 1)
        away = (before - book.values.double()).abs()
        chosen = away.gather(1, book.indices.long().reshape(-1, 1))[:, 0]
        assert torch.equal(chosen, away.min(dim=1).values)


def test_a_huge_tensor_in_seconds():
    model = nn.Linear(2000, 1500, bias=False)
    shared = sc.share(model, bits=5, start="density")
    assert distinct(shared.model.weight) == 32
    assert 0 < shared.distortion["weight"] < float(model.weight.detach().var()) / 500


def test_a_fully_masked_tensor_is_zero():
    model = net()
    masks = Masks({"0.weight": torch.zeros_like(model[0].weight, dtype=torch.bool)})
    shared = sc.share(model, bits=3, masks=masks)
    assert (shared.model[0].weight == 0).all()
    assert shared.codebooks["0.weight"].values.tolist() == [0.0]
    assert math.isfinite(shared.bits_per_weight)


def test_a_constant_tensor_beside_others():
    model = net()
    nn.init.constant_(model[0].weight, 0.25)
    shared = sc.share(model, bits=3)
    assert shared.codebooks["0.weight"].values.tolist() == [0.25]
    assert shared.distortion["0.weight"] == 0


def test_the_same_seed_gives_the_same_bytes():
    one, two, other = (
        sc.share(net(), bits=4, start="kmeans++", options=ShareOptions(seed=seed)) for seed in (3, 3, 4)
    )
    for name in one.codebooks:
        assert one.codebooks[name].values.numpy().tobytes() == two.codebooks[name].values.numpy().tobytes()
        assert torch.equal(one.codebooks[name].indices, two.codebooks[name].indices)
    assert any(not torch.equal(one.codebooks[n].values, other.codebooks[n].values) for n in one.codebooks)


def test_uniform_codebooks_speak_whole_numbers():
    model = net()
    masks = pruned(model)
    shared = sc.share(model, method="uniform", step=0.01, rate=0.05, masks=masks)
    for name, book in shared.codebooks.items():
        assert book.step == float(np.float32(0.01))
        assert torch.equal((book.integers.double() * book.step).float(), shared.model.get_parameter(name))
        assert (book.integers[~masks[name]] == 0).all()


def test_exact_reads_a_shared_model_back():
    model = net()
    shared = sc.share(model, bits=3, masks=pruned(model))
    again = sc.share(shared.model, method="exact")
    for name, book in shared.codebooks.items():
        assert torch.equal(again.codebooks[name].values, book.values)
        assert torch.equal(again.codebooks[name].indices, book.indices)
    with pytest.raises(OptionError, match=r"5.weight: 1,280 distinct weights, expected at most 100"):
        sc.share(model, method=sc.quantize.Exact(most=100), options=ShareOptions(only="5"))


def test_values_and_names_are_the_same_thing():
    model = net()
    value = sc.share(model, method=sc.quantize.Kmeans(bits=3, start="linear"))
    word = sc.share(model, bits=3, start="linear")
    assert all(torch.equal(value.codebooks[n].values, word.codebooks[n].values) for n in word.codebooks)


# -- what errors say -------------------------------------------------------------------------------


def test_nan_is_named():
    model = net()
    with torch.no_grad():
        model[3].weight[0, 0, 0, 0] = math.nan
    with pytest.raises(
        NonFiniteError, match=r"weights of '3.weight': 1 of 576 are NaN or infinite; repair or retrain"
    ):
        sc.share(model)


def test_changing_nothing_is_an_error():
    model = net()
    shared = sc.share(model, bits=3)
    with pytest.raises(
        NothingToDoError, match=r"would change no weight of Sequential: .*\(at most 8\).*fewer bits"
    ):
        sc.share(shared.model, bits=3)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"method": "kmean"}, UnknownNameError, "unknown method of sharing 'kmean': did you mean 'kmeans'"),
        ({"start": "optimum"}, UnknownNameError, "did you mean 'optimal'"),
        ({"bits": 12}, OptionError, "bits of K-means: expected a whole number from 1 to 8, got 12"),
        (
            {"method": "uniform", "start": "linear"},
            OptionError,
            r"method 'uniform' does not take .*\['start'\]",
        ),
        (
            {"method": sc.quantize.Kmeans(), "bits": 3},
            OptionError,
            r"expected the options \['bits'\] inside the value",
        ),
        ({"masks": "zero"}, OptionError, "masks: expected a Masks, 'zeros' or None, got 'zero'"),
        ({"masks": {"nowhere": torch.ones(1, dtype=torch.bool)}}, MaskMismatchError, "mask of 'nowhere'"),
        ({"per": "filter"}, OptionError, "per: expected 'tensor', 'channel', 'model' or a list of groups"),
        ({"per": ["9"]}, PatternError, "per: pattern '9' matches no tensor that is shared"),
        (
            {"per": ["0", ["type:Conv2d"]]},
            OptionError,
            "per: 0.weight is in the groups '0' and 'type:Conv2d'",
        ),
        ({"per": "channel", "method": "uniform"}, OptionError, "per='channel' is for K-means"),
        ({"options": ShareOptions(only="convolution")}, PatternError, "convolution"),
        ({"only": "5"}, OptionError, r"share: only belongs in options=ShareOptions\(\.\.\.\), got it as"),
        ({"only": "5", "seed": 1}, OptionError, "share: only, seed belong in options="),
    ],
)
def test_every_error_says_what_to_do(options, error, text):
    with pytest.raises(error, match=text):
        sc.share(net(), **options)


def test_tensors_that_hold_no_real_numbers():
    with pytest.raises(OptionError, match=r"weight: expected real weights, got a tensor on the meta device"):
        sc.share(nn.Linear(2, 2, device="meta"))
    model = nn.Module()
    model.codes = nn.Parameter(torch.arange(4), requires_grad=False)
    with pytest.raises(OptionError, match=r"codes: expected floating-point weights, got torch.int64"):
        sc.share(model, options=ShareOptions(parameters="codes"))
    with pytest.raises(
        OptionError, match=r"bias: per='channel' needs a tensor with an output axis and another"
    ):
        sc.share(nn.Linear(4, 4), per="channel", options=ShareOptions(parameters="bias"))
    mixed = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).half())
    with pytest.raises(
        OptionError, match=r"group 'model': expected tensors of one dtype, got torch.float16, torch.float32"
    ):
        sc.share(mixed, bits=1, per="model")


def test_codebooks_guard_their_invariants():
    values, indices = torch.tensor([0.0, 1.0]), torch.tensor([0, 1, 1])
    for options, text in [
        ({"values": torch.zeros(0)}, "expected a one-dimensional, non-empty tensor of values"),
        ({"values": torch.tensor([math.inf])}, "codebook of 'w': 1 of 1 are NaN or infinite"),
        ({"indices": torch.tensor([2])}, r"expected indices in 0..1, got 2..2"),
        ({"indices": torch.tensor([0.5])}, "expected integer indices"),
        ({"step": -1.0}, "expected a finite step above 0"),
        ({"axis": 0}, "give `axis` and `offsets` together"),
    ]:
        with pytest.raises((OptionError, NonFiniteError), match=text):
            Codebook(**{"name": "w", "values": values, "indices": indices, **options})
    with pytest.raises(OptionError, match="its values are not uniform steps; share with method='uniform'"):
        _ = Codebook("w", values, indices).integers


def test_a_codebook_of_two_tensors_has_the_values_of_both():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0], [1.0, 2.25]]))
        model[1].weight.copy_(torch.tensor([[8.0, 9.0], [9.0, 8.0]]))
    shared = sc.share(model, bits=2, per="model")
    assert shared.model[0].weight.tolist() == [[1.0, 2.125], [1.0, 2.125]]
    assert torch.equal(shared.model[1].weight, model[1].weight)
    assert shared.codebooks["0.weight"].group == shared.codebooks["1.weight"].group == "model"


def test_bits_of_a_single_weight_that_is_kept():
    layer = nn.Linear(2, 2, bias=False)
    mask = torch.tensor([[True, False], [False, False]])
    (row,) = sc.share(layer, 2, sc.Masks({"weight": mask})).summary()
    assert (row.kept, row.huffman, row.entropy) == (1, 1.0, 0.0)


def test_a_tensor_that_keeps_nothing_is_not_distorted_by_training():
    layer = nn.Linear(2, 2, bias=False)
    shared = sc.share(layer, bits=1)
    masks = {"weight": torch.zeros(2, 2, dtype=torch.bool)}
    emptied = replace(shared, masks=masks)
    training = SimpleNamespace(model=layer, codebooks=lambda: shared.codebooks, rate=0.0)
    assert dict(emptied.trained(training).distortion) == {"weight": 0.0}


@pytest.mark.parametrize("again", [copy.deepcopy, lambda shared: pickle.loads(pickle.dumps(shared))])
def test_a_result_is_copied_and_pickled(again):
    shared = sc.share(net(), bits=2, masks=pruned(net()))
    other = again(shared)
    assert str(other) == str(shared)
    assert list(other.codebooks) == list(shared.codebooks)
    for name, book in shared.codebooks.items():
        assert torch.equal(other.codebooks[name].tensor(), book.tensor())
        assert torch.equal(other.masks[name], shared.masks[name])
    with pytest.raises(TypeError):
        other.codebooks["0.weight"] = None

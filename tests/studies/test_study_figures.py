"""Figures of the published studies that follow from their models alone: they must come out to the last digit."""

import pytest
import torch

import secateur as sc
from secateur import models
from secateur.budget import Percentile, PerLayer
from secateur.metrics.macs import macs
from secateur.quantize.share import share

KERNEL = (0.3, 0.6, 0.3, 0.5, 0.5, 0.7, 0.6, 0.6, 0.7, 0.8, 0.9, 0.9)
FILTER = (0.4, 0.3, 0.3, 0.3, 0.2, 0.4, 0.2, 0.4, 0.6, 0.5, 0.6, 0.9)
FINE = (0.5, 0.8, 0.7, 0.7, 0.7, 0.8, 0.7, 0.8, 0.8, 0.8, 0.9, 0.9)


def parameters(name: str) -> int:
    return sum(parameter.numel() for parameter in models.build(name).parameters())


def test_parameters_of_the_models_of_studies_3_to_5() -> None:
    assert parameters("fc") == 119_910
    assert parameters("vgg16-lottery") == 14_719_818
    assert parameters("vgg12") == 8_391_882
    assert parameters("resnet20") == 269_722


def test_the_dense_vgg_counts_as_published_and_so_does_its_sum_over_layers() -> None:
    rows = macs(models.build("vgg16-lottery"), torch.zeros(1, 3, 32, 32), bias=True)
    assert rows["macs"].value == 313_478_154 == sum(rows["macs"].per_layer.values())


@pytest.mark.parametrize(("a", "published"), [(0.5, 0.6423), (1, 0.4571), (2, 0.1845)])
def test_synflow_in_one_round_leaves_the_published_share_of_the_flops_of_vgg16(
    a: float, published: float
) -> None:
    torch.manual_seed(0)
    model, example = models.build("vgg16-lottery"), torch.zeros(1, 3, 32, 32)
    options = sc.PruneOptions(allow_collapse=True)
    sc.prune(
        model, "synflow", "element", sc.budget.Overall(1 - 10**-a), example=example, options=options
    ).apply_(model)
    rows = macs(model, example, bias=True)
    assert rows["macs_nonzero"].value / rows["macs"].value == pytest.approx(published, abs=0.001)


@pytest.fixture(scope="module")
def vgg12():
    torch.manual_seed(0)
    return models.build("vgg12")


def remaining(model, masks) -> float:
    total = sum(parameter.numel() for parameter in model.parameters())
    return 100 * (1 - (masks.numel - masks.kept) / total)


def table(sparsities: tuple[float, ...]) -> dict[str, float]:
    return {f"features.conv{index}": value for index, value in enumerate(sparsities)}


@pytest.mark.parametrize(
    ("granularity", "sparsities", "digits", "published"),
    [("kernel", KERNEL, 4, 23.9542), ("filter", FILTER, 2, 41.49), ("element", FINE, 1, 20.5)],
)
def test_what_remains_of_study_4_with_its_sparsities(
    vgg12, granularity, sparsities, digits, published
) -> None:
    # It keeps what is greater than the layer's percentile: that is what its counts say.
    masks = sc.prune(
        vgg12,
        "l2",
        granularity,
        Percentile(table(sparsities), equal="go"),
        options=sc.PruneOptions(only="features"),
    )
    assert round(remaining(vgg12, masks), digits) == published


def test_the_exact_count_differs_from_study_4_by_less_than_a_kernel_a_layer(vgg12) -> None:
    masks = sc.prune(vgg12, "l2", "kernel", PerLayer(table(KERNEL)), options=sc.PruneOptions(only="features"))
    assert round(remaining(vgg12, masks), 4) == 23.9539
    theirs = sc.prune(
        vgg12, "l2", "kernel", Percentile(table(KERNEL), equal="go"), options=sc.PruneOptions(only="features")
    )
    for row, other in zip(masks.summary(), theirs.summary(), strict=True):
        assert abs(row.kept - other.kept) <= 9


def test_the_formula_of_study_5_with_its_own_numbers() -> None:
    def formula(nonzero: float, huffman: float, bits: int = 5) -> float:
        return 1 / (nonzero * bits / 32 * huffman / bits)

    # From a sparsity of 0.64 and 4.298 bits it is 20.68; the published 20.67 is what they may have been rounded from.
    assert round(formula(1 - 0.64, 4.298), 2) == 20.68
    assert formula(1 - 0.6395, 4.2985) < 20.67 < formula(1 - 0.6405, 4.2975)


def test_formula_ratio_is_that_formula() -> None:
    torch.manual_seed(0)
    model = models.build("resnet20")
    masks = sc.prune(model, budget=0.64)
    masks.apply_(model)
    shared = share(model, 5, masks, start="linear")
    nonzero = masks.kept / masks.numel
    bits = shared.bits_per_weight
    assert 3 < bits <= 5
    assert shared.formula_ratio == pytest.approx(1 / (nonzero * 5 / 32 * bits / 5), rel=1e-12)

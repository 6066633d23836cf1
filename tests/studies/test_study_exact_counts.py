"""What the studies of the auto-encoder, the simple network and ResNet-101 must count exactly."""

from __future__ import annotations

import io

import pytest
import torch

import secateur as sc
from secateur import models, studies
from secateur.metrics.macs import macs
from secateur.studies.published import parse

EXAMPLE = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_accumulates(model: torch.nn.Module) -> int:
    return macs(model, EXAMPLE)["macs"].value


@pytest.mark.parametrize(
    ("name", "count"),
    [("vae", 652_824), ("cnn", 300_426), ("resnet18", 11_181_642), ("resnet101", 42_520_650)],
)
def test_parameters_of_the_models_of_studies_1_and_2(name: str, count: int) -> None:
    assert parameters(models.build(name)) == count


@pytest.mark.parametrize(
    ("sparsity", "code", "count"), [(0.2, 16, 517_120), (0.5, 10, 319_600), (0.8, 4, 126_400)]
)
@pytest.mark.parametrize("criterion", ["l1", "l2", "fpgm"])
def test_a_coupled_choice_cuts_mean_and_log_variance_together(
    criterion: str, sparsity: float, code: int, count: int
) -> None:
    torch.manual_seed(0)
    model = models.build("vae").eval()
    masks = sc.prune(model, criterion, "channel", sparsity, skip=["fc4"], example=EXAMPLE)
    small = sc.shrink(model, masks, EXAMPLE, coupling="coupled").model
    assert (small.fc21.out_features, small.fc22.out_features, small.fc3.in_features) == (code, code, code)
    assert multiply_accumulates(small) == count


def choosing_apart(sparsity: float) -> torch.nn.Module:
    """An auto-encoder whose mean and log-variance choose units that agree as little as they can."""
    torch.manual_seed(0)
    model = models.build("vae").eval()
    kept = round(20 * (1 - sparsity))
    with torch.no_grad():
        for layer, first in ((model.fc21, 0), (model.fc22, 20 - kept)):
            layer.weight.mul_(0.01)
            layer.weight[first : first + kept] += 1.0
    return model


@pytest.mark.parametrize(("sparsity", "code", "count"), [(0.2, 20, 520_960), (0.8, 8, 127_360)])
@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_the_union_of_independent_choices_costs_what_was_published(
    criterion: str, sparsity: float, code: int, count: int
) -> None:
    model = choosing_apart(sparsity)
    assert multiply_accumulates(model) == 651_200
    masks = sc.prune(model, criterion, "filter", sparsity, skip=["fc4"])
    small = sc.shrink(model, masks, EXAMPLE, coupling="union").model
    assert (small.fc1.out_features, small.fc21.out_features) == (round(400 * (1 - sparsity)), code)
    assert multiply_accumulates(small) == count


@pytest.mark.parametrize("criterion", ["l1", "l2", "fpgm"])
def test_a_coupled_choice_with_a_floor_of_eight_latent_units_costs_what_was_published(criterion: str) -> None:
    torch.manual_seed(0)
    model = models.build("vae").eval()
    options = sc.PruneOptions(at_least={"fc21": 8})
    masks = sc.prune(model, criterion, "channel", 0.8, skip=["fc4"], example=EXAMPLE, options=options)
    small = sc.shrink(model, masks, EXAMPLE).model
    assert (small.fc1.out_features, small.fc21.out_features, small.fc22.out_features) == (80, 8, 8)
    assert multiply_accumulates(small) == 127_360


@pytest.mark.parametrize(("code", "count"), [(17, 323_800), (18, 324_400)])
def test_no_width_gives_the_published_count_at_a_half(code: int, count: int) -> None:
    assert multiply_accumulates(models.build("vae", hidden=200, latent=code)) == count
    # 784-200-x has 313,600 + 600 x, and 329,152 is none of them.
    assert (329_152 - 313_600) % 600


def test_bytes_are_those_of_the_saved_file() -> None:
    model = models.build("vae")
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    size = sc.measure(model, what=["size"])["size"].value
    assert size == len(stream.getvalue())
    # The published 2,614,151 bytes are 4 bytes a weight and what its torch wrote around them, as ours are.
    assert 0 < size - 4 * 652_824 < 5_000
    assert 0 < 2_614_151 - 4 * 652_824 < 5_000


@pytest.mark.parametrize(("widths", "published"), [((200, 17), 1_290_887), ((80, 8), 513_223)])
def test_figures_smaller_than_the_weights_alone_are_marked(widths: tuple[int, int], published: int) -> None:
    assert 4 * parameters(models.build("vae", hidden=widths[0], latent=widths[1])) > published
    marked = [one for one in parse(studies.text_of("vae", published=True)) if one.value == published]
    assert marked
    assert all(one.inconsistent for one in marked)


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_sixty_per_cent_of_the_simple_network_leaves_6_13_and_26(criterion: str) -> None:
    torch.manual_seed(0)
    model = models.build("cnn").eval()
    masks = sc.prune(model, criterion, "channel", 0.6, skip=["fc2"], example=EXAMPLE)
    small = sc.shrink(model, masks, EXAMPLE).model
    assert (small.conv1.out_channels, small.conv2.out_channels, small.fc1.out_features) == (6, 13, 26)
    figures = [one for one in parse(studies.text_of("cnn", published=True)) if one.name == "widths"]
    assert [(one.value, one.follows) for one in figures] == [(3, 6), (4, 13), (8, 26)]
    assert all(one.inconsistent for one in figures)


def test_without_the_linear_layer_only_the_convolutions_shrink() -> None:
    torch.manual_seed(0)
    model = models.build("cnn").eval()
    masks = sc.prune(model, "l1", "channel", 0.6, skip=["fc1", "fc2"], example=EXAMPLE)
    small = sc.shrink(model, masks, EXAMPLE).model
    assert (small.conv1.out_channels, small.conv2.out_channels, small.fc1.out_features) == (6, 13, 64)

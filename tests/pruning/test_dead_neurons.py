"""zero_dead_neurons: neurons that nobody reads lose their weights, and nothing else changes."""

import pytest
import torch
from torch import nn

from secateur.errors import DataError, ProofError
from secateur.pruning.dead_neurons import zero_dead_neurons


def test_frozen_weights_modes_and_gradients_are_as_they_were_and_a_failure_restores_the_weights():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 3)).train()
    model[2].eval()
    model[0].bias.requires_grad_(False)
    model[3].weight.grad = torch.ones(3, 5)
    with torch.no_grad():
        model[0].bias.fill_(9.0)  # whatever the weights are, no other neuron is dead
        model[0].weight[3] = 0.0
        model[0].bias[3] = -1.0

    def state():
        return (
            [module.training for module in model.modules()],
            [parameter.requires_grad for parameter in model.parameters()],
            [parameter.grad is None for parameter in model.parameters()],
        )

    before, weights = state(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) > 4:  # the outputs are known; the neurons are zero by now
            assert not model[0].bias[3]
            raise ValueError("on purpose")

    hook = model[3].register_forward_hook(fail)
    with pytest.raises(ValueError, match="on purpose"):
        zero_dead_neurons(model, images())
    hook.remove()
    assert state() == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    masks = zero_dead_neurons(model, images())
    assert masks["0.bias"].tolist() == [True, True, True, False, True]
    assert not model[0].bias[3]
    assert state() == before


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def images() -> list[torch.Tensor]:
    return list(torch.rand(64, 6, generator=torch.Generator().manual_seed(1)).split(16))


def test_a_neuron_with_every_output_cut_loses_its_weights_and_its_bias():
    model = net()
    with torch.no_grad():
        model[0].bias.fill_(2.0)  # active, all of them
        model[2].weight[:, 3] = 0.0
    before = model(torch.cat(images()))
    masks = zero_dead_neurons(model, images())
    assert not model[0].weight[3].any()
    assert model[0].bias[3] == 0
    assert bool((model[0].weight[[0, 1, 2, 4]] != 0).any(1).all())
    assert torch.equal(model(torch.cat(images())), before)
    assert masks["0.weight"].any(1).tolist() == [True, True, True, False, True]


def test_a_neuron_that_is_never_active_goes_but_what_keeps_a_neuron_quiet_at_times_stays():
    model = net()
    with torch.no_grad():
        model[0].weight[1] = -model[0].weight[1].abs()
        model[0].bias[1] = -1.0  # never active on inputs of 0 and more
        # Neuron 2 is active without input 0 and quiet with it: the gradient of this weight is zero for every image,
        # but without the weight the neuron would be active for all.
        model[0].weight[2] = torch.tensor([-9.0, 1.0, 0.0, 0.0, 0.0, 0.0])
        model[0].bias[2] = 0.5
    batches = [batch.clone() for batch in images()]
    for batch in batches:
        batch[:, 0] = (batch[:, 0] > 0.5).float()
    before = model(torch.cat(batches))
    zero_dead_neurons(model, batches)
    assert not model[0].weight[1].any()
    assert model[0].bias[1] == 0
    assert model[0].weight[2, 0] == -9.0
    assert torch.allclose(model(torch.cat(batches)), before, atol=1e-6)


def test_a_constant_that_is_not_zero_is_found_out_and_the_model_left_alone():
    model = nn.Sequential(nn.Linear(6, 5), nn.Hardtanh(), nn.Linear(5, 3))
    with torch.no_grad():
        model[0].bias[0] = 50.0  # always 1 after the activation: its slope is zero, its answer is not
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ProofError, match="constant there but not zero; the model is unchanged"):
        zero_dead_neurons(model, images())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_filter_goes_with_its_whole_kernel():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)).train()
    with torch.no_grad():
        model[3].weight[:, 16:32] = 0.0
    zero_dead_neurons(model, [torch.randn(8, 2, 6, 6)])
    assert [bool(kernel.any()) for kernel in model[0].weight != 0] == [True, False, True, True]
    assert model.training


def test_no_images_is_an_error():
    with pytest.raises(DataError, match="at least one batch"):
        zero_dead_neurons(net(), [])


def test_a_layer_whose_constant_reaches_the_output_is_kept_and_the_others_are_zeroed():
    """A filter that a ReLU silences after its batch norm: without the filter, the norm makes another constant of it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 16, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    ).eval()
    with torch.no_grad():
        model[1].running_mean[1], model[1].bias[1] = 90.0, 20.0  # silent; of 0 the norm would make -70
        model[1].running_mean[2], model[1].weight[2], model[1].bias[2] = -90.0, -1.0, 20.0
        model[0].bias[2], model[1].running_mean[2] = 99.0, 1.0  # silent; of 0 it would make 21
        model[6].weight[:, 3] = 0.0
    inputs = [torch.randn(8, 2, 6, 6)]
    before, filters = model(inputs[0]), model[0].weight.clone()
    masks = zero_dead_neurons(model, inputs)
    assert torch.equal(model[0].weight, filters)
    assert masks["0.weight"].all()
    assert not model[4].weight[3].any()
    assert torch.allclose(model(inputs[0]), before, atol=1e-5)

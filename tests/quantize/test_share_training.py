"""Trained codebooks: summed gradients, any optimizer, masks that hold, and plain modules afterwards."""

import copy
import os

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.core.masks import Masks
from secateur.errors import MaskMismatchError, NonFiniteError, NothingToDoError, OptionError
from secateur.quantize.share import ShareOptions


def line(*weights: float) -> nn.Linear:
    model = nn.Linear(len(weights), 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weights]))
    return model


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 4))


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(64, 12, generator=generator)
    return inputs, (inputs[:, :4] * 2).argmax(dim=1)


def loss_of(model: nn.Module) -> torch.Tensor:
    inputs, targets = batch()
    return nn.functional.cross_entropy(model(inputs), targets)


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 20) -> float:
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def distinct(tensor: torch.Tensor) -> int:
    return len(torch.unique(tensor.detach()))


def test_a_centroid_has_the_sum_of_its_weights_gradients():
    shared = sc.share(line(0.0, 1.0, 2.0, 9.0, 11.0), bits=1)  # 0 | 1.5 1.5 | 10 10
    with shared.train() as training:
        # The gradient of each weight is its input: 100 (masked), 1, 2, 3, 4.
        shared.model(torch.tensor([[100.0, 1.0, 2.0, 3.0, 4.0]])).sum().backward()
        assert training.centroids["weight"].grad.tolist() == [3.0, 7.0]
        torch.optim.SGD(training.parameters(), lr=0.5).step()
    assert shared.model.weight.tolist() == [[0.0, 0.0, 0.0, 6.5, 6.5]]


def test_the_gradient_is_that_of_autograd_on_plain_indexing():
    shared = sc.share(net(), bits=3)
    book = shared.codebooks["0.weight"]
    values = book.values.clone().requires_grad_()
    plain = copy.deepcopy(shared.model)
    parameters = {**dict(plain.named_parameters()), "0.weight": values[book.indices.long()]}
    inputs, targets = batch()
    outputs = torch.func.functional_call(plain, parameters, (inputs,))
    nn.functional.cross_entropy(outputs, targets).backward()
    with shared.train() as training:
        loss_of(shared.model).backward()
        torch.testing.assert_close(training.centroids["0.weight"].grad, values.grad)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=1e-2, nesterov=True),
        lambda p: torch.optim.Adam(p, lr=0.02),
        lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
    ],
)
def test_any_optimizer_lowers_the_loss_and_the_masks_hold(make):
    model = net()
    mask = model[0].weight.detach().abs() > model[0].weight.detach().abs().median()
    shared = sc.share(model, bits=2, masks=Masks({"0.weight": mask}))
    shared.model.train()
    before = float(loss_of(shared.model).detach())
    names, kinds = list(shared.model.state_dict()), [type(module) for module in shared.model.modules()]
    parameters = list(shared.model.parameters())
    with shared.train():
        fit(shared.model, make(shared.model.parameters()))
        assert torch.equal(shared.model[0].weight != 0, mask)
    assert list(shared.model.state_dict()) == names
    assert [type(module) for module in shared.model.modules()] == kinds
    assert all(one is two for one, two in zip(shared.model.parameters(), parameters, strict=True))
    assert float(loss_of(shared.model).detach()) < before * 0.9
    assert torch.equal(shared.model[0].weight != 0, mask)
    assert distinct(shared.model[0].weight) <= 5
    assert distinct(shared.model[3].weight) <= 4


def test_leaving_gives_the_trained_codebooks():
    shared = sc.share(net(), bits=2)
    with shared.train() as training:
        fit(shared.model, torch.optim.Adam(shared.model.parameters(), lr=0.05))
    result = shared.trained(training)
    for name, book in result.codebooks.items():
        assert torch.equal(book.tensor(), shared.model.get_parameter(name))
        assert (book.values[1:] >= book.values[:-1]).all()
        assert result.distortion[name] > 0
        assert not torch.equal(book.values, shared.codebooks[name].values)
    assert result.model is shared.model


def test_the_outputs_do_not_jump_at_the_borders_of_the_block():
    shared = sc.share(net(), bits=2, masks=Masks.of_zeros(net()))
    shared.model.eval()
    inputs = batch()[0]
    before = shared.model(inputs)
    with shared.train():
        assert torch.equal(shared.model(inputs), before)
    assert torch.equal(shared.model(inputs), before)


def test_an_optimizer_made_before_the_block():
    shared = sc.share(net(), bits=2)
    optimizer = torch.optim.SGD(shared.model.parameters(), lr=0.02, momentum=0.9)
    groups = [list(group["params"]) for group in optimizer.param_groups]
    with shared.train(optimizer=optimizer):
        shapes = [tuple(p.shape) for p in optimizer.param_groups[0]["params"]]
        assert (4,) in shapes
        assert (24, 12) not in shapes
        first = float(loss_of(shared.model).detach())
        assert fit(shared.model, optimizer) < first * 0.95
    assert [list(map(id, group["params"])) for group in optimizer.param_groups] == [
        list(map(id, g)) for g in groups
    ]
    fit(shared.model, optimizer, 1)  # it still works on the plain model
    other = torch.optim.SGD(net().parameters(), lr=0.1)
    with (
        pytest.raises(OptionError, match="the optimizer holds none of the shared parameters"),
        shared.train(optimizer=other),
    ):
        pass
    assert next(iter(shared.model.state_dict())) == "0.weight"
    assert type(shared.model[0]) is nn.Linear


def test_tied_layers_and_groups_train_one_set_of_centroids():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 8)
            self.inner = nn.Linear(8, 8)
            self.head = nn.Linear(8, 20, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.inner(self.embed(x)))

    shared = sc.share(Tied(), bits=2, per="model")
    model = shared.model
    with shared.train() as training:
        assert list(training.centroids) == ["model"]
        assert sum(p.numel() for p in model.parameters()) == 4 + 8
        model(torch.arange(20)).square().mean().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert model.head.weight is model.embed.weight
    assert distinct(torch.cat([model.embed.weight.flatten(), model.inner.weight.flatten()])) <= 4


def test_attention_reads_its_projection_without_calling_it():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    shared = sc.share(model, bits=3, options=ShareOptions(parameters="self_attn.in_proj_weight"))
    assert set(shared.codebooks) >= {"self_attn.in_proj_weight", "self_attn.out_proj.weight"}
    with shared.train() as training:
        shared.model(torch.randn(2, 5, 16)).square().mean().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in training.parameters())
        torch.optim.Adam(training.parameters(), lr=0.01).step()
    assert distinct(shared.model.self_attn.in_proj_weight) <= 8


# -- assignments made anew -------------------------------------------------------------------------


def test_assignments_are_made_anew_after_every_n_steps():
    model = line(0.0, 1.0, 9.0, 11.0)
    shared = sc.share(model, bits=1, masks=None)  # 0.5 0.5 | 10 10
    with shared.train(model, remake_every=2) as training:
        centroids = training.centroids["weight"]
        assert centroids.tolist() == [0.5, 10.0]
        with torch.no_grad():
            centroids += torch.tensor([2.0, 0.0])  # one step: 2.5 | 10, cut 6.25
        assert model(torch.ones(1, 4)).item() == pytest.approx(2.5 * 2 + 10 * 2)
        with torch.no_grad():
            centroids += torch.tensor([0.0, 10.0])  # the second: 2.5 | 20, cut 11.25: all go to the lower one
        assert model(torch.ones(1, 4)).item() == pytest.approx(2.5 * 4)
        assert model.weight.tolist() == [[2.5] * 4]
    assert model.weight.tolist() == [[2.5] * 4]
    assert list(model.state_dict()) == ["weight"]


def test_latent_weights_are_trained_straight_through():
    model = net()
    shared = sc.share(model, bits=2)
    start = model[0].weight.detach().clone()
    latent = model[0].weight
    before = None
    with shared.train(model, remake_every=5) as training:
        before = float(loss_of(model).detach())
        indices = training.codebooks()["0.weight"].indices.clone()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        fit(model, optimizer, 40)
        assert not torch.equal(latent, start)
        assert not torch.equal(training.codebooks()["0.weight"].indices, indices)
    assert model[0].weight is latent
    assert distinct(latent) <= 4
    assert float(loss_of(model).detach()) < before * 0.8


def test_gradient_accumulation_counts_as_one_step():
    model = net()
    shared = sc.share(model, bits=2)
    with shared.train(model, remake_every=1) as training:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(3):
            for _ in range(4):
                loss_of(model).backward()
            optimizer.step()
            optimizer.zero_grad()
        loss_of(model)
        assert training._steps == 3


def test_frozen_assignments_are_not_remade():
    shared = sc.share(net(), bits=2)
    with (
        shared.train() as training,
        pytest.raises(OptionError, match="assignments of this training are frozen"),
    ):
        training.remake()
    with pytest.raises(OptionError, match="remake_every: expected at least 1 step, got 0"):
        shared.train(remake_every=0)


# -- loops of every kind ---------------------------------------------------------------------------


def test_autocast_and_a_gradient_scaler():
    shared = sc.share(net(), bits=2)
    with shared.train():
        optimizer = torch.optim.SGD(shared.model.parameters(), lr=0.3)
        scaler = torch.amp.GradScaler("cpu")
        first = None
        for _ in range(20):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(shared.model)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(shared.model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            first = float(loss.detach()) if first is None else first
        assert float(loss.detach()) < first * 0.9
    assert distinct(shared.model[0].weight) <= 4


def test_half_precision_sums_in_float32():
    model = nn.Linear(4096, 1, bias=False).bfloat16()
    with torch.no_grad():
        model.weight.copy_(torch.linspace(-1, 1, 4096)[None])
    shared = sc.share(model, bits=1)
    with shared.train() as training:
        shared.model(torch.ones(1, 4096, dtype=torch.bfloat16)).sum().backward()
        # 2,048 ones each; summed in bfloat16 they would stop at 256.
        assert training.centroids["weight"].grad.tolist() == [2048.0, 2048.0]


def test_distributed_data_parallel_inside_the_block(tmp_path):
    if not torch.distributed.is_available() or torch.distributed.is_initialized():
        pytest.skip("needs a process group of its own")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        shared = sc.share(net(), bits=2)
        with shared.train():
            wrapped = nn.parallel.DistributedDataParallel(shared.model)
            first = float(loss_of(wrapped).detach())
            assert fit(wrapped, torch.optim.Adam(wrapped.parameters(), lr=0.05)) < first
        before = nn.parallel.DistributedDataParallel(net())
        with pytest.raises(MaskMismatchError, match="wrap it inside the block, not before"):
            shared.train(before)
    finally:
        torch.distributed.destroy_process_group()
    assert distinct(shared.model[0].weight) <= 4


def test_two_models_of_one_class_do_not_see_each_other():
    shared = sc.share(net(), bits=2)
    other = net()
    with shared.train():
        assert type(other[0]) is nn.Linear
        assert other[0].weight.shape == (24, 12)
        assert isinstance(shared.model[0], nn.Linear)
        assert type(shared.model[0]).__name__ == "Linear"


# -- what goes wrong -------------------------------------------------------------------------------


def test_an_exception_in_the_block_leaves_a_plain_model():
    shared = sc.share(net(), bits=2)
    with pytest.raises(KeyboardInterrupt), shared.train():
        raise KeyboardInterrupt
    assert type(shared.model[0]) is nn.Linear
    assert list(shared.model.state_dict())[:2] == ["0.weight", "0.bias"]
    assert distinct(shared.model[0].weight) <= 4


def test_divergence_is_named_and_the_model_is_whole():
    shared = sc.share(net(), bits=2)
    before = shared.model[0].weight.detach().clone()
    with (
        pytest.raises(
            NonFiniteError, match=r"trained centroids of '0.weight': 4 of 4 .*lower the learning rate"
        ),
        shared.train() as training,
        torch.no_grad(),
    ):
        training.centroids["0.weight"].fill_(float("nan"))
    assert torch.equal(shared.model[0].weight, before)
    assert type(shared.model[0]) is nn.Linear


def test_what_cannot_be_trained_says_so():
    model = net()
    with pytest.raises(
        OptionError, match=r"0.weight: uniform steps cannot be trained; share with method='kmeans'"
    ):
        sc.share(model, method="uniform", bits=4).train()
    with pytest.raises(OptionError, match=r"0.weight: a codebook per channel cannot be trained"):
        sc.share(model, bits=1, per="channel").train()
    shared = sc.share(model, bits=2)
    with pytest.raises(MaskMismatchError, match=r"codebook of '0.weight': Linear has no such parameter"):
        shared.train(nn.Linear(2, 2))
    masks = Masks({"0.weight": torch.zeros(24, 12, dtype=torch.bool)})
    with pytest.raises(NothingToDoError, match="no codebook has a centroid to train"):
        sc.share(model, masks=masks, options=ShareOptions(only="0")).train()
    recurrent = sc.share(nn.LSTM(8, 8), bits=2, options=ShareOptions(parameters="weight_hh_l0"))
    with (
        pytest.raises(OptionError, match="weight_hh_l0: a recurrent layer keeps its own list of weights"),
        recurrent.train(),
    ):
        pass
    assert type(recurrent.model) is nn.LSTM
    with shared.train() as training, pytest.raises(OptionError, match="open already"):
        training.__enter__()

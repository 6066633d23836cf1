"""MACs against numbers worked by hand, the published counts, and torch's own counter where it is right."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import secateur as sc
from secateur.errors import MaskMismatchError
from secateur.metrics.macs import macs


def dense(model: nn.Module, example, **options) -> int:
    return macs(model, example, **options)["macs"].value


def vgg16() -> nn.Module:
    """VGG-16 in the lottery-ticket form: 13 convolutions with bias, no batch norm, one linear layer."""
    layers: list[nn.Module] = []
    width = 3
    for size in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512):
        if size == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(width, size, 3, padding=1), nn.ReLU()]
            width = size
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(512, 10))


class Vae(nn.Module):
    def __init__(self, hidden: int = 400, code: int = 20):
        super().__init__()
        self.fc1 = nn.Linear(784, hidden)
        self.fc21 = nn.Linear(hidden, code)
        self.fc22 = nn.Linear(hidden, code)
        self.fc3 = nn.Linear(code, hidden)
        self.fc4 = nn.Linear(hidden, 784)

    def forward(self, x):
        h = torch.relu(self.fc1(x))
        mean, log_variance = self.fc21(h), self.fc22(h)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        return torch.sigmoid(self.fc4(torch.relu(self.fc3(z)))), mean, log_variance


def test_vgg16_of_the_studies_exactly():
    model = vgg16()
    assert sum(p.numel() for p in model.parameters()) == 14_719_818
    table = macs(model, torch.zeros(1, 3, 32, 32), bias=True)
    assert table["macs"].value == 313_478_154
    assert len(table["macs"].per_layer) == 14
    assert sum(table["macs"].per_layer.values()) == 313_478_154
    assert table["macs"].per_layer["0"] == 32 * 32 * 64 * 3 * 9 + 32 * 32 * 64
    assert table["macs"].notes == ()


def test_vae_of_the_studies_exactly():
    model = Vae()
    assert sum(p.numel() for p in model.parameters()) == 652_824
    example = torch.zeros(1, 784)
    assert dense(model, example) == 651_200
    # 784-320-20, 784-200-18 and 784-80-8 are the widths behind the published 520,960, 324,400 and 127,360.
    for hidden, code, expected in (
        (320, 20, 520_960),
        (320, 16, 517_120),
        (200, 18, 324_400),
        (80, 8, 127_360),
    ):
        units = dense(Vae(hidden, code), example)
        assert units == expected
        # the same count must come out of the full model whose units are only masked
        model_masks = vae_masks(model, hidden, code)
        assert macs(model, example, masks=model_masks)["macs_nonzero"].value == units
    assert dense(model, example) == 651_200, "the weights were not touched"


def vae_masks(model: nn.Module, hidden: int, code: int) -> sc.Masks:
    kept = {
        "fc1": (hidden, 784),
        "fc21": (code, hidden),
        "fc22": (code, hidden),
        "fc3": (hidden, code),
        "fc4": (784, hidden),
    }
    masks = {}
    for layer, (rows, columns) in kept.items():
        mask = torch.zeros(model.get_submodule(layer).weight.shape, dtype=torch.bool)
        mask[:rows, :columns] = True
        masks[f"{layer}.weight"] = mask
    return sc.Masks(masks)


def test_bias_is_counted_once_per_output_and_only_when_asked():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 25, 7))
    x = torch.zeros(3, 2, 5, 5)
    weights = 3 * (25 * 4 * 2 * 9 + 100 * 7)
    assert dense(model, x) == weights
    assert dense(model, x, bias=True) == weights + 3 * (4 * 25 + 7)
    assert "biases are not counted" in macs(model, x)["macs"].definition
    assert "+ 1 per bias output" in macs(model, x, bias=True)["macs"].definition
    masks = sc.Masks({"2.bias": torch.tensor([True] * 3 + [False] * 4)})
    assert macs(model, x, bias=True, masks=masks)["macs_nonzero"].value == weights + 3 * (4 * 25 + 3)


CONVOLUTIONS = [
    (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9), 2 * 5 * 6 * 4 * 3),
    (nn.Conv2d(4, 6, (3, 2)), (2, 4, 5, 5), 2 * 3 * 4 * 6 * 4 * 6),
    (nn.Conv2d(4, 8, 3, groups=2, padding=1), (1, 4, 5, 5), 25 * 8 * 2 * 9),
    (nn.Conv2d(6, 6, 3, groups=6, padding=2, dilation=2), (1, 6, 5, 5), 25 * 6 * 9),
    (nn.Conv3d(2, 3, 2), (1, 2, 3, 4, 5), 2 * 3 * 4 * 3 * 2 * 8),
    (nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 9), 2 * 9 * 4 * 6 * 3),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (1, 4, 5, 5), 25 * 4 * 3 * 9),
    (nn.ConvTranspose3d(2, 3, 2), (1, 2, 3, 3, 3), 27 * 2 * 3 * 8),
    (nn.Conv2d(4, 6, 3), (4, 5, 5), 9 * 6 * 4 * 9),  # without a batch
    (nn.Conv1d(4, 6, 3, padding="same", padding_mode="circular"), (2, 4, 9), 2 * 9 * 6 * 4 * 3),
]


@pytest.mark.parametrize(("model", "shape", "expected"), CONVOLUTIONS, ids=lambda v: str(v)[:40])
def test_convolutions_by_hand(model, shape, expected):
    table = macs(model, torch.randn(shape))
    assert table["macs"].value == expected
    assert table["macs"].notes == ()
    keep = torch.rand(model.weight.shape, generator=torch.Generator().manual_seed(0)) > 0.4
    masked = macs(model, torch.randn(shape), masks=sc.Masks({"weight": keep}))
    share = int(keep.sum()) / keep.numel()
    assert masked["macs_nonzero"].value == round(expected * share)
    assert masked["macs"].value == expected


class Products(nn.Module):
    """Every form a matrix product comes in, none of them a layer."""

    def __init__(self, form: str):
        super().__init__()
        self.form = form

    def forward(self, a, b):
        return {
            "matmul": lambda: a @ b,
            "bmm": lambda: torch.bmm(a, b),
            "baddbmm": lambda: torch.baddbmm(torch.zeros(2, 3, 5), a, b),
            "einsum": lambda: torch.einsum("bij,bjk->bik", a, b),
            "mv": lambda: a[0] @ b[0, :, 0],
            "dot": lambda: a[0, 0] @ b[0, :, 0],
            "addmm": lambda: torch.addmm(torch.zeros(3, 5), a[0], b[0]),
            "addbmm": lambda: torch.addbmm(torch.zeros(3, 5), a, b),
            "addmv": lambda: torch.addmv(torch.zeros(3), a[0], b[0, :, 0]),
            "tensordot": lambda: torch.tensordot(a, b[0], 1),
            "broadcast": lambda: a[None] @ b[:, None],
        }[self.form]()


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("matmul", 2 * 3 * 4 * 5),
        ("bmm", 2 * 3 * 4 * 5),
        ("baddbmm", 2 * 3 * 4 * 5),
        ("einsum", 2 * 3 * 4 * 5),
        ("mv", 12),
        ("dot", 4),
        ("addmm", 60),
        ("addbmm", 120),
        ("addmv", 12),
        ("tensordot", 120),
        ("broadcast", 240),
    ],
)
def test_products_by_hand(form, expected):
    table = macs(Products(form), (torch.randn(2, 3, 4), torch.randn(2, 4, 5)))
    assert table["macs"].value == table["macs_nonzero"].value == expected
    assert table["macs"].notes == ()
    assert table["macs"].per_layer == {"(model)": expected}


@pytest.mark.parametrize("form", ["direct", "inference_mode", "no_grad"])
def test_attention_by_hand(form):
    class Attention(nn.Module):
        def forward(self, q, k, v):
            with torch.inference_mode() if form == "inference_mode" else torch.no_grad():
                return functional.scaled_dot_product_attention(q, k, v)

    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    assert dense(Attention(), (q, k, v)) == 2 * 3 * 5 * 7 * (8 + 8)


@pytest.mark.parametrize("need_weights", [True, False])
def test_multi_head_attention_by_hand(need_weights):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=need_weights)[0]

    table = macs(Block(), torch.randn(3, 5, 8), bias=True)
    rows = 3 * 5
    assert table["macs"].per_layer == {
        "attention": rows * 8 * 24 + rows * 24 + 2 * rows * 5 * 8,
        "attention.out_proj": rows * 8 * 8 + rows * 8,
    }


def encoder_by_hand(batch: int, length: int, width: int, inner: int) -> int:
    rows = batch * length
    return rows * width * 4 * width + 2 * rows * length * width + 2 * rows * width * inner


@pytest.mark.parametrize("fused", [False, True], ids=["as a layer", "as one fused operator"])
def test_transformer_encoder_layer(fused):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()

    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            a, n = layer.self_attn, (layer.norm1, layer.norm2)
            projections = (a.in_proj_weight, a.in_proj_bias, a.out_proj.weight, a.out_proj.bias)
            norms = (n[0].weight, n[0].bias, n[1].weight, n[1].bias)
            inner = (layer.linear1.weight, layer.linear1.bias, layer.linear2.weight, layer.linear2.bias)
            return torch._transformer_encoder_layer_fwd(
                x, 8, 2, *projections, False, False, 1e-5, *norms, *inner
            )

    model, x = (Fused() if fused else layer), torch.randn(3, 5, 8)
    assert dense(model, x) == encoder_by_hand(3, 5, 8, 16)
    rows = 15
    assert dense(model, x, bias=True) == encoder_by_hand(3, 5, 8, 16) + rows * (24 + 8 + 16 + 8)
    names = dict(model.named_parameters())
    weight = next(name for name in names if name.endswith("linear1.weight"))
    keep = torch.rand(16, 8) > 0.5
    masked = macs(model, x, masks=sc.Masks({weight: keep}))
    assert masked["macs_nonzero"].value == encoder_by_hand(3, 5, 8, 16) - rows * int((~keep).sum())
    assert layer.linear1.weight.ne(0).all()


def test_native_multi_head_attention_operator():
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()

    class Native(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def forward(self, x):
            a = self.attention
            return torch._native_multi_head_attention(
                x, x, x, 8, 2, a.in_proj_weight, a.in_proj_bias, a.out_proj.weight, a.out_proj.bias
            )[0]

    x = torch.randn(3, 5, 8)
    assert dense(Native(), x) == 15 * 8 * 24 + 2 * 15 * 5 * 8 + 15 * 64


def test_encoder_in_eval_is_not_zero_and_the_fast_path_is_put_back():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    assert torch.backends.mha.get_fastpath_enabled()
    assert dense(model, torch.randn(3, 5, 8)) == 2 * encoder_by_hand(3, 5, 8, 16)
    assert torch.backends.mha.get_fastpath_enabled()


RECURRENT = {
    "lstm": (nn.LSTM(3, 4, 2, bidirectional=True), 2 * 4 * 4 * (3 + 4) + 2 * 4 * 4 * (8 + 4), 2 * 2 * 2 * 16),
    "lstm batch first": (nn.LSTM(3, 4, batch_first=True), 16 * (3 + 4), 32),
    "lstm projected": (nn.LSTM(3, 4, proj_size=2), 16 * (3 + 2) + 2 * 4, 32),
    "gru": (nn.GRU(3, 4), 12 * (3 + 4), 24),
    "rnn": (nn.RNN(3, 4, 2), 4 * (3 + 4) + 4 * (4 + 4), 16),
}


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_layers_by_hand(kind):
    model, per_step, biases = RECURRENT[kind]
    x = torch.randn(5, 2, 3)
    table = macs(model, x)
    assert table["macs"].value == 10 * per_step
    assert table["macs"].notes == ()
    assert dense(model, x, bias=True) == 10 * (per_step + biases)
    name = "weight_ih_l0"
    keep = torch.rand(getattr(model, name).shape, generator=torch.Generator().manual_seed(0)) > 0.5
    pruned = macs(model, x, masks=sc.Masks({name: keep}))
    assert pruned["macs_nonzero"].value == 10 * (per_step - int((~keep).sum()))


@pytest.mark.parametrize("shape", [(6, 3), (5, 2, 3), (2, 5, 4, 3)])
@pytest.mark.parametrize("contiguous", [True, False])
def test_linear_with_bias_whatever_the_layout(shape, contiguous):
    x = torch.randn(shape)
    if not contiguous:
        x = x.transpose(0, -2)
    assert dense(nn.Linear(3, 7), x, bias=True) == x.numel() // 3 * (3 * 7 + 7)


def test_embedding_and_elementwise_are_zero_by_definition():
    model = nn.Sequential(nn.Embedding(10, 4), nn.LayerNorm(4), nn.GELU(), nn.Softmax(-1))
    table = macs(model, torch.tensor([[1, 2]]))
    assert table["macs"].value == 0
    assert table["macs"].notes == ()
    assert "look-ups are 0" in table["macs"].definition


def test_what_cannot_be_counted_is_listed():
    class Mixer(nn.Module):
        def forward(self, x):
            return torch.fft.fft2(torch.cdist(x, x)).real

    table = macs(nn.Sequential(nn.Linear(4, 4), Mixer(), Mixer()), torch.randn(2, 4, 4))
    assert table["macs"].value == 2 * 4 * 4 * 4
    notes = table["macs"].notes
    for layer in ("1", "2"):
        assert f"not counted: aten._cdist_forward, 1 time in {layer}" in notes
        assert any(
            note.startswith("not counted: aten._fft") and note.endswith(f"in {layer}") for note in notes
        )
    assert all(note.startswith("not counted: ") for note in notes)


def test_activations_are_free_in_place_too():
    kinds = (
        nn.ReLU,
        nn.ReLU6,
        nn.SiLU,
        nn.Hardswish,
        nn.Hardsigmoid,
        nn.Hardtanh,
        nn.Mish,
        nn.ELU,
        nn.LeakyReLU,
    )
    for inplace in (False, True):
        model = nn.Sequential(nn.Linear(4, 4), *(kind(inplace=inplace) for kind in kinds))
        assert macs(model, torch.randn(2, 4))["macs"].notes == ()


def test_an_operator_that_many_layers_run_is_one_line():
    class Distance(nn.Module):
        def forward(self, x):
            return torch.cdist(x, x)

    table = macs(nn.Sequential(*(Distance() for _ in range(5))), torch.randn(4, 4))
    assert table["macs"].notes == ("not counted: aten._cdist_forward, 5 times in 0, 1, 2 and 2 more",)


def test_operators_under_inference_mode_arrive_whole_and_are_counted():
    class Inferring(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3), nn.Dropout())

        @torch.inference_mode()
        def forward(self, x):
            return torch.matmul(self.net(x)[:, None], torch.ones(2, 3, 1))

    table = macs(Inferring(), torch.randn(2, 1, 4, 4))
    assert table["macs"].value == 2 * (4 * 2 * 9 + 24 + 3)
    assert table["macs"].notes == ()


def test_masks_are_counted_where_the_caller_is_in_inference_mode():
    model = nn.Conv2d(4, 6, 1)
    masks = sc.Masks({"weight": torch.arange(24).reshape(6, 4, 1, 1) < 9})
    with torch.inference_mode():
        assert macs(model, torch.randn(5, 4, 1, 1), masks=masks)["macs_nonzero"].value == 5 * 9


def test_weights_that_are_derived_on_the_way():
    """A cast, torch's own pruning and a weight norm: still weights; their zeros count as zeros."""
    from torch.nn.utils import prune

    model = nn.Linear(4, 6)
    prune.custom_from_mask(model, "weight", torch.tensor([[1, 0, 0, 1]] * 6))
    assert macs(model, torch.randn(5, 4))["macs_nonzero"].value == 5 * 12

    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 6)

        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.layer(x)

    cast = Cast()
    masks = sc.Masks({"layer.weight": torch.tensor([[True, False, False, True]] * 6)})
    assert macs(cast, torch.randn(5, 4), masks=masks)["macs_nonzero"].value == 5 * 12
    # zeros of activations are not the weights'
    assert macs(nn.Linear(4, 6), torch.zeros(5, 4))["macs_nonzero"].value == 5 * 24


def test_a_buffer_that_activations_were_written_to_is_no_weight():
    class Cache(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("cache", torch.zeros(4, 4))

        def forward(self, x):
            self.cache.copy_(x)
            return x @ self.cache

    model = Cache()
    table = macs(model, torch.zeros(4, 4))
    assert table["macs_nonzero"].value == table["macs"].value == 64
    macs(model, torch.ones(4, 4))
    assert not model.cache.any(), "buffers are put back"


def test_tied_weights_and_masks():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    keep = torch.eye(4) > 0
    table = macs(model, torch.randn(2, 4), masks=sc.Masks({"0.weight": keep}))
    assert table["macs"].value == 64
    assert table["macs_nonzero"].value == 2 * (4 + 4)
    assert model[0].weight.ne(0).all()
    assert model[0].weight is model[2].weight


def test_masks_of_another_model():
    with pytest.raises(MaskMismatchError, match="mask of 'fc': Linear has no such parameter"):
        macs(nn.Linear(2, 2), torch.zeros(1, 2), masks=sc.Masks({"fc": torch.ones(1, dtype=torch.bool)}))


def test_examples_of_every_form_and_the_model_as_found():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 3)
            self.drop = nn.Dropout()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x, y=None, scale=1.0):
            return self.norm(self.drop(self.a(x)) * scale) + (y if y is not None else 0)

    model = Two()
    model.a.eval()
    keys = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    x = torch.randn(4, 2)
    torch.set_rng_state(random)
    for example in (x, (x, torch.zeros(4, 3)), {"x": x, "scale": 2.0}):
        for masks in (None, sc.Masks({"a.weight": torch.ones(3, 2, dtype=torch.bool)})):
            assert dense(model, example, masks=masks) == 24
    assert (model.training, model.a.training, model.norm.training) == (True, False, True)
    assert all(torch.equal(v, keys[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_a_failing_forward_leaves_no_hook():
    from torch.nn.modules import module

    hooks = dict(module._global_forward_hooks), dict(module._global_forward_pre_hooks)
    with pytest.raises(RuntimeError):
        macs(nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 3)), torch.zeros(1, 2))
    assert (dict(module._global_forward_hooks), dict(module._global_forward_pre_hooks)) == hooks
    assert torch.backends.mha.get_fastpath_enabled()


def test_resnets_agree_with_torchs_own_counter():
    from secateur.models.resnet18 import Resnet18
    from secateur.models.resnet20 import Resnet20

    for model in (Resnet18(), Resnet20()):
        x = torch.randn(2, 3, 32, 32)
        theirs = FlopCounterMode(display=False)
        with theirs, torch.no_grad():
            model.eval()(x)
        table = macs(model, x)
        assert table["macs"].value * 2 == theirs.get_total_flops()
        assert sum(table["macs"].per_layer.values()) == table["macs"].value


def test_compiled_model_is_counted_as_its_original():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    assert macs(torch.compile(model, backend="eager"), torch.zeros(2, 4))["macs"].per_layer == {"0": 32}


def test_what_masks_leave_is_counted_layer_by_layer_too():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    keep = torch.tensor([[True, False, True], [False, False, True]])
    found = macs(model, torch.ones(5, 4), masks=sc.Masks({"1.weight": keep}))
    assert dict(found["macs"].per_layer) == {"0": 5 * 12, "1": 5 * 6}
    assert dict(found["macs_nonzero"].per_layer) == {"0": 5 * 12, "1": 5 * 3}
